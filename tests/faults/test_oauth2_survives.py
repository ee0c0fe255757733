"""A runner that is killed while it has tokens of another issuer: what is known then, and what is said about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from fork_server import ForkServer
from oauth import MAIL, READ, SUPPORT, OAuth, escaped_tokens

from orchestrator.actions.catalog import catalog
from orchestrator.clock import SystemClock
from orchestrator.ledger.ids import new_run_id
from orchestrator.ledger.lease import FINAL, LeaseState
from orchestrator.ledger.opening import open_ledger
from orchestrator.ledger.types import LeaseFilter
from orchestrator.workflow.loader import load_text

OPAQUE = "issuer: basic, scope: [read], ttl: 60s"
REFRESHED = f"issuer: refresher, scope: [{READ}], resource: {MAIL!r}, ttl: 60s"
POINTS = [
    (kind, when)
    for kind in ("lease.requested", "lease.issued", "lease.revoking", "lease.revoked")
    for when in ("before", "after")
]


@dataclass
class Victim:
    oauth: OAuth
    children: ForkServer
    run_id: str

    def child(self, do: str, *, grant: str = OPAQUE, vault: str = "", **more: Any) -> int:
        bench = self.oauth.bench
        text = self.oauth.text(grant)
        bench.install(load_text(text, filename="crash.yaml", actions=catalog).workflow)
        given = {
            "vault": vault or bench.info.vault_address,
            "role_id": bench.provisioned.role_id,
            "secret_id": bench.provisioned.secret_id.reveal(),
            "ledger": bench.config().ledger_url,
            "endpoints": bench.info.endpoints,
            "issuer": bench.info.issuer_url,
            "issuers": str(self.oauth.file),
            "workflow": text,
            "run": self.run_id,
            "do": do,
            **more,
        }
        return self.children.run(given)

    def told(self) -> list[tuple[LeaseState, str, bool]]:
        """Of each lease of the issuer, oldest first: its state, why it is not called revoked, and does it end."""
        with open_ledger(self.oauth.bench.config().ledger_url, clock=SystemClock()) as ledger:
            assert ledger.verify(self.run_id) is None
            leases = [each for each in ledger.leases(LeaseFilter(run=self.run_id)) if each.grant_kind == "oauth2"]
            ends = {
                event.data["lease_id"]: event.data
                for event in ledger.events(self.run_id)
                if event.kind == "lease.ended"
            }
            assert all(each.state in FINAL for each in leases)
            return [
                (
                    each.state,
                    str(ends.get(each.lease_id, {}).get("reason", "")),
                    "valid_until" in ends.get(each.lease_id, {}),
                )
                for each in reversed(leases)
            ]


@pytest.fixture
def victim(oauth_bench: OAuth, children: ForkServer) -> Victim:
    return Victim(oauth_bench, children, new_run_id())


@pytest.mark.parametrize(("kind", "when"), POINTS, ids=[f"{when} {kind}" for kind, when in POINTS])
def test_a_killed_runner_leaves_tokens_that_nobody_holds_and_that_is_said(victim: Victim, kind: str, when: str) -> None:
    point = {"kind": kind, "grant_kind": "oauth2", "when": when, "count": 1}
    assert victim.child("run", point=point) == -9
    assert victim.child("recover") == 0
    done_again = when == "before" or kind in ("lease.requested", "lease.issued")
    if (kind, when) == ("lease.revoked", "before"):
        done_again = False  # that the step has succeeded went on record with the beginning of its revocation
    lost = {("lease.requested", "before"): 0, ("lease.revoked", "after"): 0}.get((kind, when), 1)
    told = victim.told()
    again = told[lost:]
    assert [state for state, _, _ in again] == [LeaseState.REVOKED] * len(again), "done again, and revoked"
    assert len(again) == (1 if done_again or (kind, when) == ("lease.revoked", "after") else 0)
    unknown = kind == "lease.requested" or (kind, when) == ("lease.issued", "before")
    reason = (
        "its outcome is not known: if it exists, nobody holds it" if unknown else "the process that held it is gone"
    )
    assert told[:lost] == [(LeaseState.ENDED, reason, True)] * lost
    alive = victim.oauth.alive()
    assert len(alive) <= 1, "at most the one that the dead process had; it ends by itself"
    assert escaped_tokens(victim.oauth.server, [victim.oauth.bench.directory]) == []


def kept_refresh_token(oauth: OAuth, client: str) -> None:
    token = oauth.server.refresh_token(client, SUPPORT, READ, resource=MAIL).reveal()
    oauth.bench.vault.write_data(f"secret/data/oauth/{client}", data={"data": {"refresh_token": token}})


def test_where_refresh_tokens_stay_the_same_a_killed_process_costs_nothing(victim: Victim) -> None:
    kept_refresh_token(victim.oauth, "keeper")
    before = victim.oauth.kept("oauth/keeper")["refresh_token"]
    grant = REFRESHED.replace("refresher", "keeper")
    assert victim.child("run", grant=grant, dies_before_storing=True) == -9
    assert victim.oauth.kept("oauth/keeper")["in_use_by"].startswith("lease_")
    assert victim.child("recover", grant=grant) == 0
    assert [state for state, _, _ in victim.told()] == [LeaseState.ENDED, LeaseState.ENDED]
    assert victim.oauth.kept("oauth/keeper") == {"refresh_token": before}


def test_a_refresh_token_that_was_lost_with_its_process_is_told_by_the_name_of_the_lease(victim: Victim) -> None:
    """The issuer has ended the one in Vault, and the next one died with the process: a person has to agree again."""
    kept_refresh_token(victim.oauth, "refresher")
    assert victim.child("run", grant=REFRESHED, dies_before_storing=True) == -9
    user = victim.oauth.kept("oauth/refresher")["in_use_by"]
    assert victim.child("recover", grant=REFRESHED) == 0
    (first, *_), (second, *_) = victim.told()
    assert (first, second) == (LeaseState.ENDED, LeaseState.DENIED)
    with open_ledger(victim.oauth.bench.config().ledger_url, clock=SystemClock()) as ledger:
        [denied] = [event for event in ledger.events(victim.run_id) if event.kind == "lease.denied"]
    assert f"`{user}` used the refresh token before, and did not store what followed" in str(denied.data["reason"])
    assert "in_use_by" not in victim.oauth.kept("oauth/refresher")

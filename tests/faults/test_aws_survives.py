"""A runner that is killed while it has a session of AWS: nobody holds it then, and it is good for nothing by itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import yaml
from aws_accounts import ISSUER, Account, aws_server, transit_key
from aws_server import AwsServer
from bench import Bench
from fork_server import ForkServer

from orchestrator.clock import SystemClock
from orchestrator.ledger.ids import new_run_id
from orchestrator.ledger.lease import FINAL, LeaseState
from orchestrator.ledger.opening import open_ledger
from orchestrator.ledger.states import RunState
from orchestrator.ledger.types import LeaseFilter, LeaseRecord

POINTS = [
    (kind, when)
    for kind in ("lease.requested", "lease.issued", "lease.revoking", "lease.ended")
    for when in ("before", "after")
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AwsServer]:
    with aws_server(tmp_path_factory.mktemp("aws")) as server:
        yield server


@dataclass
class Victim:
    account: Account
    children: ForkServer
    run_id: str

    def child(self, do: str, **more: Any) -> int:
        bench, account = self.account.bench, self.account
        file = bench.directory / "issuers.yaml"
        file.write_text(yaml.safe_dump({"issuers": {ISSUER: account.declared.model_dump(exclude_none=True)}}))
        account.install(account.text())
        given = {
            "vault": bench.info.vault_address,
            "role_id": bench.provisioned.role_id,
            "secret_id": bench.provisioned.secret_id.reveal(),
            "ledger": bench.config().ledger_url,
            "endpoints": {**bench.info.endpoints, "aws": account.server.endpoint},
            "issuer": bench.info.issuer_url,
            "issuers": str(file),
            "workflow": account.text(),
            "run": self.run_id,
            "do": do,
            **more,
        }
        return self.children.run(given)

    def leases(self) -> tuple[list[LeaseRecord], list[str]]:
        """Those of AWS, oldest first, and why each is not called revoked."""
        with open_ledger(self.account.bench.config().ledger_url, clock=SystemClock()) as ledger:
            assert ledger.verify(self.run_id) is None
            found = reversed(ledger.leases(LeaseFilter(run=self.run_id)))
            mine = [each for each in found if each.grant_kind == "aws"]
            assert all(each.state in FINAL for each in mine)
            ends = {
                each.data["lease_id"]: each.data for each in ledger.events(self.run_id) if each.kind == "lease.ended"
            }
            assert all("valid_until" in ends[each.lease_id] for each in mine)
        return mine, [str(ends[each.lease_id].get("reason", "")) for each in mine]


@pytest.fixture
def victim(bench: Bench, server: AwsServer, children: ForkServer) -> Iterator[Victim]:
    user = server.user("orchestrator", ["sts:AssumeRole"])
    with transit_key(bench, user.secret) as key:
        yield Victim(Account(bench, server, user, key), children, new_run_id())
    server.forget("orchestrator", user)


@pytest.mark.parametrize(("kind", "when"), POINTS, ids=[f"{when} {kind}" for kind, when in POINTS])
def test_a_killed_runner_leaves_a_session_that_nobody_holds(victim: Victim, kind: str, when: str) -> None:
    point = {"kind": kind, "grant_kind": "aws", "when": when, "count": 1}
    assert victim.child("run", point=point) == -9
    assert victim.child("recover") == 0
    leases, reasons = victim.leases()
    assert {each.state for each in leases} == {LeaseState.ENDED}
    lost = (kind, when) not in (("lease.requested", "before"), ("lease.ended", "after"))
    assert len([each for each in reasons if each]) == lost
    if lost and kind in ("lease.requested", "lease.issued") and (kind, when) != ("lease.issued", "after"):
        assert reasons[0] == "its outcome is not known: if it exists, nobody holds it"
    elif lost:
        assert reasons[0] == "the process that held it is gone"
    with open_ledger(victim.account.bench.config().ledger_url, clock=SystemClock()) as ledger:
        run = ledger.run(victim.run_id)
    assert run is not None
    assert run.state is RunState.SUCCEEDED, "it was done again"

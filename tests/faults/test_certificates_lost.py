"""Certificates whose answer is lost, whose runner is killed, or whose Vault goes away: revoked, by Vault's own list."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from bench import Bench
from fork_server import ForkServer
from pki import Pki, pki_of
from proxy import Answer, CutAfterForwarding, DropAnswer, Fault, Proxy
from waiting import wait_for

from orchestrator.actions.catalog import catalog
from orchestrator.clock import SystemClock
from orchestrator.devstack.stack import DevStack
from orchestrator.errors import ExitCode
from orchestrator.ledger.ids import new_run_id
from orchestrator.ledger.lease import FINAL, LeaseState
from orchestrator.ledger.opening import open_ledger
from orchestrator.ledger.types import LeaseFilter, LeaseRecord
from orchestrator.workflow.loader import load_text

ROLE = {"allowed_domains": ["orders.example"], "require_cn": False}


@pytest.fixture
def pki(bench: Bench) -> Iterator[Pki]:
    with pki_of(bench.vault) as made:
        made.role("client", **ROLE)
        yield made


@pytest.fixture
def proxy(bench: Bench) -> Iterator[Proxy]:
    host, _, port = bench.info.vault_address.removeprefix("http://").partition(":")
    with Proxy((host, int(port)), http=True) as started:
        yield started


def workflow(pki: Pki, command: str = "exit 0", *, timeout: str = "20s") -> str:
    return f"""\
version: 1
name: certificates-lost
agent: tester
steps:
  one:
    action: exec
    timeout: {timeout}
    on_crash: fail
    grants:
      tls: {{ kind: certificate, mount: {pki.mount}, role: client, names: [a.orders.example] }}
    with:
      command: {json.dumps(["/bin/sh", "-c", command])}
      credentials: {{ files: {{ C: tls.certificate, K: tls.key }} }}
"""


def certificates(records: list[LeaseRecord]) -> list[LeaseRecord]:
    return [each for each in records if each.grant_kind == "certificate"]


def child(bench: Bench, children: ForkServer, address: str, do: str, run_id: str, text: str = "", **more: Any) -> int:
    provisioned = bench.provisioned
    return children.run(
        {
            "vault": address,
            "role_id": provisioned.role_id,
            "secret_id": provisioned.secret_id.reveal(),
            "ledger": bench.config().ledger_url,
            "endpoints": bench.info.endpoints,
            "issuer": bench.info.issuer_url,
            "workflow": text,
            "run": run_id,
            "do": do,
            "point": None,
            **more,
        }
    )


def recorded(bench: Bench, run_id: str) -> list[LeaseRecord]:
    with open_ledger(bench.config().ledger_url, clock=SystemClock()) as ledger:
        assert ledger.verify(run_id) is None
        return list(ledger.leases(LeaseFilter(run=run_id)))


@pytest.mark.parametrize("fault", [DropAnswer(), CutAfterForwarding()], ids=["dropped", "cut"])
def test_one_whose_answer_is_lost_is_revoked_with_the_steps_token(
    bench: Bench, pki: Pki, proxy: Proxy, children: ForkServer, fault: Fault
) -> None:
    text, run_id = workflow(pki), new_run_id()
    bench.install(load_text(text, filename="w.yaml", actions=catalog).workflow)
    proxy.fail(fault, when=lambda line: f"/{pki.mount}/sign/" in line)
    code = child(bench, children, proxy.address, "run", run_id, text)
    assert code in (ExitCode.UNREACHABLE, ExitCode.UNCONFIRMED)
    # A connection that is cut may keep Vault from signing at all: then there is nothing to revoke.
    assert len(pki.serials()) == 1 or isinstance(fault, CutAfterForwarding)
    wait_for(lambda: pki.revoked() == pki.serials(), "Vault to revoke what hung from the token")
    (lease,) = certificates(recorded(bench, run_id))
    assert (lease.state, lease.subject) == (LeaseState.REVOKING, ""), "what is not known is not called revoked"
    assert "outcome unknown" in lease.reason
    assert pki.leases() == []
    child(bench, children, proxy.address, "recover", run_id, later=True)
    (lease,) = certificates(recorded(bench, run_id))
    assert lease.state is LeaseState.EXPIRED


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("kind", ["lease.issued", "lease.revoking", "lease.revoked"])
def test_one_whose_runner_is_killed_is_revoked_by_whoever_recovers(
    bench: Bench, pki: Pki, proxy: Proxy, children: ForkServer, kind: str, when: str
) -> None:
    text, run_id = workflow(pki), new_run_id()
    bench.install(load_text(text, filename="w.yaml", actions=catalog).workflow)
    point = {"kind": kind, "grant_kind": "certificate", "when": when, "count": 1}
    assert child(bench, children, proxy.address, "run", run_id, text, point=point) == -9
    (serial,) = pki.serials()
    assert child(bench, children, proxy.address, "recover", run_id) == 0
    leases = recorded(bench, run_id)
    if not {each.state for each in leases} <= FINAL:
        child(bench, children, proxy.address, "recover", run_id, later=True)
        leases = recorded(bench, run_id)
    wait_for(lambda: pki.revoked() == [serial], "the certificate to be revoked")
    assert {each.state for each in leases} <= FINAL
    (lease,) = certificates(leases)
    if (kind, when) != ("lease.issued", "before"):
        assert (lease.state, lease.subject) == (LeaseState.REVOKED, serial)
    assert pki.leases() == []


def test_while_vault_does_not_revoke_it_is_not_called_revoked(
    bench: Bench, pki: Pki, proxy: Proxy, children: ForkServer
) -> None:
    text, run_id = workflow(pki), new_run_id()
    bench.install(load_text(text, filename="w.yaml", actions=catalog).workflow)
    proxy.fail(Answer(503), times=1000, when=lambda line: "/sys/leases/revoke" in line or "revoke-accessor" in line)
    assert child(bench, children, proxy.address, "run", run_id, text, grace=1.0) == ExitCode.UNCONFIRMED
    (lease,) = certificates(recorded(bench, run_id))
    assert lease.state is LeaseState.REVOKING
    proxy.heal()
    assert child(bench, children, proxy.address, "recover", run_id) == 0
    (lease,) = certificates(recorded(bench, run_id))
    assert (lease.state, [lease.subject]) == (LeaseState.REVOKED, pki.revoked())


def test_an_answer_that_says_it_is_revoked_is_not_believed_while_the_certificate_is_not(
    bench: Bench, pki: Pki, proxy: Proxy, children: ForkServer
) -> None:
    text, run_id = workflow(pki), new_run_id()
    bench.install(load_text(text, filename="w.yaml", actions=catalog).workflow)
    proxy.fail(Answer(204, body=b""), times=1000, when=lambda line: "/sys/leases/revoke" in line)
    proxy.fail(Answer(503), times=1000, when=lambda line: "/auth/token/revoke-" in line)
    assert child(bench, children, proxy.address, "run", run_id, text, grace=1.0) == ExitCode.UNCONFIRMED
    (lease,) = certificates(recorded(bench, run_id))
    assert (lease.state, pki.revoked()) == (LeaseState.REVOKING, [])
    assert "is not revoked" in lease.reason
    proxy.heal()
    assert child(bench, children, proxy.address, "recover", run_id) == 0
    (lease,) = certificates(recorded(bench, run_id))
    assert (lease.state, [lease.subject]) == (LeaseState.REVOKED, pki.revoked())


@pytest.mark.parametrize("own_bench", ["persistent"], indirect=True)
def test_a_vault_that_is_sealed_meanwhile_signs_nothing_or_revokes_it_when_it_is_back(
    own_bench: tuple[DevStack, Bench], children: ForkServer
) -> None:
    servers, bench = own_bench
    with pki_of(bench.vault) as pki:
        pki.role("client", **ROLE)
        text, run_id = workflow(pki, timeout="6s"), new_run_id()
        bench.install(load_text(text, filename="w.yaml", actions=catalog).workflow)
        host, _, port = bench.info.vault_address.removeprefix("http://").partition(":")
        servers.openbao.wait_settled()
        with Proxy((host, int(port)), http=True) as proxy:
            sealed: list[bool] = []

            def seal(line: str) -> bool:
                if f"/{pki.mount}/sign/" in line and not sealed:
                    sealed.append(True)
                    servers.openbao.seal()
                return False

            proxy.fail(DropAnswer(), when=seal)
            assert child(bench, children, proxy.address, "run", run_id, text, grace=1.0) != ExitCode.DONE
            assert sealed
            servers.openbao.stop()
            servers.openbao.start()
            child(bench, children, proxy.address, "recover", run_id)
            child(bench, children, proxy.address, "recover", run_id, later=True)
            assert {each.state for each in recorded(bench, run_id)} <= FINAL
            wait_for(lambda: sorted(pki.revoked()) == sorted(pki.serials()), "everything that was signed to be revoked")

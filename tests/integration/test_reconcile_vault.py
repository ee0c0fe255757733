"""A real audit log of Vault's, whose handles are hashed, held against the ledger of real runs."""

from __future__ import annotations

import gzip
import io
import json
import re
import sqlite3
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import hvac
import pytest
from bench import Bench

from orchestrator.cli.main import main
from orchestrator.clock import SystemClock
from orchestrator.evidence.reconciliation.vault_audit import read_audit
from orchestrator.ledger.lease import LeaseState
from orchestrator.ledger.opening import open_ledger
from orchestrator.ledger.types import LeaseFilter, LeaseRecord

WORKFLOW = """
version: 1
name: reconciled
agent: feedback-assistant
steps:
  read:
    action: postgres.query
    grants:
      db: { kind: database, connection: support, role: feedback-read }
    with: { sql: SELECT current_user AS login }
    outputs: [rows]
"""
OURS = "database/creds/feedback-read"

Reconcile = Callable[..., dict[str, Any]]


@pytest.fixture
def audit(bench: Bench, tmp_path: Path) -> Callable[[], Path]:
    """What the session's Vault has logged since this test began, as a file."""
    log = bench.info.directory / "openbao" / "audit.log"
    begin = log.stat().st_size

    def since() -> Path:
        with log.open("rb") as file:
            file.seek(begin)
            target = tmp_path / "audit.log"
            target.write_bytes(file.read())
        return target

    return since


@pytest.fixture
def reconcile(bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Reconcile:
    """The answer of `history reconcile --json`, as the admin."""

    def run(*words: object, code: int = 0) -> dict[str, Any]:
        with monkeypatch.context() as patch:
            for name in ("ORCHESTRATOR_AUTH_ROLE_ID", "ORCHESTRATOR_AUTH_SECRET_ID"):
                patch.delenv(name, raising=False)
            patch.setenv("VAULT_ADDR", bench.info.vault_address)
            patch.setenv("VAULT_TOKEN", bench.info.root_token.reveal())
            patch.setenv("ORCHESTRATOR_LEDGER_URL", bench.config().ledger_url)
            found = main(["history", "reconcile", "--clock-skew", "0", "--json", *map(str, words)])
        said = capsys.readouterr()
        assert found == code, said.err
        return dict(json.loads(said.out or said.err))

    return run


def findings(answer: dict[str, Any], source: str = "vault") -> set[tuple[str, str]]:
    return {(each["kind"], each["lease_id"] or each["what"]) for each in answer[source]["findings"]}


def leases(bench: Bench) -> list[LeaseRecord]:
    with open_ledger(bench.config().ledger_url, clock=SystemClock()) as ledger:
        return list(ledger.leases(LeaseFilter()))


def by_hand(bench: Bench, *statements: str) -> None:
    """What somebody with the file does to the ledger, past what refuses it."""
    with closing(sqlite3.connect(bench.config().ledger_url.removeprefix("sqlite:///"))) as ledger:
        for (name,) in ledger.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            ledger.execute(f"DROP TRIGGER {name}")
        for statement in statements:
            assert ledger.execute(statement).rowcount == 1, statement
        ledger.commit()


def test_a_log_and_a_ledger_of_the_same_runs_agree(
    bench: Bench, audit: Callable[[], Path], reconcile: Reconcile
) -> None:
    for _ in range(2):
        bench.run(WORKFLOW)
    answer = reconcile("--vault-audit", audit())
    assert answer["agree"] is True
    vault = answer["vault"]
    with_handle = [lease for lease in leases(bench) if lease.vault_lease_id or lease.accessor]
    assert vault["matched"] == vault["recorded"] == vault["logged"] == len(with_handle) >= 8
    assert vault["coverage"]["broken"] == 0
    assert vault["coverage"]["first"] < vault["coverage"]["last"]


def test_what_vault_issued_behind_our_back_is_found(
    bench: Bench, audit: Callable[[], Path], reconcile: Reconcile
) -> None:
    bench.run(WORKFLOW)
    given = bench.vault.read(OURS)
    token = bench.vault.write("auth/token/create/step.reconciled.read", ttl="60s")["auth"]
    bench.vault.sys.revoke_lease(given["lease_id"])
    bench.vault.auth.token.revoke_accessor(token["accessor"])
    answer = reconcile("--vault-audit", audit(), code=4)
    found = {each["what"].partition(" ")[0]: each for each in answer["vault"]["findings"]}
    assert {each["kind"] for each in found.values()} == {"issued_unknown"}
    assert set(found) == {given["lease_id"], "auth/token/create/step.reconciled.read"}
    assert {each["by"] for each in found.values()} == {"token from 127.0.0.1"}


def test_a_lease_that_was_taken_out_of_the_ledger_is_found_with_its_run(
    bench: Bench, audit: Callable[[], Path], reconcile: Reconcile
) -> None:
    outcome = bench.run(WORKFLOW)
    gone = {lease.grant_kind: lease for lease in leases(bench) if lease.step == "read"}
    by_hand(bench, *(f"DELETE FROM lease WHERE lease_id = '{lease.lease_id}'" for lease in gone.values()))
    answer = reconcile("--vault-audit", audit(), code=4)
    assert {each["kind"] for each in answer["vault"]["findings"]} == {"issued_unknown"}
    assert {each["run_id"] for each in answer["vault"]["findings"]} == {outcome.run_id}
    assert {each["what"].partition(" ")[0] for each in answer["vault"]["findings"]} == {
        gone["database"].vault_lease_id,
        "auth/token/create/step.reconciled.read",
    }


def test_a_lease_that_vaults_log_lacks_is_found(bench: Bench, audit: Callable[[], Path], reconcile: Reconcile) -> None:
    bench.run(WORKFLOW)
    for lease in leases(bench):
        if lease.step == "read":
            column = "vault_lease_id" if lease.vault_lease_id else "accessor"
            by_hand(bench, f"UPDATE lease SET {column} = 'made-up' WHERE lease_id = '{lease.lease_id}'")
    made_up = {("not_in_vault", lease.lease_id) for lease in leases(bench) if lease.step == "read"}
    assert len(made_up) == 2
    answer = reconcile("--vault-audit", audit(), code=4)
    assert findings(answer) >= made_up
    assert {kind for kind, _ in findings(answer)} == {"not_in_vault", "issued_unknown"}


def test_what_a_log_of_another_time_cannot_have_is_not_missing(
    bench: Bench, audit: Callable[[], Path], reconcile: Reconcile, tmp_path: Path
) -> None:
    bench.run(WORKFLOW)
    before = len(audit().read_bytes())
    bench.run(WORKFLOW)
    later = tmp_path / "later.log"
    later.write_bytes(audit().read_bytes()[before:])
    answer = reconcile("--vault-audit", later)
    assert answer["vault"]["recorded"] == 4
    assert answer["vault"]["matched"] >= 4


@pytest.mark.parametrize("how", ["lease", "path", "prefix", "token"])
def test_a_lease_that_an_admin_revoked_is_found(
    bench: Bench, audit: Callable[[], Path], reconcile: Reconcile, how: str
) -> None:
    def revoked(lease: LeaseRecord) -> None:
        vault = bench.vault
        if how == "lease":
            vault.sys.revoke_lease(lease.vault_lease_id)
        elif how == "path":
            vault.adapter.put(f"/v1/sys/leases/revoke/{lease.vault_lease_id}")
        elif how == "prefix":
            vault.adapter.put(f"/v1/sys/leases/revoke-prefix/{OURS}")
        else:
            token = next(each for each in leases(bench) if each.step == "read" and each.grant_kind == "step-token")
            vault.auth.token.revoke_accessor(token.accessor)

    bench.run(WORKFLOW)
    lease = next(each for each in leases(bench) if each.step == "read" and each.grant_kind == "database")
    revoke_during_a_run(bench, revoked)
    answer = reconcile("--vault-audit", audit(), code=4)
    kinds = {kind for kind, _ in findings(answer)}
    assert kinds == {"revoked_by_others"}
    (victim,) = [each for each in answer["vault"]["findings"] if each["what"].startswith(OURS)]
    assert victim["by"].startswith("token from ")
    assert victim["lease_id"] != lease.lease_id
    open_again = f"state = 'issued', closed_at = NULL, revoking_since = NULL WHERE lease_id = '{victim['lease_id']}'"
    by_hand(bench, f"UPDATE lease SET {open_again}")
    answer = reconcile("--vault-audit", audit(), code=4)
    assert ("revoked_but_open", victim["lease_id"]) in findings(answer)


def revoke_during_a_run(bench: Bench, revoke: Callable[[LeaseRecord], None]) -> None:
    """Run the workflow, and have its database lease revoked while its step goes on."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.02):
            held = [each for each in leases(bench) if each.step == "read" and each.state is LeaseState.ISSUED]
            lease = next((each for each in held if each.grant_kind == "database"), None)
            if lease is not None:
                revoke(lease)
                return

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        bench.run(WORKFLOW.replace("SELECT current_user AS login", "SELECT pg_sleep(30) AS login"))
    finally:
        over.set()
        watcher.join()


def test_broken_lines_are_counted_and_rotated_files_are_read_together(
    bench: Bench, audit: Callable[[], Path], reconcile: Reconcile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.run(WORKFLOW)
    lines = audit().read_bytes().splitlines(keepends=True)
    half = len(lines) // 2
    old, new = tmp_path / "audit.log.1.gz", tmp_path / "audit.log.0"
    old.write_bytes(gzip.compress(b"".join(lines[:half])))
    new.write_bytes(b"".join(lines[half:]) + b"\xff\xfe\n\n[1]\n" + lines[-1][:100])
    with io.TextIOWrapper(old.open("rb")) as rotated, monkeypatch.context() as patch:
        patch.setattr(sys, "stdin", rotated)
        answer = reconcile("--vault-audit", "-", "--vault-audit", new)
    assert answer["agree"] is True
    for files in ((old, new), (new, old)):
        assert reconcile(*(word for file in files for word in ("--vault-audit", file))) == answer
    assert answer["vault"]["coverage"]["broken"] == 3
    assert answer["vault"]["coverage"]["entries"] == len(lines)
    cut = tmp_path / "cut.gz"
    cut.write_bytes(old.read_bytes()[: old.stat().st_size // 2])
    answer = reconcile("--vault-audit", cut, "--vault-audit", new, code=4)
    assert answer["vault"]["coverage"]["broken"] >= 4
    assert {kind for kind, _ in findings(answer)} <= {"issued_unknown", "not_in_vault"}


def test_a_log_of_another_key_is_no_agreement_and_says_what_may_be_wrong(
    bench: Bench, audit: Callable[[], Path], reconcile: Reconcile
) -> None:
    bench.run(WORKFLOW)
    log = audit()
    tokens = {each.lease_id for each in leases(bench) if not each.vault_lease_id}
    said = "no hash that Vault gave is in the log"
    assert not any(said in note for note in reconcile("--vault-audit", log)["vault"]["notes"])
    log.write_text(
        re.sub(r"hmac-sha256:(.)", lambda hashed: f"hmac-sha256:{'0' if hashed[1] != '0' else '1'}", log.read_text())
    )
    answer = reconcile("--vault-audit", log, code=4)
    assert any(said in note for note in answer["vault"]["notes"])
    assert {lease for kind, lease in findings(answer) if kind == "not_in_vault"} == tokens
    assert len({what for kind, what in findings(answer) if kind == "issued_unknown"}) == len(tokens)


def test_input_that_cannot_be_read_is_no_agreement(
    bench: Bench, audit: Callable[[], Path], reconcile: Reconcile, tmp_path: Path
) -> None:
    bench.run(WORKFLOW)
    no_log = tmp_path / "no.log"
    no_log.write_text("hello\n")
    assert "is an entry" in reconcile("--vault-audit", no_log, code=2)["error"]["message"]
    assert "cannot be read" in reconcile("--vault-audit", tmp_path / "nowhere", code=2)["error"]["message"]
    assert "cannot be read" in reconcile("--vault-audit", tmp_path, code=2)["error"]["message"]
    assert "no log to look at" in reconcile(code=2)["error"]["message"]
    told = reconcile("--vault-audit", audit(), "--audit-device", "none-such", code=2)["error"]["message"]
    assert "no audit device `none-such`" in told


def test_vault_is_asked_for_what_is_hashed_and_for_nothing_else(
    bench: Bench, audit: Callable[[], Path], reconcile: Reconcile
) -> None:
    bench.run(WORKFLOW)
    log = audit()
    before = log.stat().st_size
    reconcile("--vault-audit", log)
    asked = [json.loads(line) for line in audit().read_bytes()[before:].splitlines()]
    hashed = [each for each in asked if each["type"] == "response" and each["request"]["path"] == "sys/audit-hash/file"]
    handles = [each for lease in leases(bench) for each in (lease.vault_lease_id, lease.accessor) if each]
    assert len(hashed) == len(handles)
    plain = log.read_text()
    for lease, secret in ((each, each.accessor) for each in leases(bench) if each.accessor):
        answered = bench.vault.adapter.post("/v1/sys/audit-hash/file", json={"input": secret})
        plain = plain.replace(answered["data"]["hash"], secret)
        assert lease.accessor in plain
    for lease_id in (each.vault_lease_id for each in leases(bench) if each.vault_lease_id):
        answered = bench.vault.adapter.post("/v1/sys/audit-hash/file", json={"input": lease_id})
        plain = plain.replace(answered["data"]["hash"], lease_id)
    log = log.with_name("plain.log")
    log.write_text(plain)
    before = audit().stat().st_size
    assert reconcile("--vault-audit", log)["vault"]["matched"] == len(handles)
    assert b"audit-hash" not in audit().read_bytes()[before:]


def test_a_token_that_is_revoked_by_itself_takes_its_lease_and_a_renewal_issues_none(
    bench: Bench, audit: Callable[[], Path]
) -> None:
    bench.run(WORKFLOW)
    token = bench.vault.write("auth/token/create/step.reconciled.read", ttl="60s")["auth"]["client_token"]
    lease_id = hvac.Client(bench.info.vault_address, token=token).read(OURS)["lease_id"]
    begin = audit().stat().st_size
    bench.vault.sys.renew_lease(lease_id)
    bench.vault.adapter.post("/v1/auth/token/revoke", json={"token": token})
    bench.vault.sys.revoke_lease(lease_id)
    whole = audit().read_text()
    facts = read_audit(line for line in whole.splitlines() if "sys/leases/revoke" not in line)
    assert lease_id in facts.issued
    assert facts.revocation([lease_id]) is not None
    assert read_audit(whole[begin:].splitlines()).issued == {}

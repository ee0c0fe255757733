"""Only what a log covers is expected in it, and only what was done counts: with logs and a ledger made by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from exported import ledger_of

from orchestrator.cli.main import main
from orchestrator.evidence.reconciliation.vault_audit import read_audit
from orchestrator.ledger.opening import open_reader
from orchestrator.ledger.types import LeaseFilter

SECOND = timedelta(seconds=1)

Compared = Callable[[str, datetime, datetime, int], dict[str, Any]]


@pytest.fixture
async def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    url = await ledger_of(f"sqlite:///{tmp_path / 'ledger.db'}", 1, 1)
    monkeypatch.setenv("ORCHESTRATOR_LEDGER_URL", url)
    return url


@pytest.fixture
def compared(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Compared:
    """The answer for a log that covers this time and has nothing of ours, with clocks two seconds apart."""

    def run(source: str, first: datetime, last: datetime, code: int) -> dict[str, Any]:
        log = tmp_path / f"{source}.log"
        log.write_text("".join(json.dumps(_entry(source, time)) + "\n" for time in (first, last)))
        option = "--vault-audit" if source == "vault" else "--postgres-log"
        assert main(["history", "reconcile", "--json", option, str(log)]) == code
        return dict(json.loads(capsys.readouterr().out)[source])

    return run


def _entry(source: str, time: datetime) -> dict[str, Any]:
    if source == "vault":
        return {"type": "request", "time": time.isoformat(), "request": {"id": "1", "path": "sys/health"}}
    return {"timestamp": f"{time:%Y-%m-%d %H:%M:%S} UTC", "error_severity": "LOG", "message": "checkpoint complete"}


@pytest.mark.parametrize("source", ["vault", "postgres"])
def test_what_happened_near_an_end_of_the_log_may_be_in_it_or_not(url: str, compared: Compared, source: str) -> None:
    with open_reader(url) as reader:
        (lease,) = reader.leases(LeaseFilter())
    begun, issued = lease.requested_at, lease.issued_at
    assert issued is not None
    found = compared(source, begun - 2 * SECOND, issued + 2 * SECOND, 4)
    assert [each["lease_id"] for each in found["findings"]] == [lease.lease_id]
    assert found["recorded"] == 1
    for first, last in ((begun - SECOND, issued + 2 * SECOND), (begun - 2 * SECOND, issued + SECOND)):
        found = compared(source, first, last, 0)
        assert (found["findings"], found["recorded"]) == ([], 0)


def test_what_vault_refused_was_not_done() -> None:
    def line(path: str, **more: Any) -> str:
        request = {"id": "1", "path": path, "data": {"lease_id": "database/creds/x/1"}}
        return json.dumps({"type": "response", "time": "2026-06-01T12:00:00Z", "request": request, **more})

    given = {"response": {"secret": {"lease_id": "database/creds/x/1"}}}
    done = read_audit([line("database/creds/x", **given), line("sys/leases/revoke")])
    assert set(done.issued) == set(done.revoked) == {"database/creds/x/1"}
    refused = read_audit([line("database/creds/x", error="no", **given), line("sys/leases/revoke", error="no")])
    assert (refused.issued, refused.revoked) == ({}, {})
    assert refused.coverage.entries == 2

"""Names in the logs of others are chosen by others: what is shown of them moves nothing on a terminal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from exported import ledger_of

from orchestrator.cli.main import main

ESCAPES = "\x1b[2J\u202e\x9b31m\x07"


@pytest.fixture
async def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The words that name a log of Vault's and one of PostgreSQL's, with one thing each that the ledger lacks."""
    monkeypatch.setenv("ORCHESTRATOR_LEDGER_URL", await ledger_of(f"sqlite:///{tmp_path / 'ledger.db'}", 1, 1))
    vault, postgres = tmp_path / "vault.log", tmp_path / "postgres.json"
    entry = {
        "type": "response",
        "time": "2026-06-01T12:00:00Z",
        "auth": {"display_name": f"somebody{ESCAPES}"},
        "request": {"id": "1", "path": f"database/creds/orc-{ESCAPES}", "remote_address": f"10.0.0.1{ESCAPES}"},
        "response": {"secret": {"lease_id": f"database/creds/orc-{ESCAPES}/1"}},
    }
    vault.write_text(json.dumps(entry) + "\n")
    made = f'CREATE ROLE "orc_{ESCAPES}"'
    said = {"timestamp": "2026-06-01 12:00:00 UTC", "error_severity": "LOG", "message": f"statement: {made}"}
    postgres.write_text(json.dumps(said) + "\n")
    return ["history", "reconcile", "--vault-audit", str(vault), "--postgres-log", str(postgres)]


def test_what_is_shown_for_people_has_no_control_characters(
    logs: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(logs) == 4
    piped = capsys.readouterr().out
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    assert main(logs) == 4
    drawn = capsys.readouterr().out
    for text in (piped, drawn):
        assert "\\x1b[2J" in text
        assert "made, and not in the ledger" in text
        assert not set(text) & {"\u202e", "\x9b", "\x07"}
        assert "\x1b[2J" not in text


def test_json_has_the_names_as_they_are(logs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*logs, "--json"]) == 4
    text = capsys.readouterr().out
    assert "\x1b" not in text
    (login,) = json.loads(text)["postgres"]["findings"]
    (lease,) = json.loads(text)["vault"]["findings"]
    assert login["what"] == f"orc_{ESCAPES}"
    assert lease["by"] == f"somebody{ESCAPES} from 10.0.0.1{ESCAPES}"

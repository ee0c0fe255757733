"""The histories of runs are in a signed log, which others verify with the public key alone."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from bench import Bench, Setup

from orchestrator.clock import SystemClock
from orchestrator.errors import ExitCode
from orchestrator.evidence.log.note import NoteKey
from orchestrator.evidence.log.verification import Kept, Verified, verify
from orchestrator.ledger.opening import open_ledger

STEP = """
version: 1
name: one_step
agent: tester
steps:
  one:
    action: postgres.query
    grants: { db: { kind: database, connection: support, role: feedback-read } }
    with: { sql: SELECT 1 AS one }
"""


def public_keys(bench: Bench, origin: str) -> Sequence[NoteKey]:
    """As an auditor has them: from Vault's administrator."""
    import base64

    versions = bench.vault.read("transit/keys/orchestrator-history")["data"]["keys"]
    return [NoteKey(origin, base64.b64decode(each["public_key"])) for each in versions.values()]


def verified(bench: Bench, url: str, *kept: Kept) -> Verified:
    with open_ledger(url, clock=SystemClock()) as ledger:
        return verify(ledger, ledger.log, public_keys(bench, ledger.log.origin()), kept)


def test_what_has_run_is_signed_when_its_process_ends(bench: Bench, setup: Setup) -> None:
    for _ in range(3):
        assert bench.run(STEP, ledger_url=setup.ledger_url).exit_code is ExitCode.DONE
    found = verified(bench, setup.ledger_url)
    assert found.problems == []
    assert found.unsigned == []
    assert (found.runs, found.entries, found.signed, found.checkpoints) == (3, 3, 3, 3)

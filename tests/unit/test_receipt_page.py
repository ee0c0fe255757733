"""What the page of a receipt says of each way in which a lease can end, of who agreed, and of what is not on record."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from html import unescape

import pytest

from orchestrator.evidence.log.checkpoint import Checkpoint
from orchestrator.evidence.log.note import NoteKey, signed_note
from orchestrator.evidence.log.proof import Proof
from orchestrator.evidence.receipts import summary
from orchestrator.jsontypes import JsonObject
from orchestrator.ledger.events import (
    ApprovalRequested,
    ApprovalVoted,
    Decided,
    Event,
    LeaseDenied,
    LeaseEnded,
    LeaseExpired,
    LeaseFailed,
    LeaseIssued,
    LeaseLoginTried,
    LeaseRequested,
    LeaseRevoked,
    LeaseRevoking,
    LeaseVaultRevoked,
    RunStarted,
)
from orchestrator.ledger.log.leaf import Leaf
from orchestrator.ledger.storage.chain import Head
from orchestrator.ledger.storage.codec import event_to_json
from orchestrator.presentation.receipt_page import Beside, receipt_page
from orchestrator.presentation.receipt_story import story

NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)
LEASE = "lease_1"
STARTED = RunStarted(workflow="digest", digest="sha256:1", agent="anna", trigger="cron", inputs={}, steps=("read",))
DECIDED = Decided(
    step="read", attempt=1, engine="rego", revision="sha256:2", input_digest="3", allow=True, reasons=("it may",)
)
ISSUED = LeaseIssued(lease_id=LEASE, ttl=60, expires_at=NOON + timedelta(seconds=60), subject="orc_read_x")
REVOKING = LeaseRevoking(lease_id=LEASE, reason="step ended")
VAULT = LeaseVaultRevoked(lease_id=LEASE)
WITNESS = {
    "role": "absent",
    "sessions": 0,
    "server": {"system": "7", "address": "10.0.0.1:5432", "database": "support"},
    "at": NOON.isoformat(),
    "asked_by": "orc_sweep-1",
}


def requested(**changes: object) -> LeaseRequested:
    given = {
        "lease_id": LEASE,
        "step": "read",
        "attempt": 1,
        "grant": "db",
        "grant_kind": "database",
        "resource": "database/creds/x",
        "scope": {},
        "ttl": 60,
    }
    return LeaseRequested(**{**given, **changes})  # type: ignore[arg-type]


def tried(refused: bool | None, **more: str) -> LeaseLoginTried:
    return LeaseLoginTried(lease_id=LEASE, refused=refused, at=NOON, **more)


def revoked(by: str, **witness: object) -> LeaseRevoked:
    return LeaseRevoked(lease_id=LEASE, confirmed_by=by, witness=witness)  # type: ignore[arg-type]


def receipt_of(*events: Event) -> JsonObject:
    """As `receipt` makes it: an event a second, and the proof of a log with this run alone."""
    chain = [
        {
            "run": "run_1",
            "seq": seq,
            "time": (NOON + timedelta(seconds=seq)).isoformat(),
            "kind": event.kind,
            "data": event_to_json(event),
            "digest": f"{seq:064}",
        }
        for seq, event in enumerate(events, 1)
    ]
    entry = Leaf("run_1", Head(len(chain), f"{len(chain):064}")).data()
    note = signed_note(Checkpoint("the/log", 1, bytes(32)).text(), NoteKey("the/log", bytes(32)), bytes(64))
    return {**summary(chain, LEASE), "chain": chain, "proof": Proof(0, [], note, entry).text()}


def plain(html: str) -> str:
    return unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", html.replace("</code>", "").replace("<code>", ""))))


def told(*events: Event) -> str:
    return re.sub(r"\s+([,;.)])", r"\1", plain(story(receipt_of(*events)))).replace("( ", "(").strip()


def page_of(*events: Event, beside: Beside | None = None) -> str:
    return receipt_page(receipt_of(*events), beside or Beside("one.receipt.json"))


WAYS: Sequence[tuple[Sequence[Event], str]] = (
    (
        (ISSUED, REVOKING, VAULT, tried(True, sqlstate="28P01"), revoked("database", **WITNESS)),
        "Vault and its database confirmed that it is gone, and its own password was refused when it was tried.",
    ),
    (
        (ISSUED, REVOKING, VAULT, tried(False), revoked("database", **WITNESS)),
        "confirmed that it is gone, after its own password had still worked when it was tried.",
    ),
    ((ISSUED, REVOKING, VAULT, tried(None, reason="no answer"), revoked("vault")), "Vault alone confirmed that"),
    ((ISSUED, REVOKING, revoked("database")), "its database alone confirmed that it is gone."),
    ((ISSUED, REVOKING, revoked("issuer")), "its issuer alone confirmed that it is gone."),
    ((ISSUED, REVOKING, LeaseExpired(lease_id=LEASE)), "it had run out by itself before it could be taken back."),
    (
        (ISSUED, REVOKING, LeaseEnded(lease_id=LEASE, valid_until=None)),
        "the secret stays valid until its owner changes it.",
    ),
    (
        (ISSUED, REVOKING, LeaseEnded(lease_id=LEASE, valid_until=NOON + timedelta(hours=1))),
        "the secret stays valid until 2026-03-02 13:00:00 UTC.",
    ),
    (
        (LeaseDenied(lease_id=LEASE, reason="permission denied"),),
        "There was no credential: that was certain on 2026-03-02 12:00:04 UTC (permission denied).",
    ),
    ((LeaseFailed(lease_id=LEASE, reason="Vault is sealed"),), "on 2026-03-02 12:00:04 UTC (Vault is sealed)."),
    ((REVOKING, VAULT, revoked("vault")), "Whether it was issued is not known; on 2026-03-02 12:00:06 UTC Vault alone"),
)


@pytest.mark.parametrize(("life", "says"), WAYS)
def test_each_way_in_which_a_lease_ends_is_told(life: Sequence[Event], says: str) -> None:
    assert says in told(STARTED, DECIDED, requested(), *life)
    text = plain(page_of(STARTED, DECIDED, requested(), *life))
    assert "Who says that it is gone" in text
    assert " None" not in text


def test_the_first_sentence_says_who_got_what_for_what_and_by_whose_decision() -> None:
    said = told(STARTED, DECIDED, requested(), ISSUED, REVOKING, revoked("vault"))
    assert said.startswith(
        "anna was given database/creds/x for the step read of the run run_1 of digest; the policy (rego) allowed it. "
        "It was held for 2.00s, from 2026-03-02 12:00:04 UTC to 2026-03-02 12:00:06 UTC;"
    )
    assert told(STARTED, requested(), LeaseDenied(lease_id=LEASE, reason="no")).startswith(
        "anna asked for, and did not get, database/creds/x for the step read of the run run_1 of digest; "
        "no decision of a policy about it is on record."
    )
    again = told(STARTED, requested(attempt=2), ISSUED, REVOKING, revoked("vault"))
    assert "for the step read, attempt 2, of the run run_1" in again
    whole = told(STARTED, requested(step="(run)"), ISSUED, REVOKING, revoked("vault"))
    assert "for the run run_1 of digest" in whole


def voted(by: str, verdict: str = "approve") -> ApprovalVoted:
    return ApprovalVoted(
        step="read",
        approval_id="appr_1",
        by=by,
        verdict=verdict,
        at=NOON,
        statement="{}",
        signature="vault:v1:abc",
        comment="looks right",
    )


def test_who_agreed_is_told_and_stands_with_the_signature() -> None:
    asked = ApprovalRequested(
        step="read",
        attempt=1,
        approval_id="appr_1",
        subject="s",
        approvers=("vault:ann", "vault:ben"),
        count=2,
        valid_for=60,
        expires_at=NOON,
        asked_by="vault:runtime",
    )
    life = (requested(), ISSUED, REVOKING, revoked("vault"))
    events = (STARTED, DECIDED, asked, voted("vault:ann"), voted("vault:ben"), *life)
    assert "the policy (rego) allowed it, and vault:ann and vault:ben agreed." in told(*events)
    text = plain(page_of(*events))
    assert "Wanted on 2026-03-02 12:00:03 UTC : 2 of vault:ann, vault:ben." in text
    assert "vault:v1:abc" in text
    assert "looks right" in text
    alone = told(STARTED, DECIDED, asked, voted("vault:ann"), voted("vault:eve", "deny"), *life)
    assert "allowed it, and vault:ann agreed, and vault:eve refused." in alone
    assert "Nobody: the decision did not demand it." in plain(page_of(STARTED, DECIDED, *life))


def test_each_witness_stands_with_where_when_and_by_whom_it_was_asked() -> None:
    life = (requested(), ISSUED, REVOKING, VAULT, tried(True, sqlstate="28P01", server="10.0.0.1:5432"))
    text = plain(page_of(STARTED, DECIDED, *life, revoked("database", **WITNESS)))
    assert "Vault it is revoked recorded 2026-03-02 12:00:06.000 UTC the orchestrator" in text
    assert (
        "its database role absent, 0 sessions support at 10.0.0.1:5432 (system 7) "
        "2026-03-02 12:00:00.000 UTC , by its own clock orc_sweep-1"
    ) in text
    assert "its own password dead: refused (28P01) 10.0.0.1:5432 2026-03-02 12:00:00.000 UTC" in text
    held = {**WITNESS, "password": "nobody has had it"}
    text = plain(page_of(STARTED, DECIDED, requested(), ISSUED, REVOKING, VAULT, revoked("database", **held)))
    assert "its own password not tried: nobody has had it" in text


def test_the_page_names_the_log_and_how_to_verify_the_document_of_this_name() -> None:
    beside = Beside("o'hara.receipt.json", "./o%27hara.receipt.json", "ab" * 32)
    html = page_of(STARTED, DECIDED, requested(), ISSUED, REVOKING, revoked("vault"), beside=beside)
    text = plain(html)
    assert """history verify --key history.vkey 'o'"'"'hara.receipt.json'""" in text
    assert 'href="./o%27hara.receipt.json"' in html
    for said in ("the/log", "of 1 entry", "entry 0, counted from 0", "up to event 6", "ab" * 32):
        assert said in text, said


def test_what_was_asked_is_there_where_values_were_given_out() -> None:
    asked = Decided(**{**event_to_json(DECIDED), "reasons": (), "input": {"agent": "anna"}})  # type: ignore[arg-type]
    life = (requested(), ISSUED, REVOKING, revoked("vault"))
    assert json.dumps({"agent": "anna"}, indent=2) in unescape(page_of(STARTED, asked, *life))
    assert "What was asked" not in page_of(STARTED, DECIDED, *life)


def test_whatever_is_said_is_text() -> None:
    hostile = "<script>alert(1)</script>\"'"
    life = (requested(), ISSUED, REVOKING, tried(False, server=hostile, reason=hostile), revoked("vault"))
    asked = Decided(**{**event_to_json(DECIDED), "reasons": (hostile,), "input": {hostile: hostile}})  # type: ignore[arg-type]
    html = page_of(STARTED, asked, voted(hostile), *life, beside=Beside(hostile, f"./{hostile}", hostile))
    assert "<script" not in html
    assert "\"'" not in html
    assert unescape(html).count(hostile) >= 7


def test_the_page_needs_nothing_but_what_is_always_installed() -> None:
    asked = "import sys, orchestrator.presentation.receipt_page; print({'jinja2', 'starlette'} & set(sys.modules))"
    answer = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert answer.stdout == "set()\n"

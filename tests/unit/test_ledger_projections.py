"""What each event does to the rows of the current state."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, timezone

import pytest

from orchestrator.errors import IllegalTransition, LedgerError
from orchestrator.ledger.events import (
    AttemptFinished,
    AttemptStarted,
    Event,
    LeaseDenied,
    LeaseEnded,
    LeaseFailed,
    LeaseIssued,
    LeaseLoginTried,
    LeaseRenewed,
    LeaseRequested,
    LeaseRevocationFailed,
    LeaseRevoked,
    LeaseRevoking,
    LeaseVaultRevoked,
    RunFinished,
    RunStarted,
    StepFinished,
)
from orchestrator.ledger.lease import STILL_WORKS, VAULT_REVOKED
from orchestrator.ledger.states import RunState, StepState
from orchestrator.ledger.storage.codec import canonical_json, event_to_text
from orchestrator.ledger.storage.projections import RunRows, project, storable
from orchestrator.ledger.storage.times import time_to_text
from orchestrator.secret import Secret

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
STARTED = RunStarted(workflow="w", digest="d", agent="ann", trigger="manual", inputs={"n": 1}, steps=("read", "write"))
ATTEMPT = AttemptStarted(step="read", attempt=1, step_key="read-abc", action="exec", timeout=9)
REQUESTED = LeaseRequested(
    lease_id="L",
    step="read",
    attempt=1,
    grant="g",
    grant_kind="database",
    resource="db/t",
    scope={"b": 1, "a": 2},
    ttl=60,
)
ISSUED = LeaseIssued(lease_id="L", ttl=50, expires_at=NOON, vault_lease_id="database/creds/1", subject="orc_1")
RENEWED = LeaseRenewed(lease_id="L", ttl=70, expires_at=NOON + timedelta(seconds=70))
REVOKING = LeaseRevoking(lease_id="L", reason="step ended")
REVOCATION_FAILED = LeaseRevocationFailed(lease_id="L", error="vault is sealed")
REVOKED = LeaseRevoked(lease_id="L", confirmed_by="vault")


def after(*events: Event) -> RunRows:
    """The rows after the events, the first at t1, the next at t2, ..."""
    return project(RunRows(), [(f"t{number}", event) for number, event in enumerate(events, 1)])


def test_a_lease_carries_the_run_and_the_attempt_that_it_belongs_to() -> None:
    lease = after(STARTED, ATTEMPT, REQUESTED).leases["L"]
    assert (lease["workflow"], lease["agent"], lease["step"], lease["step_key"]) == ("w", "ann", "read", "read-abc")
    assert (lease["state"], lease["requested_at"], lease["scope"]) == ("requested", "t3", '{"a":2,"b":1}')


def test_issuance_and_renewal_set_the_handles_and_the_times() -> None:
    lease = after(STARTED, ATTEMPT, REQUESTED, ISSUED, RENEWED).leases["L"]
    assert (lease["state"], lease["issued_at"], lease["vault_lease_id"]) == ("issued", "t4", "database/creds/1")
    assert (lease["ttl"], lease["expires_at"]) == (70, "2026-01-31T12:01:10.000000Z")


def test_a_lease_that_is_being_revoked_says_why_and_is_not_closed() -> None:
    rows = after(STARTED, ATTEMPT, REQUESTED, ISSUED, REVOKING)
    assert (rows.leases["L"]["state"], rows.leases["L"]["reason"]) == ("revoking", "step ended")
    lease = project(rows, [("t6", REVOCATION_FAILED)]).leases["L"]
    assert (lease["state"], lease["reason"], lease["closed_at"]) == ("revoking", "vault is sealed", None)


def test_a_lease_remembers_since_when_and_how_often_it_could_not_be_taken_back() -> None:
    lease = after(STARTED, ATTEMPT, REQUESTED, ISSUED, REVOKING).leases["L"]
    assert (lease["revoking_since"], lease["failed_tries"], lease["last_try_at"]) == ("t5", 0, None)
    tried = after(STARTED, ATTEMPT, REQUESTED, ISSUED, REVOKING, REVOCATION_FAILED, REVOKING, REVOCATION_FAILED)
    lease = tried.leases["L"]
    assert (lease["revoking_since"], lease["failed_tries"], lease["last_try_at"]) == ("t5", 2, "t8")
    at_once = after(STARTED, ATTEMPT, REQUESTED, ISSUED, REVOCATION_FAILED).leases["L"]
    assert (at_once["revoking_since"], at_once["failed_tries"]) == ("t5", 1)


def test_a_confirmed_revocation_closes_the_lease_and_clears_the_error() -> None:
    lease = after(STARTED, ATTEMPT, REQUESTED, ISSUED, REVOKING, REVOCATION_FAILED, REVOKED).leases["L"]
    assert (lease["state"], lease["reason"], lease["closed_at"]) == ("revoked", "", "t7")


@pytest.mark.parametrize(("refused", "reason"), [(True, VAULT_REVOKED), (None, VAULT_REVOKED), (False, STILL_WORKS)])
def test_a_login_that_still_works_is_no_more_said_to_be_revoked(refused: bool | None, reason: str) -> None:
    tried = LeaseLoginTried(lease_id="L", refused=refused, at=NOON)
    rows = after(STARTED, ATTEMPT, REQUESTED, ISSUED, REVOKING, LeaseVaultRevoked(lease_id="L"), tried)
    assert (rows.leases["L"]["state"], rows.leases["L"]["reason"]) == ("revoking", reason)
    assert project(rows, [("t8", REVOKED)]).leases["L"]["reason"] == ""


@pytest.mark.parametrize(
    ("valid_until", "reason"),
    [(NOON, "valid until 2026-01-31T12:00:00.000000Z"), (None, "valid until its owner changes it")],
)
def test_an_ended_lease_says_how_long_its_secret_stays_valid(valid_until: datetime | None, reason: str) -> None:
    lease = after(STARTED, REQUESTED, ISSUED, REVOKING, LeaseEnded(lease_id="L", valid_until=valid_until)).leases["L"]
    assert (lease["state"], lease["reason"], lease["closed_at"]) == ("ended", reason, "t5")


@pytest.mark.parametrize(
    "events",
    [
        [ISSUED],
        [REQUESTED, REQUESTED],
        [REQUESTED, REVOKED],
        [REQUESTED, RENEWED],
        [REQUESTED, ISSUED, ISSUED],
        [REQUESTED, ISSUED, REVOKED],
        [REQUESTED, ISSUED, LeaseDenied(lease_id="L", reason="no")],
        [REQUESTED, REVOKING, ISSUED],
        [REQUESTED, LeaseFailed(lease_id="L", reason="no"), REVOKING],
        [REQUESTED, REVOKING, REVOKED, REVOKING],
        [REQUESTED, REVOKING, REVOKED, LeaseLoginTried(lease_id="L", refused=True, at=NOON)],
    ],
    ids=lambda events: "-".join(event.kind.removeprefix("lease.") for event in events),
)
def test_what_the_life_of_a_lease_does_not_allow_is_refused(events: Sequence[Event]) -> None:
    after(STARTED, *events[:-1])
    with pytest.raises(IllegalTransition):
        after(STARTED, *events)


def test_projecting_leaves_the_rows_before_as_they_were() -> None:
    before = after(STARTED, ATTEMPT, REQUESTED)
    state = before.leases["L"]["state"]
    changed = project(before, [("t4", ISSUED), ("t5", REVOKING)])
    assert before.leases["L"]["state"] == state
    assert list(changed.leases) == ["L"]
    assert changed.run == {}


def test_a_step_keeps_its_start_over_its_attempts_and_its_outputs_at_the_end() -> None:
    rows = after(
        STARTED,
        ATTEMPT,
        AttemptFinished(step="read", attempt=1, state=StepState.FAILED, error_kind="timeout", reason="too slow"),
    )
    assert (rows.steps["read"]["state"], rows.steps["read"]["reason"]) == ("running", "too slow")
    again = AttemptStarted(step="read", attempt=2, step_key="read-def", action="exec", timeout=9)
    done = StepFinished(step="read", state=StepState.SUCCEEDED, outputs={"rows": [1, 2]})
    rows.merge(project(rows, [("t4", again), ("t5", done)]))
    step = rows.steps["read"]
    assert (step["state"], step["attempts"], step["step_key"]) == ("succeeded", 2, "read-def")
    assert (step["started_at"], step["finished_at"], step["reason"]) == ("t2", "t5", "")
    assert step["outputs"] == '{"rows":[1,2]}'


def test_a_skipped_step_was_never_started() -> None:
    step = after(STARTED, StepFinished(step="write", state=StepState.SKIPPED, reason="read failed")).steps["write"]
    assert (step["state"], step["attempts"], step["started_at"]) == ("skipped", 0, None)


def test_a_finished_run_says_how_it_ended() -> None:
    run = after(STARTED, RunFinished(state=RunState.FAILED, exit_code=4, reason="read failed")).run
    assert (run["state"], run["exit_code"], run["reason"]) == ("failed", 4, "read failed")
    assert (run["started_at"], run["finished_at"], run["workflow"]) == ("t1", "t2", "w")


def test_a_run_starts_once() -> None:
    with pytest.raises(LedgerError, match="begun already"):
        after(STARTED, STARTED)


def test_text_that_a_database_cannot_hold_is_replaced() -> None:
    assert storable("a\0b\ud800c") == "a\N{REPLACEMENT CHARACTER}b?c"
    assert storable("naïve ✓") == "naïve ✓"


def test_a_secret_or_a_time_without_zone_never_becomes_json() -> None:
    with pytest.raises(LedgerError, match=r"step\.finished outputs\.key: a Secret is not JSON") as caught:
        event_to_text(StepFinished(step="s", state=StepState.SUCCEEDED, outputs={"key": Secret("hunter2")}))  # type: ignore[dict-item] # on purpose
    assert "hunter2" not in str(caught.value)
    with pytest.raises(LedgerError, match="number that JSON cannot express"):
        event_to_text(StepFinished(step="s", state=StepState.SUCCEEDED, outputs=float("nan")))
    with pytest.raises(ValueError, match="zone"):
        time_to_text(datetime(2026, 1, 1))  # noqa: DTZ001 (on purpose)


def test_times_are_written_in_utc_so_that_their_text_sorts() -> None:
    assert time_to_text(datetime(2026, 1, 1, 1, tzinfo=timezone(timedelta(hours=2)))) == "2025-12-31T23:00:00.000000Z"


def test_canonical_json_has_one_text() -> None:
    assert canonical_json({"b": (1, 2.5), "a": "é\n"}) == '{"a":"\\u00e9\\n","b":[1,2.5]}'

"""How long a lease that could not be taken back is left alone before it is tried again."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.ledger.lease import LeaseState
from orchestrator.ledger.types import LeaseRecord
from orchestrator.recovery.backoff import LONGEST_PAUSE, is_due, jitter_of, pause_after

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
LEASE = LeaseRecord(
    lease_id="lease_aaaaaaaaaaaaaaaaaaaa",
    run_id="run_1",
    workflow="w",
    agent="a",
    step="s",
    attempt=1,
    step_key="s-aaaaaaaaaaaa",
    grant="db",
    grant_kind="database",
    resource="database/creds/x",
    scope={},
    state=LeaseState.REVOKING,
    ttl=60,
    requested_at=NOON,
    issued_at=NOON,
    expires_at=None,
    closed_at=None,
    vault_lease_id="",
    accessor="",
    subject="",
    reason="",
)


def test_the_pause_doubles_up_to_a_quarter_of_an_hour() -> None:
    assert [pause_after(tries, 0.0) for tries in range(8)] == [0, 30, 60, 120, 240, 480, 900, 900]


@given(tries=st.integers(1, 10**6), jitter=st.floats(0, 1, exclude_max=True))
def test_the_jitter_takes_a_quarter_at_most_and_the_cap_always_holds(tries: int, jitter: float) -> None:
    whole = pause_after(tries, 0.0)
    assert 0.75 * whole <= pause_after(tries, jitter) <= whole <= LONGEST_PAUSE
    assert pause_after(tries + 1, 0.0) >= whole


@given(lease=st.text(), tries=st.integers(0, 1000))
def test_the_jitter_is_the_same_in_every_process(lease: str, tries: int) -> None:
    assert 0 <= jitter_of(lease, tries) < 1
    assert jitter_of(lease, tries) == jitter_of(lease, tries)


def test_leases_that_failed_together_are_not_tried_again_together() -> None:
    assert len({jitter_of(f"lease_{number}", 3) for number in range(100)}) == 100


def test_a_lease_that_was_never_tried_is_due_at_once() -> None:
    assert is_due(LEASE, NOON)


def test_a_lease_is_due_when_its_pause_is_over_and_not_before() -> None:
    tried = replace(LEASE, failed_tries=3, last_try_at=NOON)
    pause = timedelta(seconds=pause_after(3, jitter_of(LEASE.lease_id, 3)))
    assert not is_due(tried, NOON + pause - timedelta(milliseconds=1))
    assert is_due(tried, NOON + pause)


def test_a_clock_that_went_back_delays_nothing() -> None:
    assert is_due(replace(LEASE, failed_tries=9, last_try_at=NOON + timedelta(days=1)), NOON)

"""What the runner decides, without any server."""

import math
from datetime import UTC, datetime

import pytest

from orchestrator.errors import ExitCode, GrantRefused, PolicyDenied, StepFailed, VaultUnreachable
from orchestrator.ledger.states import RunState, StepState
from orchestrator.ledger.types import EventRecord
from orchestrator.runs.outcomes import (
    excessive_wish,
    exit_code,
    lasting,
    missing_ends,
    retry_delay,
    run_state,
    state_after,
)
from orchestrator.workflow.models.steps import Retry

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
REFUSED = GrantRefused("no", grant="db", path="database/creds/x")


def test_a_refusal_is_never_tried_again() -> None:
    assert retry_delay(Retry(on=["any"]), 1, REFUSED, 0.0) is None
    assert retry_delay(Retry(on=["any"]), 1, PolicyDenied("no"), 0.0) is None


def test_only_the_named_kinds_of_error_are_tried_again() -> None:
    retry = Retry(on=["timeout"])
    assert retry_delay(retry, 1, StepFailed("late", kind="timeout"), 0.0) is not None
    assert retry_delay(retry, 1, StepFailed("bad", kind="http_status"), 0.0) is None
    assert retry_delay(None, 1, StepFailed("late", kind="timeout"), 0.0) is None


def test_back_off_doubles_up_to_its_cap_and_ends_with_the_last_attempt() -> None:
    retry = Retry(attempts=5, backoff=2, max_backoff=5, on=["any"])
    delays = [retry_delay(retry, attempt, StepFailed("x"), 0.0) for attempt in range(1, 6)]
    assert delays == [2, 4, 5, 5, None]


def test_a_services_own_retry_after_is_respected_beyond_the_cap() -> None:
    retry = Retry(attempts=2, backoff=1, max_backoff=1, on=["rate_limited"])
    assert retry_delay(retry, 1, StepFailed("slow down", kind="rate_limited", retry_after=30), 0.5) == 30


@pytest.mark.parametrize("wish", [1_795_000_000.0, 1_795_000_000_000.0, math.inf, 3e19, 61.0])
def test_a_service_that_wants_a_longer_wait_is_not_waited_for_and_its_wish_is_told(wish: float) -> None:
    retry = Retry(attempts=5, backoff=1, max_backoff=3, on=["rate_limited"])
    error = StepFailed("slow down", kind="rate_limited", retry_after=wish)
    assert retry_delay(retry, 1, error, 0.0) is None
    assert lasting(wish) in excessive_wish(retry, 1, error)
    assert "60 s that are waited at most" in excessive_wish(retry, 1, error)


def test_a_longer_back_off_is_a_longer_patience() -> None:
    retry = Retry(attempts=5, backoff=1, max_backoff=600, on=["rate_limited"])
    assert retry_delay(retry, 1, StepFailed("slow down", kind="rate_limited", retry_after=600), 0.0) == 600
    assert retry_delay(retry, 1, StepFailed("slow down", kind="rate_limited", retry_after=601), 0.0) is None


def test_nobody_waits_beyond_the_time_that_the_run_has_left() -> None:
    retry = Retry(attempts=5, backoff=1, max_backoff=60, on=["rate_limited"])
    error = StepFailed("slow down", kind="rate_limited", retry_after=20)
    assert retry_delay(retry, 1, error, 0.0, left=21) == 20
    assert retry_delay(retry, 1, error, 0.0, left=19) is None
    assert "20 s, longer than the run has time left" in excessive_wish(retry, 1, error, left=19)


def test_a_wish_means_nothing_where_the_step_is_not_tried_again() -> None:
    error = StepFailed("slow down", kind="rate_limited", retry_after=math.inf)
    assert excessive_wish(None, 1, error) == ""
    assert excessive_wish(Retry(attempts=2, on=["rate_limited"]), 2, error) == ""
    assert excessive_wish(Retry(on=["timeout"]), 1, error) == ""
    assert excessive_wish(Retry(on=["any"]), 1, REFUSED) == ""


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.5, "0.5 s"), (119, "119 s"), (3_600, "60 minutes"), (86_400, "24 hours"), (1.8e9, "57 years")],
)
def test_a_duration_is_told_in_words(seconds: float, words: str) -> None:
    assert lasting(seconds) == words


def recorded(*events: tuple[str, int]) -> list[EventRecord]:
    return [
        EventRecord("run_1", number, NOON, kind, {"step": "bad", **({"attempt": attempt} if attempt else {})}, "")
        for number, (kind, attempt) in enumerate(events, 1)
    ]


@pytest.mark.parametrize(
    ("events", "missing"),
    [
        ((), ["step.finished"]),
        ((("attempt.started", 1),), ["attempt.finished", "step.finished"]),
        ((("attempt.started", 1), ("attempt.finished", 1)), ["step.finished"]),
        (
            (("attempt.started", 1), ("attempt.finished", 1), ("attempt.started", 2)),
            ["attempt.finished", "step.finished"],
        ),
        ((("attempt.started", 1), ("attempt.finished", 1), ("step.finished", 0)), []),
    ],
)
def test_a_step_that_fell_over_lacks_no_end(events: tuple[tuple[str, int], ...], missing: list[str]) -> None:
    found = missing_ends(recorded(*events), "bad", StepState.FAILED, "why")
    assert [event.kind for event in found] == missing
    assert missing_ends(recorded(*events), "other", StepState.FAILED, "why")[0].step == "other"


@pytest.mark.parametrize(
    ("errors", "unconfirmed", "code"),
    [
        ([], False, ExitCode.DONE),
        ([], True, ExitCode.UNCONFIRMED),
        ([StepFailed("x")], True, ExitCode.STEP_FAILED),
        ([StepFailed("x"), VaultUnreachable("gone")], False, ExitCode.UNREACHABLE),
        ([VaultUnreachable("gone"), REFUSED, StepFailed("x")], False, ExitCode.REFUSED),
    ],
)
def test_the_exit_code_is_that_of_the_most_telling_failure(errors: list, unconfirmed: bool, code: ExitCode) -> None:
    assert exit_code(errors, unconfirmed=unconfirmed) is code


def test_the_state_of_a_run_follows_from_its_failures() -> None:
    assert state_after(REFUSED) is StepState.REFUSED
    assert state_after(StepFailed("x")) is StepState.FAILED
    assert run_state([StepState.SUCCEEDED], {}) is RunState.SUCCEEDED
    assert run_state([StepState.REFUSED], {"a": REFUSED}) is RunState.REFUSED
    assert run_state([StepState.FAILED], {"a": StepFailed("x")}) is RunState.FAILED
    assert run_state([StepState.CANCELLED], {}) is RunState.CANCELLED

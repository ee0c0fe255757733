"""What the runner decides, without any server."""

import pytest

from orchestrator.errors import ExitCode, GrantRefused, PolicyDenied, StepFailed, VaultUnreachable
from orchestrator.ledger.events import RunState, StepState
from orchestrator.runs.outcomes import exit_code, retry_delay, run_state, state_after
from orchestrator.workflow.models import Retry

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

"""What the runner decides, as pure functions: whether to try again, and what the run as a whole came to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from orchestrator.errors import ExitCode, OrchestratorError, Refused, StepFailed
from orchestrator.ledger.events import RunState, StepState
from orchestrator.workflow.models import Retry

_SEVERITY = (ExitCode.REFUSED, ExitCode.UNREACHABLE, ExitCode.STEP_FAILED)
"""Which exit code wins when several steps failed in different ways."""


def retry_delay(retry: Retry | None, attempt: int, error: OrchestratorError, jitter: float) -> float | None:
    """Seconds until the next attempt, or None for no more.

    `attempt` is the one that just failed, from 1; `jitter` lies in [0, 1) and adds up to a quarter.
    Only what an action reports is tried again; a refusal never is. A service's own `Retry-After`
    is respected even beyond `max_backoff`.
    """
    if retry is None or attempt >= retry.attempts or not isinstance(error, StepFailed):
        return None
    if "any" not in retry.on and error.kind not in retry.on:
        return None
    backoff = min(retry.backoff * float(2 ** (attempt - 1)), retry.max_backoff)
    return max(backoff * (1 + jitter / 4), error.retry_after or 0.0)


def state_after(error: OrchestratorError) -> StepState:
    """How a step ended that raised this error."""
    return StepState.REFUSED if isinstance(error, Refused) else StepState.FAILED


def run_state(states: Iterable[StepState], errors: Mapping[str, OrchestratorError]) -> RunState:
    """What the run came to. `errors` are those of steps whose failure counts."""
    if any(isinstance(error, Refused) for error in errors.values()):
        return RunState.REFUSED
    if errors:
        return RunState.FAILED
    return RunState.CANCELLED if StepState.CANCELLED in set(states) else RunState.SUCCEEDED


def exit_code(errors: Iterable[OrchestratorError], *, unconfirmed: bool) -> ExitCode:
    """The process's answer: the most telling failure, else whether a revocation is still unconfirmed."""
    codes = {error.exit_code for error in errors}
    for code in _SEVERITY:
        if code in codes:
            return code
    if codes:
        return min(codes)
    return ExitCode.UNCONFIRMED if unconfirmed else ExitCode.DONE

"""What the runner decides, as pure functions: whether to try again, and what the run as a whole came to."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from orchestrator.errors import ExitCode, OrchestratorError, Refused, StepFailed
from orchestrator.ledger.events import AttemptFinished, AttemptStarted, StepFinished
from orchestrator.ledger.states import RunState, StepState
from orchestrator.ledger.types import EventRecord
from orchestrator.workflow.models.steps import Retry

_SEVERITY = (ExitCode.REFUSED, ExitCode.UNREACHABLE, ExitCode.STEP_FAILED)
"""Which exit code wins when several steps failed in different ways."""

LONGEST_WISH = 60.0
"""Seconds that a service may always ask to be waited for, even where `max_backoff` is shorter."""


def retry_delay(
    retry: Retry | None, attempt: int, error: OrchestratorError, jitter: float, *, left: float = math.inf
) -> float | None:
    """Seconds until the next attempt, or None for no more.

    `attempt` is the one that just failed, from 1; `jitter` lies in [0, 1) and adds up to a quarter; `left` is
    how many seconds the run may still take. Only what an action reports is tried again; a refusal never is. A
    service's own `Retry-After` is respected beyond `max_backoff`, up to what `excessive_wish` calls too much.
    """
    if not _is_tried_again(retry, attempt, error) or excessive_wish(retry, attempt, error, left=left):
        return None
    assert retry is not None
    assert isinstance(error, StepFailed)
    backoff = min(retry.backoff * float(2 ** (attempt - 1)), retry.max_backoff)
    return max(backoff * (1 + jitter / 4), error.retry_after or 0.0)


def excessive_wish(retry: Retry | None, attempt: int, error: OrchestratorError, *, left: float = math.inf) -> str:
    """Why a wait that a service asks for ends the step at once, or an empty text.

    It is waited for up to a minute, or `max_backoff` where that is longer, and never beyond the run's own
    time-out: a service may say anything, such as the seconds since 1970 at which it wants to be asked again.
    """
    if not _is_tried_again(retry, attempt, error):
        return ""
    assert retry is not None
    wish = error.retry_after if isinstance(error, StepFailed) else None
    ceiling = max(float(retry.max_backoff), LONGEST_WISH)
    if not wish or wish <= min(ceiling, left):
        return ""
    limit = f"the {ceiling:g} s that are waited at most" if ceiling <= left else "the run has time left"
    return f"not tried again: it asks for a wait of {lasting(wish)}, longer than {limit}"


def lasting(seconds: float) -> str:
    """A duration in the largest unit that it has two of, such as `90 s`, `56 years`."""
    for size, unit in ((31_557_600, "years"), (86_400, "days"), (3_600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.0f} {unit}" if seconds < 1e12 else "thousands of years"
    return f"{seconds:g} s"


def _is_tried_again(retry: Retry | None, attempt: int, error: OrchestratorError) -> bool:
    if retry is None or attempt >= retry.attempts or not isinstance(error, StepFailed):
        return False
    return "any" in retry.on or error.kind in retry.on


def state_after(error: OrchestratorError) -> StepState:
    """How a step ended that raised this error."""
    return StepState.REFUSED if isinstance(error, Refused) else StepState.FAILED


Ending = tuple[RunState, ExitCode, str]
"""How a run ended: state, exit code and reason."""


def ending(states: Mapping[str, StepState], errors: Mapping[str, OrchestratorError], *, unconfirmed: bool) -> Ending:
    """How a run ended that came to the end of its graph, or waits in it.

    `errors` are those of steps whose failure counts.
    """
    waits = [step for step, state in states.items() if state is StepState.WAITING]
    if waits:
        names = ", ".join(f"`{step}`" for step in waits)
        return RunState.WAITING, ExitCode.WAITING, f"waits for approval of {names}"
    reason = next((error.message for error in errors.values()), "")
    return run_state(states.values(), errors), exit_code(errors.values(), unconfirmed=unconfirmed), reason


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


def most_telling(errors: Mapping[str, OrchestratorError]) -> str:
    """The name of the first error that decides the exit code."""
    codes = [code for code in _SEVERITY if any(error.exit_code == code for error in errors.values())]
    return next(name for name, error in errors.items() if not codes or error.exit_code == codes[0])


def missing_ends(
    recorded: Iterable[EventRecord], step: str, state: StepState, reason: str
) -> tuple[AttemptFinished | StepFinished, ...]:
    """What the ledger lacks for a step to be over that ended otherwise than foreseen, in `state`."""
    ours = [event for event in recorded if event.data.get("step") == step]
    kinds = {event.kind for event in ours}
    if StepFinished.kind in kinds:
        return ()
    finished = StepFinished(step=step, state=state, reason=reason)
    numbers = {kind: _last_attempt(ours, kind) for kind in (AttemptStarted.kind, AttemptFinished.kind)}
    if numbers[AttemptStarted.kind] == numbers[AttemptFinished.kind]:
        return (finished,)
    kind = "error" if state is StepState.FAILED else ""
    attempt = AttemptFinished(
        step=step, attempt=numbers[AttemptStarted.kind], state=state, error_kind=kind, reason=reason
    )
    return (attempt, finished)


def _last_attempt(events: Iterable[EventRecord], kind: str) -> int:
    numbers = [event.data.get("attempt") for event in events if event.kind == kind]
    return max((number for number in numbers if isinstance(number, int)), default=0)

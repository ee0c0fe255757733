"""Telling whoever the policy wants told, before anything of a step begins, and whoever waits for a run's end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pydantic import ValidationError

from orchestrator.errors import OrchestratorError, PolicyDenied
from orchestrator.jsontypes import JsonObject, JsonValue
from orchestrator.ledger.events import Event, Notified, RunFinished, RunNotified, RunStarted
from orchestrator.ledger.states import RunState, StepState
from orchestrator.ledger.types import LedgerReader, RunRecord
from orchestrator.network.webhooks import Webhooks
from orchestrator.policy.obligations import Notice
from orchestrator.policy.types import Decision
from orchestrator.workflow.models.workflow import Message

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Notices:
    """For one attempt at a step."""

    notifier: Webhooks
    run_id: str
    workflow: str
    agent: str
    step: str
    attempt: int

    async def tell(self, decision: Decision) -> tuple[Notified, ...]:
        """Tell everybody whom the decision wants told, at once; what came of it."""
        numbered = enumerate(decision.obligations.notify, 1)
        return tuple(
            await asyncio.gather(*(self._delivered(each, number, decision.allow) for number, each in numbered))
        )

    async def _delivered(self, notice: Notice, number: int, allow: bool) -> Notified:
        about: JsonObject = {
            "id": f"{self.run_id}/{self.step}/{self.attempt}/{number}",
            "run": self.run_id,
            "workflow": self.workflow,
            "step": self.step,
            "attempt": self.attempt,
            "agent": self.agent,
            "allow": allow,
        }
        error = ""
        try:
            await self.notifier.deliver(notice["to"], notice["text"], about)
        except OrchestratorError as problem:
            error = _words(problem)
        return Notified(step=self.step, attempt=self.attempt, to=notice["to"], text=notice["text"], error=error)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEnd:
    """How a run ended, for those whom its workflow names. `failed` are its steps that failed or were refused."""

    run_id: str
    workflow: str
    agent: str
    trigger: str
    state: RunState
    exit_code: int
    reason: str
    failed: Sequence[str] = ()

    def concerns(self, message: Message) -> bool:
        """Whether somebody wants to know of it."""
        return message.when == "always" or (message.when == "on_success") == (self.exit_code == 0)

    @property
    def text(self) -> str:
        """For people."""
        because = f": {self.reason}" if self.reason else ""
        return f"{self.workflow} {self.state.value}{because} ({self.run_id}, exit code {self.exit_code})"

    def as_json(self) -> JsonObject:
        """For programs."""
        return {
            "id": f"{self.run_id}/end",
            "run": self.run_id,
            "workflow": self.workflow,
            "agent": self.agent,
            "trigger": self.trigger,
            "state": self.state.value,
            "exit_code": self.exit_code,
            "reason": self.reason,
            "failed": list(self.failed),
        }


def destinations(messages: Iterable[Message]) -> dict[str, JsonValue]:
    """Who is to be told of which ends, as the record of a run has it; one who is named twice is named once."""
    found: dict[str, JsonValue] = {}
    for each in messages:
        found[each.to] = each.when if found.get(each.to, each.when) == each.when else "always"
    return found


async def tell_of_end(notifier: Webhooks, messages: Iterable[Message], end: RunEnd) -> tuple[RunNotified, ...]:
    """Tell everybody who wants to know, at once; what came of it."""
    names = dict.fromkeys(each.to for each in messages if end.concerns(each))
    return tuple(await asyncio.gather(*(_told_of_end(notifier, name, end) for name in names)))


async def _told_of_end(notifier: Webhooks, to: str, end: RunEnd) -> RunNotified:
    error = ""
    try:
        await notifier.deliver(to, end.text, end.as_json())
    except OrchestratorError as problem:
        error = _words(problem)
        log.warning("%s was not told how run %s ended: %s", to, end.run_id, problem.message, extra={"run": end.run_id})
    return RunNotified(to=to, text=end.text, error=error)


def _words(problem: OrchestratorError) -> str:
    return problem.message + (f"; {problem.hint}" if problem.hint else "")


def all_delivered(told: Iterable[Notified]) -> None:
    """Raise PolicyDenied where somebody could not be told who must be told first."""
    for notice in told:
        if notice.error:
            raise PolicyDenied(
                f"step `{notice.step}`: the policy demands that `{notice.to}` is told first: {notice.error}"
            )


async def tell_of_recorded_end(
    notifier: Webhooks, reader: LedgerReader, record: RunRecord, events: Sequence[Event]
) -> tuple[RunNotified, ...]:
    """Tell those whom the workflow of a run names whose process died, if these events end it.

    By the record alone: the workflow is not read here, which may be what the process died of.
    """
    finished = next((event for event in events if isinstance(event, RunFinished)), None)
    if finished is None or record.task is not None:
        return ()
    first = reader.events(record.run_id, kind=RunStarted.kind)
    wanted = first[0].data.get("notify") if first else None
    try:
        named = wanted.items() if isinstance(wanted, Mapping) else ()
        messages = [Message.model_validate({"to": name, "when": when}) for name, when in named]
    except ValidationError:  # what somebody has written into the ledger keeps nothing from being closed
        return ()
    if not messages:
        return ()
    states = {each.step: each.state for each in reader.steps(record.run_id)}
    end = RunEnd(
        run_id=record.run_id,
        workflow=record.workflow,
        agent=record.agent,
        trigger=record.trigger,
        state=finished.state,
        exit_code=finished.exit_code,
        reason=finished.reason,
        failed=[step for step in record.steps if states.get(step) in (StepState.FAILED, StepState.REFUSED)],
    )
    return await tell_of_end(notifier, messages, end)

"""A call that is asked for again, with the same key: it is told, or gone on with where somebody has agreed."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from orchestrator.errors import AgentBlocked, FenceLost, TaskEnded, UsageError
from orchestrator.grants.wish import NO_WISH, Wish
from orchestrator.jsontypes import JsonObject
from orchestrator.ledger.events import ApprovalRequested, RunStarted
from orchestrator.ledger.states import ApprovalState, RunState, TaskState
from orchestrator.ledger.types import LedgerReader, RunRecord
from orchestrator.recovery.reopen import reopen
from orchestrator.recovery.resumption import recorded_outcome
from orchestrator.runs.calls import call_digest, recorded_digest
from orchestrator.runs.types import RunRequest, Services, TakenRun
from orchestrator.tasks.errors import KeyUsed
from orchestrator.tasks.results import CallResult, CallState, result_of


@dataclass(frozen=True, slots=True)
class Again:
    """What there is to say; or the run, to go on with. Neither: it is under way."""

    result: CallResult | None = None
    taken: TakenRun | None = None


def key_used() -> KeyUsed:
    """Two calls have one key."""
    return KeyUsed(
        "this key was used for another call of the task", hint="give each call a key of its own, such as a UUID"
    )


def under_way(request: RunRequest) -> CallResult:
    """The call goes on, in this process or another; or its credential is with whoever asked first."""
    call = request.call
    assert call is not None
    reason = "it is under way" if call.recipient is None else "its credential was told once, and is not told again"
    return CallResult(call_id=request.run_id, tool=call.tool, state=CallState.RUNNING, reason=reason, confirmed=False)


async def asked_again(services: Services, record: RunRecord, request: RunRequest) -> Again:
    """Raises KeyUsed where the key was used for another call, TaskEnded, AgentBlocked, and LedgerError."""
    assert request.call is not None
    started = (await asyncio.to_thread(services.reader.events, record.run_id, kind=RunStarted.kind))[0].data
    if started.get("steps") != [request.call.tool] or recorded_digest(started) != request.call.digest:
        raise key_used()
    if record.state is RunState.RUNNING:
        return Again()
    if record.state is not RunState.WAITING:
        outcome = await asyncio.to_thread(recorded_outcome, services, record)
        return Again(result_of(outcome, request.call.tool))
    approval_id = await asyncio.to_thread(waits_for, services, record.run_id)
    approval = await asyncio.to_thread(services.approvals.store.get, approval_id)
    if approval.at(services.clock.now()) is not ApprovalState.OPEN:
        await asyncio.to_thread(_check_still_open, services, request)
        try:
            return Again(taken=await reopen(services, record, {}, request=request))
        except (FenceLost, UsageError):
            return Again()  # another process is faster
    waiting = CallResult(
        call_id=record.run_id,
        tool=request.call.tool,
        state=CallState.WAITING,
        reason=record.reason,
        approval=approval.approval_id,
    )
    return Again(waiting)


def _check_still_open(services: Services, request: RunRequest) -> None:
    """What was checked in the transaction that began the call may have changed while it waited.

    Whoever closes the task, or cuts the agent off, just after this finds the call among those that go on.
    """
    assert request.call is not None
    now, agent = services.clock.now(), request.loaded.workflow.agent
    if any(each.agent == agent for each in services.agents.blocks(now=now)):
        raise AgentBlocked(f"the agent `{agent}` is cut off")
    task = services.reader.task(request.call.task)
    if task is None or task.state is not TaskState.OPEN or task.deadline <= now:
        raise TaskEnded(f"the task {request.call.task} is over")


def waiting_call(
    reader: LedgerReader, task_id: str, tool: str, arguments: JsonObject, wish: Wish = NO_WISH
) -> str | None:
    """The oldest call of a tool, with these arguments and wishes, that waits for somebody to agree."""
    digest = call_digest(arguments, wish.as_json())
    for each in reader.calls(task_id):
        if each.state is not RunState.WAITING or each.steps != (tool,):
            continue
        if recorded_digest(reader.events(each.run_id, kind=RunStarted.kind)[0].data) == digest:
            return each.run_id
    return None


def waits_for(services: Services, run_id: str) -> str:
    """The id of the request for approval that a call waits for."""
    asked = services.reader.events(run_id, kind=ApprovalRequested.kind)
    return str(asked[-1].data["approval_id"])

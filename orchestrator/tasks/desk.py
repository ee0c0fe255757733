"""Where agents' requests come in, whatever the door: tasks are opened, tools called, credentials given back.

Nothing is kept here that the ledger does not have, so that any process answers for any task. A call belongs to the
process that carries it out; others reach it by the way of `runs cancel`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import partial
from typing import Any

from orchestrator.actions.hand_over import GIVEN_BACK
from orchestrator.actions.handover import Recipient
from orchestrator.agents.authentication import Caller
from orchestrator.errors import AgentBlocked, BudgetSpent, Refused, RunExists, TaskEnded, UnknownRun, UsageError
from orchestrator.grants.wish import NO_WISH, Wish
from orchestrator.jsontypes import JsonObject, JsonValue
from orchestrator.ledger.ids import call_id
from orchestrator.ledger.lease import LeaseState
from orchestrator.ledger.states import RunState
from orchestrator.ledger.types import LeaseFilter, LeaseRecord, RunRecord
from orchestrator.runs.runner import Runner
from orchestrator.runs.types import Interruption, RunOutcome, RunRequest, Services
from orchestrator.tasks.again import asked_again, key_used, under_way, waiting_call, waits_for
from orchestrator.tasks.closing import CONFIRM_SECONDS, close_task
from orchestrator.tasks.errors import UnknownTool
from orchestrator.tasks.opened import ID, OpenedTask, caller_on_record, opened_task, unknown
from orchestrator.tasks.opening import open_task
from orchestrator.tasks.reach import LOOK_SECONDS, Reach
from orchestrator.tasks.renewing import check_renewable, renewed_elsewhere, renewed_for_others, renewed_here
from orchestrator.tasks.results import CallResult, CallState, HandedOver, nothing_open, result_of
from orchestrator.workflow.loader import LoadedWorkflow
from orchestrator.workflow.problems import suggestion
from orchestrator.workflow.tools.arguments import bind_arguments

log = logging.getLogger(__name__)

MOST_REMEMBERED = 1024
"""Tasks of which what never changes is remembered."""

CALLER_GONE = "the agent is gone"
"""Why a call ended that nobody waits for any more, in the words of the ledger."""


class Leaving(Enum):
    """What becomes of an action that is under way when whoever called goes away."""

    CARRIES_ON = "carries on"
    """It is carried on: asking again with the same key tells its outcome."""
    CANCELS = "cancels"
    """It ends at once, and its credentials with it."""


@dataclass(frozen=True, slots=True)
class _UnderWay:
    """A call that is carried out here."""

    work: asyncio.Task[RunOutcome]
    request: RunRequest

    def is_same(self, request: RunRequest) -> bool:
        """Whether a call with the same key is this one."""
        ours, other = self.request.call, request.call
        assert ours is not None
        assert other is not None
        return (ours.tool, ours.digest) == (other.tool, other.digest)


@dataclass(slots=True)
class TaskDesk:
    """One per process. `types` are the tasks that may be opened here, by name; belongs to one event loop."""

    services: Services
    types: Mapping[str, LoadedWorkflow]
    _opened: dict[str, OpenedTask] = field(default_factory=dict)
    _under_way: dict[str, _UnderWay] = field(default_factory=dict)
    _held: set[str] = field(default_factory=set)
    """The calls under way that hand a credential over."""
    _renewing: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    """What is renewed for other processes, by the call."""
    _reach: Reach = field(init=False)

    def __post_init__(self) -> None:
        self._reach = Reach.of_services(self.services)
        self.services.heartbeat.on_renewal(self._renew_for_others)

    async def open(
        self, caller: Caller, task_type: str, inputs: Mapping[str, JsonValue], *, reason: str = "", address: str = ""
    ) -> OpenedTask:
        """Open a task. Raises UsageError for a type that is not there, and what `open_task` raises."""
        loaded = self.types.get(task_type)
        if loaded is None:
            raise UsageError(f"there is no task `{task_type[:64]}`", hint=suggestion(task_type, self.types))
        opened = await open_task(self.services, loaded, caller, inputs, reason=reason, address=address)
        self._remember(opened)
        return opened

    async def task(self, caller: Caller, task_id: str) -> OpenedTask:
        """One of the caller's own tasks. Raises UnknownTask for any other."""
        opened = self._opened.get(task_id)
        if opened is None:
            opened = await asyncio.to_thread(opened_task, self.services, task_id)
            self._remember(opened)
        if not opened.is_of(caller):
            raise unknown(task_id)
        return opened

    async def call(
        self,
        caller: Caller,
        task_id: str,
        tool: str,
        arguments: Mapping[str, JsonValue],
        key: str,
        *,
        address: str = "",
        leaving: Leaving = Leaving.CARRIES_ON,
        wish: Wish = NO_WISH,
    ) -> CallResult:
        """Call a tool, or tell what came of the call with this key.

        `leaving` says what becomes of an action whose caller goes away (a cancellation of this); a credential that
        nobody took is given back. Raises UnknownTask, UnknownTool, UsageError for arguments that are not right,
        KeyUsed, TaskEnded, BudgetSpent, AgentBlocked, and LedgerError.
        """
        opened = await self.task(caller, task_id)
        bound = _bound(opened, tool, arguments)
        request = self._request(opened, call_id(task_id, key), tool, bound, caller, address, wish)
        return await self._called(opened, request, leaving)

    async def ask_again(
        self,
        caller: Caller,
        task_id: str,
        tool: str,
        arguments: Mapping[str, JsonValue],
        *,
        address: str = "",
        leaving: Leaving = Leaving.CARRIES_ON,
        wish: Wish = NO_WISH,
    ) -> CallResult | None:
        """What comes of the oldest call of this tool with these arguments that waits for somebody to agree.

        For callers that have no key of it any more; None where no such call waits. Raises what `call` raises.
        """
        opened = await self.task(caller, task_id)
        bound = _bound(opened, tool, arguments)
        waiting = await asyncio.to_thread(waiting_call, self.services.reader, task_id, tool, bound, wish)
        if waiting is None:
            return None
        return await self._called(opened, self._request(opened, waiting, tool, bound, caller, address, wish), leaving)

    def _request(
        self,
        opened: OpenedTask,
        run_id: str,
        tool: str,
        arguments: JsonObject,
        caller: Caller,
        address: str,
        wish: Wish,
    ) -> RunRequest:
        return opened.request(
            run_id,
            tool,
            arguments,
            caller_on_record(caller, address),
            now=self.services.clock.now(),
            of_agent=caller.max_open,
            recipient=Recipient() if opened.workflow.tools[tool].hand_over is not None else None,
            wish=wish,
        )

    async def _called(self, opened: OpenedTask, request: RunRequest, leaving: Leaving) -> CallResult:
        call, run_id = request.call, request.run_id
        assert call is not None
        while True:
            if (going_on := self._under_way.get(run_id)) is not None:
                if not going_on.is_same(request):
                    raise key_used()
                if call.recipient is not None:
                    return await self._going_on(opened, request)
            try:
                if going_on is not None:
                    return await self._result(await asyncio.shield(going_on.work), call.tool)
                return await self._carried_out(request, partial(Runner(self.services).run, request), leaving)
            except (RunExists, TaskEnded, BudgetSpent, AgentBlocked) as refused:
                if (told := await self._called_before(opened, request, leaving)) is not None:
                    return told
                if not isinstance(refused, RunExists) or self.services.clock.now() >= opened.deadline:
                    raise
            await asyncio.sleep(LOOK_SECONDS)  # come in elsewhere at the same time: it is about to begin, or refused

    async def _called_before(self, opened: OpenedTask, request: RunRequest, leaving: Leaving) -> CallResult | None:
        """What comes of the call that has this key already, which may go on here; None where there is none."""
        record = await asyncio.to_thread(self.services.reader.run, request.run_id)
        if record is None:
            return None
        again = await asked_again(self.services, record, request)
        if again.taken is None:
            return again.result or await self._going_on(opened, request)
        try:
            resume = partial(Runner(self.services).resume, again.taken)
            return await self._carried_out(request, resume, leaving)
        except RunExists:
            return None

    async def give_back(self, caller: Caller, lease_id: str) -> bool:
        """End the call that a credential was handed over by; whether its end is confirmed by now.

        Raises UnknownRun for a lease that is none of the caller's.
        """
        _, record, _ = await self._own_lease(caller, lease_id)
        if record.state is RunState.RUNNING:
            await self._reach.tell(record.run_id, GIVEN_BACK)
        await self._reach.until_ended([record.run_id], seconds=CONFIRM_SECONDS)
        return await asyncio.to_thread(nothing_open, self.services.reader, record.run_id)

    async def renew(self, caller: Caller, lease_id: str) -> LeaseRecord:
        """Have a handed-over credential live for its `ttl` from now, and not beyond its call; how it stands then.

        Raises UnknownRun for a lease that is none of the caller's, NotRenewed, Refused where Vault says no,
        Unreachable and LedgerError.
        """
        lease, record, opened = await self._own_lease(caller, lease_id)
        check_renewable(opened.workflow.tools, lease)
        if record.run_id in self._under_way:
            recipient = self._recipient(record.run_id)
            assert recipient is not None, "what is handed over has somebody who takes it"
            await renewed_here(recipient, self.services.redactor)
        else:
            await renewed_elsewhere(self.services.heartbeat.store, record.run_id, self.services.clock)
        renewed = await asyncio.to_thread(self.services.reader.lease, lease_id)
        assert renewed is not None
        return renewed

    async def close(self, caller: Caller, task_id: str, reason: str = "") -> bool:
        """Close a task and end what is under way in it; whether everything is gone for certain. Raises UnknownTask."""
        opened = await self.task(caller, task_id)
        return await close_task(self._reach, opened.task_id, by=caller.agent, reason=reason or "closed by the agent")

    async def aclose(self, reason: str, *, seconds: float, hurry: asyncio.Event | None = None) -> None:
        """Let what is carried out here end within so many seconds, or until `hurry`; then take credentials back, and
        cancel the rest."""
        await self._ended_within(seconds, hurry)
        for run_id in list(self._under_way):
            self.services.heartbeat.tell(run_id, GIVEN_BACK)
            if run_id not in self._held:
                self.services.heartbeat.tell(run_id, reason)
        if self._under_way:
            await asyncio.wait([each.work for each in self._under_way.values()])

    async def _ended_within(self, seconds: float, hurry: asyncio.Event | None) -> None:
        waiting = asyncio.create_task((hurry or asyncio.Event()).wait())
        try:
            async with asyncio.timeout(seconds):
                while self._under_way and not waiting.done():
                    any_of = {*(each.work for each in self._under_way.values()), waiting}
                    await asyncio.wait(any_of, return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError:
            pass
        finally:
            waiting.cancel()

    async def _carried_out(
        self,
        request: RunRequest,
        run: Callable[[Interruption], Coroutine[Any, Any, RunOutcome]],
        leaving: Leaving,
    ) -> CallResult:
        assert request.call is not None
        tool, recipient, interruption = request.call.tool, request.call.recipient, Interruption()
        if request.run_id in self._under_way:
            raise RunExists(f"the call {request.run_id} is under way")
        work = asyncio.create_task(run(interruption), name=f"call {request.run_id}")
        self._under_way[request.run_id] = _UnderWay(work, request)
        work.add_done_callback(partial(self._ended, request.run_id))
        if recipient is None:
            try:
                await asyncio.wait({work})
            except asyncio.CancelledError:
                if leaving is Leaving.CANCELS:
                    interruption.reason = CALLER_GONE
                    work.cancel()
                raise
            return await self._result(work.result(), tool)
        self._held.add(request.run_id)
        taking = asyncio.create_task(recipient.credential())
        try:
            await asyncio.wait({work, taking}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            recipient.give_back()
            self.services.heartbeat.tell(request.run_id, CALLER_GONE)
            raise
        finally:
            if not taking.done():
                taking.cancel()
        if work.done():
            return await self._result(work.result(), tool)
        credential = taking.result()
        lease = await self._lease(request.run_id, credential.grant)
        assert lease is not None
        return CallResult(
            call_id=request.run_id,
            tool=tool,
            state=CallState.HANDED_OVER,
            handed=HandedOver(credential, lease),
            held=lease,
            confirmed=False,
        )

    async def _going_on(self, opened: OpenedTask, request: RunRequest) -> CallResult:
        """Whoever has lost the answer with a credential learns which lease to give back."""
        result = under_way(request)
        grant = opened.workflow.tools[result.tool].hand_over
        return result if grant is None else replace(result, held=await self._lease(request.run_id, grant))

    async def _lease(self, run_id: str, grant: str) -> LeaseRecord | None:
        leases = LeaseFilter(run=run_id, states=frozenset({LeaseState.ISSUED}))
        held = await asyncio.to_thread(self.services.reader.leases, leases)
        return next((each for each in held if each.grant == grant), None)

    async def _result(self, outcome: RunOutcome, tool: str) -> CallResult:
        result = result_of(outcome, tool)
        if result.state is not CallState.WAITING:
            return result
        return replace(result, approval=await asyncio.to_thread(waits_for, self.services, outcome.run_id))

    def _renew_for_others(self, run_id: str) -> None:
        if run_id not in self._renewing:
            heartbeat, recipient = self.services.heartbeat, self._recipient(run_id)
            work = renewed_for_others(heartbeat.store, run_id, recipient, self.services.redactor)
            task = self._renewing[run_id] = asyncio.create_task(work, name=f"renew for {run_id}")
            task.add_done_callback(lambda ended: self._renewing.pop(run_id, None))

    def _recipient(self, run_id: str) -> Recipient | None:
        """Who takes what a call hands over that is carried out here."""
        going_on = self._under_way.get(run_id)
        return going_on.request.call.recipient if going_on and going_on.request.call else None

    async def _own_lease(self, caller: Caller, lease_id: str) -> tuple[LeaseRecord, RunRecord, OpenedTask]:
        if not ID.fullmatch(lease_id):
            raise _no_lease(lease_id)
        lease = await asyncio.to_thread(self.services.reader.lease, lease_id)
        record = None if lease is None else await asyncio.to_thread(self.services.reader.run, lease.run_id)
        if lease is None or lease.lease_id != lease_id or record is None or record.task is None:
            raise _no_lease(lease_id)
        try:
            return lease, record, await self.task(caller, record.task)
        except UsageError as error:
            raise _no_lease(lease_id) from error

    def _ended(self, run_id: str, work: asyncio.Task[RunOutcome]) -> None:
        self._under_way.pop(run_id, None)
        self._held.discard(run_id)
        if work.cancelled():
            return
        error = work.exception()
        if error is not None and not isinstance(error, Refused | UsageError):
            log.error("call %s ended with %s", run_id, type(error).__name__, extra={"run": run_id})

    def _remember(self, opened: OpenedTask) -> None:
        self._opened[opened.task_id] = opened
        while len(self._opened) > MOST_REMEMBERED:
            del self._opened[next(iter(self._opened))]


def _bound(opened: OpenedTask, tool: str, arguments: Mapping[str, JsonValue]) -> JsonObject:
    """The arguments with which a tool is called. Raises UnknownTool and UsageError."""
    declared = opened.workflow.tools.get(tool)
    if declared is None:
        hint = suggestion(tool, opened.workflow.tools)
        raise UnknownTool(f"`{opened.workflow.name}` has no tool `{tool[:64]}`", hint=hint)
    return bind_arguments(tool, declared, arguments)


def _no_lease(lease_id: str) -> UnknownRun:
    return UnknownRun(f"there is no lease {lease_id[:40]} of yours")

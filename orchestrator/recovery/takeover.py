"""Closing what a dead process left: its tokens, its leases, and then its runs, which go on or are ended.

A process is dead when it is certainly gone (same machine, and no such process), or when it gave no sign of
life for `dead_after` seconds of our own monotonic clock, whatever any wall clock says. Of several that find
it one recovers it: by a claim in the ledger, which ends with the claimer's own life, and for each run for
good by the fence. The order is always: fences, the dead processes' own Vault tokens and the leases, and only
then whether a run goes on. What is on record already is not recorded again, however often this is repeated
and by whom; what a recovery leaves when it is killed itself belongs to the same run and is closed with it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from orchestrator.actions.process.private_folders import remove_left_behind
from orchestrator.errors import FenceLost, OrchestratorError
from orchestrator.jsontypes import JsonValue
from orchestrator.ledger.coordination.runners import RunnerRecord, Steady
from orchestrator.ledger.events import Event, LeaseRevoking, RunTakenOver
from orchestrator.ledger.lease import OPEN, LeaseState
from orchestrator.ledger.states import RunState
from orchestrator.ledger.types import LeaseFilter, LeaseRecord, RunRecord
from orchestrator.recovery.backoff import is_due
from orchestrator.recovery.closing_pass import Leftover, RunToClose, close_pass
from orchestrator.recovery.dead_runs import Cut, Decision, GoesOn, Verdict, cut_short, decide, ending, is_left
from orchestrator.runs.enforcement.notices import tell_of_recorded_end
from orchestrator.runs.processes import certainly_gone
from orchestrator.runs.types import Services, TakenRun

log = logging.getLogger(__name__)

_REVOKE_SECONDS = 10.0
"""How long revoking the tokens of one dead process may take."""

_LOOK_SECONDS = 0.25
"""Between two looks at processes that may be dead."""

_SOMEBODY = "that had it"
"""For the process of a run that is nobody's by now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovered:
    """What became of one run of a dead process. `resumable` is there if whoever found it goes on with it."""

    run_id: str
    workflow: str
    dead: str
    leases: tuple[Leftover, ...]
    verdict: Verdict
    reason: str = ""
    resumable: TakenRun | None = None

    @property
    def confirmed(self) -> bool:
        """Whether every lease that the dead process left is gone for certain."""
        return all(each.confirmed for each in self.leases)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenRun:
    """A run of a dead process that is ours now, with what is to be closed of it."""

    record: RunRecord
    dead: str
    fence: int
    leases: tuple[LeaseRecord, ...]
    decision: Decision
    cut: Cut


@dataclass(frozen=True, slots=True)
class _Found:
    """`dead` are the processes that are ours to recover, `gone` all that nobody thinks alive."""

    dead: tuple[RunnerRecord, ...]
    gone: tuple[RunnerRecord, ...]


@dataclass(slots=True)
class Recovery:
    """Looks for dead processes. Keep one for as long as this process lives: it remembers the beats that it saw.

    `goes_on` says of a run whether this process goes on with it itself; by default with none.
    `secrets` are secret inputs that were given again, by run id; `dead_after` is in seconds.
    """

    services: Services
    goes_on: GoesOn = lambda record: False
    dead_after: float | None = None
    secrets: Mapping[str, Mapping[str, JsonValue]] = field(default_factory=dict)
    _seen: dict[str, _Beats] = field(default_factory=dict)
    _steady: Steady | None = None
    _fences: dict[str, int] = field(default_factory=dict)
    _elsewhere: frozenset[str] = frozenset()

    async def once(self) -> list[Recovered]:
        """Recover the dead that can be seen now. Safe to repeat, and beside others who do it. Raises LedgerError.

        What could not be closed before is tried again when its pause is over.
        """
        return await self._recover(at_once=False)

    async def until_decided(self) -> list[Recovered]:
        """As `once`, without pauses, waiting as long as it takes to tell a silent process from a dead one."""
        found = await self._recover(at_once=True)
        until = self.services.clock.monotonic() + self._dead_after + 1
        while any(beats.silent for beats in self._seen.values()) and self.services.clock.monotonic() < until:
            await asyncio.sleep(_LOOK_SECONDS)
            found += await self.once()
        return found

    async def one(self, run_id: str) -> Recovered | None:
        """Go on with one run that this process drives by now, and that another one had before; None if it lost it."""
        try:
            run = await self._take(run_id, _SOMEBODY, at_once=True)
            if run is None:
                return None
            closed = await close_runs(self.services, [run])
        except FenceLost:
            return None
        if run_id not in closed:
            return None
        return await self._conclude(run, closed[run_id], owner=self.services.heartbeat.runner_id)

    def undecided(self, runner_id: str) -> bool:
        """Whether a process may yet turn out to be dead, or is just being recovered by another one."""
        beats = self._seen.get(runner_id)
        return runner_id in self._elsewhere or (beats is not None and beats.silent)

    @property
    def _dead_after(self) -> float:
        return self.services.dead_after if self.dead_after is None else self.dead_after

    async def _recover(self, *, at_once: bool) -> list[Recovered]:
        found = await asyncio.to_thread(self._find)
        if not found.dead:
            return []
        await asyncio.to_thread(remove_left_behind)
        runs = await self._take_runs(found.dead, at_once=at_once)
        tokens, closed = await self._close(found, runs)
        recovered = [
            await self._conclude(run, closed[run.record.run_id]) for run in runs if run.record.run_id in closed
        ]
        for run in runs:
            if run.record.run_id not in closed:
                self._fences.pop(run.record.run_id, None)  # somebody else has taken it from us
        for dead in found.dead:
            await asyncio.to_thread(self._bury, dead, tokens_gone=tokens[dead] is not None)
        return [each for each in recovered if each is not None]

    async def _close(
        self, found: _Found, runs: Sequence[OpenRun]
    ) -> tuple[dict[RunnerRecord, int | None], dict[str, list[Leftover]]]:
        """Revoke the tokens of the dead, and the leases of their runs: what became of each.

        Where the answer to an issuance is missing the tokens come first: what hangs from them without our knowing
        goes with them. Else every lease is known by its id and goes first, since Vault would take back what
        hangs from a token by itself at the same time, and both would be slower.
        """
        if all(lease.issued_at is not None for run in runs for lease in run.leases):
            closed = await close_runs(self.services, runs)
            revoked = await asyncio.gather(*map(self._revoke_tokens, found.gone))
            return dict(zip(found.gone, revoked, strict=True)), closed
        tokens = dict(zip(found.gone, await asyncio.gather(*map(self._revoke_tokens, found.gone)), strict=True))
        parents = {each.runner_id for each in found.dead if tokens[each] and None not in tokens.values()}
        return tokens, await close_runs(self.services, runs, parents_revoked=parents)

    def _find(self) -> _Found:
        """Who is dead, and of them those that nobody else recovers."""
        heartbeat, now = self.services.heartbeat, self.services.clock.monotonic()
        present = [each for each in heartbeat.store.all() if each.runner_id != heartbeat.runner_id]
        self._steady = self._steady or Steady(self._dead_after)
        steady = self._steady.look(now)
        gone = tuple(each for each in present if self._is_dead(each, now, steady))
        self._seen = {each.runner_id: self._seen[each.runner_id] for each in present if each.runner_id in self._seen}
        if gone:
            heartbeat.enter()
        dead = tuple(each for each in gone if heartbeat.store.claim(each.runner_id, heartbeat.runner_id))
        self._elsewhere = frozenset(each.runner_id for each in gone) - {each.runner_id for each in dead}
        return _Found(dead, gone)

    def _is_dead(self, process: RunnerRecord, now: float, steady: float) -> bool:
        beats = self._seen.setdefault(process.runner_id, _Beats(process.beat, process.beat, now))
        if beats.last != process.beat:
            beats.last, beats.since = process.beat, now
        silent = now - max(beats.since, steady) >= self._dead_after
        dead = process.gone or (
            (silent or certainly_gone(process.process)) and self.services.heartbeat.store.declare_gone(process)
        )
        if dead:
            del self._seen[process.runner_id]
        return dead

    async def _take_runs(self, dead: Sequence[RunnerRecord], *, at_once: bool) -> list[OpenRun]:
        store = self.services.heartbeat.store

        async def take(run_id: str, process: str) -> OpenRun | None:
            try:
                return await self._take(run_id, process, at_once=at_once)
            except FenceLost:
                self._fences.pop(run_id, None)
                return None

        taken: list[OpenRun | None] = []
        for process in dead:
            runs = await asyncio.to_thread(store.unfinished, process.runner_id)
            taken += await asyncio.gather(*(take(run_id, process.runner_id) for run_id in runs))
        return [run for run in taken if run is not None]

    async def _take(self, run_id: str, dead: str, *, at_once: bool) -> OpenRun | None:
        """Take the fence, unless we have it, and record what is certain; None where there is nothing to do."""
        services, fence = self.services, self._fences.get(run_id, 0)
        events: list[Event] = []
        reason = f"the process {dead} is gone"
        if not fence:
            if not await asyncio.to_thread(self._concerns_us, run_id, dead, at_once=at_once):
                return None
            fence = await self._take_over(run_id, reason)
        run = await asyncio.to_thread(self._look, run_id, dead, fence, at_once=at_once)
        if run is None:
            return None
        events += run.cut.attempts_finished()
        events += (
            LeaseRevoking(lease_id=lease.lease_id, reason=reason)
            for lease in run.leases
            if lease.state is not LeaseState.REVOKING
        )
        if events:
            await services.ledger.append(run_id, fence, events)
        self._fences[run_id] = fence
        return replace(run, leases=tuple(replace(lease, state=LeaseState.REVOKING) for lease in run.leases))

    async def _take_over(self, run_id: str, reason: str) -> int:
        """Become the only writer, and say so before the workflow is read: should that end this process, it counts."""
        services = self.services
        # What the dead process recorded up to here counts; from here on it can record nothing.
        fence = await services.ledger.take_over(run_id)
        record = await asyncio.to_thread(services.reader.run, run_id)
        if record is not None and record.state is RunState.RUNNING:
            goes_on = await asyncio.to_thread(self.goes_on, record)
            taken = RunTakenOver(runner=services.heartbeat.runner_id, reason=reason, goes_on=goes_on)
            await services.ledger.append(run_id, fence, [taken])
            self._fences[run_id] = fence
        return fence

    def _concerns_us(self, run_id: str, dead: str, *, at_once: bool) -> bool:
        """Whether there is anything to do, so that a run which is left to a service is not taken over for nothing."""
        record = self.services.reader.run(run_id)
        if record is None or record.state is not RunState.RUNNING:
            return False
        left = is_left(self.services, record, self.goes_on)
        return not left or self.services.queue.holds(run_id) or self._has_open(run_id, at_once=at_once)

    def _has_open(self, run_id: str, *, at_once: bool) -> bool:
        """Whether something of a run that is left to a service is to be closed, or has no end on record."""
        return bool(self._leases(run_id, only_due=not at_once) or cut_short(self.services.reader, run_id).unfinished)

    def _leases(self, run_id: str, *, only_due: bool) -> list[LeaseRecord]:
        leases = self.services.reader.leases(LeaseFilter(run=run_id, states=OPEN, limit=100_000))
        return [lease for lease in leases if not only_due or is_due(lease, self.services.clock.now())]

    def _look(self, run_id: str, dead: str, fence: int, *, at_once: bool) -> OpenRun | None:
        services = self.services
        record = services.reader.run(run_id)
        if record is None or record.state is not RunState.RUNNING:
            return None
        decision = decide(services, record, dead, self.goes_on, self.secrets.get(run_id))
        leases = self._leases(run_id, only_due=decision.verdict is Verdict.LEAVE and not at_once)
        cut = cut_short(services.reader, run_id)
        handed_out = services.queue.holds(run_id)
        if decision.verdict is Verdict.LEAVE and not leases and not cut.unfinished and not handed_out:
            return None
        return OpenRun(record=record, dead=dead, fence=fence, leases=tuple(leases), decision=decision, cut=cut)

    async def _revoke_tokens(self, dead: RunnerRecord) -> int | None:
        """Revoke the Vault tokens that the dead process logged in for; all its step tokens hang from them.

        Returns how many there were, or None if Vault did not confirm it for each.
        """
        services = self.services
        accessors = await asyncio.to_thread(services.heartbeat.store.tokens, dead.runner_id)
        until = services.clock.monotonic() + _REVOKE_SECONDS
        for accessor in accessors:
            try:
                await services.broker.vault.revoke_accessor(accessor, deadline=until)
            except OrchestratorError as error:
                log.warning("a token of %s could not be revoked: %s", dead.runner_id, error.message)
                return None
        return len(accessors)

    async def _conclude(
        self, run: OpenRun, leases: Sequence[Leftover], *, owner: str | None = None
    ) -> Recovered | None:
        """Record what becomes of the run; None if somebody else has taken it from us.

        `owner` is who is said to drive it, by default the dead process.
        """
        services, store, run_id = self.services, self.services.heartbeat.store, run.record.run_id
        goes_on = run.decision.verdict is Verdict.GO_ON
        try:
            if events := ending(run.decision, run.cut):
                events = [*await tell_of_recorded_end(services.notifier, services.reader, run.record, events), *events]
                await services.ledger.append(run_id, run.fence, events)
        except FenceLost:
            self._fences.pop(run_id, None)
            return None
        if run.decision.verdict is not Verdict.LEAVE:
            self._fences.pop(run_id, None)
        elif all(each.confirmed for each in leases) and await asyncio.to_thread(services.queue.holds, run_id):
            # From here on it is whoever's the queue hands it to; an end is recorded for it where it is to be cancelled.
            await asyncio.to_thread(lambda: store.release(run_id, dead=run.dead))
            self._fences.pop(run_id, None)
        resumable = None
        if goes_on and run.decision.request is not None:
            runner_id = services.heartbeat.runner_id
            if not await asyncio.to_thread(store.take, run_id, runner_id, dead=owner or run.dead):
                return None
            steps = await asyncio.to_thread(services.reader.steps, run_id)
            resumable = TakenRun(request=run.decision.request, fence=run.fence, steps=tuple(steps))
        return Recovered(
            run_id=run_id,
            workflow=run.record.workflow,
            dead=run.dead,
            leases=tuple(leases),
            verdict=run.decision.verdict,
            reason=run.decision.reason,
            resumable=resumable,
        )

    def _bury(self, dead: RunnerRecord, *, tokens_gone: bool) -> None:
        """Forget it if nothing of it is left: what the queue had given to it is then handed out again."""
        if tokens_gone:
            self.services.heartbeat.store.bury(dead.runner_id, self.services.heartbeat.runner_id)


@dataclass(slots=True)
class _Beats:
    """The signs of life of one process: at our first look, the last one, and since when it is the last."""

    first: int
    last: int
    since: float

    @property
    def silent(self) -> bool:
        """Whether it gave none since our first look."""
        return self.last == self.first


async def close_runs(
    services: Services, runs: Sequence[OpenRun], *, parents_revoked: frozenset[str] | set[str] = frozenset()
) -> dict[str, list[Leftover]]:
    """Close the leases of all runs in one pass, and say what became of them, by run id.

    `parents_revoked` are the dead processes whose Vault tokens were revoked before. A run whose fence was lost
    is missing in the answer. Raises LedgerError once all have been tried.
    """
    wanted = [
        RunToClose(
            run.record.run_id,
            run.fence,
            run.leases,
            f"the process {run.dead} is gone",
            parent_revoked=run.dead in parents_revoked,
        )
        for run in runs
    ]
    outcome, errors = await close_pass(services, wanted)
    for error in errors.values():
        if not isinstance(error, FenceLost):
            raise error
    closed: dict[str, list[Leftover]] = {run.record.run_id: [] for run in runs if run.record.run_id not in errors}
    for each in outcome:
        if each.lease.run_id in closed:
            closed[each.lease.run_id].append(each)
    return closed

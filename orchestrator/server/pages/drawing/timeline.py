"""The timeline of a run: attempts, what they waited for, the leases that they held, and the decisions, as bars.

All of it is worked out here from what the ledger says; `svg` draws it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import islice

from orchestrator.ledger.lease import OPEN, LeaseState
from orchestrator.ledger.states import StepState
from orchestrator.ledger.types import EventRecord, LeaseRecord, RunRecord
from orchestrator.presentation.terms import LEASE_MARKS, lasting
from orchestrator.server.pages.drawing.timescale import Timescale, timescale

MOST_ROWS = 120
"""Rows that are drawn; the table has all of them."""


@dataclass(frozen=True, slots=True)
class Bar:
    """A time. `look` says what it is, `open` that it has no end yet. Ends in percent of the width."""

    left: float
    right: float
    look: str
    title: str
    open: bool = False


@dataclass(frozen=True, slots=True)
class Dot:
    """Something that happened at one moment."""

    at: float
    look: str
    title: str


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the drawing: a step, or a lease below it. `label` is written on its first bar."""

    label: str
    thin: bool
    bars: Sequence[Bar]
    dots: Sequence[Dot] = ()


@dataclass(frozen=True, slots=True)
class Timeline:
    """What there is to draw. `left_out` counts the rows that are too many."""

    scale: Timescale
    rows: Sequence[Row]
    left_out: int
    seconds: float


@dataclass(slots=True)
class Attempt:
    """One try at a step. `held` are the seconds for which its credentials were held, together."""

    step: str
    number: int
    started: datetime
    finished: datetime | None = None
    state: str = StepState.RUNNING.value
    reason: str = ""
    action: str = ""
    leases: list[LeaseRecord] = field(default_factory=list)

    def seconds(self, now: datetime) -> float:
        """How long it took, or has taken until now."""
        return max(0.0, ((self.finished or now) - self.started).total_seconds())

    def held(self, now: datetime) -> float:
        """How long its credentials were held, added up."""
        return sum(held_seconds(lease, now) for lease in self.leases)

    def exposure(self, now: datetime) -> float | None:
        """Time of leases over time of the attempt."""
        took = self.seconds(now)
        return self.held(now) / took if took and any(lease.issued_at for lease in self.leases) else None


def held_seconds(lease: LeaseRecord, now: datetime) -> float:
    """From when it was issued until it was gone, or until now."""
    if lease.issued_at is None:
        return 0.0
    return max(0.0, ((lease.closed_at or now) - lease.issued_at).total_seconds())


def attempts(events: Sequence[EventRecord], leases: Sequence[LeaseRecord]) -> list[Attempt]:
    """The attempts of a run in the order in which they began, with what they held."""
    found: dict[tuple[str, int], Attempt] = {}
    for event in events:
        if event.kind == "attempt.started":
            key = (str(event.data["step"]), _number(event.data.get("attempt")))
            found[key] = Attempt(*key, event.time, action=str(event.data.get("action", "")))
        elif event.kind == "attempt.finished":
            known = found.get((str(event.data["step"]), _number(event.data.get("attempt"))))
            if known is not None:
                known.finished, known.state = event.time, str(event.data.get("state", ""))
                known.reason = str(event.data.get("reason") or "")
    for lease in leases:
        if of := found.get((lease.step, lease.attempt)):
            of.leases.append(lease)
    return list(found.values())


def timeline(
    run: RunRecord, found: Sequence[Attempt], events: Sequence[EventRecord], now: datetime, *, marks: Mapping[str, str]
) -> Timeline:
    """What to draw of a run. `marks` are those of the states of attempts."""
    end = run.finished_at or now
    moments = [_since(run, each) for each in _moments(run, found, events, end)]
    drawing = _Drawing(run, timescale(moments), end, marks)
    about = _by_step(found, _waits(events), [event for event in events if event.kind == "decision"])
    kept = list(islice((row for each in about for row in drawing.rows(each)), MOST_ROWS))
    rows = sum(1 + sum(len(attempt.leases) for attempt in each.attempts) for each in about)
    return Timeline(drawing.scale, kept, rows - len(kept), max(moments, default=0.0))


@dataclass(frozen=True, slots=True)
class _Wait:
    step: str
    start: datetime
    end: datetime | None
    title: str


@dataclass(slots=True)
class _Step:
    """A step with all that was done about it, and when that began."""

    name: str
    began: datetime
    attempts: list[Attempt] = field(default_factory=list)
    waits: list[_Wait] = field(default_factory=list)
    decisions: list[EventRecord] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Drawing:
    run: RunRecord
    scale: Timescale
    now: datetime
    marks: Mapping[str, str]

    def rows(self, step: _Step) -> Iterator[Row]:
        """The row of a step, and those of the leases of its attempts."""
        name, own = step.name, step.attempts
        bars = [self._bar(wait.start, wait.end, "wait", f"{name} {wait.title}") for wait in step.waits]
        bars += [self._attempt(each) for each in own]
        dots = [self._decision(each) for each in step.decisions]
        last = own[-1] if own else None
        label = name if last is None else f"{name} {self.marks.get(last.state, '')} {_long(last.seconds(self.now))}"
        yield Row(label, thin=False, bars=sorted(bars, key=lambda bar: bar.left), dots=dots)
        for each in own:
            for lease in each.leases:
                yield self._lease(lease, each)

    def _attempt(self, each: Attempt) -> Bar:
        number = f", attempt {each.number}" if each.number > 1 else ""
        title = f"{each.step}{number}: {each.state}, {_long(each.seconds(self.now))}"
        return self._bar(each.started, each.finished, f"step {each.state}", title)

    def _lease(self, lease: LeaseRecord, of: Attempt) -> Row:
        held = held_seconds(lease, self.now)
        took = of.seconds(self.now)
        share = f", {held / took:.0%} of the step" if took and lease.issued_at else ""
        label = f"{lease.grant} {LEASE_MARKS[lease.state]} {_long(held)}" if lease.issued_at else lease.grant
        title = f"{lease.grant} of {lease.step}: {lease.state.value}, held {_long(held)}{share}"
        bars = []
        if lease.issued_at is None:
            bars.append(self._bar(lease.requested_at, lease.closed_at, "asking", f"{title}, never issued"))
        else:
            bars.append(self._bar(lease.requested_at, lease.issued_at, "asking", f"{lease.grant}: asked for"))
            gone = lease.revoking_since if lease.revoking_since else lease.closed_at
            bars.append(self._bar(lease.issued_at, gone, "lease", title))
            if lease.revoking_since is not None and lease.state is not LeaseState.ENDED:
                taken = f"{lease.grant}: being taken back"
                bars.append(self._bar(lease.revoking_since, lease.closed_at, "taking", taken))
        return Row(f"{label}{'' if lease.state not in OPEN else ' ' + lease.state.value}", thin=True, bars=bars)

    def _decision(self, event: EventRecord) -> Dot:
        allowed = bool(event.data.get("allow"))
        word = "allowed" if allowed else "denied"
        return Dot(self._place(event.time), word, f"{event.data.get('step')}: {word} by {event.data.get('engine')}")

    def _bar(self, start: datetime, end: datetime | None, look: str, title: str) -> Bar:
        return Bar(self._place(start), self._place(end or self.now), look, title, open=end is None)

    def _place(self, moment: datetime) -> float:
        return self.scale.place(_since(self.run, moment))


def _moments(
    run: RunRecord, found: Sequence[Attempt], events: Sequence[EventRecord], end: datetime
) -> Iterator[datetime]:
    yield run.started_at
    yield end
    for event in events:
        if event.kind != "values.dropped":  # long after all that is drawn
            yield event.time
    for attempt in found:
        for lease in attempt.leases:
            yield from filter(None, (lease.requested_at, lease.issued_at, lease.revoking_since, lease.closed_at))


def _waits(events: Sequence[EventRecord]) -> list[_Wait]:
    """For what steps waited: for people, and for a connection with room."""
    found: list[_Wait] = []
    asked: dict[str, EventRecord] = {}
    for event in events:
        if event.kind == "approval.requested":
            asked[str(event.data["approval_id"])] = event
        elif event.kind == "approval.ended" and (began := asked.pop(str(event.data["approval_id"]), None)):
            title = f"waited for approval: {event.data.get('outcome')}"
            found.append(_Wait(str(event.data["step"]), began.time, event.time, title))
    for event in asked.values():
        found.append(_Wait(str(event.data["step"]), event.time, None, "waits for approval"))
    return found


def _by_step(found: Sequence[Attempt], waits: Sequence[_Wait], decisions: Sequence[EventRecord]) -> list[_Step]:
    """The steps that anything was done about, in the order in which that began."""
    steps: dict[str, _Step] = {}

    def about(name: str, moment: datetime) -> _Step:
        step = steps.setdefault(name, _Step(name, moment))
        step.began = min(step.began, moment)
        return step

    for attempt in found:
        about(attempt.step, attempt.started).attempts.append(attempt)
    for wait in waits:
        about(wait.step, wait.start).waits.append(wait)
    for decision in decisions:
        about(str(decision.data.get("step")), decision.time).decisions.append(decision)
    return sorted(steps.values(), key=lambda step: step.began)


def _since(run: RunRecord, moment: datetime) -> float:
    return max(0.0, (moment - run.started_at).total_seconds())


def _long(seconds: float) -> str:
    return lasting(timedelta(seconds=seconds))


def _number(value: object) -> int:
    return value if isinstance(value, int) else 1

"""Runs: the list, and one of them with its timeline and its history."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from orchestrator.errors import UsageError
from orchestrator.jsontypes import JsonObject, counted
from orchestrator.ledger.states import IdKind, RunState, StepState
from orchestrator.ledger.types import EventRecord, LeaseFilter, LeaseRecord, RunFilter, RunRecord, StepRecord
from orchestrator.presentation.events import words
from orchestrator.presentation.runs import DUTIES, caller_facts
from orchestrator.presentation.terms import lasting, took
from orchestrator.server.pages.answers import Asked, NotThere, Page
from orchestrator.server.pages.drawing.svg import timeline_svg
from orchestrator.server.pages.drawing.timeline import Attempt, attempts, timeline
from orchestrator.server.pages.live import Part
from orchestrator.server.pages.rendering import json_text, mark_of, rendered
from orchestrator.server.pages.sources import Sources
from orchestrator.server.pages.views.evidence import dropped_of, signed
from orchestrator.server.pages.views.listing import ROWS, begins_so, listed

MOST_EVENTS = 400
"""Events of which a timeline is drawn, and below which the chain is looked at for the page unasked."""

EVENTS = 100
"""Events of one page of the history."""

MOST_LEASES = 1000
"""The newest, of which the timeline is drawn and the first are listed."""

MOST_STEPS = ROWS
"""Steps, and leases, of one page."""

SHOWN = 2000
"""Characters of one output that are shown."""

TRIGGERS = ("manual", "schedule", "queue", "call", "prove", "sweep")

Said = tuple[EventRecord, str, str]
"""An event, how long after the beginning it was, and what it says."""


@dataclass(frozen=True, slots=True)
class Story:
    """A run with what its page shows of it. `broken` is the first event that does not fit, if all events are here."""

    run: RunRecord
    steps: Sequence[StepRecord]
    """Those of one page; `all_steps` is how many there are."""
    all_steps: int
    leases: Sequence[LeaseRecord]
    events: Sequence[EventRecord]
    broken: int | None
    own: frozenset[str]
    """The leases that the orchestrator made for itself, and the tokens that the others hang from."""
    now: datetime

    @classmethod
    def read(cls, sources: Sources, run: RunRecord, first_step: int = 0) -> Story:
        """Leases in the order in which they were asked for."""
        reader = sources.reader
        steps, all_steps = reader.some_steps(run.run_id, first_step, MOST_STEPS)
        leases = reader.leases(LeaseFilter(run=run.run_id, limit=MOST_LEASES))
        events, broken = reader.verified(run.run_id, MOST_EVENTS)
        duties = {lease.step_key for lease in leases if lease.grant in DUTIES}
        return cls(
            run=run,
            steps=steps,
            all_steps=all_steps,
            leases=sorted(leases, key=lambda lease: (lease.requested_at, lease.lease_id)),
            events=events,
            broken=broken,
            own=frozenset(
                lease.lease_id for lease in leases if lease.step_key in duties or lease.grant_kind == "step-token"
            ),
            now=sources.clock.now(),
        )

    @property
    def shown(self) -> list[LeaseRecord]:
        """What steps held."""
        return [lease for lease in self.leases if lease.lease_id not in self.own]


def list_runs(sources: Sources, asked: Asked) -> Page:
    """The newest that agree with the filters."""
    before = asked.text("before")
    after = None if before is None else sources.reader.run(before)
    if before is not None and after is None:
        raise UsageError("the run with which the page before ended is not in this ledger", hint="begin at the newest")
    wanted = RunFilter(
        workflow=asked.text("workflow"),
        state=asked.one_of("state", RunState),
        agent=asked.text("agent"),
        trigger=asked.text("trigger"),
        since=asked.moment("since"),
        until=asked.moment("until"),
        before=after,
        everything=asked.flag("all"),
        limit=ROWS + 1,
    )
    page = listed(asked, sources.reader.newest_runs(wanted), lambda run: run.run_id)
    return Page(
        "runs.html",
        {
            "asked": asked,
            "page": page,
            "states": list(RunState),
            "triggers": TRIGGERS,
            "workflows": sources.reader.workflows(200),
            "now": sources.clock.now(),
        },
    )


def show_run(sources: Sources, asked: Asked) -> Page:
    """One run."""
    run = run_of(sources, asked.names["run"])
    shown = Shown(
        first=asked.number("events", -1, least=0, most=10**9),
        step=asked.number("steps", 0, least=0, most=10**9),
        checked=asked.flag("check"),
    )
    story = Story.read(sources, run, shown.step)
    return Page(
        "run.html",
        {
            "asked": asked,
            **_changing(sources, story, shown),
            "why": _why(story),
            "caller": _of_call(story),
            "retried_by": sources.reader.retries([run.run_id]).get(run.run_id),
        },
    )


def run_of(sources: Sources, text: str) -> RunRecord:
    """The run with this id, or the only one whose id begins so, which then has the address of the whole id."""
    run = sources.reader.run(text)
    if run is not None:
        return run
    hint = "It may be in another ledger. The list of runs shows those of this one, newest first."
    missing = NotThere(f"No run {text} is in this ledger.", hint=hint)
    raise begins_so(sources, IdKind.RUN, "runs", text, missing)


def changing_part(sources: Sources, run_id: str) -> Part | None:
    """What changes on the page of a run while it goes on, made anew."""
    run = sources.reader.run(run_id)
    if run is None:
        return None
    story = Story.read(sources, run)
    html = rendered(Page("run_part.html", _changing(sources, story, Shown())))
    return Part(html, over=not _goes_on(run))


def _goes_on(run: RunRecord) -> bool:
    """Whether its page can change: of a run that waits, too."""
    return run.state in (RunState.RUNNING, RunState.WAITING)


@dataclass(frozen=True, slots=True)
class Shown:
    """What of a long run is shown: its history after the event `first`, or its end; the steps after so many."""

    first: int = -1
    step: int = 0
    checked: bool = False
    """Whether the whole chain is looked at, however long it is."""


def _changing(sources: Sources, story: Story, which: Shown) -> Mapping[str, object]:
    run, now = story.run, story.now
    found = attempts(story.events, story.shown)
    whole = len(story.events) < MOST_EVENTS
    drawn = timeline(run, found, story.events, now, marks=_MARKS)
    position = len(story.events) if whole else sources.reader.positions([run.run_id]).get(run.run_id, 0)
    first = max(0, position - EVENTS) if which.first < 0 else which.first
    verified = run.finished_at is not None and (whole or which.checked)
    broken = story.broken
    if verified and not whole:
        broken = sources.reader.verify(run.run_id)
    shown = (
        story.events[first : first + EVENTS] if whole else sources.reader.events(run.run_id, after=first, limit=EVENTS)
    )
    return {
        "run": run,
        "inputs": dict(run.inputs),
        "dropped": dropped_of(sources, run.run_id, run.dropped),
        "signed": signed(sources, run.run_id) if run.finished_at else None,
        "outputs": _outputs(story.steps),
        "live": _goes_on(run),
        "steps": story.steps,
        "first_step": which.step,
        "steps_of_a_page": MOST_STEPS,
        "all_steps": story.all_steps,
        "tries": _tries(found, now),
        "decided": {str(each.data["step"]): each.data["attempt"] for each in story.events if each.kind == "decision"},
        "drawn": timeline_svg(drawn, f"Timeline of run {run.run_id}", _description(story, found)),
        "timeline": drawn,
        "events_drawn": 0 if whole else len(story.events),
        "leases": story.shown[:MOST_STEPS],
        "leases_read": len(story.leases) if len(story.leases) == MOST_LEASES else 0,
        "leases_left": max(0, len(story.shown) - MOST_STEPS),
        "own": len(story.own),
        "history": _said(run, shown, story.leases),
        "first": first,
        "position": position,
        "events_of_a_page": EVENTS,
        "broken": broken if verified else None,
        "verified": verified,
        "now": now,
    }


def _outputs(steps: Sequence[StepRecord]) -> list[tuple[str, str, int]]:
    """Of steps that kept any: the step, its output as JSON, and how many characters are left out."""
    kept = ((step.step, json_text(step.outputs)) for step in steps if step.outputs is not None)
    return [(name, text[:SHOWN], max(0, len(text) - SHOWN)) for name, text in kept]


_MARKS = {state.value: mark_of(state)[0] for state in StepState}


@dataclass(frozen=True, slots=True)
class _Tries:
    held: float
    took: float
    exposure: float | None


def _tries(found: Sequence[Attempt], now: datetime) -> Mapping[str, _Tries]:
    """By step, how long its credentials were held over how long its attempts took."""
    by_step: dict[str, list[Attempt]] = {}
    for each in found:
        by_step.setdefault(each.step, []).append(each)
    tries = {}
    for step, own in by_step.items():
        held, seconds = sum(each.held(now) for each in own), sum(each.seconds(now) for each in own)
        any_held = any(lease.issued_at for each in own for lease in each.leases)
        tries[step] = _Tries(held, seconds, held / seconds if any_held and seconds else None)
    return tries


def _description(story: Story, found: Sequence[Attempt]) -> str:
    """What is to be seen, for those who do not see it."""
    run = story.run
    length = took(run.started_at, run.finished_at or story.now)
    held = lasting(timedelta(seconds=sum(each.held(story.now) for each in found)))
    return (
        f"Run {run.state.value} after {length}: {counted(len(found), 'attempt')} at steps, "
        f"{counted(len(story.shown), 'lease')} held for {held} together. The tables below say the same."
    )


def _said(run: RunRecord, events: Sequence[EventRecord], leases: Sequence[LeaseRecord]) -> list[Said]:
    grants = {lease.lease_id: f"{lease.step}.{lease.grant}" for lease in leases}
    return [(each, f"+{lasting(each.time - run.started_at)}", sentence(each, grants)) for each in events]


def sentence(event: EventRecord, grants: Mapping[str, str]) -> str:
    """What an event says, with the grant that it is about."""
    lease = event.data.get("lease_id")
    about = grants.get(str(lease), str(lease)) if lease and event.kind != "lease.requested" else ""
    try:
        said = words(event.kind, event.data, UTC)
    except (KeyError, TypeError, ValueError, AttributeError):
        said = "recorded in a form that this version does not know"
    return ": ".join(filter(None, (about, said)))


def _why(story: Story) -> str:
    return str(story.events[0].data.get("reason") or "") if story.events else ""


def _of_call(story: Story) -> list[tuple[str, str]]:
    """Of a call: what the agent chose, and how it was known."""
    started: JsonObject = story.events[0].data if story.events else {}
    caller = started.get("caller")
    return [pair for pair in caller_facts(caller) if pair[1]] if isinstance(caller, Mapping) else []

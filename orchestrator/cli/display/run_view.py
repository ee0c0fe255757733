"""One run as the ledger knows it, on a terminal."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from orchestrator.cli.display.terminal import (
    LEASE_MARKS,
    console,
    facts,
    lasting,
    lease_words,
    local,
    scope_words,
    table,
    took,
)
from orchestrator.jsontypes import counted
from orchestrator.ledger.types import EventRecord, LeaseRecord, StepRecord
from orchestrator.presentation.events import words
from orchestrator.presentation.runs import DUTIES, RunStory, caller_facts
from orchestrator.presentation.terms import inputs_words

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

SHOWN_OF_OUTPUT = 200
"""Characters of one value that are shown unless all are wanted."""


def print_story(
    story: RunStory, screen: Console | None = None, *, everything: bool = False, outputs: bool = False
) -> None:
    """The run, its steps, what they gave, its leases, its events.

    What the orchestrator's own logins did only with `everything`; what is long of the outputs only with `outputs`.
    """
    screen = screen or console()
    folded = [] if everything else story.own_leases()
    hidden = {lease.lease_id for lease in folded}
    screen.print(facts(_run_facts(story)))
    _section(screen, "STEPS", _steps(story.steps))
    if given := list(_outputs(story.steps, whole=outputs)):
        _section(screen, "OUTPUTS", table(("OUTPUT", "VALUE"), given, fold=("VALUE",)))
    if shown := [lease for lease in story.leases if lease.lease_id not in hidden]:
        _section(screen, "LEASES", _leases(shown))
    if folded:
        screen.print(_folded(folded), style="dim")
    _section(screen, "EVENTS", _events(story, hidden))


def _folded(leases: Sequence[LeaseRecord]) -> str:
    """`+ 4 of the orchestrator's own (bind, sweep; --all): 4 ✓ revoked`."""
    from collections import Counter

    duties = ", ".join(sorted({lease.grant.strip("()") for lease in leases if lease.grant in DUTIES}))
    states = Counter(lease_words(lease.state) for lease in leases)
    counted = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    return f"+ {len(leases)} of the orchestrator's own ({duties}; --all): {counted}"


def _section(screen: Console, title: str, content: RenderableType) -> None:
    screen.print()
    screen.print(title, style="bold")
    screen.print(content)


def _run_facts(story: RunStory) -> list[tuple[str, str]]:
    run = story.run
    code = "" if run.exit_code is None else f", exit code {run.exit_code}"
    whole = f"{counted(len(story.events), 'event')}, hash chain whole"
    return [
        ("run", run.run_id),
        ("workflow", f"{run.workflow}  {_short(run.digest)}"),
        ("agent", run.agent),
        ("trigger", run.trigger),
        ("retry of", run.retry_of or ""),
        ("retried as", story.retried_by or ""),
        ("why", _why(story)),
        *_of_task(story),
        ("inputs", inputs_words(run.inputs)),
        ("started", local(run.started_at)),
        ("took", took(run.started_at, run.finished_at)),
        ("state", f"{run.state.value}{code}"),
        ("reason", run.reason),
        ("history", whole if story.broken is None else f"BROKEN from event {story.broken} on"),
    ]


def _why(story: RunStory) -> str:
    """What whoever began it gave as the reason."""
    return str(story.events[0].data.get("reason", "")) if story.events else ""


def _outputs(steps: Sequence[StepRecord], *, whole: bool) -> Iterator[tuple[str, str]]:
    """What is kept of each step, by its key: `read.rows`, and its JSON, of which only the beginning if it is long."""
    import json

    for step in steps:
        if not isinstance(step.outputs, Mapping):
            continue
        for key, value in step.outputs.items():
            text = json.dumps(value, ensure_ascii=False, indent=2 if whole else None)
            rest = len(text) - SHOWN_OF_OUTPUT
            if not whole and rest > 0:
                text = f"{text[:SHOWN_OF_OUTPUT]}... {rest} more characters (--outputs)"
            yield f"{step.step}.{key}", text


def _of_task(story: RunStory) -> list[tuple[str, str]]:
    """Of a call: the task that it is in, what the agent chose, and how it was known."""
    if story.run.task is None:
        return []
    started = story.events[0].data if story.events else {}
    chosen, caller = started.get("call"), started.get("caller")
    return [
        ("task", story.run.task),
        ("call", inputs_words(chosen) if isinstance(chosen, dict) else ""),
        *(caller_facts(caller) if isinstance(caller, dict) else ()),
    ]


def _short(digest: str) -> str:
    algorithm, _, value = digest.partition(":")
    return f"{algorithm}:{value[:12]}" if value else digest[:12]


def _steps(steps: Sequence[StepRecord]) -> RenderableType:
    rows = [
        (
            step.step,
            step.action,
            step.state.value,
            str(step.attempts),
            took(step.started_at, step.finished_at),
            step.reason,
        )
        for step in steps
    ]
    return table(("STEP", "ACTION", "STATE", "TRIES", "TOOK", "REASON"), rows, fold=("REASON",))


def _leases(leases: Sequence[LeaseRecord]) -> RenderableType:
    """Two lines a lease, so that its id and its scope stay whole at 80 columns."""
    from rich.table import Table
    from rich.text import Text

    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    made.add_column(no_wrap=True)
    made.add_column(overflow="fold")
    for lease in leases:
        held = f", held {took(lease.issued_at, lease.closed_at)}" if lease.issued_at and lease.closed_at else ""
        attempt = f" #{lease.attempt}" if lease.attempt > 1 else ""
        made.add_row(lease.lease_id, f"{lease.step}.{lease.grant}{attempt}  {lease_words(lease.state)}{held}")
        made.add_row("", Text(scope_words(lease.scope), style="dim"))
        if lease.subject:
            made.add_row("", Text(lease.subject, style="dim"))
        if lease.reason:
            made.add_row("", Text(lease.reason, style="dim"))
    return made


def _events(story: RunStory, hidden: Collection[str]) -> RenderableType:
    grants = {lease.lease_id: f"{lease.step}.{lease.grant}" for lease in story.leases}
    rows = []
    for event in story.events:
        lease = event.data.get("lease_id")
        if lease in hidden:
            continue
        about = grants.get(lease, lease) if isinstance(lease, str) and event.kind != "lease.requested" else ""
        said = words(event.kind, event.data)
        after = f"+{lasting(event.time - story.run.started_at)}"
        rows.append((str(event.seq), after, event.kind, ": ".join(filter(None, (about, said)))))
    return table(("SEQ", "AFTER", "EVENT", "WHAT"), rows, fold=("WHAT",))


def life_line(lease: LeaseRecord, events: Sequence[EventRecord]) -> RenderableType:
    """The events of one lease with their times."""
    rows = [(local(event.time), event.kind, words(event.kind, event.data)) for event in events]
    return table(("TIME", f"{LEASE_MARKS[lease.state]} LIFE", "WHAT"), rows, fold=("WHAT",))

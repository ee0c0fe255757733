"""One task as the ledger knows it, on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.cli.display.run_view import inputs_words
from orchestrator.cli.display.terminal import console, facts, lease_words, local, table, took
from orchestrator.jsontypes import JsonObject
from orchestrator.ledger.lease import OPEN
from orchestrator.ledger.types import EventRecord, LeaseFilter, LeaseRecord, LedgerReader, RunRecord, TaskRecord

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True, slots=True)
class TaskStory:
    """A task with everything that belongs to it. `broken` is the first event whose hash does not fit, if any."""

    task: TaskRecord
    opened: JsonObject
    calls: Sequence[RunRecord]
    leases: Sequence[LeaseRecord]
    events: Sequence[EventRecord]
    broken: int | None

    @classmethod
    def read(cls, reader: LedgerReader, task: TaskRecord) -> TaskStory:
        """Leases are those that are open."""
        events = reader.events(task.task_id)
        return cls(
            task=task,
            opened=events[0].data if events else {},
            calls=reader.calls(task.task_id),
            leases=reader.leases(LeaseFilter(task=task.task_id, states=OPEN)),
            events=events,
            broken=reader.verify(task.task_id),
        )


def print_story(story: TaskStory, screen: Console | None = None) -> None:
    """The task, its calls, and what they hold."""
    screen = screen or console()
    screen.print(facts(_facts(story)))
    _section(screen, "CALLS")
    if story.calls:
        rows = [
            (
                call.run_id,
                " ".join(call.steps),
                call.state.value,
                local(call.started_at),
                took(call.started_at, call.finished_at),
                call.reason,
            )
            for call in story.calls
        ]
        screen.print(table(("CALL", "TOOL", "STATE", "STARTED", "TOOK", "REASON"), rows, fold=("REASON", "TOOL")))
    else:
        screen.print("none")
    if story.leases:
        _section(screen, "OPEN LEASES")
        held = [
            (lease.lease_id, f"{lease.step}.{lease.grant}", lease_words(lease.state), local(lease.expires_at))
            for lease in story.leases
        ]
        screen.print(table(("LEASE", "GRANT", "NOW", "EXPIRES"), held, fold=("GRANT",)))


def _section(screen: Console, title: str) -> None:
    screen.print()
    screen.print(title, style="bold")


def _facts(story: TaskStory) -> list[tuple[str, str]]:
    task = story.task
    opened, caller = story.opened, story.opened.get("caller")
    known: JsonObject = caller if isinstance(caller, dict) else {}
    context = opened.get("context")
    whole = f"{len(story.events)} events, hash chain whole"
    by = ", ".join(str(known[name]) for name in ("issuer", "subject", "address") if known.get(name))
    found = [
        ("task", task.task_id),
        ("type", task.workflow),
        ("agent", task.agent),
        ("on behalf of", str(known.get("on_behalf_of") or "")),
        ("known by", by),
        ("inputs", inputs_words(task.inputs)),
        ("context", inputs_words(context) if isinstance(context, dict) else ""),
        ("opened", local(task.opened_at)),
        ("why", str(opened.get("reason") or "")),
        ("deadline", local(task.deadline)),
        ("idle limit", f"{task.idle}s" if task.idle else ""),
        ("state", task.state.value),
        ("closed", local(task.closed_at) if task.closed_at else ""),
        ("reason", task.reason),
        ("history", whole if story.broken is None else f"BROKEN from event {story.broken} on"),
    ]
    return [(name, value) for name, value in found if value]

"""One task as the ledger knows it, on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.cli.display.terminal import console, facts, lease_words, local, table, took
from orchestrator.jsontypes import counted
from orchestrator.ledger.states import TaskState
from orchestrator.ledger.task_events import TaskClosed
from orchestrator.presentation.runs import caller_facts
from orchestrator.presentation.tasks import TaskStory
from orchestrator.presentation.terms import inputs_words

if TYPE_CHECKING:
    from datetime import datetime

    from rich.console import Console


def print_story(story: TaskStory, now: datetime, screen: Console | None = None) -> None:
    """The task, its budgets, its calls, and what they hold."""
    screen = screen or console()
    screen.print(facts(_facts(story, now)))
    _section(screen, "TOOLS")
    spent = [(each.tool, _of(each.calls, each.max_calls), _of(each.open, each.max_open)) for each in story.budgets]
    screen.print(table(("TOOL", "CALLS", "OPEN"), spent, fold=("TOOL",)))
    if story.limits_unknown:
        screen.print(f"the limits are not known: {story.limits_unknown}", style="dim")
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


def _of(count: int, most: int | None) -> str:
    return str(count) if most is None else f"{count} of {most}"


def _section(screen: Console, title: str) -> None:
    screen.print()
    screen.print(title, style="bold")


def _facts(story: TaskStory, now: datetime) -> list[tuple[str, str]]:
    from orchestrator.grants.fields import format_duration

    task, opened = story.task, story.opened
    caller, context = opened.get("caller"), opened.get("context")
    late = ", past its deadline" if task.state is TaskState.OPEN and task.deadline <= now else ""
    closed = [event for event in story.events if event.kind == TaskClosed.kind]
    by = f" by {closed[-1].data['by']}" if closed else ""
    return [
        ("task", task.task_id),
        ("type", task.workflow),
        ("agent", task.agent),
        *(caller_facts(caller) if isinstance(caller, dict) else ()),
        ("inputs", inputs_words(task.inputs)),
        ("context", inputs_words(context) if isinstance(context, dict) else ""),
        ("opened", local(task.opened_at)),
        ("why", str(opened.get("reason") or "")),
        ("deadline", local(task.deadline)),
        ("idle limit", format_duration(task.idle) if task.idle else ""),
        ("state", f"{task.state.value}{late}"),
        ("closed", f"{local(task.closed_at)}{by}" if task.closed_at else ""),
        ("reason", task.reason),
        (
            "history",
            f"{counted(len(story.events), 'event')}, hash chain whole"
            if story.broken is None
            else f"BROKEN from event {story.broken} on",
        ),
    ]

"""Tasks of agents: the list, and one of them with its calls."""

from __future__ import annotations

from orchestrator.errors import UsageError
from orchestrator.ledger.states import IdKind, TaskState
from orchestrator.ledger.types import TaskRecord
from orchestrator.presentation.runs import caller_facts
from orchestrator.presentation.tasks import TaskStory
from orchestrator.server.pages.answers import Asked, NotThere, Page
from orchestrator.server.pages.sources import Sources
from orchestrator.server.pages.views.evidence import dropped_in
from orchestrator.server.pages.views.listing import ROWS, begins_so, listed
from orchestrator.server.pages.views.runs import sentence

MOST_CALLS = 300
"""Calls, and events, that the page of a task shows: the newest."""


def list_tasks(sources: Sources, asked: Asked) -> Page:
    """The newest that agree with the filters."""
    before = asked.text("before")
    after = None if before is None else sources.reader.task(before)
    if before is not None and after is None:
        raise UsageError("the task with which the page before ended is not in this ledger", hint="begin at the newest")
    agent, state = asked.text("agent"), asked.one_of("state", TaskState)
    found = sources.reader.tasks(agent=agent, state=state, before=after, limit=ROWS + 1)
    values = {
        "asked": asked,
        "page": listed(asked, found, lambda task: task.task_id),
        "states": list(TaskState),
        "now": sources.clock.now(),
    }
    return Page("tasks.html", values)


def show_task(sources: Sources, asked: Asked) -> Page:
    """One task."""
    task = _task_of(sources, asked.names["task"])
    story = TaskStory.read(sources.reader, task, {})
    caller = story.opened.get("caller")
    closed = [event for event in story.events if event.kind == "task.closed"]
    return Page(
        "task.html",
        {
            "asked": asked,
            "task": task,
            "story": story,
            "calls": story.calls[-MOST_CALLS:],
            "calls_left": max(0, len(story.calls) - MOST_CALLS),
            "caller": [pair for pair in caller_facts(caller) if pair[1]] if isinstance(caller, dict) else [],
            "context": story.opened.get("context") or {},
            "dropped": dropped_in(story.events),
            "why": str(story.opened.get("reason") or ""),
            "closed_by": str(closed[-1].data.get("by", "")) if closed else "",
            "history": [(each, sentence(each, {})) for each in story.events[-MOST_CALLS:]],
            "history_left": max(0, len(story.events) - MOST_CALLS),
            "late": task.state is TaskState.OPEN and task.deadline <= sources.clock.now(),
        },
    )


def _task_of(sources: Sources, text: str) -> TaskRecord:
    task = sources.reader.task(text)
    if task is not None:
        return task
    missing = NotThere(f"No task {text} is in this ledger.", hint="The list of tasks shows those of this one.")
    raise begins_so(sources, IdKind.TASK, "tasks", text, missing)

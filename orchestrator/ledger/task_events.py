"""What can happen in a task: it is opened, tools are called, it is closed. Each call is a run with its own events."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import ClassVar

from orchestrator.jsontypes import JsonObject
from orchestrator.jsontypes import JsonValue as JsonValue  # which reads the types of the fields need, too


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskOpened:
    """The first event of every task. `digest` is of the file's text; `tools` are in declaration order."""

    kind: ClassVar[str] = "task.opened"
    task: str
    """Its own id."""
    workflow: str
    """The type of the task."""
    digest: str
    agent: str
    inputs: JsonObject
    context: JsonObject
    """As it was evaluated when the task was opened; it is not evaluated again."""
    tools: tuple[str, ...]
    deadline: datetime
    idle: int | None
    """Seconds without a call after which it is closed."""
    caller: JsonObject
    """How the agent was known: `issuer`, `subject`, `actor`, `on_behalf_of` and `address`."""
    reason: str = ""
    """Why, in the words of whoever opened it."""
    directory: str = ""
    """Where the file was, absolute; its relative paths begin there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskCalled:
    """A tool is called; `call` is the id of the run that this is. Recorded together with that run's beginning."""

    kind: ClassVar[str] = "task.called"
    call: str
    tool: str
    arguments_digest: str
    """SHA-256 of the canonical arguments, as `sha256:HEX`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskClosed:
    """The last event of a task: no tool can be called any more. What is under way ends because of it."""

    kind: ClassVar[str] = "task.closed"
    by: str
    """The agent, or who else: `deadline`, `idle`, a person's name."""
    reason: str = ""


TaskEvent = TaskOpened | TaskCalled | TaskClosed

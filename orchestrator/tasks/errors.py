"""What is wrong with a request of an agent, beyond what is wrong with any run."""

from __future__ import annotations

from orchestrator.errors import UsageError


class UnknownTool(UsageError):
    """The task has no such tool."""


class KeyUsed(UsageError):
    """The caller's key belongs to another call of the task."""

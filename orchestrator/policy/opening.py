"""Finding and opening the policy engine that the settings name."""

from __future__ import annotations

from pathlib import Path

from orchestrator import extensions
from orchestrator.policy.types import PolicyEngine
from orchestrator.policy.watched import OnError, WatchedPolicies

GROUP = "orchestrator.policy_engines"


def open_engine(name: str, *, path: Path, on_error: OnError = OnError.KEEP) -> PolicyEngine:
    """The engine registered under this name; one that reads policies from files is made anew when these change.

    An engine is a class without arguments, or one with the constructor `from_directory(path)`.
    Raises UsageError when there is no such engine or its policies are not valid.
    """
    kind = extensions.load(GROUP, name)
    from_directory = getattr(kind, "from_directory", None)
    if from_directory is not None:
        return WatchedPolicies(from_directory, path, on_error)
    engine: PolicyEngine = kind()
    return engine

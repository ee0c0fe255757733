"""Finding and opening the policy engine that the settings name."""

from __future__ import annotations

from pathlib import Path

from orchestrator import extensions
from orchestrator.policy.types import PolicyEngine

GROUP = "orchestrator.policy_engines"


def open_engine(name: str, *, path: Path) -> PolicyEngine:
    """The engine registered under this name; one that reads policies from files is given their folder.

    An engine is a class without arguments, or one with the constructor `from_directory(path)`.
    Raises UsageError when there is no such engine or its policies are not valid.
    """
    kind = extensions.load(GROUP, name)
    from_directory = getattr(kind, "from_directory", None)
    engine: PolicyEngine = from_directory(path) if from_directory else kind()
    return engine

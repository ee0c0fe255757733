"""Finding and opening the policy engine that the settings name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from orchestrator import extensions
from orchestrator.errors import UsageError
from orchestrator.policy.types import PolicyEngine
from orchestrator.policy.watched import OnError, WatchedPolicies

GROUP = "orchestrator.policy_engines"


def open_engine(
    name: str, *, path: Path, on_error: OnError = OnError.KEEP, options: Mapping[str, str] | None = None
) -> PolicyEngine:
    """The engine registered under this name; one that reads policies from files is made anew when these change.

    An engine is a class without arguments, one with the constructor `from_directory(path)`, or one with
    `from_options(options)`, which checks what it is told. Raises UsageError when there is no such engine, or its
    policies or options are not valid.
    """
    kind = extensions.load(GROUP, name)
    if (from_options := getattr(kind, "from_options", None)) is not None:
        told: PolicyEngine = from_options(options or {})
        return told
    if options:
        raise UsageError(
            f"the policy engine `{name}` has no options",
            hint=f"ORCHESTRATOR_POLICY_OPTIONS is set ({', '.join(sorted(options))}): unset it, or choose another "
            "engine with ORCHESTRATOR_POLICY",
        )
    from_directory = getattr(kind, "from_directory", None)
    if from_directory is not None:
        return WatchedPolicies(from_directory, path, on_error)
    engine: PolicyEngine = kind()
    return engine

"""A workflow runner in which no step owns a standing secret.

For each step of a declared workflow the orchestrator asks Vault (or OpenBao) for just-in-time,
time-bound, minimal credentials, hands them to that step alone, revokes them when the step ends
and records the whole chain.

    from orchestrator import load_workflow, plan, run_workflow

    outcome = run_workflow("workflows/customer_feedback.yaml", {"limit": 5})
    outcome.check()
"""

from __future__ import annotations

from orchestrator.version import __version__

TYPE_CHECKING = False
"""As type checkers have it; `typing` would take longer to import than a signal may wait for the command line."""

if TYPE_CHECKING:
    from typing import Any

    from orchestrator.configured.embedding import load_workflow, plan, run_workflow, run_workflow_async

__all__ = ["__version__", "load_workflow", "plan", "run_workflow", "run_workflow_async"]


def __getattr__(name: str) -> Any:
    """What is offered to programs is imported when it is asked for: the command line needs none of it (PEP 562)."""
    if name in __all__:
        from orchestrator.configured import embedding

        return getattr(embedding, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

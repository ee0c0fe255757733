"""The actions that are installed, ours and other people's, by name."""

from __future__ import annotations

from functools import cache

from orchestrator import extensions
from orchestrator.actions.base import Action, Params
from orchestrator.actions.hand_over import HandOver
from orchestrator.errors import UsageError
from orchestrator.workflow.models.tools import HAND_OVER

GROUP = "orchestrator.actions"


@cache
def action(name: str) -> Action:
    """The action registered under this name. Raises UsageError when there is none, with a near name as a hint."""
    if name == HAND_OVER:
        return HandOver()
    found: Action = extensions.load(GROUP, name)()
    return found


class Catalog:
    """What a loader of workflows needs to know of actions."""

    def names(self) -> list[str]:
        """Every known name, sorted; nothing is imported."""
        return extensions.names(GROUP)

    def params_of(self, name: str) -> type[Params] | None:
        """The model of an action's parameters, or None when no action has this name."""
        if name == HAND_OVER:  # a key of tools, and nothing that a file names
            return None
        try:
            return action(name).params
        except UsageError:
            return None


catalog = Catalog()

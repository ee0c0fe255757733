"""What must hold of a file with tools, and of each of them, beyond what holds of steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from orchestrator.errors import InvalidExpression
from orchestrator.workflow.cel.template import parse_template, references
from orchestrator.workflow.inputs import wrong_default
from orchestrator.workflow.models.declared import Declared
from orchestrator.workflow.models.tools import HAND_OVER
from orchestrator.workflow.parameters import ActionCatalog
from orchestrator.workflow.source import Path, Source
from orchestrator.workflow.tools.urls import BY_THE_AGENT, misplaced

D = TypeVar("D", bound=Declared)

OF_STEPS = ("agent", "schedule", "on_failure", "notify", "timeout", "max_runs", "rate_limit")
"""Keys that say something of runs, and nothing of tasks."""


def check_kind(source: Source) -> None:
    """Report a file that has neither steps nor tools, both, or keys of the other kind."""
    data: Mapping[str, Any] = source.data
    has_steps, has_tools = "steps" in data, "tools" in data
    if has_steps and has_tools:
        source.report(("tools",), "a workflow has either `steps` or `tools`", "make two files of it", key=True)
    elif not has_steps and not has_tools:
        source.report((), "`steps` is missing here", "or `tools`, for what an agent may do", key=True)
    elif has_tools:
        for name in OF_STEPS:
            if name in data:
                hint = "the agent is whoever opens the task" if name == "agent" else "`task` says how long one is open"
                source.report((name,), f"`{name}` says nothing of tools", hint, key=True)
        _no_secrets(source, data.get("inputs"))
    if not has_tools:
        if "agent" not in data:
            source.report((), "`agent` is missing here", key=True)
        elif data["agent"] == "":
            source.report(("agent",), "the agent needs a name")
        if "task" in data:
            source.report(("task",), "`task` belongs to `tools`", "a run has a `timeout`", key=True)
    for section in ("steps", "tools"):
        if section in data and data[section] == {}:
            source.report((section,), f"`{section}` is empty", key=True)


def _no_secrets(source: Source, inputs: Any) -> None:
    """A task is on record with everything that a call of its tools needs, so nothing of it can be secret."""
    for name, declared in inputs.items() if isinstance(inputs, dict) else ():
        if isinstance(declared, dict) and declared.get("secret") is True:
            hint = "let a grant of kind `secret` read it from Vault"
            source.report(("inputs", name, "secret"), "an agent gives no secrets when it opens a task", hint)


def check_declarations(source: Source, declared: Any, base: Path, model: type[D]) -> dict[str, D]:
    """Report defaults that do not fit; the declarations that are right. What else is wrong is reported elsewhere."""
    found: dict[str, D] = {}
    for name, each in declared.items() if isinstance(declared, dict) else ():
        try:
            found[str(name)] = model.model_validate(each)
        except ValidationError:
            continue
        if wrong := wrong_default(found[str(name)]):
            source.report((*base, name, "default"), wrong)
    return found


def check_tool(source: Source, base: Path, tool: Mapping[str, Any], actions: ActionCatalog) -> None:
    """Report a value that the agent has chosen where only the file may say what happens, and tokens of other makers."""
    for name, grant in tool["grants"].items() if isinstance(tool.get("grants"), dict) else ():
        if isinstance(grant, dict) and grant.get("profile", "transit") != "transit":
            source.report(
                (*base, "grants", name, "profile"),
                "the server cannot fix the claims of an agent that is known only when it calls",
                "leave `profile` out",
            )
    action = tool.get("action")
    if action == HAND_OVER:
        source.report((*base, "action"), f"`{HAND_OVER}` is no action", f"write `{HAND_OVER}: GRANT` instead of it")
    model = actions.params_of(action) if isinstance(action, str) else None
    given = tool.get("with")
    if model is None or not isinstance(given, dict):
        return
    for name in sorted(getattr(model, "fixed", frozenset()) & given.keys()):
        for path, reference in _chosen(given[name], (*base, "with", name)):
            source.report(
                path,
                f"`{name}` of {action} is for the file to say, not for `{reference}`",
                "write it out, and let the agent choose between two tools",
            )
    for name in sorted(getattr(model, "urls", frozenset()) & given.keys()):
        for wrong, hint in misplaced(given[name], BY_THE_AGENT):
            source.report((*base, "with", name), wrong, hint)


def _chosen(value: Any, path: Path) -> Iterator[tuple[Path, str]]:
    """Where a value refers to what an agent has chosen, and to what."""
    if isinstance(value, str) and "${{" in value:
        try:
            found = [each.path for part in parse_template(value).expressions for each in references(part.cel)]
        except InvalidExpression:
            return  # reported already
        for reference in found:
            if reference[0] in BY_THE_AGENT:
                yield path, ".".join(reference)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _chosen(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _chosen(item, (*path, index))

"""What must hold between the parts of a workflow: references, dependencies, actions and their parameters.

The checks work on the plain data, so that they say what they can even where the shape is wrong
elsewhere: all errors of a file at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from orchestrator.errors import InvalidExpression
from orchestrator.grants.fields import BOUND
from orchestrator.workflow.aws_grants import check_aws_grants
from orchestrator.workflow.cel.template import Expression, parse_template, references
from orchestrator.workflow.cel.types import Use, Used, check_types
from orchestrator.workflow.expressions import condition_of
from orchestrator.workflow.inputs import check_scheduled
from orchestrator.workflow.models.declared import Argument, Input
from orchestrator.workflow.models.steps import ITEMS
from orchestrator.workflow.parameters import ActionCatalog, check_action, check_kinds
from orchestrator.workflow.problems import suggestion
from orchestrator.workflow.source import Path, Source
from orchestrator.workflow.tools.checks import check_declarations, check_kind, check_tool

_STEP_PARTS = ("output", "state", "error")
_OF_RUNS = ("run", "steps", "step", "item")
_OF_TASKS = ("call", "task")
TASK_PARTS = ("id", "agent", "on_behalf_of")
"""What expressions of a tool see of the task under which it is called."""

RUN_PARTS = ("id", "trigger", "started", "failed")
"""What expressions of a step see of its run."""

_IN_CONTEXT = ("id", "trigger")
"""What there is of a run before it begins."""

_STEP_OF_ITS_OWN = ("id", "attempt")
_OF_ITEMS = ("step", "item")
_WORKFLOW_PARTS = ("name", "dir")

_BOUND = tuple((member,) for member in BOUND)


@dataclass(frozen=True, slots=True)
class _Known:
    """What the expressions of one place may refer to. `part` is the step or tool that they are in."""

    inputs: Mapping[str, Any]
    context: Mapping[str, Any]
    steps: Mapping[str, Any] = field(default_factory=dict)
    call: Mapping[str, Any] = field(default_factory=dict)
    of_tools: bool = False
    part: str | None = None
    each: bool = False
    """Whether it is carried out for each item of a list."""
    attempt: bool = True
    """Whether the place is looked at for an attempt, and not for the step as a whole."""


def check(source: Source, actions: ActionCatalog) -> None:
    """Add every problem between the parts of the workflow to `source.problems`."""
    data = source.data
    steps, tools = _map(data.get("steps")), _map(data.get("tools"))
    check_kind(source)
    inputs = check_declarations(source, data.get("inputs"), ("inputs",), Input)
    if isinstance(data.get("schedule"), dict):
        for path, message, hint in check_scheduled(inputs, data["schedule"]):
            source.report(path, message, hint, key=True)
    known = _Known(_map(data.get("inputs")), _map(data.get("context")), steps, of_tools=bool(tools))
    used: list[Used] = []
    _context(source, known, used)
    for section, parts in (("steps", steps), ("tools", tools)):
        for name, part in parts.items():
            if source.full:
                return
            if isinstance(part, dict):
                of_tools = section == "tools"
                here = replace(
                    known, call=_map(part.get("call")), of_tools=of_tools, part=str(name), each="for_each" in part
                )
                _part(source, (section, str(name)), part, here, actions, used)
    kinds = check_types(source, used, actions)
    for section, parts in (("steps", steps), ("tools", tools)):
        for name, part in parts.items():
            if not source.full and isinstance(part, dict):
                check_kinds(source, (section, str(name)), part, actions, kinds)
    _misplaced(source, data, (), allowed=False)
    _cycles(source, steps)


def _context(source: Source, known: _Known, used: list[Used]) -> None:
    allowed = ("inputs", "workflow") if known.of_tools else ("inputs", "workflow", "run")
    for path, expression, use in _expressions(source, known.context, ("context",)):
        found = len(source.problems)
        for reference in _references(source, path, expression):
            if reference[0] not in allowed:
                source.report(path, f"`context` may refer to {', '.join(allowed)}, not to `{reference[0]}`")
            elif reference[0] == "run" and reference[1:] not in [(name,) for name in _IN_CONTEXT]:
                source.report(path, f"`{'.'.join(reference)}` is not known here", "there is `run.id`, `run.trigger`")
            else:
                _reference(source, path, reference, expression, known, whole=False)
        used.append(Used(path, expression.cel, use, faulty=len(source.problems) > found))


def _part(
    source: Source, base: Path, part: Mapping[str, Any], known: _Known, actions: ActionCatalog, used: list[Used]
) -> None:
    """One step, or one tool."""
    if known.of_tools:
        check_declarations(source, part.get("call"), (*base, "call"), Argument)
    else:
        _needs(source, base, part, known)
    for path, expression, use in (
        *_list(source, part.get("for_each"), (*base, "for_each")),
        *_expressions(source, part.get("with"), (*base, "with")),
        *_of_grants(source, part.get("grants"), (*base, "grants")),
        *_condition(source, part.get("if"), (*base, "if")),
    ):
        if source.full:
            return
        whole = use is Use.VALUE and path[2] == "with"
        found = len(source.problems)
        here = replace(known, attempt=path[2] not in ("if", "for_each"))
        for reference in _references(source, path, expression):
            _reference(source, path, reference, expression, here, whole=whole)
        used.append(Used(path, expression.cel, use, faulty=len(source.problems) > found))
    check_aws_grants(source, part.get("grants"), (*base, "grants"))
    _literal(source, base, part, actions)
    check_action(source, base, part, actions)
    if known.of_tools:
        check_tool(source, base, part, actions)


def _needs(source: Source, base: Path, step: Mapping[str, Any], known: _Known) -> None:
    needs = step.get("needs")
    for index, needed in enumerate(needs if isinstance(needs, list) else []):
        if source.full:
            return
        if needed == known.part:
            source.report((*base, "needs", index), f"step `{needed}` needs itself")
        elif isinstance(needed, str) and needed not in known.steps:
            hint = suggestion(needed, map(str, known.steps))
            source.report((*base, "needs", index), f"there is no step `{needed}`", hint)


def _list(source: Source, value: Any, path: Path) -> Iterator[tuple[Path, Expression, Use]]:
    """The expression that gives the items of a step, or those in the items."""
    if isinstance(value, str) and "${{" not in value:
        source.report(path, "`for_each` is a list, or an expression that gives one", "write `${{ inputs.NAME }}`")
    yield from _expressions(source, value, path)


def _condition(source: Source, text: Any, path: Path) -> Iterator[tuple[Path, Expression, Use]]:
    if isinstance(text, str):
        try:
            yield path, Expression(condition_of(text), 0), Use.CONDITION
        except InvalidExpression as error:
            source.report(path, error.message, error.hint or "")


def _reference(
    source: Source,
    path: Path,
    reference: tuple[str, ...],
    expression: Expression,
    known: _Known,
    *,
    whole: bool,
) -> None:
    root, *rest = reference
    name = rest[0] if rest else ""
    inputs = known.inputs
    if root in (_OF_RUNS if known.of_tools else _OF_TASKS):
        there = "a tool has no steps and no run of its own" if known.of_tools else "there is neither task nor call"
        source.report(path, f"`{root}` is not known here: {there}", f"it may refer to {_there_is(known)}")
    elif root == "inputs":
        if name not in inputs:
            source.report(
                path, f"there is no input `{name}`", suggestion(name, inputs, otherwise="declare it in `inputs`")
            )
        elif _map(inputs[name]).get("secret") is True and not (whole and expression.cel == f"inputs.{name}"):
            source.report(
                path,
                f"the secret input `{name}` may only be passed on whole",
                f"let the value be exactly ${{{{ inputs.{name} }}}}",
            )
    elif root == "context" and name not in known.context:
        source.report(path, f"`context` has no `{name}`", suggestion(name, known.context))
    elif root == "call" and name not in known.call:
        hint = suggestion(name, known.call, otherwise="declare it in `call` of the tool")
        source.report(path, f"the tool has no argument `{name}`", hint)
    elif root == "task" and (len(rest) != 1 or name not in TASK_PARTS):
        source.report(path, f"`{'.'.join(reference)}` is not known", f"there is `task.{'`, `task.'.join(TASK_PARTS)}`")
    elif root == "run" and (not rest or name not in RUN_PARTS):
        _not_known(source, path, reference, RUN_PARTS)
    elif root == "workflow" and (not rest or name not in _WORKFLOW_PARTS):
        _not_known(source, path, reference, _WORKFLOW_PARTS)
    elif root == "item" and not known.each:
        source.report(path, "`item` is not known here", "`for_each` of the step says for which items it is carried out")
    elif root in _OF_ITEMS and not known.attempt:
        source.report(path, f"`{root}` is not known here", "it is that of an attempt: use it in `with` and `grants`")
    elif root == "step" and name not in (own := (*_STEP_OF_ITS_OWN, *(("index",) if known.each else ()))):
        _not_known(source, path, reference, own)
    elif root == "endpoints" and not name:
        source.report(path, "name one endpoint", "write `endpoints.NAME`")
    elif root == "steps":
        _step_reference(source, path, rest, known.steps, known.part)


def _not_known(source: Source, path: Path, reference: tuple[str, ...], there: Iterable[str]) -> None:
    root = reference[0]
    source.report(path, f"`{'.'.join(reference)}` is not known", f"there is `{root}.{f'`, `{root}.'.join(there)}`")


def _there_is(known: _Known) -> str:
    return "inputs, context, endpoints, workflow, " + ("call and task" if known.of_tools else "run and steps")


def _step_reference(source: Source, path: Path, rest: list[str], steps: Mapping[str, Any], step_id: str | None) -> None:
    name = rest[0] if rest else ""
    if name not in steps:
        source.report(path, f"there is no step `{name}`", suggestion(name, map(str, steps)))
    elif name == step_id:
        source.report(path, f"step `{name}` refers to itself")
    elif len(rest) < 2 or rest[1] not in _STEP_PARTS:
        source.report(path, f"`steps.{name}` has `output`, `state` and `error`", f"write `steps.{name}.output.KEY`")
    elif rest[1] == "output":
        outputs = _map(steps[name]).get("outputs")
        kept = [str(key) for key in outputs] if isinstance(outputs, list) else []
        if kept and "for_each" in _map(steps[name]):
            kept = [ITEMS]
        if len(rest) < 3:
            there = (
                f"it keeps: {', '.join(kept)}" if kept else f"add `outputs: [KEY]` to step `{name}`: it keeps nothing"
            )
            source.report(path, f"name one key of the output of `{name}`", there)
        elif rest[2] not in kept:
            source.report(
                path,
                f"step `{name}` does not keep `{rest[2]}` of its output",
                f"`steps.{name}.output.{ITEMS}` is a list of what it keeps for each item"
                if kept == [ITEMS]
                else suggestion(rest[2], kept)
                if kept
                else f"add `outputs: [{rest[2]}]` to step `{name}`",
            )


def _literal(source: Source, base: Path, step: Mapping[str, Any], actions: ActionCatalog) -> None:
    """Report the expressions in parameters that take none."""
    name, given = step.get("action"), _map(step.get("with"))
    model = actions.params_of(name) if isinstance(name, str) else None
    for parameter in sorted(getattr(model, "literal", frozenset()) & given.keys()):
        for path, _, _ in _expressions(source, given[parameter], (*base, "with", parameter)):
            source.report(path, f"`{parameter}` of {name} takes no expression", "write it out in the file")


def _expressions(source: Source, value: Any, path: Path) -> Iterator[tuple[Path, Expression, Use]]:
    if isinstance(value, str) and "${{" in value:
        try:
            template = parse_template(value)
        except InvalidExpression as error:
            source.report(path, error.message, error.hint or "")
            return
        for expression in template.expressions:
            yield path, expression, Use.TEXT if template.whole is None else Use.VALUE
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _expressions(source, item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _expressions(source, item, (*path, index))


def _of_grants(source: Source, grants: Any, path: Path) -> Iterator[tuple[Path, Expression, Use]]:
    """Those of row limits, and of what else is bound when a grant is issued."""
    for name, grant in _map(grants).items():
        for member in BOUND:
            yield from _expressions(source, _map(grant).get(member), (*path, name, member))
        privileges = _map(grant).get("privileges")
        for index, privilege in enumerate(privileges if isinstance(privileges, list) else []):
            yield from _expressions(source, _map(privilege).get("where"), (*path, name, "privileges", index, "where"))


def _references(source: Source, path: Path, expression: Expression) -> list[tuple[str, ...]]:
    try:
        return sorted(reference.path for reference in references(expression.cel))
    except InvalidExpression as error:
        source.report(path, error.message, error.hint or "")
        return []


def _misplaced(source: Source, value: Any, path: Path, *, allowed: bool) -> None:
    """Expressions belong into `with`, `if`, `context`, and what is bound of grants only."""
    in_step = path[2:] if path[:1] in (("steps",), ("tools",)) else ()
    here = allowed or path[:1] == ("context",) or in_step[:1] in (("with",), ("if",), ("for_each",))
    here = here or (in_step[:1] == ("grants",) and (in_step[4:5] == ("where",) or in_step[2:3] in _BOUND))
    if isinstance(value, str) and "${{" in value and not here:
        source.report(
            path,
            "an expression has no effect here",
            "expressions belong into `with`, `if`, `for_each`, `context`, `where`, `details` and the like",
        )
    elif isinstance(value, dict):
        for key, item in value.items():
            _misplaced(source, item, (*path, key), allowed=here)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _misplaced(source, item, (*path, index), allowed=here)


def _cycles(source: Source, steps: Mapping[str, Any]) -> None:
    from orchestrator.workflow.dependencies import find_cycle, raw_dependencies

    cycle = find_cycle(raw_dependencies(steps))
    if cycle:
        shown = " -> ".join(cycle)
        source.report(("steps", cycle[0]), f"the steps wait for each other: {shown}", "take one of them out", key=True)


def _map(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}

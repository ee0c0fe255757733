"""Which SQL a step runs, and under which of its grants. Pure; nothing here looks into the SQL."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from orchestrator.errors import InvalidExpression
from orchestrator.grants.models import DatabaseGrant
from orchestrator.inference.parameters import Later
from orchestrator.workflow.cel.template import parse_template
from orchestrator.workflow.models.steps import Step
from orchestrator.workflow.models.workflow import Workflow

ACTIONS = ("postgres.query", "postgres.execute")
"""The actions that run SQL which is written in the workflow."""


@dataclass(frozen=True, slots=True)
class StepSql:
    """The SQL of a step. `text` is None where an expression makes it, so that only the run knows it.

    `placeholders` says whether psycopg's are in it: without parameters, psycopg takes `%` as an operator.
    """

    text: str | None
    placeholders: bool
    values: object = field(default=None, compare=False)
    """Those of the placeholders, with `Later` for what only the run knows."""


def declared_types(workflow: Workflow, name: str) -> dict[str, str]:
    """The types that are declared of what the expressions of a part may name, such as `inputs.customer`."""
    found: dict[str, str] = {f"inputs.{each}": declared.type for each, declared in workflow.inputs.items()}
    if name in workflow.tools:
        found |= {f"call.{each}": declared.type for each, declared in workflow.tools[name].call.items()}
    return found


def sql_of(step: Step, declared: Mapping[str, str] | None = None) -> StepSql | None:
    """The SQL, or None for a step whose action runs none that is written in the workflow.

    `declared` are the types of what expressions may name.
    """
    if step.action not in ACTIONS:
        return None
    text = step.with_.get("sql")
    known = isinstance(text, str) and "${{" not in text
    has_parameters = step.with_.get("parameters") is not None or step.with_.get("each") is not None
    return StepSql(text if known else None, has_parameters, _values(step, declared or {}))


def _values(step: Step, declared: Mapping[str, str]) -> object:
    parameters, each = step.with_.get("parameters"), step.with_.get("each")
    shared = _known(parameters, declared)
    if each is None or not isinstance(shared, Mapping | None):
        return shared
    items = _known(each, declared)
    if not isinstance(items, list) or not all(isinstance(item, Mapping) for item in items):
        return shared  # what is not in it may be of any type
    names = {name for item in items for name in item}
    return {**(shared or {}), **{name: _common([item.get(name, Later()) for item in items]) for name in names}}


def _known(value: object, declared: Mapping[str, str]) -> object:
    """The value with `Later` in the place of its expressions."""
    match value:
        case str() if "${{" in value:
            return _later(value, declared)
        case dict():
            return {name: _known(each, declared) for name, each in value.items()}
        case list():
            return [_known(each, declared) for each in value]
        case _:
            return value


def _later(text: str, declared: Mapping[str, str]) -> Later:
    """A text with something else around the expression stays one; an expression alone may be anything."""
    try:
        whole = parse_template(text).whole
    except InvalidExpression:
        return Later()
    return Later("string") if whole is None else Later(declared.get(whole.cel, ""))


def _common(values: list[object]) -> object:
    """What is known of a value that is another one each time."""
    kinds = {type(value) for value in values}
    if kinds == {int} or kinds == {int, float}:
        return max(values, key=lambda value: (isinstance(value, float), abs(value)))  # type: ignore[arg-type]  # numbers
    return values[0] if len(kinds) == 1 and kinds <= {str, bool, dict} else Later()


def database_grants(step: Step) -> dict[str, DatabaseGrant]:
    """The grants that the SQL may run under: the one that `with.grant` names, else all database grants."""
    found = {name: grant for name, grant in step.grants.items() if isinstance(grant, DatabaseGrant)}
    wanted = step.with_.get("grant")
    if isinstance(wanted, str) and "${{" not in wanted:
        return {name: grant for name, grant in found.items() if name == wanted}
    return found

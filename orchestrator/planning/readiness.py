"""What a workflow needs before its first step can run: a login for its SQL, and the endpoints that it names.

A later step that lacks one of them would fail after earlier ones have written. Pure: settings are passed in.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from orchestrator.environment import how_to_set
from orchestrator.errors import InvalidExpression
from orchestrator.grants.models import DatabaseGrant
from orchestrator.grants.privileges import bound_limits
from orchestrator.inference.steps import ACTIONS, database_grants
from orchestrator.planning.graph import dependencies, execution_order
from orchestrator.workflow.cel.template import asked_for, parse_template, references
from orchestrator.workflow.expressions import condition_of, holds
from orchestrator.workflow.loader import LoadedWorkflow
from orchestrator.workflow.models.steps import Step
from orchestrator.workflow.parameters import ActionCatalog
from orchestrator.workflow.problems import Problem, suggestion

Place = tuple[str | int, ...]


def login_is_clear(loaded: LoadedWorkflow) -> Iterator[Problem]:
    """Each step that runs SQL without a database grant, or with several and no word which one to use."""
    for step_id, step in loaded.workflow.parts.items():
        yield from _unclear_login(loaded, step_id, step)


Never = Callable[[str], bool]
"""Of the condition of an `if`: whether it cannot hold."""


def any_may_run(condition: str) -> bool:
    """As if every condition could hold; nothing is evaluated."""
    return False


def none_for_certain(condition: str) -> bool:
    """As if no condition held: what is left runs whatever they come to; nothing is evaluated."""
    return True


def certainly_false(inputs: Mapping[str, Any], endpoints: Mapping[str, str]) -> Never:
    """Whether a condition is false by what is known before the run: the inputs, and the names of endpoints."""

    def is_false(condition: str) -> bool:
        try:
            cel = condition_of(condition)
            if {each.path[0] for each in references(cel)} - {"inputs", "endpoints"}:
                return False
            return not holds(condition, {"inputs": dict(inputs), "endpoints": dict(endpoints)})
        except InvalidExpression:
            return False

    return is_false


def lacking(
    loaded: LoadedWorkflow,
    endpoints: Mapping[str, str],
    *,
    never: Never,
    ended: Collection[str] = (),
    destinations: Collection[str] | None = None,
) -> list[Problem]:
    """What a run of the workflow would lack: a login for its SQL, and endpoints that the settings do not have.

    Also those who are to be told of its end and whom the settings do not know, where their `destinations` are given.

    Steps that will not run are left out: those that have `ended`, those whose `if` is `never` true, and what waits for
    these. An endpoint that an expression asks for with `has(...)` may be missing.
    """
    unknown = [] if destinations is None else list(_unknown(loaded, destinations))
    lacks = [(step_id, problem) for step_id, problem in _lacks(loaded, endpoints) if step_id not in ended]
    if not lacks:
        return unknown
    skipped = _skipped(loaded, never)
    return sorted([*unknown, *(problem for step_id, problem in lacks if step_id not in skipped)])


def _unknown(loaded: LoadedWorkflow, destinations: Collection[str]) -> Iterator[Problem]:
    for index, each in enumerate(loaded.workflow.notify):
        if each.to not in destinations:
            yield loaded.problem(
                ("notify", index, "to"),
                f"the settings know no destination `{each.to}`",
                how_to_set("notify", each.to, "to the URL of a webhook"),
            )


def _lacks(loaded: LoadedWorkflow, endpoints: Mapping[str, str]) -> Iterator[tuple[str, Problem]]:
    for step_id, step in loaded.workflow.parts.items():
        yield from ((step_id, problem) for problem in _unclear_login(loaded, step_id, step))
        told: set[str] = set()
        for name, place in _needed(step, loaded.actions):
            if name not in endpoints and name not in told:
                told.add(name)
                yield step_id, _missing(loaded, step_id, name, place, endpoints)


def _skipped(loaded: LoadedWorkflow, never: Never) -> set[str]:
    """The steps whose `if` is never true, and all that waits for their success."""
    waits = dependencies(loaded.workflow)
    skipped: set[str] = set()
    for step_id in execution_order(waits):
        step = loaded.workflow.parts[step_id]
        held_back = step.when == "on_success" and waits[step_id] & skipped
        if held_back or (step.if_ is not None and never(step.if_)):
            skipped.add(step_id)
    return skipped


def _unclear_login(loaded: LoadedWorkflow, step_id: str, step: Step) -> Iterator[Problem]:
    if step.action not in ACTIONS or step.with_.get("grant") is not None:
        return
    found = sorted(database_grants(step))
    if not found:
        yield loaded.problem(
            loaded.place(step_id, "grants" if step.grants else "action"),
            f"{step.action} needs a grant of kind `database`, and the step has none",
            "declare it under `grants`: `db: { kind: database, connection: NAME, privileges: [...] }`; "
            "`orchestrator grants infer --connection NAME --write` finds and writes it",
        )
    elif len(found) > 1:
        yield loaded.problem(
            loaded.place(step_id, "with"),
            f"{step.action} uses one database grant, and the step has {len(found)}: {', '.join(found)}",
            f"say which one: `grant: {found[0]}`",
        )


def _missing(loaded: LoadedWorkflow, step_id: str, name: str, place: Place, endpoints: Mapping[str, str]) -> Problem:
    near = suggestion(name, endpoints)
    return loaded.problem(
        loaded.place(step_id, *place),
        f"there is no endpoint `{name}`",
        f"{near + ' else ' if near.startswith('did you') else ''}{how_to_set('endpoints', name)}",
    )


def _needed(step: Step, actions: ActionCatalog) -> Iterator[tuple[str, Place]]:
    """The names of endpoints that a step needs, with their places in the step."""
    asked = _asked(step.if_ or "")
    grants = {name: grant.model_dump(by_alias=True, mode="python") for name, grant in step.grants.items()}
    for place, cel in (
        *_expressions(step.with_, ("with",)),
        *_expressions(grants, ("grants",)),
        *([(("if",), _condition(step.if_))] if step.if_ else []),
    ):
        for name in _named(cel) - asked - _asked(cel):
            yield name, place
    connected = database_grants(step) if step.action in ACTIONS else {}
    for name, grant in step.grants.items():
        if isinstance(grant, DatabaseGrant) and (name in connected or _limits_rows(grant)):
            yield grant.connection, ("grants", name, "connection")
    for parameter in sorted(getattr(actions.params_of(step.action), "endpoints", ())):
        value = step.with_.get(parameter)
        for index, name in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(name, str) and "${{" not in name:
                yield name, ("with", parameter, *((index,) if isinstance(value, list) else ()))


def _limits_rows(grant: DatabaseGrant) -> bool:
    """Whether the orchestrator itself connects to tell the database the values of row limits."""
    return bool(bound_limits(each.privilege() for each in grant.privileges))


def _expressions(value: Any, place: Place) -> Iterator[tuple[Place, str]]:
    if isinstance(value, str) and "${{" in value:
        yield from ((place, each.cel) for each in parse_template(value).expressions)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _expressions(item, (*place, key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _expressions(item, (*place, index))


def _condition(text: str) -> str:
    try:
        return condition_of(text)
    except InvalidExpression:
        return "true"


def _named(cel: str) -> set[str]:
    return {each.path[1] for each in references(cel) if each.path[0] == "endpoints" and len(each.path) > 1}


def _asked(text: str) -> set[str]:
    return {path.partition(".")[2] for path in asked_for(text) if path.startswith("endpoints.")}

"""What is certainly wrong with a step that runs SQL: told before any credential is asked for. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from orchestrator.actions.base import Finding
from orchestrator.grants.sql.columns import repeated_columns
from orchestrator.grants.sql.commands import Why, command_of
from orchestrator.grants.sql.parsing import UnreadableSql, parse
from orchestrator.grants.sql.placeholders import Placeholders, placeholders
from orchestrator.jsontypes import counted

if TYPE_CHECKING:
    from pglast import ast

Unfit = Callable[[Sequence["ast.RawStmt"]], Why | None]
"""Why an action cannot carry these statements out, or None."""

_SQL = ("with", "sql")
NAME_THEM = "a row is a map of column to value: name each of them by AS, or return one of them"


def statement_findings(given: Mapping[str, Any], unfit: Unfit) -> Iterator[Finding]:
    """The statement against what the action can carry out, and its placeholders against the parameters."""
    sql = given.get("sql")
    if not isinstance(sql, str) or "${{" in sql:
        return
    if bound(given):
        wrong = list(against_parameters(sql, given.get("parameters"), given.get("each")))
        yield from wrong
        if wrong:
            return
    elif _only_with_placeholders(sql):
        yield _SQL, "the SQL has placeholders, and the step gives no `parameters`", "add `parameters: { NAME: VALUE }`"
        return
    statements = parsed(given)
    if statements is None:
        return
    if (why := unfit(statements)) is not None:
        yield _SQL, *why
    elif names := repeated_columns(statements[0]):
        yield _SQL, several_named(names), NAME_THEM


def several_named(names: Iterable[str]) -> str:
    """That columns have these names more than once, so that a row cannot be a map of column to value."""
    return f"the statement returns several columns named {', '.join(f'`{name}`' for name in names)}"


def returns_rows(given: Mapping[str, Any]) -> bool | None:
    """Whether the statement of a step gives rows; None where that is not known before it is carried out."""
    statements = parsed(given)
    return command_of(statements[0]).returns if statements else None


def bound(given: Mapping[str, Any]) -> bool:
    """Whether parameters are bound, so that a percent sign stands for one."""
    return given.get("parameters") is not None or given.get("each") is not None


def parsed(given: Mapping[str, Any]) -> Sequence[ast.RawStmt] | None:
    """The statements of a step, or None where an expression makes them or the parser refuses them."""
    sql = given.get("sql")
    if not isinstance(sql, str) or "${{" in sql:
        return None
    try:
        return parse(sql, placeholders=bound(given))
    except UnreadableSql:
        return None


def _only_with_placeholders(sql: str) -> bool:
    found = placeholders(sql)
    if not (found.names or found.count):
        return False
    try:
        parse(sql, placeholders=False)
    except UnreadableSql:
        pass
    else:
        return False
    try:
        parse(sql, placeholders=True)
    except UnreadableSql:
        return False
    return True


def against_parameters(sql: str, parameters: Any, each: Any = None) -> Iterator[Finding]:
    """What psycopg refuses of a statement with these parameters; what an expression gives may be anything."""
    found = placeholders(sql)
    if found.wrong:
        hint = "where there are parameters, a percent sign is written `%%`, and a name has one format"
        yield _SQL, f"`{found.wrong.strip()}` is no placeholder here", hint
    elif found.names and found.count:
        yield _SQL, "placeholders have names (`%(name)s`) or places (`%s`), not both", "give all of them names"
    elif isinstance(parameters, list):
        yield from _by_position(found, parameters)
    elif found.count and (isinstance(parameters, dict) or each is not None):
        yield _SQL, "`%s` takes a parameter by its place, and they are given by name", "write `%(name)s`"
    elif isinstance(parameters, dict | None):
        yield from _by_name(found, parameters or {}, each)


def _by_position(found: Placeholders, parameters: list[Any]) -> Iterator[Finding]:
    if found.names:
        yield (
            _SQL,
            f"`%({min(found.names)})s` takes a parameter by its name, and they are a list",
            "write `parameters: { NAME: VALUE }`, or `%s` for each of them",
        )
    elif found.count != len(parameters):
        yield (
            ("with", "parameters"),
            f"the SQL has {counted(found.count, 'placeholder')} (`%s`), and {counted(len(parameters), 'parameter')}",
            "give one for each, in their order",
        )


def _by_name(found: Placeholders, shared: Mapping[str, Any], each: Any) -> Iterator[Finding]:
    if each is None:
        if missing := sorted(found.names - shared.keys()):
            yield _SQL, f"the SQL has `%({missing[0]})s`, and `parameters` has no `{missing[0]}`", _have(shared)
        return
    for index, item in enumerate(each if isinstance(each, list) else ()):
        if isinstance(item, dict) and (missing := sorted(found.names - shared.keys() - item.keys())):
            yield (
                ("with", "each", index),
                f"the SQL has `%({missing[0]})s`, which neither this object nor `parameters` has",
                _have({**shared, **item}),
            )


def _have(names: Mapping[str, Any]) -> str:
    return f"there is: {', '.join(sorted(map(str, names))) or 'nothing'}"

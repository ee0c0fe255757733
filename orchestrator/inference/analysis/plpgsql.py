"""Bodies in PL/pgSQL that only compute: such as the trigger that sets `updated_at`, which needs nothing at all.

A body is that when it has no statement of SQL, and its expressions call nothing but PostgreSQL's own functions on
PostgreSQL's own types. Anything else is not looked into: what a body does with tables is told by no analysis.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from pglast import ast

from orchestrator.grants.sql.parsing import UnreadableSql, check_bounds, parse
from orchestrator.inference.statements import name_parts, walk

_STATEMENTS = frozenset(
    f"PLpgSQL_stmt_{each}"
    for each in "block if assign raise return case loop while fori foreach_a exit assert".split()  # noqa: SIM905
)
_ASSIGNMENT = re.compile(r'\s*[\w.$"]+\s*:?=(?!=)', re.ASCII)
_NESTING = re.compile(r"\b(?:begin|if|loop|case)\b", re.IGNORECASE)
_MAX_NESTED = 200
"""Words that may open a block: the parser of PL/pgSQL is native code, too, and goes into each of them."""

_ASSIGNING = (3, 4, 5)
"""`parseMode` of an expression that is an assignment (`parser/parser.h`, `RAW_PARSE_PLPGSQL_ASSIGN1` and so on)."""

_ROWS = ("new", "old")


@dataclass(slots=True)
class Computation:
    """What is used: the names of functions and operators, of types, and of columns of the row (None: all of them)."""

    functions: set[str] = field(default_factory=set)
    operators: set[str] = field(default_factory=set)
    types: set[str] = field(default_factory=set)
    columns: set[str] | None = field(default_factory=set)

    def whole_row(self) -> None:
        """The row itself is used."""
        self.columns = None

    def column(self, name: str) -> None:
        """One column of the row is used."""
        if self.columns is not None:
            self.columns.add(name)


def computation(definition: str, body: str) -> Computation | None:
    """What a function computes with, by its CREATE FUNCTION and the body in it; None where it may do something else."""
    from pglast.error import Error
    from pglast.parser import parse_plpgsql_json

    if len(_NESTING.findall(body)) > _MAX_NESTED:
        return None
    try:
        check_bounds(body)
        parsed = json.loads(parse_plpgsql_json(definition))
        found = Computation()
        return found if all(_only_computes(each, found) for each in _nodes(parsed)) else None
    except (Error, UnreadableSql, ValueError, RecursionError):
        return None


def _nodes(parsed: object) -> Iterator[tuple[str, Any]]:
    pending = [parsed]
    while pending:
        each = pending.pop()
        if isinstance(each, list):
            pending.extend(each)
        elif isinstance(each, dict):
            yield from each.items()
            pending.extend(each.values())


def _only_computes(node: tuple[str, Any], found: Computation) -> bool:
    kind, value = node
    if kind.startswith("PLpgSQL_stmt_"):
        return kind in _STATEMENTS
    if kind == "PLpgSQL_type":
        name = str(value.get("typname", ""))
        found.types.add(name.removeprefix("pg_catalog."))
        return "%" not in name
    if kind == "PLpgSQL_recfield":
        found.column(str(value.get("fieldname", "")).lower())
        return True
    if kind == "PLpgSQL_expr":
        return _expression(value, found)
    return True


def _expression(value: dict[str, Any], found: Computation) -> bool:
    text = str(value.get("query", ""))
    if value.get("parseMode") in _ASSIGNING:
        match = _ASSIGNMENT.match(text)
        if match is None:  # such as one of an element
            return False
        text = text[match.end() :]
    (raw,) = parse(f"SELECT {text}")
    assert isinstance(raw.stmt, ast.SelectStmt)
    return all(_harmless(node, found) for node in walk(raw.stmt))


def _harmless(node: ast.Node, found: Computation) -> bool:
    match node:
        case ast.RangeVar() | ast.SubLink() | ast.CollateClause():
            return False
        case ast.FuncCall():
            return _takes(node.funcname, found.functions)
        case ast.A_Expr():
            return _takes(node.name, found.operators)
        case ast.TypeName():
            return _takes(node.names, found.types)
        case ast.ColumnRef():
            _column(node, found)
    return True


def _takes(name: object, into: set[str]) -> bool:
    """A name without a schema, or of PostgreSQL's own."""
    parts = name_parts(name)
    if parts:
        into.add(parts[-1])
    return len(parts) < 2 or parts[-2] == "pg_catalog"


def _column(node: ast.ColumnRef, found: Computation) -> None:
    fields = node.fields or ()
    parts = [str(part.sval) for part in fields if isinstance(part, ast.String)]
    if not parts or parts[0] not in _ROWS:
        return
    if len(parts) == 1:
        found.whole_row()
    else:
        found.column(parts[1])

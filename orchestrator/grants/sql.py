"""What a SQL statement does, by PostgreSQL's own parser. Pure; used for what policies see and for minimal grants."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pglast import ast

UNKNOWN = frozenset({"unknown"})

_PLACEHOLDER = re.compile(r"%%|%\(([^)]*)\)[sbt]|%[sbt]")

_VERBS = {
    "SelectStmt": "select",
    "InsertStmt": "insert",
    "UpdateStmt": "update",
    "DeleteStmt": "delete",
    "MergeStmt": "merge",
    "CopyStmt": "copy",
    "CallStmt": "call",
    "DoStmt": "call",
    "ExecuteStmt": "call",
    "TruncateStmt": "truncate",
    "VariableSetStmt": "set",
    "VariableShowStmt": "show",
    "ExplainStmt": "explain",
    "LockStmt": "lock",
    "TransactionStmt": "transaction",
    "PrepareStmt": "other",
    "DeclareCursorStmt": "other",
    "NotifyStmt": "other",
    "ListenStmt": "other",
    "UnlistenStmt": "other",
    "DiscardStmt": "other",
    "CheckPointStmt": "other",
    "FetchStmt": "other",
    "ClosePortalStmt": "other",
    "DeallocateStmt": "other",
    "ConstraintsSetStmt": "set",
}


def with_parameters(sql: str) -> str:
    """The statement with psycopg's placeholders (`%(name)s`, `%s`) as `$1`, `$2`..., and `%%` as `%`.

    A name that occurs twice is the same parameter, as psycopg does it.
    """
    numbers: dict[str, int] = {}

    def parameter(match: re.Match[str]) -> str:
        if match.group() == "%%":
            return "%"
        name = match.group(1) if match.group(1) is not None else f"#{len(numbers)}"
        return f"${numbers.setdefault(name, len(numbers) + 1)}"

    return _PLACEHOLDER.sub(parameter, sql)


def statement_verbs(sql: str, *, placeholders: bool = True) -> frozenset[str]:
    """The verbs of all statements in the text, those inside WITH and EXPLAIN included.

    `select`, `insert`, `update`, `delete`, `merge`, `copy`, `call`, `truncate`, `lock`, `set`, `show`, `explain`,
    `transaction`, `ddl` or `other`; only `unknown` when PostgreSQL's parser refuses it. A function that a
    SELECT calls may do more than SELECT: what the database role may do is decided by its privileges alone.

    `placeholders=False` takes `%` as an operator, as psycopg does without parameters.
    """
    from pglast import parse_sql
    from pglast.parser import ParseError

    if "\0" in sql:  # the parser would stop reading there
        return UNKNOWN
    try:
        statements = parse_sql(with_parameters(sql) if placeholders else sql)
    except (ParseError, ValueError, RecursionError):
        return UNKNOWN
    found: set[str] = set()
    for statement in statements:
        if statement.stmt is not None:
            found |= _verbs_in(statement.stmt)
    return frozenset(found) or UNKNOWN


def _verbs_in(root: ast.Node) -> set[str]:
    from pglast import ast

    found = {_verb(root)}
    pending: list[object] = [root]
    while pending:
        node = pending.pop()
        if isinstance(node, tuple | list):
            pending.extend(node)
        elif isinstance(node, ast.Node):
            if isinstance(node, ast.SelectStmt | ast.InsertStmt | ast.UpdateStmt | ast.DeleteStmt | ast.MergeStmt):
                if not _is_values_of_insert(node):
                    found.add(_verb(node))
                if isinstance(node, ast.SelectStmt) and node.intoClause is not None:
                    found.add("ddl")
            pending.extend(getattr(node, name) for name in node)
    return found


def _is_values_of_insert(node: ast.Node) -> bool:
    """Whether it is a bare VALUES list, which the parser also calls a SelectStmt but which reads nothing itself."""
    return bool(getattr(node, "valuesLists", None))


def _verb(node: ast.Node) -> str:
    name = type(node).__name__
    return _VERBS.get(name, "ddl")

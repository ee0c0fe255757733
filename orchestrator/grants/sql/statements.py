"""What a SQL statement does, by PostgreSQL's own parser. Pure; used for what policies see and for minimal grants."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.grants.sql.parsing import UnreadableSql, parse

if TYPE_CHECKING:
    from pglast import ast

UNKNOWN = frozenset({"unknown"})

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


def statement_verbs(sql: str, *, placeholders: bool = True) -> frozenset[str]:
    """The verbs of all statements in the text, those inside WITH and EXPLAIN included.

    `select`, `insert`, `update`, `delete`, `merge`, `copy`, `call`, `truncate`, `lock`, `set`, `show`, `explain`,
    `transaction`, `ddl` or `other`; only `unknown` when PostgreSQL's parser refuses it, or the
    text is too large for it. A function that a
    SELECT calls may do more than SELECT: what the database role may do is decided by its privileges alone.

    `placeholders=False` takes `%` as an operator, as psycopg does without parameters.
    """
    try:
        statements = parse(sql, placeholders=placeholders)
    except UnreadableSql:
        return UNKNOWN
    found: set[str] = set()
    for statement in statements:
        if statement.stmt is not None:
            found |= verbs_in(statement.stmt)
    return frozenset(found) or UNKNOWN


def verbs_in(root: ast.Node) -> set[str]:
    """The verbs of a statement and of those inside it."""
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

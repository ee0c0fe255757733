"""Which commands of SQL an action can carry out, by PostgreSQL's own parser. Pure; what is said is certain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.grants.sql.statements import verbs_in

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pglast import ast

Why = tuple[str, str]
"""What is wrong with a statement, and what to do."""

_WRITING = frozenset(("insert", "update", "delete", "merge"))
_NAMES = {"VariableShowStmt": "SHOW", "VariableSetStmt": "SET", "CreateTableAsStmt": "CREATE TABLE AS"}
_OUTSIDE = frozenset(
    ("CreatedbStmt", "DropdbStmt", "AlterSystemStmt", "CreateTableSpaceStmt", "DropTableSpaceStmt", "VacuumStmt")
)
"""Commands that the server refuses inside of a transaction (PostgreSQL manual, part VI), as the parser calls them."""

_RETURNING = frozenset(("SelectStmt", "ExplainStmt", "VariableShowStmt", "FetchStmt"))
_MAY_RETURN = frozenset(("CallStmt", "ExecuteStmt"))

_EXECUTE = "`postgres.execute` carries it out, and gives the `rows` that it returns"
_ONE = "let each statement be a step, or put them into one by WITH"


@dataclass(frozen=True, slots=True)
class Command:
    """One statement: `name` is the word that it begins with, `returns` whether rows come back (None: it depends)."""

    name: str
    returns: bool | None


def command_of(statement: ast.RawStmt) -> Command:
    """What is known of a statement."""
    node = statement.stmt
    kind = type(node).__name__
    name = _NAMES.get(kind) or kind.removesuffix("Stmt").upper()
    if kind in _MAY_RETURN:
        return Command(name, None)
    if kind in _RETURNING:
        return Command(name, getattr(node, "intoClause", None) is None)
    return Command(name, getattr(node, "returningClause", None) is not None)


def unfit_to_query(statements: Sequence[ast.RawStmt]) -> Why | None:
    """Why a cursor in a transaction that only reads cannot carry it out; None where nothing is certain."""
    if why := _not_one(statements):
        return why
    if why := _never(statements[0]):
        return why
    command, node = command_of(statements[0]), statements[0].stmt
    if node is None or type(node).__name__ != "SelectStmt":
        if command.name == "SHOW":
            return "`postgres.query` reads by SELECT, and this is SHOW", "write `SELECT current_setting('NAME')`"
        return f"`postgres.query` reads by SELECT, and this is {command.name}", _EXECUTE
    verbs = verbs_in(node)
    if writing := sorted(verbs & _WRITING):
        return f"`postgres.query` only reads, and the statement has {writing[0].upper()} in it", _EXECUTE
    if "ddl" in verbs:
        return "`postgres.query` only reads, and SELECT INTO makes a table", "leave INTO out"
    return None


def unfit_to_execute(statements: Sequence[ast.RawStmt]) -> Why | None:
    """Why it cannot be carried out as one statement in a transaction; None where nothing is certain."""
    return _not_one(statements) or _never(statements[0])


def _not_one(statements: Sequence[ast.RawStmt]) -> Why | None:
    if not statements:
        return "there is no statement in it", "write one"
    if len(statements) > 1:
        return f"a step carries out one statement, and these are {len(statements)}", _ONE
    return None


def _never(statement: ast.RawStmt) -> Why | None:
    node = statement.stmt
    kind = type(node).__name__
    if kind == "TransactionStmt":
        return (
            "each step has a transaction of its own, so that no statement begins or ends one",
            "leave it out: the step is committed when it succeeds, and rolled back when it fails",
        )
    if kind == "CopyStmt":
        return "no action carries out COPY", "select the rows, insert them with `each`, or let a program do it (`exec`)"
    analyses = kind == "VacuumStmt" and not getattr(node, "is_vacuumcmd", True)
    concurrent = kind in ("IndexStmt", "DropStmt") and getattr(node, "concurrent", False)
    if (kind in _OUTSIDE and not analyses) or concurrent:
        return "the server refuses it inside of a transaction, and each step has one", "let a program do it (`exec`)"
    return None

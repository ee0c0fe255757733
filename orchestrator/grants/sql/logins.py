"""Which logins statements make and drop, by PostgreSQL's own parser: comments and neighbours hide nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.grants.sql.parsing import parse

if TYPE_CHECKING:
    from pglast import ast

SCHEMA = "orchestrator"
DROPPING = frozenset(("remove", "revoke", "revoke_or_disable"))
"""The functions of `orchestrator.provision.database.revocation` that are given one login to drop."""


@dataclass(frozen=True, slots=True)
class LoginChanges:
    """Names of roles, of whatever kind, in the order of the statements."""

    created: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    given_to_drop: tuple[str, ...] = ()
    """Those that a function of ours is called with to drop them."""


def login_changes(sql: str) -> LoginChanges:
    """What a text of statements does to roles. Raises UnreadableSql, which may quote the text."""
    created: list[str] = []
    dropped: list[str] = []
    given: list[str] = []
    for raw in parse(sql):
        created += _created(raw.stmt)
        dropped += _dropped(raw.stmt)
        given += _given_to_drop(raw.stmt)
    return LoginChanges(tuple(created), tuple(dropped), tuple(given))


def _created(statement: ast.Node | None) -> Iterator[str]:
    from pglast import ast, enums

    if isinstance(statement, ast.CreateRoleStmt):
        yield str(statement.role)
    elif isinstance(statement, ast.RenameStmt) and statement.renameType == enums.ObjectType.OBJECT_ROLE:
        yield str(statement.newname)


def _dropped(statement: ast.Node | None) -> Iterator[str]:
    from pglast import ast, enums

    if isinstance(statement, ast.DropRoleStmt):
        yield from (str(role.rolename) for role in statement.roles or () if role.rolename)
    elif isinstance(statement, ast.RenameStmt) and statement.renameType == enums.ObjectType.OBJECT_ROLE:
        yield str(statement.subname)


def _given_to_drop(statement: ast.Node | None) -> Iterator[str]:
    """The login in `SELECT orchestrator.revoke('...')`, as Vault's revocation statements have it."""
    from pglast import ast

    if isinstance(statement, ast.SelectStmt):
        for target in statement.targetList or ():
            yield from _argument(target.val)


def _argument(value: ast.Node | None) -> Iterator[str]:
    from pglast import ast

    if not isinstance(value, ast.FuncCall):
        return
    name = [str(part.sval) for part in value.funcname or ()]
    if name[:-1] != [SCHEMA] or name[-1] not in DROPPING:
        return
    for argument in value.args or ():
        if isinstance(argument, ast.A_Const) and isinstance(argument.val, ast.String):
            yield str(argument.val.sval)

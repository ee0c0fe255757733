"""Splitting a step's SQL into statements whose privileges can be asked for, and those of which nothing is known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pglast import ast
from pglast.enums.parsenodes import TransactionStmtKind

from orchestrator.grants.sql.parsing import deparse, parse

_NOTHING = (
    ast.TransactionStmt,
    ast.VariableSetStmt,
    ast.VariableShowStmt,
    ast.DeallocateStmt,
    ast.FetchStmt,
    ast.ClosePortalStmt,
    ast.ExecuteStmt,
    ast.DiscardStmt,
    ast.ConstraintsSetStmt,
    ast.NotifyStmt,
    ast.ListenStmt,
    ast.UnlistenStmt,
)
"""Statements that need no privilege on any object."""

_ANALYSED = (ast.SelectStmt, ast.InsertStmt, ast.UpdateStmt, ast.DeleteStmt, ast.MergeStmt)


@dataclass(frozen=True, slots=True)
class Analysed:
    """A statement that PostgreSQL can be asked about with PREPARE. `parameters` is how many `$n` it has."""

    sql: str
    parameters: int


@dataclass(frozen=True, slots=True)
class Copied:
    """COPY of a table: `columns` are those that are named, none for all."""

    schema: str | None
    table: str
    columns: tuple[str, ...]
    into: bool


@dataclass(frozen=True, slots=True)
class Called:
    """CALL of a procedure, as the SELECT of a function with the same arguments."""

    name: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Dynamic:
    """A statement whose needs cannot be told; `why` is for people."""

    why: str


Part = Analysed | Copied | Called | Dynamic


def split(sql: str, *, placeholders: bool = True) -> list[Part]:
    """The parts of a text. `placeholders` are psycopg's. Raises UnreadableSql for what PostgreSQL cannot parse."""
    parsed = parse(sql, placeholders=placeholders)
    return [part for raw in parsed for part in _parts(raw.stmt)]


def _parts(node: ast.Node | None) -> Iterator[Part]:
    if node is None:
        return
    if isinstance(node, _ANALYSED):
        if isinstance(node, ast.SelectStmt) and node.intoClause is not None:
            yield Dynamic("SELECT INTO creates a table, which no grant allows")
            return
        _drop_unused(node)
        yield Analysed(deparse(node), highest_parameter(node))
    elif isinstance(node, ast.ExplainStmt | ast.PrepareStmt | ast.DeclareCursorStmt):
        yield from _parts(node.query)
    elif isinstance(node, ast.CopyStmt):
        yield from _copy(node)
    elif isinstance(node, ast.CallStmt):
        call = node.funccall
        assert call is not None
        yield Called(tuple(part.sval for part in call.funcname or ()))
        for argument in call.args or ():
            yield Analysed("SELECT " + deparse(argument), highest_parameter(argument))
    elif isinstance(node, ast.DoStmt):
        yield Dynamic("DO runs code that is not looked into: declare what it needs")
    elif isinstance(node, ast.LockStmt | ast.TruncateStmt):
        yield Dynamic(f"{type(node).__name__.removesuffix('Stmt').upper()} needs a privilege that no grant can declare")
    elif isinstance(node, ast.TransactionStmt) and node.kind is TransactionStmtKind.TRANS_STMT_PREPARE:
        yield Dynamic("a prepared transaction outlives its session, and so its credential")
    elif not isinstance(node, _NOTHING):
        yield Dynamic(f"{type(node).__name__.removesuffix('Stmt')} is not a statement that a grant can allow")


def _drop_unused(root: ast.Node) -> None:
    """Take out SELECTs in WITH that nothing refers to: PostgreSQL does not carry them out, nor check them."""
    for node in list(walk(root)):
        clause = getattr(node, "withClause", None)
        if not isinstance(clause, ast.WithClause):
            continue
        named = Counter(each.relname for each in walk(root) if isinstance(each, ast.RangeVar))
        kept = tuple(
            each for each in clause.ctes or () if named[each.ctename] or not isinstance(each.ctequery, ast.SelectStmt)
        )
        node.withClause = ast.WithClause(ctes=kept, recursive=clause.recursive) if kept else None


def _copy(node: ast.CopyStmt) -> Iterator[Part]:
    if node.is_program or node.filename is not None:
        yield Dynamic("COPY with a file or a program of the server is not for a step")
    elif node.query is not None:
        yield from _parts(node.query)
    elif node.relation is not None and node.relation.relname is not None:
        columns = tuple(column.sval for column in node.attlist or ())
        yield Copied(node.relation.schemaname, node.relation.relname, columns, into=bool(node.is_from))


def highest_parameter(root: object) -> int:
    """The highest n of the `$n` in a tree."""
    return max((each.number or 0 for each in walk(root) if isinstance(each, ast.ParamRef)), default=0)


def walk(root: object) -> Iterator[ast.Node]:
    """Every node of a tree, in no particular order."""
    pending: list[object] = [root]
    while pending:
        node = pending.pop()
        if isinstance(node, tuple | list):
            pending.extend(node)
        elif isinstance(node, ast.Node):
            yield node
            pending.extend(getattr(node, name) for name in node)


def without_parameters(sql: str) -> str:
    """The statement with NULL for every `$n`: what it needs is the same, and NULL fits any type."""
    (raw,) = parse(sql)
    assert raw.stmt is not None
    replace_nodes(raw.stmt, lambda node: ast.A_Const(isnull=True) if isinstance(node, ast.ParamRef) else node)
    return deparse(raw.stmt)


def replace_nodes(root: ast.Node, by: Callable[[object], object]) -> None:
    """Put something else in the place of nodes below the root."""
    for node in list(walk(root)):
        for name in node:
            value = getattr(node, name)
            if isinstance(value, tuple):
                setattr(node, name, tuple(by(each) for each in value))
            elif isinstance(value, ast.Node):
                setattr(node, name, by(value))

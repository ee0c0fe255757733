"""Splitting a step's SQL into statements whose privileges can be asked for, and those of which nothing is known."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from pglast import ast
from pglast.enums.parsenodes import TransactionStmtKind

from orchestrator.grants.sql.parsing import deparse, parse, with_parameters

_NOTHING = (
    ast.TransactionStmt,
    ast.VariableShowStmt,
    ast.DeallocateStmt,
    ast.FetchStmt,
    ast.ClosePortalStmt,
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
    node: ast.Node | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Copied:
    """COPY of a table: `columns` are those that are named, none for all; `where` is what COPY FROM keeps."""

    schema: str | None
    table: str
    columns: tuple[str, ...]
    into: bool
    where: str = ""


@dataclass(frozen=True, slots=True)
class Called:
    """CALL of a procedure: what is given by place, and what by name."""

    name: tuple[str, ...]
    placed: int
    named: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Dynamic:
    """A statement whose needs cannot be told; `why` is for people."""

    why: str


@dataclass(frozen=True, slots=True)
class Text:
    """One statement of a body: as it is written, and as it is parsed."""

    sql: str
    node: ast.Node


Part = Analysed | Copied | Called | Dynamic


def split(sql: str, *, placeholders: bool = True) -> list[Part]:
    """The parts of a text. `placeholders` are psycopg's. Raises UnreadableSql for what PostgreSQL cannot parse."""
    text = with_parameters(sql) if placeholders else sql
    found: list[Part] = []
    prepared: set[str] = set()
    parsed = parse(text)
    for number, raw in enumerate(parsed, 1):
        node = raw.stmt
        if isinstance(node, ast.PrepareStmt):
            prepared.add(str(node.name))
        if isinstance(node, ast.ExecuteStmt) and str(node.name) in prepared:
            continue
        if isinstance(node, ast.VariableSetStmt):
            if node.name == "search_path" and number < len(parsed):
                found.append(Dynamic("SET search_path changes what the names after it stand for: write their schemas"))
            continue
        found += _parts(node, text_of(text, raw))
    return found


def text_of(text: str, raw: ast.RawStmt) -> str:
    """One statement of a text, as it is written."""
    start = raw.stmt_location or 0
    return text[start : start + raw.stmt_len] if raw.stmt_len else text[start:]


def _parts(node: ast.Node | None, text: str | None = None) -> Iterator[Part]:
    """`text` is the statement as it is written, where it stands by itself."""
    if node is None:
        return
    if isinstance(node, _ANALYSED):
        if isinstance(node, ast.SelectStmt) and node.intoClause is not None:
            yield Dynamic("SELECT INTO creates a table, which no grant allows")
            return
        if text is None and any(len(getattr(each, "lockingClause", None) or ()) > 1 for each in walk(node)):
            yield Dynamic("a query with two locking clauses within another statement is not looked into")
            return
        yield Analysed(deparse(node) if text is None else text, highest_parameter(node), node)
    elif isinstance(node, ast.ExplainStmt | ast.PrepareStmt | ast.DeclareCursorStmt):
        yield from _parts(node.query)
    elif isinstance(node, ast.CopyStmt):
        yield from _copy(node)
    elif isinstance(node, ast.CallStmt):
        yield from _call(node)
    elif isinstance(node, ast.DoStmt):
        yield Dynamic("DO runs code that is not looked into: declare what it needs")
    elif isinstance(node, ast.ExecuteStmt):
        yield Dynamic("EXECUTE carries out what was prepared elsewhere")
    elif isinstance(node, ast.LockStmt | ast.TruncateStmt):
        yield Dynamic(f"{type(node).__name__.removesuffix('Stmt').upper()} needs a privilege that no grant can declare")
    elif isinstance(node, ast.TransactionStmt) and node.kind is TransactionStmtKind.TRANS_STMT_PREPARE:
        yield Dynamic("a prepared transaction outlives its session, and so its credential")
    elif not isinstance(node, _NOTHING):
        yield Dynamic(f"{type(node).__name__.removesuffix('Stmt')} is not a statement that a grant can allow")


def _copy(node: ast.CopyStmt) -> Iterator[Part]:
    if node.is_program or node.filename is not None:
        yield Dynamic("COPY with a file or a program of the server is not for a step")
    elif node.query is not None:
        yield from _parts(node.query)
    elif node.relation is not None and node.relation.relname is not None:
        columns = tuple(column.sval for column in node.attlist or ())
        where = deparse(node.whereClause) if node.whereClause is not None else ""
        yield Copied(node.relation.schemaname, node.relation.relname, columns, bool(node.is_from), where)


def _call(node: ast.CallStmt) -> Iterator[Part]:
    """The procedure, and each of its arguments as a query of its own."""
    call = node.funccall
    assert call is not None
    arguments = call.args or ()
    named = [each for each in arguments if isinstance(each, ast.NamedArgExpr)]
    yield Called(
        tuple(part.sval for part in call.funcname or ()),
        len(arguments) - len(named),
        tuple(str(each.name) for each in named),
    )
    for each in arguments:
        value = each.arg if isinstance(each, ast.NamedArgExpr) else each
        assert value is not None
        yield Analysed("SELECT " + deparse(value), highest_parameter(value), value)


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


def name_parts(name: object) -> list[str]:
    """The parts of a name in a tree of the parser, as of a function, a type or an operator."""
    return [str(part.sval) for part in name if isinstance(part, ast.String)] if isinstance(name, tuple | list) else []


def without_parameters(sql: str, types: Sequence[str] = ()) -> str:
    """The statement with NULL for every `$n`: what it needs is the same, and NULL fits any type.

    Where a type is known, the NULL is of it: which function or operator is meant depends on it.
    """
    from pglast.parser import scan

    for token in reversed(scan(sql)):
        if token.name == "PARAM":
            number = int(sql[token.start + 1 : token.end + 1]) - 1
            name = types[number] if 0 <= number < len(types) else UNKNOWN
            null = "NULL" if name == UNKNOWN else f"CAST(NULL AS pg_catalog.{name})"
            sql = sql[: token.start] + null + sql[token.end + 1 :]
    return sql


UNKNOWN = "unknown"
"""The type of a parameter of which the server is to find out what it is."""

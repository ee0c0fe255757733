"""What can be said of a statement's needs without a database: less, but never anything false.

Names without a schema are taken for `public`, which is what a step's session sees. Where a column cannot
be told for certain (a star, several tables, a subquery) only the table is named.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pglast import ast

from orchestrator.grants.privileges import ALL_COLUMNS, TABLE_VERBS, Privilege, Verb
from orchestrator.grants.sql.parsing import UnreadableSql, parse
from orchestrator.inference.statements import Analysed, Copied, split, walk

_SYSTEM = ("pg_catalog", "information_schema")


@dataclass(frozen=True, slots=True)
class Certain:
    """What is needed for certain. An empty `columns` of a verb that has columns: some that are not known.

    `whole` says that nothing else can be needed: no function, no statement that is not understood, no star.
    """

    privileges: tuple[Privilege, ...]
    tables: frozenset[tuple[str, str]]
    whole: bool


def certain(sql: str, *, placeholders: bool = True) -> Certain | None:
    """What the statements in a text need for certain, or None where PostgreSQL's parser refuses it."""
    try:
        parts = split(sql, placeholders=placeholders)
    except UnreadableSql:
        return None
    needs: list[Privilege] = []
    tables: set[tuple[str, str]] = set()
    whole = True
    for part in parts:
        if isinstance(part, Copied):
            name = (part.schema or "public", part.table)
            tables.add(name)
            needs.append(Privilege("insert" if part.into else "select", *name, tuple(sorted(part.columns))))
            whole = whole and bool(part.columns)
        elif isinstance(part, Analysed):
            try:
                (raw,) = parse(part.sql)
            except UnreadableSql:  # written out, a statement is larger than it was
                whole = False
                continue
            assert raw.stmt is not None
            found = _Statement(raw.stmt)
            needs += found.needs()
            tables |= found.tables
            whole = whole and found.whole
        else:
            whole = False
    return Certain(tuple(needs), frozenset(tables), whole)


def missing(declared: Sequence[Privilege], needed: Sequence[Privilege]) -> list[Privilege]:
    """The needed privileges, or the columns of them, that are not declared."""
    held = {privilege.key: privilege for privilege in declared}
    found: list[Privilege] = []
    for need in needed:
        known = held.get(need.key)
        if known is None:
            found.append(need)
        elif known.columns != ALL_COLUMNS and (lacking := sorted(set(need.columns) - set(known.columns))):
            found.append(Privilege(need.verb, need.schema, need.name, tuple(lacking)))
    return found


def superfluous(declared: Sequence[Privilege], statement: Certain) -> list[Privilege]:
    """The declared privileges on tables that the statement names which it certainly does not need."""
    if not statement.whole:
        return []
    declared = [each for each in declared if (each.schema, each.name) in statement.tables and each.verb in TABLE_VERBS]
    needed: dict[tuple[str, str, str], set[str]] = {}
    for need in statement.privileges:
        needed.setdefault(need.key, set()).update(need.columns)
    found: list[Privilege] = []
    for privilege in declared:
        columns = needed.get(privilege.key)
        if columns is None:
            found.append(privilege)
        elif columns and privilege.columns != ALL_COLUMNS and (spare := sorted(set(privilege.columns) - columns)):
            found.append(Privilege(privilege.verb, privilege.schema, privilege.name, tuple(spare)))
    return found


def unnamed(declared: Sequence[Privilege], statement: Certain) -> list[Privilege]:
    """The declared privileges on tables that the statement does not name; a view or a function may still need them."""
    return [each for each in declared if each.verb in TABLE_VERBS and (each.schema, each.name) not in statement.tables]


class _Statement:
    """One statement: which tables it names in which part, and whose columns can be told."""

    def __init__(self, root: ast.Node) -> None:
        self._root = root
        nodes = list(walk(root))
        hidden = {node.ctename for node in nodes if isinstance(node, ast.CommonTableExpr)}
        locked = {id(each) for node in nodes if isinstance(node, ast.LockingClause) for each in node.lockedRels or ()}
        self._ranges = [
            node
            for node in nodes
            if isinstance(node, ast.RangeVar)
            and id(node) not in locked
            and (node.schemaname is not None or node.relname not in hidden)
        ]
        self._targets = [
            (node, node.relation)
            for node in nodes
            if isinstance(node, ast.InsertStmt | ast.UpdateStmt | ast.DeleteStmt | ast.MergeStmt)
            and node.relation is not None
        ]
        own = [relation for _, relation in self._targets]
        self._read = [each for each in self._ranges if not any(each is relation for relation in own)]
        self.tables = frozenset(_name(each) for each in self._ranges if not _is_system(each))
        simple = len(self._ranges) == 1 and not hidden
        self._simple = simple and not any(
            isinstance(
                node, ast.SubLink | ast.RangeSubselect | ast.RangeFunction | ast.OnConflictClause | ast.MergeStmt
            )
            for node in nodes
        )
        self._star = any(isinstance(node, ast.A_Star) for node in nodes)
        calls = [node for node in nodes if isinstance(node, ast.FuncCall | ast.RangeFunction)]
        more = any(
            isinstance(node, ast.LockingClause) or (isinstance(node, ast.A_Expr) and len(node.name or ()) > 1)
            for node in nodes
        )
        self.whole = self._simple and not self._star and not more and not any(_is_foreign(node) for node in calls)
        self._nodes = nodes

    def needs(self) -> Iterator[Privilege]:
        read = self._columns_read() if self._simple and not self._star else ()
        for relation in self._read:
            if not _is_system(relation):
                yield Privilege("select", *_name(relation), read)
        for node, relation in self._targets:
            verb, columns = _written(node)
            if verb is not None and not _is_system(relation):
                yield Privilege(verb, *_name(relation), columns)
            if read and not _is_system(relation):
                yield Privilege("select", *_name(relation), read)

    def _columns_read(self) -> tuple[str, ...]:
        """Every column that is named, if all of them can only be of the one table."""
        aliases = {node.name for node in self._nodes if isinstance(node, ast.ResTarget) and node.name}
        written = isinstance(self._root, ast.InsertStmt | ast.UpdateStmt)
        found: set[str] = set()
        for node in self._nodes:
            if isinstance(node, ast.ColumnRef):
                parts = [str(part.sval) for part in node.fields or () if isinstance(part, ast.String)]
                if len(parts) == 1 and (written or parts[0] not in aliases):
                    found.add(parts[0])
                elif len(parts) == 2:
                    found.add(parts[1])
        tables = {str(each.relname) for each in self._ranges} | {
            str(each.alias.aliasname) for each in self._ranges if each.alias is not None
        }
        return () if found & tables else tuple(sorted(found))


def _written(node: ast.Node) -> tuple[Verb | None, tuple[str, ...]]:
    if isinstance(node, ast.InsertStmt):
        return "insert", tuple(sorted(str(each.name) for each in node.cols or ()))
    if isinstance(node, ast.UpdateStmt):
        return "update", tuple(sorted({str(each.name) for each in node.targetList or () if each.name}))
    if isinstance(node, ast.DeleteStmt):
        return "delete", ()
    return None, ()


def _name(relation: ast.RangeVar) -> tuple[str, str]:
    return relation.schemaname or "public", str(relation.relname)


def _is_system(relation: ast.RangeVar) -> bool:
    return relation.schemaname in _SYSTEM or (relation.schemaname is None and str(relation.relname).startswith("pg_"))


def _is_foreign(node: ast.Node) -> bool:
    """Whether a call may be one of a function that somebody wrote: it is qualified, or known to touch sequences."""
    if not isinstance(node, ast.FuncCall):
        return True
    name = [str(part.sval) for part in node.funcname or ()]
    return (len(name) > 1 and name[0] != "pg_catalog") or name[-1] not in _HARMLESS


_HARMLESS = frozenset(
    """
    abs age array_agg avg bool_and bool_or btrim ceil char_length coalesce concat concat_ws count cume_dist date_part
    date_trunc dense_rank exp extract first_value floor format greatest jsonb_agg jsonb_build_object json_agg
    json_build_object lag last_value lead least left length ln log lower lpad ltrim max md5 min mod now ntile nullif
    octet_length percent_rank pg_sleep position power random rank regexp_match regexp_replace repeat replace reverse
    right round row_number row_to_json rpad rtrim sha256 sign split_part sqrt string_agg strpos substr substring sum
    to_char to_date to_json to_jsonb to_number to_timestamp trim trunc upper
    """.split()  # noqa: SIM905 -- a list of names reads best as one
)
"""Built-in functions that need no privilege and touch no table."""

"""What can be said of a statement's needs without a database: less, but never anything false.

A table without a schema in the SQL may be one of any schema. Columns are told only of statements on one table
alone, and only where a name cannot be anything else: not the name of an output column (`ORDER BY count`), not a
row (`SELECT person FROM person`), and not a function of a row (`person.age` may be `age(person)`).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from pglast import ast
from pglast.enums.parsenodes import SetOperation

from orchestrator.grants.privileges import ALL_COLUMNS, COLUMN_VERBS, TABLE_VERBS, Privilege, Verb
from orchestrator.grants.sql.parsing import UnreadableSql, parse
from orchestrator.inference.statements import Analysed, Copied, Dynamic, split, walk

Table = tuple[str, str]
"""Schema and name; the schema is empty where the SQL names none."""

_SYSTEM_COLUMNS = frozenset({"ctid", "xmin", "xmax", "cmin", "cmax", "tableoid"})

_WRITES = (ast.InsertStmt, ast.UpdateStmt, ast.DeleteStmt, ast.MergeStmt)


@dataclass(frozen=True, slots=True)
class Certain:
    """What a text says for certain. The schema of a privilege is empty where the SQL names none.

    `privileges` are needed; empty `columns` of a verb that has columns: some, or some that are not known. `at_most`
    is all that may be needed of the tables, or None where more may be. `of_rows` are columns that are written
    with their table (`o.total`): needed, unless they are functions of its rows.
    """

    privileges: tuple[Privilege, ...]
    tables: frozenset[Table]
    at_most: tuple[Privilege, ...] | None
    of_rows: tuple[Privilege, ...]


def certain(sql: str, *, placeholders: bool = True) -> Certain | None:
    """What the statements in a text need for certain, or None where PostgreSQL's parser refuses it."""
    try:
        parts = split(sql, placeholders=placeholders)
    except UnreadableSql:
        return None
    found: list[Certain] = []
    for part in parts:
        if isinstance(part, Copied):
            found.append(_copied(part))
        elif isinstance(part, Analysed):
            try:
                (raw,) = parse(part.sql)
            except UnreadableSql:  # written out, a statement is larger than it was
                found.append(Certain((), frozenset(), None, ()))
                continue
            assert raw.stmt is not None
            found.append(_statement(raw.stmt))
        else:
            found.append(Certain((), frozenset(), None, ()))
    privileges = tuple(privilege for each in found for privilege in each.privileges)
    if any(isinstance(part, Dynamic) for part in parts):  # which may create a table, before which no schema is written
        privileges = tuple(privilege for privilege in privileges if privilege.schema)
    limits = [each.at_most for each in found]
    return Certain(
        privileges,
        frozenset(table for each in found for table in each.tables),
        None if None in limits else tuple(privilege for limit in limits for privilege in limit or ()),
        tuple(privilege for each in found for privilege in each.of_rows),
    )


def missing(declared: Sequence[Privilege], needed: Sequence[Privilege]) -> list[Privilege]:
    """The needed privileges, or the columns of them, that are not declared; those without a schema keep none."""
    found: list[Privilege] = []
    by_name = _by_name(declared)
    for need in needed:
        known = [each for each in by_name[need.name] if each.verb == need.verb and _is_one(each, need.schema)]
        lacking = [sorted(set(need.columns) - set(each.columns)) for each in known if each.columns != ALL_COLUMNS]
        if not known:
            found.append(need)
        elif len(known) == 1 and lacking and lacking[0]:
            found.append(replace(need, schema=known[0].schema, columns=tuple(lacking[0])))
    return list(dict.fromkeys(found))


def superfluous(declared: Sequence[Privilege], statement: Certain) -> list[Privilege]:
    """The declared privileges on tables that the statement names which it certainly does not need."""
    if statement.at_most is None:
        return []
    spare = {id(each) for each in unnamed(declared, statement)}
    at_most, of_rows, by_name = map(_by_name, (statement.at_most, statement.of_rows, declared))
    found: list[Privilege] = []
    for privilege in declared:
        if privilege.verb not in TABLE_VERBS or id(privilege) in spare:
            continue
        columns = {
            column for each in by_name[privilege.name] if each.schema == privilege.schema for column in each.columns
        }
        written = [each for each in of_rows[privilege.name] if _is_one(privilege, each.schema)]
        if any(set(each.columns) - columns for each in written):
            continue  # a function of its rows, which may need any column
        limits = [each for each in at_most[privilege.name] if each.verb == privilege.verb]
        limits = [each for each in limits if _is_one(privilege, each.schema)]
        most = {column for each in limits for column in each.columns}
        rest = tuple(sorted(set(privilege.columns) - most))
        if not limits:
            found.append(privilege)
        elif rest and most and "*" not in (*most, *rest):
            found.append(replace(privilege, columns=rest, where=()))
    return found


def unnamed(declared: Sequence[Privilege], statement: Certain) -> list[Privilege]:
    """The declared privileges on tables that the statement does not name; a view or a function may still need them."""
    return [
        each
        for each in declared
        if each.verb in TABLE_VERBS and not {(each.schema, each.name), ("", each.name)} & statement.tables
    ]


def described(privilege: Privilege) -> str:
    """`select (id) on ticket`: without a schema where it has none."""
    if privilege.schema:
        return privilege.describe()
    return replace(privilege, schema="public").describe().replace(" on public.", " on ", 1)


def _by_name(privileges: Iterable[Privilege]) -> dict[str, list[Privilege]]:
    found: dict[str, list[Privilege]] = defaultdict(list)
    for privilege in privileges:
        found[privilege.name].append(privilege)
    return found


def _is_one(privilege: Privilege, schema: str) -> bool:
    """Whether the privilege is on a table of that schema, or of any where the SQL names none."""
    return schema in ("", privilege.schema)


def _copied(part: Copied) -> Certain:
    """COPY of a table. A condition on what is read in may need more."""
    table = part.schema or "", part.table
    need = Privilege("insert" if part.into else "select", *table, tuple(sorted(part.columns)))
    known = bool(part.columns) and not part.into
    return Certain((need,), frozenset({table}), (need,) if known else None, ())


def _statement(root: ast.Node) -> Certain:
    nodes = list(walk(root))
    tables = frozenset(_name(node) for node in nodes if isinstance(node, ast.RangeVar))
    if (one := _one_table(root, nodes)) is not None:
        return _of_one_table(root, nodes, one)
    return Certain(tuple(_verbs(nodes)), tables, None, ())


def _verbs(nodes: Sequence[ast.Node]) -> Iterator[Privilege]:
    """What is needed of which table, where the columns that are read cannot be told."""
    hidden = {str(node.ctename) for node in nodes if isinstance(node, ast.CommonTableExpr)}
    targets = [node for node in nodes if isinstance(node, _WRITES) and node.relation is not None]
    apart = {id(node.relation) for node in targets}
    apart |= _locked(nodes) | _unused(nodes)
    for node in nodes:
        if not isinstance(node, ast.RangeVar) or id(node) in apart or _is_system(node):
            continue
        if node.schemaname is not None or node.relname not in hidden:
            yield Privilege("select", *_name(node))
    for node in targets:
        verb, columns = _written(node)
        assert node.relation is not None
        if verb is not None and not _is_system(node.relation):
            yield Privilege(verb, *_name(node.relation), columns)


def _unused(nodes: Sequence[ast.Node]) -> set[int]:
    """The ids of tables in SELECTs of WITH that may not be carried out, since nothing refers to them that is."""
    withs = [node for node in nodes if isinstance(node, ast.CommonTableExpr)]
    bodies = [(node, list(walk(node.ctequery))) for node in withs if isinstance(node.ctequery, ast.SelectStmt)]
    owners: dict[int, ast.Node] = {}
    for owner, body in sorted(bodies, key=lambda each: len(each[1]), reverse=True):  # the innermost last
        owners.update((id(each), owner) for each in body if isinstance(each, ast.RangeVar))
    named: dict[int | None, set[str]] = {}
    for node in nodes:
        if isinstance(node, ast.RangeVar) and node.schemaname is None:
            inside = owners.get(id(node))
            named.setdefault(None if inside is None else id(inside), set()).add(str(node.relname))
    times = Counter(str(node.ctename) for node in withs)
    known = {str(node.ctename): id(node) for node, _ in bodies if times[str(node.ctename)] == 1}
    used: set[int | None] = set()
    pending: list[int | None] = [None]
    while pending:
        if (one := pending.pop()) not in used:
            used.add(one)
            pending += [known[name] for name in named.get(one, ()) if name in known]
    return {table for table, owner in owners.items() if id(owner) not in used}


def _one_table(root: ast.Node, nodes: Sequence[ast.Node]) -> ast.RangeVar | None:
    """The table of a statement that is about one alone, whose columns bear their own names."""
    if isinstance(root, ast.SelectStmt):
        sources = root.fromClause or ()
        plain = root.op in (None, SetOperation.SETOP_NONE) and len(sources) == 1
        table = sources[0] if plain else None
    elif isinstance(root, ast.InsertStmt) and root.onConflictClause is None:
        table = root.relation
    elif isinstance(root, ast.UpdateStmt) and not root.fromClause:
        table = root.relation
    elif isinstance(root, ast.DeleteStmt) and not root.usingClause:
        table = root.relation
    else:
        table = None
    if not isinstance(table, ast.RangeVar) or _is_system(table) or (table.alias and table.alias.colnames):
        return None
    more = (ast.SubLink, ast.CommonTableExpr, ast.RangeSubselect, ast.RangeFunction, ast.RangeTableFunc, ast.JsonTable)
    inner = [node for node in nodes if isinstance(node, ast.SelectStmt) and node is not root]
    if isinstance(root, ast.InsertStmt):
        inner = [node for node in inner if node is not root.selectStmt or node.fromClause or node.op]
    apart = _locked(nodes) | {id(table)}
    others = any(isinstance(node, ast.RangeVar) and id(node) not in apart for node in nodes)
    return None if inner or others or any(isinstance(node, more) for node in nodes) else table


def _locked(nodes: Sequence[ast.Node]) -> set[int]:
    """The ids of the names behind FOR UPDATE OF, which name something that stands in FROM already."""
    return {id(each) for node in nodes if isinstance(node, ast.LockingClause) for each in node.lockedRels or ()}


def _of_one_table(root: ast.Node, nodes: Sequence[ast.Node], relation: ast.RangeVar) -> Certain:
    table = _name(relation)
    verb, written = ("select", ()) if isinstance(root, ast.SelectStmt) else _written(root)
    assert verb is not None
    references = [node for node in nodes if isinstance(node, ast.ColumnRef)]
    fields = [[str(part.sval) for part in node.fields or () if isinstance(part, ast.String)] for node in references]
    star = any(isinstance(node, ast.A_Star) for node in nodes)
    rows = {str(relation.relname), *_row_names(relation, nodes)}
    bare = [parts[0] for parts in fields if len(parts) == 1]
    outputs = _output_names(root)
    names = {id(node) for node in _by_output_name(root)}
    sure = {
        parts[0]
        for node, parts in zip(references, fields, strict=True)
        if len(parts) == 1 and not (id(node) in names and (outputs is None or parts[0] in outputs))
    }
    sure -= _SYSTEM_COLUMNS | rows
    dotted = {parts[-1] for parts in fields if len(parts) > 1} - _SYSTEM_COLUMNS
    read = () if star else tuple(sorted(sure))
    known = not star and not rows & set(bare) and not _needs_more(nodes)
    known = known and not _SYSTEM_COLUMNS & {parts[-1] for parts in fields if parts}
    needs = [Privilege(verb, *table, read if verb == "select" else written)]
    limits = [Privilege(verb, *table, written or ALL_COLUMNS if verb in COLUMN_VERBS else ())]
    every = tuple(sorted(set(bare) | dotted))
    if verb == "select":
        # Where no column is sure to be read, one has to be granted, and it may be any.
        limits = [Privilege("select", *table, every if sure or dotted else ALL_COLUMNS)]
    elif every:
        needs += [Privilege("select", *table, read)] if read else []
        limits.append(Privilege("select", *table, every))
    return Certain(
        tuple(needs),
        frozenset({table}),
        tuple(limits) if known else None,
        (Privilege("select", *table, tuple(sorted(dotted))),) if dotted else (),
    )


def _row_names(relation: ast.RangeVar, nodes: Sequence[ast.Node]) -> Iterator[str]:
    """The names under which the statement may mean a whole row."""
    if relation.alias is not None:
        yield str(relation.alias.aliasname)
    yield from ("old", "new")
    yield from (str(node.value) for node in nodes if isinstance(node, ast.ReturningOption))


def _by_output_name(root: ast.Node) -> Iterator[ast.Node]:
    """The references that may name an output column: alone in ORDER BY, GROUP BY or DISTINCT ON."""
    if not isinstance(root, ast.SelectStmt):
        return
    pending = [node.node for node in root.sortClause or ()]
    pending += [*(root.distinctClause or ()), *(root.groupClause or ())]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.GroupingSet):
            pending.extend(node.content or ())
        elif isinstance(node, ast.RowExpr):
            pending.extend(node.args or ())
        elif isinstance(node, ast.ColumnRef):
            yield node


def _output_names(root: ast.Node) -> set[str] | None:
    """The names of the output columns that are no column of their own name; None where the server makes them up."""
    names: set[str] = set()
    for target in (root.targetList or ()) if isinstance(root, ast.SelectStmt) else ():
        if target.name is not None:
            names.add(str(target.name))
        elif not isinstance(target.val, ast.ColumnRef):
            return None
        elif len(fields := target.val.fields or ()) > 1:
            names.update(str(part.sval) for part in fields if isinstance(part, ast.String))
    return names


def _needs_more(nodes: Sequence[ast.Node]) -> bool:
    """Whether something else than the columns that are named may be needed: a lock, a function, a cursor's row."""
    return any(
        isinstance(node, ast.LockingClause | ast.CurrentOfExpr)
        or (isinstance(node, ast.A_Expr) and len(node.name or ()) > 1)
        or (isinstance(node, ast.ResTarget) and bool(node.indirection))
        or (isinstance(node, ast.FuncCall) and _is_foreign(node))
        for node in nodes
    )


def _written(node: ast.Node) -> tuple[Verb | None, tuple[str, ...]]:
    if isinstance(node, ast.InsertStmt):
        return "insert", tuple(sorted(str(each.name) for each in node.cols or ()))
    if isinstance(node, ast.UpdateStmt):
        return "update", tuple(sorted({str(each.name) for each in node.targetList or () if each.name}))
    if isinstance(node, ast.DeleteStmt):
        return "delete", ()
    return None, ()


def _name(relation: ast.RangeVar) -> Table:
    return relation.schemaname or "", str(relation.relname)


def _is_system(relation: ast.RangeVar) -> bool:
    """Whether it is a catalog, which is everybody's, or a temporary table, which is the session's own."""
    schema = relation.schemaname or str(relation.relname)
    return schema.startswith("pg_") or relation.schemaname == "information_schema"


def _is_foreign(call: ast.FuncCall) -> bool:
    """Whether it may be a function that somebody wrote: it is qualified, or known to touch sequences."""
    name = [str(part.sval) for part in call.funcname or ()]
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

"""The smallest grant of a statement, by the database's own analysis.

Each statement is prepared, never executed, in a session that needs nothing but `USAGE` on the schemas:
PostgreSQL resolves names, views and rules, and prints what it would check. What runs later and cannot
be seen that way (bodies of PL/pgSQL functions and triggers, DO) is told as a note, never guessed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import psycopg
from pglast import ast
from psycopg import sql

from orchestrator.errors import Unreachable, UsageError
from orchestrator.grants.privileges import Privilege, qualified
from orchestrator.inference.analysis.catalog import FIRST_USER_OID, Catalog
from orchestrator.inference.analysis.findings import Findings, Inferred
from orchestrator.inference.analysis.functions import Functions
from orchestrator.inference.analysis.names import Names, Written
from orchestrator.inference.analysis.prepared import prepared
from orchestrator.inference.analysis.trees import DELETE, INSERT, UPDATE, Permission, Tree
from orchestrator.inference.analysis.writes import Writes
from orchestrator.inference.parameters import Types, same_types, types_of
from orchestrator.inference.statements import Analysed, Called, Copied, Dynamic, Text, split, without_parameters

__all__ = ["Inference", "Inferred"]

_OF_TYPES = (
    psycopg.errors.IndeterminateDatatype,
    psycopg.errors.AmbiguousParameter,
    psycopg.errors.DatatypeMismatch,
    psycopg.errors.AmbiguousFunction,
    psycopg.errors.UndefinedFunction,
    psycopg.errors.UndefinedParameter,
    psycopg.errors.CannotCoerce,
)
"""What the server may say only because it does not know the type of a parameter."""


_OF_THE_SERVER = ("08", "53", "57", "58")
"""Classes of SQLSTATE that say nothing of the statement: connections, resources, operators, the system."""


@dataclass(slots=True)
class Inference:
    """One database, through an open session in autocommit. Not safe for threads."""

    session: psycopg.Connection
    _catalog: Catalog = field(init=False)
    _names: Names = field(init=False)
    _writes: Writes = field(init=False)

    def __post_init__(self) -> None:
        self._catalog = Catalog(self.session)
        self._names = Names(self.session)
        self._writes = Writes(self.session)

    def of(self, statement: str, *, placeholders: bool = True, values: object = None) -> Inferred:
        """What the statements in a text need together. `values` are those of the placeholders, where known.

        Raises UsageError for what PostgreSQL cannot parse or resolve, and Unreachable if the session breaks.
        """
        return _Text(self, self._catalog, self._names, self._writes).of(
            split(statement, placeholders=placeholders), types_of(statement, values) if placeholders else ()
        )

    def canonical(self, privilege: Privilege) -> Privilege:
        """The same with a function's argument types as the catalog writes them, `integer` for `int`.

        A function that is not there stays as it is.
        """
        if privilege.verb != "execute":
            return privilege
        name = qualified(privilege.schema, privilege.name, function=True)
        try:
            found = self.session.execute("SELECT to_regprocedure(%s)::oid::int8", [name]).fetchone()
        except psycopg.errors.InsufficientPrivilege:
            return privilege
        functions = self._catalog.functions([int(found[0])]) if found and found[0] is not None else ()
        return Privilege("execute", functions[0].schema, functions[0].signature) if functions else privilege


class _Text:
    """One text with all its statements."""

    def __init__(self, of: Inference, catalog: Catalog, names: Names, writes: Writes) -> None:
        self._session = of.session
        self._catalog = catalog
        self._names = names
        self._writes = writes
        self._findings = Findings(catalog)
        self._functions = Functions(catalog, self._findings, self._analyse)

    def of(self, parts: Sequence[object], types: Types) -> Inferred:
        try:
            for part in parts:
                match part:
                    case Analysed():
                        self._statement(part, types)
                    case Copied():
                        self._copy(part)
                    case Called():
                        self._call(part)
                    case Dynamic():
                        self._findings.note(part.why)
            return self._findings.finish()
        except psycopg.Error as error:
            if error.sqlstate is None or error.sqlstate.startswith(_OF_THE_SERVER):
                raise Unreachable(f"the database did not answer: {type(error).__name__}") from None
            raise UsageError(
                f"PostgreSQL cannot resolve the SQL: {error.diag.message_primary}", hint=error.diag.message_hint
            ) from None

    def _statement(self, part: Analysed, types: Types) -> None:
        """A statement of the text itself: with the types that its parameters have, as far as they are known."""
        assert part.node is not None
        own = types[: part.parameters]
        refused: psycopg.Error | None = None
        for chosen in same_types(own):
            for text, declared in ((part.sql, chosen), (without_parameters(part.sql, chosen), ())):
                try:
                    self._analyse(Text(text, part.node), declared, None, 0, True)
                except psycopg.errors.InsufficientPrivilege as error:
                    self._refused(error, part.node)
                    return
                except _OF_TYPES as error:
                    refused = refused or error
                    if not part.parameters:
                        raise
                else:
                    self._overloaded(part, own)
                    return
        assert refused is not None
        if all(len(each) == 1 for each in own):
            raise refused
        self._findings.note(
            f"it depends on the types of the parameters, which only the run knows ({refused.diag.message_primary}): "
            "write a cast, such as `%(name)s::integer`"
        )

    def _refused(self, error: psycopg.Error, root: ast.Node) -> None:
        """The login that infers may not do something: use a schema, which it must be able to, or check a constant."""
        written = Written()
        written.add(root)
        if closed := self._names.closed(written.schemas):
            raise UsageError(
                f"the login that infers may not use {', '.join(closed)}",
                hint="GRANT USAGE ON SCHEMA ... to it; it needs nothing else",
            ) from error
        self._findings.note(
            f"the login that infers is refused ({error.diag.message_primary}): to analyse a constant of a domain it "
            "needs EXECUTE on what checks it"
        )

    def _overloaded(self, part: Analysed, types: Types) -> None:
        """Where another type of a parameter may mean another function, which one is not known."""
        if all(len(each) == 1 for each in types) or not self._names.may_be_overloaded(part.node):
            return
        meant: set[frozenset[int]] = set()
        for others in same_types(types):
            try:
                with prepared(self._session, part.sql, others) as trees:
                    called = trees.analysed.functions()
                    meant.add(frozenset(oid for oid in called if oid >= FIRST_USER_OID))
            except _OF_TYPES:
                continue
        if len(meant) > 1:
            self._findings.note(
                "which function is called depends on the types of the parameters, which only the run knows: "
                "write a cast, such as `%(name)s::integer`"
            )

    def _analyse(self, text: Text, types: Sequence[str], path: str | None, depth: int, named: bool) -> None:
        """One statement. `named` says that its names are looked up as whoever runs it: not in a body that was
        analysed when it was made."""
        with prepared(self._session, text.sql, types, path) as trees:
            if named:
                written = Written()
                written.add(text.node)
                self._findings.schemas |= self._names.schemas(written, trees.analysed, path)
        self._read(trees.rewritten, depth)

    def _read(self, tree: Tree, depth: int) -> None:
        permissions = tree.permissions()
        self._catalog.relations(each.relation for each in permissions)
        for permission in permissions:
            if not permission.owner:
                self._findings.checked(permission)
            if permission.required & (INSERT | UPDATE | DELETE):
                self._along(permission, depth)
        self._functions.called(tree, depth)

    def _along(self, permission: Permission, depth: int) -> None:
        """What runs along with a write, as the step also where it arrives through a view of somebody else's."""
        relation = self._catalog.relation(permission.relation)
        for trigger in self._writes.fired(permission, relation):
            self._functions.fired(trigger.function, trigger.relation)
            self._functions.called(Tree(trigger.condition), depth)
        if permission.required & INSERT:  # what is left out is NULL, and that is held against the domain, too
            left_out = [kind for number, kind in relation.domains.items() if number not in permission.insert]
            for text in self._catalog.domain_checks(left_out):
                self._functions.called(Tree(text), depth)
        for text in self._writes.expressions(permission, relation):
            self._functions.called(Tree(text), depth)

    def _call(self, called: Called) -> None:
        name = qualified(called.name[0], called.name[-1]) if len(called.name) > 1 else called.name[0]
        rows = [int(row[0]) for row in self._session.execute(_PROCEDURES, _procedure(called))]
        if len(rows) != 1:
            several = "there are several of the name" if rows else "none of the name takes these arguments"
            self._findings.note(f"which procedure CALL {name} means cannot be told: {several}; declare it")
            return
        self._findings.schemas |= self._catalog.schemas_of_functions(rows)
        self._functions.procedure(rows[0], called.placed + len(called.named))

    def _copy(self, copied: Copied) -> None:
        """COPY is not prepared: it needs what the SELECT or INSERT of the same columns needs, and to read the columns
        by which COPY FROM keeps rows."""
        table = sql.Identifier(*(part for part in (copied.schema, copied.table) if part))
        found = self._session.execute(_COPYABLE, {"table": table.as_string(None)}).fetchall()
        columns = copied.columns or tuple(str(row[0]) for row in found)
        for statement in _as_queries(copied, table, columns):
            for part in split(statement, placeholders=False):
                assert isinstance(part, Analysed)
                assert part.node is not None
                self._analyse(Text(part.sql, part.node), (), None, 0, True)


def _as_queries(copied: Copied, table: sql.Identifier, columns: Sequence[str]) -> Iterator[str]:
    names = sql.SQL(", ").join(map(sql.Identifier, columns))
    if not copied.into:
        yield sql.SQL("SELECT {} FROM {}").format(names, table).as_string(None)
        return
    nulls = sql.SQL(", ").join([sql.SQL("NULL")] * len(columns))
    insert = sql.SQL("INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE VALUES ({})").format(table, names, nulls)
    yield insert.as_string(None)
    if copied.where:
        yield f"SELECT FROM {table.as_string(None)} WHERE {copied.where}"


def _procedure(called: Called) -> dict[str, object]:
    schema = called.name[-2] if len(called.name) > 1 else None
    given = called.placed + len(called.named)
    return {"schema": schema, "name": called.name[-1], "given": given, "named": list(called.named)}


_PROCEDURES = """
SELECT p.oid::int8 FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace,
LATERAL (SELECT coalesce(cardinality(p.proallargtypes), p.pronargs) AS number) arguments
WHERE p.prokind = 'p' AND p.proname = %(name)s
AND CASE WHEN %(schema)s::text IS NULL THEN pg_function_is_visible(p.oid) ELSE n.nspname = %(schema)s::text END
AND (%(given)s <= arguments.number OR p.provariadic <> 0) AND %(given)s >= arguments.number - p.pronargdefaults
    - CASE WHEN p.provariadic <> 0 THEN 1 ELSE 0 END
AND %(named)s::text[] <@ coalesce(p.proargnames, '{}')
"""

_COPYABLE = """
SELECT attname FROM pg_attribute WHERE attrelid = to_regclass(%(table)s) AND attnum > 0 AND NOT attisdropped
AND attgenerated = '' ORDER BY attnum
"""

"""The smallest grant of a statement, by the database's own analysis.

Each statement is prepared, never executed, in a session that needs nothing but `USAGE` on the schemas:
PostgreSQL resolves names, views and rules, and prints what it would check. What runs later and cannot
be seen that way (bodies of PL/pgSQL functions and triggers, DO) is told as a note, never guessed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import psycopg
from psycopg import sql

from orchestrator.errors import Unreachable, UsageError
from orchestrator.grants.privileges import ALL_COLUMNS, Privilege, Verb, merge, qualified
from orchestrator.inference.bodies import body_statements, with_argument
from orchestrator.inference.statements import Analysed, Called, Copied, Dynamic, split, without_parameters
from orchestrator.inference.trees import DELETE, INSERT, SELECT, UPDATE, Permission, Tree, read_tree
from orchestrator.network.postgres import STRINGS, reads_as_parsed

_FIRST_USER_OID = 16384
_DEPTH = 8
"""How deep functions that call functions are followed."""


@dataclass(frozen=True, slots=True)
class Inferred:
    """The smallest privileges, and what could not be known: then the rest has to be declared by hand.

    `everyones` are functions that are called and that everybody may call: declaring them is allowed, not needed.
    """

    privileges: tuple[Privilege, ...]
    notes: tuple[str, ...] = ()
    everyones: tuple[Privilege, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether the privileges are all that the statements need."""
        return not self.notes


@dataclass(slots=True)
class Inference:
    """One database, through an open session in autocommit. Not safe for threads."""

    session: psycopg.Connection
    _found: list[Privilege] = field(default_factory=list)
    _any: list[tuple[Verb, int]] = field(default_factory=list)
    _everyones: list[Privilege] = field(default_factory=list)
    _notes: dict[str, None] = field(default_factory=dict)
    _seen: set[int] = field(default_factory=set)

    def of(self, statement: str, *, placeholders: bool = True) -> Inferred:
        """What the statements in a text need together.

        Raises UsageError for what PostgreSQL cannot parse or resolve, and Unreachable if the session breaks.
        """
        self._found, self._any, self._everyones, self._notes, self._seen = [], [], [], {}, set()
        try:
            for part in split(statement, placeholders=placeholders):
                match part:
                    case Analysed():
                        self._analyse(part.sql, depth=0)
                    case Copied():
                        self._copy(part)
                    case Called():
                        self._call(part)
                    case Dynamic():
                        self._note(part.why)
        except psycopg.OperationalError as error:
            raise Unreachable(f"the database did not answer: {type(error).__name__}") from None
        except psycopg.Error as error:
            raise UsageError(
                f"PostgreSQL cannot resolve the SQL: {error.diag.message_primary}", hint=error.diag.message_hint
            ) from None
        self._some_columns()
        return Inferred(merge(self._found), tuple(self._notes), merge(self._everyones))

    def canonical(self, privilege: Privilege) -> Privilege:
        """The same with a function's argument types as the catalog writes them, `integer` for `int`.

        A function that is not there stays as it is.
        """
        if privilege.verb != "execute":
            return privilege
        name = qualified(privilege.schema, privilege.name, function=True)
        found = self.session.execute("SELECT oid FROM pg_proc WHERE oid = to_regprocedure(%s)", [name]).fetchone()
        row = self.session.execute(_FUNCTION, {"oid": found[0]}).fetchone() if found else None
        return Privilege("execute", str(row[0]), str(row[1])) if row else privilege

    def _analyse(self, statement: str, *, depth: int, types: Sequence[str] = ()) -> None:
        tree = self._tree(statement, types)
        for permission in tree.permissions:
            self._permission(permission)
        for sequence in sorted(tree.sequences):
            self._found.append(Privilege("usage", *self._relation(sequence)))
        for sequence in sorted(tree.set_sequences):
            self._note(f"setting {qualified(*self._relation(sequence))} needs UPDATE on it, which no grant can declare")
        self._functions(tree.functions, depth)

    def _tree(self, statement: str, types: Sequence[str]) -> Tree:
        self._must_only_read()
        printed: list[str] = []

        def hear(notice: psycopg.errors.Diagnostic) -> None:
            if notice.message_primary and notice.message_primary.startswith("rewritten"):
                printed.append(notice.message_detail or "")

        self.session.add_notice_handler(hear)
        try:
            with self.session.transaction(force_rollback=True):
                self.session.execute("SET LOCAL client_min_messages = log")
                self.session.execute("SET LOCAL debug_print_rewritten = on")
                declared = f"({', '.join(types)})" if types else ""
                # By the extended protocol, which takes one command only: nothing can come along with this one.
                self.session.execute(
                    f"PREPARE orchestrator_inference{declared} AS {statement}".encode(),  # a statement, not a value
                    prepare=True,
                )
                self.session.execute("DEALLOCATE orchestrator_inference")
        except (psycopg.errors.IndeterminateDatatype, psycopg.errors.UndefinedParameter):
            return self._tree(without_parameters(statement), ())
        except psycopg.errors.InsufficientPrivilege as error:
            raise UsageError(
                f"the catalog cannot be read: {error.diag.message_primary}",
                hint="the login that infers needs USAGE on the schemas that the SQL names, and nothing else",
            ) from None
        finally:
            self.session.remove_notice_handler(hear)
        return read_tree("\n".join(printed))

    def _must_only_read(self) -> None:
        """The statement comes from a file: what stands in its texts must be text to the server, too."""
        info = self.session.info
        if not reads_as_parsed(info.parameter_status(STRINGS)):
            raise Unreachable(
                f"the session has {STRINGS} switched off, so that the SQL may mean something else to the server",
                hint="does something between here and the server drop the options of the session?",
            )
        self.session.read_only = True

    def _permission(self, permission: Permission) -> None:
        if permission.relation < _FIRST_USER_OID and permission.required == SELECT and self._is_public(permission):
            return
        schema, name = self._relation(permission.relation)
        columns = self._columns(permission.relation)
        for bit, verb, numbers in (
            (SELECT, "select", permission.select),
            (INSERT, "insert", permission.insert),
            (UPDATE, "update", permission.update),
        ):
            if not permission.required & bit:
                continue
            if any(number < 0 for number in numbers):
                self._found.append(Privilege(verb, schema, name, ALL_COLUMNS))  # type: ignore[arg-type]  # a verb
            elif numbers:
                named = columns.values() if 0 in numbers else (columns[number] for number in numbers)
                self._found.append(Privilege(verb, schema, name, tuple(sorted(named))))  # type: ignore[arg-type]
            else:
                self._any.append((verb, permission.relation))  # type: ignore[arg-type]
        if permission.required & DELETE:
            self._found.append(Privilege("delete", schema, name))
        if permission.required & (INSERT | UPDATE | DELETE):
            self._written(permission)

    def _some_columns(self) -> None:
        """`count(*)` and the like need the verb on any one column: one that is needed anyhow, else the key's first."""
        for verb, relation in self._any:
            schema, name = self._relation(relation)
            if any((each.verb, each.schema, each.name) == (verb, schema, name) for each in self._found):
                continue
            row = self.session.execute(_FOREMOST, {"relation": relation}).fetchone()
            if row is not None:
                self._found.append(Privilege(verb, schema, name, (str(row[0]),)))

    def _written(self, permission: Permission) -> None:
        """What runs along with a write: trigger functions, checks, generated columns."""
        events = [bit for needed, bit in ((INSERT, 4), (DELETE, 8), (UPDATE, 16)) if permission.required & needed]
        for name, definer, language in self.session.execute(
            _TRIGGERS, {"relation": permission.relation, "events": sum(events)}
        ):
            if not definer:
                self._note(f"the trigger function {name} ({language}) runs as the step: declare what it needs")
        for (text,) in self.session.execute(_EXPRESSIONS, {"relation": permission.relation}):
            self._functions(read_tree(str(text)).functions, _DEPTH)

    def _functions(self, oids: frozenset[int], depth: int) -> None:
        for oid in sorted(oids):
            if oid < _FIRST_USER_OID or oid in self._seen:
                continue
            self._seen.add(oid)
            self._function(oid, depth)

    def _function(self, oid: int, depth: int) -> None:
        row = self.session.execute(_FUNCTION, {"oid": oid}).fetchone()
        if row is None:
            return
        schema, signature, public, definer, language, source, names, types = row
        (self._everyones if public else self._found).append(Privilege("execute", str(schema), str(signature)))
        if definer or language in ("c", "internal"):
            return
        if language != "sql" or depth >= _DEPTH:
            self._note(f"the function {schema}.{signature} ({language}) runs as the step: declare what its body needs")
            return
        arguments = list(names or ())
        for statement in body_statements(str(source), arguments, str(signature).partition("(")[0].strip('"')):
            if isinstance(statement, Dynamic):
                self._note(f"in {schema}.{signature}: {statement.why}")
            else:
                self._body(statement.sql, arguments, list(types or ()), depth + 1)

    def _body(self, statement: str, arguments: list[str], types: list[str], depth: int) -> None:
        """A bare name that is no column is an argument: the database says which."""
        while True:
            try:
                self._analyse(statement, depth=depth, types=types)
            except psycopg.errors.UndefinedColumn as error:
                name = (error.diag.message_primary or "").partition('"')[2].partition('"')[0]
                if name not in arguments:
                    raise
                statement = with_argument(statement, name, arguments.index(name) + 1)
                arguments = [each if each != name else "" for each in arguments]
                continue
            return

    def _call(self, called: Called) -> None:
        name = ".".join(f'"{part}"' for part in called.name)
        rows = self.session.execute("SELECT oid FROM pg_proc WHERE oid = to_regproc(%s)", [name]).fetchall()
        if not rows:
            self._note(f"which procedure CALL {name} means cannot be told: declare it")
        for (oid,) in rows:
            self._functions(frozenset({int(oid)}), 0)

    def _copy(self, copied: Copied) -> None:
        """COPY is not prepared: it needs what the SELECT or INSERT of the same columns needs."""
        table = sql.Identifier(*(part for part in (copied.schema, copied.table) if part))
        found = self.session.execute(_COPYABLE, {"table": table.as_string(None)}).fetchall()
        columns = copied.columns or tuple(str(row[0]) for row in found)
        names = sql.SQL(", ").join(map(sql.Identifier, columns))
        nulls = sql.SQL(", ").join([sql.SQL("NULL")] * len(columns))
        statement = (
            sql.SQL("INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE VALUES ({})").format(table, names, nulls)
            if copied.into
            else sql.SQL("SELECT {} FROM {}").format(names, table)
        )
        self._analyse(statement.as_string(None), depth=0)

    def _is_public(self, permission: Permission) -> bool:
        """Whether everybody may read this system catalog, or the columns of it that are asked for."""
        row = self.session.execute(_PUBLIC, {"relation": permission.relation}).fetchone()
        return bool(row and row[0])

    def _relation(self, oid: int) -> tuple[str, str]:
        row = self.session.execute(
            "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
            " WHERE c.oid = %s",
            [oid],
        ).fetchone()
        assert row is not None
        return str(row[0]), str(row[1])

    def _columns(self, oid: int) -> dict[int, str]:
        rows = self.session.execute(
            "SELECT attnum, attname FROM pg_attribute WHERE attrelid = %s AND attnum > 0 AND NOT attisdropped", [oid]
        )
        return {int(number): str(name) for number, name in rows}

    def _note(self, text: str) -> None:
        self._notes[text] = None


_FOREMOST = """
SELECT a.attname FROM pg_attribute a
LEFT JOIN pg_index i ON i.indrelid = a.attrelid AND i.indisprimary AND a.attnum = ANY(i.indkey)
WHERE a.attrelid = %(relation)s AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
ORDER BY i.indrelid IS NULL, array_position(i.indkey::smallint[], a.attnum), a.attnum LIMIT 1
"""

_TRIGGERS = """
SELECT DISTINCT p.oid::regprocedure::text, p.prosecdef, l.lanname FROM pg_trigger t
JOIN pg_proc p ON p.oid = t.tgfoid JOIN pg_language l ON l.oid = p.prolang
WHERE t.tgrelid = %(relation)s AND NOT t.tgisinternal AND t.tgenabled <> 'D' AND t.tgtype & %(events)s <> 0
"""

_EXPRESSIONS = """
SELECT conbin::text FROM pg_constraint WHERE conrelid = %(relation)s AND contype = 'c'
UNION ALL SELECT d.adbin::text FROM pg_attrdef d JOIN pg_attribute a ON a.attrelid = d.adrelid AND a.attnum = d.adnum
WHERE d.adrelid = %(relation)s AND a.attgenerated <> ''
"""

_FUNCTION = """
SELECT n.nspname, format('%%I(%%s)', p.proname, coalesce((SELECT string_agg(format_type(t, NULL), ', ' ORDER BY o)
       FROM unnest(p.proargtypes) WITH ORDINALITY AS argument (t, o)), '')),
       EXISTS (SELECT FROM aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
               WHERE a.grantee = 0 AND a.privilege_type = 'EXECUTE'),
       p.prosecdef, l.lanname, coalesce(pg_get_function_sqlbody(p.oid), p.prosrc),
       (SELECT array_agg(coalesce(p.proargnames[o], '') ORDER BY o) FROM generate_series(1, p.pronargs) o),
       (SELECT array_agg(format_type(t, NULL) ORDER BY o) FROM unnest(p.proargtypes) WITH ORDINALITY AS x (t, o))
FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace JOIN pg_language l ON l.oid = p.prolang
WHERE p.oid = %(oid)s
"""

_COPYABLE = """
SELECT attname FROM pg_attribute WHERE attrelid = to_regclass(%(table)s) AND attnum > 0 AND NOT attisdropped
AND attgenerated = '' ORDER BY attnum
"""

_PUBLIC = """
SELECT EXISTS (SELECT FROM aclexplode(c.relacl) a WHERE a.grantee = 0 AND a.privilege_type = 'SELECT')
       OR EXISTS (SELECT FROM pg_attribute t, aclexplode(t.attacl) a WHERE t.attrelid = c.oid AND a.grantee = 0
                  AND a.privilege_type = 'SELECT')
FROM pg_class c WHERE c.oid = %(relation)s
"""

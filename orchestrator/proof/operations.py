"""The operations that a credential must not be able to do, class by class, and what alone would open each of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import psycopg
from psycopg import sql

from orchestrator.grants.privileges import ALL_COLUMNS, Bound, Privilege
from orchestrator.proof.holdings import Holding


@dataclass(frozen=True, slots=True)
class Operation:
    """One statement in words and in SQL. `enough` are the privileges each of which alone would let everybody do it."""

    what: str
    statement: sql.Composed
    enough: tuple[Holding, ...] = ()
    shows_rows: bool = False
    """It is refused where it shows no row, too: that is how row limits refuse."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One class of operations. Of its `candidates`, in the order in which they are preferred, `at_most` are tried.

    `expected`: that there is no candidate is worth saying.
    """

    what: str
    candidates: Iterable[Operation]
    at_most: int = 1
    expected: bool = False


@dataclass(frozen=True, slots=True)
class _Table:
    schema: str
    name: str
    quoted: str
    """As the server writes it, for holdings."""

    @property
    def shown(self) -> str:
        return f"{self.schema}.{self.name}"

    def identifier(self) -> sql.Identifier:
        return sql.Identifier(self.schema, self.name)


def operations(session: psycopg.Connection, privileges: Sequence[Privilege], scope_role: str) -> Iterator[Kind]:
    """Every class, with the tables and columns of this database. Nothing but the catalog is read."""
    declared = {privilege.key for privilege in privileges}
    tables = [_Table(str(schema), str(name), str(text)) for schema, name, text in session.execute(_TABLES)]
    for verb in _TABLE_STATEMENTS:
        others = [each for each in tables if (each.schema, each.name, verb) not in declared]
        yield Kind(f"{verb} on another table", _on_tables(session, verb, others), expected=True)
    for privilege in privileges:
        yield from _beyond(session, privilege)
    yield Kind("create a table", map(_create_in, session.execute(_SCHEMAS).fetchall()), at_most=3, expected=True)
    yield Kind("truncate", (_truncate(table) for table in tables), expected=True)
    if tables:
        alter = sql.SQL("ALTER TABLE {} ADD COLUMN orc_probe int").format(tables[0].identifier())
        yield Kind("alter a table", [Operation("alter a table", alter)])
    become = sql.SQL("SET ROLE {}").format(sql.Identifier(scope_role))
    yield Kind("become the scope role", [Operation("become the scope role", become)])
    for what, (statement, enough) in _fixed(session).items():
        yield Kind(what, [Operation(what, statement, enough)])


def _on_tables(session: psycopg.Connection, verb: str, tables: Iterable[_Table]) -> Iterator[Operation]:
    for table in tables:
        what, enough = f"{verb} on {table.shown}", Holding("table", table.quoted, verb.upper())
        if verb == "delete":
            yield Operation(what, sql.SQL(_TABLE_STATEMENTS[verb]).format(t=table.identifier()), (enough,))
            continue
        for column, quoted in _columns(session, table.schema, table.name):
            statement = sql.SQL(_TABLE_STATEMENTS[verb]).format(t=table.identifier(), c=sql.Identifier(column))
            yield Operation(what, statement, (enough, Holding("column", f"{table.quoted}.{quoted}", verb.upper())))


def _beyond(session: psycopg.Connection, privilege: Privilege) -> Iterator[Kind]:
    """Other columns and other rows of a table that the step may use."""
    if privilege.verb != "select":
        return
    shown = f"{privilege.schema}.{privilege.name}"
    if privilege.columns != ALL_COLUMNS:
        yield Kind(f"select another column of {shown}", _other_columns(session, privilege))
    limits = [limit for limit in privilege.where if not isinstance(limit.value, Bound)]
    if limits and (privilege.columns == ALL_COLUMNS or {limit.column for limit in limits} <= set(privilege.columns)):
        outside = sql.SQL(" OR ").join(
            sql.SQL("{}::text IS DISTINCT FROM {}").format(
                sql.Identifier(limit.column),
                sql.Literal(str(limit.value).lower() if isinstance(limit.value, bool) else str(limit.value)),
            )
            for limit in limits
        )
        table = sql.Identifier(privilege.schema, privilege.name)
        statement = sql.SQL("SELECT 1 FROM {} WHERE {} LIMIT 1").format(table, outside)
        what = f"see rows of {shown} outside the limit"
        yield Kind(what, [Operation(what, statement, shows_rows=True)])


def _other_columns(session: psycopg.Connection, privilege: Privilege) -> Iterator[Operation]:
    table = sql.Identifier(privilege.schema, privilege.name)
    row = session.execute("SELECT format('%%I.%%I', %s::text, %s::text)", [privilege.schema, privilege.name]).fetchone()
    name = str(row[0]) if row else ""
    for column, quoted in _columns(session, privilege.schema, privilege.name):
        if column not in privilege.columns:
            yield Operation(
                f"select the column {column} of {privilege.schema}.{privilege.name}",
                sql.SQL("SELECT {} FROM {} LIMIT 1").format(sql.Identifier(column), table),
                (Holding("table", name, "SELECT"), Holding("column", f"{name}.{quoted}", "SELECT")),
            )


def _create_in(schema: tuple[str, str]) -> Operation:
    name, quoted = schema
    statement = sql.SQL("CREATE TABLE {} (a int)").format(sql.Identifier(name, "orc_probe"))
    return Operation(f"create a table in {name}", statement, (Holding("schema", quoted, "CREATE"),))


def _truncate(table: _Table) -> Operation:
    statement = sql.SQL("TRUNCATE {}").format(table.identifier())
    return Operation("truncate", statement, (Holding("table", table.quoted, "TRUNCATE"),))


def _columns(session: psycopg.Connection, schema: str, name: str) -> list[tuple[str, str]]:
    """Name and quoted name of the columns that may be written. Asked by names alone: `regclass` needs the schema."""
    rows = session.execute(
        "SELECT a.attname, quote_ident(a.attname) FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid"
        " JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = %s AND c.relname = %s AND a.attnum > 0"
        " AND NOT a.attisdropped AND a.attgenerated = '' AND a.attidentity <> 'a' ORDER BY a.attnum",
        [schema, name],
    )
    return [(str(column), str(quoted)) for column, quoted in rows]


_USERS = "n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'orchestrator')"

_TABLES = f"""
SELECT n.nspname, c.relname, format('%I.%I', n.nspname, c.relname)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND {_USERS} ORDER BY 1, 2
"""  # noqa: S608 -- constants of this module

_SCHEMAS = f"SELECT n.nspname, quote_ident(n.nspname) FROM pg_namespace n WHERE {_USERS} ORDER BY 1"  # noqa: S608

_TABLE_STATEMENTS = {
    "select": "SELECT {c} FROM {t} LIMIT 1",
    "insert": "INSERT INTO {t} ({c}) SELECT NULL WHERE false",
    "update": "UPDATE {t} SET {c} = NULL WHERE false",
    "delete": "DELETE FROM {t} WHERE false",
}


def _fixed(session: psycopg.Connection) -> dict[str, tuple[sql.Composed, tuple[Holding, ...]]]:
    row = session.execute(
        "SELECT quote_ident(current_database()),"
        " coalesce((SELECT rolname FROM pg_roles WHERE rolsuper ORDER BY oid LIMIT 1), 'postgres')"
    ).fetchone()
    assert row is not None
    database, administrator = map(str, row)
    stored = (
        Holding("table", "pg_catalog.pg_authid", "SELECT"),
        Holding("column", "pg_catalog.pg_authid.rolpassword", "SELECT"),
    )
    texts: dict[str, tuple[str, tuple[Holding, ...]]] = {
        "create a temporary table": (
            "CREATE TEMP TABLE orc_probe (a int)",
            (Holding("database", database, "TEMPORARY"),),
        ),
        "create a role": ("CREATE ROLE orc_probe", ()),
        "create a schema": ("CREATE SCHEMA orc_probe", (Holding("database", database, "CREATE"),)),
        "read everything by a predefined role": ("SET ROLE pg_read_all_data", ()),
        "become the administrator": ("SET SESSION AUTHORIZATION {administrator}", ()),
        "read a file of the server": ("SELECT pg_read_file('postgresql.conf')", _executes("pg_catalog.pg_read_file")),
        "run a program on the server": ("COPY (SELECT 1) TO PROGRAM 'true'", ()),
        "change the server's configuration": (
            "SELECT set_config('log_statement', 'none', false)",
            (Holding("parameter", "log_statement", "SET"),),
        ),
        "read the stored passwords": ("SELECT rolpassword FROM pg_authid LIMIT 1", stored),
        "look for leftovers of other steps": (
            "SELECT orchestrator.sweep('probe-aaaaaaaaaaaa')",
            _executes("orchestrator.sweep"),
        ),
        "set its own row limits": (
            "SELECT orchestrator.bind(session_user, 1, 'x')",
            _executes("orchestrator.bind"),
        ),
        "drop another login": ("SELECT orchestrator.revoke('orc_probe_12345678')", _executes("orchestrator.revoke")),
    }
    return {
        what: (sql.SQL(text).format(administrator=sql.Identifier(administrator)), enough)
        for what, (text, enough) in texts.items()
    }


def _executes(function: str) -> tuple[Holding, ...]:
    return (Holding("function", f"{function}(", "EXECUTE"),)

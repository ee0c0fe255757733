"""Trying what must not work: one representative operation of each class, and the server's own refusal.

Each is tried with the step's real login in a transaction that is rolled back whatever happens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

import psycopg
from psycopg import sql

from orchestrator.grants.privileges import ALL_COLUMNS, Bound, Privilege


class Verdict(StrEnum):
    """What a server said to an operation that must not work."""

    REFUSED = "refused"
    ALLOWED = "allowed"
    INCONCLUSIVE = "inconclusive"
    """The server answered with an error that says nothing about permission."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One operation, what came of it, and what was answered."""

    what: str
    verdict: Verdict
    answer: str


def try_forbidden(session: psycopg.Connection, privileges: Sequence[Privilege], scope_role: str) -> list[Trial]:
    """Try every class. The session must be the step's own, in autocommit."""
    return [_try(session, what, statement) for what, statement in _operations(session, privileges, scope_role)]


def _try(session: psycopg.Connection, what: str, statement: sql.Composed) -> Trial:
    try:
        with session.transaction(force_rollback=True):
            rows = session.execute(statement)
            if what.startswith("see rows") and rows.fetchone() is None:
                return Trial(what, Verdict.REFUSED, "no such row is visible")
    except psycopg.errors.InsufficientPrivilege as error:
        return Trial(what, Verdict.REFUSED, str(error.diag.message_primary))
    except psycopg.Error as error:
        return Trial(what, Verdict.INCONCLUSIVE, f"{error.sqlstate}: {error.diag.message_primary}")
    return Trial(what, Verdict.ALLOWED, "the server did it")


def _operations(
    session: psycopg.Connection, privileges: Sequence[Privilege], scope_role: str
) -> Iterator[tuple[str, sql.Composed]]:
    declared = {privilege.key: privilege for privilege in privileges}
    tables = [(str(schema), str(name)) for schema, name in session.execute(_TABLES)]
    for verb, statement in _TABLE_STATEMENTS.items():
        for schema, name in [each for each in tables if (*each, verb) not in declared][:1]:
            column = _columns(session, schema, name)[:1]
            if column or verb == "delete":
                yield (
                    f"{verb} on {schema}.{name}",
                    sql.SQL(statement).format(t=sql.Identifier(schema, name), c=sql.Identifier(*column or ["x"])),
                )
    for privilege in privileges:
        yield from _beyond(session, privilege)
    first = sql.Identifier(*tables[0]) if tables else sql.Identifier("pg_catalog", "pg_authid")
    schemas = sorted({schema for schema, _ in tables} | {"public"})
    for schema in schemas[:3]:
        yield (
            f"create a table in {schema}",
            sql.SQL("CREATE TABLE {} (a int)").format(sql.Identifier(schema, "orc_probe")),
        )
    yield "truncate", sql.SQL("TRUNCATE {}").format(first)
    yield "alter a table", sql.SQL("ALTER TABLE {} ADD COLUMN orc_probe int").format(first)
    yield "become the scope role", sql.SQL("SET ROLE {}").format(sql.Identifier(scope_role))
    for what, statement in _FIXED.items():
        yield what, sql.Composed([sql.SQL(statement)])


def _beyond(session: psycopg.Connection, privilege: Privilege) -> Iterator[tuple[str, sql.Composed]]:
    """Other columns and other rows of a table that the step may use."""
    table = sql.Identifier(privilege.schema, privilege.name)
    if privilege.verb != "select":
        return
    if privilege.columns != ALL_COLUMNS:
        for column in _columns(session, privilege.schema, privilege.name):
            if column not in privilege.columns:
                yield (
                    f"select the column {column} of {privilege.schema}.{privilege.name}",
                    sql.SQL("SELECT {} FROM {} LIMIT 1").format(sql.Identifier(column), table),
                )
                break
    limits = [limit for limit in privilege.where if not isinstance(limit.value, Bound)]
    if limits and (privilege.columns == ALL_COLUMNS or {limit.column for limit in limits} <= set(privilege.columns)):
        outside = sql.SQL(" OR ").join(
            sql.SQL("{}::text IS DISTINCT FROM {}").format(
                sql.Identifier(limit.column),
                sql.Literal(str(limit.value).lower() if isinstance(limit.value, bool) else str(limit.value)),
            )
            for limit in limits
        )
        yield (
            f"see rows of {privilege.schema}.{privilege.name} outside the limit",
            sql.SQL("SELECT 1 FROM {} WHERE {} LIMIT 1").format(table, outside),
        )


def _columns(session: psycopg.Connection, schema: str, name: str) -> list[str]:
    rows = session.execute(
        "SELECT attname FROM pg_attribute WHERE attrelid = to_regclass(%s) AND attnum > 0 AND NOT attisdropped"
        " AND attgenerated = '' AND attidentity <> 'a' ORDER BY attnum",
        [sql.Identifier(schema, name).as_string(None)],
    )
    return [str(row[0]) for row in rows]


_TABLES = """
SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'orchestrator')
ORDER BY 1, 2
"""

_TABLE_STATEMENTS = {
    "select": "SELECT {c} FROM {t} LIMIT 1",
    "insert": "INSERT INTO {t} ({c}) SELECT NULL WHERE false",
    "update": "UPDATE {t} SET {c} = NULL WHERE false",
    "delete": "DELETE FROM {t} WHERE false",
}

_FIXED = {
    "create a temporary table": "CREATE TEMP TABLE orc_probe (a int)",
    "create a role": "CREATE ROLE orc_probe",
    "create a schema": "CREATE SCHEMA orc_probe",
    "read everything by a predefined role": "SET ROLE pg_read_all_data",
    "become the administrator": "SET SESSION AUTHORIZATION postgres",
    "read a file of the server": "SELECT pg_read_file('postgresql.conf')",
    "run a program on the server": "COPY (SELECT 1) TO PROGRAM 'true'",
    "change the server's configuration": "SELECT set_config('log_statement', 'none', false)",
    "read the stored passwords": "SELECT rolpassword FROM pg_authid LIMIT 1",
    "look for leftovers of other steps": "SELECT orchestrator.sweep('probe-aaaaaaaaaaaa')",
    "set its own row limits": "SELECT orchestrator.bind(session_user, 1, 'x')",
    "drop another login": "SELECT orchestrator.revoke('orc_probe_12345678')",
}

"""What an administrator who is no superuser may not do of what is to be installed: asked before anything is changed."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

import psycopg
from psycopg import sql

from orchestrator.provision.database.acl import AclEntry
from orchestrator.provision.database.roles import attributes_of, missing_admins

SIGNAL = "pg_signal_backend"
"""The role with which Vault's login ends the sessions of the logins that it takes back."""


@dataclass(frozen=True, slots=True)
class Obstacle:
    """What the administrator cannot do, and the statement by which somebody who can makes it possible, once."""

    what: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Work:
    """What there is to do: `missing` are the privileges to be given, by role."""

    login: str
    missing: Mapping[str, Collection[AclEntry]]
    needs_signal: bool
    roles: Collection[str]
    """Roles that are to be changed, or given to Vault's login."""
    tables: Collection[tuple[str, str]]
    """Those with row limits: their policies are their owner's."""
    ended: Collection[tuple[str, str, str]]
    """Memberships to be ended: in words, by whose grant, and the statement."""
    flags: Mapping[str, Collection[str]]
    """What roles have of `ADMINISTRATIVE` attributes, and are to have no more."""


def obstacles(session: psycopg.Connection, work: Work) -> list[Obstacle]:
    """Everything in the way, none for a superuser. One statement a kind and object; nothing is changed."""
    row = session.execute(
        "SELECT rolname, rolsuper, rolcreaterole FROM pg_roles WHERE rolname = CURRENT_USER"
    ).fetchone()
    assert row is not None
    if row[1]:
        return []
    me = sql.Identifier(str(row[0])).as_string(None)
    found = []
    if not row[2]:
        found.append(Obstacle("make roles", f"ALTER ROLE {me} CREATEROLE"))
    if work.needs_signal and missing_admins(session, [SIGNAL]):
        found.append(
            Obstacle(
                f"give {SIGNAL} to {work.login}, which ends sessions with it",
                f"GRANT {SIGNAL} TO {me} WITH ADMIN TRUE, INHERIT FALSE, SET FALSE",
            )
        )
    for role in missing_admins(session, [work.login, *work.roles]):
        name = sql.Identifier(role).as_string(None)
        found.append(
            Obstacle(
                f"change the role {role} or hand it out: another administrator made it",
                f"GRANT {name} TO {me} WITH ADMIN TRUE, INHERIT FALSE, SET FALSE",
            )
        )
    found += _in_database(session, me)
    entries = {entry for each in work.missing.values() for entry in each if entry.schema != _OWN and entry.name != _OWN}
    found += _not_given(session, entries, me)
    for what, grantor, statement in work.ended:
        if session.execute("SELECT pg_has_role(CURRENT_USER, %s, 'USAGE')", [grantor]).fetchone() != (True,):
            found.append(Obstacle(f"end the membership of {what}, which {grantor} gave", statement))
    own = attributes_of(session, str(row[0]))
    for role, flags in work.flags.items():
        if taken := sorted(set(flags) - (own.flags if own else frozenset())):
            name = sql.Identifier(role).as_string(None)
            no = " ".join(f"NO{flag}" for flag in taken)
            found.append(Obstacle(f"take {', '.join(taken)} from the role {role}", f"ALTER ROLE {name} {no}"))
    found += _not_owned(session, work.tables, me)
    return found


_OWN = "orchestrator"


def _in_database(session: psycopg.Connection, me: str) -> Iterator[Obstacle]:
    """What a database is asked for beside privileges on its objects."""
    row = session.execute(_DATABASE).fetchone()
    assert row is not None
    database, may_create, may_use_temporary, owner, is_owner = row
    if not may_create:
        yield Obstacle("make the schema orchestrator", f"GRANT CREATE ON DATABASE {database} TO {me}")
    if not may_use_temporary:
        yield Obstacle("compare by temporary objects", f"GRANT TEMPORARY ON DATABASE {database} TO {me}")
    if owner is not None and not is_owner:
        yield Obstacle(
            f"change the schema orchestrator, which belongs to {owner}", f"ALTER SCHEMA orchestrator OWNER TO {me}"
        )


def _not_given(session: psycopg.Connection, entries: Iterable[AclEntry], me: str) -> Iterator[Obstacle]:
    """Privileges that are not his to give: he neither owns the object nor has the privilege WITH GRANT OPTION."""
    by_object: dict[tuple[str, str, str], list[AclEntry]] = {}
    for entry in sorted(entries):
        by_object.setdefault((entry.kind, entry.schema, entry.name), []).append(entry)
    for (kind, schema, name), wanted in by_object.items():
        for entry in wanted:
            row = session.execute(
                _GRANTABLE[kind if not entry.column else "COLUMN"],
                {
                    "schema": schema,
                    "name": name,
                    "column": entry.column,
                    "privilege": f"{entry.verb} WITH GRANT OPTION",
                },
            ).fetchone()
            if row is not None and not row[0]:
                clause = entry.clause().as_string(None)
                yield Obstacle(f"give {entry}, which belongs to {row[1]}", f"GRANT {clause} TO {me} WITH GRANT OPTION")


def _not_owned(session: psycopg.Connection, tables: Iterable[tuple[str, str]], me: str) -> Iterator[Obstacle]:
    for schema, name in sorted(tables):
        row = session.execute(_OWNED, [schema, name]).fetchone()
        if row is not None and not row[0]:
            table = sql.Identifier(schema, name).as_string(None)
            what = f"limit the rows of {schema}.{name}, which belongs to {row[1]}"
            yield Obstacle(what, f"ALTER TABLE {table} OWNER TO {me}")


_DATABASE = """
SELECT quote_ident(datname), has_database_privilege(oid, 'CREATE'), has_database_privilege(oid, 'TEMPORARY'),
       (SELECT pg_get_userbyid(nspowner) FROM pg_namespace WHERE nspname = 'orchestrator'),
       (SELECT pg_has_role(nspowner, 'USAGE') FROM pg_namespace WHERE nspname = 'orchestrator')
FROM pg_database WHERE datname = current_database()
"""

_RELATION = """pg_get_userbyid(c.relowner) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %(schema)s AND c.relname = %(name)s"""

_GRANTABLE = {
    "TABLE": f"SELECT has_table_privilege(c.oid, %(privilege)s), {_RELATION}",
    "COLUMN": f"SELECT has_column_privilege(c.oid, %(column)s, %(privilege)s), {_RELATION}",
    "SEQUENCE": f"SELECT has_sequence_privilege(c.oid, %(privilege)s), {_RELATION}",
    "SCHEMA": "SELECT has_schema_privilege(oid, %(privilege)s), pg_get_userbyid(nspowner) FROM pg_namespace"
    " WHERE nspname = %(name)s",
    "DATABASE": "SELECT has_database_privilege(oid, %(privilege)s), pg_get_userbyid(datdba) FROM pg_database"
    " WHERE datname = %(name)s",
    "ROUTINE": "SELECT has_function_privilege(oid, %(privilege)s), pg_get_userbyid(proowner) FROM pg_proc"
    " WHERE oid = to_regprocedure(quote_ident(%(schema)s) || '.' || %(name)s)",
}
"""Whether the administrator may give a privilege on, and the owner; by kind of object. Of an owner's it is true."""

_OWNED = """
SELECT pg_has_role(c.relowner, 'USAGE'), pg_get_userbyid(c.relowner) FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = %s AND c.relname = %s
"""

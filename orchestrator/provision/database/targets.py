"""Whether what the grants name exists in the database, asked of its catalog before anything is changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import psycopg

from orchestrator.grants.privileges import ALL_COLUMNS, TABLE_VERBS, Privilege, qualified
from orchestrator.provision.database.acl import SIGNATURE

_TABLES = "rvmpf"
_LIMITABLE = "rp"


@dataclass(slots=True)
class Targets:
    """What was found. `problems` says what is not there or cannot be granted, for people."""

    signatures: dict[Privilege, str] = field(default_factory=dict)
    types: dict[tuple[str, str, str], str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def find_targets(session: psycopg.Connection, privileges: Iterable[Privilege]) -> Targets:
    """Look up every table, column, function and sequence of the privileges."""
    targets = Targets()
    for privilege in sorted(set(privileges), key=lambda each: each.key):
        if privilege.verb == "schema":
            targets.problems += _schema(session, privilege)
        elif privilege.verb == "execute":
            _function(session, privilege, targets)
        else:
            targets.problems += _relation(session, privilege, targets)
    return targets


def _function(session: psycopg.Connection, privilege: Privilege, targets: Targets) -> None:
    name = f"{qualified(privilege.schema, privilege.name, function=True)}"
    row = session.execute(
        f"SELECT {SIGNATURE} FROM pg_proc p WHERE p.oid = to_regprocedure(%(name)s)",  # noqa: S608 -- a constant
        {"name": name},
    ).fetchone()
    if row is None:
        targets.problems.append(f"there is no function or procedure {name}; name it with the types of its arguments")
    else:
        targets.signatures[privilege] = str(row[0])


def _schema(session: psycopg.Connection, privilege: Privilege) -> Iterator[str]:
    if session.execute("SELECT FROM pg_namespace WHERE nspname = %s", [privilege.schema]).fetchone() is None:
        yield f"there is no schema {privilege.object}"


def _relation(session: psycopg.Connection, privilege: Privilege, targets: Targets) -> Iterator[str]:
    name = qualified(privilege.schema, privilege.name)
    row = session.execute(
        "SELECT c.oid, c.relkind::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE n.nspname = %s AND c.relname = %s",
        [privilege.schema, privilege.name],
    ).fetchone()
    kind = str(row[1]) if row else ""
    if row is None:
        yield f"there is no {'table or view' if privilege.verb in TABLE_VERBS else 'sequence'} {name}"
        return
    if privilege.verb in TABLE_VERBS and kind not in _TABLES:
        yield f"{name} is not a table or view, so `{privilege.verb}` means nothing on it"
    elif privilege.verb == "usage" and kind != "S":
        yield f"{name} is not a sequence, so `usage` means nothing on it"
    elif privilege.where and kind not in _LIMITABLE:
        yield f"{name} is not a table, so its rows cannot be limited: limit those of the tables behind it"
    else:
        yield from _columns(session, int(row[0]), privilege, targets)


def _columns(session: psycopg.Connection, oid: int, privilege: Privilege, targets: Targets) -> Iterator[str]:
    rows = session.execute(
        "SELECT attname, format_type(atttypid, -1) FROM pg_attribute"
        " WHERE attrelid = %s AND (attnum > 0 OR %s) AND NOT attisdropped",
        [oid, privilege.verb == "select"],  # the system columns can be read
    )
    known: Mapping[str, str] = {str(column): str(kind) for column, kind in rows}
    named = () if privilege.columns == ALL_COLUMNS else privilege.columns
    for column in sorted({*named, *(limit.column for limit in privilege.where)}):
        if column not in known:
            yield f"{qualified(privilege.schema, privilege.name)} has no column {column!r}"
        else:
            targets.types[privilege.schema, privilege.name, column] = known[column]

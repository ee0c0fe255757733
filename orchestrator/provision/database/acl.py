"""Access privileges in PostgreSQL's catalog: one entry each, read and written by the same words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import psycopg
from psycopg import sql

from orchestrator.grants.privileges import ALL_COLUMNS, Privilege


@dataclass(frozen=True, slots=True, order=True)
class AclEntry:
    """One privilege of one role: on a table (or one column of it), sequence, schema, database or routine.

    The `name` of a routine (a function or a procedure) is its signature as the catalog writes it, quoted where needed.
    """

    verb: str
    kind: str
    schema: str
    name: str
    column: str = ""
    grantable: bool = False

    def __str__(self) -> str:
        where = ".".join(part for part in (self.schema, self.name) if part)
        option = " WITH GRANT OPTION" if self.grantable else ""
        return f"{self.verb}{f' ({self.column})' if self.column else ''} ON {self.kind} {where}{option}"

    def clause(self) -> sql.Composed:
        """`SELECT (a) ON TABLE s.t`, for GRANT and REVOKE."""
        verb: sql.Composable = sql.SQL(self.verb)
        if self.column:
            verb = sql.SQL("{} ({})").format(verb, sql.Identifier(self.column))
        name: sql.Composable = sql.Identifier(*(part for part in (self.schema, self.name) if part))
        if self.kind == "ROUTINE":
            name = sql.SQL("{}.{}").format(sql.Identifier(self.schema), sql.SQL(self.name))
        return sql.SQL("{} ON {} {}").format(verb, sql.SQL(self.kind), name)


def entries(privileges: Iterable[Privilege], signatures: Mapping[Privilege, str]) -> set[AclEntry]:
    """What a scope role must hold for these privileges; `signatures` are those of functions, by the catalog."""
    found: set[AclEntry] = set()
    for each in privileges:
        found.add(AclEntry("USAGE", "SCHEMA", "", each.schema))
        if each.verb == "schema":
            continue
        if each.verb == "execute":
            found.add(AclEntry("EXECUTE", "ROUTINE", each.schema, signatures[each]))
        elif each.verb == "usage":
            found.add(AclEntry("USAGE", "SEQUENCE", each.schema, each.name))
        else:
            columns = [""] if each.columns in ((), ALL_COLUMNS) else each.columns
            found |= {AclEntry(each.verb.upper(), "TABLE", each.schema, each.name, column) for column in columns}
    return found


def held_by(session: psycopg.Connection, role: str) -> set[AclEntry]:
    """The entries that name the role in this database; not those that it inherits, or has of what it owns."""
    return {
        AclEntry(str(verb), str(kind), str(schema), str(name), str(column), bool(grantable))
        for verb, kind, schema, name, column, grantable in session.execute(_HELD, {"role": role})
    }


def unexpected_by(session: psycopg.Connection, role: str) -> list[str]:
    """What else in this database belongs to the role or names it: objects, default privileges, large objects, types."""
    return [str(row[0]) for row in session.execute(_UNEXPECTED, {"role": role})]


SIGNATURE = """format('%%I(%%s)', p.proname,
    coalesce((SELECT string_agg(format_type(t, NULL), ', ' ORDER BY n) FROM unnest(p.proargtypes)
    WITH ORDINALITY AS argument (t, n)), ''))"""
"""The signature of `pg_proc p`, with types qualified that are not in the search path."""

_HELD = f"""
SELECT a.privilege_type, CASE c.relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END, n.nspname, c.relname, '',
       a.is_grantable FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace, aclexplode(c.relacl) a
       WHERE a.grantee = to_regrole(quote_ident(%(role)s)) AND a.grantee <> c.relowner
UNION SELECT a.privilege_type, 'TABLE', n.nspname, c.relname, t.attname, a.is_grantable FROM pg_attribute t
       JOIN pg_class c ON c.oid = t.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace,
       aclexplode(t.attacl) a WHERE a.grantee = to_regrole(quote_ident(%(role)s)) AND a.grantee <> c.relowner
UNION SELECT a.privilege_type, 'SCHEMA', '', n.nspname, '', a.is_grantable FROM pg_namespace n, aclexplode(n.nspacl) a
       WHERE a.grantee = to_regrole(quote_ident(%(role)s)) AND a.grantee <> n.nspowner
UNION SELECT a.privilege_type, 'DATABASE', '', d.datname, '', a.is_grantable FROM pg_database d, aclexplode(d.datacl) a
       WHERE a.grantee = to_regrole(quote_ident(%(role)s)) AND d.datname = current_database()
UNION SELECT a.privilege_type, 'ROUTINE', s.nspname, {SIGNATURE}, '', a.is_grantable
       FROM pg_proc p JOIN pg_namespace s ON s.oid = p.pronamespace, aclexplode(p.proacl) a
       WHERE a.grantee = to_regrole(quote_ident(%(role)s)) AND a.grantee <> p.proowner
"""  # noqa: S608 -- constants of this module

_UNEXPECTED = """
SELECT CASE d.deptype WHEN 'o' THEN 'owns ' ELSE 'is named in the privileges of ' END
       || pg_describe_object(d.classid, d.objid, d.objsubid)
FROM pg_shdepend d
WHERE d.refclassid = 'pg_authid'::regclass AND d.refobjid = to_regrole(quote_ident(%(role)s))
      AND d.dbid IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
      AND (d.deptype = 'o' OR (d.deptype = 'a' AND d.classid NOT IN ('pg_class'::regclass, 'pg_namespace'::regclass,
           'pg_database'::regclass, 'pg_proc'::regclass)))
ORDER BY 1
"""

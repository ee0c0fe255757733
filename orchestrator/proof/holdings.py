"""Everything that a login may do in a PostgreSQL server, by the server's own catalog.

Asked in the login's own session, with nothing but what every login may read. What every login of a
fresh server has is left out: the privileges that PUBLIC was given on system objects when the
server was made (`pg_init_privs`; PostgreSQL manual, 5.8 and 53.28).
"""

from __future__ import annotations

from dataclasses import dataclass

import psycopg

PUBLIC = "PUBLIC"


@dataclass(frozen=True, slots=True, order=True)
class Holding:
    """One privilege on one object, named as the server quotes it."""

    kind: str
    object: str
    privilege: str

    def __str__(self) -> str:
        return f"{self.privilege} on {self.kind} {self.object}"


@dataclass(frozen=True, slots=True)
class Share:
    """How many of the privileges that exist on the objects of a database somebody holds."""

    held: int
    total: int

    @property
    def percent(self) -> float:
        """Of a hundred; 0 where there is nothing to hold."""
        return 100 * self.held / self.total if self.total else 0.0


def holdings(session: psycopg.Connection) -> dict[Holding, str]:
    """Every privilege of the session's login, with the role through which it has it (`PUBLIC` for everybody)."""
    found: dict[Holding, str] = {}
    for statement in (_ACLS, _OWNED, _ROLES, _ATTRIBUTES):
        for kind, name, privilege, via in session.execute(statement):
            holding = Holding(str(kind), str(name), str(privilege))
            if found.get(holding) in (None, PUBLIC):
                found[holding] = str(via)
    return found


def share(session: psycopg.Connection, role: str | None = None) -> Share:
    """The share of a role, or of the session's own login, in all privileges on the objects of this database."""
    row = session.execute(_SHARE, {"role": role}).fetchone()
    assert row is not None
    return Share(int(row[0]), int(row[1]))


_MINE = "(a.grantee = 0 OR pg_has_role(session_user, a.grantee, 'USAGE'))"
_VIA = "CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE pg_get_userbyid(a.grantee) END"


_STANDARD_VIEWS = "n.nspname = 'information_schema' AND n.oid < 16384 AND a.grantee = 0"
"""The SQL standard's views, which everybody may read and which show nobody more than what is his."""


def _beyond_initial(classid: str, oid: str, owner: str, kind: str, subid: str = "0") -> str:
    default = f"acldefault('{kind}', {owner})" if kind else "NULL::aclitem[]"
    return (
        f"NOT (a.grantee = 0 AND {oid} < 16384 AND EXISTS (SELECT FROM aclexplode(coalesce("  # noqa: S608 -- constants
        f"(SELECT i.initprivs FROM pg_init_privs i WHERE i.classoid = '{classid}'::regclass AND i.objoid = {oid}"
        f" AND i.objsubid = {subid}), {default})) f WHERE f.grantee = 0 AND f.privilege_type = a.privilege_type))"
    )


def _acl(kind: str, name: str, source: str, acl: str, beyond: str) -> str:
    return (
        f"SELECT {kind}, {name}, a.privilege_type"  # noqa: S608 -- constants of this module
        " || CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END,"
        f" {_VIA} FROM {source}, aclexplode({acl}) a WHERE {_MINE} AND {beyond}"
    )


_ACLS = " UNION ALL ".join(
    (
        _acl(
            "CASE c.relkind WHEN 'S' THEN 'sequence' ELSE 'table' END",
            "format('%I.%I', n.nspname, c.relname)",
            "pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace",
            "coalesce(c.relacl, acldefault(CASE c.relkind WHEN 'S' THEN 's' ELSE 'r' END::\"char\", c.relowner))",
            "a.grantee <> c.relowner AND c.relkind IN ('r','v','m','p','f','S')"
            f" AND NOT (a.privilege_type = 'SELECT' AND {_STANDARD_VIEWS}) AND "
            + _beyond_initial("pg_class", "c.oid", "c.relowner", "r"),
        ),
        _acl(
            "'column'",
            "format('%I.%I.%I', n.nspname, c.relname, t.attname)",
            "pg_attribute t JOIN pg_class c ON c.oid = t.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace",
            "t.attacl",
            "NOT t.attisdropped AND " + _beyond_initial("pg_class", "c.oid", "c.relowner", "", "t.attnum"),
        ),
        _acl(
            "'function'",
            "format('%I.%I(%s)', n.nspname, p.proname, pg_get_function_identity_arguments(p.oid))",
            "pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace",
            "coalesce(p.proacl, acldefault('f', p.proowner))",
            "a.grantee <> p.proowner AND " + _beyond_initial("pg_proc", "p.oid", "p.proowner", "f"),
        ),
        _acl(
            "'schema'",
            "quote_ident(n.nspname)",
            "pg_namespace n",
            "coalesce(n.nspacl, acldefault('n', n.nspowner))",
            f"a.grantee <> n.nspowner AND NOT (a.privilege_type = 'USAGE' AND {_STANDARD_VIEWS}) AND "
            + _beyond_initial("pg_namespace", "n.oid", "n.nspowner", "n"),
        ),
        _acl(
            "'database'",
            "quote_ident(d.datname)",
            "pg_database d",
            "coalesce(d.datacl, acldefault('d', d.datdba))",
            "a.grantee <> d.datdba AND (d.datallowconn OR a.grantee <> 0)",
        ),
        _acl(
            "'language'",
            "quote_ident(l.lanname)",
            "pg_language l",
            "coalesce(l.lanacl, acldefault('l', l.lanowner))",
            "a.grantee <> l.lanowner AND " + _beyond_initial("pg_language", "l.oid", "l.lanowner", "l"),
        ),
        _acl(
            "'large object'",
            "o.oid::text",
            "pg_largeobject_metadata o",
            "coalesce(o.lomacl, acldefault('L', o.lomowner))",
            "a.grantee <> o.lomowner",
        ),
        _acl("'parameter'", "m.parname", "pg_parameter_acl m", "m.paracl", "true"),
        _acl("'tablespace'", "quote_ident(s.spcname)", "pg_tablespace s", "s.spcacl", "a.grantee <> s.spcowner"),
        _acl(
            "'foreign server'",
            "quote_ident(s.srvname)",
            "pg_foreign_server s",
            "coalesce(s.srvacl, acldefault('S', s.srvowner))",
            "a.grantee <> s.srvowner",
        ),
        _acl(
            "'foreign data wrapper'",
            "quote_ident(w.fdwname)",
            "pg_foreign_data_wrapper w",
            "coalesce(w.fdwacl, acldefault('F', w.fdwowner))",
            "a.grantee <> w.fdwowner",
        ),
    )
)

_OWNED = """
SELECT 'object', pg_describe_object(classid, objid, objsubid), 'OWNER', pg_get_userbyid(refobjid)
FROM pg_shdepend WHERE refclassid = 'pg_authid'::regclass AND deptype = 'o'
     AND pg_has_role(session_user, refobjid, 'USAGE')
     AND dbid IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
"""

_ROLES = """
SELECT 'role', quote_ident(r.rolname), p.name, 'membership' FROM pg_roles r
CROSS JOIN (VALUES ('USAGE', 'INHERIT'), ('SET', 'SET'), ('MEMBER WITH ADMIN OPTION', 'ADMIN')) p (test, name)
WHERE r.rolname <> session_user AND pg_has_role(session_user, r.oid, p.test)
"""

_ATTRIBUTES = """
SELECT 'attribute', a.name, 'ATTRIBUTE', r.rolname FROM pg_roles r,
LATERAL (VALUES ('SUPERUSER', r.rolsuper), ('CREATEROLE', r.rolcreaterole), ('CREATEDB', r.rolcreatedb),
                ('REPLICATION', r.rolreplication), ('BYPASSRLS', r.rolbypassrls)) a (name, held)
WHERE r.rolname = session_user AND a.held
"""

_USERS = "n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'orchestrator')"

_SHARE = f"""
WITH who AS (SELECT coalesce(%(role)s, session_user)::name AS role),
units AS (
    SELECT has_column_privilege(w.role, c.oid, t.attnum, p.name) AS held
    FROM who w, pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
         JOIN pg_attribute t ON t.attrelid = c.oid AND t.attnum > 0 AND NOT t.attisdropped,
         (VALUES ('SELECT'), ('INSERT'), ('UPDATE'), ('REFERENCES')) p (name)
    WHERE {_USERS} AND c.relkind IN ('r','v','m','p','f')
    UNION ALL SELECT has_table_privilege(w.role, c.oid, p.name)
    FROM who w, pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace,
         (VALUES ('DELETE'), ('TRUNCATE'), ('TRIGGER')) p (name)
    WHERE {_USERS} AND c.relkind IN ('r','v','m','p','f')
    UNION ALL SELECT has_sequence_privilege(w.role, c.oid, p.name)
    FROM who w, pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace,
         (VALUES ('USAGE'), ('SELECT'), ('UPDATE')) p (name) WHERE {_USERS} AND c.relkind = 'S'
    UNION ALL SELECT has_function_privilege(w.role, f.oid, 'EXECUTE')
    FROM who w, pg_proc f JOIN pg_namespace n ON n.oid = f.pronamespace WHERE {_USERS}
    UNION ALL SELECT has_schema_privilege(w.role, n.oid, p.name)
    FROM who w, pg_namespace n, (VALUES ('USAGE'), ('CREATE')) p (name) WHERE {_USERS}
    UNION ALL SELECT has_database_privilege(w.role, current_database(), p.name)
    FROM who w, (VALUES ('CONNECT'), ('CREATE'), ('TEMPORARY')) p (name)
)
SELECT count(*) FILTER (WHERE held), count(*) FROM units
"""  # noqa: S608 -- constants of this module

"""The schema `orchestrator`: what is to be in it, who may use it, and whether it is ours at all.

Its functions run with the rights of Vault's own login, so whoever owns one of its objects, or may add one, owns every
login that Vault makes. So nothing that is there already is taken over: it has to belong to the administrator who
provisions, to a superuser, or to Vault's login, and there has to be nothing else.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from orchestrator.grants.compiled import SCOPE_ROLE_PREFIX
from orchestrator.provision.change import Change, difference
from orchestrator.provision.database.acl import SIGNATURE
from orchestrator.provision.database.statements import BINDING_TABLE, BOUND, FOR_EVERYBODY, FUNCTIONS

SCHEMA = "orchestrator"


@dataclass(frozen=True, slots=True)
class OwnSchema:
    """In one database, whose Vault login is `login`. `roles` are those that may be granted something in it."""

    session: psycopg.Connection
    login: str
    roles: Collection[str]

    def squatters(self) -> list[str]:
        """What is in our place and is not ours, as PostgreSQL describes it."""
        owner = self._one(_OWNER)
        if owner is None:
            return []
        ours = {"pg_proc": set[int](), "pg_class": set[int]()}
        found = [] if self._may_own(str(owner)) else [f"schema {SCHEMA} belongs to {owner}"]
        for kind, lookup, names in (
            ("pg_proc", "to_regprocedure", [f"{SCHEMA}.{signature}" for signature in FUNCTIONS]),
            ("pg_class", "to_regclass", [f"{SCHEMA}.binding"]),
        ):
            for name in names:
                if (oid := self._one(f"SELECT {lookup}(%s)::oid", name)) is not None:
                    ours[kind].add(int(oid))
        for kind, oid, description, owned_by in self.session.execute(_IN_SCHEMA):
            if int(oid) not in ours.get(str(kind), ()):
                found.append(str(description))
            elif not self._may_own(str(owned_by)):
                found.append(f"{description} belongs to {owned_by}")
        if ours["pg_class"]:
            found += [str(row[0]) for row in self.session.execute(_BESIDE_TABLE)]
            if (shape := self._one(_SHAPE)) != _TABLE_SHAPE:
                found.append(f"table {SCHEMA}.binding is another one: {shape}")
        return sorted(found)

    def differences(self, place: str) -> Iterator[Change | None]:
        """What `statements` would change."""
        owner = self._one(
            "SELECT pg_get_userbyid(relowner) FROM pg_class WHERE oid = to_regclass('orchestrator.binding')"
        )
        yield difference(f"{place} table {SCHEMA}.binding", owner and f"private to {owner}", f"private to {self.login}")
        attached = [str(row[0]) for row in self.session.execute(_ATTACHED)]
        yield difference(f"{place} what happens on {SCHEMA}.binding", "\n".join(attached) or "nothing", "nothing")
        expected = self._expected()
        for signature in FUNCTIONS:
            yield difference(
                f"{place} function {SCHEMA}.{signature}",
                self._function(signature),
                _text(expected[signature], self.login),
            )
        for signature in FOR_EVERYBODY:
            who = "everybody" if self._one(_EVERYBODY, f"{SCHEMA}.{signature}") else "nobody"
            yield difference(f"{place} who may call {SCHEMA}.{signature}", who, "everybody")
        others = "\n".join(sorted(f"{verb} {what} to {grantee}" for verb, what, grantee, _ in self._others()))
        yield difference(f"{place} privileges of others in {SCHEMA}", others or "none", "none")

    def statements(self) -> Iterator[sql.Composed]:
        """What makes it so, to be executed one after the other; the schema is there, and there are no squatters."""
        login = sql.Identifier(self.login)
        yield sql.SQL("GRANT USAGE, CREATE ON SCHEMA orchestrator TO {}").format(login)
        yield sql.Composed([sql.SQL(BINDING_TABLE)])
        if self._one(_TABLE_OWNER) != self.login:  # it would wait for every step that has asked for its rows
            yield sql.SQL("ALTER TABLE orchestrator.binding OWNER TO {}").format(login)
        for _, drop, name in self.session.execute(_ATTACHED).fetchall():
            yield sql.SQL("DROP {} {} ON orchestrator.binding").format(sql.SQL(drop), sql.Identifier(str(name)))
        for signature, text in FUNCTIONS.items():
            function = sql.SQL(f"{SCHEMA}.{signature}")
            yield sql.SQL(_REPLACE).format(sql.SQL(text), function)
            yield sql.SQL("ALTER FUNCTION {} OWNER TO {}").format(function, login)
        yield sql.SQL("REVOKE CREATE ON SCHEMA orchestrator FROM {}").format(login)
        for signature in FOR_EVERYBODY:
            yield sql.SQL("GRANT EXECUTE ON FUNCTION {} TO PUBLIC").format(sql.SQL(f"{SCHEMA}.{signature}"))
        for _, what, grantee, is_public in self._others():
            from_whom = sql.SQL("PUBLIC") if is_public else sql.Identifier(grantee)
            columns, _, where = what.rpartition(" ON ")
            yield sql.SQL("REVOKE ALL {}ON {} FROM {} CASCADE").format(sql.SQL(columns), sql.SQL(where), from_whom)

    def _may_own(self, owner: str) -> bool:
        return owner == self.login or bool(self._one(_MAY_OWN, owner))

    def _others(self) -> list[tuple[str, str, str, bool]]:
        """Verb, object, grantee, whether that is PUBLIC: what nobody but the owner and the roles of ours may hold."""
        rows = self.session.execute(_PRIVILEGES, {"roles": sorted(self.roles), "login": self.login})
        return [
            (str(verb), str(what), str(grantee), bool(public))
            for verb, what, grantee, public in rows
            if not (str(grantee).startswith(SCOPE_ROLE_PREFIX) and what == f" ON FUNCTION {SCHEMA}.{BOUND}")
            and not (public and what in {f" ON FUNCTION {SCHEMA}.{each}" for each in FOR_EVERYBODY})
        ]

    def _expected(self) -> dict[str, dict[str, Any]]:
        """How the catalog would write our functions: asked of it, in the session's temporary schema."""
        with self.session.transaction(force_rollback=True):
            self.session.execute("SET LOCAL check_function_bodies = off")
            for text in FUNCTIONS.values():
                made = text.replace(f"FUNCTION {SCHEMA}.", "FUNCTION pg_temp.", 1)
                self.session.execute(made)
            return {signature: self._one(_FUNCTION, f"pg_temp.{signature}") for signature in FUNCTIONS}

    def _function(self, signature: str) -> str | None:
        row = self.session.execute(
            "SELECT pg_get_userbyid(p.proowner) FROM pg_proc p WHERE p.oid = to_regprocedure(%s)",
            [f"{SCHEMA}.{signature}"],
        ).fetchone()
        return None if row is None else _text(self._one(_FUNCTION, f"{SCHEMA}.{signature}"), str(row[0]))

    def _one(self, statement: str, *parameters: Any) -> Any:
        row = self.session.execute(statement, parameters).fetchone()
        return None if row is None else row[0]


def _text(function: dict[str, Any], owner: str) -> str:
    """For the diff: the body, and each attribute that the catalog keeps beside it."""
    rest = {name: value for name, value in sorted(function.items()) if name != "prosrc" and value is not None}
    return "\n".join([str(function["prosrc"]).strip(), f"-- owner {owner}", *(f"-- {k} {v}" for k, v in rest.items())])


_OWNER = "SELECT pg_get_userbyid(nspowner) FROM pg_namespace WHERE nspname = 'orchestrator'"

_TABLE_OWNER = "SELECT pg_get_userbyid(relowner) FROM pg_class WHERE oid = to_regclass('orchestrator.binding')"

_MAY_OWN = "SELECT rolsuper OR rolname = CURRENT_USER FROM pg_roles WHERE rolname = %s"

_IN_SCHEMA = """
SELECT d.classid::regclass::text, d.objid, pg_describe_object(d.classid, d.objid, d.objsubid),
       pg_get_userbyid(coalesce(
           (SELECT proowner FROM pg_proc WHERE d.classid = 'pg_proc'::regclass AND oid = d.objid),
           (SELECT relowner FROM pg_class WHERE d.classid = 'pg_class'::regclass AND oid = d.objid)))
FROM pg_depend d
WHERE d.refclassid = 'pg_namespace'::regclass
      AND d.refobjid = (SELECT oid FROM pg_namespace WHERE nspname = 'orchestrator')
"""

_BESIDE_TABLE = """
SELECT DISTINCT pg_describe_object(d.classid, d.objid, 0) FROM pg_depend d
LEFT JOIN pg_class c ON d.classid = 'pg_class'::regclass AND c.oid = d.objid
LEFT JOIN pg_constraint k ON d.classid = 'pg_constraint'::regclass AND k.oid = d.objid
LEFT JOIN pg_rewrite r ON d.classid = 'pg_rewrite'::regclass AND r.oid = d.objid
WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid = 'orchestrator.binding'::regclass
      AND d.classid NOT IN ('pg_type'::regclass, 'pg_trigger'::regclass, 'pg_policy'::regclass)
      AND c.relkind IS DISTINCT FROM 't' AND coalesce(k.contype NOT IN ('p', 'n'), true)
      AND r.ev_class IS DISTINCT FROM d.refobjid
"""
"""Views, foreign keys, children, indexes, publications and what else hangs from the table; of its own only the key."""

_ATTACHED = """
SELECT pg_get_triggerdef(oid), 'TRIGGER', tgname FROM pg_trigger
       WHERE tgrelid = to_regclass('orchestrator.binding') AND NOT tgisinternal
UNION ALL SELECT pg_get_ruledef(oid), 'RULE', rulename FROM pg_rewrite
       WHERE ev_class = to_regclass('orchestrator.binding')
UNION ALL SELECT 'POLICY ' || polname || coalesce(' ' || pg_get_expr(polqual, polrelid), ''), 'POLICY', polname
       FROM pg_policy WHERE polrelid = to_regclass('orchestrator.binding')
"""

_SHAPE = """
SELECT concat_ws(' ', c.relkind, c.relpersistence, c.relrowsecurity, c.relforcerowsecurity, c.relispartition,
       c.reloptions::text, (SELECT string_agg(concat_ws(' ', attname, format_type(atttypid, atttypmod), attnotnull,
       atthasdef, attidentity, attgenerated), ', ' ORDER BY attnum) FROM pg_attribute
       WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped),
       (SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = c.oid AND contype = 'p'))
FROM pg_class c WHERE c.oid = 'orchestrator.binding'::regclass
"""

_TABLE_SHAPE = "r p f f f login name t f  , number integer t f  , value text t f   PRIMARY KEY (login, number)"

_FUNCTION = """
SELECT to_jsonb(p) - '{oid,proname,pronamespace,proowner,proacl}'::text[] FROM pg_proc p
WHERE p.oid = to_regprocedure(%s)
"""

_EVERYBODY = """
SELECT true FROM pg_proc p, aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
WHERE p.oid = to_regprocedure(%s) AND a.grantee = 0 AND a.privilege_type = 'EXECUTE'
"""

_PRIVILEGES = f"""
SELECT a.privilege_type, a.what, coalesce(r.rolname, 'PUBLIC'), a.grantee = 0 FROM (
    SELECT e.*, ' ON SCHEMA orchestrator' AS what, n.nspowner AS owner FROM pg_namespace n, aclexplode(n.nspacl) e
        WHERE n.nspname = 'orchestrator'
    UNION ALL SELECT e.*, ' ON TABLE orchestrator.binding', c.relowner FROM pg_class c, aclexplode(c.relacl) e
        WHERE c.oid = to_regclass('orchestrator.binding')
    UNION ALL SELECT e.*, format('(%%I) ON TABLE orchestrator.binding', t.attname), c.relowner FROM pg_attribute t
        JOIN pg_class c ON c.oid = t.attrelid, aclexplode(t.attacl) e WHERE c.oid = to_regclass('orchestrator.binding')
    UNION ALL SELECT e.*, ' ON FUNCTION orchestrator.' || {SIGNATURE}, p.proowner FROM pg_proc p
        JOIN pg_namespace n ON n.oid = p.pronamespace, aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) e
        WHERE n.nspname = 'orchestrator'
) a LEFT JOIN pg_roles r ON r.oid = a.grantee
WHERE a.grantee <> a.owner AND NOT coalesce(r.rolname = ANY(%(roles)s), false)
      AND NOT coalesce(r.rolname = %(login)s AND a.what = ' ON SCHEMA orchestrator' AND a.privilege_type = 'USAGE'
                       AND NOT a.is_grantable, false)
"""  # noqa: S608 -- constants of this module

_REPLACE = """
DO $do$ BEGIN
{0};
EXCEPTION WHEN invalid_function_definition THEN
DROP FUNCTION {1};
{0};
END $do$
"""
"""CREATE OR REPLACE cannot change what a function returns, which differs in other versions."""

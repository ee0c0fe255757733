"""Row limits as restrictive row security policies for scope roles; everybody else sees the rows that they saw.

A table with limited scopes gets row level security. Every scope role with a limit gets one
restrictive policy for each verb, `column = value`: a constant, or what `orchestrator.bound(n)`
answers for the session's own login. If row level security was off before, a permissive policy
`orchestrator_everyone` lets everybody else see what they saw, as long as there is no permissive policy
of somebody else's: the owner's policies mean what they say from the moment they are made, and the limits
come on top of them (PostgreSQL manual, 5.9, "Row Security Policies").
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import psycopg
from psycopg import sql

from orchestrator.grants.compiled import SCOPE_ROLE_PREFIX, CompiledGrant
from orchestrator.grants.privileges import Bound, Privilege, bound_limits
from orchestrator.grants.sql.row_security import EVERYONE

_OURS = "orchestrator\\_%"

Table = tuple[str, str]
Types = Mapping[tuple[str, str, str], str]
"""The type of each column with a limit, as the catalog writes it, by schema, table and column."""


@dataclass(frozen=True, slots=True)
class RowPolicy:
    """One restrictive policy. `condition` is SQL over the columns of the table."""

    table: Table
    scope_role: str
    verb: str
    condition: sql.Composed

    @property
    def name(self) -> str:
        """`orchestrator_SCOPE_VERB`: unique on the table, and the same whenever it is compiled."""
        return f"orchestrator_{self.scope_role.removeprefix(SCOPE_ROLE_PREFIX)}_{self.verb}"

    def create(self, table: sql.Composable) -> sql.Composed:
        """CREATE POLICY on the table, or on another one with the same columns."""
        using = sql.SQL(" USING ({})").format(self.condition) if self.verb != "insert" else sql.SQL("")
        check = sql.SQL(" WITH CHECK ({})").format(self.condition) if self.verb in ("insert", "update") else sql.SQL("")
        return sql.SQL("CREATE POLICY {} ON {} AS RESTRICTIVE FOR {} TO {}{}{}").format(
            sql.Identifier(self.name), table, sql.SQL(self.verb.upper()), sql.Identifier(self.scope_role), using, check
        )


def row_policies(grant: CompiledGrant, types: Types) -> list[RowPolicy]:
    """The policies that a grant needs."""
    numbers = {
        (privilege.key, limit.column): number
        for number, (privilege, limit) in enumerate(bound_limits(grant.privileges), 1)
    }

    def condition(privilege: Privilege) -> sql.Composed:
        parts = []
        for limit in privilege.where:
            value: sql.Composable
            if isinstance(limit.value, Bound):
                number = numbers[privilege.key, limit.column]
                value = sql.SQL("(SELECT orchestrator.bound({}))").format(sql.Literal(number))
            else:
                constant = str(limit.value).lower() if isinstance(limit.value, bool) else str(limit.value)
                value = sql.SQL("{}::text").format(sql.Literal(constant))
            kind = sql.SQL(types[privilege.schema, privilege.name, limit.column])
            parts.append(sql.SQL("{} = {}::{}").format(sql.Identifier(limit.column), value, kind))
        return sql.SQL(" AND ").join(parts)

    return [
        RowPolicy((privilege.schema, privilege.name), grant.scope_role, privilege.verb, condition(privilege))
        for privilege in grant.privileges
        if privilege.where
    ]


@dataclass(frozen=True, slots=True)
class TableSecurity:
    """The row security of one table: our policies as the catalog writes them, by name."""

    policies: Mapping[str, str]
    switched_on: bool
    everyone: str | None
    foreign: int
    """How many policies somebody else made."""
    ours: bool
    """Whether row level security was off before our first policy; a comment on our policies remembers it."""

    def text(self) -> str | None:
        """For the diff; None where there is nothing of ours."""
        lines = [*sorted(self.policies.values()), *([self.everyone] if self.everyone else [])]
        return "\n".join(["row level security " + ("on" if self.switched_on else "off"), *lines]) if lines else None


def target(now: TableSecurity, wanted: Mapping[str, str], everyone: str, *, prune: bool) -> TableSecurity:
    """What a table should become. Policies of scopes that are not asked about stay, unless `prune`.

    `everyone` is how the catalog would write the policy for everybody else on this table.
    """
    policies = {**({} if prune else now.policies), **wanted}
    ours = now.ours or not (now.switched_on or now.policies)
    switched_on = bool(policies) or (now.switched_on and (not ours or now.foreign > 0))
    wants_everyone = bool(policies) and ours and not now.foreign
    return TableSecurity(
        policies, switched_on, everyone if wants_everyone else None, now.foreign, ours and bool(policies)
    )


class RowLimits:
    """The row security of one database: what is wanted, what is there, and the way from one to the other."""

    def __init__(self, session: psycopg.Connection, policies: Iterable[RowPolicy], *, prune: bool) -> None:
        self._session = session
        self._wanted: dict[Table, dict[str, RowPolicy]] = {}
        for policy in policies:
            self._wanted.setdefault(policy.table, {})[policy.name] = policy
        self._prune = prune

    def tables(self) -> dict[Table, tuple[TableSecurity, TableSecurity]]:
        """What is there and what is wanted, for each table that either concerns."""
        there = {(str(schema), str(name)) for schema, name in self._session.execute(_OUR_TABLES, {"like": _OURS})}
        found = {}
        for table in sorted(there | set(self._wanted)):
            now = self._now(table)
            expected = self._expected(table)
            found[table] = (now, target(now, expected, expected.pop(EVERYONE), prune=self._prune))
        return found

    def undeclared(self) -> dict[Table, list[str]]:
        """Policies with names of ours that none of the wanted scopes needs, as the catalog writes them, by table."""
        found = {}
        for table, (now, _) in self.tables().items():
            others = [text for name, text in sorted(now.policies.items()) if name not in self._wanted.get(table, {})]
            if others:
                found[table] = others
        return found

    def statements(self) -> Iterator[sql.Composed]:
        """What makes them equal, to be executed one after the other in one transaction."""
        for table, (now, then) in self.tables().items():
            if now == then:
                continue
            on = sql.Identifier(*table)
            dropped = [name for name, text in now.policies.items() if then.policies.get(name) != text]
            for name in [*sorted(dropped), *([EVERYONE] if now.everyone else [])]:
                yield sql.SQL("DROP POLICY {} ON {}").format(sql.Identifier(name), on)
            yield sql.SQL("ALTER TABLE {} {} ROW LEVEL SECURITY").format(
                on, sql.SQL("ENABLE" if then.switched_on else "DISABLE")
            )
            if then.everyone:
                yield _everyone(table, on)
            for name, text in sorted(then.policies.items()):
                if now.policies.get(name) != text:
                    yield self._wanted[table][name].create(on)
                if then.ours:
                    yield sql.SQL("COMMENT ON POLICY {} ON {} IS {}").format(
                        sql.Identifier(name), on, sql.Literal(_SWITCHED_ON)
                    )

    def _now(self, table: Table) -> TableSecurity:
        policies: dict[str, str] = {}
        foreign, marked = 0, False
        rows = self._session.execute(_POLICIES, {"table": _regclass(table), "like": _OURS})
        for name, text, is_ours, comment in rows:
            if is_ours:
                policies[str(name)] = str(text)
                marked = marked or comment == _SWITCHED_ON
            else:
                foreign += 1
        row = self._session.execute(
            "SELECT relrowsecurity FROM pg_class WHERE oid = %s::regclass", [_regclass(table)]
        ).fetchone()
        everyone = policies.pop(EVERYONE, None)
        return TableSecurity(policies, bool(row and row[0]), everyone, foreign, marked)

    def _expected(self, table: Table) -> dict[str, str]:
        """How the catalog would write the wanted policies: asked of it, with a temporary table of the same columns."""
        policies = self._wanted.get(table, {})
        with self._session.transaction(force_rollback=True):
            self._session.execute(
                sql.SQL("CREATE TEMP TABLE orchestrator_probe (LIKE {})").format(sql.Identifier(*table))
            )
            self._prepare({policy.scope_role for policy in policies.values()})
            probe = sql.Identifier("pg_temp", "orchestrator_probe")
            for policy in policies.values():
                self._session.execute(policy.create(probe))
            self._session.execute(_everyone(table, probe))
            found = self._session.execute(_POLICIES, {"table": "pg_temp.orchestrator_probe", "like": _OURS})
            return {str(name): str(text) for name, text, *_ in found}

    def _prepare(self, roles: Iterable[str]) -> None:
        """Before the first `apply` neither the scope roles nor the function are there; this is rolled back."""
        for role in sorted(roles):
            if not self._session.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [role]).fetchone():
                self._session.execute(sql.SQL("CREATE ROLE {}").format(sql.Identifier(role)))
        row = self._session.execute("SELECT to_regprocedure('orchestrator.bound(integer)')").fetchone()
        if row is None or row[0] is None:
            self._session.execute("CREATE SCHEMA IF NOT EXISTS orchestrator")
            self._session.execute(
                "CREATE FUNCTION orchestrator.bound(integer) RETURNS text LANGUAGE sql AS 'SELECT NULL::text'"
            )
        row = self._session.execute("SELECT to_regprocedure('orchestrator.everyone(oid)')").fetchone()
        if row is None or row[0] is None:
            self._session.execute("CREATE SCHEMA IF NOT EXISTS orchestrator")
            self._session.execute(
                "CREATE FUNCTION orchestrator.everyone(oid) RETURNS boolean LANGUAGE sql AS 'SELECT true'"
            )


_SWITCHED_ON = "Row level security was off before the orchestrator limited rows of this table."


def _everyone(table: Table, on: sql.Composable) -> sql.Composed:
    """CREATE POLICY for everybody else: it lets nothing pass once somebody else has made a policy on the table, which
    is then as if ours were not there. See `orchestrator.everyone`."""
    others = sql.SQL("orchestrator.everyone({}::pg_catalog.regclass)").format(sql.Literal(_regclass(table)))
    return sql.SQL("CREATE POLICY {0} ON {1} AS PERMISSIVE FOR ALL TO PUBLIC USING ({2}) WITH CHECK ({2})").format(
        sql.Identifier(EVERYONE), on, others
    )


_POLICIES = """
SELECT p.polname, concat_ws(' ', p.polname, CASE WHEN p.polpermissive THEN 'PERMISSIVE' ELSE 'RESTRICTIVE' END,
       'FOR', p.polcmd, 'TO', (SELECT string_agg(CASE r WHEN 0 THEN 'PUBLIC' ELSE r::regrole::text END, ', '
       ORDER BY r) FROM unnest(p.polroles) r), 'USING (' || pg_get_expr(p.polqual, p.polrelid) || ')',
       'WITH CHECK (' || pg_get_expr(p.polwithcheck, p.polrelid) || ')'), p.polname::text LIKE %(like)s,
       obj_description(p.oid, 'pg_policy')
FROM pg_policy p WHERE p.polrelid = %(table)s::regclass
"""

_OUR_TABLES = """
SELECT DISTINCT n.nspname, c.relname FROM pg_policy p JOIN pg_class c ON c.oid = p.polrelid
JOIN pg_namespace n ON n.oid = c.relnamespace WHERE p.polname::text LIKE %(like)s
"""


def _regclass(table: Table) -> str:
    return sql.Identifier(*table).as_string(None)

"""Rows that nobody sees although the privilege is there: row security without a policy that lets a role's rows pass.

Where row security is on, a role that is neither the owner nor has BYPASSRLS sees, adds and changes only rows that a
permissive policy for the command and the role lets pass. Without one it reads no row, and no error says so
(PostgreSQL manual, 5.9 "Row Security Policies", and CREATE POLICY).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.grants.privileges import TABLE_VERBS, Privilege, Verb, qualified

EVERYONE = "orchestrator_everyone"
"""Our own policy on a table with row limits: it lets everything pass as long as nobody else has a permissive one."""

PUBLIC = "PUBLIC"

ROW_SECURITY = """
SELECT n.nspname, c.relname, c.relrowsecurity, p.polname, p.polpermissive, p.polcmd::text,
       (SELECT array_agg(CASE r WHEN 0 THEN 'PUBLIC' ELSE pg_catalog.pg_get_userbyid(r)::text END) FROM
        pg_catalog.unnest(p.polroles) r)
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_catalog.pg_policy p ON p.polrelid = c.oid
WHERE c.relkind IN ('r', 'p')
  AND (n.nspname, c.relname) IN (
      SELECT * FROM ROWS FROM (pg_catalog.unnest(%(schemas)s::name[]), pg_catalog.unnest(%(names)s::name[])))
ORDER BY 1, 2, 4
"""
"""For psycopg: every policy of the tables `schemas`.`names`, and a table without one once. Every login may read that.
`row_security` takes the answer."""

_COMMANDS: Mapping[Verb, str] = {"select": "r", "insert": "a", "update": "w", "delete": "d"}
_EVERY_COMMAND = "*"

Table = tuple[str, str]
"""Schema and name, exactly."""


@dataclass(frozen=True, slots=True)
class Policy:
    """One row security policy. `command` is as in `pg_policy.polcmd`; in `roles` may be `PUBLIC`."""

    name: str
    permissive: bool
    command: str
    roles: frozenset[str]

    def lets_pass(self, verb: Verb, roles: Collection[str]) -> bool:
        """Whether it may let a row pass for the verb to one who has these roles, and so the privileges of PUBLIC."""
        applies = self.command in (_EVERY_COMMAND, _COMMANDS[verb])
        return self.permissive and applies and not self.roles.isdisjoint({PUBLIC, *roles})


@dataclass(frozen=True, slots=True)
class HiddenRows:
    """A privilege that shows and changes no row: no permissive policy is for its verb and the roles."""

    table: Table
    verb: Verb

    def __str__(self) -> str:
        what = "may add no row" if self.verb == "insert" else "sees no row"
        return (
            f"row level security is on for {qualified(*self.table)}, and no permissive policy of it is for "
            f"{self.verb} by a step's login, which {what}"
        )

    def remedy(self, role: str) -> str:
        """What the owner of the table may do about it."""
        return (
            f"CREATE POLICY ... ON {qualified(*self.table)} FOR {self.verb.upper()} TO PUBLIC or TO {role}, "
            "as its owner, with the rows that steps may have"
        )


def tables_of(privileges: Iterable[Privilege]) -> list[Table]:
    """The tables and views that the privileges are about."""
    return sorted({(each.schema, each.name) for each in privileges if each.verb in TABLE_VERBS})


def row_security(rows: Iterable[Sequence[Any]], *, also: Collection[Table] = ()) -> dict[Table, tuple[Policy, ...]]:
    """The policies of each table whose row security is on (or would be, `also`), from what `ROW_SECURITY` answers."""
    found: dict[Table, tuple[Policy, ...]] = {}
    for schema, name, is_on, policy, permissive, command, roles in rows:
        table = (str(schema), str(name))
        if is_on or table in also:
            made = () if policy is None else (Policy(str(policy), permissive, str(command), frozenset(roles)),)
            found[table] = (*found.get(table, ()), *made)
    return found


def hidden_rows(
    privileges: Iterable[Privilege], security: Mapping[Table, Collection[Policy]], roles: Collection[str]
) -> Iterator[HiddenRows]:
    """The privileges of which somebody with these roles has nothing. Tables without row security are not in `security`.

    A policy for a role that the login has not is none for it. Of our own policy counts what it says: nothing where
    there is a permissive one of somebody else's.
    """
    for privilege in sorted(set(privileges), key=lambda each: each.key):
        table = (privilege.schema, privilege.name)
        if privilege.verb not in TABLE_VERBS or table not in security:
            continue
        policies = security[table]
        others = any(each.permissive and each.name != EVERYONE for each in policies)
        counted = [each for each in policies if not (others and each.name == EVERYONE)]
        if not any(each.lets_pass(privilege.verb, roles) for each in counted):
            yield HiddenRows(table, privilege.verb)

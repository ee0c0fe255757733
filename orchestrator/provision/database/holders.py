"""Who has our roles, and what else is said of them: the direction in which privileges spread.

A scope role, a duty's role and Vault's login are held by nobody but Vault's login (which may hand out, and not use
them), by the ephemeral logins that it made, and by administrators who may hand them out: the one who provisions, whom
PostgreSQL 16 makes one by creating a role, and those that `admins` of the connection names.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import psycopg
from psycopg import sql

from orchestrator.provision.database.revocation import LOGIN


@dataclass(frozen=True, slots=True, order=True)
class Member:
    """One membership in a role of ours that is not meant to be."""

    role: str
    member: str
    options: str
    grantor: str

    def __str__(self) -> str:
        return f"{self.member} ({self.options}) granted by {self.grantor}"

    def revoke(self) -> sql.Composed:
        """The statement that ends it."""
        return sql.SQL("REVOKE {} FROM {} GRANTED BY {} CASCADE").format(
            sql.Identifier(self.role), sql.Identifier(self.member), sql.Identifier(self.grantor)
        )


def strange_members(
    session: psycopg.Connection, roles: Collection[str], login: str, admins: Collection[str]
) -> dict[str, list[Member]]:
    """By role, those who have it and should not."""
    found: dict[str, list[Member]] = {}
    parameters = {"roles": [*roles, login], "login": login, "admins": list(admins), "pattern": LOGIN}
    for row in session.execute(_MEMBERS, parameters):
        member = Member(*map(str, row))
        found.setdefault(member.role, []).append(member)
    return {role: sorted(members) for role, members in found.items()}


def settings_of(session: psycopg.Connection, role: str) -> list[tuple[str | None, str]]:
    """What ALTER ROLE ... SET says of a role: database (None: all) and setting."""
    return [(database, str(setting)) for database, setting in session.execute(_SETTINGS, [role])]


_MEMBERS = """
SELECT granted.rolname, member.rolname, concat_ws(', ', CASE WHEN m.admin_option THEN 'ADMIN' END,
       CASE WHEN m.inherit_option THEN 'INHERIT' END, CASE WHEN m.set_option THEN 'SET' END), grantor.rolname
FROM pg_auth_members m JOIN pg_roles granted ON granted.oid = m.roleid JOIN pg_roles member ON member.oid = m.member
JOIN pg_roles grantor ON grantor.oid = m.grantor
WHERE granted.rolname = ANY(%(roles)s)
      AND NOT (m.admin_option AND NOT m.inherit_option AND NOT m.set_option AND (
          (member.rolname = %(login)s AND granted.rolname <> %(login)s)
          OR member.rolname = ANY(%(admins)s) OR member.rolname = CURRENT_USER))
      AND NOT (NOT m.admin_option AND m.inherit_option AND NOT m.set_option AND grantor.rolname = %(login)s
          AND granted.rolname <> %(login)s AND member.rolname ~ %(pattern)s
          AND EXISTS (SELECT FROM pg_auth_members made JOIN pg_roles maker ON maker.oid = made.member
                      WHERE made.roleid = member.oid AND maker.rolname = %(login)s AND made.admin_option))
"""

_SETTINGS = """
SELECT d.datname, unnest(s.setconfig) FROM pg_db_role_setting s JOIN pg_roles r ON r.oid = s.setrole
LEFT JOIN pg_database d ON d.oid = s.setdatabase WHERE r.rolname = %s ORDER BY 1 NULLS FIRST, 2
"""

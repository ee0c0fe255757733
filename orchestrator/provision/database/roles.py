"""Our roles as the catalog has them: what each may by itself, what it is a member of, and the way to what is declared.

Every statement is left out where it would change nothing: who is no superuser may not even say that a role is none.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import psycopg
from psycopg import sql

_FLAGS = ("LOGIN", "SUPERUSER", "CREATEROLE", "CREATEDB", "REPLICATION", "BYPASSRLS", "INHERIT")
_OF_NEW_ROLES = frozenset({"INHERIT"})


@dataclass(frozen=True, slots=True)
class Attributes:
    """What a role may by itself. Of a `limit` of sessions and an `expiry` there are none where they are empty."""

    flags: frozenset[str]
    limit: str = ""
    expiry: str = ""

    def __str__(self) -> str:
        words = ["LOGIN" if "LOGIN" in self.flags else "NOLOGIN"]
        words += [flag for flag in _FLAGS[1:-1] if flag in self.flags]
        words += [] if "INHERIT" in self.flags else ["NOINHERIT"]
        words += [f"CONNECTION LIMIT {self.limit}"] if self.limit else []
        return " ".join([*words, *([f"VALID UNTIL {self.expiry}"] if self.expiry else [])])


ADMINISTRATIVE = frozenset({"SUPERUSER", "CREATEDB", "REPLICATION", "BYPASSRLS"})
"""What only somebody who has it may give or take; none of our roles has it."""

OF_LOGIN = Attributes(_OF_NEW_ROLES | {"LOGIN", "CREATEROLE"})
"""Of Vault's login."""

OF_ROLE = Attributes(_OF_NEW_ROLES)
"""Of a scope role and a duty's role."""


@dataclass(frozen=True, slots=True, order=True)
class Membership:
    """What a role is a member of, and by whose grant."""

    role: str
    options: str
    grantor: str

    def __str__(self) -> str:
        return f"{self.role} ({self.options})"

    def revoke(self, member: str) -> sql.Composed:
        """The statement that ends it."""
        return sql.SQL("REVOKE {} FROM {} GRANTED BY {} CASCADE").format(
            sql.Identifier(self.role), sql.Identifier(member), sql.Identifier(self.grantor)
        )


def attributes_of(session: psycopg.Connection, role: str) -> Attributes | None:
    """Those of a role; None where it is not there."""
    row = session.execute(_ATTRIBUTES, [role]).fetchone()
    return None if row is None else Attributes(frozenset(row[0]), str(row[1] or ""), str(row[2] or ""))


def memberships_of(session: psycopg.Connection, role: str) -> list[Membership]:
    """Everything that a role is a member of, but for ephemeral logins, which Vault's login makes and so may drop."""
    return [Membership(*map(str, row)) for row in session.execute(_MEMBERSHIPS, [role])]


def role_statements(session: psycopg.Connection, role: str, wanted: Attributes) -> Iterator[sql.Composed]:
    """What makes a role, or gives it these attributes."""
    name = sql.Identifier(role)
    now = attributes_of(session, role)
    if now is None:
        yield sql.SQL("CREATE ROLE {}").format(name)
        now = OF_ROLE
    words = [
        flag if flag in wanted.flags else f"NO{flag}"
        for flag in _FLAGS
        if (flag in now.flags) != (flag in wanted.flags)
    ]
    words += ["CONNECTION LIMIT -1"] if now.limit else []
    words += ["VALID UNTIL 'infinity'"] if now.expiry else []
    if words:
        yield sql.SQL("ALTER ROLE {} {}").format(name, sql.SQL(" ".join(words)))


def missing_admins(session: psycopg.Connection, roles: Collection[str]) -> list[str]:
    """Those of the roles that are there and that the administrator may neither change nor make others members of."""
    return [str(row[0]) for row in session.execute(_NO_ADMIN, [list(roles)])]


_ATTRIBUTES = """
SELECT array_remove(ARRAY[CASE WHEN rolcanlogin THEN 'LOGIN' END, CASE WHEN rolsuper THEN 'SUPERUSER' END,
       CASE WHEN rolcreaterole THEN 'CREATEROLE' END, CASE WHEN rolcreatedb THEN 'CREATEDB' END,
       CASE WHEN rolreplication THEN 'REPLICATION' END, CASE WHEN rolbypassrls THEN 'BYPASSRLS' END,
       CASE WHEN rolinherit THEN 'INHERIT' END], NULL),
       CASE WHEN rolconnlimit <> -1 THEN rolconnlimit::text END,
       CASE WHEN rolvaliduntil < 'infinity' THEN rolvaliduntil::text END
FROM pg_roles WHERE rolname = %s
"""

_MEMBERSHIPS = """
SELECT granted.rolname, concat_ws(', ', CASE WHEN m.admin_option THEN 'ADMIN' END,
       CASE WHEN m.inherit_option THEN 'INHERIT' END, CASE WHEN m.set_option THEN 'SET' END), grantor.rolname
FROM pg_auth_members m JOIN pg_roles granted ON granted.oid = m.roleid JOIN pg_roles member ON member.oid = m.member
JOIN pg_roles grantor ON grantor.oid = m.grantor
WHERE member.rolname = %s AND granted.rolname !~ '^orc_'
ORDER BY 1, 2, 3
"""

_NO_ADMIN = """
SELECT r.rolname FROM pg_roles r WHERE r.rolname = ANY(%s) AND NOT EXISTS (
    SELECT FROM pg_auth_members m
    WHERE m.roleid = r.oid AND m.admin_option AND pg_has_role(CURRENT_USER, m.member, 'USAGE'))
ORDER BY 1
"""

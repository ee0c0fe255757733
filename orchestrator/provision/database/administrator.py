"""The administrator's session in a database, and acting as a role of ours where PostgreSQL takes that.

Who makes a role without being a superuser may from then on make others its members (ADMIN), and is none himself: he
can neither act as the role nor give it anything (PostgreSQL 16 manual, 22.2 "Role Attributes", and CREATE ROLE).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

import psycopg
from psycopg import sql

from orchestrator.environment import how_to_set, setting_of
from orchestrator.errors import ProvisionError, UsageError
from orchestrator.network.postgres import protected, refusal_hint, why
from orchestrator.secret import Secret

OLDEST = 16
"""The first PostgreSQL in which a login can inherit a role that it cannot become by SET ROLE."""

_REASONS = {
    "password authentication failed": "is the password in {variable} right?",
    "no password supplied": "name a password in {variable}",
    "does not exist": "name a database and a login of that server in {variable}",
    "refused": "is the server up, and its address in {variable} right?",
    "timeout": "is the server up, and its address in {variable} right?",
    "resolve": "is the host in {variable} right?",
    "not known": "is the host in {variable} right?",
}


def setting(name: str) -> str:
    """Where the administrator's DSN of a connection is."""
    return setting_of("provision_databases", name)


def connected(name: str, dsn: Secret) -> psycopg.Connection:
    """A session of the administrator of the connection `name`.

    Raises UsageError for what is no DSN, ProvisionError where the server refuses, is not there, or is too old.
    """
    try:
        address = None if _is_ambiguous(dsn.reveal()) else protected(dsn.reveal())
    except psycopg.ProgrammingError:  # its words may quote the password
        address = None
    if address is None:
        raise UsageError(
            f"{setting(name)} is no address of a PostgreSQL database",
            hint=f"{how_to_set('provision_databases', name, 'to postgresql://USER:PASSWORD@HOST:PORT/DATABASE')}, "
            "what is special in it percent-encoded",
        )
    try:
        # What is read outside of a transaction must not begin one: what is applied later would wait for its end.
        session = psycopg.connect(address, connect_timeout=10, client_encoding="UTF8", autocommit=True)
    except psycopg.Error as error:
        said = why(error, dsn.reveal())
        hint = next((each for words, each in _REASONS.items() if words in said), "set {variable} to an administrator's")
        raise ProvisionError(
            f"the database `{name}` cannot be reached as its administrator: {said}",
            hint=refusal_hint(error) or hint.format(variable=setting(name)),
        ) from None
    if (version := session.info.server_version // 10000) < OLDEST:
        session.close()
        raise ProvisionError(
            f"the database `{name}` is PostgreSQL {version}, and {OLDEST} is the oldest that can be provisioned",
            hint=f"nothing was changed; PostgreSQL {OLDEST} is the first in which a login cannot become the role whose "
            "privileges it has (GRANT ... WITH INHERIT TRUE, SET FALSE)",
        )
    return session


def _is_ambiguous(dsn: str) -> bool:
    """Whether a part of the password would be taken for a host, a port or a database, and told as such."""
    scheme, found, rest = dsn.partition("://")
    authority, _, path = rest.partition("/")
    return bool(found) and scheme.startswith("postgres") and (authority.count("@") > 1 or "@" in path.partition("?")[0])


def acting_as(
    session: psycopg.Connection, roles: Collection[str], statements: Iterable[sql.Composed]
) -> Iterator[sql.Composed]:
    """The statements, to be executed one after the other in one transaction, with what they need of some roles.

    An administrator who may only hand a role out becomes its member before, and is none any more after: nobody else
    ever sees the membership, and what fails in between takes it back.
    """
    lent = [sql.Identifier(str(row[0])) for row in session.execute(_NOT_HIS, [list(roles)])]
    for role in lent:
        yield sql.SQL("GRANT {} TO CURRENT_USER WITH INHERIT TRUE, SET TRUE").format(role)
    yield from statements
    for role in lent:
        yield sql.SQL("REVOKE {} FROM CURRENT_USER").format(role)


_NOT_HIS = """
SELECT rolname FROM pg_roles
WHERE rolname = ANY(%s) AND NOT (pg_has_role(oid, 'USAGE') AND pg_has_role(oid, 'SET')) ORDER BY 1
"""

"""What is no difference between declared and installed, and should be known all the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import psycopg

from orchestrator.grants.privileges import Privilege
from orchestrator.grants.sql.row_security import (
    EVERYONE,
    PUBLIC,
    ROW_SECURITY,
    Policy,
    hidden_rows,
    row_security,
    tables_of,
)
from orchestrator.provision.database.row_limits import Table, TableSecurity


def of_cluster(session: psycopg.Connection) -> Iterator[str]:
    """What makes taking logins back harder in this cluster, and is nobody's mistake."""
    others = [str(row[0]) for row in session.execute(_OPEN_DATABASES)]
    if others:
        yield (
            f"every login may connect to {', '.join(others)} too, and what it makes there keeps it from being dropped "
            "(it is disabled): REVOKE CONNECT, TEMPORARY ON DATABASE ... FROM PUBLIC"
        )
    row = session.execute("SELECT current_setting('max_prepared_transactions')").fetchone()
    if row is not None and int(row[0]):
        yield (
            f"max_prepared_transactions is {row[0]}, so a login may leave a transaction that keeps its locks, and "
            "keeps the login from being dropped: set it to 0 where nothing needs it"
        )


def hidden_from(
    session: psycopg.Connection,
    grants: Sequence[tuple[str, Sequence[Privilege]]],
    limits: Mapping[Table, tuple[TableSecurity, TableSecurity]],
) -> Iterator[str]:
    """The privileges of scope roles that show no row, as it will be when everything is installed.

    `limits` is the row security that there is and that is wanted, of the tables with row limits.
    """
    tables = tables_of(privilege for _, privileges in grants for privilege in privileges)
    rows = session.execute(
        ROW_SECURITY, {"schemas": [each[0] for each in tables], "names": [each[1] for each in tables]}
    )
    security: dict[Table, tuple[Policy, ...]] = dict(
        row_security(rows, also=[table for table, (_, then) in limits.items() if then.switched_on])
    )
    for table, (_, then) in limits.items():
        if not then.switched_on:
            security.pop(table, None)
        elif table in security:
            others = tuple(policy for policy in security[table] if policy.name != EVERYONE)
            ours = Policy(EVERYONE, permissive=True, command="*", roles=frozenset({PUBLIC}))
            security[table] = (*others, ours) if then.everyone else others
    for role, privileges in grants:
        for hidden in hidden_rows(privileges, security, [role]):
            yield f"{hidden}: {hidden.remedy(role)}"


_OPEN_DATABASES = """
SELECT d.datname FROM pg_database d, aclexplode(coalesce(d.datacl, acldefault('d', d.datdba))) a
WHERE a.grantee = 0 AND a.privilege_type = 'CONNECT' AND d.datallowconn AND d.datname <> current_database() ORDER BY 1
"""

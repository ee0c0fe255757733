"""What a database says where it confirms that logins are gone: which server it is, when that was, who asked.

All of it comes with the answer to what is left, from the transaction that has dropped what was there. What a server
does not tell is recorded as not known, with the reason, and takes nothing from its answer: the role is absent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from orchestrator.jsontypes import JsonObject, JsonValue

if TYPE_CHECKING:
    import psycopg

MAY_NAME_SYSTEM = (
    "pg_catalog.has_function_privilege(pg_catalog.to_regprocedure('pg_catalog.pg_control_system()')::oid, 'EXECUTE')"
)
"""Whether the session may ask for the system identifier; NULL where the server has no such function.

Asked before: a right that is missing fails the whole statement, wherever in it the call is.
"""

LINGER_SECONDS = 1.0
"""How long it is waited for the last sessions of dropped roles: a process that is told to end takes a moment."""

NOT_HELD = "nobody holds it any more"
"""What is recorded of the password by whoever never had it."""

_FIRST_PAUSE = 0.02

_LEFT = "SELECT login FROM unnest(%s::text[]) AS step_key, orchestrator.ephemeral_roles(step_key) AS login"

# What a transaction has seen of `pg_stat_activity` stays as it was (PostgreSQL manual, 27.2.2), so that sessions that
# the sweep has ended would still be there: the function must not be called before that is forgotten. A session whose
# role was dropped has the number of no role; everybody sees that much of everybody's sessions (27.2.3).
_FACTS = f"""\
SELECT ARRAY({_LEFT}) AS left_there,
    ARRAY(
        SELECT pg_catalog.concat(each.pid, '/', each.usesysid)
        FROM (SELECT pg_catalog.pg_stat_clear_snapshot() IS NOT NULL AS done OFFSET 0) AS forgotten,
            LATERAL pg_catalog.pg_stat_get_activity(CASE WHEN forgotten.done THEN NULL::integer ELSE 0 END) AS each
        WHERE each.usesysid <> 0 AND NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE oid = each.usesysid)
    ) AS of_dropped,
    pg_catalog.host(pg_catalog.inet_server_addr()), pg_catalog.inet_server_port(),
    pg_catalog.current_database(), session_user,
    pg_catalog.to_char(pg_catalog.clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
"""  # noqa: S608 -- constants of this module
_WITH_SYSTEM = f"{_FACTS} (SELECT system_identifier::text FROM pg_catalog.pg_control_system())"  # noqa: S608 -- the same
_WITHOUT_SYSTEM = f"{_FACTS} NULL"


@dataclass(frozen=True, slots=True)
class Witness:
    """A server's word that a login is absent. What is None is not known; `unknown` says of each such thing why."""

    at: str | None
    """By the server's own clock, in UTC."""
    asked_by: str
    database: str | None = None
    address: str | None = None
    """Of the server as it sees itself: behind a pooler or a balancer another one than was connected to."""
    system: str | None = None
    """The system identifier, which a cluster shares with its standbys and with nothing else."""
    of_dropped: int | None = None
    """How many sessions of roles that are gone there were, in the whole cluster."""
    unknown: Mapping[str, str] = field(default_factory=dict)

    def as_json(self, **more: JsonValue) -> JsonObject:
        """As it is recorded. Sessions of dropped roles may be anybody's, so only that there are none is certain."""
        return {
            "role": "absent",
            "sessions": 0 if self.of_dropped == 0 else None,
            **({"sessions_of_dropped_roles": self.of_dropped} if self.of_dropped else {}),
            "server": {"system": self.system, "address": self.address, "database": self.database},
            "at": self.at,
            "asked_by": self.asked_by,
            **({"unknown": dict(self.unknown)} if self.unknown else {}),
            **more,
        }


@dataclass(slots=True)
class Looking:
    """What a session of the orchestrator's asks after each sweep.

    `patience` is how long it waits for sessions of dropped roles to end, in seconds. Those that outlast it are not
    waited for again.
    """

    session: psycopg.AsyncConnection
    patience: float = LINGER_SECONDS
    refused: str = ""
    """The SQLSTATE with which the server has refused to be asked all of it."""
    _outlasted: set[str] = field(default_factory=set)

    async def left(self, step_keys: Sequence[str], names_system: bool | None) -> tuple[list[str], Witness]:
        """The logins of these step keys that are there now, and who says so; `names_system`: see `MAY_NAME_SYSTEM`.

        Raises Refused where it is the first time that the server does not answer all of it, and psycopg.Error.
        """
        from psycopg import errors

        if self.refused:
            there = await (await self.session.execute(_LEFT, [step_keys])).fetchall()
            return [str(login) for (login,) in there], _mute(self.session.info.user, self.refused)
        statement = _WITH_SYSTEM if names_system else _WITHOUT_SYSTEM
        try:
            row = await self._without_lingering(statement, step_keys)
        except (errors.ProgrammingError, errors.NotSupportedError, errors.InternalError, errors.DataError) as error:
            self.refused = error.sqlstate or type(error).__name__
            raise Refused from None
        return [str(login) for login in row[0]], _witness(row, names_system)

    async def _without_lingering(self, statement: str, step_keys: Sequence[str]) -> Sequence[Any]:
        loop = asyncio.get_running_loop()
        until, pause = loop.time() + self.patience, _FIRST_PAUSE
        while True:
            row = await (await self.session.execute(statement, [step_keys])).fetchone()
            assert row is not None, "a SELECT without FROM has one row"
            lingering = set(row[1])
            if lingering <= self._outlasted or loop.time() + pause > until:
                self._outlasted = lingering
                return row
            await asyncio.sleep(pause)
            pause *= 2


class Refused(Exception):
    """The server does not answer all that is asked, and the transaction is spoilt by it."""


def _witness(row: Sequence[Any], names_system: bool | None) -> Witness:
    _, of_dropped, host, port, database, asked_by, at, system = row
    unknown: dict[str, str] = {}
    if system is None:
        known = "the server has no pg_control_system()" if names_system is None else "no right to pg_control_system()"
        unknown["system"] = known
    if of_dropped:
        unknown["sessions"] = "there are sessions of dropped roles, and nothing tells whose they were"
    return Witness(
        at=str(at),
        asked_by=str(asked_by),
        database=str(database),
        address="local socket" if host is None else f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
        system=system,
        of_dropped=len(of_dropped),
        unknown=unknown,
    )


def _mute(login: str, state: str) -> Witness:
    reason = f"the server refuses to say ({state})"
    return Witness(None, login, unknown=dict.fromkeys(("server", "sessions", "at"), reason))

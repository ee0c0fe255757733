"""Seeing that what was written at a primary has arrived at the standby that a step reads from."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from orchestrator.credentials.arrival import WAIT_SECONDS, unknown_login
from orchestrator.environment import how_to_set
from orchestrator.errors import Unreachable
from orchestrator.network.postgres import protected, without_settings

if TYPE_CHECKING:
    import psycopg

_PAUSE = 0.05

_MARK = (
    "SELECT pg_catalog.pg_current_xact_id()::pg_catalog.text "
    "FROM pg_catalog.pg_logical_emit_message(true, 'orchestrator', '')"
)
"""A transaction that comes after all that is committed, and is in the log of the primary before this returns: without
the message nothing would make the server write it out at once."""


def at_standby(duty: str, connection: str) -> Unreachable:
    """Why a duty was not done: a standby takes no writes, and what it does not know yet is not gone."""
    return Unreachable(
        f"the orchestrator's own {duty} in `{connection}` cannot be done: its endpoint is a standby",
        hint=how_to_set("primaries", connection, "to the address of its primary"),
    )


def not_known(duty: str, connection: str) -> Unreachable:
    """Why a duty was not done in a server that does not know its login."""
    return Unreachable(
        f"the orchestrator's own {duty} in `{connection}` failed: the server does not know the login that Vault made",
        hint=f"if it is a standby {how_to_set('primaries', connection, 'to the address of its primary')}; "
        "else the endpoint is not the server of Vault's connection",
    )


async def replayed(primary: psycopg.AsyncConnection, endpoint: str, connection: str) -> None:
    """Wait until what the session at the primary has committed is visible at the endpoint, with the same login there.

    Without the values of its row limits a login would find no row at the standby, and nothing would tell why. The
    session is closed: its login may have one only, and the endpoint may lead to the same server after all.
    Raises Unreachable after `WAIT_SECONDS`, and psycopg.Error.
    """
    row = await (await primary.execute(_MARK)).fetchone()
    assert row is not None, "a SELECT without FROM has one row"
    login, password = primary.info.user, primary.info.password
    await primary.close()
    until = time.monotonic() + WAIT_SECONDS
    async with await _connect(endpoint, login, password, until, connection) as session:
        while not await _sees(session, str(row[0])):
            if time.monotonic() > until:
                raise _behind(connection)
            await asyncio.sleep(_PAUSE)


async def _sees(session: psycopg.AsyncConnection, transaction: str) -> bool:
    question = "SELECT pg_catalog.pg_visible_in_snapshot(%s::pg_catalog.xid8, pg_catalog.pg_current_snapshot())"
    row = await (await session.execute(question, [transaction])).fetchone()
    return row is not None and bool(row[0])


async def _connect(endpoint: str, login: str, password: str, until: float, connection: str) -> psycopg.AsyncConnection:
    import psycopg

    while True:
        try:
            return await psycopg.AsyncConnection.connect(
                protected(without_settings(endpoint)[0], issued=True),
                user=login,
                password=password,
                application_name="orchestrator bind",
                connect_timeout=5,
                client_encoding="UTF8",
                autocommit=True,
                prepare_threshold=None,  # the next transaction may be another session's
            )
        except psycopg.OperationalError as error:
            # Else it is not known yet, or its session of before has not ended yet.
            if login not in str(error) and not unknown_login(error, login):
                raise
            if time.monotonic() > until:
                raise _behind(connection) from None
            await asyncio.sleep(_PAUSE)


def _behind(connection: str) -> Unreachable:
    return Unreachable(
        f"the standby of `{connection}` has not replayed the step's row limits within {WAIT_SECONDS:g}s",
        hint="how far is it behind? `SELECT * FROM pg_stat_replication` at the primary tells",
    )

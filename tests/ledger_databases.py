"""Ledgers in PostgreSQL that are there at once: copies of one whose tables were made before."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import psycopg

from orchestrator.clock import SystemClock
from orchestrator.ledger.location import locate
from orchestrator.ledger.opening import open_ledger
from orchestrator.runs.engines.types import EngineName


def template(server: str, engine: EngineName = "local") -> str:
    """The name of a database with all the tables of a ledger and of its engine, to copy: making them takes longer than
    most runs. Who asks first makes it; nobody can connect to it afterwards, as a copy asks for.

    `server` is the URL of any of its databases, as its superuser.
    """
    name = f"empty_{engine}"
    with psycopg.connect(server, autocommit=True) as session:
        if session.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name]).fetchone() is None:
            session.execute(f"CREATE DATABASE {name}")
            url = f"{server.rpartition('/')[0]}/{name}"
            open_ledger(url, clock=SystemClock()).close()
            if engine == "dbos":
                with ThreadPoolExecutor(1) as elsewhere:  # the caller's loop may be running
                    elsewhere.submit(asyncio.run, _launch_dbos(url)).result()
            session.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
    return name


async def _launch_dbos(url: str) -> None:
    """DBOS makes its tables when it is launched."""
    from orchestrator.runs.engines.dbos import DbosEngine

    with open_ledger(url, clock=SystemClock()) as ledger:
        engine = DbosEngine(locate(url), reader=ledger, runner_id="template")
        await engine.settle()
        await engine.aclose()

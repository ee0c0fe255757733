"""Ledgers in PostgreSQL that are there at once: copies of one whose tables were made before."""

from __future__ import annotations

import psycopg

from orchestrator.clock import SystemClock
from orchestrator.ledger.opening import open_ledger
from orchestrator.queue.opening import shared_queue


def template(server: str, *, queue: bool = False) -> str:
    """The name of a database with all the tables of a ledger, and with `queue` those of DBOS, to copy.

    Making them takes longer than most runs. Who asks first makes it; nobody can connect to it afterwards, as a copy
    asks for.

    `server` is the URL of any of its databases, as its superuser.
    """
    name = "empty_queue" if queue else "empty_ledger"
    with psycopg.connect(server, autocommit=True) as session:
        if session.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name]).fetchone() is None:
            session.execute(f"CREATE DATABASE {name}")
            url = f"{server.rpartition('/')[0]}/{name}"
            with open_ledger(url, clock=SystemClock()) as ledger:
                if queue:
                    with shared_queue(url, ledger.queue) as shared:
                        shared.prepare()
            session.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
    return name

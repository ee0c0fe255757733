"""What carries no-op runs in `shared_queue.py`: our queue, a bare DBOS, and procrastinate, each in its own database."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from dbos import DBOSClient
from psycopg import sql
from shared_queue_processes import BARE, BARE_WORKFLOW, command_of

from orchestrator.actions.catalog import catalog
from orchestrator.clock import SystemClock
from orchestrator.devstack.postgres import Postgres
from orchestrator.ledger.ids import new_run_id
from orchestrator.ledger.opening import open_ledger
from orchestrator.ledger.writing.store import Ledger
from orchestrator.queue.lanes import limits_of
from orchestrator.queue.names import SCHEMA
from orchestrator.queue.opening import shared_queue
from orchestrator.queue.references import References
from orchestrator.queue.shared import POLL_SECONDS, SharedQueue
from orchestrator.runs.types import RunRequest
from orchestrator.scheduling.queue.asking import queued
from orchestrator.workflow.loader import LoadedWorkflow, load_text

PROCRASTINATE = """
import asyncio, json, logging, sys
import procrastinate

logging.getLogger("procrastinate").setLevel(logging.ERROR)
given = json.load(sys.stdin)
app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=given["url"]))

@app.task(name="nothing")
async def nothing(): pass

async def main():
    async with app.open_async():
        if given["max_runs"] == 0:
            await app.schema_manager.apply_schema_async()
            await nothing.defer_async()
            print("ready", flush=True)
            return
        print("ready", flush=True)
        await app.run_worker_async(concurrency=given["max_runs"], name=given["name"])

asyncio.run(main())
"""

NOTHING = "nothing"
"""The workflow of which entries are kept to be put in many times."""

PLAIN = """
version: 1
name: {name}
agent: bench
{top}
steps:
  only: {{ action: exec, with: {{ command: [/bin/true] }}, timeout: 10m, {grants} }}
"""


def workflow(name: str, *, top: str = "", grants: str = "") -> LoadedWorkflow:
    """A workflow of one step; `top` are further lines of it, and `grants` those of the step."""
    return load_text(PLAIN.format(name=name, top=top, grants=grants), filename=f"{name}.yaml", actions=catalog)


@contextmanager
def opened(url: str) -> Iterator[tuple[Ledger, SharedQueue]]:
    """A ledger and its shared queue."""
    with open_ledger(url, clock=SystemClock()) as ledger, shared_queue(url, ledger.queue) as shared:
        yield ledger, shared


def put(shared: SharedQueue, loaded: LoadedWorkflow) -> str:
    """Put one run in, as `queue add` does; its id."""
    request = RunRequest(run_id=new_run_id(), loaded=loaded, inputs={}, trigger="queue")
    entry = queued(request, SystemClock().now())
    assert shared.add(entry, workflow=loaded.text, limits=limits_of(loaded.workflow))
    return request.run_id


@dataclass(frozen=True, slots=True)
class Kept:
    """One entry of a queue, taken out again, to be put in many times in one transaction.

    `tables` are those with its rows and their columns with its id.
    """

    tables: Mapping[str, str]

    def keep(self, session: psycopg.Connection[Any]) -> None:
        for number, table in enumerate(self.tables):
            name = sql.SQL(table)
            session.execute(sql.SQL("CREATE TABLE kept_{} AS SELECT * FROM {}").format(number, name))
            session.execute(sql.SQL("DELETE FROM {}").format(name))
        session.commit()

    def put(self, session: psycopg.Connection[Any], ids: Sequence[int] | Sequence[str]) -> None:
        for number, (table, key) in enumerate(self.tables.items()):
            columns = [
                sql.Identifier(row[0])
                for row in session.execute(
                    "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 "
                    "AND NOT attisdropped AND attname <> %s",
                    [f"kept_{number}", key],
                )
            ]
            statement = sql.SQL("INSERT INTO {} ({}, {}) SELECT ids.id, {} FROM kept_{}, unnest(%s::{}[]) AS ids(id)")
            names = sql.SQL(", ").join(columns)
            kind = sql.SQL("bigint" if isinstance(ids[0], int) else "text")
            entry = statement.format(sql.SQL(table), sql.Identifier(key), names, names, number, kind)
            session.execute(entry, [list(ids)])
        session.commit()


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """One of those that are compared. `over` answers how many runs have succeeded, and when the last one did.

    `looks` says whether a worker takes what it has room for once each POLL_SECONDS, and nothing in between.
    """

    name: str
    kept: Kept
    command: Sequence[str]
    over: str
    looks: bool = True
    numbered: bool = False

    def ids(self, count: int) -> Sequence[int] | Sequence[str]:
        return range(1_000_000, 1_000_000 + count) if self.numbered else [new_run_id() for _ in range(count)]


def _in_dbos(schema: str) -> dict[str, str]:
    """Where DBOS has an entry of a queue: what it was given first, since workers see the other one."""
    return {f"{schema}.{table}": "workflow_uuid" for table in ("workflow_input", "workflow_status")}


OURS = Engine(
    name="ours",
    kept=Kept({"queued_run": "run_id", **_in_dbos(SCHEMA)}),
    command=command_of("ours"),
    over=(
        "SELECT count(*), extract(epoch FROM max(r.finished_at::timestamptz))::float8 FROM run r "
        f"JOIN {SCHEMA}.workflow_status w ON w.workflow_uuid = r.run_id "
        "WHERE r.state = 'succeeded' AND w.status = 'SUCCESS'"
    ),
)

BARE_DBOS = Engine(
    name="bare DBOS",
    kept=Kept(_in_dbos(BARE)),
    command=command_of("bare"),
    over=f"SELECT count(*), max(updated_at) / 1000.0::float8 FROM {BARE}.workflow_status WHERE status = 'SUCCESS'",
)


def procrastinate_in(python: Path, program: Path) -> Engine:
    return Engine(
        name="procrastinate",
        kept=Kept({"procrastinate_jobs": "id"}),
        command=[str(python), str(program)],
        over=(
            "SELECT count(*), extract(epoch FROM max(e.at))::float8 FROM procrastinate_jobs j "
            "JOIN procrastinate_events e ON e.job_id = j.id AND e.type = 'succeeded' WHERE j.status = 'succeeded'"
        ),
        looks=False,
        numbered=True,
    )


@dataclass(slots=True)
class Databases:
    """Makes databases on one server; those of an engine are copies of one whose tables were made before."""

    server: Postgres
    folder: Path
    _made: int = 0
    _templates: dict[tuple[str, int], str] = field(default_factory=dict)

    def url(self, name: str) -> str:
        return self.server.dsn(name).reveal()

    def for_engine(self, engine: Engine, max_runs: int) -> str:
        """The URL of a new database with the tables of the engine and one entry of its queue, kept aside."""
        template = self._templates.get((engine.name, max_runs)) or self._template(engine, max_runs)
        return self.url(self._create(f"TEMPLATE {template}"))

    def _template(self, engine: Engine, max_runs: int) -> str:
        name = self._create("")
        url = self.url(name)
        if engine is OURS:
            with opened(url) as (_, shared):
                put(shared, workflow(NOTHING))
        elif engine is BARE_DBOS:
            _prepare_bare(url, max_runs)
        else:
            told = f'{{"url": "{url}", "max_runs": 0, "name": ""}}'
            subprocess.run(engine.command, input=told, text=True, check=True, stdout=subprocess.DEVNULL)
        with psycopg.connect(url) as session:
            engine.kept.keep(session)
        self._templates[(engine.name, max_runs)] = name
        return name

    def _create(self, how: str) -> str:
        self._made += 1
        name = f"bench_{self._made}"
        with psycopg.connect(self.url("postgres"), autocommit=True) as session:
            session.execute(f"CREATE DATABASE {name} {how}")
        return name

    def procrastinate(self) -> Engine:
        """Installed into an environment of its own. Raises subprocess.CalledProcessError."""
        place = self.folder / "procrastinate"
        program = self.folder / "procrastinate_program.py"
        program.write_text(PROCRASTINATE)
        python = place / "bin" / "python"
        for command in (
            [sys.executable, "-m", "venv", str(place)],
            [str(python), "-m", "pip", "install", "--quiet", "procrastinate", "psycopg[binary]"],
        ):
            subprocess.run(command, check=True, capture_output=True, env={**os.environ, "HOME": str(self.folder)})
        return procrastinate_in(python, program)


def _prepare_bare(url: str, max_runs: int) -> None:
    client = DBOSClient(
        system_database_url=url, dbos_system_schema=BARE, serializer=References(), application_name=BARE
    )
    try:
        client._sys_db.run_migrations()
        client.register_queue(
            BARE,
            worker_concurrency=max_runs,
            partition_worker_concurrency=max_runs,
            polling_interval_sec=POLL_SECONDS,
        )
        options: Any = {
            "workflow_name": BARE_WORKFLOW,
            "workflow_id": new_run_id(),
            "queue_name": BARE,
            "queue_partition_key": NOTHING,
            "app_version": BARE,
        }
        client.enqueue(options)
    finally:
        client.destroy()

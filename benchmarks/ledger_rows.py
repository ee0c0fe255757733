"""Rows for a large ledger, written in bulk: what years of runs leave behind, with a little that is open.

Forty workflows share step names; some run all day and some hardly ever; one was given up long ago, and its agent
with it. Each step holds the token that it works with and one or two grants. A few steps were refused or failed, a
static secret is `ended`, nearly all else `revoked`. Of the newest runs a handful goes on, some have ended with
leases that could not be confirmed gone, and some belong to processes that died. Events are left out: no filter
reads them.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import psycopg
from sqlalchemy import Engine

from orchestrator.ledger.location import locate
from orchestrator.ledger.storage.connect import connect
from orchestrator.ledger.storage.times import time_to_text

STEP_NAMES = ("read", "translate", "enrich", "notify", "record", "archive", "check", "report", "import", "publish")
KINDS = ("database", "secret", "token", "dynamic")
WORKFLOWS = 40
AGENTS = 12
GIVEN_UP = "legacy_export"
RETIRED = "agent-retired"
SELDOM = "year_end"
BEGAN = datetime(2024, 1, 1, tzinfo=UTC)
YEARS = timedelta(days=730)
OPEN_RUNS = 12
"""The newest runs with open leases: a third goes on, a third has ended, the process of a third is dead."""

DEAD, LIVING = "runner_dead", "runner_living"
SWEEPS = 10
"""Percent of the runs that were sweeps and held nothing."""

AT_ONCE = 20_000


@dataclass(frozen=True, slots=True)
class Step:
    name: str
    grants: tuple[tuple[str, str], ...]
    """Kinds with their resources; the step's own token is among them."""


@dataclass(frozen=True, slots=True)
class Workflow:
    name: str
    agent: str
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class Filled:
    """What the ledger holds, for those who ask it."""

    leases: int
    runs: int
    workflows: tuple[Workflow, ...]
    newest: datetime
    some_runs: tuple[str, ...]
    some_step_keys: tuple[str, ...]
    some_vault_leases: tuple[str, ...]


def workflows(chance: random.Random) -> tuple[Workflow, ...]:
    """The declarations, the busiest first; the last two are the one given up and the one that runs seldom."""

    def resource(kind: str) -> str:
        return {
            "database": f"database/creds/{chance.choice(('support', 'billing', 'stock'))}-{chance.randrange(8)}",
            "secret": f"kv/data/services/{chance.choice(('slack', 'mail', 'translate'))}",
            "token": f"identity/oidc/token/{chance.choice(('crm', 'search'))}",
            "dynamic": f"aws/creds/bucket-{chance.randrange(4)}",
        }[kind]

    def step(name: str) -> Step:
        kinds = chance.choices(KINDS, weights=(6, 2, 2, 1), k=chance.choice((1, 1, 2)))
        return Step(name, (("step-token", "auth/token/create/step"), *((kind, resource(kind)) for kind in kinds)))

    def workflow(name: str, agent: str) -> Workflow:
        return Workflow(name, agent, tuple(step(each) for each in chance.sample(STEP_NAMES, chance.randrange(2, 6))))

    usual = [workflow(f"flow_{number}", f"agent-{number % AGENTS}") for number in range(WORKFLOWS)]
    return (*usual, workflow(GIVEN_UP, RETIRED), workflow(SELDOM, "agent-0"))


class Rows:
    """Makes the rows of `leases` leases, the same for the same seed."""

    def __init__(self, leases: int, *, seed: int = 1) -> None:
        self.wanted = leases
        self.chance = random.Random(seed)
        self.workflows = workflows(self.chance)
        self.runs: list[tuple[object, ...]] = []
        self.owners: list[tuple[object, ...]] = []
        self.samples: dict[str, list[str]] = {"run_id": [], "step_key": [], "vault_lease_id": []}
        self.newest = BEGAN

    def leases(self) -> Iterator[tuple[object, ...]]:
        """Every lease in the order of the table's columns; the runs are complete when it is at its end."""
        made = 0
        expected = max(self.wanted // 8, OPEN_RUNS)  # runs, roughly: each has 8 leases
        apart = YEARS / (expected * 1.2)
        at = BEGAN
        weights = [1 / (rank + 1) for rank in range(WORKFLOWS)]
        while made < self.wanted:
            at += apart * (0.5 + self.chance.random())
            if self.chance.randrange(100) < SWEEPS:
                self._sweep(at)
            workflow = self.chance.choices(self.workflows[:WORKFLOWS], weights)[0]
            if made < self.wanted // 10 and self.chance.randrange(4) == 0:
                workflow = self.workflows[-2]
            elif self.chance.randrange(2000) == 0:
                workflow = self.workflows[-1]
            rows = list(self._run(workflow, at, made))
            yield from rows
            made += len(rows)
        self.newest = at
        self._open_runs(at)
        yield from self._open

    def _sweep(self, at: datetime) -> None:
        text = time_to_text(at)
        self.runs.append(self._run_row(self._id("run_"), "(sweep)", "orchestrator", at, "succeeded", text))

    def _run(self, workflow: Workflow, at: datetime, made: int) -> Iterator[tuple[object, ...]]:
        run_id = self._id("run_")
        failed = self.chance.randrange(50) == 0
        ended = time_to_text(at + timedelta(seconds=5))
        self.runs.append(
            self._run_row(run_id, workflow.name, workflow.agent, at, "failed" if failed else "succeeded", ended)
        )
        self.owners.append((run_id, LIVING, None))
        self._sample("run_id", run_id)
        for number, step in enumerate(workflow.steps):
            yield from self._step(run_id, workflow, step, at + timedelta(seconds=number), failed=failed)
            if failed and self.chance.randrange(2):
                break

    def _step(
        self, run_id: str, workflow: Workflow, step: Step, at: datetime, *, failed: bool
    ) -> Iterator[tuple[object, ...]]:
        key = f"{step.name}-{self._id('', 12)}"
        self._sample("step_key", key)
        for kind, resource in step.grants:
            state = "ended" if kind == "secret" else "revoked"
            if failed:
                state = self.chance.choice(("denied", "failed", "expired", state))
            yield self._lease_row(run_id, workflow, step.name, key, kind, resource, state, at)

    def _open_runs(self, at: datetime) -> None:
        self._open: list[tuple[object, ...]] = []
        for number in range(OPEN_RUNS):
            workflow = self.workflows[number % WORKFLOWS]
            run_id, began = self._id("run_"), at + timedelta(seconds=number)
            ended = number % 3 == 1
            state, owner = ("succeeded" if ended else "running"), (DEAD if number % 3 == 2 else LIVING)
            self.runs.append(
                self._run_row(
                    run_id, workflow.name, workflow.agent, began, state, time_to_text(began) if ended else None
                )
            )
            self.owners.append((run_id, owner, None))
            step = workflow.steps[0]
            for kind, resource in step.grants:
                lease_state = "revoking" if ended else self.chance.choice(("issued", "requested"))
                self._open.append(
                    self._lease_row(
                        run_id, workflow, step.name, f"{step.name}-{number}", kind, resource, lease_state, began
                    )
                )

    def _run_row(
        self, run_id: str, workflow: str, agent: str, at: datetime, state: str, ended: str | None
    ) -> tuple[object, ...]:
        began = time_to_text(at)
        code = None if ended is None else 0 if state == "succeeded" else 4
        head = "0" * 64
        return run_id, 1, 1, head, workflow, head, agent, "schedule", "{}", "[]", state, began, ended, code, ""

    def _lease_row(
        self, run_id: str, workflow: Workflow, step: str, key: str, kind: str, resource: str, state: str, at: datetime
    ) -> tuple[object, ...]:
        began = time_to_text(at)
        closed = None if state in ("issued", "requested", "revoking") else time_to_text(at + timedelta(seconds=1))
        vault_lease = f"{resource}/{self._id('', 24)}" if kind in ("database", "dynamic") else ""
        if vault_lease:
            self._sample("vault_lease_id", vault_lease)
        scope = '{"select":["id","body"]}' if kind == "database" else "{}"
        return (
            *(self._id("lease_", 20), run_id, workflow.name, workflow.agent, step, 1, key, "grant", kind, resource),
            *(scope, state, 60, began, began, began, closed, vault_lease, "", f"orc_{key}", "", None, 0, None),
        )

    def _id(self, prefix: str, length: int = 26) -> str:
        return prefix + "".join(self.chance.choices("abcdefghijklmnopqrstuvwxyz234567", k=length))

    def _sample(self, name: str, value: str) -> None:
        if len(self.samples[name]) < 200 and self.chance.randrange(50) == 0:
            self.samples[name].append(value)


def fill(url: str, leases: int, *, seed: int = 1) -> Filled:
    """Write the rows into the ledger, whose tables are there and empty; the indexes are made anew afterwards."""
    engine = connect(locate(url))
    rows = Rows(leases, seed=seed)
    write = _fill_sqlite if engine.dialect.name == "sqlite" else _fill_postgresql
    write(engine, rows)
    engine.dispose()
    return Filled(
        leases,
        len(rows.runs),
        rows.workflows,
        rows.newest,
        tuple(rows.samples["run_id"]),
        tuple(rows.samples["step_key"]),
        tuple(rows.samples["vault_lease_id"]),
    )


LEASE_COLUMNS = (
    "lease_id run_id workflow agent step attempt step_key grant grant_kind resource scope state ttl requested_at"
    " issued_at expires_at closed_at vault_lease_id accessor subject reason revoking_since failed_tries last_try_at"
)
RUN_COLUMNS = (
    "run_id fence seq head workflow digest agent trigger inputs steps state started_at finished_at exit_code reason"
)


def _tables(rows: Rows) -> Iterator[tuple[str, str, Iterable[tuple[object, ...]]]]:
    """Each table with the columns that its rows fill, as SQL writes them, and the rows."""
    for table, columns, records in (
        ("lease", LEASE_COLUMNS, rows.leases()),
        ("run", RUN_COLUMNS, rows.runs),
        ("runner", "runner_id process beat gone", [(DEAD, "{}", 1, 1), (LIVING, "{}", 1, 0)]),
        ("run_owner", "run_id runner_id cancel", rows.owners),
    ):
        yield table, ", ".join(f'"{column}"' for column in columns.split()), records


def _fill_sqlite(engine: Engine, rows: Rows) -> None:
    with closing(engine.raw_connection()) as pooled:
        connection = pooled.driver_connection
        assert connection is not None
        connection.execute("PRAGMA foreign_keys = OFF")
        connection.execute("PRAGMA synchronous = OFF")
        indexes = connection.execute(
            "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL"
        ).fetchall()
        connection.execute("BEGIN IMMEDIATE")
        for name, _ in indexes:
            connection.execute(f"DROP INDEX {name}")
        for table, columns, records in _tables(rows):
            places = ", ".join("?" * (columns.count(",") + 1))
            connection.executemany(f"INSERT INTO {table} ({columns}) VALUES ({places})", records)
        for _, statement in indexes:
            connection.execute(statement)
        connection.execute("COMMIT")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        pooled.invalidate()


def _fill_postgresql(engine: Engine, rows: Rows) -> None:
    with psycopg.connect(engine.url.render_as_string(hide_password=False).replace("+psycopg", "")) as connection:
        indexes = connection.execute(
            "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'"
            " AND indexname NOT IN (SELECT conname FROM pg_constraint)"
        ).fetchall()
        keys = connection.execute(
            "SELECT conrelid::regclass, conname, pg_get_constraintdef(oid) FROM pg_constraint WHERE contype = 'f'"
            " AND connamespace = 'public'::regnamespace"
        ).fetchall()
        for table, name, _ in keys:
            connection.execute(f"ALTER TABLE {table} DROP CONSTRAINT {name}")
        for name, _ in indexes:
            connection.execute(f"DROP INDEX {name}")
        for table, columns, records in _tables(rows):
            with connection.cursor().copy(f"COPY {table} ({columns}) FROM STDIN") as copy:
                for record in records:
                    copy.write_row(record)
        for _, statement in indexes:
            connection.execute(statement)
        for table, name, definition in keys:
            connection.execute(f"ALTER TABLE {table} ADD CONSTRAINT {name} {definition}")
        connection.commit()
        connection.autocommit = True
        connection.execute("VACUUM ANALYZE")

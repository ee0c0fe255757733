"""The queue's database restarted, a worker cut off from it, tables of an older DBOS: no run is lost or doubled."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from bench import Bench, Setup
from dbos import _migration
from fork_server import ForkServer
from proxy import Proxy
from queued import put, shared
from team import Team
from waiting import wait_for

from orchestrator.actions.catalog import catalog
from orchestrator.devstack.postgres import Postgres
from orchestrator.ledger.lease import FINAL
from orchestrator.ledger.states import RunState
from orchestrator.queue.names import SCHEMA
from orchestrator.workflow.loader import LoadedWorkflow, load_text

FLOW = """
version: 1
name: {name}
agent: tester
inputs: {{ mark: {{ type: string }} }}
steps:
  first:
    action: exec
    with:
      command: [/bin/sh, -c, 'echo "first $0" >> {marks}', "${{{{ inputs.mark }}}}"]
      paths: {{ write: [{folder}] }}
  work:
    needs: [first]
    action: postgres.query
    grants: {{ db: {{ kind: database, connection: support, role: feedback-read }} }}
    with: {{ sql: "SELECT pg_sleep({seconds})" }}
    timeout: 60s
  last:
    needs: [work]
    action: exec
    with:
      command: [/bin/sh, -c, 'echo "last $0" >> {marks}', "${{{{ inputs.mark }}}}"]
      paths: {{ write: [{folder}] }}
"""


class Crew(Team):
    """A team whose runs leave a mark before and after the step that holds a login."""

    def loaded(self, name: str, seconds: float) -> LoadedWorkflow:
        text = FLOW.format(name=name, seconds=seconds, marks=self.marks, folder=self.marks.parent)
        loaded = load_text(text, filename=f"{name}.yaml", actions=catalog)
        self.bench.install(loaded.workflow)
        return loaded

    def done(self) -> Counter[str]:
        return Counter(self.marks.read_text().splitlines() if self.marks.exists() else [])

    def all_ended(self, runs: list[str]) -> bool:
        return all(self.ended(run) is not None for run in runs)

    def check(self, runs: list[str]) -> None:
        """Each run has come to its end once, what had ended was not carried out again, and nothing is left."""
        assert [self.ended(run).state for run in runs] == [RunState.SUCCEEDED] * len(runs)  # type: ignore[union-attr]
        assert self.done() == {f"{what} {number}": 1 for what in ("first", "last") for number in range(len(runs))}
        for run in runs:
            assert {lease.state for lease in self.leases(run)} <= FINAL
        wait_for(lambda: self.bench.logins_of_steps() == [], "the logins to be gone", 30)
        with shared(self.ledger_url) as queue:
            wait_for(lambda: queue.claimed() == [], "the queue to be empty", 30)


@pytest.fixture
def crew(bench: Bench, tmp_path: Path, children: ForkServer) -> Iterator[Callable[[str], Crew]]:
    """A team on the ledger at a URL."""
    made: list[Crew] = []

    def on(ledger_url: str) -> Crew:
        made.append(Crew(bench, Setup(ledger_url), tmp_path / "marks", children).__enter__())
        return made[-1]

    yield on
    for team in made:
        team.__exit__()


def ledger_of(server: Postgres, port: int | None = None) -> str:
    """A new database for a ledger, reached at another port where one is given."""
    with psycopg.connect(server.dsn().reveal(), autocommit=True) as session:
        if not session.execute("SELECT FROM pg_database WHERE datname = 'ledger'").fetchall():
            session.execute("CREATE DATABASE ledger")
    url = server.dsn("ledger").reveal()
    return url if port is None else url.replace(f":{server.port}/", f":{port}/")


def test_postgresql_is_restarted_in_the_middle_of_a_queue(
    crew: Callable[[str], Crew], postgres_server: Callable[..., Postgres]
) -> None:
    server = postgres_server(durable=True)
    team = crew(ledger_of(server))
    loaded = team.loaded("restarted", 0.2)
    with shared(team.ledger_url) as queue:
        runs = [put(queue, loaded, {"mark": str(number)}) for number in range(12)]
    for _ in range(2):
        team.start("worker", "--no-listen", "--max-runs", "2")
    wait_for(lambda: sum(name.startswith("last") for name in team.done()) >= 3, "some to be carried out", 60)
    server.kill()
    server.start()
    wait_for(lambda: all(team.ended(run) for run in runs), "all to be carried out", 120)
    states = Counter(record.state for run in runs if (record := team.ended(run)) is not None)
    # What was under way when its record could not be written has failed, and nothing was carried out twice.
    assert states[RunState.SUCCEEDED] >= 8
    assert set(states) <= {RunState.SUCCEEDED, RunState.FAILED}
    assert set(team.done().values()) == {1}
    assert sum(name.startswith("last") for name in team.done()) >= states[RunState.SUCCEEDED]
    # One whose answer was lost has no id to end it by, and is over when Vault can have it no more: 135 s at most, and
    # then at the next look.
    over = "every lease to be over"
    wait_for(lambda: all({lease.state for lease in team.leases(run)} <= FINAL for run in runs), over, 300)
    wait_for(lambda: team.bench.logins_of_steps() == [], "the logins to be gone", 60)
    with shared(team.ledger_url) as queue:
        wait_for(lambda: queue.claimed() == [], "the queue to be empty", 30)


def test_a_worker_that_is_cut_off_for_half_a_minute_loses_its_run_to_another_one_and_then_goes_on_working(
    crew: Callable[[str], Crew], postgres_server: Callable[..., Postgres], tmp_path: Path
) -> None:
    server = postgres_server()
    with Proxy(("127.0.0.1", server.port)) as proxy:
        team = crew(ledger_of(server))
        loaded = team.loaded("cut_off", 6)
        environment = {**team.environment(), "ORCHESTRATOR_LEDGER_URL": ledger_of(server, proxy.port)}
        with (tmp_path / "log").open("wb") as log:  # it has much to say
            cut_off = team.children.start("worker", "--no-listen", environment=environment, log=log)
        team.processes.append(cut_off)
        with shared(team.ledger_url) as queue:
            runs = [put(queue, loaded, {"mark": "0"})]
            wait_for(lambda: team.bench.logins_of_steps(), "the step to hold its login", 60)
            first = team.owner(runs[0])
            proxy.refuse()
            proxy.cut()
            until = time.monotonic() + 30
            team.worker()
            wait_for(lambda: team.all_ended(runs), "another worker to end it", 60)
            team.check(runs)
            assert any(event.kind == "run.taken_over" for event in events(team, runs[0]))
            wait_for(lambda: time.monotonic() >= until, "half a minute to pass", 40)
            proxy.heal()
            wait_for(lambda: len(workers(team)) == 2, "the one that was cut off to be back", 60)
            assert first not in workers(team), "under another name"
            assert cut_off.poll() is None
            runs += [put(queue, loaded, {"mark": str(number)}) for number in range(1, 7)]
            wait_for(lambda: team.all_ended(runs), "both to carry out the rest", 90)
        team.check(runs)


def events(team: Team, run_id: str) -> list[Any]:
    from orchestrator.clock import SystemClock
    from orchestrator.ledger.opening import open_ledger

    with open_ledger(team.ledger_url, clock=SystemClock()) as ledger:
        return list(ledger.events(run_id))


def workers(team: Team) -> set[str]:
    """Those that live, by the ledger."""
    with psycopg.connect(team.ledger_url) as session:
        rows = session.execute("SELECT runner_id FROM runner WHERE gone = 0 AND process LIKE '%\"worker\"%'")
        return {str(row[0]) for row in rows}


def test_what_waits_in_the_tables_of_an_older_dbos_is_carried_out_when_these_are_brought_up_to_date(
    crew: Callable[[str], Crew], postgres_server: Callable[..., Postgres], monkeypatch: pytest.MonkeyPatch
) -> None:
    team = crew(ledger_of(postgres_server()))
    loaded = team.loaded("older", 0)
    everything = _migration.get_dbos_migrations
    with monkeypatch.context() as older:
        older.setattr(_migration, "get_dbos_migrations", lambda *given: everything(*given)[:-6])
        with shared(team.ledger_url) as queue:
            queue._client._sys_db.run_migrations()
    with psycopg.connect(team.ledger_url) as session:
        [(before,)] = session.execute(f"SELECT version FROM {SCHEMA}.dbos_migrations").fetchall()
    with shared(team.ledger_url) as queue:
        runs = [put(queue, loaded, {"mark": str(number)}) for number in range(3)]
    with psycopg.connect(team.ledger_url) as session:
        [(after,)] = session.execute(f"SELECT version FROM {SCHEMA}.dbos_migrations").fetchall()
    assert after == before + 6
    team.worker()
    wait_for(lambda: team.all_ended(runs), "all to be carried out", 60)
    team.check(runs)


def test_what_an_earlier_version_had_in_its_own_queue_is_carried_out(
    crew: Callable[[str], Crew], postgres_server: Callable[..., Postgres]
) -> None:
    team = crew(ledger_of(postgres_server()))
    loaded = team.loaded("earlier", 0)
    with shared(team.ledger_url) as queue:
        runs = [put(queue, loaded, {"mark": str(number)}) for number in range(3)]
    with psycopg.connect(team.ledger_url) as session:
        session.execute(f"DROP SCHEMA {SCHEMA} CASCADE")
    team.worker()
    wait_for(lambda: team.all_ended(runs), "all to be carried out", 60)
    team.check(runs)

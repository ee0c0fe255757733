"""The issuance governor within one process: what waiting costs, several connections, and the calls of agents."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest
from bench import Bench, Setup
from desks import AGENT, loaded_task, open_desk
from sqlalchemy import Engine
from sqlalchemy import event as hooks

from orchestrator.actions.catalog import catalog
from orchestrator.assembly import open_services
from orchestrator.clock import SystemClock
from orchestrator.credentials.types import Confirm
from orchestrator.ledger.events import AttemptFinished, AttemptWaits, Event, LeaseRequested
from orchestrator.ledger.ids import new_run_id
from orchestrator.ledger.states import RunState
from orchestrator.ledger.writing.committer import Committer, Outcome
from orchestrator.ledger.writing.jobs import Job
from orchestrator.redaction.redactor import Redactor
from orchestrator.runs.runner import Runner
from orchestrator.runs.types import RunOutcome, RunRequest, Services
from orchestrator.tasks.results import CallState
from orchestrator.workflow.loader import LoadedWorkflow, load_text

FLOW = """
version: 1
name: {name}
agent: tester
steps:
  work:
    action: exec
    grants: {{ {grants} }}
    with: {{ command: [/bin/sh, -c, "{command}"], paths: {{ write: [{folder}] }} }}
    timeout: 90s
"""
SECOND = "governed-second"
ROLES = {"support": "feedback-read", SECOND: "second-read"}
LIMITS = {"support": 1, SECOND: 1}

both_ledgers = pytest.mark.parametrize("setup", ["sqlite", "postgresql"], indirect=True)


@dataclass
class Seen:
    """What is on record of all runs, in its order."""

    events: list[tuple[str, Event]] = field(default_factory=list)

    def asked(self) -> list[str]:
        """The runs in the order in which their intents were recorded."""
        return list(dict.fromkeys(run for run, event in self.events if isinstance(event, LeaseRequested)))

    def waits_are_followed(self) -> None:
        for place, (run, event) in enumerate(self.events):
            if isinstance(event, AttemptWaits):
                after = [type(each) for of, each in self.events[place + 1 :] if of == run]
                assert next(each for each in after if each in (LeaseRequested, AttemptFinished, AttemptWaits)) in (
                    LeaseRequested,
                    AttemptFinished,
                )


@dataclass
class World:
    """Servers with two connections to one database, a ledger, and a file for which commands of steps wait."""

    bench: Bench
    setup: Setup
    seen: Seen
    go: Path

    def flow(self, name: str, *connections: str, command: str = "true") -> LoadedWorkflow:
        grants = ", ".join(
            f"g{number}: {{ kind: database, connection: {each}, role: {ROLES[each]} }}"
            for number, each in enumerate(connections)
        )
        text = FLOW.format(name=name, grants=grants, command=command, folder=self.go.parent)
        return load_text(text, filename="flow.yaml", actions=catalog)

    def holding(self, name: str, connection: str) -> LoadedWorkflow:
        """Holds its login until `go` is there."""
        return self.flow(name, connection, command=f"while [ ! -e {self.go} ]; do sleep 0.05; done")

    @asynccontextmanager
    async def process(self, limits: Mapping[str, int] = LIMITS) -> AsyncIterator[Services]:
        """As far as the ledger can tell."""
        config = self.bench.config(
            ledger_url=self.setup.ledger_url,
            connection_leases=limits,
            confirm={SECOND: Confirm.VAULT},
            max_parallel=200,
        )
        async with open_services(
            config, redactor=Redactor(), observer=lambda run, at, event: self.seen.events.append((run, event))
        ) as opened:
            yield opened


@pytest.fixture
def world(bench: Bench, setup: Setup, tmp_path: Path) -> Iterator[World]:
    world = World(bench, setup, Seen(), tmp_path / "go")
    with second_connection(bench):
        for loaded in (world.flow("a", "support"), world.flow("b", SECOND), world.flow("ab", "support", SECOND)):
            bench.install(loaded.workflow)
        yield world
        world.seen.waits_are_followed()


@contextmanager
def second_connection(bench: Bench) -> Iterator[None]:
    """Another connection of Vault's to the same database, with a role that makes the same logins."""
    vault = bench.vault
    config = vault.read("database/config/support")["data"]
    address = psycopg.conninfo.conninfo_to_dict(bench.info.support_dsn.reveal())
    details = config["connection_details"]
    vault.write_data(
        f"database/config/{SECOND}",
        data={
            "plugin_name": config["plugin_name"],
            "allowed_roles": [ROLES[SECOND]],
            "connection_url": details["connection_url"],
            "username": address["user"],
            "password": address["password"],
            "username_template": details["username_template"],
            "password_policy": "recognisable",
        },
    )
    like = vault.read(f"database/roles/{ROLES['support']}")["data"]
    dropped = ['DROP ROLE IF EXISTS "{{name}}"']  # whose logins are another's than those of the function for `support`
    here = {"db_name": SECOND, "revocation_statements": dropped}
    vault.write_data(f"database/roles/{ROLES[SECOND]}", data={**like, **here})
    yield
    vault.delete(f"database/roles/{ROLES[SECOND]}")
    vault.delete(f"database/config/{SECOND}")


def start(of: Services, loaded: LoadedWorkflow) -> tuple[str, asyncio.Task[RunOutcome]]:
    run_id = new_run_id()
    request = RunRequest(run_id=run_id, loaded=loaded, inputs={})
    return run_id, asyncio.create_task(Runner(of).run(request))


async def succeeded(*runs: asyncio.Task[RunOutcome]) -> None:
    for outcome in await asyncio.gather(*runs):
        assert outcome.state is RunState.SUCCEEDED, outcome.reason


async def until(condition: Callable[[], Any], what: str, seconds: float = 60) -> None:
    ends = time.monotonic() + seconds
    while not await asyncio.to_thread(condition):
        assert time.monotonic() < ends, f"waited in vain for {what}"
        await asyncio.sleep(0.02)


def line(of: Services) -> list[str]:
    return [each.run_id for each in of.reader.places(SystemClock().now()).line]


@both_ledgers
async def test_who_waits_for_one_of_two_connections_does_not_block_the_other(world: World) -> None:
    async with world.process() as one, world.process() as other:
        _, holding = start(one, world.holding("b", SECOND))
        await until(world.bench.logins_of_steps, "the login of the holder")
        both, waiting = start(one, world.flow("ab", "support", SECOND))
        await until(lambda: both in line(one), "the run to wait in line")
        for each in (one, other):
            _, alone = start(each, world.flow("a", "support"))
            await succeeded(alone)
        assert line(one) == [both], "the others passed by who waits for another connection"
        world.go.touch()
        await succeeded(holding, waiting)


@both_ledgers
async def test_who_wants_two_does_not_starve_under_a_stream_of_those_who_want_one(world: World) -> None:
    """At each of the two connections somebody is always at work, and others wait."""
    over = asyncio.Event()
    async with world.process() as one, world.process() as other:

        async def stream(of: Services, name: str, connection: str) -> None:
            while not over.is_set():
                await succeeded(start(of, world.flow(name, connection, command="sleep 0.3"))[1])

        kinds = (("a", "support"), ("b", SECOND))
        parts = [(of, *kind) for of in (one, other) for kind in kinds] * 2
        streams = [asyncio.create_task(stream(*part)) for part in parts]
        await until(lambda: len(line(one)) >= 4, "those who want one to wait for each other")
        _, both = start(one, world.flow("ab", "support", SECOND))
        await succeeded(both)
        over.set()
        await asyncio.gather(*streams)


@both_ledgers
async def test_a_hundred_who_wait_cost_what_one_costs(world: World) -> None:
    """In one process: looks of two statements each, and nothing is written while nobody's turn has come."""
    async with world.process() as one:
        _, holding = start(one, world.holding("a", "support"))
        await until(world.bench.logins_of_steps, "the login of the holder")
        runs = [start(one, world.flow("a", "support")) for _ in range(100)]
        await until(lambda: len(line(one)) == 100, "all to wait in line")
        await asyncio.sleep(0.2)
        arrived = line(one)
        with counted() as counts:
            before = time.monotonic()
            await asyncio.sleep(3)
            seconds = time.monotonic() - before
        assert 1 < counts["SELECT lease_waiter"] <= seconds / 0.15 + 1, "the shortest pause between two looks"
        assert abs(counts["SELECT lease"] - counts["SELECT lease_waiter"]) <= 1
        assert counts["commits of the ledger"] == 0
        written = [each for each in counts if each.split()[0] in ("INSERT", "UPDATE", "DELETE")]
        assert set(written) <= {"UPDATE runner"}, "the sign of life of the process"
        world.go.touch()
        tasks = dict(runs)
        await succeeded(holding, *(tasks[run] for run in arrived[:5]))
        for _, run in runs:
            run.cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)
        assert line(one) == []
    served = [run for run in world.seen.asked() if run in arrived]
    assert served == arrived[: len(served)]


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """How often which tables are read or changed, and how often the ledger's writer commits something."""
    counts: Counter[str] = Counter()
    commit = Committer.commit

    def executing(_: Any, __: Any, statement: str, *___: Any) -> None:
        words = statement.split()
        before = {"SELECT": "FROM", "INSERT": "INTO", "DELETE": "FROM", "UPDATE": "UPDATE"}.get(words[0], "")
        if before in words:
            counts[f"{words[0]} {words[words.index(before) + 1]}"] += 1

    def committing(self: Committer, jobs: Sequence[Job]) -> list[Outcome]:
        counts["commits of the ledger"] += 1
        return commit(self, jobs)

    hooks.listen(Engine, "before_cursor_execute", executing)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Committer, "commit", committing)
        yield counts
    hooks.remove(Engine, "before_cursor_execute", executing)


async def test_calls_of_agents_wait_in_the_same_line(bench: Bench) -> None:
    bench.install(loaded_task().workflow)
    limited = {"connection_leases": {"support": 1}}
    async with open_desk(bench, **limited) as desk, open_desk(bench, **limited) as elsewhere:
        task = await desk.open(AGENT, "complaint_desk", {"customer": 1234})
        got = await desk.call(AGENT, task.task_id, "login", {}, "k0")
        assert got.state is CallState.HANDED_OVER
        reader, calls = desk.services.reader, []
        for number in range(4):
            where = (desk, elsewhere)[number % 2]
            calls.append(asyncio.create_task(where.call(AGENT, task.task_id, "read", {}, f"k{number + 1}")))
            await until(lambda n=number: len(line(desk.services)) == n + 1, "the call to wait")  # type: ignore[misc]
        waiting = reader.places(SystemClock().now()).line
        assert {(each.task, each.agent) for each in waiting} == {(task.task_id, AGENT.agent)}
        assert got.handed is not None
        assert await desk.give_back(AGENT, got.handed.lease.lease_id)
        assert [each.state for each in await asyncio.gather(*calls)] == [CallState.DONE] * 4
        asked = {each.run_id: _asked(reader.events(each.run_id)) for each in waiting}
        assert sorted(asked, key=lambda run: asked[run]) == [each.run_id for each in waiting]
        another = await desk.open(AGENT, "complaint_desk", {"customer": 1234})
        late = await desk.call(AGENT, another.task_id, "login", {}, "k9")
        assert late.state is CallState.HANDED_OVER
        doomed = asyncio.create_task(elsewhere.call(AGENT, task.task_id, "read", {}, "k10"))
        await until(lambda: line(desk.services), "the call to wait")
        assert await desk.close(AGENT, task.task_id, "that is all")
        assert (await doomed).state is CallState.CANCELLED
        assert line(desk.services) == []
        assert await desk.close(AGENT, another.task_id)


def _asked(events: Sequence[Any]) -> Any:
    return next(each.time for each in events if each.kind == LeaseRequested.kind)


LINGERS = """
version: 1
name: lingers
agent: tester
on_failure: continue
steps:
  work:
    action: exec
    grants: {{ db: {{ kind: database, connection: support, role: feedback-read }} }}
    with: {{ command: ["true"] }}
    timeout: 2s
  linger:
    action: exec
    with: {{ command: [/bin/sh, -c, "{command}"], paths: {{ write: [{folder}] }} }}
    timeout: 90s
"""


@both_ledgers
async def test_who_gives_up_is_out_of_line_although_its_run_goes_on(world: World) -> None:
    command = f"while [ ! -e {world.go} ]; do sleep 0.05; done"
    text = LINGERS.format(command=command, folder=world.go.parent)
    lingers = load_text(text, filename="flow.yaml", actions=catalog)
    world.bench.install(lingers.workflow)
    async with world.process() as one:
        _, holding = start(one, world.holding("a", "support"))
        await until(world.bench.logins_of_steps, "the login of the holder")
        run_id, lingering = start(one, lingers)
        await until(lambda: line(one) == [run_id], "the step to wait in line")
        ended = (run_id, "work")
        await until(
            lambda: ended in [(run, each.step) for run, each in world.seen.events if isinstance(each, AttemptFinished)],
            "the step to give up",
        )
        assert line(one) == []
        record = one.reader.run(run_id)
        assert record is not None
        assert record.state is RunState.RUNNING
        world.go.touch()
        await succeeded(holding)
        assert (await lingering).state is RunState.REFUSED

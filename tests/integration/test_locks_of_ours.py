"""What a step's login may do with locks, its own password, large objects and notifications, and whom that holds up."""

from __future__ import annotations

import asyncio
import hashlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import psycopg
import pytest
from bench import Bench, Setup
from queued import put, worker_in_process
from waiting import wait_for

from orchestrator.actions.catalog import catalog
from orchestrator.assembly import open_services
from orchestrator.clock import SystemClock
from orchestrator.errors import ExitCode, ProvisionError
from orchestrator.ledger.opening import open_ledger
from orchestrator.ledger.states import RunState
from orchestrator.provision.database import side as database_side
from orchestrator.provision.database.side import _ONE_AT_A_TIME
from orchestrator.queue.names import APPLICATION, SCHEMA
from orchestrator.queue.opening import shared_queue
from orchestrator.redaction.redactor import Redactor
from orchestrator.runs.types import RunOutcome
from orchestrator.scheduling.launcher import Launcher
from orchestrator.workflow.loader import load_text


def of_dbos(job: str) -> int:
    """The key of the lock under which one process at a time does this work, as DBOS makes it."""
    name = f"dbos.background_job.{SCHEMA}.{APPLICATION}.{job}"
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)


GUESSED = (
    *(7266342850541213491, 0x6C_65_64_67_65_72, 0x71_75_65_75_65, 0x64_62_6F_73),
    *(1234567890, of_dbos("background_jobs")),
    *range(-50, 50),
)
"""Keys that programs of this project have used, those of DBOS, and small ones."""

STEP = """
version: 1
name: holds_on
agent: tester
inputs: {{ kind: {{ type: string }} }}
steps:
  work:
    action: exec
    grants:
      db:
        kind: database
        connection: support
        privileges: [ {{ select: public.customer_feedback, columns: [id, kind], where: {{ kind: {value} }} }} ]
    with:
      command: [{python}, {folder}/program.py]
      credentials: {{ env: {{ PGUSER: db.username, PGPASSWORD: db.password }} }}
      paths: {{ write: [{folder}] }}
    timeout: 120s
"""
PROGRAM = """
import os, psycopg, sys, time
session = psycopg.connect('{dsn}')
session.execute('SELECT id FROM customer_feedback LIMIT 1').fetchall()
{what}
open('{folder}/login', 'w').write(os.environ['PGUSER'])
os.rename('{folder}/login', '{folder}/ready')
while not os.path.exists('{folder}/go'): time.sleep(0.02)
"""
HOLDS = """
for key in {keys}: session.execute('SELECT pg_advisory_lock_shared(%s), pg_advisory_lock(%s)', [key, key])
for key in range(-50, 50): session.execute('SELECT pg_advisory_lock(%s, 0), pg_advisory_lock(0, %s)', [key, key])
"""


@dataclass
class Held:
    """A step at work, whose session stays in a transaction that has asked for its rows."""

    login: str
    outcomes: list[RunOutcome] = field(default_factory=list)

    @property
    def outcome(self) -> RunOutcome:
        return self.outcomes[0]


@contextmanager
def at_work(bench: Bench, what: str) -> Iterator[Held]:
    """While inside, the step has done `what` and waits; leaving lets it end."""
    program = PROGRAM.format(dsn=bench.info.support_endpoint, folder=bench.directory, what=what)
    (bench.directory / "program.py").write_text(program)
    text = STEP.format(folder=bench.directory, python=sys.executable, value="'${{ inputs.kind }}'")
    held = Held("")
    run = threading.Thread(target=lambda: held.outcomes.append(bench.run(text, inputs={"kind": "complaint"})))
    run.start()
    try:
        ready = bench.directory / "ready"
        while not ready.exists():
            assert run.is_alive(), held.outcomes
            time.sleep(0.02)
        held.login = ready.read_text()
        yield held
    finally:
        (bench.directory / "go").touch()
        run.join(90)


def drift(bench: Bench) -> None:
    """Something that provisioning has to put right."""
    bench.sql(f"GRANT SELECT ON ticket TO {bench.sample_grant('read').scope_role}")


def test_a_login_that_holds_every_lock_it_can_holds_up_neither_provisioning_nor_revocation(bench: Bench) -> None:
    with at_work(bench, HOLDS.format(keys=GUESSED)) as held:
        held_now = "SELECT count(*) FROM pg_locks WHERE granted AND "
        assert bench.sql(f"{held_now} locktype = 'advisory'")[0] > 200
        assert bench.sql(f"{held_now} relation = 'orchestrator.binding'::regclass") != [0], "it has asked for its rows"
        drift(bench)
        with bench.provisioning() as work:
            work.apply(work.plan())
            assert [each.resource for each in work.plan() if each.resource.startswith("database ")] == []
        other = bench.run(
            "version: 1\nname: beside\nagent: tester\nsteps:\n  one:\n    action: postgres.query\n"
            "    grants: { db: { kind: database, connection: support, role: feedback-read } }\n"
            "    with: { sql: SELECT 1 }\n"
        )
        assert other.exit_code is ExitCode.DONE, other.reason
        assert bench.logins() == [held.login], "the other one's is gone, while this one holds on"
    assert held.outcome.exit_code is ExitCode.DONE, held.outcome.reason
    bench.assert_nothing_left()


JOB = """
version: 1
name: job
agent: tester
steps:
  only: { action: exec, with: { command: [/bin/true] } }
"""


@pytest.mark.parametrize("setup", ["queue"], indirect=True)
def test_it_holds_up_no_ledger_and_no_queue_in_a_database_that_it_may_enter(bench: Bench, setup: Setup) -> None:
    """Every login may connect to every database of its server, unless somebody has taken that from PUBLIC."""
    holds = HOLDS.format(keys=GUESSED).replace("session.", "ledger.")
    dsn = bench.info.support_endpoint.replace("/support", "/setup_ledger", 1)
    job = load_text(JOB, filename="job.yaml", actions=catalog)

    async def carried_out() -> None:
        launcher = Launcher(max_runs=4, redactor=Redactor())
        async with (
            open_services(
                bench.config(ledger_url=setup.ledger_url),
                redactor=Redactor(),
                observer=lambda run, time, event: launcher.observe(run, event),
            ) as services,
            worker_in_process(services, launcher, setup.ledger_url) as queue,
        ):
            runs = [put(queue, job), put(queue, job, delay=0.5)]

            def ended() -> bool:
                records = [services.reader.run(run_id) for run_id in runs]
                return all(record is not None and record.state is RunState.SUCCEEDED for record in records)

            await asyncio.to_thread(wait_for, ended, "what is put in now and what is put in for later", 30)

    with at_work(bench, f"ledger = psycopg.connect('{dsn}'){holds}"):
        asyncio.run(carried_out())
    bench.assert_nothing_left()


def test_several_processes_make_one_ledger_and_its_queue_at_the_same_time(new_database: str) -> None:
    clock = SystemClock()
    start = threading.Barrier(6)

    def make(_: int) -> int:
        start.wait()
        with open_ledger(new_database, clock=clock) as ledger, shared_queue(new_database, ledger.queue) as queue:
            return len(ledger.queue.pauses()) + sum(queue.counts().values())

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(make, range(6))) == [0] * 6


@pytest.mark.parametrize("first_time", [True, False])
def test_two_who_provision_exclude_each_other(bench: Bench, new_database: str, first_time: bool) -> None:
    """Whoever comes second waits until the first is done, and is busy if that takes too long; never both at once."""
    with psycopg.connect(new_database) as first, psycopg.connect(new_database) as second:
        if not first_time:
            first.execute(_ONE_AT_A_TIME[0])
            first.commit()
        for statement in _ONE_AT_A_TIME:
            first.execute(statement)
        done: list[str] = []

        def come_second() -> None:
            try:
                for statement in _ONE_AT_A_TIME:
                    second.execute(statement)
            except psycopg.errors.UniqueViolation:
                second.rollback()
                for statement in _ONE_AT_A_TIME:
                    second.execute(statement)
            done.append("second")

        waiter = threading.Thread(target=come_second)
        waiter.start()
        until_it_waits(new_database, second.info.backend_pid)
        assert done == []
        done.append("first")
        first.commit()
        waiter.join(30)
        assert done == ["first", "second"]


def until_it_waits(dsn: str, pid: int) -> None:
    with psycopg.connect(dsn, autocommit=True) as looker:
        while looker.execute("SELECT cardinality(pg_blocking_pids(%s)) > 0", [pid]).fetchone() != (True,):
            time.sleep(0.01)


def test_a_lock_of_provisioning_that_is_held_makes_apply_say_that_it_is_busy(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_side, "_LOCK_WAIT", "200ms")
    drift(bench)
    with psycopg.connect(bench.info.support_dsn.reveal()) as other:
        for statement in _ONE_AT_A_TIME:
            other.execute(statement)
        with bench.provisioning() as work, pytest.raises(ProvisionError, match="is busy"):
            work.apply(work.plan())
    with bench.provisioning() as work:
        work.apply(work.plan())


def test_a_step_cannot_hold_the_lock_of_provisioning(bench: Bench) -> None:
    tries = """
session.commit()
for statement in ("COMMENT ON SCHEMA orchestrator IS NULL", "LOCK TABLE orchestrator.binding IN ACCESS SHARE MODE",
                  "DROP SCHEMA orchestrator", "CREATE TABLE orchestrator.x ()",
                  "ALTER SCHEMA orchestrator RENAME TO x"):
    try:
        session.execute(statement)
        sys.exit(9)
    except psycopg.errors.InsufficientPrivilege:
        session.execute("ROLLBACK; BEGIN")  # a transaction stays open, as it would to hold a lock
"""
    with at_work(bench, tries), bench.provisioning() as work:
        drift(bench)
        work.apply(work.plan())
        assert [each.resource for each in work.plan() if each.resource.startswith("database ")] == []


PASSWORD = "a-password-of-its-own-choice"


def test_a_login_that_changes_its_own_password_is_gone_at_the_end_of_its_step_all_the_same(bench: Bench) -> None:
    def log_in(login: str) -> None:
        psycopg.connect(bench.info.support_endpoint, user=login, password=PASSWORD).close()

    with at_work(
        bench, f"session.execute(\"ALTER ROLE CURRENT_USER PASSWORD '{PASSWORD}'\"); session.commit()"
    ) as held:
        log_in(held.login)
    assert held.outcome.exit_code is ExitCode.DONE, held.outcome.reason
    bench.assert_nothing_left()
    with pytest.raises(psycopg.OperationalError):
        log_in(held.login)


MORE: dict[str, tuple[str, Callable[[Bench], bool]]] = {
    "large objects": (
        "session.execute('SELECT lo_from_bytea(0, %s)', [b'rows']); session.commit()",
        lambda bench: bench.sql("SELECT count(*) FROM pg_largeobject_metadata") == [0],
    ),
    "sessions that listen": ("session.execute('LISTEN orchestrator'); session.commit()", lambda bench: True),
    "an end of its own choice": (
        "try: session.execute(\"ALTER ROLE CURRENT_USER VALID UNTIL 'infinity'\"); sys.exit(9)\n"
        "except psycopg.errors.InsufficientPrivilege: session.rollback()",
        lambda bench: True,
    ),
}


@pytest.mark.parametrize("what", MORE)
def test_nothing_stays_of(what: str, bench: Bench) -> None:
    done, gone = MORE[what]
    with at_work(bench, done) as held:
        pass
    assert held.outcome.exit_code is ExitCode.DONE, held.outcome.reason
    assert gone(bench)
    bench.assert_nothing_left()

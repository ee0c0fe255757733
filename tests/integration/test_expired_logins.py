"""Logins that expired and that nobody knows of: found by the database's own clock, dropped, and on record."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Callable, Coroutine, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import psycopg
import pytest
from bench import Bench
from ephemeral import assert_useless, created, swept, working
from fork_server import orchestrator

from orchestrator.assembly import open_services
from orchestrator.clock import SystemClock
from orchestrator.errors import ExitCode
from orchestrator.ledger.events import WHOLE_RUN, OrphansSwept, RunStarted
from orchestrator.ledger.ids import new_run_id, step_key_of
from orchestrator.ledger.lease import FINAL
from orchestrator.ledger.opening import open_ledger
from orchestrator.ledger.reading.queries import SWEEP_WORKFLOW
from orchestrator.ledger.states import RunState
from orchestrator.recovery.orphans import ConnectionSwept, databases, sweep_at, sweep_once, sweep_orphans
from orchestrator.recovery.takeover import Recovery
from orchestrator.redaction.redactor import Redactor
from orchestrator.runs.types import Services

T = TypeVar("T")
KEY = "gone-aaaaaaaaaaaa"
QUICK = """
version: 1
name: quick
agent: tester
steps:
  work:
    action: postgres.query
    grants:
      db: { kind: database, connection: support, role: feedback-read }
    with: { sql: SELECT 1 AS one }
"""


def name(number: int, key: str = KEY) -> str:
    return f"orc_{key}_{number:08}"


@pytest.fixture
def cleaned(bench: Bench) -> Iterator[Bench]:
    """The bench; what the test made and nobody may sweep is dropped at the end."""
    yield bench
    for role in bench.sql("SELECT rolname FROM pg_roles WHERE rolname ~ 'orc_'"):
        bench.sql(f'DROP OWNED BY "{role}"; DROP ROLE "{role}"')


class TestInTheDatabase:
    def test_exactly_the_logins_that_are_expired_by_the_databases_clock_go(self, cleaned: Bench) -> None:
        bench = cleaned
        gone = [created(bench, name(1), valid="-31 seconds"), created(bench, name(2, "a" * 33), valid="-10 days")]
        kept = [
            created(bench, name(3), valid="-10 seconds"),
            created(bench, name(4), valid="5 minutes"),
            created(bench, name(5)),
            created(bench, "orc_short", valid="-1 day"),
            created(bench, f"orc_{KEY}_000000009", valid="-1 day"),
            created(bench, f"orc_Capital-aaaaaaaaaaaa_{1:08}", valid="-1 day"),
            created(bench, f"x{name(6)}", valid="-1 day"),
        ]
        bench.sql(f"CREATE ROLE \"{name(7)}\" VALID UNTIL '2020-01-01'")  # made by somebody else, who looks after it
        assert sorted(swept(bench, "sweep_expired()")) == sorted((login, None) for login in gone)
        left = bench.sql("SELECT rolname FROM pg_roles WHERE rolname ~ 'orc_'")
        assert sorted(left) == sorted([*kept, name(7)])

    def test_a_login_that_was_renewed_is_not_expired(self, cleaned: Bench) -> None:
        created(cleaned, name(1), valid="-1 hour")
        cleaned.sql(
            f"SET ROLE orchestrator_vault; ALTER ROLE \"{name(1)}\" VALID UNTIL '{datetime.now(UTC).year + 1}-01-01'"
        )
        assert swept(cleaned, "sweep_expired()") == []
        assert cleaned.logins() == [name(1)]

    def test_its_sessions_are_ended_first(self, bench: Bench) -> None:
        created(bench, name(1), valid="1 hour")
        bench.sql(f"ALTER ROLE \"{name(1)}\" PASSWORD 'chosen-by-the-test'")
        endpoint = bench.provisioned.endpoints["support"]
        with psycopg.connect(endpoint, user=name(1), password="chosen-by-the-test", autocommit=True) as session:
            session.execute("SELECT id FROM customer_feedback LIMIT 1")
            bench.sql(f"ALTER ROLE \"{name(1)}\" VALID UNTIL '2020-01-01'")
            assert swept(bench, "sweep_expired()") == [(name(1), None)]
            assert bench.sessions() == []
            with pytest.raises(psycopg.OperationalError):
                session.execute("SELECT 1")

    def test_what_it_owns_goes_or_stays_as_its_grant_said(self, bench: Bench) -> None:
        mark = f"COMMENT ON ROLE \"{name(2)}\" IS 'orchestrator: keep owned objects'"
        created(bench, name(1), valid="-1 hour")
        created(bench, name(2), valid="-1 hour", more=mark)
        for number in (1, 2):
            bench.sql(f'CREATE TABLE of_{number} (id int); ALTER TABLE of_{number} OWNER TO "{name(number)}"')
        try:
            assert [problem for _, problem in swept(bench, "sweep_expired()")] == [None, None]
            owners = "SELECT tablename || ' ' || tableowner FROM pg_tables WHERE tablename LIKE 'of\\__'"
            assert bench.sql(owners) == ["of_2 orchestrator_vault"]
        finally:
            bench.sql("DROP TABLE IF EXISTS of_1, of_2")

    def test_one_that_cannot_go_is_disabled_and_does_not_keep_the_others(self, cleaned: Bench) -> None:
        for number in (1, 2, 3):
            created(cleaned, name(number), valid="-1 hour")
        cleaned.sql(f'GRANT SELECT ON employee TO "{name(1)}"')
        first = swept(cleaned, "sweep_expired()")
        assert [login for login, problem in first if problem is None] == [name(2), name(3)]
        assert_useless(cleaned, name(1))
        created(cleaned, name(4), valid="-1 minute")
        again = swept(cleaned, "sweep_expired()")
        assert [login for login, _ in again] == [name(4), name(1)], "what can still log in comes first"
        assert "privileges for table public.employee" in str(again[1][1])

    def test_nobody_but_the_sweeper_may_call_it(self, bench: Bench) -> None:
        for role in (bench.sample_grant("read").scope_role, "orchestrator_binder"):
            with psycopg.connect(bench.info.support_dsn.reveal(), autocommit=True) as session:
                session.execute(f"SET ROLE {role}")
                for call in ("sweep_expired()", "revoke('orc_gone-aaaaaaaaaaaa_00000001')"):
                    with pytest.raises(psycopg.errors.InsufficientPrivilege):
                        session.execute(f"SELECT orchestrator.{call}")
        with psycopg.connect(bench.info.support_dsn.reveal(), autocommit=True) as session:
            session.execute("SET ROLE orchestrator_sweeper")
            for call in (
                "revoke('orc_gone-aaaaaaaaaaaa_00000001')",
                "revoke_or_disable('orc_gone-aaaaaaaaaaaa_00000001')",
            ):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    session.execute(f"SELECT orchestrator.{call}")


def with_services(bench: Bench, work: Callable[[Services], Coroutine[Any, Any, T]], **changes: Any) -> T:
    async def go() -> T:
        async with open_services(bench.config(**changes), redactor=Redactor()) as services:
            return await work(services)

    return asyncio.run(go())


def sweep(bench: Bench, run_id: str, **changes: Any) -> tuple[ConnectionSwept, ...] | None:
    return with_services(bench, lambda services: sweep_orphans(services, run_id), **changes)


def orphans(bench: Bench, run_id: str) -> list[tuple[str, list[str]]]:
    """What the chain of a run says was swept, and that it is whole."""
    with open_ledger(bench.config().ledger_url, clock=SystemClock()) as ledger:
        assert ledger.verify(run_id) is None
        events = [event.data for event in ledger.events(run_id) if event.kind == OrphansSwept.kind]
    return [(str(each["step_key"]), list(each["roles"])) for each in events]  # type: ignore[arg-type]


class TestOnRecord:
    def test_one_of_a_run_that_is_over_is_recorded_in_that_run(self, bench: Bench) -> None:
        outcome = bench.run(QUICK)
        (key,) = {lease.step_key for lease in bench.history(outcome.run_id) if lease.step != WHOLE_RUN}
        created(bench, name(1, key), valid="-1 hour")
        run_id = new_run_id()
        assert sweep(bench, run_id) == (ConnectionSwept("support", (name(1, key),)),)
        assert orphans(bench, outcome.run_id) == [(key, [name(1, key)])]
        assert orphans(bench, run_id) == []
        bench.assert_nothing_left()

    def test_one_whose_key_is_not_in_the_ledger_is_recorded_in_the_run_of_the_sweep(self, bench: Bench) -> None:
        created(bench, name(1), valid="-1 hour")
        created(bench, name(2), valid="-1 hour")
        created(bench, name(1, "other-bbbbbbbbbbbb"), valid="-1 hour")
        run_id = new_run_id()
        sweep(bench, run_id)
        assert sorted(orphans(bench, run_id)) == [
            (KEY, [name(1), name(2)]),
            ("other-bbbbbbbbbbbb", [name(1, "other-bbbbbbbbbbbb")]),
        ]
        with open_ledger(bench.config().ledger_url, clock=SystemClock()) as ledger:
            record = ledger.run(run_id)
            assert record is not None
            assert (record.workflow, record.trigger, record.state) == (SWEEP_WORKFLOW, "sweep", RunState.SUCCEEDED)
            assert ledger.runs() == []
            assert [each.run_id for each in ledger.runs(workflow=SWEEP_WORKFLOW)] == [run_id]
        assert {lease.state for lease in bench.history(run_id)} <= FINAL, "the sweep's own login is on record and gone"
        bench.assert_nothing_left()

    def test_a_run_that_goes_on_keeps_its_fence(self, bench: Bench) -> None:
        run_id = new_run_id()
        with working(bench) as work:
            created(bench, name(1, work.step_key), valid="-1 hour")
            assert sweep(bench, run_id) == (ConnectionSwept("support", (name(1, work.step_key),)),)
            assert bench.logins() == [work.login], "the login that the step holds is not expired"
        assert work.outcome.exit_code is ExitCode.DONE
        assert orphans(bench, run_id) == [(work.step_key, [name(1, work.step_key)])]
        assert orphans(bench, work.outcome.run_id) == []

    def test_what_cannot_be_dropped_is_the_reason_of_the_sweeps_end(self, cleaned: Bench) -> None:
        created(cleaned, name(1), valid="-1 hour")
        cleaned.sql(f'GRANT SELECT ON employee TO "{name(1)}"')
        run_id = new_run_id()
        (found,) = sweep(cleaned, run_id) or ()
        assert [each.login for each in found.left] == [name(1)]
        with open_ledger(cleaned.config().ledger_url, clock=SystemClock()) as ledger:
            record = ledger.run(run_id)
            assert record is not None
            assert (record.state, record.exit_code) == (RunState.FAILED, int(ExitCode.UNCONFIRMED))
            assert "privileges for table public.employee" in record.reason

    def test_a_database_that_cannot_be_looked_at_does_not_keep_the_others(self, bench: Bench) -> None:
        created(bench, name(1), valid="-1 hour")
        endpoints = {**bench.provisioned.endpoints, "elsewhere": "postgresql://127.0.0.1:9/elsewhere"}
        run_id = new_run_id()
        elsewhere, support = sweep(bench, run_id, endpoints=endpoints) or ()
        assert "unknown role sweep.elsewhere" in elsewhere.error
        assert support == ConnectionSwept("support", (name(1),))
        assert orphans(bench, run_id) == [(KEY, [name(1)])]

    def test_of_several_processes_only_one_sweeps_at_a_time(self, bench: Bench) -> None:
        now = datetime.now(UTC)

        def sweep_of(moment: datetime) -> tuple[ConnectionSwept, ...] | None:
            return with_services(bench, lambda services: sweep_once(services, sweep_at(moment, 900)))

        assert sweep_of(now) == (ConnectionSwept("support"),)
        created(bench, name(1), valid="-1 hour")
        assert sweep_of(now) is None
        assert bench.logins() == [name(1)]
        assert sweep_of(now + timedelta(seconds=900)) is not None

    def test_a_sweep_that_is_cut_short_gives_its_own_login_back(self, cleaned: Bench) -> None:
        created(cleaned, name(1), valid="-1 hour")
        cleaned.sql(f'CREATE TABLE held (id int); ALTER TABLE held OWNER TO "{name(1)}"')
        waiting = "SELECT 1 FROM pg_stat_activity WHERE usename LIKE 'orc\\_sweep-%' AND wait_event_type = 'Lock'"
        run_id = new_run_id()

        async def begin_and_cancel(services: Services) -> None:
            task = asyncio.create_task(sweep_orphans(services, run_id))
            while not await asyncio.to_thread(cleaned.sql, waiting):
                assert not task.done()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        with psycopg.connect(cleaned.info.support_dsn.reveal()) as holder:
            holder.execute("LOCK TABLE held IN ACCESS SHARE MODE")
            with_services(cleaned, begin_and_cancel)
        assert cleaned.logins() == [name(1)]
        assert {lease.state for lease in cleaned.history(run_id)} <= FINAL
        with open_ledger(cleaned.config().ledger_url, clock=SystemClock()) as ledger:
            record = ledger.run(run_id)
            assert record is not None
            assert (record.state, record.reason) == (RunState.CANCELLED, "the sweep was cut short")

    def test_a_sweep_whose_process_died_is_ended_and_not_gone_on_with(self, bench: Bench) -> None:
        run_id = new_run_id()
        started = RunStarted(
            workflow=SWEEP_WORKFLOW, digest="", agent="o", trigger="sweep", inputs={}, steps=("support",)
        )

        async def begin(services: Services) -> None:
            assert services.heartbeat.begin(run_id, digest="", text="")
            await services.ledger.begin_run(run_id, started)

        with_services(bench, begin)
        (found,) = with_services(bench, lambda services: Recovery(services).once())
        assert (found.run_id, found.resumable, found.reason) == (
            run_id,
            None,
            "a sweep is made again, not gone on with",
        )


def test_a_sweep_is_the_same_within_its_interval() -> None:
    at = datetime(2026, 6, 1, 12, 7, tzinfo=UTC)
    assert sweep_at(at, 900) == sweep_at(at.replace(minute=14), 900)
    assert sweep_at(at, 900) != sweep_at(at.replace(minute=15), 900)


def test_databases_are_the_endpoints_that_are_not_web_addresses() -> None:
    endpoints = {"b": "postgresql://h/b", "api": "https://h", "slack": "http://h", "a": "host=h dbname=a"}
    assert databases(endpoints) == ("a", "b")


def test_the_step_key_is_read_from_the_name() -> None:
    assert step_key_of("orc_read-it-k3v9w2m7q4xa_Xy12Zz09") == "read-it-k3v9w2m7q4xa"


class TestCommand:
    def command(self, bench: Bench, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = bench.environment()
        command = [*orchestrator(), *arguments]
        return subprocess.run(
            command, env={**environment, "ORCHESTRATOR_POLICY": "allow-all"}, capture_output=True, text=True
        )

    def test_an_operators_sweep_drops_them_and_says_so(self, bench: Bench) -> None:
        created(bench, name(1), valid="-1 hour")
        told = self.command(bench, "leases", "sweep")
        assert (told.returncode, told.stdout.splitlines()) == (
            0,
            ["nothing is left over", f"support: {name(1)} had expired, and is dropped"],
        )
        assert bench.logins() == []
        answer = json.loads(self.command(bench, "leases", "sweep", "--json").stdout)
        assert answer == {
            "leases": [],
            "orphans": [{"connection": "support", "dropped": [], "left": [], "error": ""}],
            "irrevocable": [],
            "problems": [],
        }

    def test_what_is_left_is_told_with_the_databases_reason_and_an_exit_code(self, cleaned: Bench) -> None:
        created(cleaned, name(1), valid="-1 hour")
        cleaned.sql(f'GRANT SELECT ON employee TO "{name(1)}"')
        told = self.command(cleaned, "leases", "sweep")
        assert told.returncode == int(ExitCode.UNCONFIRMED)
        assert f"support: {name(1)} is left: " in told.stdout
        assert "privileges for table public.employee" in told.stdout

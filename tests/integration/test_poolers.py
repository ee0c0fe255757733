"""Everything that connects to a database does so through a PgBouncer, too, and of no login is a session left in it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from bench import Bench, prepare
from pgbouncer import PgBouncer, pgbouncer
from test_proof import excess, prove
from test_sql_means_what_was_parsed import SMUGGLED, context, odd_database

from orchestrator.actions.catalog import catalog
from orchestrator.actions.postgres.statements import Execute, ExecuteParams, Query, QueryParams
from orchestrator.assembly import open_services
from orchestrator.credentials.types import Attempt
from orchestrator.devstack.stack import DevStack
from orchestrator.errors import ExitCode, StepFailed, Unreachable
from orchestrator.inference.workflows import open_catalogs
from orchestrator.ledger.events import RunStarted
from orchestrator.ledger.ids import new_run_id, new_step_key
from orchestrator.ledger.states import StepState
from orchestrator.provision.declarations import load_declarations
from orchestrator.redaction.redactor import Redactor
from orchestrator.secret import Secret
from orchestrator.workflow.loader import load_text

__all__ = ["odd_database"]  # a fixture

MODES: dict[str, dict[str, str]] = {
    "sessions": {},
    "sessions, options dropped": {"ignore_startup_parameters": "options,extra_float_digits,search_path"},
    "transactions": {"pool_mode": "transaction"},
}


@dataclass
class Pooled:
    """A bench whose database is reached through a pooler: by the steps, by us, and by Vault."""

    bench: Bench
    pooler: PgBouncer

    def rows(self, text: str, **how: Any) -> Any:
        self.bench.events.clear()
        outcome = self.bench.run(text, **how)
        assert outcome.exit_code is ExitCode.DONE, {name: error.message for name, error in outcome.errors.items()}
        output = next(event.outputs for event in reversed(self.bench.events) if event.kind == "step.finished")
        assert isinstance(output, dict)
        return output["rows"]

    def pooled_logins(self) -> list[str]:
        """The logins of ours for which the pooler has had a pool."""
        return [str(row[1]) for row in self.pooler.sql("SHOW POOLS") if str(row[1]).startswith("orc_")]

    def idle(self, login: str) -> None:
        """Leave a session of this login in the pooler, as a client does that has done its work."""
        with psycopg.connect(self.pooler.endpoint, user=login, password="pw", autocommit=True) as session:
            session.execute("SELECT 1")
        until = time.monotonic() + 30
        while self.bench.sql("SELECT state FROM pg_stat_activity WHERE usename = %s", [login]) != ["idle"]:
            assert time.monotonic() < until, "the pooler keeps no session of it"


@pytest.fixture(scope="module", params=MODES.values(), ids=MODES)
def servers(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, nothing_escapes: None
) -> Iterator[Pooled]:
    directory = tmp_path_factory.mktemp("pooled")
    with DevStack(directory / "stack") as info, ExitStack() as stack:
        pooler = stack.enter_context(pgbouncer(info.support_dsn.reveal(), directory / "pooler", request.param))
        yield Pooled(prepare(replace(info, support_endpoint=pooler.endpoint), directory), pooler)


@pytest.fixture
def pooled(servers: Pooled, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pooled]:
    bench = replace(servers.bench, directory=tmp_path_factory.mktemp("pooled_test"), events=[])
    yield replace(servers, bench=bench)
    bench.assert_nothing_left()


STEP = """
version: 1
name: goes_through_a_pooler
agent: tester
steps:
  step:
    action: postgres.query
    grants:
      db:
        kind: database
        connection: support
        privileges: [ { select: customer_feedback, columns: [id, customer_id] } ]
    with: { sql: "__SQL__" }
    timeout: 30s
    outputs: [rows]
"""


def reads(sql: str) -> str:
    return STEP.replace("__SQL__", sql)


SETTINGS = (
    "SELECT current_setting('TimeZone') AS zone, current_setting('datestyle') AS dates, "
    "current_setting('intervalstyle') AS intervals, current_setting('bytea_output') AS bytes, "
    "current_setting('cursor_tuple_fraction') AS fraction, current_setting('standard_conforming_strings') AS strings, "
    "current_setting('statement_timeout') <> '0' AS limited, current_setting('transaction_read_only') AS read_only, "
    "current_setting('search_path') AS path, session_user LIKE 'orc\\\\_%' AS own"
)
TOLD = {
    "zone": "UTC",
    "dates": "ISO, MDY",
    "intervals": "iso_8601",
    "bytes": "hex",
    "fraction": "1",
    "strings": "on",
    "limited": True,
    "read_only": "on",
    "own": True,
}


def test_a_step_has_the_settings_of_its_session_and_nothing_of_it_is_left(pooled: Pooled) -> None:
    assert pooled.rows(reads(SETTINGS)) == [{**TOLD, "path": '"$user", public'}]
    assert pooled.pooled_logins(), "it did not go through the pooler"
    pooled.bench.assert_nothing_left()


def test_what_the_database_has_set_otherwise_does_not_matter(pooled: Pooled) -> None:
    bench = pooled.bench
    odd = {"timezone": "Asia/Tokyo", "datestyle": "German", "standard_conforming_strings": "off", "search_path": "a, b"}
    for name, value in odd.items():
        bench.sql(f"ALTER DATABASE support SET {name} = {value if name == 'search_path' else repr(value)}")
    try:
        assert pooled.rows(reads(SETTINGS)) == [{**TOLD, "path": "a, b"}]
    finally:
        bench.sql("ALTER DATABASE support RESET ALL")


def test_the_endpoints_own_settings_hold_behind_the_pooler(pooled: Pooled) -> None:
    endpoint = (
        f"{pooled.pooler.endpoint}?options=-c%20search_path%3Dpg_catalog%2C%5C%20public%20-cTimeZone%3DEurope/Rome"
    )
    endpoints = {**pooled.bench.provisioned.endpoints, "support": endpoint}
    told = {**TOLD, "zone": "Europe/Rome", "path": "pg_catalog, public"}
    assert pooled.rows(reads(SETTINGS), endpoints=endpoints) == [told]


def test_a_step_that_takes_too_long_is_ended_in_the_server(pooled: Pooled) -> None:
    outcome = pooled.bench.run(reads("SELECT pg_sleep(600)").replace("timeout: 30s", "timeout: 2s"))
    assert outcome.steps["step"] is StepState.FAILED
    assert (
        pooled.bench.sql(
            "SELECT query FROM pg_stat_activity WHERE query LIKE '%pg_sleep(600)%' AND pid <> pg_backend_pid()"
        )
        == []
    )
    pooled.bench.assert_nothing_left()


def test_a_failed_statement_leaves_nothing_behind(pooled: Pooled) -> None:
    outcome = pooled.bench.run(reads("SELECT email FROM customer_feedback"))
    assert outcome.steps["step"] is StepState.FAILED
    pooled.bench.assert_nothing_left()


WRITES = """
version: 1
name: writes_through_a_pooler
agent: tester
steps:
  step:
    action: postgres.execute
    grants:
      db: { kind: database, connection: support, privileges: [ { insert: pooled, columns: [n] } ] }
    with: { sql: "INSERT INTO pooled (n) VALUES (%(n)s)", each: [ { n: 1 }, { n: 2 }, { n: __LAST__ } ] }
"""


def test_all_of_a_step_is_written_or_nothing(pooled: Pooled) -> None:
    bench = pooled.bench
    bench.sql("CREATE TABLE pooled (n int)")
    try:
        assert bench.run(WRITES.replace("__LAST__", "3")).exit_code is ExitCode.DONE
        assert bench.sql("SELECT n FROM pooled ORDER BY n") == [1, 2, 3]
        assert bench.run(WRITES.replace("__LAST__", "x")).exit_code is ExitCode.STEP_FAILED
        assert bench.sql("SELECT count(*) FROM pooled") == [3]
    finally:
        bench.sql("DROP TABLE pooled")


LIMITED = """
version: 1
name: reads_its_rows_through_a_pooler
agent: tester
inputs: { customer: { type: integer } }
steps:
  step:
    action: postgres.query
    grants:
      db:
        kind: database
        connection: support
        privileges:
          - { select: customer_feedback, columns: [id, customer_id], where: { customer_id: "${{ inputs.customer }}" } }
    with: { sql: "SELECT DISTINCT customer_id FROM customer_feedback" }
    outputs: [rows]
"""


def test_row_limits_are_bound_through_the_pooler(pooled: Pooled) -> None:
    assert pooled.rows(LIMITED, inputs={"customer": 1007}) == [{"customer_id": 1007}]


def test_the_pooler_may_be_for_the_steps_alone(pooled: Pooled) -> None:
    """Then the values of row limits are set in the server itself, and waited for behind the pooler."""
    direct = pooled.bench.info.support_dsn.reveal().replace("postgres:", "", 1)
    server = f"postgresql://{direct.rpartition('@')[2]}"
    assert pooled.rows(LIMITED, inputs={"customer": 1007}, primaries={"support": server}) == [{"customer_id": 1007}]


def swept(pooled: Pooled, key: str | None = None) -> tuple[str, ...]:
    """What a sweep of this step key, or of expired logins, has dropped."""

    async def go() -> tuple[str, ...]:
        async with open_services(pooled.bench.config(), redactor=Redactor()) as services:
            run_id = new_run_id()
            started = RunStarted(workflow="w", digest="", agent="a", trigger="test", inputs={}, steps=("lost",))
            fence = await services.ledger.begin_run(run_id, started)
            until = time.monotonic() + 30
            attempt = Attempt(run_id, fence, "w", "lost", 1, "a", key or new_step_key("lost"), (), "", until)
            duties = services.broker.duties
            assert duties is not None
            if key is None:
                return (await duties.sweep_expired(attempt, "support", deadline=until)).dropped
            return (await duties.sweep(attempt, "support", [key], deadline=until)).dropped

    return asyncio.run(go())


@pytest.mark.parametrize("expired", [False, True])
def test_a_sweep_ends_the_session_that_the_pooler_keeps(pooled: Pooled, expired: bool) -> None:
    key = new_step_key("lost")
    login = f"orc_{key}_Ab3dEf6h"
    bench = pooled.bench
    bench.sql(f"SET ROLE orchestrator_vault; CREATE ROLE \"{login}\" LOGIN PASSWORD 'pw'")
    bench.sql(f'SET ROLE orchestrator_vault; GRANT orchestrator_binder TO "{login}"')  # which may connect
    try:
        pooled.idle(login)
        assert bench.sessions() == [login]
        if expired:
            bench.sql(f"ALTER ROLE \"{login}\" VALID UNTIL 'yesterday'")
        assert swept(pooled, None if expired else key) == (login,)
        bench.assert_nothing_left()
        with pytest.raises(psycopg.OperationalError, match=r"no such user|failed"):
            psycopg.connect(pooled.pooler.endpoint, user=login, password="pw")
    finally:
        bench.sql(f'DROP OWNED BY "{login}"; DROP ROLE "{login}"') if bench.logins() else None


def test_the_end_of_a_lease_ends_the_session_that_the_pooler_keeps(pooled: Pooled) -> None:
    """Vault's revocation, while the pooler has a session that no client uses."""
    vault, bench = pooled.bench.vault, pooled.bench
    lease = vault.read("database/creds/feedback-read")
    login, password = lease["data"]["username"], lease["data"]["password"]
    with psycopg.connect(pooled.pooler.endpoint, user=login, password=password, autocommit=True) as session:
        session.execute("SELECT count(*) FROM customer_feedback")
    assert bench.sessions() == [login]
    vault.sys.revoke_lease(lease["lease_id"])
    bench.assert_nothing_left()


def test_what_a_login_can_do_is_proven_through_the_pooler(pooled: Pooled) -> None:
    pooled.bench.install(load_text(LIMITED, filename="x.yaml", actions=catalog).workflow)
    proof = prove(pooled.bench, text=LIMITED, inputs={"customer": 1007})
    assert (proof.holds, excess(proof)) == (True, [])
    pooled.bench.assert_nothing_left()


def test_grants_are_inferred_through_the_pooler(pooled: Pooled) -> None:
    bench = pooled.bench
    bench.sql("CREATE ROLE catalog LOGIN PASSWORD 'pw'; GRANT CONNECT ON DATABASE support TO catalog")
    try:
        dsn = psycopg.conninfo.make_conninfo(pooled.pooler.endpoint, user="catalog", password="pw")
        with open_catalogs({"support": Secret(dsn)}) as catalogs:
            found = catalogs.of("support").of("SELECT id FROM customer_feedback")
        assert [each.describe() for each in found.privileges] == ["select (id) on public.customer_feedback"]
    finally:
        bench.sql("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = 'catalog'")
        bench.sql("REVOKE CONNECT ON DATABASE support FROM catalog; DROP ROLE catalog")


def test_an_administrator_provisions_through_the_pooler(pooled: Pooled) -> None:
    dsn = Secret(pooled.pooler.through(pooled.bench.info.support_dsn.reveal()))
    bench = replace(pooled.bench, info=replace(pooled.bench.info, support_dsn=dsn))
    workflow = load_text(LIMITED, filename="x.yaml", actions=catalog).workflow
    with bench.provisioning([workflow]) as work:
        work.apply(work.plan())
        assert work.plan() == []


def test_vaults_own_connection_goes_through_the_pooler(pooled: Pooled) -> None:
    url = pooled.bench.vault.read("database/config/support")["data"]["connection_details"]["connection_url"]
    assert f":{pooled.pooler.port}/" in url
    assert load_declarations(pooled.bench.declarations)[0].connections["support"].login in str(
        pooled.pooler.sql("SHOW POOLS")
    )


@pytest.fixture(params=["direct", *MODES])
def odd_endpoint(request: pytest.FixtureRequest, odd_database: str, tmp_path: Path) -> Iterator[str]:
    """The way to a database in which a backslash escapes."""
    if request.param == "direct":
        yield odd_database
        return
    # Here one login has several sessions, one after the other: what they prepare must not be there twice.
    settings = {**MODES[request.param], "server_reset_query_always": "1"}
    with pgbouncer(odd_database, tmp_path / "pooler", settings) as pooler:
        yield pooler.through(odd_database)


async def test_a_text_is_no_command_behind_the_pooler_either(odd_endpoint: str) -> None:
    for sql in SMUGGLED.values():  # the fixture looks whether anything has come of one
        assert await Execute().run(ExecuteParams(sql=sql), context(odd_endpoint)) == {"row_count": 1}


@pytest.mark.parametrize("address", ["", "?options=-c%20standard_conforming_strings%3Doff"])
async def test_a_session_reads_texts_as_the_parser_does(odd_endpoint: str, address: str) -> None:
    there = context(odd_endpoint)
    there = replace(there, endpoints={"support": there.endpoints["support"] + address})
    output = await Query().run(QueryParams(sql=r"SELECT 'a\b' AS it, current_setting($$TimeZone$$) AS zone"), there)
    assert isinstance(output, dict)
    assert output["rows"] == [{"it": r"a\b", "zone": "UTC"}]


def test_a_pooler_that_parts_a_transaction_is_refused_and_says_why(new_database: str, tmp_path: Path) -> None:
    with pgbouncer(new_database, tmp_path / "pooler", {"pool_mode": "statement"}) as pooler:
        there = context(pooler.through(new_database))
        with pytest.raises(StepFailed) as caught:
            asyncio.run(Query().run(QueryParams(sql="SELECT 1"), there))
    assert "transaction blocks not allowed in statement pooling mode" in caught.value.message
    assert "keep a transaction together" in str(caught.value.hint)


def test_a_pooler_that_connects_as_another_user_is_refused(new_database: str, tmp_path: Path) -> None:
    admin = psycopg.conninfo.conninfo_to_dict(new_database)
    with psycopg.connect(new_database, autocommit=True) as session:
        session.execute("CREATE ROLE of_a_step LOGIN PASSWORD 'pw'; CREATE TABLE written (n int)")
    entry = f"user={admin['user']} password={admin['password']}"
    try:
        with pgbouncer(new_database, tmp_path / "pooler", {"auth_type": "trust"}, entry) as pooler:
            endpoint = f"{pooler.endpoint}?require_auth=none"
            login = context(psycopg.conninfo.make_conninfo(pooler.through(new_database), user="of_a_step"))
            there = replace(login, endpoints={"support": endpoint})
            for action in (
                Query().run(QueryParams(sql="SELECT 1"), there),
                Execute().run(ExecuteParams(sql="INSERT INTO written VALUES (1)"), there),
            ):
                with pytest.raises(StepFailed, match="not of the login that connected"):
                    asyncio.run(action)
            dsn = psycopg.conninfo.make_conninfo(endpoint, user="of_a_step", password="pw")
            with (
                pytest.raises(Unreachable, match="not of the login that connected"),
                open_catalogs({"odd": Secret(dsn)}) as catalogs,
            ):
                catalogs.of("odd")
        with psycopg.connect(new_database) as session:
            assert session.execute("SELECT count(*) FROM written").fetchone() == (0,)
    finally:
        with psycopg.connect(new_database, autocommit=True) as session:
            session.execute("DROP ROLE of_a_step")


@pytest.mark.parametrize("engine", ["local", "dbos"])
def test_a_ledger_may_be_behind_a_pooler_of_sessions(bench: Bench, tmp_path: Path, engine: Any) -> None:
    bench.sql("CREATE DATABASE pooled_ledger")
    dsn = bench.info.support_dsn.reveal().replace("/support", "/pooled_ledger", 1)
    try:
        with pgbouncer(dsn, tmp_path / "pooler") as pooler:
            given = psycopg.conninfo.conninfo_to_dict(dsn)
            url = f"postgresql://{given['user']}:{given['password']}@127.0.0.1:{pooler.port}/pooled_ledger"
            outcome = bench.run(reads("SELECT 1 AS one"), ledger_url=url, engine=engine)
            assert outcome.exit_code is ExitCode.DONE
            with psycopg.connect(dsn) as session:
                assert session.execute("SELECT count(*) FROM run WHERE state = 'succeeded'").fetchone() == (1,)
    finally:
        bench.sql("DROP DATABASE pooled_ledger WITH (FORCE)")


def test_a_catalog_that_is_not_read_in_one_session_is_refused_and_says_why(new_database: str, tmp_path: Path) -> None:
    with pgbouncer(new_database, tmp_path / "pooler", {"pool_mode": "transaction"}) as pooler:
        dsn = pooler.through(new_database)

        def infer() -> None:
            with psycopg.connect(dsn, autocommit=True) as other, open_catalogs({"odd": Secret(dsn)}) as catalogs:
                inference = catalogs.of("odd")
                other.execute("BEGIN")
                other.execute("SELECT 1")  # in the session that inference has had until now
                inference.of("SELECT 1")

        with pytest.raises(Unreachable, match="not read in one session") as caught:
            infer()
    assert "session pooling" in str(caught.value.hint)

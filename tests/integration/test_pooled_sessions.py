"""What a single session is told and refused behind a PgBouncer: a step's, inference's, the ledger's."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from bench import Bench
from pgbouncer import pgbouncer
from test_poolers import MODES, reads
from test_sql_means_what_was_parsed import SMUGGLED, context, odd_database

from orchestrator.actions.postgres.statements import Execute, ExecuteParams, Query, QueryParams
from orchestrator.clock import SystemClock
from orchestrator.credentials.arrival import unknown_login
from orchestrator.errors import ExitCode, LedgerError, OrchestratorError, StepFailed, Unreachable
from orchestrator.inference.workflows import open_catalogs
from orchestrator.ledger.opening import open_ledger
from orchestrator.secret import Secret

__all__ = ["odd_database"]  # a fixture


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
        output = await Execute().run(ExecuteParams(sql=sql), context(odd_endpoint))
        assert isinstance(output, dict)
        assert (output["row_count"], len(output["rows"])) == (1, 1)


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


def test_a_ledger_may_be_behind_a_pooler_of_sessions(bench: Bench, tmp_path: Path) -> None:
    bench.sql("CREATE DATABASE pooled_ledger")
    dsn = bench.info.support_dsn.reveal().replace("/support", "/pooled_ledger", 1)
    try:
        with pgbouncer(dsn, tmp_path / "pooler") as pooler:
            given = psycopg.conninfo.conninfo_to_dict(dsn)
            url = f"postgresql://{given['user']}:{given['password']}@127.0.0.1:{pooler.port}/pooled_ledger"
            outcome = bench.run(reads("SELECT 1 AS one"), ledger_url=url)
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


@pytest.mark.parametrize("mode", ["transaction", "statement"])
def test_a_ledger_is_not_opened_behind_a_pooler_that_parts_its_session(
    new_ledger: str, tmp_path: Path, mode: str
) -> None:
    with pgbouncer(new_ledger, tmp_path / "pooler", {"pool_mode": mode}) as pooler:
        given = psycopg.conninfo.conninfo_to_dict(new_ledger)
        url = f"postgresql://{given['user']}:{given['password']}@127.0.0.1:{pooler.port}/{given['dbname']}"
        with pytest.raises(LedgerError) as caught:
            open_ledger(url, clock=SystemClock())
    if mode == "transaction":
        assert "changes sessions after each transaction" in caught.value.message
        assert "`pool_mode = session`" in str(caught.value.hint)


def test_grants_are_not_inferred_behind_a_pooler_that_parts_transactions(new_database: str, tmp_path: Path) -> None:
    with (
        pgbouncer(new_database, tmp_path / "pooler", {"pool_mode": "statement"}) as pooler,
        pytest.raises(OrchestratorError),
        open_catalogs({"odd": Secret(pooler.through(new_database))}) as catalogs,
    ):
        catalogs.of("odd").of("SELECT 1")


@pytest.mark.parametrize("pool_mode", ["session", "transaction"])
async def test_a_step_that_is_cancelled_runs_on_nowhere(new_database: str, tmp_path: Path, pool_mode: str) -> None:
    running = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(611)%' AND pid <> pg_backend_pid()"

    def count() -> int:
        with psycopg.connect(new_database) as session:
            row = session.execute(f"{running} AND state = 'active'").fetchone()
            assert row is not None
            return int(row[0])

    with pgbouncer(new_database, tmp_path / "pooler", {"pool_mode": pool_mode}) as pooler:
        there = context(pooler.through(new_database))
        step = asyncio.create_task(Execute().run(ExecuteParams(sql="SELECT pg_sleep(611)"), there))
        until = time.monotonic() + 30
        while await asyncio.to_thread(count) == 0:
            assert time.monotonic() < until, "the statement does not begin"
            await asyncio.sleep(0.02)
        step.cancel()
        with pytest.raises(asyncio.CancelledError):
            await step
        assert await asyncio.to_thread(count) == 0


def test_a_login_that_the_pooler_does_not_find_is_waited_for(new_database: str, tmp_path: Path) -> None:
    with psycopg.connect(new_database, autocommit=True) as session:
        session.execute(
            "CREATE ROLE of_a_step LOGIN PASSWORD 'pw'; CREATE ROLE shut LOGIN CONNECTION LIMIT 0 PASSWORD 'pw'"
        )
    try:
        with pgbouncer(new_database, tmp_path / "pooler") as pooler:

            def failure(login: str, password: str) -> psycopg.Error:
                with pytest.raises(psycopg.OperationalError) as caught:
                    psycopg.connect(pooler.endpoint, user=login, password=password, connect_timeout=10)
                return caught.value

            assert unknown_login(failure("nobody_knows", "pw"), "nobody_knows")
            assert unknown_login(failure("of_a_step", "another"), "of_a_step")
            assert not unknown_login(failure("shut", "pw"), "shut"), "too many connections"
            with psycopg.connect(pooler.endpoint, user="of_a_step", password="pw") as session:
                assert session.execute("SELECT session_user").fetchone() == ("of_a_step",)
    finally:
        with psycopg.connect(new_database, autocommit=True) as session:
            session.execute("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = 'of_a_step'")
            session.execute("DROP ROLE of_a_step; DROP ROLE shut")

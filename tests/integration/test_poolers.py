"""Everything that connects to a database does so through a PgBouncer, too, and of no login is a session left in it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import psycopg
import pytest
from bench import Bench, prepare
from pgbouncer import PgBouncer, pgbouncer
from psycopg.conninfo import conninfo_to_dict
from test_proof import excess, prove

from orchestrator.actions.catalog import catalog
from orchestrator.assembly import open_services
from orchestrator.credentials.types import Attempt
from orchestrator.devstack.stack import DevStack
from orchestrator.errors import ExitCode
from orchestrator.inference.workflows import open_catalogs
from orchestrator.ledger.events import LeaseLoginTried, LeaseRevoked, RunStarted
from orchestrator.ledger.ids import new_run_id, new_step_key
from orchestrator.ledger.states import StepState
from orchestrator.provision.declarations import load_declarations
from orchestrator.redaction.redactor import Redactor
from orchestrator.secret import Secret
from orchestrator.workflow.loader import load_text

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


def test_the_server_behind_the_pooler_says_that_the_login_is_gone_and_the_pooler_refuses_it(pooled: Pooled) -> None:
    pooled.rows(reads("SELECT 1 AS one"))
    tried, revoked = (
        next(event for event in pooled.bench.events if isinstance(event, kind) and getattr(event, name, None))
        for kind, name in ((LeaseLoginTried, "refused"), (LeaseRevoked, "witness"))
    )
    assert tried.server == place_of(pooled.pooler.endpoint)
    assert tried.sqlstate in ("08P01", "28P01"), "in the words of the pooler, which differ from version to version"
    (system,) = pooled.bench.sql("SELECT system_identifier::text FROM pg_control_system()")
    server = {"system": system, "address": place_of(pooled.bench.info.support_dsn.reveal()), "database": "support"}
    assert (revoked.witness["sessions"], revoked.witness["server"]) == (0, server)


def place_of(dsn: str) -> str:
    given = conninfo_to_dict(dsn)
    return f"{given['host']}:{given['port']}"


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


TROJANS = """
CREATE FUNCTION public.unnest(text[]) RETURNS SETOF text LANGUAGE sql AS 'SELECT NULL WHERE false';
CREATE FUNCTION public.set_config(text, text, boolean) RETURNS text LANGUAGE sql AS 'SELECT NULL';
CREATE FUNCTION public.current_setting(text) RETURNS text LANGUAGE sql AS 'SELECT NULL';
CREATE FUNCTION public.quote_ident(text) RETURNS text LANGUAGE sql AS 'SELECT NULL';
CREATE FUNCTION public.pg_has_role(name, oid, text) RETURNS boolean LANGUAGE sql AS 'SELECT false';
ALTER DATABASE support SET search_path = public, pg_catalog;
"""


@pytest.fixture
def trojans(pooled: Pooled) -> Iterator[None]:
    """Functions in a schema that the database's search path has before the system's."""
    bench = pooled.bench
    for statement in TROJANS.strip().splitlines():
        bench.sql(statement)
    yield
    bench.sql("ALTER DATABASE support RESET search_path")
    for name in ("unnest(text[])", "set_config(text, text, boolean)", "current_setting(text)", "quote_ident(text)"):
        bench.sql(f"DROP FUNCTION public.{name}")
    bench.sql("DROP FUNCTION public.pg_has_role(name, oid, text)")


@pytest.mark.usefixtures("trojans")
def test_nothing_in_the_databases_search_path_stands_for_what_we_call(pooled: Pooled) -> None:
    key = new_step_key("lost")
    login = f"orc_{key}_Ab3dEf6h"
    bench = pooled.bench
    bench.sql(f"SET ROLE orchestrator_vault; CREATE ROLE \"{login}\" LOGIN PASSWORD 'pw'")
    try:
        assert swept(pooled, key) == (login,)
    finally:
        bench.sql(f'DROP ROLE IF EXISTS "{login}"')
    assert pooled.rows(LIMITED, inputs={"customer": 1007}) == [{"customer_id": 1007}]
    proof = prove(bench, text=LIMITED, inputs={"customer": 1007})
    names = ("current_setting(text)", "pg_has_role(name, oid, text)", "quote_ident(text)")
    names += ("set_config(text, text, boolean)", "unnest(text[])")
    assert excess(proof) == [f"EXECUTE on function public.{name} through PUBLIC" for name in names]

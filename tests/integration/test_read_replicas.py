"""Steps that read from a standby: logins are made at the primary and arrive a moment later, with their row limits."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import psycopg
import pytest
from bench import Bench, prepare
from psycopg.conninfo import conninfo_to_dict
from standby import Standby
from test_proof import excess, of

from orchestrator.actions.catalog import catalog
from orchestrator.assembly import open_services
from orchestrator.credentials.arrival import unknown_login
from orchestrator.credentials.types import Attempt
from orchestrator.devstack.postgres import Postgres
from orchestrator.devstack.stack import DevStack
from orchestrator.errors import ExitCode, OrchestratorError
from orchestrator.ledger.events import LeaseLoginTried, LeaseRevoked, RunStarted
from orchestrator.ledger.ids import new_run_id, new_step_key
from orchestrator.ledger.states import StepState
from orchestrator.proof.examine import Examination
from orchestrator.proof.forbidden import Verdict
from orchestrator.proof.report import Proof
from orchestrator.proof.service import Prover
from orchestrator.redaction.redactor import Redactor
from orchestrator.runs.types import RunOutcome, RunRequest
from orchestrator.workflow.inputs import bind_inputs
from orchestrator.workflow.loader import load_text

WAITS = "does not know the login yet"


@dataclass
class Replicated:
    """The bench, whose steps read from a standby of the support database."""

    bench: Bench
    standby: Standby

    @property
    def endpoint(self) -> str:
        return self.standby.endpoint("support")

    def addresses(self, *, primary: bool = True) -> dict[str, Any]:
        endpoints = {**self.bench.provisioned.endpoints, "support": self.endpoint}
        return {
            "endpoints": endpoints,
            "primaries": {"support": self.bench.info.support_endpoint} if primary else {},
        }

    def run(self, text: str, *, primary: bool = True, **how: Any) -> RunOutcome:
        return self.bench.run(text, **self.addresses(primary=primary), **how)

    def rows(self) -> Any:
        outputs = next(event.outputs for event in reversed(self.bench.events) if event.kind == "step.finished")
        assert isinstance(outputs, dict)
        return outputs["rows"]


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory, nothing_escapes: None) -> Iterator[tuple[Bench, Standby]]:
    directory = tmp_path_factory.mktemp("replicated")
    stack = DevStack(directory / "stack")
    with stack as info:
        bench = prepare(info, directory)
        with Standby(directory / "standby", durable=False, primary=stack.postgres) as standby:
            yield bench, standby


@pytest.fixture
def replicated(servers: tuple[Bench, Standby], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replicated]:
    bench, standby = servers
    bench = replace(bench, directory=tmp_path_factory.mktemp("replica"), events=[])
    yield Replicated(bench, standby)
    standby.resume()
    standby.lag(0)
    bench.assert_nothing_left()
    until = time.monotonic() + 30
    while not standby.has_replayed():
        assert time.monotonic() < until, "the standby does not catch up"
        time.sleep(0.05)


READS = """
version: 1
name: reads_a_replica
agent: tester
steps:
  read:
    action: postgres.query
    grants:
      db: { kind: database, connection: support, privileges: [ { select: customer_feedback, columns: [id] } ] }
    with: { sql: "SELECT pg_is_in_recovery() AS standby, count(id) AS n FROM customer_feedback" }
    timeout: 40s
    outputs: [rows]
"""

LIMITED = """
version: 1
name: reads_its_rows
agent: tester
inputs: { customer: { type: integer } }
steps:
  read:
    action: postgres.query
    grants:
      db:
        kind: database
        connection: support
        privileges:
          - { select: payment_card, columns: [customer_id], where: { customer_id: "${{ inputs.customer }}" } }
    with: { sql: "SELECT customer_id, pg_is_in_recovery() AS standby FROM payment_card" }
    timeout: 50s
    outputs: [rows]
"""


def test_the_primary_says_that_the_login_is_gone_and_refuses_it(replicated: Replicated) -> None:
    assert replicated.run(READS).exit_code is ExitCode.DONE
    (tried,) = (event for event in replicated.bench.events if isinstance(event, LeaseLoginTried))
    (witness,) = (
        event.witness for event in replicated.bench.events if isinstance(event, LeaseRevoked) and event.witness
    )
    given = conninfo_to_dict(replicated.bench.info.support_dsn.reveal())
    primary = f"{given['host']}:{given['port']}"
    assert (tried.refused, tried.sqlstate, tried.server) == (True, "28P01", primary)
    server = witness["server"]
    assert isinstance(server, dict)
    assert (witness["sessions"], server["address"]) == (0, primary)


class Listener(logging.Handler):
    """Lets the standby go on when the step says that it waits."""

    def __init__(self, standby: Standby) -> None:
        super().__init__(logging.WARNING)
        self.standby = standby
        self.heard: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.heard.append(record.getMessage())
        self.standby.resume()


def test_a_step_waits_with_the_same_login_until_the_standby_knows_it(replicated: Replicated) -> None:
    replicated.bench.install(load_text(READS, filename="x.yaml", actions=catalog).workflow)
    replicated.standby.pause()
    listener = Listener(replicated.standby)
    where = logging.getLogger("orchestrator.actions.postgres.session")
    where.addHandler(listener)
    try:
        outcome = replicated.run(READS, install=False)
    finally:
        where.removeHandler(listener)
    assert outcome.exit_code is ExitCode.DONE, {name: error.message for name, error in outcome.errors.items()}
    assert replicated.rows()[0]["standby"] is True
    leases = replicated.bench.history(outcome.run_id)
    assert [lease.grant for lease in leases].count("db") == 1
    assert [WAITS in message for message in listener.heard] == [True], "it is said once"


def test_no_run_loses_the_race_against_replication(replicated: Replicated) -> None:
    for _ in range(10):
        assert replicated.run(READS).exit_code is ExitCode.DONE


def test_a_standby_that_is_further_behind_fails_the_step_and_says_what_may_be_wrong(
    replicated: Replicated, monkeypatch: pytest.MonkeyPatch
) -> None:
    replicated.bench.install(load_text(READS, filename="x.yaml", actions=catalog).workflow)
    monkeypatch.setattr("orchestrator.credentials.arrival.WAIT_SECONDS", 0.5)
    replicated.standby.pause()
    outcome = replicated.run(READS, install=False)
    error = outcome.errors["read"]
    assert (outcome.exit_code, error.kind) == (ExitCode.STEP_FAILED, "connection")  # type: ignore[attr-defined]
    assert "or a standby of it that is further behind" in str(error.hint)


@pytest.mark.parametrize("lag", [0, 1500])
def test_row_limits_have_arrived_before_the_step_begins(replicated: Replicated, lag: int) -> None:
    replicated.bench.install(load_text(LIMITED, filename="x.yaml", actions=catalog).workflow)
    replicated.standby.lag(lag)
    outcome = replicated.run(LIMITED, install=False, inputs={"customer": 1007})
    assert outcome.exit_code is ExitCode.DONE, {name: error.message for name, error in outcome.errors.items()}
    assert replicated.rows() == [{"customer_id": 1007, "standby": True}]


def test_row_limits_that_do_not_arrive_are_no_empty_answer(
    replicated: Replicated, monkeypatch: pytest.MonkeyPatch
) -> None:
    replicated.bench.install(load_text(LIMITED, filename="x.yaml", actions=catalog).workflow)
    monkeypatch.setattr("orchestrator.credentials.standby.WAIT_SECONDS", 0.5)
    replicated.standby.pause()
    outcome = replicated.run(LIMITED, install=False, inputs={"customer": 1007})
    assert outcome.exit_code is ExitCode.UNREACHABLE
    assert "has not replayed the step's row limits within 0.5s" in outcome.errors["read"].message


def test_an_address_of_the_primary_that_leads_to_the_endpoint_itself_does_no_harm(replicated: Replicated) -> None:
    own = {"endpoints": replicated.bench.provisioned.endpoints, "primaries": replicated.addresses()["primaries"]}
    outcome = replicated.bench.run(LIMITED, inputs={"customer": 1007}, **own)
    assert outcome.exit_code is ExitCode.DONE, {name: error.message for name, error in outcome.errors.items()}
    assert replicated.rows() == [{"customer_id": 1007, "standby": False}]


def test_without_the_primarys_address_the_error_names_the_setting(replicated: Replicated) -> None:
    outcome = replicated.run(LIMITED, primary=False, inputs={"customer": 1007})
    error = outcome.errors["read"]
    assert outcome.exit_code is ExitCode.UNREACHABLE
    assert error.message.startswith("the orchestrator's own bind in `support` ")
    assert "set ORCHESTRATOR_PRIMARIES__SUPPORT to the address of its primary" in str(error.hint)


def test_a_step_that_writes_is_told_that_it_is_at_a_standby(replicated: Replicated) -> None:
    text = READS.replace("postgres.query", "postgres.execute").replace(
        "{ select: customer_feedback, columns: [id] }", "{ delete: ticket }"
    )
    text = text.replace(
        "SELECT pg_is_in_recovery() AS standby, count(id) AS n FROM customer_feedback", "DELETE FROM ticket"
    )
    outcome = replicated.run(text.replace("    outputs: [rows]\n", ""))
    assert outcome.steps["read"] is StepState.FAILED
    assert outcome.errors["read"].message == "the endpoint `support` is a standby, in which nothing can be written"


def sweep(replicated: Replicated, key: str, *, primary: bool) -> tuple[str, ...]:
    async def go() -> tuple[str, ...]:
        config = replicated.bench.config(**replicated.addresses(primary=primary))
        async with open_services(config, redactor=Redactor()) as services:
            run_id = new_run_id()
            started = RunStarted(workflow="w", digest="", agent="a", trigger="test", inputs={}, steps=("lost",))
            fence = await services.ledger.begin_run(run_id, started)
            until = time.monotonic() + 30
            attempt = Attempt(run_id, fence, "w", "lost", 1, "a", key, (), "", until)
            assert services.broker.duties is not None
            return (await services.broker.duties.sweep(attempt, "support", [key], deadline=until)).dropped

    return asyncio.run(go())


@pytest.mark.parametrize("behind", [False, True])
def test_the_sweep_asks_the_primary_and_never_takes_a_standbys_word(replicated: Replicated, behind: bool) -> None:
    key = new_step_key("lost")
    login = f"orc_{key}_Ab3dEf6h"
    if behind:
        replicated.standby.pause()
    replicated.bench.sql(f'SET ROLE orchestrator_vault; CREATE ROLE "{login}" LOGIN')
    try:
        if not behind:
            with pytest.raises(OrchestratorError) as caught:
                sweep(replicated, key, primary=False)
            assert "set ORCHESTRATOR_PRIMARIES__SUPPORT to the address of its primary" in str(caught.value.hint)
            assert replicated.bench.logins() == [login]
        assert sweep(replicated, key, primary=True) == (login,)
    finally:
        replicated.bench.sql(f'DROP ROLE IF EXISTS "{login}"')


def proof_of(replicated: Replicated, *, primary: bool) -> Proof:
    loaded = load_text(READS, filename="x.yaml", actions=catalog)
    replicated.bench.install(loaded.workflow)
    request = RunRequest(run_id=new_run_id(), loaded=loaded, inputs=bind_inputs(loaded.workflow, {}), trigger="prove")

    async def go() -> Proof:
        config = replicated.bench.config(**replicated.addresses(primary=primary))
        async with open_services(config, redactor=Redactor()) as services:
            return await Prover(services=services, wish=Examination()).prove(request)

    return asyncio.run(go())


def test_a_proof_is_made_at_the_primary_where_what_writes_can_be_tried(replicated: Replicated) -> None:
    proof = proof_of(replicated, primary=True)
    assert (proof.holds, excess(proof)) == (True, [])
    assert {trial.verdict for trial in of(proof).trials} == {Verdict.REFUSED}


def test_at_a_standby_what_writes_is_inconclusive_and_says_why(replicated: Replicated) -> None:
    proof = proof_of(replicated, primary=False)
    assert (proof.holds, excess(proof)) == (True, [])
    unsure = [trial for trial in of(proof).trials if trial.verdict is Verdict.INCONCLUSIVE]
    assert unsure
    assert all("this is a standby" in trial.answer for trial in unsure)
    assert any(trial.verdict is Verdict.REFUSED for trial in of(proof).trials)


def test_only_a_login_that_a_server_does_not_know_is_waited_for(servers: tuple[Bench, Standby]) -> None:
    server: Postgres = servers[1].primary  # type: ignore[assignment]  # every standby has one
    password = server.password.reveal()

    def failure(endpoint: str, login: str, password: str = "wrong") -> psycopg.Error:
        with pytest.raises(psycopg.OperationalError) as caught:
            psycopg.connect(endpoint, user=login, password=password, connect_timeout=5)
        return caught.value

    with psycopg.connect(server.dsn().reveal(), autocommit=True) as session:
        session.execute(f"CREATE ROLE narrow LOGIN CONNECTION LIMIT 0 PASSWORD '{password}'")
        session.execute(f"CREATE ROLE closed NOLOGIN PASSWORD '{password}'")
        try:
            endpoint = server.endpoint("support")
            assert unknown_login(failure(endpoint, "nobody_knows"), "nobody_knows")
            assert unknown_login(failure(endpoint, "narrow"), "narrow")
            assert not unknown_login(failure(endpoint, "narrow", password), "narrow"), "no database is open to it"
            session.execute("GRANT CONNECT ON DATABASE support TO narrow")
            assert not unknown_login(failure(endpoint, "narrow", password), "narrow"), "too many connections"
            assert not unknown_login(failure("postgresql://127.0.0.1:1/support", "narrow"), "narrow")
            assert not unknown_login(failure(server.endpoint("nowhere"), "postgres", password), "postgres")
        finally:
            session.execute("REVOKE CONNECT ON DATABASE support FROM narrow")
            session.execute("DROP ROLE narrow; DROP ROLE closed")

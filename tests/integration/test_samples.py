"""The sample workflows and the starter on real servers, under the sample policy, as they stand."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from bench import ROOT, Bench

from orchestrator.actions.catalog import catalog
from orchestrator.assembly import open_services
from orchestrator.credentials.types import Attempt
from orchestrator.errors import ExitCode, PolicyDenied
from orchestrator.grants.policy_names import step_policy_name
from orchestrator.ledger.events import LeaseIssued, LeaseRequested, RunStarted
from orchestrator.ledger.ids import new_run_id, new_step_key
from orchestrator.ledger.lease import LeaseState
from orchestrator.planning.requests import bind, scopes_of
from orchestrator.policy.engines.rego.engine import RegoEngine
from orchestrator.redaction.redactor import Redactor
from orchestrator.starter.workflow import STARTER
from orchestrator.workflow.loader import load_text

POLICY = RegoEngine.from_directory(ROOT / "workflows" / "policies")
ENRICH = (ROOT / "workflows" / "enrich_feedback.yaml").read_text()
TICKET = (ROOT / "workflows" / "support_ticket.yaml").read_text()


def test_the_starter_runs_as_it_stands_once_it_is_provisioned(bench: Bench) -> None:
    outcome = bench.run(STARTER, policy=POLICY)
    assert outcome.exit_code is ExitCode.DONE, outcome.reason
    with bench.provisioning(prune=True) as work:
        work.apply(work.plan())


def test_the_enrichment_runs_and_reads_three_of_fifteen_columns(bench: Bench) -> None:
    outcome = bench.run(ENRICH, policy=POLICY, install=False)
    assert outcome.exit_code is ExitCode.DONE, outcome.reason
    columns = bench.sql(
        "SELECT count(*) FROM pg_attribute WHERE attrelid = 'customer_feedback'::regclass AND attnum > 0"
    )
    scope = next(event.scope for event in bench.events if isinstance(event, LeaseRequested) and event.grant == "db")
    assert columns == [15]
    assert scope["privileges"] == [
        {"verb": "select", "object": "public.customer_feedback", "columns": ["city", "id", "loyalty_tier"]}
    ]


def as_step(bench: Bench, step_id: str, customer: int, use: Callable[[psycopg.Connection[Any]], Any]) -> Any:
    """What somebody gets who has the step's own login for a customer, and sends what they like."""
    workflow = load_text(TICKET, filename="ticket.yaml", actions=catalog).workflow

    async def go() -> Any:
        async with open_services(bench.config(), redactor=Redactor()) as services:
            run_id = new_run_id()
            started = RunStarted(
                workflow=workflow.name, digest="sha256:0", agent=workflow.agent, trigger="manual", inputs={}, steps=()
            )
            attempt = Attempt(
                run_id=run_id,
                fence=await services.ledger.begin_run(run_id, started),
                workflow=workflow.name,
                step=step_id,
                number=1,
                agent=workflow.agent,
                step_key=new_step_key(step_id),
                scopes=bind(scopes_of(workflow, step_id), {"inputs": {"customer_id": customer}}),
                policy=step_policy_name(workflow.name, step_id),
                deadline=time.monotonic() + 30,
            )
            async with services.broker.open(attempt) as credentials:
                login = credentials["db"].fields
                with psycopg.connect(
                    bench.info.support_endpoint,
                    user=login["username"].reveal(),
                    password=login["password"].reveal(),
                    autocommit=True,
                ) as session:
                    return use(session)

    return asyncio.run(go())


@pytest.fixture
def tickets(bench: Bench) -> Bench:
    bench.sql("TRUNCATE ticket")
    return bench


def test_the_agent_writes_a_ticket_about_what_its_customer_wrote(tickets: Bench) -> None:
    outcome = tickets.run(TICKET, inputs={"customer_id": 1234}, policy=POLICY, install=False)
    assert outcome.exit_code is ExitCode.DONE, outcome.reason
    wrote = tickets.sql("SELECT count(*) FROM customer_feedback WHERE customer_id = 1234")
    assert wrote[0] > 0
    assert tickets.sql("SELECT customer_id FROM ticket") == [1234]
    assert tickets.sql("SELECT messages FROM ticket") == wrote
    limits = [
        privilege["where"]
        for event in tickets.events
        if isinstance(event, LeaseRequested) and event.grant == "db"
        for privilege in event.scope["privileges"]
    ]
    assert limits == [{"customer_id": "1234"}, {"customer_id": "1234"}]
    tickets.assert_nothing_left()


def test_the_agents_login_sees_no_row_of_another_customer(bench: Bench) -> None:
    def ids(session: psycopg.Connection[Any]) -> list[int]:
        return [row[0] for row in session.execute("SELECT id FROM customer_feedback ORDER BY id")]

    for customer in (1234, 1235):
        expected = bench.sql("SELECT id FROM customer_feedback WHERE customer_id = %s ORDER BY id", [customer])
        assert expected != []
        assert as_step(bench, "read_messages", customer, ids) == expected
    assert as_step(bench, "read_messages", 9999, ids) == []


def test_the_agents_login_writes_no_ticket_for_another_customer(tickets: Bench) -> None:
    insert = "INSERT INTO ticket (id, customer_id, subject, messages) VALUES (%s, %s, '', 0)"

    def write(session: psycopg.Connection[Any]) -> None:
        session.execute(insert, ["a", 1234])
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="row-level security"):
            session.execute(insert, ["b", 1235])
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            session.execute("SELECT id FROM ticket")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            session.execute("UPDATE ticket SET customer_id = 1235")

    as_step(tickets, "write_ticket", 1234, write)
    assert tickets.sql("SELECT id FROM ticket") == ["a"]


def test_a_customer_that_is_not_the_agents_is_refused_before_anything_is_asked_of_vault(tickets: Bench) -> None:
    outcome = tickets.run(TICKET, inputs={"customer_id": 1235}, policy=POLICY, install=False)
    assert outcome.exit_code is ExitCode.REFUSED
    assert int(outcome.exit_code) == 3
    error = outcome.errors["read_messages"]
    assert isinstance(error, PolicyDenied)
    assert "agent `support-agent` may not do the task `crm:write_ticket` for customer 1235" in str(error)
    assert [event for event in tickets.events if isinstance(event, LeaseRequested | LeaseIssued)] == []
    assert tickets.history(outcome.run_id) == []
    assert tickets.sql("SELECT id FROM ticket") == []


@pytest.fixture
def bystander(bench: Bench) -> Iterator[psycopg.Connection[Any]]:
    """A session of somebody else who uses a table with limited rows."""
    bench.sql("CREATE ROLE bystander NOLOGIN; GRANT SELECT, INSERT ON customer_feedback, ticket TO bystander")
    try:
        with psycopg.connect(bench.info.support_dsn.reveal(), autocommit=True) as session:
            session.execute("SET ROLE bystander")
            yield session
    finally:
        bench.sql("DROP OWNED BY bystander; DROP ROLE bystander")


def test_limiting_rows_changes_nothing_in_what_others_see_and_in_how_it_is_found(
    bench: Bench, bystander: psycopg.Connection[Any]
) -> None:
    (everything,) = bench.sql("SELECT count(*) FROM customer_feedback")
    for role in ("bystander", "support_owner", "feedback_app"):
        bystander.execute(f"SET ROLE {role}".encode())
        assert bystander.execute("SELECT count(*) FROM customer_feedback").fetchone() == (everything,)
    explain = "EXPLAIN (COSTS OFF) SELECT id FROM customer_feedback WHERE comment LIKE 'x%' AND customer_id + 1 = 7"
    plans = []
    with bystander.transaction(force_rollback=True):
        bystander.execute("SET LOCAL ROLE NONE")  # a superuser, whom no policy concerns
        bystander.execute("CREATE INDEX by_comment ON customer_feedback (comment text_pattern_ops)")
        bystander.execute("SET LOCAL enable_seqscan = off")
        for role in ("NONE", "bystander"):
            bystander.execute(f"SET LOCAL ROLE {role}".encode())
            plans.append([line for (line,) in bystander.execute(explain.encode()) if "Filter" not in line])
    assert "by_comment" in " ".join(plans[0])
    assert plans[0] == plans[1]


def test_limiting_rows_refuses_others_copy_from_and_dumps_without_row_security_as_documented(
    tickets: Bench, bystander: psycopg.Connection[Any]
) -> None:
    def copy() -> None:
        with bystander.cursor().copy("COPY ticket (id, customer_id, subject, messages) FROM STDIN") as into:
            into.write("copied\t1\t\t0\n")

    def dump() -> Any:
        return bystander.execute("SELECT count(*) FROM ticket").fetchone()

    with pytest.raises(psycopg.errors.FeatureNotSupported):
        copy()
    bystander.execute("SET row_security = off")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        dump()
    bystander.execute("SET ROLE support_owner")
    assert dump() == (0,)
    copy()
    assert dump() == (1,)
    bystander.execute("DELETE FROM ticket WHERE id = 'copied'")


def test_every_lease_of_the_samples_is_confirmed_gone(tickets: Bench) -> None:
    for text, inputs in ((ENRICH, {}), (TICKET, {"customer_id": 1234})):
        outcome = tickets.run(text, inputs=inputs, policy=POLICY, install=False)
        states = {lease.state for lease in tickets.history(outcome.run_id)}
        assert states <= {LeaseState.REVOKED, LeaseState.ENDED}
        tickets.assert_nothing_left()

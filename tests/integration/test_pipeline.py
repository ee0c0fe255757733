"""The sample pipeline on real servers, and what each of its steps could do while it ran."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx
import psycopg
import pytest
from bench import ROOT, Bench
from slack_sdk import WebClient
from slack_sdk.errors import SlackApiError

from orchestrator.actions.catalog import catalog
from orchestrator.assembly import open_services
from orchestrator.credentials.types import Attempt
from orchestrator.errors import ExitCode
from orchestrator.grants.credential import Credential
from orchestrator.grants.policy_names import step_policy_name
from orchestrator.ledger.events import Decided, LeaseIssued, LeaseRequested, RunStarted
from orchestrator.ledger.ids import new_run_id, new_step_key
from orchestrator.ledger.lease import LeaseState
from orchestrator.ledger.states import StepState
from orchestrator.planning.requests import scopes_of
from orchestrator.policy.engines.rego.engine import RegoEngine
from orchestrator.redaction.redactor import Redactor
from orchestrator.workflow.loader import load

SAMPLE = ROOT / "workflows" / "customer_feedback.yaml"


def test_the_sample_runs_under_its_policy_and_leaves_nothing_but_its_work(bench: Bench) -> None:
    before = bench.sql("SELECT count(*) FROM feedback_translation")[0]
    policy = RegoEngine.from_directory(ROOT / "workflows" / "policies")
    outcome = bench.run(SAMPLE.read_text(), install=False, policy=policy, inputs={"limit": 7})
    assert (outcome.exit_code, set(outcome.steps.values())) == (ExitCode.DONE, {StepState.SUCCEEDED})
    bench.assert_nothing_left()
    assert bench.sql("SELECT count(*) FROM feedback_translation")[0] == before + 7
    assert bench.sql("SELECT count(*) FROM feedback_translation WHERE run_id = %s", [outcome.run_id]) == [7]
    state = httpx.get(
        f"{bench.info.slack_url}/_admin/state", headers={"X-Admin-Token": bench.info.admin_token.reveal()}
    ).json()
    assert state["messages"][-1]["channel"] == "#support"
    assert state["messages"][-1]["text"].startswith("7 customer messages")


def test_every_intent_is_on_record_before_the_credential_and_every_end_is_honest(bench: Bench) -> None:
    outcome = bench.run(SAMPLE.read_text(), install=False)
    requested = [event.lease_id for event in bench.events if isinstance(event, LeaseRequested)]
    issued = [event.lease_id for event in bench.events if isinstance(event, LeaseIssued)]
    assert sorted(requested) == sorted(issued)
    for lease_id in issued:
        kinds = [event.kind for event in bench.events if getattr(event, "lease_id", None) == lease_id]
        assert kinds[0] == "lease.requested"
        assert kinds.index("lease.requested") < kinds.index("lease.issued") < kinds.index("lease.revoking")
    ends = {(lease.step, lease.grant_kind): lease.state for lease in bench.history(outcome.run_id)}
    assert ends["read", "database"] is LeaseState.REVOKED
    assert ends["translate", "token"] is LeaseState.ENDED, "a JWT cannot be revoked, and is not called so"
    assert ends["notify", "secret"] is LeaseState.ENDED
    assert all(state is LeaseState.REVOKED for (_, kind), state in ends.items() if kind == "step-token")
    decided = [event for event in bench.events if isinstance(event, Decided)]
    assert [event.step for event in decided][:2] == ["read", "translate"]


def with_credentials(bench: Bench, step_id: str, use: Any) -> Any:
    """Open the credentials of one step of the sample, as its run would, and use them from here."""
    loaded = load(SAMPLE, actions=catalog)
    workflow = loaded.workflow

    async def go() -> Any:
        async with open_services(bench.config(), redactor=Redactor()) as services:
            run_id = new_run_id()
            started = RunStarted(
                workflow=workflow.name,
                digest=loaded.digest,
                agent=workflow.agent,
                trigger="test",
                inputs={},
                steps=tuple(workflow.steps),
            )
            attempt = Attempt(
                run_id=run_id,
                fence=await services.ledger.begin_run(run_id, started),
                workflow=workflow.name,
                step=step_id,
                number=1,
                agent=workflow.agent,
                step_key=new_step_key(step_id),
                scopes=scopes_of(workflow, step_id),
                policy=step_policy_name(workflow.name, step_id),
                deadline=time.monotonic() + 30,
            )
            async with services.broker.open(attempt) as credentials:
                return use(next(iter(credentials.values())))

    return asyncio.run(go())


def refusals(bench: Bench, credential: Credential, statements: dict[str, bool]) -> dict[str, bool]:
    """For each statement, whether the server allowed it to this login."""
    allowed = {}
    with psycopg.connect(
        bench.info.support_endpoint,
        user=credential.fields["username"].reveal(),
        password=credential.fields["password"].reveal(),
        autocommit=True,
    ) as session:
        for statement in statements:
            try:
                session.execute(statement)  # type: ignore[call-overload]
                allowed[statement] = True
            except psycopg.errors.InsufficientPrivilege:
                allowed[statement] = False
    return allowed


def test_the_reading_step_can_select_three_columns_and_nothing_else(bench: Bench) -> None:
    expected = {
        "SELECT id, kind, comment FROM customer_feedback": True,
        "SELECT email FROM customer_feedback": False,
        "SELECT * FROM customer_feedback": False,
        "SELECT id FROM customer_feedback ORDER BY birth_date": False,
        "SELECT customer_feedback FROM customer_feedback": False,
        "SELECT * FROM payment_card": False,
        "SELECT * FROM employee": False,
        "SELECT * FROM feedback_translation": False,
        "UPDATE customer_feedback SET comment = ''": False,
        "DELETE FROM customer_feedback": False,
        "TRUNCATE customer_feedback": False,
        "INSERT INTO customer_feedback (id) VALUES (-1)": False,
        "CREATE TABLE mine (a int)": False,
        "CREATE TEMP TABLE mine (a int)": False,
        f"SET ROLE {bench.sample_grant('read').scope_role}": False,
        "SET ROLE orchestrator_vault": False,
        "CREATE ROLE another": False,
        "SELECT orchestrator.sweep('read-aaaaaaaaaaaa')": False,
        "SELECT orchestrator.revoke('orc_x_12345678')": False,
    }
    assert with_credentials(bench, "read", lambda login: refusals(bench, login, expected)) == expected


def test_the_recording_step_can_insert_into_one_table_and_nothing_else(bench: Bench) -> None:
    expected = {
        "INSERT INTO feedback_translation VALUES (1, 'xx', '', 'probe')": True,
        "INSERT INTO feedback_translation VALUES (1, 'yy', '', 'probe', now())": False,
        "SELECT * FROM feedback_translation": False,
        "UPDATE feedback_translation SET translation = ''": False,
        "DELETE FROM feedback_translation": False,
        "SELECT id FROM customer_feedback": False,
        "SELECT * FROM payment_card": False,
        f"SET ROLE {bench.sample_grant('record').scope_role}": False,
    }
    try:
        assert with_credentials(bench, "record", lambda login: refusals(bench, login, expected)) == expected
    finally:
        bench.sql("DELETE FROM feedback_translation WHERE run_id = 'probe'")


def test_the_translating_step_is_refused_by_other_scopes_and_audiences(bench: Bench) -> None:
    def use(credential: Credential) -> tuple[int, int, str]:
        bearer = {"Authorization": f"Bearer {credential.fields['token'].reveal()}"}
        url = bench.info.translation_url
        accepted = httpx.post(f"{url}/v1/translate", json={"target": "en", "messages": []}, headers=bearer)
        refused = httpx.put(f"{url}/v1/glossary/x", json={"meaning": "y"}, headers=bearer)
        return accepted.status_code, refused.status_code, refused.headers["WWW-Authenticate"]

    accepted, refused, reason = with_credentials(bench, "translate", use)
    assert (accepted, refused) == (200, 403)
    assert 'error="insufficient_scope"' in reason


def test_a_token_for_another_audience_is_refused(bench: Bench) -> None:
    outcome = bench.run(
        f"""
version: 1
name: other_audience
agent: tester
steps:
  call:
    action: http.request
    grants:
      api: {{ kind: token, audience: billing-api, scope: [translate] }}
    with:
      method: POST
      url: {bench.info.translation_url}/v1/translate
      bearer: api
      json: {{ target: en, messages: [] }}
"""
    )
    assert outcome.exit_code is ExitCode.STEP_FAILED
    assert "401" in outcome.reason


def test_the_notifying_step_can_post_to_its_channel_only(bench: Bench) -> None:
    def use(credential: Credential) -> list[str]:
        client = WebClient(credential.fields["token"].reveal(), base_url=f"{bench.info.slack_url}/api/")
        errors = []
        for channel in ("#general", "#finance"):
            with pytest.raises(SlackApiError) as refusal:
                client.chat_postMessage(channel=channel, text="probe")
            errors.append(refusal.value.response["error"])
        return errors

    assert with_credentials(bench, "notify", use) == ["not_in_channel", "not_in_channel"]


def test_a_login_is_gone_and_its_open_session_with_it_when_the_step_ends(bench: Bench) -> None:
    sessions: list[psycopg.Connection[Any]] = []

    def keep_open(credential: Credential) -> None:
        session = psycopg.connect(
            bench.info.support_endpoint,
            user=credential.fields["username"].reveal(),
            password=credential.fields["password"].reveal(),
            autocommit=True,
        )
        session.execute("SELECT id FROM customer_feedback LIMIT 1")
        sessions.append(session)

    with_credentials(bench, "read", keep_open)
    bench.assert_nothing_left()
    with pytest.raises(psycopg.OperationalError):
        sessions[0].execute("SELECT id FROM customer_feedback LIMIT 1")

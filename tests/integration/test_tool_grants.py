"""Tools on the real servers before any agent calls them: installed, inferred and proven as steps are."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from bench import Bench
from joserfc import jwt
from joserfc.jwk import KeySet

from orchestrator.actions.catalog import catalog
from orchestrator.assembly import open_services
from orchestrator.cli.main import main
from orchestrator.credentials.types import Attempt
from orchestrator.errors import ExitCode
from orchestrator.grants.policy_names import step_policy_name
from orchestrator.jsontypes import JsonValue
from orchestrator.ledger.events import RunFinished, RunStarted
from orchestrator.ledger.ids import new_run_id, new_step_key
from orchestrator.ledger.lease import LeaseState
from orchestrator.ledger.states import RunState
from orchestrator.planning.requests import bind, scopes_of
from orchestrator.proof.examine import Examination
from orchestrator.proof.forbidden import Verdict
from orchestrator.proof.report import Proof
from orchestrator.proof.service import Prover
from orchestrator.redaction.redactor import Redactor
from orchestrator.runs.types import RunRequest
from orchestrator.vault.jwks import jwks_from_transit
from orchestrator.workflow.loader import LoadedWorkflow, load_text

TOOLS = """\
version: 1
name: complaint_tools
inputs: { customer: { type: integer } }
context: { customer: "${{ inputs.customer }}" }
tools:
  read:
    description: Read what the customer wrote.
    call: { limit: { type: integer, minimum: 1, maximum: 50, default: 10 } }
    grants:
      db:
        kind: database
        connection: support
        privileges:
          - select: customer_feedback
            columns: [comment, id]
    action: postgres.query
    with:
      sql: SELECT id, comment FROM customer_feedback ORDER BY id LIMIT %(limit)s
      parameters: { limit: "${{ call.limit }}" }
    outputs: [rows]
  ticket:
    description: A token for one ticket.
    grants:
      crm:
        kind: token
        ttl: 60s
        audience: crm
        scope: [write_ticket]
        details: [ { type: crm_record, actions: [write_ticket], identifier: "${{ inputs.customer }}" } ]
    hand_over: crm
"""


def load(text: str = TOOLS) -> LoadedWorkflow:
    return load_text(text, filename="tools.yaml", actions=catalog)


def test_tools_are_installed_proven_and_gone(bench: Bench) -> None:
    loaded = load()
    bench.install(loaded.workflow)
    request = RunRequest(run_id=new_run_id(), loaded=loaded, inputs={"customer": 1234}, trigger="prove")

    async def go() -> Proof:
        async with open_services(bench.config(), redactor=Redactor()) as services:
            return await Prover(services=services, wish=Examination()).prove(request)

    proof = asyncio.run(go())
    assert proof.holds, [each for each in proof.grants if not each.holds]
    assert {each.step for each in proof.grants} == {"read", "ticket"}
    (token,) = [each for each in proof.grants if each.grant == "crm"]
    tried = {trial.what: trial for trial in token.trials}
    details = tried["be for anything beyond its details"]
    assert (details.verdict, details.answer) == (Verdict.REFUSED, "it has those that were bound")
    bench.assert_nothing_left()


def test_the_details_are_in_the_signed_token_and_on_record(bench: Bench) -> None:
    loaded = load()
    bench.install(loaded.workflow)
    scopes = bind(scopes_of(loaded.workflow, "ticket"), {"inputs": {"customer": 1234}})
    run = new_run_id()

    async def go() -> str:
        async with open_services(bench.config(), redactor=Redactor()) as services:
            started = RunStarted(
                workflow="complaint_tools", digest=loaded.digest, agent="a", trigger="t", inputs={}, steps=("ticket",)
            )
            fence = await services.ledger.begin_run(run, started)
            attempt = Attempt(
                run_id=run,
                fence=fence,
                workflow="complaint_tools",
                step="ticket",
                number=1,
                agent="complaint-agent",
                step_key=new_step_key("ticket"),
                scopes=scopes,
                policy=step_policy_name("complaint_tools", "ticket"),
                deadline=services.clock.monotonic() + 30,
            )
            async with services.broker.open(attempt) as credentials:
                token = credentials["crm"].fields["token"].reveal()
            finished = RunFinished(state=RunState.SUCCEEDED, exit_code=0)
            await services.ledger.append(run, fence, [finished])
            return token

    token = asyncio.run(go())
    keys = jwks_from_transit("orchestrator-token", bench.vault.read("transit/keys/orchestrator-token"))
    claims = jwt.decode(token, KeySet.import_key_set(keys), algorithms=["ES256"]).claims  # type: ignore[arg-type]
    details = [{"type": "crm_record", "actions": ["write_ticket"], "identifier": "1234"}]
    assert claims["authorization_details"] == details
    assert (claims["sub"], claims["aud"], claims["scope"]) == ("complaint-agent", "crm", "write_ticket")
    (lease,) = [each for each in bench.history(run) if each.grant == "crm"]
    assert (lease.state, lease.scope["details"]) == (LeaseState.ENDED, details)


@pytest.mark.parametrize(
    ("text", "inputs"),
    [
        pytest.param(TOOLS[: TOOLS.index("        details:")] + "    hand_over: crm\n", {"customer": 1}, id="none"),
        pytest.param(TOOLS, {}, id="not known"),
    ],
)
def test_without_known_details_none_are_signed(bench: Bench, text: str, inputs: dict[str, JsonValue]) -> None:
    loaded = load(text)
    bench.install(loaded.workflow)
    request = RunRequest(run_id=new_run_id(), loaded=loaded, inputs=inputs, trigger="prove")

    async def go() -> Proof:
        async with open_services(bench.config(), redactor=Redactor()) as services:
            return await Prover(services=services, wish=Examination()).prove(request, ["ticket"])

    (token,) = [each for each in asyncio.run(go()).grants if each.grant == "crm"]
    assert token.holds
    assert "be for anything beyond its details" not in {trial.what for trial in token.trials}


def test_grants_of_tools_are_inferred_from_their_sql(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ORCHESTRATOR_CATALOG_DATABASES__SUPPORT", bench.info.support_dsn.reveal())
    file = tmp_path / "tools.yaml"
    file.write_text(TOOLS)
    assert main(["grants", "infer", str(file), "--json"]) == 0
    (step,) = json.loads(capsys.readouterr().out)["steps"]
    assert step["step"] == "read"
    file.write_text(TOOLS.replace("columns: [comment, id]", "columns: [id]"))
    assert main(["grants", "infer", str(file), "--write"]) == 0
    assert scopes_of(load(file.read_text()).workflow, "read") == scopes_of(load().workflow, "read")


STEPS = """\
version: 1
name: ticket_steps
agent: feedback-assistant
steps:
  call:
    action: http.request
    grants:
      api:
        kind: token
        audience: translation-api
        scope: [translate]
        details: [ { type: record, actions: [read], identifier: "${{ steps.find.output.row_count }}" } ]
    with:
      method: POST
      url: ${{ endpoints.translation }}/v1/translate
      bearer: api
      json: { target: en, messages: [] }
    outputs: [status]
  find:
    action: postgres.query
    grants:
      db: { kind: database, connection: support, privileges: [ { select: customer_feedback, columns: [id] } ] }
    with: { sql: SELECT id FROM customer_feedback ORDER BY id LIMIT 3 }
    outputs: [row_count]
"""


def test_a_run_binds_details_with_what_an_earlier_step_has_found(bench: Bench) -> None:
    outcome = bench.run(STEPS)
    assert outcome.exit_code is ExitCode.DONE, outcome.reason
    (lease,) = [each for each in bench.history(outcome.run_id) if each.grant == "api"]
    assert lease.scope["details"] == [{"type": "record", "actions": ["read"], "identifier": "3"}]

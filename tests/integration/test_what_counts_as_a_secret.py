"""What may not leave a step: what was handed out to the run, where a text can only have it from there. Nothing else."""

from __future__ import annotations

import asyncio
import base64
import secrets
from collections.abc import Iterator

import pytest
from bench import Bench

from orchestrator.actions.catalog import catalog
from orchestrator.assembly import open_services
from orchestrator.errors import ExitCode
from orchestrator.ledger.events import LeaseIssued, RunStarted
from orchestrator.ledger.ids import new_run_id
from orchestrator.ledger.states import StepState
from orchestrator.redaction.redactor import Redactor
from orchestrator.runs.runner import Runner
from orchestrator.runs.types import RunOutcome, RunRequest
from orchestrator.secret import Secret
from orchestrator.vault.config import TokenAuth, VaultConfig
from orchestrator.workflow.inputs import bind_inputs
from orchestrator.workflow.loader import load_text

TOKEN = "abcdefgh-1234-token"
UNDECLARED = "https://translate.example.org/v2"
COMPANIONS = {
    "token": TOKEN,
    "retries": "1",
    "environment": "production",
    "region": "eu-central-1",
    "debug": "true",
    "address": UNDECLARED,
}
READ = "{ kind: database, connection: support, role: feedback-read }"


@pytest.fixture
def companions(bench: Bench) -> Iterator[Bench]:
    """A secret of the kind that people keep: a token beside ordinary settings."""
    bench.vault.secrets.kv.v2.create_or_update_secret("app/translation", secret=COMPANIONS, mount_point="secret")
    yield bench
    bench.vault.secrets.kv.v2.delete_metadata_and_all_versions("app/translation", mount_point="secret")


def workflow(name: str, *steps: str, inputs: str = "") -> str:
    return f"version: 1\nname: {name}\nagent: tester\n{inputs}\nsteps:{''.join(steps)}\n"


def takes(keys: str, command: str = "[/bin/true]", *, name: str = "takes", env: str = "T: cfg.token") -> str:
    return f"""
  {name}:
    action: exec
    grants: {{ cfg: {{ kind: secret, path: app/translation, keys: [{keys}] }} }}
    with: {{ command: {command}, credentials: {{ env: {{ {env} }} }} }}
    outputs: [stdout]"""


def says(sql: str, *, name: str = "says") -> str:
    """A step that answers what an SQL expression gives, after those that take."""
    return f"""
  {name}:
    needs: [takes]
    action: postgres.query
    grants: {{ db: {READ} }}
    with: {{ sql: "SELECT {sql} AS it", grant: db }}
    outputs: [rows]"""


ORDINARY = (
    "1",
    "true",
    "'1'::text",
    "'true'::text",
    "'delivered in production'",
    "'production'",
    "'the region eu-central-1'",
    "encode('production', 'base64')",
    "encode('production', 'hex')",
    f"'{UNDECLARED}'",
)


@pytest.mark.parametrize("keys", ["token", "token, retries, environment, region, debug"], ids=["token", "all"])
def test_settings_beside_a_token_keep_no_output_from_being_accepted(companions: Bench, keys: str) -> None:
    steps = [says(sql, name=f"says{number}") for number, sql in enumerate(ORDINARY)]
    outcome = companions.run(workflow(f"companions_{len(keys)}", takes(keys), *steps))
    assert outcome.exit_code is ExitCode.DONE, {name: error.message for name, error in outcome.errors.items()}


@pytest.mark.parametrize(
    "sql",
    [
        f"'{TOKEN}'",
        f"'Bearer {TOKEN}!'",
        f"encode('x{TOKEN}', 'base64')",
        f"encode('{TOKEN}', 'hex')",
        f"jsonb_build_object('{TOKEN}', 1)",
        f"array['a', '{TOKEN}']",
    ],
)
@pytest.mark.parametrize("keys", ["token", "token, retries, environment"], ids=["token", "more"])
def test_the_token_itself_is_refused_in_every_later_step_of_the_run(companions: Bench, keys: str, sql: str) -> None:
    outcome = companions.run(workflow("gives_away", takes(keys), says(sql)))
    assert outcome.steps == {"takes": StepState.SUCCEEDED, "says": StepState.FAILED}
    assert "a secret that was issued to this run" in outcome.errors["says"].message
    assert TOKEN not in outcome.errors["says"].message


def test_a_step_that_returns_what_it_holds_is_refused(companions: Bench) -> None:
    shell = '[/bin/sh, -c, "printf %s $T | base64"]'
    outcome = companions.run(workflow("returns_it", takes("token", shell)))
    assert outcome.steps == {"takes": StepState.FAILED}
    assert "output.stdout contains a secret" in outcome.errors["takes"].message


def test_what_is_handed_out_and_cannot_be_looked_for_is_said_when_it_is_issued(companions: Bench) -> None:
    companions.run(workflow("said", takes("token, retries, environment, debug")))
    said = [event.not_looked_for for event in companions.events if isinstance(event, LeaseIssued)]
    assert [sorted(names) for names in said if names] == [["debug", "environment", "retries"]]
    companions.events.clear()
    companions.run(workflow("said_less", takes("token")))
    assert {event.not_looked_for for event in companions.events if isinstance(event, LeaseIssued)} == {()}


INPUTS = """
inputs:
  pin: { type: string, secret: true }
  stage: { type: string, secret: true }
  key: { type: string, secret: true }
"""


@pytest.mark.parametrize(
    ("sql", "state"),
    [
        ("4711", StepState.SUCCEEDED),
        ("'the stage is production'", StepState.SUCCEEDED),
        ("'the key is K3v9w2m7q4xa'", StepState.FAILED),
        ("encode('K3v9w2m7q4xa', 'base64')", StepState.FAILED),
    ],
)
def test_a_secret_input_is_looked_for_unless_it_is_met_by_chance(companions: Bench, sql: str, state: StepState) -> None:
    given = {"pin": "4711", "stage": "production", "key": "K3v9w2m7q4xa"}
    outcome = companions.run(workflow("inputs", takes("token"), says(sql), inputs=INPUTS), inputs=given)
    assert outcome.steps["says"] is state
    assert [event.not_looked_for for event in companions.events if isinstance(event, RunStarted)] == [("pin", "stage")]


def test_what_was_issued_to_one_run_is_no_concern_of_another_in_the_same_process(companions: Bench) -> None:
    mine = workflow("mine", takes("token"), says(f"'{TOKEN}'"))
    other = workflow("other", takes("retries", env="R: cfg.retries"), says(f"'{TOKEN}'"))
    outcomes = side_by_side(companions, mine, other, mine)
    assert [outcome.steps["says"] for outcome in outcomes] == [
        StepState.FAILED,
        StepState.SUCCEEDED,
        StepState.FAILED,
    ]


def side_by_side(bench: Bench, *texts: str) -> list[RunOutcome]:
    """Runs of one process, one after another: what each of them was issued is known to the process at the next."""
    loaded = [load_text(text, filename="test.yaml", actions=catalog) for text in texts]
    for each in loaded:
        bench.install(each.workflow)

    async def go() -> list[RunOutcome]:
        redactor = Redactor()
        async with open_services(bench.config(), redactor=redactor) as services:
            found = []
            for each in loaded:
                request = RunRequest(run_id=new_run_id(), loaded=each, inputs=bind_inputs(each.workflow, {}))
                found.append(await Runner(services).run(request))
            assert redactor.redact(f"it is {TOKEN}") == "it is ***", "messages and logs hold no run's secret"
            return found

    return asyncio.run(go())


def test_the_orchestrators_own_token_leaves_no_step(companions: Bench) -> None:
    """It lies in a table, as if somebody had put it there: in the text of the workflow it would be on record."""
    vault = companions.vault
    made = vault.auth.token.create(policies=["orchestrator-runtime"], ttl="5m", no_default_policy=True)["auth"]
    companions.sql("CREATE TABLE lying_about AS SELECT %s::text AS token", [made["client_token"]])
    companions.sql("GRANT SELECT ON lying_about TO PUBLIC")
    try:
        outcome = companions.run(
            workflow("own_token", takes("token"), says("(SELECT token FROM lying_about)")),
            vault=VaultConfig(companions.info.vault_address, TokenAuth(Secret(made["client_token"]))),
        )
    finally:
        companions.sql("DROP TABLE lying_about")
        vault.auth.token.revoke_accessor(made["accessor"])
    assert outcome.steps["says"] is StepState.FAILED
    assert outcome.errors["says"].message == "output.rows[0].it contains a secret of the orchestrator"


class TestDynamicCredentials:
    """Vault's database engine read as any other path that answers with a lease: its data is a login called `report`."""

    @pytest.fixture
    def plain(self, companions: Bench) -> Iterator[Bench]:
        bench, vault, password = companions, companions.vault, secrets.token_hex(16)
        bench.sql(f"CREATE ROLE plain_vault LOGIN CREATEROLE PASSWORD '{password}'")
        bench.sql("GRANT CONNECT ON DATABASE support TO plain_vault")
        vault.write_data(
            "database/config/plain",
            data={
                "plugin_name": "postgresql-database-plugin",
                "allowed_roles": ["plain"],
                "connection_url": bench.info.support_endpoint.replace("://", "://{{username}}:{{password}}@", 1),
                "username": "plain_vault",
                "password": password,
                "username_template": "report",
                "password_policy": "recognisable",
            },
        )
        vault.write_data(
            "database/roles/plain",
            data={
                "db_name": "plain",
                "creation_statements": ["CREATE ROLE \"{{name}}\" LOGIN PASSWORD '{{password}}'"],
                "revocation_statements": ['DROP ROLE IF EXISTS "{{name}}"'],
                "default_ttl": 300,
                "max_ttl": 900,
            },
        )
        yield bench
        vault.delete("database/roles/plain")
        vault.delete("database/config/plain")
        bench.sql("DROP ROLE IF EXISTS report")
        bench.sql("DROP OWNED BY plain_vault")
        bench.sql("DROP ROLE plain_vault")

    def run(self, bench: Bench, command: str) -> RunOutcome:
        step = f"""
  takes:
    action: exec
    grants: {{ any: {{ kind: dynamic, path: database/creds/plain }} }}
    with: {{ command: {command}, credentials: {{ env: {{ U: any.username, P: any.password }} }} }}
    outputs: [stdout]"""
        return bench.run(workflow("takes_any", step, says("'a report'")))

    def test_a_word_among_its_data_is_met_by_chance(self, plain: Bench) -> None:
        outcome = self.run(plain, '[/bin/sh, -c, "echo the report of $U"]')
        assert outcome.exit_code is ExitCode.DONE
        (said,) = [
            event.not_looked_for
            for event in plain.events
            if isinstance(event, LeaseIssued) and event.vault_lease_id.startswith("database/creds/plain")
        ]
        assert said == ("username",)

    def test_its_password_is_looked_for(self, plain: Bench) -> None:
        outcome = self.run(plain, '[/bin/sh, -c, "echo $U:$P | base64"]')
        assert outcome.steps["takes"] is StepState.FAILED
        assert base64.b64encode(b"report:") not in outcome.errors["takes"].message.encode()

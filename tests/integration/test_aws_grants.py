"""Sessions of AWS roles, from the grant to the server's own refusal.

The server checks signatures, trust, session policies and conditions. It does not check how long a session may be, and
takes any web identity token: what we send is looked at instead.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import hvac
import pytest
from aws_accounts import ISSUER, Account, aws_server, transit_key
from aws_server import ROLE, AwsServer
from bench import Bench
from botocore.exceptions import ClientError
from escaped import pieces_of
from joserfc import jwt
from joserfc.jwk import KeySet
from sick_services import Behaviour, Sick, dripping, endless, garbage, half, saying, sick_service, silent

from orchestrator.actions.aws.call import Call, CallParams
from orchestrator.actions.base import StepContext
from orchestrator.clock import SystemClock
from orchestrator.credentials.issuers import aws as issuing
from orchestrator.credentials.types import Issued, IssueRequest
from orchestrator.errors import ExitCode, StepFailed
from orchestrator.grants.credential import Credential
from orchestrator.ledger.events import Decided, LeaseDenied, LeaseEnded, LeaseIssued
from orchestrator.ledger.lease import LeaseState
from orchestrator.runs.types import RunOutcome

GET, OF_42 = "'s3:GetObject'", "'arn:aws:s3:::reports/42/*'"
READ = "{ Bucket: reports, Key: 42/may.csv }"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AwsServer]:
    with aws_server(tmp_path_factory.mktemp("aws")) as server:
        yield server


@pytest.fixture
def account(bench: Bench, server: AwsServer) -> Iterator[Account]:
    user = server.user("orchestrator", ["sts:AssumeRole"])
    with transit_key(bench, user.secret) as key:
        yield Account(bench, server, user, key)
    server.forget("orchestrator", user)


@dataclass
class Seen:
    """The sessions that were issued, and what they were asked with."""

    issued: list[Issued] = field(default_factory=list)
    asked: list[dict[str, str]] = field(default_factory=list)

    def client(self, server: AwsServer, service: str = "s3", **other: str) -> Any:
        """Whoever has a session has this."""
        fields = {name: value.reveal() for name, value in self.issued[-1].credential.fields.items()} | other
        return server.client(
            service, fields["access_key_id"], fields["secret_access_key"], fields["session_token"] or None
        )


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """What this process was given. A step has it no longer when its run is over."""
    seen = Seen()
    issue, call = issuing.AwsIssuer.issue, issuing.QueryApi.call

    async def watched(self: Any, request: IssueRequest) -> Issued:
        seen.issued.append(await issue(self, request))
        return seen.issued[-1]

    async def asked(self: Any, action: str, parameters: Any, **rest: Any) -> Any:
        seen.asked.append({"Action": action, **parameters})
        return await call(self, action, parameters, **rest)

    monkeypatch.setattr(issuing.AwsIssuer, "issue", watched)
    monkeypatch.setattr(issuing.QueryApi, "call", asked)
    return seen


def body_of(outcome: RunOutcome) -> Any:
    result: Any = outcome.outputs["fetch"]["result"]
    return result["Body"]


def refusal(call: Any, **parameters: Any) -> str:
    """The code with which the server refuses it."""
    with pytest.raises(ClientError) as caught:
        call(**parameters)
    return str(caught.value.response["Error"]["Code"])


def test_a_step_reads_what_its_grant_names(account: Account) -> None:
    outcome = account.run()
    assert outcome.exit_code is ExitCode.DONE, outcome
    assert body_of(outcome) == "reports of 42"
    assert body_of(account.run(inputs={"customer": "43"})) == "reports of 43"


def test_what_is_on_record_is_a_session_that_ends_with_its_step(account: Account) -> None:
    before = datetime.now(UTC)
    outcome = account.run(account.text(timeout="20s"))
    lease, token = account.bench.history(outcome.run_id)[::-1]
    assert (token.grant_kind, token.state) == ("step-token", LeaseState.REVOKED)
    assert (lease.grant_kind, lease.state, lease.resource) == ("aws", LeaseState.ENDED, f"aws/{ISSUER}")
    assert lease.subject == f"{ROLE} {lease.step_key}"
    assert lease.scope["resources"] == ["arn:aws:s3:::reports/42/*"]
    ended = next(each for each in account.bench.events if isinstance(each, LeaseEnded))
    assert ended.valid_until is not None
    assert before + timedelta(seconds=15) < ended.valid_until <= before + timedelta(seconds=60)


def test_the_session_is_told_whose_it_is_and_no_more_than_it_needs(account: Account, seen: Seen) -> None:
    outcome = account.run()
    (asked,) = seen.asked
    key = account.bench.history(outcome.run_id)[0].step_key
    assert {asked[name] for name in ("RoleSessionName", "SourceIdentity")} == {key}
    assert (asked["RoleArn"], asked["DurationSeconds"]) == (ROLE, "900")
    tags = {asked[f"Tags.member.{n}.Key"]: asked[f"Tags.member.{n}.Value"] for n in range(1, 5)}
    assert tags == {
        "orchestrator-agent": "reader",
        "orchestrator-run": outcome.run_id,
        "orchestrator-step": "fetch",
        "orchestrator-workflow": "aws_reader",
    }
    assert '"Action":"s3:GetObject","Resource":"arn:aws:s3:::reports/42/*"' in asked["Policy"]


@pytest.mark.parametrize(
    ("operation", "parameters"),
    [
        ("GetObject", "{ Bucket: reports, Key: 43/may.csv }"),
        ("GetObject", "{ Bucket: payroll, Key: 42/may.csv }"),
        ("PutObject", "{ Bucket: reports, Key: 42/may.csv, Body: other }"),
        ("DeleteObject", READ),
        ("ListObjectsV2", "{ Bucket: reports }"),
    ],
    ids=["another customer", "another bucket", "writing", "deleting", "listing"],
)
def test_the_server_refuses_what_is_outside_of_the_session_policy(
    account: Account, operation: str, parameters: str
) -> None:
    """The role itself may do all of that."""
    outcome = account.run(account.text(operation=operation, parameters=parameters))
    assert outcome.exit_code is ExitCode.STEP_FAILED
    error = outcome.errors["fetch"]
    assert isinstance(error, StepFailed)
    assert error.kind == "permission"
    assert "AccessDenied" in error.message


def test_a_session_is_of_no_use_for_another_service_or_in_parts(account: Account, seen: Seen) -> None:
    account.run()
    mine = seen.client(account.server)
    where = {"Bucket": "reports", "Key": "42/may.csv"}
    assert mine.get_object(**where)["Body"].read() == b"reports of 42"
    assert refusal(seen.client(account.server, "iam").get_role, RoleName="reporter") == "AccessDenied"
    assert refusal(seen.client(account.server, session_token="").get_object, **where) == "InvalidAccessKeyId"
    assert refusal(seen.client(account.server, session_token="FwoGZX" + "0" * 128).get_object, **where) != ""
    other = seen.client(account.server, secret_access_key="0" * 40)
    assert refusal(other.get_object, **where) == "SignatureDoesNotMatch"


def test_a_session_is_good_for_nothing_once_its_time_is_over(account: Account, seen: Seen) -> None:
    account.run(account.text(more="ttl: 2s"))  # whether the step was quick enough to use it does not matter
    mine = seen.client(account.server)
    until = time.monotonic() + 20
    while time.monotonic() < until:
        try:
            mine.get_object(Bucket="reports", Key="42/may.csv")
        except ClientError as error:
            assert error.response["Error"]["Code"] == "AccessDenied"
            break
        time.sleep(0.1)
    else:
        pytest.fail("it can still be used")
    valid_until = seen.issued[-1].valid_until
    assert valid_until is not None
    assert datetime.now(UTC) >= valid_until - timedelta(seconds=1)


def test_a_session_that_has_expired_is_a_matter_of_permission(account: Account) -> None:
    """The server takes two seconds, where AWS has no session of less than 900."""
    made = account.session(seconds=2)
    params = CallParams.model_validate(
        {
            "service": "s3",
            "operation": "GetObject",
            "region": "us-east-1",
            "endpoint": "aws",
            "grant": "s3",
            "parameters": {"Bucket": "reports", "Key": "42/may.csv"},
        }
    )
    context = StepContext(
        run_id="r",
        workflow="w",
        step="s",
        attempt=1,
        agent="a",
        idempotency_key="k",
        deadline=time.monotonic() + 30,
        credentials={"s3": Credential("s3", "aws", 900, fields=made)},
        endpoints={"aws": account.server.endpoint},
    )
    assert asyncio.run(Call().run(params, context))

    def until_it_is_refused() -> None:
        while True:
            asyncio.run(Call().run(params, context))
            time.sleep(0.1)

    with pytest.raises(StepFailed, match="ExpiredToken") as caught:
        until_it_is_refused()
    assert caught.value.kind == "permission"


@pytest.mark.parametrize(
    "customer", ["*", "4?", "42/*", "../payroll", "42:x", "${aws:username}", "a b", "42\n", ".", ""]
)
def test_a_value_that_would_mean_more_than_one_name_issues_nothing(account: Account, customer: str) -> None:
    outcome = account.run(inputs={"customer": customer})
    assert outcome.exit_code is ExitCode.STEP_FAILED
    assert isinstance(error := outcome.errors["fetch"], StepFailed)
    assert error.kind == "parameters"
    assert account.bench.history(outcome.run_id) == []


def test_the_policy_is_asked_about_the_bound_resources(account: Account) -> None:
    account.run()
    decided = next(each for each in account.bench.events if isinstance(each, Decided))
    (grant,) = decided.input["grants"]  # type: ignore[misc]  # as it is in the ledger
    assert grant["resources"] == ["arn:aws:s3:::reports/42/*"]  # type: ignore[index]
    assert (grant["issuer"], grant["role"], grant["actions"]) == (ISSUER, "reporter", ["s3:GetObject"])  # type: ignore[index]


REFUSED = {
    "another external id": {"external_id": "not-ours"},
    "a role that there is not": {"roles": {"reporter": ROLE + "-2"}},
}


@pytest.mark.parametrize("changes", REFUSED.values(), ids=list(REFUSED))
def test_what_the_role_does_not_trust_is_refused_by_aws(account: Account, changes: dict[str, Any]) -> None:
    account.changes = changes
    outcome = account.run()
    assert outcome.exit_code is ExitCode.REFUSED
    assert "refused by aws: AccessDenied" in outcome.errors["fetch"].message
    assert "trust policy" in str(outcome.errors["fetch"].hint)
    lease = account.bench.history(outcome.run_id)[-1]
    assert (lease.grant_kind, lease.state) == ("aws", LeaseState.DENIED)


def test_the_key_of_another_user_signs_nothing_that_is_taken(account: Account) -> None:
    with transit_key(account.bench, "A" * 40) as other:
        account.key = other
        outcome = account.run()
    assert outcome.exit_code is ExitCode.REFUSED
    assert "SignatureDoesNotMatch" in outcome.errors["fetch"].message
    assert "access_key" in str(outcome.errors["fetch"].hint)


def test_a_role_that_is_not_declared_is_not_asked_for(account: Account, seen: Seen) -> None:
    text = account.text().replace("role: reporter", f"role: {ROLE}-2")
    outcome = account.run(text)
    assert outcome.exit_code is ExitCode.REFUSED
    assert "may not be asked for" in outcome.errors["fetch"].message
    assert seen.asked == []


def test_a_role_may_be_named_by_its_arn(account: Account) -> None:
    assert account.run(account.text().replace("role: reporter", f"role: {ROLE}")).exit_code is ExitCode.DONE


def test_a_session_longer_than_its_role_has_is_not_asked_for(account: Account, seen: Seen) -> None:
    """AWS would refuse it, and this server would not."""
    outcome = account.run(account.text(more="ttl: 90m"))
    assert outcome.exit_code is ExitCode.REFUSED
    assert "a session of 1h30m where 1h is the longest" in outcome.errors["fetch"].message
    assert seen.asked == []


def test_the_policy_that_shortens_a_grant_shortens_the_session(account: Account, seen: Seen) -> None:
    outcome = account.run(account.text(more="ttl: 40m"))
    assert outcome.exit_code is ExitCode.DONE
    assert [each["DurationSeconds"] for each in seen.asked] == ["900"], "no longer than the step may take"


def test_without_its_declaration_nothing_is_asked_for(account: Account) -> None:
    outcome = account.run(issuers={})
    assert outcome.exit_code is ExitCode.REFUSED
    assert "ORCHESTRATOR_ISSUERS" in str(outcome.errors["fetch"].hint)


@dataclass(frozen=True)
class Wrong(SystemClock):
    by: timedelta

    def now(self) -> datetime:
        return super().now() + self.by


@pytest.mark.parametrize("minutes", [-4, 4])
def test_the_end_is_by_the_clock_that_compares_it(account: Account, seen: Seen, minutes: int) -> None:
    outcome = account.run(account.text(more="ttl: 20s"), clock=Wrong(timedelta(minutes=minutes)))
    assert outcome.exit_code is ExitCode.DONE, outcome
    assert len(seen.asked) == 2, "the first had its end by the wrong clock"
    valid_until = seen.issued[-1].valid_until
    assert valid_until is not None
    assert abs(valid_until - datetime.now(UTC)) < timedelta(seconds=40)


def child_with_policy_of(account: Account) -> hvac.Client:
    """Vault, with the token that a step has."""
    text = account.text()
    account.install(text)
    vault = account.bench.vault
    token = vault.write_data("auth/token/create/step.aws_reader.fetch", data={"ttl": "60s"})["auth"]["client_token"]
    return hvac.Client(account.bench.info.vault_address, token=token)


def test_a_steps_token_computes_the_key_of_a_day_and_nothing_else(account: Account) -> None:
    child, path = child_with_policy_of(account), f"transit/hmac/{account.key}"
    given = child.write_data(f"{path}/sha2-256", data={"input": "MjAyNjAxMDE="})
    assert given["data"]["hmac"].startswith("vault:v1:")
    refused: list[tuple[str, dict[str, Any]]] = [
        (f"{path}/sha2-512", {"input": "MjAyNjAxMDE="}),
        (path, {"input": "MjAyNjAxMDE="}),
        (f"{path}/sha2-256", {}),
        (f"{path}/sha2-256", {"input": "MjAyNjAxMDE=", "key_version": 1}),
        (f"{path}/sha2-256", {"batch_input": [{"input": "MjAyNjAxMDE="}]}),
        (f"{path}/sha2-256", {"input": "MjAyNjAxMDE=", "algorithm": "sha2-512"}),
        ("transit/hmac/orchestrator-token/sha2-256", {"input": "MjAyNjAxMDE="}),
        (f"transit/sign/{account.key}", {"input": "MjAyNjAxMDE="}),
        (f"transit/keys/{account.key}/config", {"exportable": True}),
    ]
    for where, data in refused:
        with pytest.raises(hvac.exceptions.Forbidden):
            child.write_data(where, data=data)
    for where in (f"transit/keys/{account.key}", f"transit/export/hmac-key/{account.key}"):
        with pytest.raises(hvac.exceptions.Forbidden):
            child.read(where)


def test_the_secret_access_key_and_the_session_are_written_nowhere(
    account: Account, seen: Seen, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    account.run(account.text(parameters="{ Bucket: payroll, Key: 42/may.csv }"))
    assert account.run().exit_code is ExitCode.DONE
    fields = [each.credential.fields for each in seen.issued]
    wanted = [
        account.user.secret,
        *(part[name].reveal() for part in fields for name in ("secret_access_key", "session_token")),
    ]
    assert len(wanted) == 5
    places = {"log": caplog.text.encode(), "events": repr(account.bench.events).encode()}
    for path in (*account.bench.directory.rglob("*"), *account.bench.info.directory.rglob("*.log")):
        if path.is_file() and "pgdata" not in path.parts:
            with path.open("rb") as file:
                places[str(path)] = b"".join(pieces_of(file.fileno()))
    assert any("ledger" in place for place in places)
    assert any("audit.log" in place for place in places)
    found = [place for place, content in places.items() for secret in wanted if secret.encode() in content]
    assert found == []


def test_an_output_that_has_the_session_in_it_is_refused(account: Account) -> None:
    text = f"""
version: 1
name: aws_leaker
agent: reader
steps:
  fetch:
    action: exec
    timeout: 20s
    grants:
      s3: {{ kind: aws, issuer: {ISSUER}, role: reporter, actions: [{GET}], resources: [{OF_42}] }}
    with:
      command: [/bin/sh, -c, 'cat "$AWS_SHARED_CREDENTIALS_FILE"']
      credentials: {{ files: {{ AWS_SHARED_CREDENTIALS_FILE: s3.shared_credentials }} }}
    outputs: [stdout]
"""
    outcome = account.run(text)
    assert outcome.exit_code is ExitCode.STEP_FAILED
    assert "contains a secret" in outcome.errors["fetch"].message


SCRIPT = """
import botocore.session
s3 = botocore.session.Session().create_client("s3", "us-east-1", endpoint_url="__URL__")
print(s3.get_object(Bucket="reports", Key="42/may.csv")["Body"].read().decode())
"""
BY_FILE = "{ files: { AWS_SHARED_CREDENTIALS_FILE: s3.shared_credentials } }"
BY_VARIABLES = (
    "{ env: { AWS_ACCESS_KEY_ID: s3.access_key_id, AWS_SECRET_ACCESS_KEY: s3.secret_access_key, "
    "AWS_SESSION_TOKEN: s3.session_token } }"
)


@pytest.mark.parametrize("credentials", [BY_FILE, BY_VARIABLES], ids=["file", "variables"])
def test_a_program_of_the_step_finds_the_session_where_sdks_look(
    account: Account, tmp_path: Path, credentials: str
) -> None:
    script = tmp_path / "fetch.py"
    script.write_text(SCRIPT.replace("__URL__", account.server.endpoint))
    text = f"""
version: 1
name: aws_program
agent: reader
steps:
  fetch:
    action: exec
    timeout: 30s
    grants:
      s3: {{ kind: aws, issuer: {ISSUER}, role: reporter, actions: [{GET}], resources: [{OF_42}] }}
    with:
      command: [{sys.executable}, {script}]
      credentials: {credentials}
      paths: {{ read: [{sys.prefix}, {sys.base_prefix}, {tmp_path}] }}
      connect: [aws]
    outputs: [stdout]
"""
    outcome = account.run(text)
    assert outcome.exit_code is ExitCode.DONE, outcome
    assert outcome.outputs["fetch"]["stdout"] == "reports of 42\n"


def test_the_orchestrators_own_aws_configuration_plays_no_part(
    account: Account, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    account.install(account.text())
    config = tmp_path / "config"
    config.write_text("[default]\nendpoint_url = http://127.0.0.1:9/\nregion = eu-north-1\n[profile other]\n")
    for name, value in {
        "AWS_PROFILE": "nobody",
        "AWS_CONFIG_FILE": str(config),
        "AWS_SHARED_CREDENTIALS_FILE": str(config),
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9/",
        "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9/",
        "AWS_ACCESS_KEY_ID": "AKIAOTHER",
        "AWS_SECRET_ACCESS_KEY": "other",
        "AWS_CA_BUNDLE": "/nonexistent",
        "AWS_DATA_PATH": str(tmp_path),
        "HTTP_PROXY": "http://127.0.0.1:9/",
        "http_proxy": "http://127.0.0.1:9/",
    }.items():
        monkeypatch.setenv(name, value)
    assert body_of(account.run(install=False)) == "reports of 42"


# --- an issuer that is away, slow, or says something else


def at(account: Account, address: str) -> None:
    account.changes = {"endpoint": address}


def session_xml(role: str = "reporter", name: str = "KEY", **more: str) -> bytes:
    fields = {
        "AccessKeyId": "ASIAQQQQQQQQQQQQQQQQ",
        "SecretAccessKey": "Z" * 40,
        "SessionToken": "FwoGZX" + "a" * 200,
        "Expiration": (datetime.now(UTC) + timedelta(seconds=900)).strftime("%Y-%m-%dT%H:%M:%SZ"),
        **more,
    }
    inner = "".join(f"<{name}>{value}</{name}>" for name, value in fields.items())
    return (
        '<AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleResult>'
        f"<Credentials>{inner}</Credentials><AssumedRoleUser><AssumedRoleId>x</AssumedRoleId>"
        f"<Arn>arn:aws:sts::0:assumed-role/{role}/{name}</Arn></AssumedRoleUser>"
        "</AssumeRoleResult></AssumeRoleResponse>"
    ).encode()


BOMB = b'<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>' + session_xml()
SICK: dict[str, Behaviour] = {
    "silent": silent,
    "dripping": dripping,
    "endless": endless,
    "no HTTP": garbage,
    "cut off": half(session_xml()),
    "no XML": saying("certainly"),
    "empty": saying(b""),
    "entities": saying(BOMB),
    "another answer": saying(b"<GetCallerIdentityResponse><x>1</x></GetCallerIdentityResponse>"),
    "another role": saying(session_xml("admin")),
    "another session": saying(session_xml()),
    "no expiry": saying(session_xml(Expiration="soon")),
    "no secret": saying(session_xml(SecretAccessKey="")),
    "twice": saying(session_xml().replace(b"</Credentials>", b"<SessionToken>x</SessionToken></Credentials>")),
    "redirect": saying(b"", "302 Found", location="http://127.0.0.1:9/"),
    "server error": saying(b"<html>", "502 Bad Gateway"),
}


@pytest.mark.parametrize("behaviour", SICK.values(), ids=list(SICK))
def test_a_sick_issuer_gives_no_session_and_leaves_nothing_open(account: Account, behaviour: Behaviour) -> None:
    with sick_service(Sick(behaviour)) as sick:
        at(account, sick.url)
        outcome = account.run(account.text(timeout="3s"))
        assert sick.asked
    # Where it takes all the time that there is, the step's own time is over first.
    assert outcome.exit_code in (ExitCode.UNREACHABLE, ExitCode.STEP_FAILED), outcome
    assert outcome.outputs == {}
    assert outcome.unconfirmed == ()
    leases = account.bench.history(outcome.run_id)
    assert [each.issued_at for each in leases if each.grant_kind == "aws"] == [None], "no step has ever seen it"
    assert {each.state for each in leases} <= {
        LeaseState.ENDED,
        LeaseState.FAILED,
        LeaseState.REVOKED,
    }


def test_an_issuer_that_is_away_is_waited_for_as_long_as_the_step_may_take(account: Account) -> None:
    at(account, "http://127.0.0.1:9")
    outcome = account.run(account.text(timeout="3s"))
    assert outcome.exit_code is ExitCode.UNREACHABLE
    lease = account.bench.history(outcome.run_id)[-1]
    assert (lease.grant_kind, lease.state) == ("aws", LeaseState.FAILED), "nothing was asked for"


def test_an_issuer_that_comes_back_is_asked_again(account: Account) -> None:
    fallen = [False]
    good = session_xml

    async def first_falls(asked: Any) -> None:
        name = parse_qs(asked.body.decode())["RoleSessionName"][0]
        if fallen[0]:
            await asked.answer(good(name=name))
        else:
            fallen[0] = True
            await asked.answer(b"", "503 Service Unavailable")

    with sick_service(Sick(first_falls)) as sick:
        at(account, sick.url)
        outcome = account.run(account.text(timeout="10s"))
    assert len(sick.asked) == 2
    assert "InvalidAccessKeyId" in outcome.errors["fetch"].message, "the session was issued, and is not of that server"


def test_vault_that_does_not_compute_the_key_is_no_lost_session(account: Account) -> None:
    account.changes = {"access_key": {"id": account.user.id, "key": "nowhere-at-all"}}
    outcome = account.run()
    assert outcome.exit_code is ExitCode.REFUSED
    lease = account.bench.history(outcome.run_id)[-1]
    assert lease.state is LeaseState.DENIED
    assert "nowhere-at-all" in outcome.errors["fetch"].message


# --- web identity


def test_a_web_identity_is_a_token_of_vaults_own_that_verifies(account: Account) -> None:
    vault = account.bench.vault
    vault.write_data(
        "identity/oidc/key/aws-web", data={"algorithm": "RS256", "allowed_client_ids": ["sts.amazonaws.com"]}
    )
    vault.write_data(
        "identity/oidc/role/aws-web", data={"key": "aws-web", "client_id": "sts.amazonaws.com", "ttl": "60s"}
    )
    asked: list[dict[str, list[str]]] = []

    async def answering(one: Any) -> None:
        asked.append({**parse_qs(one.body.decode()), "authorization": [one.headers.get("authorization", "")]})
        name = asked[-1]["RoleSessionName"][0]
        answer = session_xml(name=name).replace(b"AssumeRoleRes", b"AssumeRoleWithWebIdentityRes")
        await one.answer(answer)

    with sick_service(Sick(answering)) as sick:
        account.changes = {"access_key": None, "identity_role": "aws-web", "external_id": None, "endpoint": sick.url}
        outcome = account.run()
    assert "InvalidAccessKeyId" in outcome.errors["fetch"].message, "the session is not of that server"
    (form,) = asked
    assert (form["Action"], form["RoleArn"], form["authorization"]) == (["AssumeRoleWithWebIdentity"], [ROLE], [""])
    assert '"Resource":"arn:aws:s3:::reports/42/*"' in form["Policy"][0]
    assert not {"ExternalId", "SourceIdentity", "Tags.member.1.Key"} & form.keys()
    keys = KeySet.import_key_set(vault.read("identity/oidc/.well-known/keys"))
    token = jwt.decode(form["WebIdentityToken"][0], keys, algorithms=["RS256"])
    assert token.claims["aud"] == "sts.amazonaws.com"
    assert token.claims["iss"].endswith("/v1/identity/oidc")
    vault.delete("identity/oidc/role/aws-web")
    vault.delete("identity/oidc/key/aws-web")


def test_a_lease_that_is_refused_says_by_whom(account: Account) -> None:
    account.changes = REFUSED["another external id"]
    account.run()
    denied = next(each for each in account.bench.events if isinstance(each, LeaseDenied))
    assert denied.reason.startswith("AccessDenied: ")
    assert not [each for each in account.bench.events if isinstance(each, LeaseIssued) and "aws" in each.subject]

"""Ending the sessions of a role before their time, by the command that an admin gives."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import hvac
import pytest
import yaml
from aws_accounts import ISSUER, Account, aws_server, transit_key
from aws_server import EXTERNAL_ID, AwsServer
from bench import Bench, surroundings
from botocore.exceptions import ClientError
from fork_server import orchestrator

from orchestrator.devstack.session import admin_environment
from orchestrator.provision.aws import denial as denying
from orchestrator.provision.aws.denial import Denier

READ = {"Bucket": "reports", "Key": "42/may.csv"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AwsServer]:
    with aws_server(tmp_path_factory.mktemp("aws")) as server:
        yield server


@pytest.fixture
def account(bench: Bench, server: AwsServer) -> Iterator[Account]:
    asking = server.user("orchestrator", ["sts:AssumeRole", "sts:TagSession"])
    denying = server.user("denier", ["iam:PutRolePolicy", "iam:GetRolePolicy", "iam:DeleteRolePolicy"])
    with transit_key(bench, asking.secret) as key, transit_key(bench, denying.secret) as other:
        account = Account(bench, server, asking, key)
        account.changes = {"denier": {"id": denying.id, "key": other}}
        yield account
    server.forget("orchestrator", asking)
    server.forget("denier", denying)
    iam = server.client("iam")
    for name in iam.list_role_policies(RoleName="reporter")["PolicyNames"]:
        if name.startswith("orchestrator-deny"):
            iam.delete_role_policy(RoleName="reporter", PolicyName=name)


@dataclass
class Session:
    """A session that somebody took and kept."""

    client: Any

    @classmethod
    def of(cls, account: Account, agent: str) -> Session:
        sts = account.server.client("sts", account.user.id, account.user.secret)
        given = sts.assume_role(
            RoleArn=account.declared.roles["reporter"].arn,
            RoleSessionName=agent,
            ExternalId=EXTERNAL_ID,
            Tags=[{"Key": "orchestrator-agent", "Value": agent}],
        )["Credentials"]
        return cls(account.server.client("s3", given["AccessKeyId"], given["SecretAccessKey"], given["SessionToken"]))

    def works(self) -> bool:
        try:
            self.client.get_object(**READ)
        except ClientError as error:
            assert error.response["Error"]["Code"] == "AccessDenied"
            return False
        return True


def command(account: Account, *more: str) -> subprocess.CompletedProcess[str]:
    file = account.bench.directory / "issuers.yaml"
    file.write_text(yaml.safe_dump({"issuers": {ISSUER: account.declared.model_dump(exclude_none=True)}}))
    return subprocess.run(
        [*orchestrator(), "issuers", "deny", str(file), ISSUER, "reporter", *more],
        capture_output=True,
        text=True,
        env={**surroundings(), **admin_environment(account.bench.provisioned)},
        check=False,
        timeout=120,
    )


def test_the_sessions_of_a_role_are_ended_and_that_is_seen(account: Account) -> None:
    taken = Session.of(account, "reader")
    assert taken.works()
    done = command(account)
    assert done.returncode == 0, done.stderr
    assert "a session from before is refused" in done.stdout
    assert not taken.works()


def test_one_agent_is_cut_off_and_the_others_go_on(account: Account) -> None:
    mine, others = Session.of(account, "reader"), Session.of(account, "writer")
    done = command(account, "--agent", "reader", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["evidence"], told["agent"]) == ("refused", "reader")
    assert (mine.works(), others.works()) == (False, True)


def test_a_denial_is_taken_away_again(account: Account) -> None:
    taken = Session.of(account, "reader")
    command(account)
    done = command(account, "--lift")
    assert done.returncode == 0, done.stderr
    assert "is taken away" in done.stdout
    assert taken.works()


def test_without_anybody_declared_for_it_nothing_is_done(account: Account) -> None:
    account.changes = {}
    done = command(account)
    assert done.returncode == 2
    assert "denier" in done.stderr


def test_who_may_not_change_the_role_is_refused(account: Account) -> None:
    other = account.server.user("powerless", ["s3:ListAllMyBuckets"])
    with transit_key(account.bench, other.secret) as key:
        account.changes = {"denier": {"id": other.id, "key": key}}
        done = command(account)
    account.server.forget("powerless", other)
    assert done.returncode == 3
    assert "AccessDenied" in done.stderr


def test_what_cannot_be_tried_is_not_called_refused(account: Account) -> None:
    """The role may not look at itself, so a session of it that was refused would say nothing."""
    iam = account.server.client("iam")
    before = iam.get_role_policy(RoleName="reporter", PolicyName="work")["PolicyDocument"]
    narrow = {"Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}], "Version": "2012-10-17"}
    iam.put_role_policy(RoleName="reporter", PolicyName="work", PolicyDocument=json.dumps(narrow))
    taken = Session.of(account, "reader")
    done = command(account)
    iam.put_role_policy(RoleName="reporter", PolicyName="work", PolicyDocument=json.dumps(before))
    assert done.returncode == 6
    assert "may not iam:GetRole on itself" in done.stdout
    assert not taken.works(), "it is denied all the same"


def test_a_session_that_is_still_allowed_is_no_evidence(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as AWS has not passed the policy on to where it is looked at."""
    import asyncio

    from orchestrator.clock import SystemClock
    from orchestrator.provision.vault.admin import VaultAdmin

    monkeypatch.setattr(denying, "_PAUSE", 0.01)
    bench = account.bench
    admin = VaultAdmin(bench.provisioned.admin_config(), bench.info.root_token)

    async def still(self: Denier, probe: Any) -> bool:
        return True

    monkeypatch.setattr(Denier, "_is_allowed", still)
    declared = account.declared
    found = asyncio.run(Denier(declared, declared.roles["reporter"], admin, SystemClock()).deny(seconds=0.1))
    admin.close()
    assert found.evidence == "written"
    assert "still allowed" in found.note


def test_cutting_an_agent_off_names_the_sessions_that_only_time_ends(account: Account) -> None:
    account.changes = {}
    assert account.run().exit_code == 0
    done = subprocess.run(
        [*orchestrator(), "agents", "revoke", "reader"],
        capture_output=True,
        text=True,
        env=account.bench.environment(),
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert f"orchestrator issuers deny FILE {ISSUER} reporter --agent reader" in done.stderr


def test_neither_the_runtime_nor_a_step_can_act_as_who_changes_roles(account: Account) -> None:
    """Whoever may write a role's policies may widen them."""
    bench, denier = account.bench, account.declared.denier
    assert denier is not None
    provisioned = bench.provisioned
    runtime = hvac.Client(bench.info.vault_address)
    runtime.auth.approle.login(provisioned.role_id, provisioned.secret_id.reveal())
    account.install(account.text())
    child = runtime.write_data("auth/token/create/step.aws_reader.fetch", data={"ttl": "60s"})["auth"]["client_token"]
    of_a_day = {"input": "MjAyNjAxMDE="}
    for client in (runtime, hvac.Client(bench.info.vault_address, token=child)):
        with pytest.raises(hvac.exceptions.Forbidden):
            client.write_data(denier.resource, data=of_a_day)
    assert bench.vault.write_data(denier.resource, data=of_a_day)["data"]["hmac"]
    runtime.auth.token.revoke_self()

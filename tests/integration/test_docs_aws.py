"""The recipe of docs/aws.md, carried out as it stands, on a server that behaves like AWS."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from aws_server import ACCOUNT, REGION, AwsServer
from bench import ROOT, Bench, surroundings
from fork_server import orchestrator

from orchestrator.actions.catalog import catalog
from orchestrator.devstack.session import admin_environment
from orchestrator.issuers.aws import AwsAccount
from orchestrator.planning.lint import lint
from orchestrator.workflow.loader import load_text

TEXT = (ROOT / "docs" / "aws.md").read_text()
WORKFLOW, DECLARATIONS, PROGRAM = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
USER_POLICY, TRUST = (json.loads(each) for each in re.findall(r"```json\n(.*?)```", TEXT, re.DOTALL))
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL) for line in block.splitlines()]


def test_the_workflow_is_valid_and_nothing_about_it_is_unwise() -> None:
    assert lint(load_text(WORKFLOW, filename="report.yaml", actions=catalog)) == []


def test_the_declared_account_is_one() -> None:
    account = AwsAccount.model_validate(yaml.safe_load(DECLARATIONS)["issuers"]["aws-prod"])
    assert account.sts == "https://sts.eu-central-1.amazonaws.com/"
    assert account.roles["reporter"].arn == USER_POLICY["Statement"][0]["Resource"]


def test_every_member_of_the_grant_is_told() -> None:
    from orchestrator.grants.aws.grant import AwsGrant

    rows = re.findall(r"^\| `(\w+)` \|", TEXT.partition("## Set up")[0], re.MULTILINE)
    assert {*rows, "kind", "wildcards"} == set(AwsGrant.model_fields)


def test_what_a_program_is_given_are_fields_of_the_credential() -> None:
    named = re.findall(r"s3\.(\w+)", PROGRAM + TEXT.partition("or in variables:")[2].partition("`python`")[0])
    assert set(named) == {"shared_credentials", "access_key_id", "secret_access_key", "session_token"}


@pytest.fixture
def aws(tmp_path: Path) -> Any:
    with AwsServer(tmp_path / "aws") as server:
        server.client("s3").create_bucket(Bucket="reports")
        server.client("s3").put_object(Bucket="reports", Key="42/may.csv", Body=b"reports of 42")
        yield server


def here(document: Any) -> str:
    return json.dumps(document).replace("123456789012", ACCOUNT)


def test_the_recipe_works_as_it_stands(bench: Bench, aws: AwsServer, tmp_path: Path) -> None:
    iam = aws.client("iam")
    iam.create_user(UserName="orchestrator")
    iam.put_user_policy(UserName="orchestrator", PolicyName="own", PolicyDocument=here(USER_POLICY))
    key = iam.create_access_key(UserName="orchestrator")["AccessKey"]
    iam.create_role(RoleName="reporter", AssumeRolePolicyDocument=here(TRUST))
    reading = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}
    iam.put_role_policy(RoleName="reporter", PolicyName="work", PolicyDocument=json.dumps(reading))

    folder = tmp_path / "checkout"
    shutil.copytree(bench.declarations, folder / "vault")
    (folder / "workflows").mkdir()
    (folder / "workflows" / "report.yaml").write_text(
        WORKFLOW.replace("region: eu-central-1", f"region: {REGION}\n      endpoint: aws")
    )
    shutil.copytree(ROOT / "workflows" / "policies", folder / "policies")
    (folder / "secret-access-key").write_text(key["SecretAccessKey"] + "\n")
    declared = yaml.safe_load((folder / "vault" / "declarations.yaml").read_text())
    more = yaml.safe_load(here(yaml.safe_load(DECLARATIONS)))
    account = more["issuers"]["aws-prod"]
    account |= {"region": REGION, "endpoint": aws.endpoint}
    account["access_key"]["id"] = key["AccessKeyId"]
    declared["transit_keys"] |= more["transit_keys"]
    declared["issuers"] = {**declared.get("issuers", {}), **more["issuers"]}
    (folder / "vault" / "declarations.yaml").write_text(yaml.safe_dump(declared))

    def shell(line: str, **environment: str) -> subprocess.CompletedProcess[str]:
        words = shlex.split(line.partition(" #")[0])
        given = (folder / words[words.index("<") + 1]).read_text() if "<" in words else ""
        words = words[: words.index("<")] if "<" in words else words
        assert words[0] == "orchestrator"
        return subprocess.run(
            [*orchestrator(), *words[1:]],
            cwd=folder,
            input=given,
            env={**surroundings(), **environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    admin = admin_environment(bench.provisioned)
    importing, applying, exporting, running = COMMANDS[:4]
    try:
        assert (done := shell(importing, **admin)).returncode == 0, done.stderr
        assert (done := shell(applying, **admin)).returncode == 0, done.stderr
        name, _, file = exporting.removeprefix("export ").partition("=")
        runtime = bench.environment(
            **{name: file},
            ORCHESTRATOR_ENDPOINTS__AWS=aws.endpoint,
            ORCHESTRATOR_POLICY="allow-all",
        )
        done = shell(running + " --json", **{k: v for k, v in runtime.items() if k not in surroundings()})
        assert done.returncode == 0, done.stderr + done.stdout
        assert "reports of 42" in done.stdout
    finally:
        bench.vault.write_data("transit/keys/aws-prod/config", data={"deletion_allowed": True})
        bench.vault.delete("transit/keys/aws-prod")


def test_the_command_for_emergencies_is_one_that_there_is() -> None:
    words = shlex.split(COMMANDS[-1])
    done = subprocess.run([*orchestrator(), *words[1:3], "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert all(option in done.stdout for option in ("FILE", "NAME", "ROLE", "--agent", "--lift"))

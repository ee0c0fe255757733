"""Sessions of AWS roles, from the grant to the server's own refusal."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from aws_accounts import Account, aws_server, transit_key
from aws_server import REGION, AwsServer
from bench import Bench
from botocore.exceptions import ClientError

from orchestrator.credentials.issuers import aws as issuing
from orchestrator.errors import ExitCode
from orchestrator.ledger.events import LeaseEnded, LeaseIssued
from orchestrator.ledger.lease import LeaseState
from orchestrator.secret import Secret


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AwsServer]:
    with aws_server(tmp_path_factory.mktemp("aws")) as server:
        yield server


@pytest.fixture
def account(bench: Bench, server: AwsServer) -> Iterator[Account]:
    user = server.user("orchestrator", ["sts:AssumeRole"])
    with transit_key(bench, user.secret) as key:
        yield Account(bench, server, user, key)
    iam = server.client("iam")
    iam.delete_access_key(UserName="orchestrator", AccessKeyId=user.id)
    iam.delete_user_policy(UserName="orchestrator", PolicyName="own")
    iam.delete_user(UserName="orchestrator")


def object_of(outcome: Any) -> Any:
    return outcome.steps["fetch"].output["result"]["Body"]


def test_a_step_reads_what_its_grant_names(account: Account) -> None:
    outcome = account.run()
    assert outcome.exit_code == ExitCode.DONE, outcome
    assert object_of(outcome) == "reports of 42"

"""Proofs of `aws` grants: what a session may not do is tried, and the server refuses it or is found out."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from aws_accounts import Account, aws_server, transit_key
from aws_server import AwsServer
from bench import Bench

from orchestrator.actions.catalog import catalog
from orchestrator.assembly import open_services
from orchestrator.credentials.issuers import aws as issuing
from orchestrator.grants.aws.session_policy import SessionPolicy, compile_policy
from orchestrator.ledger.ids import new_run_id
from orchestrator.proof.examine import Examination
from orchestrator.proof.forbidden import Verdict
from orchestrator.proof.report import GrantProof, Proof
from orchestrator.proof.service import Prover
from orchestrator.redaction.redactor import Redactor
from orchestrator.runs.types import RunRequest
from orchestrator.workflow.inputs import bind_inputs
from orchestrator.workflow.loader import load_text


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


def prove(account: Account, text: str, inputs: dict[str, Any] | None = None) -> tuple[Proof, GrantProof]:
    account.install(text)
    loaded = load_text(text, filename="proven.yaml", actions=catalog)
    bound = bind_inputs(loaded.workflow, inputs or {}, partial=True)
    request = RunRequest(run_id=new_run_id(), loaded=loaded, inputs=bound, trigger="prove")

    async def go() -> Proof:
        async with open_services(account.bench.config(issuers=account.issuers), redactor=Redactor()) as services:
            return await Prover(services=services, wish=Examination()).prove(request)

    proof = asyncio.run(go())
    return proof, next(each for each in proof.grants if each.grant == "s3")


def test_a_session_is_refused_what_its_grant_does_not_name(account: Account) -> None:
    proof, grant = prove(account, account.text())
    verdicts = {trial.what: trial.verdict for trial in grant.trials}
    assert verdicts["s3:ListAllMyBuckets"] is Verdict.REFUSED
    assert verdicts["s3:ListBucket reports"] is Verdict.REFUSED
    assert verdicts["iam:ListUsers"] is Verdict.REFUSED
    assert Verdict.ALLOWED not in verdicts.values()
    assert grant.refused == ""
    assert proof.holds
    assert proof.unconfirmed == 0
    assert all("AccessDenied" in each.answer for each in grant.trials if each.verdict is Verdict.REFUSED)


def test_what_is_granted_is_not_tried(account: Account) -> None:
    text = account.text(
        actions='["s3:ListAllMyBuckets", "s3:ListBucket"]', resources='["*"]', more="wildcards: [resources]"
    )
    _, grant = prove(account, text)
    assert not [each for each in grant.trials if each.what.startswith("s3:")]


def test_a_session_with_more_than_its_grant_is_found(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if AWS had left the policy out, or another part of ours had."""
    until = SessionPolicy.until

    def all_of_s3(self: SessionPolicy, moment: Any) -> str:
        return until(compile_policy(["s3:*"], ["*"], {}), moment)

    monkeypatch.setattr(SessionPolicy, "until", all_of_s3)
    proof, grant = prove(account, account.text())
    assert not proof.holds
    allowed = [trial.what for trial in grant.trials if trial.verdict is Verdict.ALLOWED]
    assert allowed == ["s3:ListAllMyBuckets", "s3:ListBucket reports"]


def test_without_the_values_of_a_run_a_name_stands_that_nobody_has(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    call = issuing.QueryApi.call

    async def watched(self: Any, action: str, parameters: Any, **rest: Any) -> Any:
        asked.append(parameters["Policy"])
        return await call(self, action, parameters, **rest)

    monkeypatch.setattr(issuing.QueryApi, "call", watched)
    text = account.text().replace(', default: "42"', "")
    proof, grant = prove(account, text)
    assert proof.holds, grant
    assert "arn:aws:s3:::reports/orchestrator-unknown/*" in asked[0]

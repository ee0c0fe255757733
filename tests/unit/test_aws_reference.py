"""AWS's own list of actions, held against grants."""

from __future__ import annotations

import re

import pytest

from orchestrator.actions.catalog import catalog
from orchestrator.grants.aws import reference
from orchestrator.planning.aws_actions import looks_nothing_up
from orchestrator.planning.lint import lint
from orchestrator.workflow.loader import LoadedWorkflow, load_text

HERE = "eu-central-1:123456789012"
GOOD = [
    (["s3:GetObject"], ["arn:aws:s3:::reports/2026/*"]),
    (["s3:ListBucket", "s3:GetObject"], ["arn:aws:s3:::reports", "arn:aws:s3:::reports/*"]),
    (["s3:listbucket"], ["arn:aws:s3:::reports"]),
    (["s3:Get*"], ["arn:aws:s3:::reports/2026/*"]),
    (["s3:ListAllMyBuckets"], ["*"]),
    (["dynamodb:GetItem"], [f"arn:aws:dynamodb:{HERE}:table/orders"]),
    (["sqs:SendMessage"], [f"arn:aws:sqs:{HERE}:jobs"]),
    (["secretsmanager:GetSecretValue"], [f"arn:aws:secretsmanager:{HERE}:secret:a/b-??????"]),
    (["ssm:GetParameter"], [f"arn:aws:ssm:{HERE}:parameter/a/b/c"]),
    (["lambda:InvokeFunction"], [f"arn:aws:lambda:{HERE}:function:work:live"]),
    (["logs:PutLogEvents"], [f"arn:aws:logs:{HERE}:log-group:/aws/x:log-stream:y"]),
]
WRONG = [
    (["s3:GetObjct"], ["arn:aws:s3:::reports/*"], "no action", "s3:GetObject"),
    (["s33:GetObject"], ["arn:aws:s3:::reports/*"], "no action", "`s3`"),
    (["s3:Got*"], ["arn:aws:s3:::reports/*"], "no action", ""),
    (["s3:ListBucket"], ["arn:aws:s3:::reports/*"], "acts on none", "s3:::${BucketName}"),
    (["s3:GetObject"], ["arn:aws:s3:::reports"], "acts on none", "${ObjectName}"),
    (["s3:GetObject"], ["arn:aws:s3:::reports", "arn:aws:s3:::reports/*"], "none of the actions", ""),
    (["s3:ListAllMyBuckets"], ["arn:aws:s3:::reports"], "acts on none", "wildcards"),
    (["sqs:SendMessage"], [f"arn:aws:sns:{HERE}:jobs"], "acts on none", ":sqs:"),
]


@pytest.mark.parametrize(("actions", "resources"), GOOD, ids=lambda value: value[0])
def test_what_goes_together_is_not_complained_about(actions: list[str], resources: list[str]) -> None:
    assert list(reference.findings(actions, resources)) == []


@pytest.mark.parametrize(("actions", "resources", "message", "hint"), WRONG)
def test_what_is_certainly_wrong_is_told(actions: list[str], resources: list[str], message: str, hint: str) -> None:
    first = next(reference.findings(actions, resources))
    assert message in first.message
    assert hint in first.hint


@pytest.mark.parametrize("service", ["s3", "sqs", "dynamodb", "iam", "ec2", "glue", "states", "execute-api"])
def test_every_action_of_a_service_acts_on_what_aws_says_that_it_acts_on(service: str) -> None:
    data = reference._data()
    for action in data.actions.get_actions_for_service(service):
        for each in data.actions.get_action_details(service, action)["resourceTypes"]:
            if data.resources.resource_type_exists(service, each["name"]):
                arn = re.sub(r"\$\{\w+\}", "a1", data.resources.get_resource_type_details(service, each["name"])["arn"])
                assert list(reference.findings([f"{service}:{action}"], [arn])) == [], (action, arn)


FLOW = """
version: 1
name: reports
agent: reader
inputs: { customer: { type: string } }
steps:
  fetch:
    action: aws.call
    timeout: 60s
    grants:
      s3:
        kind: aws
        issuer: aws-prod
        role: reporter
        actions:
          - s3:GetObject
          - s3:ListBuckt
        resources: ['arn:aws:s3:::reports/${{ inputs.customer }}/*']
    with: { service: s3, operation: GetObject, region: us-east-1, grant: s3 }
"""


def flow(text: str = FLOW) -> LoadedWorkflow:
    return load_text(text, filename="reports.yaml", actions=catalog)


def test_a_finding_has_its_place_in_the_file() -> None:
    (found,) = lint(flow())
    assert (found.line, found.column, found.severity) == (17, 13, "error")
    assert found.message == "AWS has no action `s3:ListBuckt`"
    assert lint(flow(FLOW.replace("          - s3:ListBuckt\n", ""))) == []


def test_without_the_list_it_is_said_that_nothing_was_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not looks_nothing_up(flow().workflow)
    monkeypatch.setattr(reference, "_data", lambda: None)
    (found,) = lint(flow())
    assert (found.message, found.severity) == ("the actions of AWS were not looked up", "warning")
    assert looks_nothing_up(flow().workflow)
    assert not reference.installed()

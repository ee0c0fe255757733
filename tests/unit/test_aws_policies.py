"""What an `aws` grant may declare, and the session policy that it is compiled to."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import ValidationError

from orchestrator.actions.catalog import catalog
from orchestrator.errors import InvalidExpression
from orchestrator.grants.aws.grant import AwsGrant
from orchestrator.grants.aws.session_policy import LONGEST_POLICY, compile_policy
from orchestrator.grants.scope import normalise, scope_from_json
from orchestrator.planning.requests import bind, is_bound, scopes_of
from orchestrator.planning.session_policies import UnsafeValue
from orchestrator.secret import Secret
from orchestrator.workflow.loader import load_text
from orchestrator.workflow.problems import InvalidWorkflow

GRANT: dict[str, Any] = {
    "kind": "aws",
    "issuer": "aws-prod",
    "role": "reporter",
    "actions": ["s3:GetObject"],
    "resources": ["arn:aws:s3:::reports/2026/*"],
}
FLOW = """
version: 1
name: reports
agent: reader
inputs:
  customer: { type: string }
  secret: { type: string, secret: true }
steps:
  fetch:
    action: aws.call
    timeout: 60s
    grants:
      s3:
        kind: aws
        issuer: aws-prod
        role: reporter
        actions: [ACTIONS]
        resources: [RESOURCES]
        CONDITIONS
    with: { service: s3, operation: GetObject, region: us-east-1, grant: s3 }
"""


def flow(
    resources: str = "'arn:aws:s3:::reports/${{ inputs.customer }}/*'",
    actions: str = "'s3:GetObject'",
    conditions: str = "",
) -> Any:
    text = FLOW.replace("RESOURCES", resources).replace("ACTIONS", actions).replace("CONDITIONS", conditions)
    return load_text(text, filename="reports.yaml", actions=catalog).workflow


def bound(customer: Any, **parts: str) -> Any:
    (scope,) = bind(scopes_of(flow(**parts), "fetch"), {"inputs": {"customer": customer, "secret": Secret("x")}})
    assert scope.policy is not None
    return scope.policy


def test_a_policy_is_one_statement_and_the_same_whatever_the_order() -> None:
    policy = compile_policy(["s3:PutObject", "s3:GetObject"], ["arn:b", "arn:a", "arn:b"], {"Bool": {"x:y": ["true"]}})
    assert policy == compile_policy(["s3:GetObject", "s3:PutObject"], ["arn:a", "arn:b"], {"Bool": {"x:y": ["true"]}})
    assert json.loads(policy.text) == {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Effect": "Allow",
                "Action": ["s3:GetObject", "s3:PutObject"],
                "Resource": ["arn:a", "arn:b"],
                "Condition": {"Bool": {"x:y": "true"}},
            }
        ],
    }


def test_the_digest_is_the_same_in_every_release() -> None:
    policy = compile_policy(["s3:GetObject"], ["arn:aws:s3:::reports/2026/*"], {})
    assert policy.digest == "d1bd5da63e3bb08ef33b83bf2b358cbf"


def test_a_policy_ends_beside_its_other_conditions() -> None:
    policy = compile_policy(["a:B"], ["arn:x"], {"DateLessThan": {"aws:TokenIssueTime": ["2030-01-01T00:00:00Z"]}})
    ends = json.loads(policy.until(datetime(2026, 3, 2, 12, 0, 5, tzinfo=UTC)))["Statement"][0]["Condition"]
    assert ends == {
        "DateLessThan": {"aws:CurrentTime": "2026-03-02T12:00:05Z", "aws:TokenIssueTime": "2030-01-01T00:00:00Z"}
    }
    assert len(policy.until(datetime.now(UTC))) == policy.length


def test_what_policies_see_is_what_is_recorded_and_read_again() -> None:
    grant = AwsGrant.model_validate({**GRANT, "conditions": {"StringLike": {"s3:prefix": "2026/*"}}})
    scope = normalise("s3", grant, step_timeout=60)
    assert scope.as_json() == {
        "name": "s3",
        "kind": "aws",
        "resource": "aws/aws-prod",
        "ttl": 90,
        "role": "reporter",
        "issuer": "aws-prod",
        "actions": ["s3:GetObject"],
        "resources": ["arn:aws:s3:::reports/2026/*"],
        "conditions": {"StringLike": {"s3:prefix": "2026/*"}},
        "policy": scope.policy.digest if scope.policy else "",
    }
    assert scope_from_json(scope.as_json()) == scope
    assert "s3:GetObject on arn:aws:s3:::reports/2026/* if StringLike s3:prefix 2026/*" in scope.describe()


def test_a_value_of_the_run_is_in_the_policy() -> None:
    assert is_bound(scopes_of(flow(), "fetch"))
    assert bound("42").resources == ("arn:aws:s3:::reports/42/*",)
    assert bound(42).resources == ("arn:aws:s3:::reports/42/*",)
    conditions = "conditions: { StringLike: { 's3:prefix': ['${{ inputs.customer }}/*', 'all/*'] } }"
    policy = bound("Müller & Co".replace("ü", "u").replace(" & ", "-"), conditions=conditions)
    assert policy.conditions == (("StringLike", "s3:prefix", ("Muller-Co/*", "all/*")),)


HOSTILE = [
    *("*", "?", "4*", "4?2", "**", "42/*", "42/43", "/", "../43", "..", ".", "", " ", "4 2", "42 ", "\t", "42\n", "\0"),
    *("42:43", ":", "$", "${aws:username}", "${*}", "$" + "{{ inputs.other }}", "{", "}", '"', "'", "\\", "\\u002a"),
    *('42"],"Resource":["*', "42%2F*", "４２", "é", "\u202e42", "＊", "⁎", "a" * 257, "arn:aws:s3:::*"),
    *(True, False, None, 4.2, [], ["42"], {"a": 1}, b"42"),
]


@pytest.mark.parametrize("value", HOSTILE, ids=ascii)
def test_a_hostile_value_is_refused_and_not_told(value: Any) -> None:
    with pytest.raises(InvalidExpression) as caught:
        bound(value)
    if isinstance(value, str) and len(value) > 3:
        assert value not in caught.value.message


@pytest.mark.parametrize(
    "value", ["42", "a", "Acme-GmbH_2", "user@example.com", "1.2", "..a", "~x", "a=b", "a,b", "0" * 256]
)
def test_a_name_stands_as_it_is(value: str) -> None:
    assert bound(value).resources == (f"arn:aws:s3:::reports/{value}/*",)


def test_a_secret_is_no_part_of_a_policy() -> None:
    with pytest.raises(InvalidWorkflow, match="may only be passed on whole"):
        flow("'arn:aws:s3:::reports/${{ inputs.secret }}/*'")
    with pytest.raises(UnsafeValue, match="not one text"):
        bound(Secret("42"))


EXPRESSIONS = {
    "beside a wildcard": "'arn:aws:s3:::reports/${{ inputs.customer }}*'",
    "behind a wildcard": "'arn:aws:s3:::reports/x*${{ inputs.customer }}/y'",
    "beside a question mark": "'arn:aws:s3:::reports/${{ inputs.customer }}?/y'",
    "two in a row": "'arn:aws:s3:::reports/${{ inputs.customer }}${{ inputs.customer }}/y'",
    "the account": "'arn:aws:sqs:eu-central-1:${{ inputs.customer }}:x'",
    "the region": "'arn:aws:sqs:${{ inputs.customer }}:123456789012:x'",
    "the service": "'arn:aws:${{ inputs.customer }}:::x/y'",
    "the whole": "'${{ inputs.customer }}'",
    "an escaped one": "'arn:aws:s3:::reports/$${{ inputs.customer }}/*'",
}


@pytest.mark.parametrize("resource", EXPRESSIONS.values(), ids=list(EXPRESSIONS))
def test_an_expression_stands_for_one_name_of_a_thing(resource: str) -> None:
    with pytest.raises(InvalidWorkflow) as caught:
        flow(resource)
    assert {(each.line, each.column) for each in caught.value.problems} == {(18, 21)}


WRONG: dict[str, dict[str, Any]] = {
    "no action": {"actions": []},
    "no resource": {"resources": []},
    "an action without a service": {"actions": ["GetObject"]},
    "all of a service": {"actions": ["s3:*"]},
    "a pattern of actions": {"actions": ["s3:Get*"]},
    "everything": {"actions": ["*"], "wildcards": ["actions"]},
    "all resources": {"resources": ["*"]},
    "all buckets": {"resources": ["arn:aws:s3:::*"]},
    "a pattern of buckets": {"resources": ["arn:aws:s3:::reports*/x"]},
    "all tables": {"resources": ["arn:aws:dynamodb:eu-central-1:123456789012:table/*"]},
    "all queues": {"resources": ["arn:aws:sqs:eu-central-1:123456789012:*"]},
    "any account": {"resources": ["arn:aws:sqs:eu-central-1:*:jobs"]},
    "any region": {"resources": ["arn:aws:sqs:*:123456789012:jobs"]},
    "any service": {"resources": ["arn:aws:*:::x/y"], "wildcards": ["resources"]},
    "no ARN": {"resources": ["reports/*"]},
    "an account that is none": {"resources": ["arn:aws:sqs:eu-central-1:12345:jobs"]},
    "a variable of IAM's": {"resources": ["arn:aws:s3:::reports/${aws:username}/*"]},
    "a quote": {"resources": ['arn:aws:s3:::reports/"/*']},
    "an operator that there is not": {"conditions": {"Equals": {"a:b": "c"}}},
    "no key": {"conditions": {"Bool": {}}},
    "no value": {"conditions": {"Bool": {"a:b": []}}},
    "another end": {"conditions": {"DateLessThan": {"aws:currenttime": "2030-01-01T00:00:00Z"}}},
    "a variable in a condition": {"conditions": {"StringEquals": {"a:b": "${aws:username}"}}},
    "too long": {"ttl": "13h"},
    "no role": {"role": "arn:aws:iam::123456789012:user/x"},
}


@pytest.mark.parametrize("changes", WRONG.values(), ids=list(WRONG))
def test_what_is_too_broad_or_no_grant_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        AwsGrant.model_validate({**GRANT, **changes})


BROAD: dict[str, dict[str, Any]] = {
    "a pattern of actions": {"actions": ["s3:Get*"], "wildcards": ["actions"]},
    "all resources": {"resources": ["*"], "wildcards": ["resources"]},
    "all tables": {"resources": ["arn:aws:dynamodb:*:123456789012:table/*"], "wildcards": ["resources"]},
}


@pytest.mark.parametrize("changes", BROAD.values(), ids=list(BROAD))
def test_what_is_broad_says_so(changes: dict[str, Any]) -> None:
    grant = AwsGrant.model_validate({**GRANT, **changes})
    scope = normalise("s3", grant, step_timeout=60)
    assert scope.as_json()["wildcards"] == changes["wildcards"], "policies see it"


def test_a_policy_that_is_too_long_is_told_with_its_place() -> None:
    many = ", ".join(f"'arn:aws:s3:::reports/{number:04}/${{{{ inputs.customer }}}}/*'" for number in range(60))
    with pytest.raises(InvalidWorkflow, match=str(LONGEST_POLICY)) as caught:
        flow(many)
    assert caught.value.problems[0].line == 18


def test_a_policy_that_its_values_make_too_long_is_refused_when_they_are_known() -> None:
    some = ", ".join(f"'arn:aws:s3:::reports/{number:04}/${{{{ inputs.customer }}}}/*'" for number in range(20))
    assert bound("x", resources=some)
    with pytest.raises(UnsafeValue, match=str(LONGEST_POLICY)):
        bound("x" * 100, resources=some)

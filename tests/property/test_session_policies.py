"""Compiled session policies, judged by an evaluator that is not ours: ministack's, which reads them as AWS does."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from ministack.core.iam_evaluator import EvalContext, evaluate, parse_policy_document

from orchestrator.errors import InvalidExpression
from orchestrator.grants.aws.patterns import check_value
from orchestrator.grants.aws.session_policy import SessionPolicy, compile_policy
from orchestrator.planning.session_policies import bound_policy

EVERYTHING = [parse_policy_document(json.dumps({"Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}))]
LATER = datetime.now(UTC) + timedelta(hours=1)

ACTIONS = ("s3:GetObject", "s3:PutObject", "s3:ListBucket", "sqs:SendMessage")
NAMES = st.text("abz09-._", min_size=1, max_size=8)
VALUES = st.text("ab09*?/:$.{}\\ ", max_size=8) | st.text(max_size=8) | st.integers()


def allows(text: str, action: str, resource: str, **keys: str) -> bool:
    """Whether a session of a role that may do everything may do this."""
    context = EvalContext(
        principal_arn="arn:aws:sts::000000000000:assumed-role/r/s",
        principal_type="AssumedRole",
        principal_account="000000000000",
        action=action,
        resource_arn=resource,
        region="us-east-1",
        service_context={name.replace("__", ":"): value for name, value in keys.items()},
    )
    return bool(evaluate(context, EVERYTHING, [parse_policy_document(text)]).decision == "Allow")


def bound(policy: SessionPolicy, value: Any) -> SessionPolicy | None:
    try:
        return bound_policy(policy, {"inputs": {"it": value}}, "g")
    except InvalidExpression:
        return None


@given(
    actions=st.lists(st.sampled_from(ACTIONS), min_size=1, max_size=3),
    paths=st.lists(st.tuples(NAMES, NAMES), min_size=1, max_size=4),
    asked=st.sampled_from(ACTIONS),
    where=st.tuples(NAMES, NAMES, NAMES),
)
def test_a_policy_allows_what_is_named_and_nothing_else(
    actions: list[str], paths: list[tuple[str, str]], asked: str, where: tuple[str, str, str]
) -> None:
    policy = compile_policy(actions, [f"arn:aws:s3:::{bucket}/{folder}/*" for bucket, folder in paths], {})
    for bucket, folder in paths:
        for action in actions:
            assert allows(policy.until(LATER), action, f"arn:aws:s3:::{bucket}/{folder}/file")
    expected = asked in actions and where[:2] in paths
    assert allows(policy.until(LATER), asked, "arn:aws:s3:::{}/{}/{}".format(*where)) is expected


@given(mine=VALUES, theirs=VALUES, rest=st.text("ab/*", max_size=5))
def test_a_value_never_opens_what_is_another_ones(mine: Any, theirs: Any, rest: str) -> None:
    """Whatever one says that one's name is: what belongs to another name stays closed."""
    assume(str(mine) != str(theirs))
    declared = compile_policy(["s3:GetObject"], ["arn:aws:s3:::reports/${{ inputs.it }}/*"], {})
    policy = bound(declared, mine)
    if policy is None:
        return
    text = policy.until(LATER)
    assert allows(text, "s3:GetObject", f"arn:aws:s3:::reports/{mine}/x")
    assume("/" not in str(theirs))
    assert not allows(text, "s3:GetObject", f"arn:aws:s3:::reports/{theirs}/{rest}")


@given(mine=VALUES, theirs=NAMES)
def test_a_value_in_a_condition_stands_for_itself_alone(mine: Any, theirs: str) -> None:
    conditions = {"StringLike": {"s3:prefix": ["${{ inputs.it }}/*"]}}
    policy = bound(compile_policy(["s3:ListBucket"], ["arn:aws:s3:::reports"], conditions), mine)
    if policy is None:
        return
    listing = ("s3:ListBucket", "arn:aws:s3:::reports")
    assert allows(policy.until(LATER), *listing, s3__prefix=f"{mine}/may")
    assert allows(policy.until(LATER), *listing, s3__prefix=f"{theirs}/may") is (theirs == str(mine))
    assert not allows(policy.until(LATER), *listing)


@given(st.lists(NAMES, min_size=1, max_size=3), st.integers(1, 10**6))
def test_when_its_time_is_over_nothing_is_allowed(names: list[str], seconds: int) -> None:
    policy = compile_policy(ACTIONS, [f"arn:aws:s3:::b/{name}" for name in names], {})
    over = policy.until(datetime.now(UTC) - timedelta(seconds=seconds))
    assert not any(allows(over, action, f"arn:aws:s3:::b/{name}") for action in ACTIONS for name in names)


@given(VALUES)
def test_a_value_that_is_taken_is_the_same_in_a_policy(value: Any) -> None:
    try:
        text = check_value(value)
    except ValueError:
        return
    assert text == str(value)
    assert json.loads(json.dumps(text)) == text
    assert not set(text) & set("*?$/:\\\"'{} ")


@pytest.mark.parametrize("value", ["4*", "42/*", "*"])
def test_the_evaluator_would_have_noticed(value: str) -> None:
    """The test of the tests: with the value as it comes, another one's things are open."""
    text = compile_policy(["s3:GetObject"], [f"arn:aws:s3:::reports/{value}/*"], {}).until(LATER)
    assert any(allows(text, "s3:GetObject", f"arn:aws:s3:::reports/{other}/x") for other in ("43", "42/a/b"))

"""Session policies of `aws` grants: their values bound, each so that it stands for itself alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from orchestrator.errors import InvalidExpression
from orchestrator.grants.aws.patterns import (
    Parts,
    check_breadth,
    check_condition_value,
    check_resource,
    filled,
)
from orchestrator.grants.aws.session_policy import LONGEST_POLICY, SessionPolicy, compile_policy
from orchestrator.workflow.aws_grants import parts_of
from orchestrator.workflow.cel.template import parse_template
from orchestrator.workflow.expressions import evaluate


class UnsafeValue(InvalidExpression):
    """A value is known, and cannot stand in a session policy: it would mean more than itself, or is too long."""


def is_open(policy: SessionPolicy | None) -> bool:
    """Whether a part of the policy is only known when it has been evaluated."""
    if policy is None:
        return False
    texts = (*policy.resources, *(each for *_, values in policy.conditions for each in values))
    return any("${{" in text for text in texts)


def bound_policy(policy: SessionPolicy, context: Mapping[str, Any], grant: str) -> SessionPolicy:
    """The policy with the values of this run.

    Raises InvalidExpression where one is not known, UnsafeValue where one is and cannot stand there.
    """
    conditions: dict[str, dict[str, list[str]]] = {}
    for operator, key, values in policy.conditions:
        at = f"grants.{grant}: conditions.{operator}.{key}"
        found = [_bound(each, context, at, check_condition_value) for each in values]
        conditions.setdefault(operator, {})[key] = found
    at = f"grants.{grant}: resources"
    try:
        check_breadth(policy.actions, [parts_of(each) for each in policy.resources], policy.wildcards)
    except ValueError as error:
        raise UnsafeValue(f"{at}: {error}") from None
    resources = [_bound(each, context, at, check_resource) for each in policy.resources]
    bound = compile_policy(policy.actions, resources, conditions, policy.wildcards)
    if bound.length > LONGEST_POLICY:
        raise UnsafeValue(
            f"grants.{grant}: the session policy has {bound.length} characters, and AWS takes {LONGEST_POLICY}",
            hint="name fewer resources or shorter ones, or divide the grant between two steps",
        )
    return bound


def with_any_name(policy: SessionPolicy) -> SessionPolicy:
    """The policy with a name that nobody has for each value that is not known."""
    conditions: dict[str, dict[str, list[str]]] = {}
    for operator, key, values in policy.conditions:
        conditions.setdefault(operator, {})[key] = [_named(each) for each in values]
    return compile_policy(policy.actions, [_named(each) for each in policy.resources], conditions, policy.wildcards)


def _named(text: str) -> str:
    return "".join(part if part is not None else "orchestrator-unknown" for part in parts_of(text))


def _bound(text: str, context: Mapping[str, Any], at: str, check: Callable[[Parts], Parts]) -> str:
    """The text with its values; they are never part of an error."""
    values = [evaluate("${{ " + each.cel + " }}", context, at=at) for each in parse_template(text).expressions]
    try:
        parts = check(parts_of(text))
        return filled(parts, values)
    except ValueError as error:
        raise UnsafeValue(
            f"`{at}`: {text}: {error}",
            hint="a value stands for one name, and never for a path, a pattern or several names",
        ) from None

"""What must hold of `aws` grants that can be told from the file alone: resources and conditions with expressions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from orchestrator.errors import InvalidExpression
from orchestrator.grants.aws.patterns import Parts, check_breadth, check_condition_value, check_resource
from orchestrator.grants.aws.session_policy import LONGEST_POLICY, compile_policy
from orchestrator.workflow.cel.template import parse_template
from orchestrator.workflow.source import Path, Source

_HINT = "see docs/aws.md; a value stands for one name, between `/` or `:` or at the end"


def parts_of(text: str) -> Parts:
    """The text with None for each expression. Raises InvalidExpression."""
    return [part if isinstance(part, str) else None for part in parse_template(text).parts]


def check_aws_grants(source: Source, grants: Any, path: Path) -> None:
    """Report what is wrong with the grants of one step. Those that are no grants at all are reported elsewhere."""
    for name, grant in grants.items() if isinstance(grants, Mapping) else ():
        if isinstance(grant, Mapping) and grant.get("kind") == "aws":
            _check(source, grant, (*path, name))


def _check(source: Source, grant: Mapping[str, Any], path: Path) -> None:
    actions, resources, wildcards = (_texts(grant.get(each)) for each in ("actions", "resources", "wildcards"))
    known = [each for each in wildcards if each in ("actions", "resources")]
    for index, text in enumerate(resources):
        if "${{" in text:
            try:
                check_breadth([], [check_resource(parts_of(text))], known)
            except InvalidExpression:
                continue  # reported where expressions are
            except ValueError as error:
                source.report((*path, "resources", index), str(error), _HINT)
    conditions: dict[str, dict[str, list[str]]] = {}
    for place, text in _condition_values(grant.get("conditions"), conditions):
        if "${{" in text:
            try:
                check_condition_value(parts_of(text))
            except InvalidExpression:
                continue
            except ValueError as error:
                source.report((*path, "conditions", *place), str(error), _HINT)
    _check_length(source, actions, resources, conditions, path)


def _check_length(
    source: Source, actions: list[str], resources: list[str], conditions: dict[str, dict[str, list[str]]], path: Path
) -> None:
    """Without the values of expressions, of which each has a character at least."""
    try:
        shortest = [_shortest(text) for text in resources]
        least = {
            operator: {key: [_shortest(text) for text in values] for key, values in keys.items()}
            for operator, keys in conditions.items()
        }
    except InvalidExpression:
        return
    length = compile_policy(actions, shortest, least).length if actions and resources else 0
    if length > LONGEST_POLICY:
        source.report(
            (*path, "resources"),
            f"the session policy has {length} characters at least, and AWS takes {LONGEST_POLICY}",
            "name fewer actions and resources, or divide the grant between two steps",
        )


def _shortest(text: str) -> str:
    return "".join("x" if part is None else part for part in parts_of(text)) if "${{" in text else text


def _condition_values(
    conditions: Any, found: dict[str, dict[str, list[str]]]
) -> Iterator[tuple[tuple[str | int, ...], str]]:
    for operator, keys in conditions.items() if isinstance(conditions, Mapping) else ():
        for key, values in keys.items() if isinstance(keys, Mapping) else ():
            alone = isinstance(values, str)
            texts = _texts([values] if alone else values)
            found.setdefault(str(operator), {})[str(key)] = texts
            for index, text in enumerate(texts):
                yield (operator, key) if alone else (operator, key, index), text


def _texts(values: Any) -> list[str]:
    return [each for each in values if isinstance(each, str)] if isinstance(values, list) else []

"""What is allowed by the language and still unwise: warnings, and errors that need more than the file's shape."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from orchestrator.grants.fields import format_duration
from orchestrator.grants.models import TokenGrant
from orchestrator.planning.aws_actions import actions_of_aws
from orchestrator.planning.coverage import coverage, readable, shared_scopes, wildcards
from orchestrator.planning.readiness import login_is_clear
from orchestrator.workflow.cel.template import texts_in
from orchestrator.workflow.loader import LoadedWorkflow
from orchestrator.workflow.problems import Problem

_LONG_FACTOR = 4
_LONG_SECONDS = 600
_IMPLIED_KINDS = frozenset({"database"})
"""Kinds that an action may use without naming the grant, when the step has only one of them."""

_RENEWABLE = frozenset({"database", "dynamic"})
"""Kinds whose leases are renewed while the step runs."""

Rule = Callable[[LoadedWorkflow], Iterator[Problem]]


def lint(loaded: LoadedWorkflow) -> list[Problem]:
    """All findings over a valid workflow, in order of their place."""
    return sorted(problem for rule in _RULES for problem in rule(loaded))


def _ttl_is_shorter_than_the_timeout(loaded: LoadedWorkflow) -> Iterator[Problem]:
    for step_id, step in loaded.workflow.parts.items():
        for name, grant in step.grants.items():
            again = grant.kind in _RENEWABLE or getattr(grant, "on_expiry", "fail") == "reissue"
            if grant.ttl is not None and grant.ttl < step.timeout and not again:
                yield loaded.problem(
                    loaded.place(step_id, "grants", name, "ttl"),
                    f"the credential may end after {format_duration(grant.ttl)}, "
                    f"but the step may take {format_duration(step.timeout)}",
                    "raise `ttl`, or shorten `timeout` of the step",
                )


def _ttl_is_far_above_the_timeout(loaded: LoadedWorkflow) -> Iterator[Problem]:
    for step_id, step in loaded.workflow.parts.items():
        for name, grant in step.grants.items():
            if grant.ttl is None:
                continue
            if grant.ttl > _LONG_FACTOR * step.timeout and grant.ttl > step.timeout + _LONG_SECONDS:
                yield loaded.problem(
                    loaded.place(step_id, "grants", name, "ttl"),
                    f"the credential lives {format_duration(grant.ttl)}, "
                    f"far longer than the step's {format_duration(step.timeout)}",
                    "leave `ttl` out: then it is the time-out and a little more",
                    warning=True,
                )


def _grant_is_not_used(loaded: LoadedWorkflow) -> Iterator[Problem]:
    for step_id, step in loaded.workflow.parts.items():
        named = set(_words(step.with_))
        for name, grant in step.grants.items():
            if name not in named and grant.kind not in _IMPLIED_KINDS:
                yield loaded.problem(
                    loaded.place(step_id, "grants", name),
                    f"the step asks for `{name}` and does not use it",
                    "take the grant out: what is not issued cannot leak",
                    warning=True,
                )


def _secret_key_is_not_used(loaded: LoadedWorkflow) -> Iterator[Problem]:
    for step_id, step in loaded.workflow.parts.items():
        texts = set(texts_in(step.with_))
        for name, grant in step.grants.items():
            if grant.kind != "secret" or name in texts or not any(text.startswith(f"{name}.") for text in texts):
                continue
            for index, key in enumerate(grant.keys):
                if f"{name}.{key}" not in texts:
                    yield loaded.problem(
                        loaded.place(step_id, "grants", name, "keys", index),
                        f"the step reads `{key}` of the secret and does not use it",
                        "take the key out",
                        warning=True,
                    )


def _one_key_signs_for_two_audiences(loaded: LoadedWorkflow) -> Iterator[Problem]:
    first: dict[tuple[str, str], str] = {}
    for step_id, step in loaded.workflow.parts.items():
        for name, grant in step.grants.items():
            if not isinstance(grant, TokenGrant) or grant.profile != "transit":
                continue
            audience = first.setdefault((grant.mount, grant.key), grant.audience)
            if audience != grant.audience:
                yield loaded.problem(
                    loaded.place(step_id, "grants", name),
                    f"the key `{grant.key}` signs for `{audience}`, too: a step's Vault token may sign for either",
                    "give each audience a `key` of its own, or have the server fix the claims: `profile: workflow`",
                    warning=True,
                )


def _a_standing_secret_is_handed_over(loaded: LoadedWorkflow) -> Iterator[Problem]:
    for name, tool in loaded.workflow.tools.items():
        if tool.hand_over is not None and tool.grants[tool.hand_over].kind == "secret":
            yield loaded.problem(
                ("tools", name, "hand_over"),
                "the agent gets a secret that cannot be revoked: it has it for good",
                "let an `action` use it, so that the agent sees the output only",
                warning=True,
            )


def _words(value: object) -> Iterator[str]:
    for text in texts_in(value):
        yield text.partition(".")[0]


_RULES: tuple[Rule, ...] = (
    _ttl_is_shorter_than_the_timeout,
    _ttl_is_far_above_the_timeout,
    _grant_is_not_used,
    _secret_key_is_not_used,
    _one_key_signs_for_two_audiences,
    _a_standing_secret_is_handed_over,
    actions_of_aws,
    readable,
    coverage,
    wildcards,
    shared_scopes,
    login_is_clear,
)

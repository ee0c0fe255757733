"""The two documents of a decision, field by field: the question (`input`) and the answer (`result`).

`orchestrator schema policy-request|policy-decision` prints the JSON Schemas that are made here. What is not in the
schema of the answer is a denial; the question may get further members without another `version`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NotRequired

from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from orchestrator.jsontypes import JsonObject, JsonValue
from orchestrator.policy.obligations import Obligations, ObligationsDocument
from orchestrator.policy.types import VERSION, Decision

MAX_ANSWER_BYTES = 1 << 16
"""Of an answer as JSON: the ledger keeps it whole."""

_OPEN = ConfigDict(extra="allow")
_CLOSED = ConfigDict(extra="forbid", strict=True)


class _Workflow(TypedDict):
    name: Annotated[str, Field(description="The workflow's name.")]
    digest: Annotated[str, Field(description="SHA-256 of the file's text, as `sha256:HEX`.")]


class _Run(TypedDict):
    id: Annotated[str, Field(description="The run's id; `(planned)` in a dry run.")]
    trigger: Annotated[
        str,
        Field(description="What started it: `manual`, `cron`, ...; `retry` where it goes on from a run that failed."),
    ]
    reason: Annotated[str, Field(description="Why, in the words of whoever started it; may be empty.")]
    inputs: Annotated[dict[str, Any], Field(description="The workflow's inputs; a secret one is `***`.")]


class _Step(TypedDict):
    id: Annotated[str, Field(description="The step's name in the workflow.")]
    attempt: Annotated[int, Field(ge=1, description="Counted from 1; each attempt is asked about anew.")]
    timeout: Annotated[int, Field(description="Seconds that the attempt may take.")]
    index: NotRequired[
        Annotated[int, Field(ge=0, description="With `for_each`: for which item of the list, counted from 0.")]
    ]


class _Action(TypedDict):
    __pydantic_config__ = _OPEN  # type: ignore[misc]  # PEP 589 knows no such member

    name: Annotated[str, Field(description="The action, such as `postgres.query`.")]
    partial: NotRequired[
        Annotated[bool, Field(description="In a dry run: what it is about to do is not known yet, or not all of it.")]
    ]


class _Privilege(TypedDict):
    verb: Literal["select", "insert", "update", "delete", "execute", "usage", "schema"]
    object: Annotated[str, Field(description="`schema.name`, of a function with its argument types.")]
    columns: NotRequired[list[str] | Literal["all"]]
    where: NotRequired[
        Annotated[
            dict[str, str | int | bool],
            Field(description="Only rows in which each of these columns has this value; an expression if not known."),
        ]
    ]


class _Narrower(TypedDict):
    name: Annotated[str, Field(description="The name under `narrower` in the workflow.")]
    privileges: list[_Privilege]


class _Grant(TypedDict):
    __pydantic_config__ = _OPEN  # type: ignore[misc]

    name: Annotated[str, Field(description="The grant's name in the step.")]
    kind: Annotated[
        str,
        Field(
            description="`database`, `secret`, `token`, `dynamic`, `oauth2`, `aws`, `certificate`, or that of an "
            "extension."
        ),
    ]
    resource: Annotated[str, Field(description="The path in Vault that the credential comes from, or its issuer.")]
    ttl: Annotated[int, Field(description="Seconds that the credential is wanted for.")]
    connection: NotRequired[Annotated[str, Field(description="The database.")]]
    role: NotRequired[Annotated[str, Field(description="The role of Vault's database engine, or that of AWS.")]]
    privileges: NotRequired[Annotated[list[_Privilege], Field(description="What the login may do.")]]
    narrower: NotRequired[
        Annotated[list[_Narrower], Field(description="What the obligation `columns` can narrow it to.")]
    ]
    issuer: NotRequired[Annotated[str, Field(description="Who issues it, where that is not Vault.")]]
    subject: NotRequired[Annotated[str, Field(description="On whose behalf; an expression if not known.")]]
    proof: NotRequired[Annotated[str, Field(description="`dpop` where a token is of use to its holder only.")]]
    parameters: NotRequired[
        Annotated[
            dict[str, Any],
            Field(description="What is sent, or what a certificate is to say; expressions if not known."),
        ]
    ]
    audience: NotRequired[Annotated[str, Field(description="The one service a token is for.")]]
    scopes: NotRequired[Annotated[list[str], Field(description="The OAuth scopes of a token.")]]
    details: NotRequired[
        Annotated[list[dict[str, Any]], Field(description="What a token is for (RFC 9396); expressions if not known.")]
    ]
    cnf: NotRequired[
        Annotated[dict[str, str], Field(description="`jkt`: the key without which a token is of no use (RFC 9449).")]
    ]
    actions: NotRequired[Annotated[list[str], Field(description="The actions of AWS.")]]
    resources: NotRequired[Annotated[list[str], Field(description="ARNs; with expressions if not known.")]]
    conditions: NotRequired[
        Annotated[dict[str, dict[str, Any]], Field(description="Of AWS, by operator and key; as the resources.")]
    ]
    wildcards: NotRequired[
        Annotated[list[str], Field(description="Where it is as broad as a wildcard: `actions`, `resources`.")]
    ]
    policy: NotRequired[Annotated[str, Field(description="Names the session policy of AWS that is made of these.")]]
    profile: NotRequired[Annotated[str, Field(description="Who builds a token's claims, unless it is `transit`.")]]
    keys: NotRequired[Annotated[list[str], Field(description="The keys of a secret that the step sees.")]]
    on_expiry: NotRequired[Annotated[str, Field(description="`reissue` where it is issued anew.")]]
    overlap: NotRequired[Annotated[int, Field(description="Seconds that the old one stays valid then.")]]


class _Given(TypedDict):
    by: Annotated[str, Field(description="Who, as in `approvers` of the obligation.")]
    at: Annotated[str, Field(description="When, ISO 8601 in UTC.")]
    comment: Annotated[str, Field(description="What they said; may be empty.")]


class _Task(TypedDict):
    id: Annotated[str, Field(description="The task's id; `(planned)` in a dry run.")]
    call: Annotated[dict[str, Any], Field(description="What the agent chose when it called the tool.")]
    on_behalf_of: Annotated[str, Field(description="For whom the agent acts, by its token; empty: for itself.")]


class RequestDocument(TypedDict):
    """The question before an attempt at a step gets credentials. Nothing in it is secret."""

    version: Annotated[Literal[1], Field(description="Raised only where something gets another meaning.")]
    workflow: _Workflow
    run: _Run
    context: Annotated[dict[str, Any], Field(description="The task's context, as the workflow declares it.")]
    task: NotRequired[
        Annotated[_Task, Field(description="Where an agent calls a tool; the step is then named like the tool.")]
    ]
    step: _Step
    agent: Annotated[str, Field(description="The identity that the step acts for.")]
    action: Annotated[_Action, Field(description="What the step is about to do, as far as it may be shown.")]
    grants: Annotated[list[_Grant], Field(description="The credentials that it needs, in normalised form.")]
    time: Annotated[str | None, Field(description="Now, ISO 8601 in UTC; null in a dry run.")]
    approvals: Annotated[list[_Given], Field(description="Who has agreed to exactly this, and still counts.")]
    supported_obligations: Annotated[list[str], Field(description="The obligations that can be carried out.")]


def _whole_number(value: object) -> object:
    """A `Literal` is compared with `==`, and `true` and 1.0 equal 1."""
    if type(value) is not int:
        raise ValueError("is not a whole number")
    return value


class DecisionDocument(TypedDict):
    """The answer. Whatever is not exactly this is a denial."""

    __pydantic_config__ = _CLOSED  # type: ignore[misc]

    version: NotRequired[
        Annotated[
            Literal[1], BeforeValidator(_whole_number), Field(description="Of this document; 1 where it is left out.")
        ]
    ]
    allow: Annotated[bool, Field(description="Whether the step gets its credentials.")]
    reasons: NotRequired[Annotated[list[str], Field(description="Why, for people. In Rego a set will do.")]]
    obligations: NotRequired[ObligationsDocument]


REQUEST_EXAMPLE: JsonObject = {
    "version": VERSION,
    "workflow": {"name": "translate-feedback", "digest": "sha256:" + "5f" * 32},
    "run": {"id": "01KB4Q6V0M7N3T8W2X5Y9ZABCD", "trigger": "call", "reason": "ticket 4711", "inputs": {"limit": 20}},
    "context": {"task": "crm:write_ticket", "customer_id": 1234},
    "task": {"id": "task_01KB4Q6V0M7N3T8W2X5Y9ZABCD", "call": {"limit": 20}, "on_behalf_of": ""},
    "step": {"id": "read_feedback", "attempt": 1, "timeout": 60},
    "agent": "support-agent",
    "action": {"verbs": ["select"], "name": "postgres.query"},
    "grants": [
        {
            "name": "feedback",
            "kind": "database",
            "resource": "database/creds/orc-support-0123456789abcdef0123456789abcdef",
            "ttl": 90,
            "connection": "support",
            "role": "orc-support-0123456789abcdef0123456789abcdef",
            "privileges": [
                {
                    "verb": "select",
                    "object": "public.customer_feedback",
                    "columns": ["comment", "customer_id", "id"],
                    "where": {"customer_id": "1234"},
                }
            ],
            "narrower": [
                {
                    "name": "without_comments",
                    "privileges": [
                        {
                            "verb": "select",
                            "object": "public.customer_feedback",
                            "columns": ["customer_id", "id"],
                            "where": {"customer_id": "1234"},
                        }
                    ],
                }
            ],
        }
    ],
    "time": "2026-11-27T08:30:00+00:00",
    "approvals": [],
    "supported_obligations": ["max_ttl", "columns", "max_rows", "reason_required", "notify", "approval"],
}
DECISION_EXAMPLE: JsonObject = {
    "version": VERSION,
    "allow": True,
    "reasons": ["agent `support-agent` works for customer 1234"],
    "obligations": {
        "max_ttl": 120,
        "columns": {"feedback": {"public.customer_feedback": {"select": ["customer_id", "id"]}}},
        "max_rows": 50,
        "reason_required": True,
        "notify": [{"to": "security", "text": "support-agent reads the feedback of customer 1234"}],
        "approval": {"approvers": ["vault-policy:support-leads"], "count": 1, "expires_in": 3600, "valid_for": 900},
    },
}

_DECISION: TypeAdapter[DecisionDocument] = TypeAdapter(DecisionDocument)
_OBLIGATIONS: TypeAdapter[ObligationsDocument] = TypeAdapter(ObligationsDocument)


def request_schema() -> JsonObject:
    """JSON Schema 2020-12 of the question."""
    return _schema(TypeAdapter(RequestDocument).json_schema(), "Request of a policy decision", REQUEST_EXAMPLE)


def decision_schema() -> JsonObject:
    """JSON Schema 2020-12 of the answer."""
    return _schema(_DECISION.json_schema(), "Policy decision", DECISION_EXAMPLE)


def _schema(made: Mapping[str, Any], title: str, example: JsonObject) -> JsonObject:
    dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": title}
    return {**dialect, **{key: value for key, value in made.items() if key != "title"}, "examples": [example]}


def decision_from(answer: object, *, engine: str, revision: str, decision_id: str = "") -> Decision:
    """Read a policy's raw answer, failing closed: what is not exactly understood is a denial."""
    said: JsonValue = None

    def denied(reason: str, obligations: Obligations | None = None, *more: str) -> Decision:
        return Decision(False, (reason, *more), engine, revision, obligations or Obligations(), said, decision_id)

    try:
        said = as_json(answer)
    except (TypeError, ValueError, RecursionError):
        return denied("the policy's answer is not JSON")
    if not isinstance(said, Mapping):
        return denied("the policy gave no decision (undefined)")
    if len(json.dumps(said)) > MAX_ANSWER_BYTES:
        said = None
        return denied(f"the policy's answer is longer than {MAX_ANSWER_BYTES} bytes")
    try:
        document = _DECISION.validate_python(said)
    except ValidationError as error:
        own = said.get("reasons") if said.get("allow") is False else None
        more = [text for text in own if isinstance(text, str)] if isinstance(own, list) else []
        return denied(_what_is_wrong(error), _notices(said.get("obligations")), *more)
    obligations = Obligations.of(document.get("obligations", {}))
    reasons = tuple(document.get("reasons", ()))
    if not document["allow"] and not reasons:
        reasons = ("the policy does not allow it",)
    return Decision(document["allow"], reasons, engine, revision, obligations, said, decision_id)


def as_json(value: object) -> JsonValue:
    """The answer with its sets as sorted lists. Raises TypeError and ValueError for what JSON cannot express."""
    if isinstance(value, set | frozenset):
        return sorted((as_json(item) for item in value), key=lambda item: json.dumps(item, sort_keys=True))
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise TypeError("a key is not a string")
        return {key: as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        raise ValueError("not a number of JSON")
    if value is None or isinstance(value, str | int | float):
        return value
    raise TypeError(f"a {type(value).__name__} is not JSON")


def _notices(obligations: object) -> Obligations:
    """Of an answer that is not understood, the messages that are: they are delivered with the denial."""
    try:
        found = {"notify": obligations["notify"]} if isinstance(obligations, Mapping) else {}
        return Obligations.of(_OBLIGATIONS.validate_python(found))
    except (KeyError, ValidationError):
        return Obligations()


def _what_is_wrong(error: ValidationError) -> str:
    problems = error.errors(include_input=False, include_context=False, include_url=False)
    unknown = [problem["loc"] for problem in problems if problem["type"] == "extra_forbidden"]
    if obligations := sorted(str(place[1]) for place in unknown if len(place) == 2 and place[0] == "obligations"):
        return f"the policy demands what this version cannot do: {', '.join(obligations)}"
    if parts := sorted(str(place[0]) for place in unknown if len(place) == 1):
        return f"the policy's answer has parts that are not understood: {', '.join(parts)}"
    if any(problem["loc"] == ("allow",) for problem in problems):
        return "the policy's answer has no boolean `allow`"
    first = problems[0]
    place = ".".join(str(part) for part in first["loc"])
    return f"the policy's answer is not a decision: `{place}`: {first['msg'][:200]}"

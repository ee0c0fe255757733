"""A question of ours in the words of the OpenID Authorization API 1.0, and its answers in ours. Nothing is sent here.

| AuthZEN | ours |
| --- | --- |
| `subject` | `{"type": "agent", "id": agent}` |
| `action` | `name` of the action; `properties`: what it is about to do |
| `resource` | one grant: `type` its kind, `id` its path in Vault, `properties` all of it; else the step |
| `context` | the rest of the document, all `grants` too; `question`: `decision` or `admit`; `supported_obligations` |

Obligations are those of the AuthZEN Obligations Profile 1.0 (draft 1); see `authzen_obligations`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictStr, ValidationError

from orchestrator.jsontypes import JsonObject, JsonValue
from orchestrator.policy.engines.services.authzen_obligations import TYPES, read_obligations
from orchestrator.policy.engines.services.service import MAX_REASONS
from orchestrator.policy.obligations import MAX_NOTICES, SUPPORTED, Obligations
from orchestrator.policy.types import PolicyRequest

Question = Literal["decision", "admit"]
"""What is asked: the step itself, or whether the agent may take it at all."""

_OPEN = ConfigDict(extra="ignore", frozen=True, hide_input_in_errors=True)


class Evaluation(BaseModel):
    """One answer (section 5.5, Decision). Members that nobody here knows are ignored, as the specification demands."""

    model_config = _OPEN

    decision: StrictBool
    context: dict[str, object] | None = None


class Evaluations(BaseModel):
    """The answers to a batch, in the order of its questions. `context` is no member of the specification's: what a
    service demands there of all of them is not overheard."""

    model_config = _OPEN

    evaluations: list[Evaluation]
    context: dict[str, object] | None = None


class Metadata(BaseModel):
    """What a decision point says of itself (section 9.1); `supported_obligations` by the Obligations Profile."""

    model_config = _OPEN

    policy_decision_point: StrictStr
    access_evaluation_endpoint: StrictStr
    access_evaluations_endpoint: StrictStr | None = None
    supported_obligations: list[StrictStr] = Field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Asked:
    """A question: what all evaluations have in common, and the resource of each."""

    common: JsonObject
    resources: Sequence[JsonObject]

    def single(self, resource: JsonObject) -> JsonObject:
        """The body of one request to the Access Evaluation API."""
        return {**self.common, "resource": resource}

    def batch(self) -> JsonObject:
        """The body of one request to the Access Evaluations API; each is to be answered, whatever the others are."""
        return {
            **self.common,
            "evaluations": [{"resource": resource} for resource in self.resources],
            "options": {"evaluations_semantic": "execute_all"},
        }


def asked(request: PolicyRequest, question: Question, metadata: Metadata) -> Asked:
    """The evaluations that the request becomes."""
    document = request.as_json()
    view = {name: value for name, value in request.action_view.items() if name != "name"}
    rest = {
        name: value
        for name, value in document.items()
        if name not in ("agent", "action", "supported_obligations") and value is not None
    }
    context: dict[str, JsonValue] = {
        **rest,
        "question": question,
        "supported_obligations": [name for name in TYPES if name in metadata.supported_obligations],
        "custom_obligations": SUPPORTED,
    }
    grants = [grant.as_json() for grant in request.grants]
    resources: list[JsonObject] = [
        {"type": grant.kind, "id": grant.resource, "properties": normalised}  # type: ignore[dict-item]  # JSON scalars
        for grant, normalised in zip(request.grants, grants, strict=True)
    ]
    return Asked(
        common={
            "subject": {"type": "agent", "id": request.agent},
            "action": {"name": request.action, "properties": view},
            "context": context,
        },
        resources=resources or [{"type": "step", "id": f"{request.workflow}/{request.step}"}],
    )


def decision_document(answers: Sequence[Evaluation], *, beside: Mapping[str, object] | None = None) -> JsonObject:
    """The one decision that the answers come to, as an engine in process would write it.

    All must permit. Of obligations the strictest holds; one that cannot be carried out makes it a denial, and notices
    are delivered all the same. The reasons of a denial are those of the evaluations that deny.
    """
    contexts = [answer.context or {} for answer in answers]
    read = [read_obligations(context.get("obligations", [])) for context in (*contexts, beside or {})]
    demanded = Obligations.strictest([each.obligations for each in read])
    problems = list(dict.fromkeys(problem for each in read for problem in each.problems))
    obligations = dict(demanded.as_json())
    if len(demanded.notify) > MAX_NOTICES:
        problems.append(f"more than {MAX_NOTICES} notices")
        obligations["notify"] = Obligations(notify=demanded.notify[:MAX_NOTICES]).as_json()["notify"]
    permitted = all(answer.decision for answer in answers)
    telling = [context for answer, context in zip(answers, contexts, strict=True) if answer.decision == permitted]
    reasons = list(dict.fromkeys(reason for context in telling for reason in _reasons(context)))
    if problems:
        reasons.insert(0, f"the policy demands what this version cannot do: {', '.join(problems)}")
        obligations = {name: value for name, value in obligations.items() if name == "notify"}
    return {"allow": permitted and not problems, "reasons": reasons, "obligations": obligations}


def what_is_wrong(error: ValidationError) -> str:
    """The member and what is wrong with it; no value."""
    first = error.errors(include_input=False, include_context=False, include_url=False)[0]
    return f"`{'.'.join(map(str, first['loc']))[:100]}`: {first['msg'][:200]}"


def _reasons(context: Mapping[str, object]) -> Iterator[str]:
    """Why, in the members that the specification's examples have, and in `reasons`, a list."""
    error = context.get("error")
    message = error.get("message") if isinstance(error, Mapping) else error
    members = [context.get(name) for name in ("reasons", "reason", "reason_user", "reason_admin")]
    for member in (*members, message):
        texts = member.values() if isinstance(member, Mapping) else member if isinstance(member, list) else [member]
        yield from (text for text in list(texts)[: MAX_REASONS * 2] if isinstance(text, str) and text)

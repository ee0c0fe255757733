"""What services ask and are answered, as models: RFC 7662 and AuthZEN 1.0, as far as we understand them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, RootModel

from orchestrator.server.api.callers import LONGEST_TOKEN

MOST_EVALUATIONS = 100

Token = Annotated[str, Field(min_length=1, max_length=LONGEST_TOKEN)]

_OPEN = ConfigDict(extra="ignore", hide_input_in_errors=True)


class IntrospectionRequest(BaseModel):
    """Is this token active? Sent as a form."""

    model_config = _OPEN

    token: Token
    token_type_hint: str = ""


class IntrospectionDocument(BaseModel):
    """Claims of a token that is active; of any other nothing but that it is not."""

    model_config = ConfigDict(extra="allow")

    active: bool


class Holder(BaseModel):
    """What the subject is known by."""

    model_config = _OPEN

    token: Token


class Subject(BaseModel):
    """Who asks for access: whoever has the token in `properties.token`."""

    model_config = _OPEN

    type: Literal["access_token"]
    id: str = ""
    properties: Holder


class Action(BaseModel):
    """What is about to be done, as `actions` of `authorization_details` name it."""

    model_config = _OPEN

    name: str


class Resource(BaseModel):
    """To what: `type` and `identifier` of `authorization_details`."""

    model_config = _OPEN

    type: str
    id: str
    properties: dict[str, Any] = Field(default_factory=dict)


class Evaluation(BaseModel):
    """One question."""

    model_config = _OPEN

    subject: Subject
    action: Action
    resource: Resource


class Part(BaseModel):
    """One question of a batch. What it lacks is taken from the whole."""

    model_config = _OPEN

    subject: Subject | None = None
    action: Action | None = None
    resource: Resource | None = None


class Options(BaseModel):
    """How a batch is answered."""

    model_config = _OPEN

    evaluations_semantic: Literal["execute_all", "deny_on_first_deny", "permit_on_first_permit"] = "execute_all"


class Batch(Part):
    """Several questions; without `evaluations` it is itself the only one."""

    model_config = _OPEN | ConfigDict(
        json_schema_extra={"anyOf": [{"required": ["subject", "action", "resource"]}, {"required": ["evaluations"]}]}
    )

    evaluations: list[Part] = Field(default_factory=list, max_length=MOST_EVALUATIONS)
    options: Options = Field(default_factory=Options)


class DecisionContext(BaseModel):
    """Why not, for whoever runs the service."""

    reason: str


class DecisionDocument(BaseModel):
    """Whether it is permitted now."""

    decision: bool
    context: DecisionContext | None = None


class DecisionsDocument(BaseModel):
    """The answers in the order of the questions, up to the one that ended it."""

    evaluations: list[DecisionDocument]


class BatchDocument(RootModel[DecisionsDocument | DecisionDocument]):
    """Several answers, or one where there was one question."""

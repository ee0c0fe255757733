"""One step of a workflow, as data."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AliasChoices, Field

from orchestrator.grants.fields import Duration, Name
from orchestrator.grants.models import Grant
from orchestrator.workflow.models.declared import Part

StepId = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,39}$")]


class Retry(Part):
    """When and how often a failed step is tried again; every attempt gets credentials of its own."""

    attempts: Annotated[int, Field(ge=1, le=20)] = Field(default=3, description="Attempts in all, the first included.")
    backoff: Duration = Field(default=1, description="Wait before the second attempt; doubles each time, with jitter.")
    max_backoff: Duration = Field(
        default=60,
        description="The longest wait, but for one that a service asks for with `Retry-After`: that is kept up to "
        "this or a minute, whichever is longer, and ends the step at once where it is longer still.",
    )
    on: list[
        Literal[
            "any", "error", "timeout", "connection", "rate_limited", "http_status", "exit_status", "database", "output"
        ]
    ] = Field(default=["timeout", "connection", "rate_limited"], description="Kinds of error that are tried again.")


class Step(Part):
    """One node of the workflow: an action, what it is given, and the credentials it may hold meanwhile."""

    action: str = Field(description="What to do, such as `postgres.query`.")
    description: str = ""
    with_: dict[str, Any] = Field(
        default_factory=dict,
        validation_alias=AliasChoices("with"),
        serialization_alias="with",
        description="Parameters of the action; may contain `${{ }}` expressions.",
    )
    grants: dict[Name, Grant] = Field(default_factory=dict, description="The credentials the step needs, by name.")
    needs: list[StepId] = Field(default_factory=list, description="Steps that must have succeeded before.")
    if_: str | None = Field(
        default=None,
        validation_alias=AliasChoices("if"),
        serialization_alias="if",
        description="A CEL condition; the step is skipped when it is false.",
    )
    timeout: Duration = Field(default=60, description="How long one attempt may take.")
    retry: Retry | None = None
    on_crash: Literal["retry", "fail"] = Field(
        default="retry", description="What happens to the step if the orchestrator dies while it runs."
    )
    continue_on_error: bool = Field(default=False, description="Dependents run even if this step fails.")
    outputs: list[str] = Field(
        default_factory=list,
        description="Keys of the output that dependents may use; only these are kept, here and in the ledger.",
    )

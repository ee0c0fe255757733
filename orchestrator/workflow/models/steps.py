"""One step of a workflow, as data."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AliasChoices, Field, model_validator

from orchestrator.grants.fields import Duration, Name
from orchestrator.grants.models import Grant
from orchestrator.workflow.models.declared import Part

When = Literal["on_success", "on_failure", "always"]

ITEMS = "items"
"""The one key of the output of a step that is carried out for each item of a list: what is kept of each."""

MOST_ITEMS = 10_000
"""For how many items a step is carried out at most."""

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
            "any",
            "error",
            "timeout",
            "connection",
            "rate_limited",
            "unavailable",
            "http_status",
            "exit_status",
            "database",
            "output",
        ]
    ] = Field(
        default=["timeout", "connection", "rate_limited", "unavailable"],
        description="Kinds of error that are tried again.",
    )


class Step(Part):
    """One node of the workflow: an action, what it is given, and the credentials it may hold meanwhile."""

    action: str = Field(description="What to do, such as `postgres.query`.")
    description: str = Field(default="", description="What it is for, for people.")
    with_: dict[str, Any] = Field(
        default_factory=dict,
        validation_alias=AliasChoices("with"),
        serialization_alias="with",
        description="Parameters of the action; may contain `${{ }}` expressions.",
    )
    grants: dict[Name, Grant] = Field(default_factory=dict, description="The credentials the step needs, by name.")
    needs: list[StepId] = Field(
        default_factory=list, description="Steps that must have succeeded before, or have ended, as `when` says."
    )
    when: When = Field(
        default="on_success",
        description="`on_success`: when all that it waits for has succeeded. `on_failure`: when all that has ended, "
        "and some of it failed or was cancelled. `always`: when all that has ended. A step of the last two that has no "
        "`needs` waits for all steps that run on success; it runs also after a cancellation, within the grace.",
    )
    for_each: str | list[Any] | None = Field(
        default=None,
        description="A list, or an expression that gives one: the step is carried out for each of its items, with "
        "credentials of its own for each; expressions see it as `item`, and its place from 0 as `step.index`. What "
        f"`outputs` keeps of each is in `output.{ITEMS}`, in the order of the list.",
    )
    max_parallel: Annotated[int, Field(ge=1, le=100)] = Field(
        default=1, description="With `for_each`: for how many items at once."
    )
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

    @model_validator(mode="after")
    def _of_items(self) -> Self:
        if self.for_each is None and "max_parallel" in self.model_fields_set:
            raise ValueError("`max_parallel` says for how many items of `for_each` at once, and there is none")
        return self

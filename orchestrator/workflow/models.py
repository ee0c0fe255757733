"""The workflow file, as data. The JSON Schema is generated from these models."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError
from pydantic import AfterValidator, AliasChoices, BaseModel, ConfigDict, Field, model_validator

from orchestrator.grants.models import Duration, Grant, Name

Scalar = str | int | float | bool | None
StepId = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,39}$")]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=False)


class Input(_Model):
    """One typed input of a workflow, given with `run --input name=value`."""

    type: Literal["string", "integer", "number", "boolean", "array", "object"] = "string"
    description: str = ""
    default: Any = Field(
        default=None, description="Used when the input is not given. Without it the input is required."
    )
    secret: bool = Field(
        default=False, description="Never shown, logged or recorded; may only be passed on whole, never computed with."
    )
    enum: list[Scalar] | None = Field(default=None, description="The only values allowed.")

    @property
    def required(self) -> bool:
        """Whether a run must be given this input."""
        return "default" not in self.model_fields_set


def _cron(value: str) -> str:
    try:
        CronSim(value, datetime.now(UTC))
    except CronSimError as error:
        raise ValueError(f"{value!r} is not a cron expression: {error}") from error
    return value


def _zone(value: str) -> str:
    try:
        ZoneInfo(value)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError(f"{value!r} is not an IANA time zone such as Europe/Berlin") from error
    return value


class Schedule(_Model):
    """When the scheduler (`orchestrator serve`) runs the workflow: either `cron` or `every`."""

    cron: Annotated[str, AfterValidator(_cron)] | None = Field(
        default=None, description="Five fields, or six with seconds first.", examples=["0 7 * * 1-5"]
    )
    every: Duration | None = Field(
        default=None, description="An interval, such as 15m, counted from 1970-01-01T00:00Z."
    )
    timezone: Annotated[str, AfterValidator(_zone)] = Field(default="UTC", description="IANA zone of `cron`.")
    jitter: Duration | None = Field(
        default=None, description="Each start is later by a part of this, always the same for the same time."
    )
    overlap: Literal["forbid", "queue", "replace", "allow"] = Field(
        default="forbid", description="What happens when the time comes while an earlier run is still running."
    )
    catch_up: Literal["none", "latest", "all"] = Field(
        default="none", description="Which of the times that passed while nothing was scheduling are made up for."
    )
    enabled: bool = Field(default=True, description="false: the workflow only runs when it is triggered.")
    inputs: dict[Name, Any] = Field(default_factory=dict, description="Values of the inputs for scheduled runs.")
    reason: Annotated[str, Field(max_length=500)] = Field(
        default="", description="Why scheduled runs are made, for policies that want to know; shown and recorded."
    )

    @model_validator(mode="after")
    def _one_of(self) -> Schedule:
        if (self.cron is None) == (self.every is None):
            raise ValueError("a schedule has either `cron` or `every`")
        if self.every is not None and self.jitter is not None and self.jitter >= self.every:
            raise ValueError("`jitter` must be shorter than `every`")
        return self


class Retry(_Model):
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


class Step(_Model):
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


class Workflow(_Model):
    """A declared pipeline over several services, in which each step has only the credentials it names."""

    version: Literal[1]
    name: Name
    description: str = ""
    agent: Annotated[str, Field(min_length=1, max_length=128)] = Field(
        description="The identity the workflow acts for; policies see it and tokens carry it as `sub`."
    )
    context: dict[Name, Scalar] = Field(
        default_factory=dict, description="The task's context, for policies; may use `${{ inputs.* }}`."
    )
    inputs: dict[Name, Input] = Field(default_factory=dict)
    schedule: Schedule | None = None
    on_failure: Literal["continue", "cancel"] = Field(
        default="continue", description="Whether steps that do not depend on a failed one go on or are cancelled."
    )
    timeout: Duration | None = Field(default=None, description="How long the whole run may take.")
    max_runs: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="How many queued runs of the workflow may go on at once, over all workers."
    )
    steps: Annotated[dict[StepId, Step], Field(min_length=1)]

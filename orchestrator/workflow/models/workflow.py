"""A whole workflow file: steps with their schedule, or tools with the limits of a task."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError
from pydantic import AfterValidator, Field, model_validator

from orchestrator.grants.fields import Duration, Name
from orchestrator.workflow.models.declared import Input, Part, Scalar
from orchestrator.workflow.models.steps import Step, StepId, When
from orchestrator.workflow.models.tools import TaskLimits, Tool


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


class Schedule(Part):
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


class RateLimit(Part):
    """How many runs may begin within a span of time."""

    runs: Annotated[int, Field(ge=1)] = Field(description="How many runs.")
    per: Duration = Field(description="In how long a time, such as `1m`; any span of that length counts.")


class Message(Part):
    """Who is told how a run ended: a webhook of the settings gets one message."""

    to: Name = Field(description="The name of a destination in the settings (`ORCHESTRATOR_NOTIFY__NAME`).")
    when: When = Field(
        default="on_failure", description="`on_failure`: where the run did not succeed; `on_success`, or `always`."
    )


class Workflow(Part):
    """Either `steps`, a pipeline over several services, or `tools`, what an agent may do while a task is open.

    Each step, and each call of a tool, has only the credentials that it names.
    """

    version: Literal[1] = Field(description="The version of the language: 1.")
    name: Name = Field(description="What the workflow is called; no two of a folder have the same.")
    description: str = Field(default="", description="What it is for, for people.")
    agent: Annotated[str, Field(max_length=128)] = Field(
        default="",
        description="The identity the workflow acts for; policies see it and tokens carry it as `sub`. With `tools` "
        "it is whoever opens the task.",
    )
    context: dict[Name, Scalar] = Field(
        default_factory=dict, description="The task's context, for policies; may use `${{ inputs.* }}`."
    )
    inputs: dict[Name, Input] = Field(
        default_factory=dict, description="What is given to a run, or to a task, by name."
    )
    schedule: Schedule | None = None
    on_failure: Literal["continue", "cancel"] = Field(
        default="continue", description="Whether steps that do not depend on a failed one go on or are cancelled."
    )
    notify: list[Message] = Field(default_factory=list, description="Who is told how a run ended.")
    timeout: Duration | None = Field(default=None, description="How long the whole run may take.")
    max_runs: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="How many queued runs of the workflow may go on at once, over all workers."
    )
    rate_limit: RateLimit | None = Field(
        default=None, description="How many queued runs of the workflow may begin in how long a time, over all workers."
    )
    steps: dict[StepId, Step] = Field(default_factory=dict, description="What is done, each when what it needs is.")
    tools: dict[StepId, Tool] = Field(default_factory=dict, description="What an agent may do while a task is open.")
    task: TaskLimits | None = Field(default=None, description="With `tools`: how long a task may be open.")

    @property
    def is_task(self) -> bool:
        """Whether it declares a type of task: it is opened by an agent, and not run."""
        return bool(self.tools)

    @property
    def limits(self) -> TaskLimits:
        """How long a task may be open."""
        return self.task or TaskLimits()

    @property
    def section(self) -> str:
        """The key of the file under which its parts are."""
        return "tools" if self.tools else "steps"

    @property
    def parts(self) -> Mapping[str, Step]:
        """What gets credentials: its steps, or each tool as the one step that a call of it is."""
        return {name: tool.step for name, tool in self.tools.items()} if self.tools else self.steps

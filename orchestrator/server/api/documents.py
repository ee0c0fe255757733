"""What is sent and answered, as models: they check what comes in, and make the JSON Schemas of the OpenAPI document."""

from __future__ import annotations

import logging
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from orchestrator.errors import LedgerError, Unreachable
from orchestrator.ledger.states import TaskState
from orchestrator.ledger.storage.budgets import UNDER_WAY
from orchestrator.ledger.types import LeaseRecord, RunRecord, TaskRecord
from orchestrator.tasks.opened import OpenedTask
from orchestrator.tasks.results import CallResult, CallState
from orchestrator.workflow.tools.arguments import arguments_schema

log = logging.getLogger(__name__)

Text = Annotated[str, Field(max_length=500)]


class OpenRequest(BaseModel):
    """Open a task."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)

    type: Annotated[str, Field(min_length=1, max_length=64)] = Field(description="The name of the task's type.")
    inputs: dict[str, Any] = Field(default_factory=dict, description="Its inputs, as the type declares them.")
    reason: Text = Field(default="", description="Why; shown to policies and recorded.")


class CallRequest(BaseModel):
    """Call a tool."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)

    arguments: dict[str, Any] = Field(default_factory=dict, description="As the tool's schema says.")


class CloseRequest(BaseModel):
    """Close a task."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)

    reason: Text = Field(default="", description="Why; recorded.")


class ToolDocument(BaseModel):
    """A tool that may be called while the task is open."""

    name: str
    description: str
    arguments: dict[str, Any] = Field(description="JSON Schema 2020-12 of the arguments.")
    hands_over: bool = Field(description="Whether the agent gets a credential, and not an output.")
    max_calls: int | None
    max_open: int | None


class TaskDocument(BaseModel):
    """A task of the agent's."""

    id: str
    type: str
    agent: str
    on_behalf_of: str = Field(description="For whom the agent acts, by its token; empty: for itself.")
    state: Literal["open", "closed"]
    reason: str = Field(description="Why it was closed.")
    opened_at: datetime
    deadline: datetime = Field(description="When it ends in any case.")
    idle: int | None = Field(description="Seconds without a call after which it is closed.")
    inputs: dict[str, Any]
    context: dict[str, Any]
    calls: dict[str, Any] = Field(description="For each tool, how many calls were `made`, and how many are `open`.")
    tools: list[ToolDocument]


class LeaseDocument(BaseModel):
    """What a credential is on record as. Nothing of it is secret."""

    id: str
    expires_at: datetime
    scope: dict[str, Any] = Field(description="What was granted, in normalised form.")
    subject: str = Field(description="Who the credential is: a database role, the `jti` of a token.")


class CredentialDocument(BaseModel):
    """A credential, told this once."""

    grant: str
    kind: str
    ttl: int = Field(description="Seconds from when it was issued.")
    fields: dict[str, str] = Field(description="`username` and `password`, `token`, or what else was issued.")
    connection: str | None = Field(default=None, description="The database that a login is for.")
    address: str | None = Field(default=None, description="Where that is, without secrets.")


class ErrorDocument(BaseModel):
    """Why a call failed."""

    kind: str
    detail: str


class CallDocument(BaseModel):
    """How a call stands. `output` is there where it is done; `credential` where it is handed over with this answer, and
    `lease` for as long as it is held."""

    id: str
    task: str
    tool: str
    state: CallState
    output: dict[str, Any] | None = None
    credential: CredentialDocument | None = None
    lease: LeaseDocument | None = None
    approval: str | None = Field(default=None, description="What it waits for: ask again with the same key.")
    error: ErrorDocument | None = None
    confirmed: bool = Field(description="Whether everything that was issued for it is gone for certain.")


class EndDocument(BaseModel):
    """A task or a lease is at its end. With 202 that is not confirmed yet: ask again."""

    confirmed: bool


class ProblemDocument(BaseModel):
    """A problem of RFC 9457."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(description="A stable URN.")
    title: str
    status: int
    detail: str
    hint: str | None = None


def task_document(opened: OpenedTask, record: TaskRecord, calls: list[RunRecord]) -> TaskDocument:
    """How a task stands."""
    return TaskDocument(
        id=opened.task_id,
        type=opened.workflow.name,
        agent=opened.agent,
        on_behalf_of=opened.on_behalf_of,
        state="open" if record.state is TaskState.OPEN else "closed",
        reason=record.reason,
        opened_at=opened.opened_at,
        deadline=opened.deadline,
        idle=record.idle,
        inputs=dict(opened.inputs),
        context=dict(opened.context),
        calls=_counted(opened, calls),
        tools=[
            ToolDocument(
                name=name,
                description=tool.description,
                arguments=arguments_schema(tool),
                hands_over=tool.hand_over is not None,
                max_calls=tool.max_calls,
                max_open=tool.max_open,
            )
            for name, tool in opened.workflow.tools.items()
        ],
    )


def _counted(opened: OpenedTask, calls: list[RunRecord]) -> dict[str, dict[str, int]]:
    counted = {name: {"made": 0, "open": 0} for name in opened.workflow.tools}
    for each in calls:
        (tool,) = each.steps
        counted[tool]["made"] += 1
        counted[tool]["open"] += each.state.value in UNDER_WAY
    return counted


def _error(result: CallResult) -> ErrorDocument:
    """Why a call failed. Addresses, paths and what our own servers said are for whoever runs this."""
    if isinstance(result.error, Unreachable | LedgerError):
        log.warning("call %s: %s", result.call_id, result.reason, extra={"run": result.call_id})
        return ErrorDocument(kind="unavailable", detail="a service that the orchestrator needs does not answer now")
    kind = getattr(result.error, "kind", "") or result.state.value
    return ErrorDocument(kind=str(kind), detail=result.reason)


def lease_document(lease: LeaseRecord, expires_at: datetime) -> LeaseDocument:
    """What its holder is told of it."""
    return LeaseDocument(id=lease.lease_id, expires_at=expires_at, scope=dict(lease.scope), subject=lease.subject)


def call_document(result: CallResult, task_id: str, address: str | None) -> CallDocument:
    """How a call stands that was not refused."""
    handed, held, error = result.handed, result.held, None
    if result.state in (CallState.FAILED, CallState.CANCELLED):
        error = _error(result)
    return CallDocument(
        id=result.call_id,
        task=task_id,
        tool=result.tool,
        state=result.state,
        output=None if result.output is None else dict(result.output),
        credential=None
        if handed is None
        else CredentialDocument(
            grant=handed.credential.grant,
            kind=handed.credential.kind,
            ttl=handed.credential.ttl,
            fields={name: value.reveal() for name, value in handed.credential.fields.items()},
            connection=handed.credential.connection,
            address=address,
        ),
        lease=None if held is None or held.expires_at is None else lease_document(held, held.expires_at),
        approval=result.approval or None,
        error=error,
        confirmed=result.confirmed,
    )

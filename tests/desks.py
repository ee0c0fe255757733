"""A task desk over a bench's servers, and who calls it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from bench import Bench

from orchestrator.actions.catalog import catalog
from orchestrator.agents.authentication import Caller
from orchestrator.assembly import open_services
from orchestrator.redaction.redactor import Redactor
from orchestrator.tasks.desk import TaskDesk
from orchestrator.workflow.loader import LoadedWorkflow, load_text

AGENT = Caller("complaint-agent", "vault", "entity-1")
OTHER = Caller("other-agent", "vault", "entity-2")

TASK = """\
version: 1
name: complaint_desk
inputs: { customer: { type: integer } }
context: { customer: "${{ inputs.customer }}" }
task: { duration: 10m }
tools:
  read:
    description: Read what the customer wrote.
    call: { limit: { type: integer, minimum: 1, maximum: 50, default: 10 } }
    grants:
      db:
        kind: database
        connection: support
        privileges:
          - select: customer_feedback
            columns: [comment, id]
            where: { customer_id: "${{ inputs.customer }}" }
    action: postgres.query
    with:
      sql: SELECT id, comment FROM customer_feedback ORDER BY id LIMIT %(limit)s
      parameters: { limit: "${{ call.limit }}" }
    outputs: [rows]
  ticket:
    description: A token for one ticket.
    call: { priority: { type: string, enum: [low, high], default: low } }
    grants:
      crm:
        kind: token
        ttl: 60s
        audience: crm
        scope: [write_ticket]
        details: [ { type: crm_record, actions: [write_ticket], identifier: "${{ inputs.customer }}" } ]
    hand_over: crm
  login:
    description: A login that sees the customer's feedback.
    grants:
      db:
        kind: database
        connection: support
        ttl: 60s
        privileges:
          - select: customer_feedback
            columns: [comment, id]
            where: { customer_id: "${{ inputs.customer }}" }
    hand_over: db
    max_open: 2
  pause:
    description: Waits in the database.
    call: { seconds: { type: integer, minimum: 0, maximum: 60 } }
    grants:
      db:
        kind: database
        connection: support
        privileges: [ { select: customer_feedback, columns: [id] } ]
    action: postgres.query
    with:
      sql: SELECT 1 AS one FROM pg_sleep(%(seconds)s)
      parameters: { seconds: "${{ call.seconds }}" }
    outputs: [rows]
    max_calls: 3
"""

RENEWABLE = TASK.replace("ttl: 60s\n        privileges", "ttl: 4s\n        privileges").replace(
    "    hand_over: db\n", "    hand_over: db\n    timeout: 12s\n"
)
"""The same, but a login lives for four seconds, and whoever holds it may renew it for twelve."""


def loaded_task(text: str = TASK) -> LoadedWorkflow:
    return load_text(text, filename="desk.yaml", actions=catalog)


@asynccontextmanager
async def open_desk(bench: Bench, *texts: str, **changes: Any) -> AsyncIterator[TaskDesk]:
    """A process of its own, as far as the ledger can tell. Nothing is provisioned here; TASK unless it is told more."""
    types = [loaded_task(text) for text in texts or (TASK,)]
    async with open_services(
        bench.config(**changes), redactor=Redactor(), observer=lambda run, time, event: bench.events.append(event)
    ) as services:
        desk = TaskDesk(services, {each.workflow.name: each for each in types})
        try:
            yield desk
        finally:
            await desk.aclose("the service was stopped", seconds=0)

"""A ledger with something of everything that pages show: made by real runs, and by rows with hostile texts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from bench import Bench
from desks import AGENT, loaded_task, open_desk

from orchestrator.clock import SystemClock
from orchestrator.jsontypes import JsonObject
from orchestrator.ledger.coordination.approvals import ApprovalRecord
from orchestrator.ledger.events import (
    ApprovalRequested,
    ApprovalVoted,
    AttemptFinished,
    AttemptStarted,
    Decided,
    Event,
    LeaseIssued,
    LeaseLoginTried,
    LeaseRequested,
    LeaseRevocationFailed,
    LeaseRevoked,
    LeaseRevoking,
    LeaseVaultRevoked,
    RunFinished,
    RunStarted,
    StepFinished,
)
from orchestrator.ledger.ids import new_approval_id, new_lease_id, new_run_id, new_task_id
from orchestrator.ledger.opening import open_ledger
from orchestrator.ledger.states import RunState, StepState
from orchestrator.ledger.task_events import TaskClosed, TaskOpened
from orchestrator.policy.engines.rego.engine import PolicySource, RegoEngine

HOSTILE = "<img src=x onerror=alert(1)>\"'><script>alert(2)</script>{{7*7}}</title></svg><b>bold</b>"
"""Escaped, it is a text like any other."""

TRANSLATE = """
version: 1
name: customer_digest
agent: support-agent
inputs: { limit: { type: integer, default: 5 } }
steps:
  read:
    action: postgres.query
    grants: { db: { kind: database, connection: support, role: feedback-read } }
    with: { sql: "SELECT id, comment FROM customer_feedback ORDER BY id LIMIT 3" }
    outputs: [rows]
  pause:
    needs: [read]
    action: postgres.query
    grants: { db: { kind: database, connection: support, role: feedback-read } }
    with: { sql: "SELECT 1 AS one FROM pg_sleep(0.4)" }
  count:
    needs: [pause]
    action: postgres.query
    grants: { db: { kind: database, connection: support, role: feedback-read } }
    with: { sql: "SELECT count(*)::int AS n FROM customer_feedback" }
    outputs: [rows]
"""

FAILING = """
version: 1
name: broken_report
agent: report-agent
steps:
  divide:
    action: postgres.query
    grants: { db: { kind: database, connection: support, role: feedback-read } }
    with: { sql: "SELECT 1 / 0 AS never" }
    retry: { attempts: 2, backoff: 1s, on: [database] }
  after_it:
    needs: [divide]
    action: postgres.query
    grants: { db: { kind: database, connection: support, role: feedback-read } }
    with: { sql: SELECT 1 AS one }
"""

REFUSED = TRANSLATE.replace("customer_digest", "forbidden_digest")
ASKED = TRANSLATE.replace("customer_digest", "asked_digest")

POLICY = """
package orchestrator
import rego.v1
default decision := {"allow": true, "reasons": ["nothing speaks against it"]}
decision := {"allow": false, "reasons": ["nobody may run this one"]} if input.workflow.name == "forbidden_digest"
decision := {"allow": true, "obligations": {"approval": {"approvers": ["vault:userpass-alice"], "count": 1}}} if {
    input.workflow.name == "asked_digest"
    input.step.id == "pause"
}
"""


@dataclass(frozen=True)
class Shown:
    """The ids of what is there."""

    ledger_url: str
    succeeded: str
    failed: str
    refused: str
    waiting: str
    hostile: str
    hostile_lease: str
    hostile_over: str
    """A lease that is over, of the same run."""
    hostile_approval: str
    hostile_task: str
    task: str
    call: str


def shown_ledger(bench: Bench) -> Shown:
    """Real runs of each outcome, a task with a call, and a run that somebody hostile had a hand in."""
    policy = RegoEngine.from_sources([PolicySource("test.rego", POLICY)])
    succeeded = bench.run(TRANSLATE, policy=policy, reason="the weekly digest")
    failed = bench.run(FAILING, policy=policy)
    refused = bench.run(REFUSED, policy=policy)
    waiting = bench.run(ASKED, policy=policy, parks=True)
    assert (succeeded.state, failed.state) == (RunState.SUCCEEDED, RunState.FAILED), failed
    assert (refused.state, waiting.state) == (RunState.REFUSED, RunState.WAITING)
    task, call = asyncio.run(_task(bench))
    ledger_url = bench.config().ledger_url
    hostile = asyncio.run(hostile_rows(ledger_url))
    return Shown(
        ledger_url=ledger_url,
        succeeded=succeeded.run_id,
        failed=failed.run_id,
        refused=refused.run_id,
        waiting=waiting.run_id,
        task=task,
        call=call,
        **hostile,
    )


async def _task(bench: Bench) -> tuple[str, str]:
    bench.install(loaded_task().workflow)
    async with open_desk(bench) as desk:
        opened = await desk.open(AGENT, "complaint_desk", {"customer": 1234}, reason="a complaint")
        result = await desk.call(AGENT, opened.task_id, "read", {"limit": 2}, "key-1")
        assert result.output is not None, result.reason
        await desk.close(AGENT, opened.task_id, "done")
        return opened.task_id, result.call_id


async def hostile_rows(ledger_url: str) -> dict[str, Any]:
    """Written through the ledger's own API: whatever comes from outside is hostile."""
    clock = SystemClock()
    run, lease, asked, task = new_run_id(), new_lease_id(), new_approval_id(), new_task_id()
    ended = new_lease_id()
    now = clock.now()
    scope = {"kind": "secret", "path": HOSTILE, "fields": [HOSTILE], "ttl": 60}
    document = {
        "agent": HOSTILE,
        "run": {"reason": HOSTILE},
        "action": {"name": HOSTILE, "sql": [HOSTILE]},
        "grants": [],
    }
    started = RunStarted(
        workflow="hostile",
        digest="sha256:" + "0" * 64,
        agent=HOSTILE,
        trigger=HOSTILE,
        inputs={"text": HOSTILE},
        steps=(HOSTILE,),
        reason=HOSTILE,
        caller={"issuer": HOSTILE, "subject": HOSTILE, "on_behalf_of": HOSTILE},
    )
    events: list[Event] = [
        AttemptStarted(step=HOSTILE, attempt=1, step_key=HOSTILE, action=HOSTILE, timeout=9),
        Decided(
            step=HOSTILE,
            attempt=1,
            engine=HOSTILE,
            revision=HOSTILE,
            input_digest="0",
            allow=True,
            reasons=(HOSTILE,),
            input=document,
            answer={"reasons": [HOSTILE]},
            obligations={HOSTILE: HOSTILE},
            decision_id=HOSTILE,
        ),
        ApprovalRequested(
            step=HOSTILE,
            attempt=1,
            approval_id=asked,
            subject="s",
            approvers=(HOSTILE,),
            count=1,
            valid_for=60,
            expires_at=now + timedelta(hours=1),
            asked_by=HOSTILE,
        ),
        ApprovalVoted(
            step=HOSTILE,
            approval_id=asked,
            by=HOSTILE,
            verdict="approve",
            at=now,
            statement="{}",
            signature="",
            comment=HOSTILE,
        ),
        LeaseRequested(
            lease_id=lease,
            step=HOSTILE,
            attempt=1,
            grant=HOSTILE,
            grant_kind="secret",
            resource=HOSTILE,
            scope=scope,
            ttl=60,
            step_key=HOSTILE,
        ),
        LeaseIssued(
            lease_id=lease,
            ttl=60,
            expires_at=now + timedelta(seconds=60),
            vault_lease_id=HOSTILE,
            accessor=HOSTILE,
            subject=HOSTILE,
        ),
        LeaseRevoking(lease_id=lease, reason=HOSTILE),
        *(LeaseRevocationFailed(lease_id=lease, error=HOSTILE) for _ in range(3)),
        *over(ended, scope, now),
        AttemptFinished(step=HOSTILE, attempt=1, state=StepState.FAILED, error_kind=HOSTILE, reason=HOSTILE),
        StepFinished(step=HOSTILE, state=StepState.FAILED, reason=HOSTILE, outputs={HOSTILE: HOSTILE}),
        RunFinished(state=RunState.FAILED, exit_code=1, reason=HOSTILE),
    ]
    opened = TaskOpened(
        task=task,
        workflow="hostile_task",
        digest="sha256:" + "0" * 64,
        agent=HOSTILE,
        inputs={HOSTILE: HOSTILE},
        context={HOSTILE: HOSTILE},
        tools=(HOSTILE,),
        deadline=now + timedelta(hours=1),
        idle=None,
        caller={"issuer": HOSTILE, "subject": HOSTILE, "address": HOSTILE},
        reason=HOSTILE,
    )
    ledger = open_ledger(ledger_url, clock=clock)
    try:
        fence = await ledger.begin_run(run, started)
        await ledger.append(run, fence, events)
        await ledger.begin_run(task, opened)
        await ledger.close_task(task, TaskClosed(by=HOSTILE, reason=HOSTILE))
        ledger.approvals.ask(
            ApprovalRecord(
                approval_id=asked,
                run_id=run,
                workflow="hostile",
                step=HOSTILE,
                subject="s",
                question=json.loads(json.dumps(document)),
                demand={"approvers": [HOSTILE], "count": 1, "valid_for": 60},
                asked_by={"name": HOSTILE},
                asked_at=now,
                expires_at=now + timedelta(hours=1),
            )
        )
    finally:
        await ledger.aclose()
    return {
        "hostile": run,
        "hostile_lease": lease,
        "hostile_over": ended,
        "hostile_approval": asked,
        "hostile_task": task,
    }


def over(lease: str, scope: JsonObject, now: datetime) -> Sequence[Event]:
    """The life of a lease of which everybody said that it is gone, in words of somebody hostile."""
    witness = {
        "role": HOSTILE,
        "sessions": 0,
        "server": {"system": HOSTILE, "address": HOSTILE, "database": HOSTILE},
        "at": now.isoformat(),
        "asked_by": HOSTILE,
        "unknown": {HOSTILE: HOSTILE},
    }
    return (
        LeaseRequested(
            lease_id=lease,
            step=HOSTILE,
            attempt=1,
            grant=HOSTILE,
            grant_kind=HOSTILE,
            resource=HOSTILE,
            scope=scope,
            ttl=60,
            step_key=HOSTILE,
        ),
        LeaseIssued(lease_id=lease, ttl=60, expires_at=now, vault_lease_id=HOSTILE, accessor=HOSTILE, subject=HOSTILE),
        LeaseRevoking(lease_id=lease, reason=HOSTILE),
        LeaseRevocationFailed(lease_id=lease, error=HOSTILE),
        LeaseVaultRevoked(lease_id=lease),
        LeaseLoginTried(lease_id=lease, refused=True, sqlstate=HOSTILE, server=HOSTILE, at=now, reason=HOSTILE),
        LeaseRevoked(lease_id=lease, confirmed_by="database", witness=witness),
    )

"""Whatever an agent sends: what a call may get is what the file says, for values that it declares, and no wider."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.actions.catalog import catalog
from orchestrator.errors import UsageError
from orchestrator.grants.privileges import bound_limits
from orchestrator.planning.requests import bind, scopes_of
from orchestrator.tasks.opened import OpenedTask
from orchestrator.workflow.inputs import bind_inputs
from orchestrator.workflow.loader import load_text
from orchestrator.workflow.tools.arguments import bind_arguments

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
TEXT = """\
version: 1
name: any_call
inputs: { customer: { type: integer, minimum: 1 }, region: { type: string, enum: [north, south] } }
context: { customer: "${{ inputs.customer }}" }
tools:
  read:
    description: Reads.
    call:
      status: { type: string, maxLength: 10 }
      limit: { type: integer, minimum: 1, maximum: 50, default: 10 }
    grants:
      db:
        kind: database
        connection: support
        privileges:
          - select: customer_feedback
            columns: [comment, id]
            where: { customer_id: "${{ inputs.customer }}", channel: "${{ call.status }}" }
      crm:
        kind: token
        ttl: 60s
        audience: crm
        scope: [read_tickets]
        details:
          - type: crm_record
            actions: [read_tickets]
            identifier: "${{ context.customer }}"
            part: "${{ call.status }}"
    action: postgres.query
    with: { sql: "SELECT id FROM customer_feedback LIMIT %(limit)s", parameters: { limit: "${{ call.limit }}" } }
    outputs: [rows]
    timeout: 30s
"""
LOADED = load_text(TEXT, filename="any_call.yaml", actions=catalog)
TOOL = LOADED.workflow.tools["read"]

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)
names = st.sampled_from(["status", "limit", "customer", "inputs", "context", "task", "__class__"]) | st.text(max_size=8)
likely = st.fixed_dictionaries(
    {"status": st.text(max_size=12)}, optional={"limit": st.integers(min_value=-5, max_value=60)}
)
arguments = likely | st.dictionaries(names, json_values, max_size=4)


def opened(customer: int, region: str) -> OpenedTask:
    inputs = bind_inputs(LOADED.workflow, {"customer": customer, "region": region})
    return OpenedTask(
        task_id="task_1",
        loaded=LOADED,
        agent="agent",
        inputs=inputs,  # type: ignore[arg-type]  # there are no secret ones
        context={"customer": customer},
        opened_at=NOW,
        deadline=NOW + timedelta(seconds=90),
        caller={"on_behalf_of": ""},
        reason="",
    )


@settings(max_examples=300, deadline=None)
@given(sent=arguments, customer=st.integers(min_value=1, max_value=2**31), region=st.sampled_from(["north", "south"]))
def test_a_call_gets_what_the_file_says_for_its_own_values(sent: dict[str, Any], customer: int, region: str) -> None:
    try:
        bound = bind_arguments("read", TOOL, sent)
    except UsageError:
        return
    assert set(bound) == {"status", "limit"}
    assert type(bound["limit"]) is int
    assert 1 <= bound["limit"] <= 50  # type: ignore[operator]
    assert isinstance(bound["status"], str)
    assert len(bound["status"]) <= 10
    request = opened(customer, region).request("call_1", "read", bound, {}, now=NOW)
    assert request.call is not None
    assert list(request.loaded.workflow.steps) == ["read"]
    assert (request.loaded.workflow.agent, request.loaded.workflow.timeout) == ("agent", 90)
    context = {
        **request.call.expression_context("agent"),
        "inputs": dict(request.inputs),
        "context": dict(request.call.context),
    }
    declared = scopes_of(LOADED.workflow, "read")
    got = bind(scopes_of(request.loaded.workflow, "read"), context)
    for before, after in zip(declared, got, strict=True):
        assert replace(after, bindings=(), details=before.details) == replace(before, bindings=())
    database, token = got
    limits = [limit.column for _, limit in bound_limits(database.privileges)]
    assert dict(zip(limits, database.bindings, strict=True)) == {
        "customer_id": str(customer),
        "channel": bound["status"],
    }
    (detail,) = token.details
    assert detail == {
        "type": "crm_record",
        "actions": ["read_tickets"],
        "identifier": str(customer),
        "part": bound["status"],
    }


@pytest.mark.parametrize(("seconds", "left"), [(0, 90), (89, 1), (89.5, 1), (200, 1)])
def test_a_call_takes_no_longer_than_is_left_of_its_task(seconds: float, left: int) -> None:
    request = opened(1, "north").request(
        "call_1", "read", {"status": "a", "limit": 1}, {}, now=NOW + timedelta(seconds=seconds)
    )
    assert request.loaded.workflow.timeout == left
    assert request.call is not None
    assert request.call.until == NOW + timedelta(seconds=90)

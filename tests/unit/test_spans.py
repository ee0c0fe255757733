"""Spans made of events: their tree, their times and states, one trace for a run, and nothing that is not to be told."""

from datetime import UTC, datetime, timedelta

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from orchestrator.ledger.events import (
    AttemptFinished,
    AttemptStarted,
    Decided,
    Event,
    LeaseDenied,
    LeaseIssued,
    LeaseRequested,
    LeaseRevocationFailed,
    LeaseRevoked,
    LeaseRevoking,
    OrphansSwept,
    RunFinished,
    RunResumed,
    RunStarted,
    RunTakenOver,
    StepFinished,
)
from orchestrator.ledger.states import RunState, StepState
from orchestrator.telemetry.spans import RunSpans, RunTraceIds, trace_id_of

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
CANARY = "canary-7d1f-secret"
RUN = "run_01"

STARTED = RunStarted(
    workflow="feedback", digest="d", agent="ann", trigger="cron", inputs={"limit": CANARY}, steps=("read", "tell")
)
ATTEMPT = AttemptStarted(step="read", attempt=1, step_key="read-k1", action="postgres.query", timeout=30)
DECIDED = Decided(
    step="read", attempt=1, engine="rego", revision="r", input_digest="d", allow=True, reasons=(f"because {CANARY}",)
)
FINISHED = AttemptFinished(step="read", attempt=1, state=StepState.SUCCEEDED)
STEP_DONE = StepFinished(step="read", state=StepState.SUCCEEDED, outputs={"rows": [CANARY]})
RUN_DONE = RunFinished(state=RunState.SUCCEEDED, exit_code=0)


def requested(lease: str, grant: str = "db") -> LeaseRequested:
    return LeaseRequested(
        lease_id=lease,
        step="read",
        attempt=1,
        grant=grant,
        grant_kind="database",
        resource="database/creds/r",
        scope={"rows": [CANARY]},
        ttl=60,
    )


def issued(lease: str) -> LeaseIssued:
    return LeaseIssued(lease_id=lease, ttl=60, expires_at=NOON, vault_lease_id=f"database/creds/r/{CANARY}")


class Watched:
    """Spans in memory; each event comes a second after the one before."""

    def __init__(self) -> None:
        ids, self.exporter = RunTraceIds(), InMemorySpanExporter()
        provider = TracerProvider(id_generator=ids, shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.spans = RunSpans(provider.get_tracer("test"), ids)
        self.time = NOON

    def tell(self, *events: Event, run: str = RUN) -> None:
        for event in events:
            self.spans.observe(run, self.time, event)
            self.time += timedelta(seconds=1)

    @property
    def ended(self) -> dict[str, ReadableSpan]:
        return {span.name: span for span in self.exporter.get_finished_spans()}


@pytest.fixture
def watched() -> Watched:
    return Watched()


def parent_of(span: ReadableSpan) -> int | None:
    return None if span.parent is None else span.parent.span_id


def seconds(span: ReadableSpan) -> float:
    assert span.start_time is not None
    assert span.end_time is not None
    return (span.end_time - span.start_time) / 1e9


def test_a_lease_hangs_from_its_attempt_and_the_attempt_from_its_run(watched: Watched) -> None:
    watched.tell(STARTED, ATTEMPT, DECIDED, requested("lease_1"), issued("lease_1"), FINISHED, STEP_DONE)
    watched.tell(LeaseRevoking(lease_id="lease_1", reason="step ended"))
    assert watched.ended == {}
    watched.tell(LeaseRevoked(lease_id="lease_1", confirmed_by="vault"), RUN_DONE)
    run, step, lease = (watched.ended[name] for name in ("run feedback", "step read", "lease db"))
    assert parent_of(run) is None
    assert parent_of(step) == run.context.span_id
    assert parent_of(lease) == step.context.span_id
    assert [event.name for event in lease.events] == ["issued", "revoking", "revoked"]
    assert dict(lease.attributes or {}) == {
        "orchestrator.lease": "lease_1",
        "orchestrator.step": "read",
        "orchestrator.grant": "db",
        "orchestrator.grant_kind": "database",
        "orchestrator.resource": "database/creds/r",
        "orchestrator.ttl": 60,
        "orchestrator.state": "revoked",
    }
    assert dict(run.attributes or {}) == {
        "orchestrator.run": RUN,
        "orchestrator.workflow": "feedback",
        "orchestrator.agent": "ann",
        "orchestrator.trigger": "cron",
        "orchestrator.state": "succeeded",
        "orchestrator.exit_code": 0,
    }
    assert {span.status.status_code for span in (run, step, lease)} == {StatusCode.UNSET}


def test_an_attempt_lasts_until_the_last_of_its_leases_is_gone(watched: Watched) -> None:
    watched.tell(STARTED, ATTEMPT, requested("lease_1"), requested("lease_2", "other"), FINISHED)
    watched.tell(LeaseRevoking(lease_id="lease_1", reason=""), LeaseRevoked(lease_id="lease_1", confirmed_by="vault"))
    assert "step read" not in watched.ended
    watched.tell(LeaseRevoking(lease_id="lease_2", reason=""), LeaseRevoked(lease_id="lease_2", confirmed_by="vault"))
    step = watched.ended["step read"]
    assert seconds(step) == 7
    assert [(event.name, event.timestamp) for event in step.events] == [
        ("finished", int((NOON + timedelta(seconds=4)).timestamp()) * 10**9)
    ]


def test_what_was_refused_or_failed_is_an_error_and_says_no_reason(watched: Watched) -> None:
    watched.tell(STARTED, ATTEMPT, requested("lease_1"), LeaseDenied(lease_id="lease_1", reason=CANARY))
    watched.tell(
        AttemptFinished(step="read", attempt=1, state=StepState.REFUSED, error_kind="GrantRefused", reason=CANARY),
        StepFinished(step="tell", state=StepState.SKIPPED, reason=CANARY),
        RunFinished(state=RunState.REFUSED, exit_code=3, reason=CANARY),
    )
    assert {span.status.status_code for span in watched.ended.values()} == {StatusCode.ERROR}
    assert (watched.ended["step read"].attributes or {})["orchestrator.error_kind"] == "GrantRefused"
    (skipped,) = watched.ended["run feedback"].events
    assert (skipped.name, dict(skipped.attributes or {})) == ("step skipped", {"orchestrator.step": "tell"})


def test_no_input_output_reason_scope_or_handle_of_vaults_is_in_any_span(watched: Watched) -> None:
    watched.tell(STARTED, ATTEMPT, DECIDED, requested("lease_1"), issued("lease_1"), FINISHED, STEP_DONE)
    watched.tell(
        LeaseRevoking(lease_id="lease_1", reason=CANARY),
        LeaseRevocationFailed(lease_id="lease_1", error=CANARY),
        OrphansSwept(step_key="read-k1", connection="support", roles=(f"orc_{CANARY}",)),
        LeaseRevoked(lease_id="lease_1", confirmed_by="database"),
        RunFinished(state=RunState.FAILED, exit_code=4, reason=CANARY),
    )
    assert len(watched.ended) == 3
    assert CANARY not in "".join(span.to_json() for span in watched.ended.values())


def test_the_trace_of_a_run_is_the_same_in_the_process_that_goes_on_with_it(watched: Watched) -> None:
    watched.tell(STARTED, ATTEMPT, requested("lease_1"))
    watched.spans.end_all(watched.time)  # as far as it came
    after = Watched()
    after.tell(
        RunTakenOver(runner="host-1", reason="gone"),
        LeaseRevoking(lease_id="lease_1", reason=""),
        LeaseRevoked(lease_id="lease_1", confirmed_by="database"),
        RUN_DONE,
    )
    spans = [*watched.ended.values(), *after.ended.values()]
    assert {span.name for span in watched.ended.values()} == {"run feedback", "step read", "lease db"}
    assert {span.name for span in after.ended.values()} == {"run", "lease"}
    assert {span.context.trace_id for span in spans} == {trace_id_of(RUN)}
    assert parent_of(after.ended["lease"]) == after.ended["run"].context.span_id


def test_a_run_that_is_resumed_has_a_second_span_in_the_same_trace(watched: Watched) -> None:
    interrupted = RunFinished(state=RunState.INTERRUPTED, exit_code=130, reason="gone")
    watched.tell(STARTED, interrupted, RunResumed(runner="host-2", reason="gone"), RUN_DONE)
    first, second = watched.exporter.get_finished_spans()
    assert first.context.trace_id == second.context.trace_id == trace_id_of(RUN)
    assert first.attributes is not None
    assert first.attributes["orchestrator.state"] == "interrupted"
    assert first.status.status_code is StatusCode.ERROR
    assert [event.name for event in second.events] == ["resumed"]


def test_runs_side_by_side_have_traces_of_their_own(watched: Watched) -> None:
    for run in ("run_a", "run_b"):
        watched.tell(STARTED, ATTEMPT, run=run)
    for run in ("run_b", "run_a"):
        watched.tell(FINISHED, RUN_DONE, run=run)
    spans = watched.exporter.get_finished_spans()
    assert len(spans) == 4
    assert {span.context.trace_id for span in spans} == {trace_id_of("run_a"), trace_id_of("run_b")}


def test_leases_of_runs_that_ended_elsewhere_leave_no_spans_open(watched: Watched) -> None:
    watched.tell(LeaseRevoking(lease_id="lease_1", reason=""), RUN_DONE)
    watched.spans.end_all(watched.time)
    assert watched.ended == {}

"""What the scheduler metrics, for Prometheus (text exposition format 0.0.4). Needs the extra `serve`.

Labels are names of workflows, states, kinds of grant and reasons: never inputs, outputs or credentials.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from orchestrator.ledger.events import (
    Event,
    LeaseDenied,
    LeaseEnded,
    LeaseExpired,
    LeaseFailed,
    LeaseIssued,
    LeaseRequested,
    LeaseRevocationFailed,
    LeaseRevoked,
    OrphansSwept,
    RunFinished,
    RunStarted,
)
from orchestrator.ledger.states import RunState
from orchestrator.telemetry.metrics import ConnectionFigures, Metrics

_RUN_SECONDS = (0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200)
_LAG_SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 3600)
_OUTCOMES: dict[type[Event], str] = {
    LeaseIssued: "issued",
    LeaseRevoked: "revoked",
    LeaseExpired: "expired",
    LeaseEnded: "ended",
    LeaseDenied: "denied",
    LeaseFailed: "failed",
    LeaseRevocationFailed: "revocation_failed",
}
_FINAL = (LeaseRevoked, LeaseExpired, LeaseEnded, LeaseDenied, LeaseFailed)


@dataclass(frozen=True, slots=True)
class _Lease:
    run_id: str
    kind: str


class PrometheusMetrics(Metrics):
    """Counts in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._started: dict[str, tuple[str, datetime]] = {}
        self._leases: dict[str, _Lease] = {}
        self._runs = self._counter("runs", "Runs that ended.", "workflow", "state")
        self._running = Gauge("orchestrator_runs_running", "Runs going on.", ["workflow"], registry=self.registry)
        self._took = Histogram(
            "orchestrator_run_duration_seconds",
            "From the beginning of a run to its end, revocation included.",
            ["workflow"],
            buckets=_RUN_SECONDS,
            registry=self.registry,
        )
        self._lag = Histogram(
            "orchestrator_schedule_lag_seconds",
            "How much later than due a run was started.",
            ["workflow"],
            buckets=_LAG_SECONDS,
            registry=self.registry,
        )
        self._skips = self._counter("schedule_skipped", "Scheduled times without a run.", "workflow", "reason")
        self._lease_events = self._counter("leases", "What became of leases.", "kind", "outcome")
        self._open = Gauge(
            "orchestrator_leases_open", "Leases that runs of this process hold.", ["kind"], registry=self.registry
        )
        self._pending = self._gauge("leases_pending", "Leases whose revocation is not confirmed, in the whole ledger.")
        self._limit = self._by_connection(
            "connection_leases_limit", "How many leases of a connection may be open at once, over all processes."
        )
        self._held = self._by_connection(
            "connection_leases", "Leases that hold a place of a limited connection, in the whole ledger."
        )
        self._waiting = self._by_connection(
            "connection_attempts_waiting", "Attempts that wait for a place, in the whole ledger."
        )
        self._longest = self._by_connection(
            "connection_longest_wait_seconds", "How long the attempt that waits longest for a place has waited."
        )
        self._queued = Gauge(
            "orchestrator_queue_runs", "Runs of the shared queue, by state.", ["state"], registry=self.registry
        )
        self._queue_wait = self._gauge(
            "queue_longest_wait_seconds", "How long the run that waits longest for a worker has waited."
        )
        self._irrevocable = self._gauge("leases_irrevocable", "Leases that Vault has given up revoking.")
        self._orphans = self._counter("orphans_swept", "Logins dropped that no lease covered.", "connection")
        self._workflows = self._gauge("workflows_loaded", "Workflows of the folder.")
        self._invalid = self._gauge("workflows_invalid", "Files of the folder that cannot be loaded.")
        self._stale = self._gauge("policies_stale", "1 while the policies have changed and cannot be used.")
        self._unreachable = self._counter("unreachable", "Failed checks of a service.", "service")
        self._failures = self._counter("maintenance_failures", "Failures that the service survived.", "part")
        for service in ("vault", "ledger"):
            self._unreachable.labels(service)

    def event(self, run_id: str, time: datetime, event: Event) -> None:
        """Counts `orchestrator_runs_total`, `orchestrator_leases_total`, and what is open or running now.

        The open leases of a run leave the gauge with the run, whatever became of them.
        """
        if isinstance(event, RunStarted):
            self._started[run_id] = (event.workflow, time)
            self._running.labels(event.workflow).inc()
        elif isinstance(event, RunFinished) and run_id in self._started:
            workflow, began = self._started.pop(run_id)
            self._running.labels(workflow).dec()
            self._runs.labels(workflow, event.state.value).inc()
            self._took.labels(workflow).observe(max(0.0, (time - began).total_seconds()))
            for lease_id in [key for key, lease in self._leases.items() if lease.run_id == run_id]:
                self._open.labels(self._leases.pop(lease_id).kind).dec()
        elif isinstance(event, LeaseRequested):
            self._leases[event.lease_id] = _Lease(run_id, event.grant_kind)
            self._open.labels(event.grant_kind).inc()
        elif isinstance(event, OrphansSwept):
            self._orphans.labels(event.connection).inc(len(event.roles))
        elif (outcome := _OUTCOMES.get(type(event))) is not None:
            self._lease(str(getattr(event, "lease_id", "")), outcome, final=isinstance(event, _FINAL))

    def started(self, workflow: str, lag: float) -> None:
        """Observes `orchestrator_schedule_lag_seconds`."""
        self._lag.labels(workflow).observe(lag)

    def interrupted(self, workflow: str) -> None:
        """A run of a dead process was ended."""
        self._runs.labels(workflow, RunState.INTERRUPTED.value).inc()

    def skipped(self, workflow: str, reason: str) -> None:
        """Counts `orchestrator_schedule_skipped_total` by workflow and reason."""
        self._skips.labels(workflow, reason).inc()

    def loaded(self, workflows: int, invalid: int) -> None:
        """Sets `orchestrator_workflows_loaded` and `orchestrator_workflows_invalid`."""
        self._workflows.set(workflows)
        self._invalid.set(invalid)

    def pending(self, leases: int) -> None:
        """Sets `orchestrator_leases_pending`."""
        self._pending.set(leases)

    def places(self, figures: Sequence[ConnectionFigures]) -> None:
        """Sets the four `orchestrator_connection_...` of each connection with a limit."""
        for each in figures:
            self._limit.labels(each.connection).set(each.limit)
            self._held.labels(each.connection).set(each.held)
            self._waiting.labels(each.connection).set(each.waiting)
            self._longest.labels(each.connection).set(each.longest_seconds)

    def queued(self, runs: Mapping[str, int], oldest_seconds: float) -> None:
        """Sets `orchestrator_queue_runs` by state, and `orchestrator_queue_longest_wait_seconds`."""
        for state, count in runs.items():
            self._queued.labels(state).set(count)
        self._queue_wait.set(oldest_seconds)

    def irrevocable(self, leases: int) -> None:
        """Sets `orchestrator_leases_irrevocable`."""
        self._irrevocable.set(leases)

    def policies(self, *, stale: bool) -> None:
        """Sets `orchestrator_policies_stale`."""
        self._stale.set(stale)

    def unreachable(self, service: str) -> None:
        """Counts `orchestrator_unreachable_total` by service."""
        self._unreachable.labels(service).inc()

    def failed(self, part: str) -> None:
        """Counts `orchestrator_maintenance_failures_total` by part."""
        self._failures.labels(part).inc()

    def exposition(self) -> tuple[bytes, str]:
        """The registry in text format 0.0.4, which every Prometheus reads."""
        return generate_latest(self.registry), CONTENT_TYPE_PLAIN_0_0_4

    def _lease(self, lease_id: str, outcome: str, *, final: bool) -> None:
        lease = self._leases.get(lease_id)
        self._lease_events.labels(lease.kind if lease else "unknown", outcome).inc()
        if lease is not None and final:
            del self._leases[lease_id]
            self._open.labels(lease.kind).dec()

    def _counter(self, name: str, help_text: str, *labels: str) -> Counter:
        return Counter(f"orchestrator_{name}", help_text, labels, registry=self.registry)

    def _by_connection(self, name: str, help_text: str) -> Gauge:
        return Gauge(f"orchestrator_{name}", help_text, ["connection"], registry=self.registry)

    def _gauge(self, name: str, help_text: str) -> Gauge:
        return Gauge(f"orchestrator_{name}", help_text, registry=self.registry)

"""What the scheduler tells whoever measures it. This base measures nothing; see `orchestrator.telemetry.prometheus`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from orchestrator.ledger.events import Event
from orchestrator.ledger.places import Places


@dataclass(frozen=True, slots=True)
class ConnectionFigures:
    """Of a connection: how many leases may be open and hold a place, how many attempts wait, and the longest since."""

    connection: str
    limit: int
    held: int
    waiting: int
    longest_seconds: float


def figures(places: Places, limits: Mapping[str, int], now: datetime) -> list[ConnectionFigures]:
    """Those of each connection that has a limit."""
    found = []
    for name, limit in sorted(limits.items()):
        since = [each.since for each in places.line if name in each.leases]
        longest = max(((now - each).total_seconds() for each in since), default=0.0)
        found.append(ConnectionFigures(name, limit, places.held.get(name, 0), len(since), max(0.0, longest)))
    return found


class Metrics:
    """Called from the event loop; must not block. No call carries inputs, outputs or credentials."""

    def event(self, run_id: str, time: datetime, event: Event) -> None:
        """Something was recorded in the ledger."""

    def started(self, workflow: str, lag: float) -> None:
        """A fire has become a run, `lag` seconds after it was due."""

    def interrupted(self, workflow: str) -> None:
        """A run of another process, which is dead, was ended as interrupted."""

    def skipped(self, workflow: str, reason: str) -> None:
        """A fire is not run: `overlap`, `queue_full`, `missed`, `paused`, `taken`."""

    def loaded(self, workflows: int, invalid: int) -> None:
        """So many workflows are scheduled, and so many files of the folder cannot be loaded."""

    def pending(self, leases: int) -> None:
        """So many leases of the ledger are being revoked and not confirmed gone."""

    def places(self, figures: Sequence[ConnectionFigures]) -> None:
        """How it stands with each connection whose open leases are limited, over all processes."""

    def queued(self, runs: Mapping[str, int], oldest_seconds: float) -> None:
        """How many runs of the shared queue are in each state, and since when the oldest one waits for a worker."""

    def irrevocable(self, leases: int) -> None:
        """So many leases Vault has given up revoking."""

    def policies(self, *, stale: bool) -> None:
        """Whether the policies have changed and cannot be used."""

    def unreachable(self, service: str) -> None:
        """`vault` or `ledger` did not answer when its readiness was checked."""

    def failed(self, part: str) -> None:
        """A part of the service failed and goes on: the name of a maintenance hook, or `scheduling`."""

    def exposition(self) -> tuple[bytes, str]:
        """Everything measured so far in Prometheus's text format, and its content type."""
        return b"", "text/plain; version=0.0.4; charset=utf-8"

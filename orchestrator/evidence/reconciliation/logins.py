"""PostgreSQL's log against the logins of the ledger's leases, both ways."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta

from orchestrator.evidence.reconciliation.findings import Compared, Finding, Kind
from orchestrator.evidence.reconciliation.postgres_log import LoginFacts
from orchestrator.ledger.ids import LOGIN_PREFIX
from orchestrator.ledger.lease import FINAL
from orchestrator.ledger.types import LeaseRecord


@dataclass(slots=True)
class LoginComparison:
    """Goes through the leases of the ledger, and keeps what is wrong and what is still looked for."""

    facts: LoginFacts
    skew: timedelta = timedelta(0)
    """How far the clocks of PostgreSQL and of the ledger may be apart."""
    recorded: int = 0
    _open: set[str] = field(default_factory=set)
    _leases: dict[str, LeaseRecord] = field(default_factory=dict)
    _missing: list[LeaseRecord] = field(default_factory=list)
    _connections: set[str] = field(default_factory=set)
    """Whose logins are in the log: a ledger has leases of servers that have logs of their own."""

    def compare(self, leases: Iterable[LeaseRecord], told: Callable[[int], None] = lambda done: None) -> Compared:
        """Hold all leases that may be in the log against it. `told` hears how many there were so far."""
        for done, lease in enumerate(leases, 1):
            if lease.subject.startswith(LOGIN_PREFIX):
                self._look(lease)
            if done % 500 == 0:
                told(done)
        missing = [each for each in self._missing if not self._connections or _connection(each) in self._connections]
        self.recorded -= len(self._missing) - len(missing)
        return Compared(
            coverage=self.facts.coverage,
            logged=len(self.facts.created),
            recorded=self.recorded,
            matched=len(self._leases),
            findings=(*self._unknown(), *self._unreadable(), *self._not_dropped(), *map(_not_created, missing)),
            notes=tuple(self._notes()),
        )

    def _look(self, lease: LeaseRecord) -> None:
        covered = self._covered(lease)
        self.recorded += covered
        if lease.subject in self.facts.created:
            self._leases[lease.subject] = lease
            self._connections.add(_connection(lease))
        elif covered:
            self._missing.append(lease)

    def _covered(self, lease: LeaseRecord) -> bool:
        """Whether the login must have been made while the log was written."""
        first, last = self.facts.coverage.first, self.facts.coverage.last
        if first is None or last is None or lease.issued_at is None:
            return False
        return first + self.skew <= lease.requested_at and lease.issued_at <= last - self.skew

    def _unknown(self) -> Iterator[Finding]:
        for login, time in self.facts.created.items():
            if login not in self._leases:
                yield Finding(kind=Kind.LOGIN_UNKNOWN, what=login, time=time)

    def _unreadable(self) -> Iterator[Finding]:
        for time in self.facts.unreadable:
            yield Finding(kind=Kind.STATEMENT_UNREADABLE, what="", time=time)

    def _not_dropped(self) -> Iterator[Finding]:
        """Only where the log shows calls of functions: else it shows no drop of those that are dropped by one."""
        for login, time in self.facts.created.items() if self.facts.shows_calls else ():
            lease = self._leases.get(login)
            if login in self.facts.dropped or (lease is not None and not self._dropped_while_logged(lease)):
                continue
            lease_id, run_id = (lease.lease_id, lease.run_id) if lease is not None else ("", "")
            yield Finding(kind=Kind.LOGIN_NOT_DROPPED, what=login, time=time, lease_id=lease_id, run_id=run_id)

    def _dropped_while_logged(self, lease: LeaseRecord) -> bool:
        last = self.facts.coverage.last
        if lease.state not in FINAL or lease.closed_at is None:
            return False
        return last is None or lease.closed_at <= last - self.skew

    def _notes(self) -> Iterator[str]:
        if self.facts.coverage.first is None:
            yield "the log tells no times with UTC or an offset: what should be in it cannot be said"
        if not self.facts.shows_calls:
            yield "the log shows no call that drops a login: that needs log_statement = all"
        if not self.facts.created:
            yield "the log shows no login that was made: that needs log_statement = ddl"


def _connection(lease: LeaseRecord) -> str:
    return str(lease.scope.get("connection") or lease.resource)


def _not_created(lease: LeaseRecord) -> Finding:
    return Finding(
        kind=Kind.LOGIN_NOT_CREATED,
        what=lease.subject,
        time=lease.issued_at,
        lease_id=lease.lease_id,
        run_id=lease.run_id,
    )

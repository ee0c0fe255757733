"""Vault's audit log against the leases of the ledger, both ways."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import islice

from orchestrator.evidence.reconciliation.findings import Compared, Finding, Kind
from orchestrator.evidence.reconciliation.vault_audit import HASHED, TOKEN_CREATE, AuditFacts, Issued
from orchestrator.grants.compiled import VAULT_ROLE_PREFIX
from orchestrator.grants.policy_names import token_role_name
from orchestrator.ledger.lease import FINAL, VAULT_REVOKED, LeaseState
from orchestrator.ledger.types import LeaseRecord

LEASES_AT_ONCE = 500

_OUR_TOKENS = tuple(f"{TOKEN_CREATE}/{kind}." for kind in ("step", "sweep", "bind"))
_OUR_ROLES = (VAULT_ROLE_PREFIX, "orchestrator-")

Hashes = Callable[[Sequence[str]], Sequence[str]]
"""What the audit device writes instead of these values, in their order."""


@dataclass(slots=True)
class LeaseComparison:
    """Goes through the leases of the ledger, and keeps what is wrong and what is still looked for."""

    facts: AuditFacts
    hashes: Hashes
    paths: Collection[str]
    """Vault paths of ours beside those that provisioning names: what leases of the ledger were ever asked of."""
    skew: timedelta = timedelta(0)
    """How far the clocks of Vault and of the ledger may be apart."""
    recorded: int = 0
    matched: int = 0
    without_handle: int = 0
    findings: list[Finding] = field(default_factory=list)
    _known: set[str] = field(default_factory=set)
    _unclear: set[str] = field(default_factory=set)
    """Hashed handles that were revoked and are not known to be any lease's yet."""
    _hashed_accessors: bool = False
    _hashed: int = 0
    _met: int = 0
    """How many handles Vault was asked for the hashes of, and how many of these are in the log."""

    def __post_init__(self) -> None:
        self._unclear = {each for each in self.facts.revoked if each.startswith(HASHED)}
        self._hashed_accessors = any(each.startswith(HASHED) for each in (*self.facts.issued, *self._unclear))

    def compare(self, leases: Iterable[LeaseRecord], told: Callable[[int], None] = lambda done: None) -> Compared:
        """Hold all leases that may be in the log against it. `told` hears how many there were so far."""
        waiting, done = iter(leases), 0
        while some := list(islice(waiting, LEASES_AT_ONCE)):
            for lease, handles in zip(some, self._handles(some), strict=True):
                self._judge(lease, handles)
            done += len(some)
            told(done)
        paths = {*self.paths, *(f"{TOKEN_CREATE}/{token_role_name(each)}" for each in self.paths)}
        ours = {handle: issued for handle, issued in self.facts.issued.items() if _is_ours(issued, paths)}
        unknown = [self._unknown(handle, each) for handle, each in ours.items() if handle not in self._known]
        logged = len(ours.keys() | (self._known & self.facts.issued.keys()))
        return Compared(
            coverage=self.facts.coverage,
            logged=logged,
            recorded=self.recorded,
            matched=self.matched,
            findings=(*unknown, *self.findings),
            notes=tuple(self._notes(len(self.facts.issued) - logged)),
        )

    def _handles(self, leases: Sequence[LeaseRecord]) -> list[tuple[str, ...]]:
        """What the log may call each lease. Vault is asked only for what is not found as it is."""
        asked = {each: "" for lease in leases for each in self._to_hash(lease)}
        for value, found in zip(asked, self.hashes(list(asked)) if asked else (), strict=True):
            asked[value] = found
            self._met += found in self.facts.issued or found in self.facts.revoked
        self._hashed += len(asked)
        return [
            tuple(each for value in _of(lease) for each in (value, asked.get(value, "")) if each) for lease in leases
        ]

    def _to_hash(self, lease: LeaseRecord) -> Iterator[str]:
        if lease.accessor and lease.accessor not in self.facts.issued and self._hashed_accessors:
            yield lease.accessor
        if lease.vault_lease_id and self._unclear:
            yield lease.vault_lease_id

    def _judge(self, lease: LeaseRecord, handles: tuple[str, ...]) -> None:
        if lease.issued_at is None:
            return
        if not handles:
            self.without_handle += self._covered(lease)
            return
        self._known.update(handles)
        self._unclear.difference_update(handles)
        found = [self.facts.issued[each] for each in handles if each in self.facts.issued]
        if self._covered(lease):
            self.recorded += 1
            if not found:
                self._found(Kind.NOT_IN_VAULT, lease, lease.issued_at)
        self.matched += bool(found)
        revocation = self.facts.revocation(handles)
        if revocation is None:
            return
        is_open = lease.state not in FINAL and lease.reason != VAULT_REVOKED
        if is_open and lease.state is not LeaseState.REVOKING:
            self._found(Kind.REVOKED_BUT_OPEN, lease, revocation.time, revocation.by)
        elif revocation.time and lease.revoking_since and revocation.time < lease.revoking_since - self.skew:
            self._found(Kind.REVOKED_BY_OTHERS, lease, revocation.time, revocation.by)

    def _covered(self, lease: LeaseRecord) -> bool:
        """Whether its issuance must be in the log: it was asked for and answered while that was written."""
        first, last = self.facts.coverage.first, self.facts.coverage.last
        if first is None or last is None or lease.issued_at is None:
            return False
        return first + self.skew <= lease.requested_at and lease.issued_at <= last - self.skew

    def _found(self, kind: Kind, lease: LeaseRecord, time: datetime | None, by: str = "") -> None:
        what = lease.vault_lease_id or f"{lease.resource} (accessor {lease.accessor})"
        self.findings.append(
            Finding(kind=kind, what=what, time=time, lease_id=lease.lease_id, run_id=lease.run_id, by=by)
        )

    def _unknown(self, handle: str, issued: Issued) -> Finding:
        what = f"{issued.path} (accessor {handle})" if issued.is_token else handle
        return Finding(kind=Kind.ISSUED_UNKNOWN, what=what, time=issued.time, run_id=issued.run, by=issued.by)

    def _notes(self, elsewhere: int) -> Iterator[str]:
        if elsewhere:
            yield f"{elsewhere} more were issued on paths that are none of ours"
        if self._hashed and not self._met:
            yield "no hash that Vault gave is in the log: another audit device wrote it, or one made anew since"
        if self.without_handle:
            yield f"{self.without_handle} leases of the ledger are none of Vault's: its log cannot have them"


def _is_ours(issued: Issued, paths: Collection[str]) -> bool:
    if issued.path in paths:
        return True
    if issued.is_token:
        return issued.path.startswith(_OUR_TOKENS)
    return issued.path.rpartition("/")[2].startswith(_OUR_ROLES)


def _of(lease: LeaseRecord) -> tuple[str, ...]:
    return tuple(each for each in (lease.vault_lease_id, lease.accessor) if each)

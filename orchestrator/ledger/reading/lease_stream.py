"""All leases of a time, oldest first, batch by batch: however many there are, few are held."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import datetime

from sqlalchemy import Connection, select, tuple_

from orchestrator.ledger.reading.records import lease_record
from orchestrator.ledger.storage.tables import IS_OPEN, lease, lease_origin
from orchestrator.ledger.storage.times import time_to_text
from orchestrator.ledger.types import LeaseRecord

LEASES_AT_ONCE = 500

Snapshot = Callable[[], AbstractContextManager[Connection]]


def leases_between(snapshot: Snapshot, since: datetime | None, until: datetime | None) -> Iterator[LeaseRecord]:
    """Those requested in this time, and before them the older ones that are open. Raises LedgerError."""
    if since is not None:
        with snapshot() as connection:
            query = select(lease).where(IS_OPEN, lease.c.requested_at < time_to_text(since))
            older = [lease_record(row) for row in connection.execute(query.order_by(lease.c.requested_at))]
        yield from older
    query = select(lease).order_by(lease.c.requested_at, lease.c.lease_id).limit(LEASES_AT_ONCE)
    if since is not None:
        query = query.where(lease.c.requested_at >= time_to_text(since))
    if until is not None:
        query = query.where(lease.c.requested_at <= time_to_text(until))
    after: tuple[str, str] | None = None
    while True:
        following = query if after is None else query.where(tuple_(lease.c.requested_at, lease.c.lease_id) > after)
        with snapshot() as connection:
            rows = connection.execute(following).all()
            batch = [lease_record(row) for row in rows]
        yield from batch
        if len(rows) < LEASES_AT_ONCE:
            return
        after = (rows[-1].requested_at, rows[-1].lease_id)


def lease_paths(snapshot: Snapshot) -> set[str]:
    """What leases were ever asked of: Vault paths, and the policies of step tokens."""
    with snapshot() as connection:
        return {str(path) for path in connection.execute(select(lease_origin.c.resource).distinct()).scalars()}

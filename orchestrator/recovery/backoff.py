"""When a lease that could not be taken back is tried again: decided from the ledger, so that it outlasts restarts."""

from __future__ import annotations

import hashlib
from datetime import datetime, timedelta

from orchestrator.ledger.types import LeaseRecord

FIRST_PAUSE = 30.0
"""Seconds after the first failed try; doubled with each further one."""

LONGEST_PAUSE = 900.0
"""Seconds that are never exceeded: what was repaired is noticed within them."""


def pause_after(failed_tries: int, jitter: float) -> float:
    """Seconds to wait after so many failed tries. `jitter` in [0, 1) takes up to a quarter off, against herds."""
    if failed_tries <= 0:
        return 0.0
    doubled = FIRST_PAUSE * 2.0 ** min(failed_tries - 1, 16)
    return min(LONGEST_PAUSE, doubled) * (1 - jitter / 4)


def is_due(lease: LeaseRecord, now: datetime) -> bool:
    """Whether the pause since the last failed try of a lease is over. A clock that went backwards delays nothing."""
    if lease.last_try_at is None or lease.last_try_at > now:
        return True
    pause = pause_after(lease.failed_tries, jitter_of(lease.lease_id, lease.failed_tries))
    return now - lease.last_try_at >= timedelta(seconds=pause)


def jitter_of(lease_id: str, failed_tries: int) -> float:
    """A number in [0, 1) that is the same in every process, and different for every lease and try."""
    return int.from_bytes(hashlib.sha256(f"{lease_id}\0{failed_tries}".encode()).digest()[:4]) / 2**32

"""The newest leases of several parts, read one after the other and no further than they can matter."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row

from orchestrator.ledger.reading import lease_queries
from orchestrator.ledger.types import LeaseFilter

Place = tuple[str, str]
"""When a lease was requested, and its id: where it stands among the others."""


def newest_leases(connection: Connection, wanted: LeaseFilter) -> Sequence[Row[Any]]:
    """The rows that a filter asks for, newest first. The statements must see one state of the ledger.

    For filters that are given together, the parts of which the answer may consist are known with the time of their
    newest lease. They are read in that order, until the newest of the next is older than the last of the answer.
    """
    heads_of = lease_queries.heads_of(wanted)
    heads = None if heads_of is None else lease_queries.found_heads(connection.execute(*heads_of).mappings().all())
    if heads is None:
        return connection.execute(lease_queries.filtered_leases(wanted)).all()
    places: list[Place] = []
    for part in lease_queries.open_parts(wanted):
        places = _newest(places, connection.execute(lease_queries.places_in(part, wanted.limit)).all(), wanted.limit)
    since, until = lease_queries.times_of(wanted)
    closed = lease_queries.closed_places(tuple(heads[0].under), wanted.limit) if heads else None
    for head in heads:
        full = len(places) == wanted.limit
        if closed is None or (full and head.newest < places[-1][0]):
            break
        found = closed.read(connection, head.under, places[-1][0] if full else since, until)
        places = _newest(places, found, wanted.limit)
    ids = json.dumps([lease_id for _, lease_id in places])
    return connection.execute(lease_queries.leases_by_ids(), {"ids": ids}).all()


def _newest(places: list[Place], found: Sequence[Any], limit: int) -> list[Place]:
    return sorted([*places, *((str(row[0]), str(row[1])) for row in found)], reverse=True)[:limit]

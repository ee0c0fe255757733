"""The newest leases of several parts, read one after the other and no further than they can matter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from sqlalchemy import Connection, Row

from orchestrator.ledger.reading import lease_queries
from orchestrator.ledger.reading.newest_first import Part
from orchestrator.ledger.types import LeaseFilter

IDS_AT_ONCE = 1000
"""How many leases are fetched by their ids in one statement; both databases take at least 30,000."""

Place = tuple[str, str]
"""When a lease was requested, and its id: where it stands among the others."""


def newest_leases(connection: Connection, wanted: LeaseFilter) -> Sequence[Row[Any]]:
    """The rows that a filter asks for, newest first. The statements must see one state of the ledger.

    For filters that are given together, the parts of which the answer may consist are known with the time of their
    newest lease. They are read in that order, until the newest of the next is older than the last of the answer.
    """
    heads_of = lease_queries.heads_of(wanted)
    heads = None if heads_of is None else lease_queries.found_heads(connection.execute(heads_of).mappings().all())
    if heads is None:
        return connection.execute(lease_queries.filtered_leases(wanted)).all()
    places: list[Place] = []
    for part in lease_queries.open_parts(wanted):
        places = _with(connection, places, part, wanted.limit)
    for head in heads:
        if len(places) == wanted.limit and head.newest < places[-1][0]:
            break
        places = _with(connection, places, lease_queries.part_of(wanted, head), wanted.limit)
    ids = iter([lease_id for _, lease_id in places])
    return [row for some in _batches(ids) for row in connection.execute(lease_queries.leases_by_ids(some)).all()]


def _with(connection: Connection, places: list[Place], part: Part, limit: int) -> list[Place]:
    """The newest places of those and the part's, of which nothing is read that is older than all that are needed."""
    since = places[-1][0] if len(places) == limit else part.since
    found = connection.execute(lease_queries.places_in(replace(part, since=since), limit)).all()
    return sorted([*places, *((str(time), str(lease_id)) for time, lease_id in found)], reverse=True)[:limit]


def _batches(ids: Iterator[str]) -> Iterator[list[str]]:
    while some := list(islice(ids, IDS_AT_ONCE)):
        yield some

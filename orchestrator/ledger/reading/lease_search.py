"""The newest leases of several parts, read from the newest part on and no further than they can matter."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import chain, repeat
from typing import Any

from sqlalchemy import Connection, Row

from orchestrator.ledger.reading import lease_queries
from orchestrator.ledger.types import LeaseFilter

Place = tuple[str, str]
"""When a lease was requested, and its id: where it stands among the others."""

AT_ONCE = (1, 7, 56)
"""So many parts are read by one statement, if need be, at first and then: every statement is a way to the server."""


def newest_leases(connection: Connection, wanted: LeaseFilter) -> Sequence[Row[Any]]:
    """The rows that a filter asks for, newest first. The statements must see one state of the ledger.

    For filters that are given together, the parts of which the answer may consist are known with the time of their
    newest lease. They are read in that order, until the newest of the next is older than the last of the answer.
    """
    if wanted.task is not None:
        return connection.execute(*lease_queries.leases_of_task(wanted)).all()
    heads_of = lease_queries.heads_of(wanted)
    heads = None if heads_of is None else lease_queries.found_heads(connection.execute(*heads_of).mappings().all())
    if heads is None:
        return connection.execute(*lease_queries.filtered_leases(wanted)).all()
    is_open = lease_queries.open_places(wanted)
    places = [] if is_open is None else _newest([], connection.execute(*is_open).all(), wanted.limit)
    since, until, key = lease_queries.times_of(wanted)
    sizes = repeat(1) if connection.dialect.name == "sqlite" else chain(AT_ONCE, repeat(AT_ONCE[-1]))
    for size in sizes:
        if len(places) == wanted.limit:
            since = places[-1][0]
            heads = [head for head in heads if head.newest >= since]
        if not heads:
            break
        closed = lease_queries.closed_places(tuple(heads[0].under), wanted.limit)
        found = closed.read(connection, [head.under for head in heads[:size]], since, until, key or "")
        places, heads = _newest(places, found, wanted.limit), heads[size:]
    ids = json.dumps([lease_id for _, lease_id in places])
    return connection.execute(lease_queries.leases_by_ids(), {"ids": ids}).all()


def _newest(places: list[Place], found: Sequence[Any], limit: int) -> list[Place]:
    return sorted([*places, *((str(row[0]), str(row[1])) for row in found)], reverse=True)[:limit]

"""Leases by any combination of filters, newest first, each read from an index in the order of the answer.

Open leases are few: one small index holds them, and every other condition is checked on each. Closed leases are
many: there the index of a filter goes on with the state and the time, so that each final state is a part that is
read newest first and no further than the limit. For several filters together, and for a prefix of resources, the
parts are the combinations of workflow, step, agent, kind and resource that ever occurred and agree (`lease_origin`),
each with its states. So no answer sorts, or reads, more than a few times what it gives, however many leases are closed.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import Any

from sqlalchemy import ColumnElement, RowMapping, Select, Text, bindparam, func, or_, select

from orchestrator.ledger.lease import FINAL, OPEN, LeaseState
from orchestrator.ledger.reading.newest_first import (
    Condition,
    Order,
    Part,
    PlacesUnder,
    elements,
    newest,
    newest_time,
    places,
    unindexed,
)
from orchestrator.ledger.states import RunState
from orchestrator.ledger.storage.tables import (
    HAS_VAULT_LEASE,
    IS_CLOSED,
    IS_OPEN,
    ORIGIN,
    lease,
    lease_origin,
    run,
    run_owner,
)
from orchestrator.ledger.storage.times import time_to_text
from orchestrator.ledger.types import LeaseFilter

LEASE_PREFIX = "lease_"

SHORTEST_PREFIX = 6
"""Characters of a lease id, after `lease_`, that may stand for it."""

MOST_ORIGINS = 64
"""So many combinations are looked at one by one. What takes in more is met soon in the index of one of its filters, or
among the newest leases of all."""

ORDER = Order(lease, "requested_at", "lease_id")

_OF_FEW = (("step_key",), ("vault_lease_id",), ("run_id",))
"""Columns of which one value has few leases: an index of their own, whatever the state."""

_OF_MANY = (("step",), ("workflow",), ("agent",), ("grant_kind",))
"""Columns whose index goes on with the state and the time, those that leave least first."""

_NEWEST = "newest "


@dataclass(frozen=True, slots=True)
class Head:
    """A part of the closed leases: those under these values, of which the newest was requested at this time."""

    under: Mapping[str, str]
    newest: str


def lease_by_id(lease_id: str) -> Select[tuple[object, ...]]:
    """The row of one lease."""
    return select(lease).where(lease.c.lease_id == lease_id)


def leases_by_prefix(prefix: str) -> Select[tuple[object, ...]] | None:
    """At most two leases whose id starts so, with or without `lease_`; None where the prefix is too short."""
    rest = prefix.removeprefix(LEASE_PREFIX)
    if len(rest) < SHORTEST_PREFIX:
        return None
    return select(lease).where(*_starts_with(lease.c.lease_id, LEASE_PREFIX + rest)).limit(2)


def filtered_leases(wanted: LeaseFilter) -> Select[tuple[object, ...]]:
    """Newest first, from the index of one filter; the others are checked on the way.

    `since` is included, `until` is not.
    """
    return newest(ORDER, [_within(wanted, part) for part in _parts(wanted)], wanted.limit)


@cache
def leases_by_ids() -> Select[tuple[object, ...]]:
    """The leases whose ids are in the JSON array `ids`, newest first."""
    wanted = lease.c.lease_id.in_(elements(bindparam("ids", type_=Text())))
    return select(lease).where(wanted).order_by(lease.c.requested_at.desc(), lease.c.lease_id.desc())


def places_in(part: Part, limit: int) -> Select[Any]:
    """Times and ids of the newest leases in a part, newest first."""
    return places(ORDER, part, limit)


def open_parts(wanted: LeaseFilter) -> list[Part]:
    """The open leases that a filter asks for: one part, or none."""
    if not _wanted(OPEN, wanted):
        return []
    conditions = [IS_OPEN, *_rest(_given(wanted), ()), *_state_of(OPEN, wanted), *_checked_resource(wanted)]
    return [_within(wanted, Part(conditions=conditions))]


@lru_cache(maxsize=64)
def closed_places(names: tuple[str, ...], limit: int) -> PlacesUnder:
    """Reads the closed leases under values of these columns."""
    return PlacesUnder(ORDER, names, [IS_CLOSED], limit)


def times_of(wanted: LeaseFilter) -> tuple[str | None, str | None]:
    """`since` and `until` of a filter, as times are stored."""
    since, until = wanted.since, wanted.until
    return (None if since is None else time_to_text(since), None if until is None else time_to_text(until))


def heads_of(wanted: LeaseFilter) -> tuple[Select[tuple[object, ...]], Mapping[str, str]] | None:
    """What there is of closed leases for filters that are given together, or for a prefix of resources.

    For each combination of their columns that ever occurred, at most one more than `MOST_ORIGINS`, the time of the
    newest lease in each final state: a statement and its parameters, whose rows `found_heads` reads. None where one
    filter's index does without.
    """
    given = _given(wanted)
    if _serving(_OF_FEW, given) or (not wanted.resource and len(given) < 2):
        return None
    since, until = times_of(wanted)
    prefix, end = (wanted.resource, after_prefix(wanted.resource)) if wanted.resource else (None, None)
    range_of = {"prefix": prefix, "after_prefix": end, "since": since, "until": until}
    parameters = {name: value for name, value in range_of.items() if value is not None}
    states = tuple(state.value for state in _wanted(FINAL, wanted))
    statement = _heads(tuple(given), states, frozenset(parameters))
    return statement, {**parameters, **{f"of_{name}": value for name, value in given.items()}}


@lru_cache(maxsize=256)
def _heads(given: tuple[str, ...], states: tuple[str, ...], bounds: Set[str]) -> Select[tuple[object, ...]]:
    """The statement for filters on these columns: making it takes longer than its answer."""
    bound = {name: bindparam(name, type_=Text()) for name in bounds}
    resource = lease_origin.c.resource
    columns = [lease_origin.c[name] for name in (ORIGIN if given else ("resource",))]
    conditions = [lease_origin.c[name] == bindparam(f"of_{name}", type_=Text()) for name in given]
    conditions += [resource >= bound["prefix"]] if "prefix" in bound else []
    conditions += [resource < bound["after_prefix"]] if "after_prefix" in bound else []
    found = select(*columns).where(*conditions).distinct().limit(MOST_ORIGINS + 1).subquery()
    since, until = bound.get("since"), bound.get("until")
    parts = {state: Part(under={"state": state}, conditions=[IS_CLOSED], since=since, until=until) for state in states}
    times = (newest_time(ORDER, part, dict(found.c)).label(_NEWEST + state) for state, part in parts.items())
    return select(found, *times)


def found_heads(rows: Sequence[RowMapping]) -> list[Head] | None:
    """From the rows of `heads_of`, the parts that have any lease, the newest first; None if there are too many."""
    heads = [
        Head({**_columns(row), "state": name.removeprefix(_NEWEST)}, str(time))
        for row in rows
        for name, time in row.items()
        if name.startswith(_NEWEST) and time is not None
    ]
    return None if len(rows) > MOST_ORIGINS else sorted(heads, key=lambda head: head.newest, reverse=True)


def _columns(row: RowMapping) -> dict[str, str]:
    return {name: str(value) for name, value in row.items() if not name.startswith(_NEWEST)}


def leases_of_ended_runs(dead: Collection[str]) -> Select[tuple[object, ...]]:
    """The open leases whose run has ended, or is driven by one of the processes in `dead`; newest first."""
    state = select(run.c.state).where(run.c.run_id == lease.c.run_id).scalar_subquery()
    driver = select(run_owner.c.runner_id).where(run_owner.c.run_id == lease.c.run_id).scalar_subquery()
    over: ColumnElement[bool] = state != RunState.RUNNING.value
    if dead:
        over = or_(over, driver.in_(sorted(dead)))
    # Asked row by row: a join might read all runs, of which few have open leases.
    return select(lease).where(IS_OPEN, over).order_by(lease.c.requested_at.desc(), lease.c.lease_id.desc())


def open_leases_by_state() -> Select[tuple[object, ...]]:
    """How many leases are in each open state; a state that has none is left out."""
    return select(lease.c.state, func.count().label("leases")).where(IS_OPEN).group_by(lease.c.state)


def after_prefix(prefix: str) -> str | None:
    """The first string, by code point, after all that start with the prefix; None if there is none."""
    kept = prefix.rstrip(chr(sys.maxunicode))
    if not kept:
        return None
    following = ord(kept[-1]) + 1
    if 0xD800 <= following <= 0xDFFF:  # surrogates are no characters
        following = 0xE000
    return kept[:-1] + chr(following)


def _parts(wanted: LeaseFilter) -> Iterator[Part]:
    """Parts of which an index serves each, so that every lease that is wanted belongs to one."""
    given, checked = _given(wanted), _checked_resource(wanted)
    if few := _serving(_OF_FEW, given):
        found = [lease.c[name] == given[name] for name in few]
        has_any = [HAS_VAULT_LEASE] if few == ("vault_lease_id",) else []
        states = _state_of(set(LeaseState), wanted)
        yield Part(conditions=[*found, *has_any, *_rest(given, few), *states, *checked])
        return
    served = _serving(_OF_MANY, given)
    if not served and wanted.states is None:
        yield Part(conditions=checked)
        return
    yield from open_parts(wanted)
    for state in _wanted(FINAL, wanted):
        under = {**{name: given[name] for name in served}, "state": state.value}
        yield Part(under=under, conditions=[IS_CLOSED, *_rest(given, served), *checked])


def _within(wanted: LeaseFilter, part: Part) -> Part:
    """The part between the times of the filter."""
    since, until = times_of(wanted)
    return replace(part, since=since, until=until)


def _serving(indexes: Sequence[tuple[str, ...]], given: Mapping[str, str]) -> tuple[str, ...]:
    """The columns of the first index that there are values for, or none."""
    return next((columns for columns in indexes if given.keys() >= set(columns)), ())


def _given(wanted: LeaseFilter) -> Mapping[str, str]:
    values = {
        "run_id": wanted.run,
        "workflow": wanted.workflow,
        "step": wanted.step,
        "agent": wanted.agent,
        "grant_kind": wanted.grant_kind,
        "step_key": wanted.step_key,
        "vault_lease_id": wanted.vault_lease_id,
    }
    return {name: value for name, value in values.items() if value is not None}


def _rest(given: Mapping[str, str], served: Collection[str]) -> list[Condition]:
    """What is not served and hence checked."""
    return [unindexed(lease.c[name]) == value for name, value in given.items() if name not in served]


def _wanted(states: Set[LeaseState], wanted: LeaseFilter) -> list[LeaseState]:
    return sorted(states if wanted.states is None else states & wanted.states)


def _state_of(states: Set[LeaseState], wanted: LeaseFilter) -> list[Condition]:
    chosen = _wanted(states, wanted)
    return [] if set(chosen) == states else [lease.c.state.in_([state.value for state in chosen])]


def _checked_resource(wanted: LeaseFilter) -> list[Condition]:
    return [*_starts_with(unindexed(lease.c.resource), wanted.resource)] if wanted.resource else []


def _starts_with(column: ColumnElement[str], prefix: str) -> list[ColumnElement[bool]]:
    """A range of code points, which an index serves; LIKE would depend on the collation and on escapes."""
    end = after_prefix(prefix)
    return [column >= prefix] if end is None else [column >= prefix, column < end]

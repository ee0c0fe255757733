"""Leases by any combination of filters, newest first, each read from an index in the order of the answer.

Open leases are few: one small index holds them, and every other condition is checked on each. Closed leases are
many: there the index of a filter goes on with the state and the time, so that each final state is a part that is
read newest first and no further than the limit. For several filters together, and for a prefix of resources, the
parts are the combinations of workflow, step, agent, kind and resource that ever occurred and agree (`lease_origin`),
each with its states. So no answer sorts, or reads, more than a few times what it gives, however many leases are closed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Integer,
    RowMapping,
    Select,
    Text,
    bindparam,
    func,
    or_,
    select,
    tuple_,
)

from orchestrator.ledger.lease import FINAL, OPEN, LeaseState
from orchestrator.ledger.reading.newest_first import (
    Condition,
    Order,
    Part,
    PlacesUnder,
    Statement,
    Value,
    after_prefix,
    elements,
    newest,
    newest_time,
    place,
    placed,
    places,
    unindexed,
)
from orchestrator.ledger.states import RunState
from orchestrator.ledger.storage.tables import (
    HAS_VAULT_LEASE,
    IS_CLOSED,
    IS_OPEN,
    OF_TASK,
    ORIGIN,
    lease,
    lease_origin,
    run,
    run_owner,
)
from orchestrator.ledger.storage.times import time_to_text
from orchestrator.ledger.types import LeaseFilter

MOST_ORIGINS = 64
"""So many combinations are looked at one by one. What takes in more is met soon in the index of one of its filters, or
among the newest leases of all."""

ORDER = Order(lease, "requested_at", "lease_id")

_OF_FEW = ("step_key", "vault_lease_id", "run_id")
"""Columns of which one value has few leases: an index of their own, whatever the state."""

_OF_MANY = ("step", "workflow", "agent", "grant_kind")
"""Columns whose index goes on with the state and the time, those that leave least first."""

_NEWEST = "newest "


@dataclass(frozen=True, slots=True)
class Shape:
    """All of a filter but the values: filters of one shape share the statement, since making it is what costs."""

    given: tuple[str, ...]
    states: frozenset[LeaseState] | None
    bounds: frozenset[str]
    limit: int

    def bound(self, name: str) -> BindParameter[str] | None:
        """The place of a bound's value, where the filter has that bound."""
        return bindparam(name, type_=Text()) if name in self.bounds else None


@dataclass(frozen=True, slots=True)
class Head:
    """A part of the closed leases: those under these values, of which the newest was requested at this time."""

    under: Mapping[str, str]
    newest: str


def lease_by_id(lease_id: str) -> Select[tuple[object, ...]]:
    """The row of one lease."""
    return select(lease).where(lease.c.lease_id == lease_id)


def filtered_leases(wanted: LeaseFilter) -> Statement:
    """Newest first, from the index of one filter; the others are checked on the way.

    `since` is included, `until` is not.
    """
    shape, parameters = _asked(wanted)
    return _filtered(shape), parameters


@lru_cache(maxsize=256)
def _filtered(shape: Shape) -> Select[tuple[object, ...]]:
    return newest(ORDER, list(_parts(shape)), shape.limit)


def leases_of_task(wanted: LeaseFilter) -> Statement:
    """The leases of the calls in a task, newest first; all other parts of the filter are checked on each."""
    shape, parameters = _asked(wanted)
    since, until = shape.bound("since"), shape.bound("until")
    conditions = [*_checked(shape, None), *_state_of(set(LeaseState), shape.states)]
    conditions += [] if since is None else [lease.c.requested_at >= since]
    if until is not None:
        key = shape.bound("until_key")
        place_of = tuple_(lease.c.requested_at, lease.c.lease_id)
        conditions.append(lease.c.requested_at < until if key is None else place_of < tuple_(until, key))
    of_task = select(run.c.run_id).where(run.c.task == place("task"), OF_TASK)
    query = select(lease).where(lease.c.run_id.in_(of_task), *conditions)
    newest_first = (lease.c.requested_at.desc(), lease.c.lease_id.desc())
    return query.order_by(*newest_first).limit(shape.limit), {**parameters, **placed({"task": wanted.task or ""})}


@cache
def leases_by_ids() -> Select[tuple[object, ...]]:
    """The leases whose ids are in the JSON array `ids`, newest first."""
    wanted = lease.c.lease_id.in_(elements(bindparam("ids", type_=Text())))
    return select(lease).where(wanted).order_by(lease.c.requested_at.desc(), lease.c.lease_id.desc())


def places_in(part: Part, limit: int) -> Select[Any]:
    """Times and ids of the newest leases in a part, newest first."""
    return places(ORDER, part, limit)


def open_places(wanted: LeaseFilter) -> Statement | None:
    """Times and ids of the newest open leases that a filter asks for; None where it asks for none."""
    shape, parameters = _asked(wanted)
    statement = _open_places(shape)
    return None if statement is None else (statement, parameters)


@lru_cache(maxsize=256)
def _open_places(shape: Shape) -> Select[Any] | None:
    return next((places_in(part, shape.limit) for part in _open_parts(shape)), None)


@lru_cache(maxsize=64)
def closed_places(names: tuple[str, ...], limit: int) -> PlacesUnder:
    """Reads the closed leases under values of these columns."""
    return PlacesUnder(ORDER, names, [IS_CLOSED], limit)


def times_of(wanted: LeaseFilter) -> tuple[str | None, str | None, str | None]:
    """`since` and `until` of a filter, as times are stored, and below which id those of the very time `until` are."""
    since, until = wanted.since, None if wanted.until is None else time_to_text(wanted.until)
    key = None
    if wanted.before is not None and (until is None or time_to_text(wanted.before.requested_at) < until):
        until, key = time_to_text(wanted.before.requested_at), wanted.before.lease_id
    return (None if since is None else time_to_text(since), until, key)


def heads_of(wanted: LeaseFilter) -> Statement | None:
    """What there is of closed leases for filters that are given together, or for a prefix of resources.

    For each combination of their columns that ever occurred, at most one more than `MOST_ORIGINS`, the time of the
    newest lease in each final state: a statement and its parameters, whose rows `found_heads` reads. None where one
    filter's index does without.
    """
    shape, parameters = _asked(wanted)
    if _serving(_OF_FEW, shape) or (not wanted.resource and len(shape.given) < 2):
        return None
    return _heads(shape), parameters


@lru_cache(maxsize=256)
def _heads(shape: Shape) -> Select[tuple[object, ...]]:
    columns = [lease_origin.c[name] for name in (ORIGIN if shape.given else ("resource",))]
    conditions = [lease_origin.c[name] == place(name) for name in shape.given]
    conditions += _of_resource(lease_origin.c.resource, shape)
    found = select(*columns).where(*conditions).distinct().limit(MOST_ORIGINS + 1).subquery()
    parts = {
        state.value: _part(shape, IS_CLOSED, under={"state": state.value}) for state in _wanted(FINAL, shape.states)
    }
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


@cache
def revoking_leases() -> Select[tuple[object, ...]]:
    """The first `most` of those that are being taken back: after most tries in vain, then the longest."""
    wanted = select(lease).where(IS_OPEN, lease.c.state == LeaseState.REVOKING.value)
    hardest = (lease.c.failed_tries.desc(), lease.c.revoking_since, lease.c.lease_id)
    return wanted.order_by(*hardest).limit(bindparam("most", type_=Integer()))


def open_leases_by_state() -> Select[tuple[object, ...]]:
    """How many leases are in each open state; a state that has none is left out."""
    return select(lease.c.state, func.count().label("leases")).where(IS_OPEN).group_by(lease.c.state)


def _asked(wanted: LeaseFilter) -> tuple[Shape, Mapping[str, str]]:
    """The shape of a filter, and the parameters that make a statement of this shape the filter's."""
    values = {
        "run_id": wanted.run,
        "workflow": wanted.workflow,
        "step": wanted.step,
        "agent": wanted.agent,
        "grant_kind": wanted.grant_kind,
        "step_key": wanted.step_key,
        "vault_lease_id": wanted.vault_lease_id,
    }
    given = {name: value for name, value in values.items() if value is not None}
    since, until, key = times_of(wanted)
    prefix, end = (wanted.resource, after_prefix(wanted.resource)) if wanted.resource else (None, None)
    limits = {"prefix": prefix, "after_prefix": end, "since": since, "until": until, "until_key": key}
    bounds = {name: value for name, value in limits.items() if value is not None}
    return Shape(tuple(given), wanted.states, frozenset(bounds), wanted.limit), {**placed(given), **bounds}


def _parts(shape: Shape) -> Iterator[Part]:
    """Parts of which an index serves each, so that every lease that is wanted belongs to one."""
    if few := _serving(_OF_FEW, shape):
        has_any = [HAS_VAULT_LEASE] if few == "vault_lease_id" else []
        states = _state_of(set(LeaseState), shape.states)
        yield _part(shape, lease.c[few] == place(few), *has_any, *_checked(shape, few), *states)
        return
    served = _serving(_OF_MANY, shape)
    if not served and shape.states is None:
        yield _part(shape, *_checked(shape, None))
        return
    yield from _open_parts(shape)
    for state in _wanted(FINAL, shape.states):
        under = {**({served: place(served)} if served else {}), "state": state.value}
        yield _part(shape, IS_CLOSED, *_checked(shape, served), under=under)


def _open_parts(shape: Shape) -> Iterator[Part]:
    """The open leases that a filter asks for: one part, or none."""
    if _wanted(OPEN, shape.states):
        yield _part(shape, IS_OPEN, *_checked(shape, None), *_state_of(OPEN, shape.states))


def _part(shape: Shape, *conditions: Condition, under: Mapping[str, Value] | None = None) -> Part:
    """A part between the times of the filter."""
    since, until, key = (shape.bound(name) for name in ("since", "until", "until_key"))
    return Part(under=under or {}, conditions=conditions, since=since, until=until, until_key=key)


def _serving(indexed: Sequence[str], shape: Shape) -> str | None:
    """The first of these columns that there is a value for."""
    return next((name for name in indexed if name in shape.given), None)


def _checked(shape: Shape, served: str | None) -> list[Condition]:
    """What no index serves and is hence checked on each row."""
    equal = [unindexed(lease.c[name]) == place(name) for name in shape.given if name != served]
    return [*equal, *_of_resource(unindexed(lease.c.resource), shape)]


def _wanted(states: Set[LeaseState], chosen: Set[LeaseState] | None) -> list[LeaseState]:
    return sorted(states if chosen is None else states & chosen)


def _state_of(states: Set[LeaseState], chosen: Set[LeaseState] | None) -> list[Condition]:
    wanted = _wanted(states, chosen)
    return [] if set(wanted) == states else [lease.c.state.in_([state.value for state in wanted])]


def _of_resource(column: ColumnElement[str], shape: Shape) -> list[ColumnElement[bool]]:
    start = shape.bound("prefix")
    return [] if start is None else _between(column, start, shape.bound("after_prefix"))


def _between(column: ColumnElement[str], start: Value, end: Value | None) -> list[ColumnElement[bool]]:
    """A range of code points, which an index serves; LIKE would depend on the collation and on escapes."""
    return [column >= start] if end is None else [column >= start, column < end]

"""Leases by any combination of filters, newest first, each read from an index in the order of the answer.

Open leases are few: one small index holds them, and every other condition is checked on each. Closed leases are
many: there the index of a filter goes on with the state and the time, so that each final state is a part that is
read newest first and no further than the limit. Under a prefix of resources each resource with a state is such a
part. So no answer sorts, or reads, more than a few times what it gives, however many leases are closed.

Where several filters are given, the one that leaves least serves, and the others are checked on the way.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from dataclasses import replace

from sqlalchemy import ColumnElement, RowMapping, Select, exists, func, literal, or_, select

from orchestrator.ledger.events import RunState
from orchestrator.ledger.lease import FINAL, OPEN, LeaseState
from orchestrator.ledger.reading.newest_first import Condition, Order, Part, newest, unindexed
from orchestrator.ledger.storage.codec import time_to_text
from orchestrator.ledger.storage.tables import HAS_VAULT_LEASE, IS_CLOSED, IS_OPEN, lease, run, run_owner
from orchestrator.ledger.types import LeaseFilter

LEASE_PREFIX = "lease_"

SHORTEST_PREFIX = 6
"""Characters of a lease id, after `lease_`, that may stand for it."""

MOST_RESOURCES = 32
MOST_PARTS = 48
"""Of so many resources, and of so many with a state, an answer is put together. A prefix that takes in more is checked
on the newest leases of all, or of a filter that is given beside, where it is met soon."""

ORDER = Order(lease, "requested_at", "lease_id")

_OF_FEW = (("step_key",), ("vault_lease_id",), ("run_id",))
"""Columns of which one value has few leases: an index of their own, whatever the state."""

_OF_MANY = (("workflow", "step"), ("step",), ("workflow",), ("agent",), ("grant_kind",))
"""Columns whose index goes on with the state and the time, those that leave least first."""

ResourceState = tuple[str, LeaseState]
"""A resource, and a final state in which leases of it are."""


def lease_by_id(lease_id: str) -> Select[tuple[object, ...]]:
    """The row of one lease."""
    return select(lease).where(lease.c.lease_id == lease_id)


def leases_by_prefix(prefix: str) -> Select[tuple[object, ...]] | None:
    """At most two leases whose id starts so, with or without `lease_`; None where the prefix is too short."""
    rest = prefix.removeprefix(LEASE_PREFIX)
    if len(rest) < SHORTEST_PREFIX:
        return None
    return select(lease).where(*_starts_with(lease.c.lease_id, LEASE_PREFIX + rest)).limit(2)


def filtered_leases(
    wanted: LeaseFilter, resources: Sequence[ResourceState] | None = None
) -> Select[tuple[object, ...]]:
    """Newest first. `since` is included, `until` is not.

    `resources` are what `found_under` made of this filter; without them its resource is only checked.
    """
    since = None if wanted.since is None else time_to_text(wanted.since)
    until = None if wanted.until is None else time_to_text(wanted.until)
    parts = [replace(part, since=since, until=until) for part in _parts(wanted, resources)]
    return newest(ORDER, parts, wanted.limit)


def resources_under(wanted: LeaseFilter) -> Select[tuple[object, ...]] | None:
    """The resources of closed leases that begin as the filter says, each with its final states; one more than
    `MOST_RESOURCES` at most. None where the filter's leases are found without. Read with `found_under`.

    From each resource to the next one is a step in an index: no lease more is read than there are answers.
    """
    if not wanted.resource or _serving(_OF_FEW, _given(wanted)):
        return None
    least = select(func.min(lease.c.resource)).where(IS_CLOSED)
    under = (
        select(literal(1).label("number"), least.where(*_starts_with(lease.c.resource, wanted.resource)).label("name"))
    ).cte("under", recursive=True)
    end = after_prefix(wanted.resource)
    before_end = [] if end is None else [lease.c.resource < end]
    following = least.where(lease.c.resource > under.c.name, *before_end).scalar_subquery()
    under = under.union_all(
        select(under.c.number + 1, following).where(under.c.name.is_not(None), under.c.number <= MOST_RESOURCES)
    )
    held = (
        exists().where(IS_CLOSED, lease.c.resource == under.c.name, lease.c.state == state.value).label(state.value)
        for state in _wanted(FINAL, wanted)
    )
    return select(under.c.name, *held).where(under.c.name.is_not(None))


def found_under(rows: Sequence[RowMapping]) -> Sequence[ResourceState] | None:
    """What the rows of `resources_under` name, or None if that is too much to put an answer together from."""
    found = [
        (str(row["name"]), LeaseState(state)) for row in rows for state, held in row.items() if state != "name" and held
    ]
    return None if len(rows) > MOST_RESOURCES or len(found) > MOST_PARTS else found


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


def _parts(wanted: LeaseFilter, resources: Sequence[ResourceState] | None) -> Iterator[Part]:
    """Parts of which an index serves each, so that every lease that is wanted belongs to one."""
    given, checked = _given(wanted), _checked_resource(wanted)
    if few := _serving(_OF_FEW, given):
        found = [lease.c[name] == given[name] for name in few]
        has_any = [HAS_VAULT_LEASE] if few == ("vault_lease_id",) else []
        states = _state_of(set(LeaseState), wanted)
        yield Part(conditions=[*found, *has_any, *_rest(given, few), *states, *checked])
        return
    served = () if resources is not None else _serving(_OF_MANY, given)
    if resources is None and not served and wanted.states is None:
        yield Part(conditions=checked)
        return
    if _wanted(OPEN, wanted):
        yield Part(conditions=[IS_OPEN, *_rest(given, ()), *_state_of(OPEN, wanted), *checked])
    if resources is not None:
        for name, state in resources:
            under = {"resource": name, "state": state.value}
            yield Part(under=under, conditions=[IS_CLOSED, *_rest(given, ())])
        return
    for state in _wanted(FINAL, wanted):
        under = {**{name: given[name] for name in served}, "state": state.value}
        yield Part(under=under, conditions=[IS_CLOSED, *_rest(given, served), *checked])


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

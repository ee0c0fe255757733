"""The leases that hold places of their connections, and the attempts that wait for some: what is read of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    JSON,
    TIMESTAMP,
    BindParameter,
    ColumnElement,
    Select,
    Text,
    and_,
    bindparam,
    cast,
    func,
    literal_column,
    or_,
    select,
)

from orchestrator.ledger.lease import VAULT_REVOKED
from orchestrator.ledger.places import Places, Waiter
from orchestrator.ledger.states import RunState
from orchestrator.ledger.storage.tables import IS_OPEN, lease, lease_waiter, run, run_owner, runner
from orchestrator.ledger.storage.times import text_to_time, time_to_text

EXPIRY_MARGIN = timedelta(seconds=30)
"""So long after its TTL a lease holds its place still: Vault takes some seconds to drop a login, and the process that
noted when it ends may have another clock than the one that reads it."""

ANSWER_MARGIN = timedelta(seconds=95)
"""The same where Vault's answer was lost: Vault works on a request for 90 s at most (`max_request_duration`), and the
lease begins then at the latest."""


def places_held(dialect: str) -> Select[tuple[object, ...]]:
    """How many places of each connection are held by leases that steps and calls have, not by what looks after them.

    A lease holds its place from its request until it is closed, or certainly over by its TTL. One that Vault may yet
    be asked for by a living process is never over. What Vault has revoked holds none any more: the database is asked
    only when the run is over, and a run of several steps would wait for itself until then. Should the database say
    that the login is there all the same, the lease holds its place again.
    """
    steps_own = func.substr(lease.c.grant, literal_column("1"), literal_column("1")) != literal_column("'('")
    name = _connection(dialect)
    columns = (name.label("connection"), func.count().label("leases"))
    not_revoked = lease.c.reason != literal_column(f"'{VAULT_REVOKED}'")
    held = (IS_OPEN, steps_own, name.is_not(None), not_revoked, _not_over(dialect))
    return select(*columns).where(*held).group_by(name)


def waiters() -> Select[tuple[object, ...]]:
    """A row for each attempt and connection that it waits for, in the order of the line.

    Left out is who holds nobody up: whose process is gone, or whose run has ended.
    """
    columns = (
        *lease_waiter.c,
        run.c.workflow,
        run.c.agent,
        run.c.task,
        runner.c.process,
        runner.c.beat,
    )
    return (
        select(*columns)
        .join(runner, runner.c.runner_id == lease_waiter.c.runner_id)
        .join(run, run.c.run_id == lease_waiter.c.run_id)
        .where(
            runner.c.gone == literal_column("0"),
            run.c.state == literal_column(f"'{RunState.RUNNING.value}'"),
        )
        .order_by(*(lease_waiter.c[name] for name in ("ticket", "run_id", "step", "attempt", "connection")))
    )


def moments(now: datetime) -> dict[str, str]:
    """The parameters of `places_held`."""
    return {
        "expired_before": time_to_text(now - EXPIRY_MARGIN),
        "unanswered_before": time_to_text(now - ANSWER_MARGIN),
    }


def places_of(held: Iterable[Mapping[str, Any]], waiting: Iterable[Mapping[str, Any]]) -> Places:
    """From the rows of both statements."""
    rows: dict[tuple[int, str, str, int], list[Mapping[str, Any]]] = {}
    for row in waiting:
        rows.setdefault((row["ticket"], row["run_id"], row["step"], row["attempt"]), []).append(row)
    counted = {str(row["connection"]): int(row["leases"]) for row in held}
    return Places(counted, tuple(_waiter(of_one) for of_one in rows.values()))


def _waiter(rows: list[Mapping[str, Any]]) -> Waiter:
    first = rows[0]
    return Waiter(
        ticket=first["ticket"],
        run_id=first["run_id"],
        step=first["step"],
        attempt=first["attempt"],
        leases={row["connection"]: row["leases"] for row in rows},
        limits={row["connection"]: row["most"] for row in rows},
        since=text_to_time(first["since"]),
        workflow=first["workflow"],
        agent=first["agent"],
        task=first["task"],
        runner_id=first["runner_id"],
        process=first["process"],
        beat=first["beat"],
    )


def _connection(dialect: str) -> ColumnElement[Any]:
    if dialect == "sqlite":
        return func.json_extract(lease.c.scope, literal_column("'$.connection'"))
    return func.json_extract_path_text(cast(lease.c.scope, JSON), literal_column("'connection'"))


def _not_over(dialect: str) -> ColumnElement[bool]:
    asking = and_(lease.c.state == literal_column("'requested'"), _is_driven())
    lives = or_(asking, _ends_without_answer(dialect))
    return or_(lease.c.expires_at >= _moment("expired_before"), and_(lease.c.expires_at.is_(None), lives))


def _is_driven() -> ColumnElement[bool]:
    """Whether a process that nobody takes for dead drives the run of a lease."""
    living = and_(runner.c.runner_id == run_owner.c.runner_id, runner.c.gone == literal_column("0"))
    owned: Select[tuple[int]] = select(literal_column("1")).select_from(run_owner).join(runner, living)
    return owned.where(run_owner.c.run_id == lease.c.run_id).correlate(lease).exists()


def _ends_without_answer(dialect: str) -> ColumnElement[bool]:
    """Whether the TTL of a lease, from when nobody asked for it any more, ends after `unanswered_before`."""
    asked, before = func.coalesce(lease.c.revoking_since, lease.c.requested_at), _moment("unanswered_before")
    if dialect == "sqlite":
        days = lease.c.ttl / literal_column("86400.0")
        return func.julianday(asked) + days >= func.julianday(before)
    seconds = lease.c.ttl * literal_column("interval '1 second'")
    moment = TIMESTAMP(timezone=True)
    return cast(asked, moment) + seconds >= cast(before, moment)


def _moment(name: str) -> BindParameter[str]:
    return bindparam(name, type_=Text())

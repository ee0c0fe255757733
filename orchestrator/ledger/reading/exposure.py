"""How long credentials were held, added up by the database over a range of the index of time."""

from __future__ import annotations

from functools import cache

from sqlalchemy import Float, RowMapping, Select, Text, bindparam, case, cast, extract, func, literal_column, select
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.types import TIMESTAMP

from orchestrator.ledger.findings import Exposure
from orchestrator.ledger.storage.tables import lease

STEP_TOKEN = "step-token"  # noqa: S105 -- a kind of lease
"""What the leases of an attempt hang from: it gives access to nothing but them."""


@cache
def exposure_between(dialect: str) -> Select[tuple[object, ...]]:
    """Of what was asked for between `since` and `until` and issued; of what is still open only how many there are."""
    held = _seconds(dialect)
    count = func.count()
    return (
        select(
            lease.c.workflow,
            lease.c.agent,
            lease.c.resource,
            count.label("leases"),
            func.sum(case((lease.c.closed_at.is_(None), 1), else_=0)).label("open"),
            func.coalesce(func.sum(held), 0.0).label("seconds"),
            func.coalesce(func.max(held), 0.0).label("longest"),
        )
        .where(lease.c.requested_at >= bindparam("since", type_=Text()))
        .where(lease.c.requested_at < bindparam("until", type_=Text()))
        .where(lease.c.issued_at.is_not(None), lease.c.grant_kind != literal_column(f"'{STEP_TOKEN}'"))
        .group_by(lease.c.workflow, lease.c.agent, lease.c.resource)
    )


def _seconds(dialect: str) -> ColumnElement[float]:
    """From when it was issued until it was gone; null while it is not."""
    if dialect == "sqlite":
        return (func.julianday(lease.c.closed_at) - func.julianday(lease.c.issued_at)) * 86400.0
    span = cast(lease.c.closed_at, TIMESTAMP(timezone=True)) - cast(lease.c.issued_at, TIMESTAMP(timezone=True))
    return cast(extract("epoch", span), Float)


def exposure_record(row: RowMapping) -> Exposure:
    """From a row of the statement."""
    return Exposure(
        workflow=row["workflow"],
        agent=row["agent"],
        resource=row["resource"],
        leases=int(row["leases"]),
        open=int(row["open"]),
        seconds=max(0.0, float(row["seconds"])),
        longest=max(0.0, float(row["longest"])),
    )

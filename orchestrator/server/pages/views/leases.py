"""Leases: who held what, and when it was gone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from urllib.parse import urlencode

from orchestrator.errors import LedgerError, UsageError
from orchestrator.evidence.export.spreadsheet import END, csv_row
from orchestrator.ledger.lease import OPEN, LeaseState
from orchestrator.ledger.states import IdKind
from orchestrator.ledger.types import LeaseFilter, LeaseRecord
from orchestrator.presentation.events import gone
from orchestrator.presentation.terms import scope_or_json
from orchestrator.server.pages.answers import Asked, Download, NotThere, Page, address
from orchestrator.server.pages.drawing.timeline import held_seconds
from orchestrator.server.pages.sources import Sources
from orchestrator.server.pages.views.evidence import signed
from orchestrator.server.pages.views.listing import ROWS, begins_so, listed
from orchestrator.server.pages.views.receipts import has_receipt
from orchestrator.server.pages.views.runs import sentence

OPEN_STATES = "open"
"""A choice beside the states: all that are not confirmed gone."""

ROWS_AT_ONCE = 1000

VIEWS: Mapping[str, Mapping[str, str]] = {
    "Not confirmed gone": {"state": OPEN_STATES},
    "Being taken back": {"state": LeaseState.REVOKING},
    "Over, secret still valid": {"state": LeaseState.ENDED},
    "Last 24 hours": {"since": "24h"},
}
"""What people look for most, as the filters of it."""

COLUMNS = (
    "lease", "run", "workflow", "step", "attempt", "grant", "kind", "agent", "resource", "scope", "subject", "state",
    "requested", "issued", "expires", "closed", "held_seconds", "reason",
)  # fmt: skip


def list_leases(sources: Sources, asked: Asked) -> Page:
    """The newest that agree with the filters."""
    found = sources.reader.leases(replace(_filter(sources, asked), limit=ROWS + 1))
    return Page(
        "leases.html",
        {
            "asked": asked,
            "page": listed(asked, found, lambda lease: lease.lease_id),
            "states": [OPEN_STATES, *LeaseState],
            "made": _views(asked),
            "workflows": sources.reader.workflows(200),
            "csv": asked.under(f"{asked.path}.csv", before=None),
            "held": held_seconds,
            "now": sources.clock.now(),
        },
    )


def _views(asked: Asked) -> Sequence[tuple[str, str, bool]]:
    """Of each view its name, its address, and whether it is the one that is asked for."""
    present = {name: value for name, value in asked.given().items() if name != "before"}
    return [(name, f"{address('leases')}?{urlencode(query)}", query == present) for name, query in VIEWS.items()]


def _filter(sources: Sources, asked: Asked) -> LeaseFilter:
    before = asked.text("before")
    after = None if before is None else sources.reader.lease(before)
    if before is not None and after is None:
        raise UsageError("the lease with which the page before ended is not in this ledger", hint="begin at the newest")
    return LeaseFilter(
        run=asked.text("run"),
        workflow=asked.text("workflow"),
        step=asked.text("step"),
        agent=asked.text("agent"),
        states=_states(asked),
        resource=asked.text("resource"),
        grant_kind=asked.text("kind"),
        since=asked.moment("since"),
        until=asked.moment("until"),
        before=after,
    )


def _states(asked: Asked) -> frozenset[LeaseState] | None:
    if asked.text("state") == OPEN_STATES:
        return OPEN
    state = asked.one_of("state", LeaseState)
    return None if state is None else frozenset({state})


def show_lease(sources: Sources, asked: Asked) -> Page:
    """One lease and its life."""
    text = asked.names["lease"]
    lease = sources.reader.lease(text)
    if lease is None:
        hint = "It may be in another ledger. The list of leases shows those of this one."
        missing = NotThere(f"No lease {text} is in this ledger.", hint=hint)
        raise begins_so(sources, IdKind.LEASE, "leases", text, missing)
    events = sources.reader.events(lease.run_id, lease_id=lease.lease_id)
    run = sources.reader.run(lease.run_id)
    found = signed(sources, lease.run_id) if lease.closed_at else None
    return Page(
        "lease.html",
        {
            "asked": asked,
            "lease": lease,
            "task": run.task if run is not None else None,
            "life": [(each, sentence(each, {lease.lease_id: ""})) for each in events],
            "gone": gone(events, UTC),
            "signed": found,
            "has_receipt": has_receipt(lease, events, found),
            "held": held_seconds(lease, sources.clock.now()),
        },
    )


def download_leases(sources: Sources, asked: Asked) -> Download:
    """All that agree with the filters, newest first, as CSV (RFC 4180)."""
    wanted = _filter(sources, asked)
    stamp = sources.clock.now().astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")
    return Download(f"leases-{stamp}.csv", "text/csv; charset=utf-8", _csv(sources, wanted, stamp))


def _csv(sources: Sources, wanted: LeaseFilter, stamp: str) -> Iterator[bytes]:
    """Ends with a row that says so, and how many there were: a file without it is not whole."""
    yield csv_row(COLUMNS).encode()
    now, count = sources.clock.now(), 0
    wanted = replace(wanted, limit=ROWS_AT_ONCE)
    while True:
        try:
            found = sources.reader.leases(wanted)
        except LedgerError:
            yield csv_row(["#not-complete: the ledger did not answer any more", f"leases={count}"]).encode()
            return
        count += len(found)
        yield "".join(csv_row(_cells(lease, now)) for lease in found).encode()
        if len(found) < ROWS_AT_ONCE:
            break
        wanted = replace(wanted, before=found[-1])
    yield csv_row([END, f"leases={count}", f"as_of={stamp}"]).encode()


def _cells(lease: LeaseRecord, now: datetime) -> Sequence[str]:
    return (
        lease.lease_id,
        lease.run_id,
        lease.workflow,
        lease.step,
        str(lease.attempt),
        lease.grant,
        lease.grant_kind,
        lease.agent,
        lease.resource,
        scope_or_json(lease.scope),
        lease.subject,
        lease.state.value,
        _time(lease.requested_at),
        _time(lease.issued_at),
        _time(lease.expires_at),
        _time(lease.closed_at),
        f"{held_seconds(lease, now):.3f}" if lease.issued_at else "",
        lease.reason,
    )


def _time(moment: datetime | None) -> str:
    return "" if moment is None else moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")

"""The receipt of a lease: to be read, and as the document that proves it. Made of what is signed already."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from markupsafe import Markup

from orchestrator.errors import UsageError
from orchestrator.evidence.receipts import SUFFIX, receipt
from orchestrator.jsontypes import JsonObject
from orchestrator.ledger.states import IdKind
from orchestrator.ledger.types import EventRecord, LeaseRecord
from orchestrator.presentation.receipt_page import Beside, receipt_content
from orchestrator.server.pages.answers import Asked, Download, NotThere, Page, address
from orchestrator.server.pages.sources import Sources
from orchestrator.server.pages.views.evidence import Signed, signed
from orchestrator.server.pages.views.listing import begins_so

MOST_EVENTS = 5000
"""Of a run: a receipt holds all of them, and whoever wants one of more has the command line."""


def has_receipt(lease: LeaseRecord, life: Sequence[EventRecord], found: Signed | None) -> bool:
    """Whether there is one of a lease, and it can be made here."""
    over = lease.closed_at is not None and bool(life)
    return over and found is not None and found.fits and life[-1].seq <= found.seq <= MOST_EVENTS


def show_receipt(sources: Sources, asked: Asked) -> Page:
    """As a page, with a link to the document."""
    lease, made = _made(sources, asked)
    beside = Beside(_name(lease.lease_id), f"{address('leases', lease.lease_id)}/receipt.json")
    content = Markup(receipt_content(made, beside))  # noqa: S704 -- every text in it is escaped
    return Page("receipt.html", {"asked": asked, "lease": lease, "content": content})


def download_receipt(sources: Sources, asked: Asked) -> Download:
    """As `history verify` takes it."""
    lease, made = _made(sources, asked)
    text = json.dumps(made, indent=2, ensure_ascii=False) + "\n"
    return Download(_name(lease.lease_id), "application/json", iter([text.encode()]))


def _made(sources: Sources, asked: Asked) -> tuple[LeaseRecord, JsonObject]:
    """Raises NotThere, UnknownRun where its end is not signed yet, and UsageError where it is open or far too long."""
    text = asked.names["lease"]
    lease = sources.reader.lease(text)
    if lease is None:
        missing = NotThere(f"No lease {text} is in this ledger.", hint="The list of leases shows those of this one.")
        raise begins_so(sources, IdKind.LEASE, "leases", text, missing)
    found = signed(sources, lease.run_id)
    if found is not None and found.seq > MOST_EVENTS:
        raise UsageError(
            f"the run of this lease has more than {MOST_EVENTS:,} events, all of which its receipt holds",
            hint=f"`orchestrator leases receipt {lease.lease_id}` makes it",
        )
    return lease, receipt(sources.reader, sources.log, lease.lease_id)


def _name(lease_id: str) -> str:
    """A file's name, whatever somebody called the lease."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", lease_id) + SUFFIX

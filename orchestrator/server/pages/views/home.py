"""The overview: what is not over and somebody may have to look at, then what ran last; and the search box."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlencode

from orchestrator.ledger.ids import LOGIN_PREFIX, step_key_of
from orchestrator.ledger.lease import LeaseState
from orchestrator.ledger.reading.id_lookup import beginnings
from orchestrator.ledger.states import ApprovalState, IdKind, RunState
from orchestrator.ledger.types import LeaseFilter, RunFilter
from orchestrator.presentation.approvals import wanted
from orchestrator.server.pages.answers import Asked, Elsewhere, Page, address
from orchestrator.server.pages.sources import Sources
from orchestrator.server.pages.views.listing import ROWS

SHOWN = 15
"""Rows of each part; of what is being taken back, and of what cannot be, there are `ROWS` together."""

TRIES = 3
"""After so many failed tries a lease stands among those that do not go."""

_KINDS = ((IdKind.RUN, "runs"), (IdKind.LEASE, "leases"), (IdKind.TASK, "tasks"), (IdKind.APPROVAL, "approvals"))

Found = tuple[str, str, str]
"""What it is, its id, and its address."""


def home(sources: Sources, asked: Asked) -> Page:
    """The overview."""
    reader, now = sources.reader, sources.clock.now()
    revoking, counts = reader.revoking_leases(ROWS), reader.open_lease_counts()
    waiting = reader.newest_runs(RunFilter(state=RunState.WAITING, everything=True, limit=SHOWN + 1))
    approvals = sources.approvals.all(state=ApprovalState.OPEN, limit=SHOWN + 1)
    return Page(
        "home.html",
        {
            "asked": asked,
            "stuck": [lease for lease in revoking if lease.failed_tries >= TRIES],
            "revoking": [lease for lease in revoking if lease.failed_tries < TRIES],
            "revoking_more": max(0, counts[LeaseState.REVOKING] - len(revoking)),
            "waiting": waiting[:SHOWN],
            "waiting_more": len(waiting) > SHOWN,
            "approvals": approvals[:SHOWN],
            "approvals_more": len(approvals) > SHOWN,
            "wanted": wanted,
            "runs": reader.newest_runs(RunFilter(limit=SHOWN)),
            "counts": counts,
            "now": now,
        },
    )


def search(sources: Sources, asked: Asked) -> Page:
    """What the text is, or begins: where it is one thing, its page."""
    text = asked.text("q")
    found = [] if text is None else list(dict.fromkeys(_found(sources, text)))
    if len(found) == 1:
        raise Elsewhere(found[0][2])
    return Page(
        "search.html",
        {"asked": asked, "text": text or "", "found": found, "most": SHOWN if len(found) >= SHOWN else 0},
        200 if found or not text else 404,
    )


def _found(sources: Sources, text: str) -> Iterator[Found]:
    """An id as it is before its beginnings; then other names that a lease has; then names of workflows."""
    reader = sources.reader
    for kind, path in _KINDS:
        if text in reader.ids(kind, [text], 1):
            yield kind.value, text, address(path, text)
            return
    yield from _by_names(sources, text)
    for kind, path in _KINDS:
        starts = beginnings(kind, text)
        for each in reader.ids(kind, starts, SHOWN) if starts else ():
            yield kind.value, each, address(path, each)
    if text in reader.workflows(1000):
        yield "workflow", text, f"{address('runs')}?{urlencode({'workflow': text})}"


def _by_names(sources: Sources, text: str) -> Iterator[Found]:
    """A lease's id at Vault, its step key, or the login in which that is: `orc_STEPKEY_` and eight characters."""
    keys = {text}
    if text.startswith(LOGIN_PREFIX):
        keys |= {text.removeprefix(LOGIN_PREFIX), step_key_of(text)}
    wanted = [
        LeaseFilter(vault_lease_id=text, limit=SHOWN),
        *(LeaseFilter(step_key=key, limit=SHOWN) for key in sorted(keys)),
    ]
    for each in wanted:
        for lease in sources.reader.leases(each):
            yield "lease", lease.lease_id, address("leases", lease.lease_id)

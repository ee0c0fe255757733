"""Pages about what went wrong."""

from __future__ import annotations

import logging

from starlette.responses import HTMLResponse, Response

from orchestrator.approvals.people import Unproven
from orchestrator.errors import LedgerError, Refused, UnknownRun, UsageError
from orchestrator.server.pages.answers import NotThere, Page
from orchestrator.server.pages.rendering import rendered
from orchestrator.server.pages.sessions import Session
from orchestrator.vault.faults import VaultRefused, VaultUnavailable

log = logging.getLogger(__name__)

_TITLES = {
    400: "That cannot be asked",
    401: "Not logged in",
    403: "Not yours",
    404: "Not found",
    405: "Not possible",
    503: "Not now",
}


def troubled(error: Exception, session: Session | None) -> Response:
    """A page about what went wrong, with no text of it but what is written for people."""
    if isinstance(error, NotThere | UnknownRun):
        return problem(404, error.message, error.hint or "", session)
    if isinstance(error, Unproven):
        return problem(401, error.message, error.hint or "", session)
    if isinstance(error, Refused) and not isinstance(error, VaultRefused):
        return problem(403, error.message, error.hint or "", session)
    if isinstance(error, UsageError):
        return problem(400, error.message, error.hint or "", session)
    if isinstance(error, LedgerError):
        log.warning("a page cannot be made: %s", error.message)
        return problem(
            503, "The ledger does not answer now.", "Runs may go on all the same. Try again in a moment.", session
        )
    if isinstance(error, VaultRefused | VaultUnavailable):
        log.warning("a page cannot be made: %s", error.message)
        return problem(503, "Vault does not answer this now.", "Nothing was changed. Try again in a moment.", session)
    log.error("a page cannot be made", exc_info=error)
    return problem(500, "This page could not be made.", "The log of `orchestrator serve` says why.", session)


def problem(status: int, message: str, hint: str, session: Session | None = None, *, login: str = "") -> Response:
    """A page that says what is wrong, and what to do. `login`: the page to come back to from the login."""
    title = _TITLES.get(status, "Something went wrong")
    page = Page("problem.html", {"title": title, "message": message, "hint": hint, "login": login}, status)
    return HTMLResponse(rendered(page, session), status, headers={"Retry-After": "5"} if status == 503 else None)

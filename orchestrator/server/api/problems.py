"""What went wrong, as a problem of RFC 9457 with a stable type. Nothing in it is secret."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from starlette.responses import JSONResponse

from orchestrator.agents.authentication import CallerRefused
from orchestrator.errors import (
    AgentBlocked,
    BudgetSpent,
    LedgerError,
    NotAsRecorded,
    NotRenewed,
    OrchestratorError,
    PolicyDenied,
    Refused,
    TaskEnded,
    UnknownRun,
    UnknownTask,
    Unreachable,
    UsageError,
)
from orchestrator.jsontypes import JsonValue
from orchestrator.pep.errors import IssuerUnreachable, TokenRefused
from orchestrator.tasks.errors import KeyUsed, UnknownTool

log = logging.getLogger(__name__)

PREFIX = "urn:credential-orchestrator:problem:"


class Kind(StrEnum):
    """The last part of a problem's `type`. None is ever given another meaning."""

    MALFORMED = "malformed-request"
    INVALID = "invalid-request"
    UNAUTHENTICATED = "unauthenticated"
    NOT_ALLOWED = "not-allowed"
    DENIED = "denied"
    CUT_OFF = "agent-cut-off"
    NOT_FOUND = "not-found"
    NO_SUCH_METHOD = "method-not-allowed"
    TASK_ENDED = "task-ended"
    BUDGET_SPENT = "budget-spent"
    KEY_USED = "idempotency-key-used"
    NOT_RENEWED = "not-renewed"
    TOO_LARGE = "too-large"
    TOO_MANY = "too-many-requests"
    UNAVAILABLE = "unavailable"
    DRAINING = "draining"
    DEFECT = "defect"


STATUS = {
    Kind.MALFORMED: 400,
    Kind.INVALID: 422,
    Kind.UNAUTHENTICATED: 401,
    Kind.NOT_ALLOWED: 403,
    Kind.DENIED: 403,
    Kind.CUT_OFF: 403,
    Kind.NOT_FOUND: 404,
    Kind.NO_SUCH_METHOD: 405,
    Kind.TASK_ENDED: 409,
    Kind.BUDGET_SPENT: 409,
    Kind.KEY_USED: 409,
    Kind.NOT_RENEWED: 409,
    Kind.TOO_LARGE: 413,
    Kind.TOO_MANY: 429,
    Kind.UNAVAILABLE: 503,
    Kind.DRAINING: 503,
    Kind.DEFECT: 500,
}

_TITLES = {
    Kind.MALFORMED: "The request is not well-formed",
    Kind.INVALID: "The request is not valid",
    Kind.UNAUTHENTICATED: "It is not known who calls",
    Kind.NOT_ALLOWED: "The agent may not do this",
    Kind.DENIED: "Denied",
    Kind.CUT_OFF: "The agent is cut off",
    Kind.NOT_FOUND: "Not found",
    Kind.NO_SUCH_METHOD: "Not with this method",
    Kind.TASK_ENDED: "The task has ended",
    Kind.BUDGET_SPENT: "A budget is spent",
    Kind.KEY_USED: "The key belongs to another call",
    Kind.NOT_RENEWED: "The credential lives no longer",
    Kind.TOO_LARGE: "The request is too large",
    Kind.TOO_MANY: "Too many requests",
    Kind.UNAVAILABLE: "Not now",
    Kind.DRAINING: "This process is about to end",
    Kind.DEFECT: "A defect of the orchestrator",
}

_KINDS: tuple[tuple[type[Exception], Kind], ...] = (
    (UnknownTask, Kind.NOT_FOUND),
    (UnknownTool, Kind.NOT_FOUND),
    (UnknownRun, Kind.NOT_FOUND),
    (KeyUsed, Kind.KEY_USED),
    (NotAsRecorded, Kind.DEFECT),
    (UsageError, Kind.INVALID),
    (TaskEnded, Kind.TASK_ENDED),
    (BudgetSpent, Kind.BUDGET_SPENT),
    (NotRenewed, Kind.NOT_RENEWED),
    (AgentBlocked, Kind.CUT_OFF),
    (CallerRefused, Kind.UNAUTHENTICATED),
    (TokenRefused, Kind.UNAUTHENTICATED),
    (Refused, Kind.DENIED),
    (LedgerError, Kind.UNAVAILABLE),
    (Unreachable, Kind.UNAVAILABLE),
)


_GENERIC = {
    Kind.UNAVAILABLE: "a service that the orchestrator needs does not answer now",
    Kind.DEFECT: "what is on record of the task is not what was recorded",
}


@dataclass(frozen=True)
class Problem(Exception):
    """Raised where a request ends with one. `more` are further members."""

    kind: Kind
    detail: str
    hint: str | None = None
    more: Mapping[str, JsonValue] | None = None
    headers: Mapping[str, str] | None = None

    def response(self) -> JSONResponse:
        """As it is sent."""
        document = {
            "type": PREFIX + self.kind.value,
            "title": _TITLES[self.kind],
            "status": STATUS[self.kind],
            "detail": self.detail,
            **({"hint": self.hint} if self.hint else {}),
            **(self.more or {}),
        }
        return JSONResponse(
            document,
            status_code=STATUS[self.kind],
            media_type="application/problem+json",
            headers={"Cache-Control": "no-store", **(self.headers or {})},
        )


def problem_of(error: Exception) -> Problem:
    """What a caller is told of an error. What nobody foresaw is told to the log, and to them only that it was."""
    if isinstance(error, Problem):
        return error
    for kind_of_error, kind in _KINDS:
        if isinstance(error, kind_of_error):
            assert isinstance(error, OrchestratorError)
            if kind in _GENERIC:  # addresses, paths and what a server said are for whoever runs this
                log.warning("a request ended: %s", error.message)
                return Problem(kind, _GENERIC[kind], headers=_headers(kind, error))
            return Problem(kind, error.message, error.hint, _more(error), _headers(kind, error))
    log.error("a request ended with %s", type(error).__name__)
    log.debug("a request ended with a defect", exc_info=error)
    return Problem(Kind.DEFECT, f"unexpected {type(error).__name__}")


def _more(error: OrchestratorError) -> Mapping[str, JsonValue]:
    more: dict[str, JsonValue] = {"by": error.by} if isinstance(error, Refused) else {}
    return more | ({"reasons": list(error.reasons)} if isinstance(error, PolicyDenied) else {})


def _headers(kind: Kind, error: OrchestratorError) -> Mapping[str, str]:
    if kind is Kind.UNAUTHENTICATED:
        invalid = ' error="invalid_token"' if isinstance(error, TokenRefused) else ""
        return {"WWW-Authenticate": f'Bearer realm="orchestrator"{"," if invalid else ""}{invalid}'}
    if kind is Kind.UNAVAILABLE:
        return {"Retry-After": str(error.retry_after if isinstance(error, IssuerUnreachable) else 1)}
    return {}

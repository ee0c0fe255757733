"""What a broker answers instead of what was asked for. No text of an error holds a credential or the agent's token."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import httpx

from orchestrator.errors import OrchestratorError

PREFIX = "urn:credential-orchestrator:problem:"

AGAIN = frozenset({429, 502, 503, 504})
"""Statuses after which the same request is worth trying again."""


class BrokerError(OrchestratorError):
    """Base of all that is raised here.

    `type` is the URN of the problem and `status` the answer's; empty and 0 where there was no problem in an answer.
    `more` are the further members of the problem.
    """

    def __init__(
        self,
        detail: str,
        *,
        hint: str | None = None,
        type: str = "",
        status: int = 0,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(detail, hint=hint)
        self.type = type
        self.status = status
        self.more = more or {}

    @property
    def detail(self) -> str:
        """What happened."""
        return self.message


class InvalidRequest(BrokerError):
    """Inputs or arguments that are not as the type of the task, or the tool, declares them."""


class Unauthenticated(BrokerError):
    """The broker does not know who calls: the token is not believed, has expired, or is nobody's."""


class NotAllowed(BrokerError):
    """The agent may not open tasks of this type."""


class Denied(BrokerError):
    """Somebody who may say no said no, for this call or this task."""

    @property
    def by(self) -> str:
        """Who: `policy`, `vault`, `orchestrator` or `service`."""
        return str(self.more.get("by", ""))

    @property
    def reasons(self) -> tuple[str, ...]:
        """The policy's own words."""
        return tuple(str(each) for each in self.more.get("reasons") or ())


class CutOff(BrokerError):
    """The agent is cut off: everything of it has been taken back."""


class NotFound(BrokerError):
    """There is no such task, tool or lease of the agent's."""


class TaskClosed(BrokerError):
    """The task has ended: it was closed, is past its deadline, or was idle for too long."""


class BudgetSpent(BrokerError):
    """The tool was called as often as a task allows, or as many of its calls are open as may be."""


class NotRenewed(BrokerError):
    """A credential lives no longer than it does: it has ended, or its tool does not let it be renewed."""


class TooManyRequests(BrokerError):
    """The agent asks too often, and did so until there was no time left to try again."""


class Unavailable(BrokerError):
    """The broker was not reached, or could not serve, until there was no time left to try again."""


class CallFailed(BrokerError):
    """The tool's action has failed. `kind` says how, in one word."""

    @property
    def kind(self) -> str:
        """The kind of failure, such as `http_status`."""
        return str(self.more.get("kind", ""))


class CallCancelled(BrokerError):
    """The call was ended before it was done."""


class Unconfirmed(BrokerError):
    """Something was given back or closed, and it is not confirmed that everything of it is gone."""


class ApprovalPending(BrokerError):
    """Somebody has to agree first. Nothing is held meanwhile; the call goes on when it is asked for again.

    `resume` and `wait` give what the call would have given: an output, or the open `Handover`. In an `AsyncTask` they
    are awaited. Both raise this again while nobody has agreed, and Denied where somebody has refused.
    """

    again: Callable[[float], Any]
    """Ask again, for so many seconds."""

    def __init__(self, detail: str, *, approval: str, call: Any) -> None:
        super().__init__(detail, hint=f"`orchestrator approvals approve {approval}` agrees to it", status=202)
        self.approval = approval
        self.call = call

    def resume(self) -> Any:
        """Ask once more."""
        return self.again(0.0)

    def wait(self, seconds: float) -> Any:
        """Ask again and again, for so many seconds at most."""
        return self.again(seconds)


_KINDS: Mapping[str, type[BrokerError]] = {
    "malformed-request": InvalidRequest,
    "invalid-request": InvalidRequest,
    "too-large": InvalidRequest,
    "idempotency-key-used": InvalidRequest,
    "unauthenticated": Unauthenticated,
    "not-allowed": NotAllowed,
    "denied": Denied,
    "agent-cut-off": CutOff,
    "not-found": NotFound,
    "task-ended": TaskClosed,
    "budget-spent": BudgetSpent,
    "not-renewed": NotRenewed,
    "too-many-requests": TooManyRequests,
    "unavailable": Unavailable,
    "draining": Unavailable,
}
"""By the last part of a problem's type. A `defect`, and whatever is not known here, is a BrokerError."""


def error_of(response: httpx.Response) -> BrokerError:
    """What an answer other than 2xx means. An answer that is no problem of RFC 9457 is of somebody on the way."""
    status = response.status_code
    problem = _problem(response)
    urn = str(problem.get("type") or problem.get("problem") or "")
    if (code := _CODES.get(str(problem.get("error")))) and not urn:
        return code(str(problem.get("error_description") or problem["error"]), status=status, more=problem)
    if not urn.startswith(PREFIX):
        kind = Unavailable if status in AGAIN else BrokerError
        return kind(f"{response.url.host} answered {status}, and not as a broker does", status=status)
    return _KINDS.get(urn.removeprefix(PREFIX), BrokerError)(
        str(problem.get("detail") or problem.get("error_description") or problem.get("title") or urn),
        hint=None if problem.get("hint") is None else str(problem["hint"]),
        type=urn,
        status=status,
        more={name: value for name, value in problem.items() if name not in _STANDARD},
    )


_CODES: Mapping[str, type[BrokerError]] = {
    "invalid_request": InvalidRequest,
    "invalid_scope": InvalidRequest,
    "invalid_target": InvalidRequest,
    "invalid_authorization_details": InvalidRequest,
    "invalid_dpop_proof": InvalidRequest,
    "unsupported_grant_type": InvalidRequest,
    "authorization_pending": BrokerError,
    "server_error": CallFailed,
}
"""By the `error` of OAuth (RFC 6749, 5.2), where that is all that there is: no problem of the API."""

_STANDARD = frozenset({"type", "title", "status", "detail", "hint"})


def _problem(response: httpx.Response) -> Mapping[str, Any]:
    try:
        found = response.json()
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}

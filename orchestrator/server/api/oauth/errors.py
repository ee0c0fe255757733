"""What went wrong, as the standards say it (RFC 6749, 5.2; RFC 8693, 2.2.2). Nothing in it is secret."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from starlette.responses import JSONResponse

from orchestrator.jsontypes import JsonValue
from orchestrator.server.api.problems import PREFIX, STATUS, Kind, Problem, problem_of

NO_STORE = {"Cache-Control": "no-store", "Pragma": "no-cache"}
"""RFC 6749, 5.1."""

_NOT_SAYABLE = re.compile(r"[^\x20-\x21\x23-\x5b\x5d-\x7e]")
"""What no description may hold (RFC 6749, 5.2)."""


class Code(StrEnum):
    """The member `error`."""

    INVALID_REQUEST = "invalid_request"
    INVALID_CLIENT = "invalid_client"
    INVALID_GRANT = "invalid_grant"
    UNAUTHORIZED_CLIENT = "unauthorized_client"
    UNSUPPORTED_GRANT_TYPE = "unsupported_grant_type"
    INVALID_SCOPE = "invalid_scope"
    INVALID_TARGET = "invalid_target"
    INVALID_DETAILS = "invalid_authorization_details"
    INVALID_PROOF = "invalid_dpop_proof"
    ACCESS_DENIED = "access_denied"
    PENDING = "authorization_pending"
    INSUFFICIENT_SCOPE = "insufficient_scope"
    UNAVAILABLE = "temporarily_unavailable"
    SERVER_ERROR = "server_error"


_OF_KINDS = {
    Kind.MALFORMED: Code.INVALID_REQUEST,
    Kind.INVALID: Code.INVALID_DETAILS,
    Kind.UNAUTHENTICATED: Code.INVALID_CLIENT,
    Kind.NOT_ALLOWED: Code.UNAUTHORIZED_CLIENT,
    Kind.DENIED: Code.ACCESS_DENIED,
    Kind.CUT_OFF: Code.UNAUTHORIZED_CLIENT,
    Kind.NOT_FOUND: Code.INVALID_GRANT,
    Kind.TASK_ENDED: Code.INVALID_GRANT,
    Kind.BUDGET_SPENT: Code.ACCESS_DENIED,
    Kind.KEY_USED: Code.INVALID_REQUEST,
    Kind.TOO_LARGE: Code.INVALID_REQUEST,
    Kind.TOO_MANY: Code.UNAVAILABLE,
    Kind.UNAVAILABLE: Code.UNAVAILABLE,
    Kind.DRAINING: Code.UNAVAILABLE,
}
"""What a problem of the API is called here; any other is a defect."""

_OWN_STATUS = frozenset({Kind.UNAUTHENTICATED, Kind.TOO_LARGE, Kind.TOO_MANY, Kind.UNAVAILABLE, Kind.DRAINING})


@dataclass(frozen=True)
class OAuthError(Exception):
    """Raised where a request ends with one. `more` are further members, which a client that does not know them ignores
    (RFC 6749, 5.1): `problem` has the type of the API's problem that it is."""

    code: Code
    description: str
    status: int = 400
    more: Mapping[str, JsonValue] | None = None
    headers: Mapping[str, str] | None = None

    def response(self) -> JSONResponse:
        """As it is sent."""
        description = _NOT_SAYABLE.sub("?", self.description.replace('"', "'").replace("\\", "/").replace("\n", "; "))
        return JSONResponse(
            {"error": self.code.value, "error_description": description, **(self.more or {})},
            status_code=self.status,
            headers={**NO_STORE, **(self.headers or {})},
        )


def oauth_error_of(error: Exception) -> OAuthError:
    """What a client is told of an error; the same as at the other doors, in the words of this one."""
    return error if isinstance(error, OAuthError) else of_problem(problem_of(error))


def of_problem(problem: Problem) -> OAuthError:
    """The same in the words of OAuth."""
    kind = problem.kind
    more = {"problem": PREFIX + kind.value, **({"hint": problem.hint} if problem.hint else {}), **(problem.more or {})}
    if kind not in _OF_KINDS:
        return OAuthError(Code.SERVER_ERROR, problem.detail, 500, more, problem.headers)
    status = STATUS[kind] if kind in _OWN_STATUS else 400
    return OAuthError(_OF_KINDS[kind], problem.detail, status, more, problem.headers)


def of_kind(kind: Kind) -> Mapping[str, JsonValue]:
    """The further member that says which problem of the API it is."""
    return {"problem": PREFIX + kind.value}

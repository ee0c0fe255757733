"""Errors as Google's APIs write them (AIP-193, with the older `errors` that the Gmail API still has)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from starlette.responses import JSONResponse

SERVICE = "gmail.googleapis.com"
REALM = "https://accounts.google.com/"
_ERROR_INFO = "type.googleapis.com/google.rpc.ErrorInfo"
_SIGN_IN = "See https://developers.google.com/identity/sign-in/web/devconsole-project."
_EXPECTED = f"Expected OAuth 2 access token, login cookie or other valid authentication credential. {_SIGN_IN}"
_OF_STATUS = {
    400: ("INVALID_ARGUMENT", "badRequest"),
    401: ("UNAUTHENTICATED", "authError"),
    403: ("PERMISSION_DENIED", "forbidden"),
    404: ("NOT_FOUND", "notFound"),
    429: ("RESOURCE_EXHAUSTED", "rateLimitExceeded"),
    500: ("INTERNAL", "backendError"),
    503: ("UNAVAILABLE", "backendError"),
}


class ApiError(Exception):
    """The call failed. `message` and `reason` are what clients show and decide by."""

    def __init__(
        self,
        code: int,
        message: str,
        *,
        status: str | None = None,
        reason: str | None = None,
        short: str | None = None,
        at_header: bool = False,
        details: Sequence[Mapping[str, Any]] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        usual_status, usual_reason = _OF_STATUS.get(code, ("UNKNOWN", "unknown"))
        self.code = code
        self.reason = reason or usual_reason
        entry: dict[str, Any] = {"message": short or message, "domain": "global", "reason": self.reason}
        if at_header:
            entry |= {"location": "Authorization", "locationType": "header"}
        error: dict[str, Any] = {"code": code, "message": message, "errors": [entry], "status": status or usual_status}
        if details:
            error["details"] = list(details)
        self.document = {"error": error}
        self.headers = dict(headers or {})

    def response(self) -> JSONResponse:
        """The answer."""
        return JSONResponse(self.document, self.code, headers=self.headers)


def no_token(method: str) -> ApiError:
    """401: nobody said who calls."""
    return ApiError(
        401,
        f"Request is missing required authentication credential. {_EXPECTED}",
        reason="required",
        short="Login Required.",
        at_header=True,
        details=[_info("CREDENTIALS_MISSING", method)],
        headers={"WWW-Authenticate": f'Bearer realm="{REALM}"'},
    )


def bad_token() -> ApiError:
    """401: the token is not one, is not for this service, or counts no more. Google does not say which."""
    return ApiError(
        401,
        f"Request had invalid authentication credentials. {_EXPECTED}",
        short="Invalid Credentials",
        at_header=True,
        headers={"WWW-Authenticate": f'Bearer realm="{REALM}", error="invalid_token"'},
    )


def scope_insufficient(method: str, scopes: Sequence[str]) -> ApiError:
    """403: the token has none of the scopes that permit this method."""
    challenge = f'Bearer realm="{REALM}", error="insufficient_scope", scope="{" ".join(scopes)}"'
    return ApiError(
        403,
        "Request had insufficient authentication scopes.",
        reason="insufficientPermissions",
        short="Insufficient Permission",
        details=[_info("ACCESS_TOKEN_SCOPE_INSUFFICIENT", method)],
        headers={"WWW-Authenticate": challenge},
    )


def delegation_denied(subject: str) -> ApiError:
    """403: a mailbox of somebody else, or of nobody; the one that is named is that of the token."""
    return ApiError(403, f"Delegation denied for {subject}")


def no_mailbox() -> ApiError:
    """400: the token is of somebody who has no mailbox, as a service account by itself."""
    return ApiError(400, "Precondition check failed.", status="FAILED_PRECONDITION", reason="failedPrecondition")


def not_found() -> ApiError:
    """404: no such message in this mailbox."""
    return ApiError(404, "Requested entity was not found.")


def invalid(message: str) -> ApiError:
    """400: an argument that is not taken."""
    return ApiError(400, message, reason="invalidArgument")


def metadata_only(message: str) -> ApiError:
    """403: what the scope `gmail.metadata` does not permit."""
    return ApiError(403, message)


def unavailable(code: int = 503, retry_after: str | None = None) -> ApiError:
    """The service fails, or limits the rate."""
    message = {429: "Quota exceeded for quota metric 'Queries'.", 500: "Internal error encountered."}
    headers = {"Retry-After": retry_after} if retry_after else {}
    return ApiError(code, message.get(code, "The service is currently unavailable."), headers=headers)


def _info(reason: str, method: str) -> dict[str, Any]:
    metadata = {"method": f"caribou.api.proto.MailboxService.{method}", "service": SERVICE}
    return {"@type": _ERROR_INFO, "reason": reason, "domain": "googleapis.com", "metadata": metadata}

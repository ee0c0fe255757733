"""What Vault's answers and silences mean: refused, try again, or outcome unknown.

Status codes: Vault's HTTP API manual, "HTTP status codes". The distinction that matters here is
whether an issuance may have happened although no usable answer came.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from enum import Enum

from orchestrator.errors import Refused, Unreachable, VaultUnreachable

_NEVER_REACHED_DATABASE = re.compile(
    r"connect(?:ion)? refused|failed to connect|no such host|no such file or directory|the database system is "
    r"(?:starting up|shutting down)|error verifying connection|dial (?:tcp|unix)",
    re.IGNORECASE,
)

_WORKFLOW_REFUSED = re.compile(r"profile engine|failed to evaluate|workflow")
"""A workflow of OpenBao's answers 500 to whatever goes wrong in it, also to a no of one of its requests."""

_LOGIN_OF_VAULT_REFUSED = ("SQLSTATE 28P01", "password authentication failed")
"""PostgreSQL's `invalid_password` in what Vault says of a connection of its own."""

LONGEST_WAIT = 60.0
"""Seconds that a server can make us wait before another try. Some name the time since 1970, or milliseconds."""

_LONGEST_TEXT = 2000
"""Characters of what Vault says went wrong. Its reasons end in the ledger and on a terminal."""

_MOMENT = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z")
_LOGIN_PATH = re.compile(r"auth/.+/login$")
_LOGIN = ("auth/token/lookup-self", "auth/token/renew-self")


class Outcome(Enum):
    """What is known of a request that did not succeed."""

    REFUSED = "refused"
    """Answered with a definite no."""
    NOT_DONE = "not done"
    """It was certainly not carried out; it may be tried again."""
    UNKNOWN = "unknown"
    """It may have been carried out, whole or in part."""


class VaultRefused(Refused):
    """Vault answered no. `status` is the HTTP status, `path` what was asked."""

    def __init__(self, message: str, *, status: int, path: str, hint: str | None = None) -> None:
        super().__init__(message, by="vault", hint=hint)
        self.status = status
        self.path = path


class Unserved(Unreachable):
    """A request that was not served. `retry_after` is in seconds, where the server said so."""

    outcome: Outcome
    retry_after: float | None = None


class VaultUnavailable(VaultUnreachable, Unserved):
    """Vault did not serve the request. `retry_after` is in seconds, where Vault said so; `status` 0 is no answer."""

    def __init__(
        self,
        message: str,
        *,
        outcome: Outcome,
        path: str,
        status: int = 0,
        retry_after: float | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.outcome = outcome
        self.path = path
        self.status = status
        self.retry_after = retry_after


def outcome_of(status: int, errors: str) -> Outcome:
    """Classify an answer that is not 2xx. `errors` is the text of Vault's `errors` list."""
    if status in (307, 412, 429, 472, 473):
        return Outcome.NOT_DONE
    if status == 503:
        return Outcome.NOT_DONE if "sealed" in errors.lower() else Outcome.UNKNOWN
    if status >= 500 and _WORKFLOW_REFUSED.search(errors):
        return Outcome.REFUSED
    if status >= 500:
        return Outcome.NOT_DONE if _NEVER_REACHED_DATABASE.search(errors) else Outcome.UNKNOWN
    return Outcome.REFUSED


def retry_after_seconds(headers: Mapping[str, str]) -> float | None:
    """`Retry-After` (RFC 9110, 10.2.3) in seconds, at most `LONGEST_WAIT`. None if absent or malformed.

    A date is compared with the `Date` of the same answer: both are of the server's clock, whatever ours says.
    """
    header = headers.get("Retry-After")
    if not header:
        return None
    try:
        seconds = float(header)
    except ValueError:
        seconds = _seconds_between(headers.get("Date", ""), header)
    return None if math.isnan(seconds) else min(max(0.0, seconds), LONGEST_WAIT)


def _seconds_between(earlier: str, later: str) -> float:
    """Between two HTTP dates; not a number where one of them is none."""
    try:
        return (parsedate_to_datetime(later) - parsedate_to_datetime(earlier)).total_seconds()
    except (TypeError, ValueError, ArithmeticError, IndexError):
        return math.nan


def error_text(errors: object) -> str:
    """Vault's `errors` list as one line."""
    if not isinstance(errors, list):
        return ""
    text = "; ".join(str(error) for error in errors)
    text = re.sub(r"\d+ errors? occurred:", "", text)
    text = re.sub(r"\s+", " ", text.replace("* ", "")).strip()
    return text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]}..."


def deleted_version(body: object, path: str) -> tuple[str, str] | None:
    """What Vault says of the newest version of a secret that is not there any more (KV version 2, "Delete latest
    version of secret"), and what to do; None where it says nothing of the kind."""
    data = body.get("data") if isinstance(body, dict) else None
    metadata = data.get("metadata") if isinstance(data, dict) else None
    if not isinstance(metadata, dict) or not isinstance(version := metadata.get("version"), int):
        return None
    again = f"write a new version of `{path.replace('/data/', '/', 1)}`"
    if metadata.get("destroyed") is True:
        return f"version {version} of the secret `{path}` is destroyed", f"{again}: nobody has this one any more"
    when = str(metadata.get("deletion_time") or "")
    if not _MOMENT.fullmatch(when):
        return None
    undelete = path.replace("/data/", "/undelete/", 1)
    return f"version {version} of the secret `{path}` was deleted at {when}", f"undelete it (`{undelete}`), or {again}"


def is_no_namespace(errors: str) -> bool:
    """Whether Vault says that the namespace is not there, and so nothing of the path."""
    return "namespace not found" in errors


def is_login(path: str) -> bool:
    """Whether it is a request by which the orchestrator logs in."""
    return path in _LOGIN or _LOGIN_PATH.match(path) is not None


def hint_for(status: int, errors: str, path: str) -> str | None:
    """What a person can do about this answer."""
    if is_no_namespace(errors):
        return "Vault has no such namespace: is VAULT_NAMESPACE right?"
    if status in (400, 403) and is_login(path):
        return f"Vault did not let the orchestrator log in (`{path}`); check ORCHESTRATOR_AUTH_* and the role's bounds"
    if status == 403:
        return (
            f"the step's Vault policy does not allow `{path}`; run `orchestrator provision plan` to see what is missing"
        )
    if status == 404:
        return f"nothing is mounted or stored at `{path}`"
    if any(sign in errors for sign in _LOGIN_OF_VAULT_REFUSED):
        return (
            "the database refuses Vault's own login, as after a restored backup: `orchestrator provision check` tries "
            "it, and `provision apply` gives it a new password"
        )
    if status == 400 and "unknown role" in errors:
        return "the role is not provisioned; run `orchestrator provision plan`"
    if status == 429:
        return "a quota of Vault's is exhausted; lower the parallelism of the workflow or raise the quota"
    if status == 503:
        return "Vault is sealed or not ready; unseal it, then run again"
    return None

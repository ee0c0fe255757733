"""One form to an endpoint of an authorization server, and what its answer or silence means."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeGuard

from orchestrator.credentials.faults import IssuerUnavailable
from orchestrator.errors import Refused
from orchestrator.network.origins import origin
from orchestrator.pep.errors import TokenRefused
from orchestrator.pep.jwt import strict
from orchestrator.secret import Secret
from orchestrator.vault.faults import Outcome, retry_after_seconds

if TYPE_CHECKING:
    import httpx

MOST_BYTES = 1 << 18
_SHORTEST_ECHO = 6
_CODE = re.compile(r"[\x20-\x21\x23-\x5B\x5D-\x7E]{1,64}")
_TELLS = re.compile(r"[\w.,:;()'/ -]{1,200}")


class IssuerRefused(Refused):
    """An authorization server said no. `code` is its `error` (RFC 6749, 5.2)."""

    def __init__(self, message: str, *, code: str, hint: str | None = None) -> None:
        super().__init__(message, by="issuer", hint=hint)
        self.code = code


@dataclass(frozen=True, slots=True)
class Form:
    """What is sent: parameters, of which some are secret, and headers."""

    parameters: Sequence[tuple[str, str | Secret]]
    headers: Mapping[str, str | Secret] = field(default_factory=dict)

    def has(self, name: str) -> bool:
        """Whether there is such a parameter."""
        return any(each == name for each, _ in self.parameters)

    def plus(self, *parameters: tuple[str, str | Secret], headers: Mapping[str, str | Secret] | None = None) -> Form:
        """The same with more."""
        return Form((*self.parameters, *parameters), {**self.headers, **(headers or {})})


@dataclass(frozen=True, slots=True)
class Said:
    """An answer. `document` is None where it is no JSON object; `nonce` is the server's `DPoP-Nonce`."""

    status: int
    document: Mapping[str, Any] | None = field(repr=False)
    nonce: str | None = None

    @property
    def code(self) -> str:
        """The `error` of a refusal, or nothing."""
        code = (self.document or {}).get("error")
        return code if isinstance(code, str) and _CODE.fullmatch(code) else ""


async def post(http: httpx.AsyncClient, url: str, form: Form, *, seconds: float) -> Said:
    """Send it once. Raises IssuerUnavailable for what is no answer, or one that says to come again."""
    import httpx

    where = origin(url)
    headers = {"accept": "application/json", "accept-encoding": "identity"}
    headers |= {name: _plain(value) for name, value in form.headers.items()}
    data: dict[str, str | list[str]] = {name: _plain(value) for name, value in form.parameters}
    try:
        async with asyncio.timeout(seconds), http.stream("POST", url, data=data, headers=headers) as response:
            body = await _bounded(response, where)
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        raise IssuerUnavailable(
            f"{where} did not accept a connection ({type(error).__name__})",
            outcome=Outcome.NOT_DONE,
            hint="is its address in declarations.yaml right?",
        ) from None
    except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, OSError) as error:
        raise IssuerUnavailable(f"{where} did not answer ({type(error).__name__})", outcome=Outcome.UNKNOWN) from None
    if response.status_code in (429, 503):
        raise IssuerUnavailable(
            f"{where} answered {response.status_code}",
            outcome=Outcome.NOT_DONE,
            retry_after=retry_after_seconds(response.headers),
        )
    try:
        document = without_echo(strict.json_object(body), form)
    except TokenRefused:
        document = None
    return Said(response.status_code, document, response.headers.get("dpop-nonce"))


def served(said: Said, where: str) -> Mapping[str, Any]:
    """The document of a success. Raises IssuerRefused for a no, IssuerUnavailable for what is neither."""
    if said.status == 200 and said.document is not None:
        return said.document
    if 400 <= said.status < 500:
        raise IssuerRefused(
            f"{where} answered {said.status}{_told(said)}", code=said.code, hint=_HINTS.get(said.code, _ANY_NO)
        )
    if 300 <= said.status < 400:
        raise IssuerUnavailable(
            f"{where} answered {said.status} and would have the request sent elsewhere",
            outcome=Outcome.REFUSED,
            hint="name the endpoint itself in declarations.yaml: no credential of ours follows a redirect",
        )
    what = "with something that is no JSON object" if said.status == 200 else str(said.status)
    raise IssuerUnavailable(f"{where} answered {what}", outcome=Outcome.UNKNOWN)


_ANY_NO = "its log says more than it tells a client"
_HINTS = {
    "invalid_client": "does it know this client, and its key or secret of now? see `client` in declarations.yaml",
    "invalid_scope": "the issuer does not give this client that scope",
    "invalid_target": "the issuer does not know that `resource`, or not for this client",
    "invalid_grant": "the issuer does not take the assertion or the refresh token: subject, audience, key, clock?",
    "unauthorized_client": "the issuer does not let this client use that flow",
    "invalid_authorization_details": "the issuer does not take those `details`, or not of this client",
}


def _told(said: Said) -> str:
    """The error's code, and its description where that is plain (RFC 6749, 5.2); it is somebody else's text."""
    description = (said.document or {}).get("error_description")
    plain = isinstance(description, str) and _TELLS.fullmatch(description)
    return f" {said.code}" + (f": {description}" if plain else "") if said.code else ""


def without_echo(document: Mapping[str, Any], form: Form) -> Mapping[str, Any]:
    """The answer without a description of an error that repeats what was secret in the request."""
    sent = [value.reveal() for value in (*dict(form.parameters).values(), *form.headers.values()) if _is_secret(value)]
    told = str(document.get("error_description", ""))
    if any(word in told for value in sent for word in value.split() if len(word) >= _SHORTEST_ECHO):
        return {name: value for name, value in document.items() if name != "error_description"}
    return document


def _is_secret(value: str | Secret) -> TypeGuard[Secret]:
    return isinstance(value, Secret)


def _plain(value: str | Secret) -> str:
    return value.reveal() if isinstance(value, Secret) else value


async def _bounded(response: httpx.Response, where: str) -> bytes:
    if response.headers.get("content-encoding", "identity").lower() != "identity":
        return b""
    body = bytearray()
    async for piece in response.aiter_raw():
        body += piece
        if len(body) > MOST_BYTES:
            raise IssuerUnavailable(f"{where} answered with more than {MOST_BYTES} bytes", outcome=Outcome.UNKNOWN)
    return bytes(body)

"""Asking the issuer whether a token still counts (RFC 7662): what is signed cannot be taken back by itself."""

from __future__ import annotations

import base64
import hashlib
import ssl
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol
from urllib.parse import quote_plus

import httpx

from orchestrator.clock import Clock, SystemClock
from orchestrator.jsontypes import JsonObject
from orchestrator.pep.access import AccessToken, details_of, scope_of
from orchestrator.pep.errors import IssuerUnreachable, Reason, TokenRefused
from orchestrator.pep.fetching import client, confidential, json_object
from orchestrator.pep.jwt.claims import Expected, check
from orchestrator.secret import Secret

_MOST_KEPT = 1000
"""Positive answers that are kept at most, the newest."""


class Credentials(Protocol):
    """How the service itself is known to the issuer."""

    def authorization(self) -> str:
        """The value of the header `Authorization`, for one request."""
        ...


@dataclass(frozen=True, slots=True)
class Bearer:
    """A token of the service's own (RFC 7662, 2.1). `token` is called for each question, so that it may change."""

    token: Callable[[], str] = field(repr=False)

    def authorization(self) -> str:
        """`Bearer ...`."""
        return f"Bearer {self.token()}"


@dataclass(frozen=True, slots=True)
class Basic:
    """Client id and secret (RFC 6749, 2.3.1)."""

    client_id: str
    secret: Secret

    def authorization(self) -> str:
        """`Basic ...`, both encoded as forms are before they are joined."""
        pair = f"{quote_plus(self.client_id)}:{quote_plus(self.secret.reveal())}"
        return f"Basic {base64.b64encode(pair.encode()).decode()}"


@dataclass
class Introspection:
    """One introspection endpoint. `keep`: seconds for which a positive answer is believed without asking again.

    `tls`: whom to trust, where the issuer's certificate is of an authority of one's own. Belongs to one event loop.
    Raises ValueError for a URL on whose way others could read the token.
    """

    url: str
    credentials: Credentials = field(repr=False)
    keep: float = 0
    time_out: float = 5
    most_bytes: int = 1 << 16
    tls: ssl.SSLContext | None = field(default=None, repr=False)
    clock: Clock = field(default_factory=SystemClock, repr=False)
    _kept: OrderedDict[bytes, tuple[float, AccessToken]] = field(default_factory=OrderedDict, init=False, repr=False)
    _client: httpx.AsyncClient | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        confidential(self.url)

    async def confirm(self, text: str, token: AccessToken) -> AccessToken:
        """The token with what the issuer still grants of it: never more than it says itself.

        Raises TokenRefused where it is not active or not this one, IssuerUnreachable for whatever is no clear answer.
        """
        digest = hashlib.sha256(text.encode()).digest()
        now = self.clock.monotonic()
        until, known = self._kept.get(digest, (now, token))
        if now < until:
            return known
        self._kept.pop(digest, None)
        confirmed = judge(await self._ask(text), token)
        if self.keep > 0:
            self._kept[digest] = (now + self.keep, confirmed)
            if len(self._kept) > _MOST_KEPT:
                self._kept.popitem(last=False)
        return confirmed

    async def identify(self, text: str, expected: Expected) -> AccessToken:
        """The token behind a text that says nothing by itself: what the issuer says of it, if that is what is expected.

        Raises TokenRefused, and IssuerUnreachable for whatever is no clear answer.
        """
        return described(await self._ask(text), text, expected, self.clock.now().timestamp())

    async def aclose(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    async def _ask(self, text: str) -> JsonObject:
        if self._client is None:
            self._client = client(self.tls, self.time_out)
        request = self._client.build_request(
            "POST",
            self.url,
            data={"token": text, "token_type_hint": "access_token"},
            headers={"authorization": self.credentials.authorization()},
        )
        answer = await json_object(self._client, request, most_bytes=self.most_bytes, seconds=self.time_out)
        return answer.document


def described(answer: JsonObject, text: str, expected: Expected, now: float) -> AccessToken:
    """An opaque token by its description (RFC 7662, 2.2). Raises TokenRefused, IssuerUnreachable.

    It must name its issuer, for whom it is, when it ends and whose client has it. Where no `sub` is told, the client
    acts for itself; where no `jti`, the digest of the text is its id.
    """
    active = answer.get("active")
    if active is False:
        raise TokenRefused(Reason.REVOKED, "it is not active any more")
    if active is not True:
        raise IssuerUnreachable("the issuer does not say whether the token is active")
    client = answer.get("client_id")
    told = {"jti": hashlib.sha256(text.encode()).hexdigest()[:32], "sub": client, **answer}
    return AccessToken.of(check(told, expected, now))


def judge(answer: JsonObject, token: AccessToken) -> AccessToken:
    """What an answer (RFC 7662, 2.2) leaves of a token. Raises TokenRefused, IssuerUnreachable."""
    active = answer.get("active")
    if active is False:
        raise TokenRefused(Reason.REVOKED, "it is not active any more")
    if active is not True:
        raise IssuerUnreachable("the issuer does not say whether the token is active")
    said = {"iss": token.issuer, "sub": token.subject, "client_id": token.client_id, "jti": token.token_id}
    exact = all(answer[name] == value for name, value in said.items() if name in answer)
    expires = answer.get("exp", token.expires)
    if not exact or isinstance(expires, bool) or expires != token.expires:
        raise TokenRefused(Reason.INTROSPECTION, "the issuer speaks of another token")
    scope = scope_of(answer["scope"]) if "scope" in answer else token.scope
    named = details_of(answer)
    details = token.details
    if named is not None and details is not None:
        details = tuple(each for each in details if each in named)
    return replace(token, scope=token.scope & scope, details=details)

"""Where the keys of an issuer come from: a document that is given, or the issuer itself, asked no more than needed."""

from __future__ import annotations

import asyncio
import math
import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import httpx

from orchestrator.clock import Clock, SystemClock
from orchestrator.jsontypes import JsonObject
from orchestrator.pep.errors import IssuerUnreachable
from orchestrator.pep.fetching import Answer, client, confidential, json_object
from orchestrator.pep.jwt.claims import Claims, Expected
from orchestrator.pep.jwt.keys import Keys, read_jwks
from orchestrator.pep.jwt.verification import take_apart


class KeySource(Protocol):
    """Whoever knows the keys of one issuer."""

    async def keys_for(self, kid: str | None) -> Keys:
        """The keys, with that of this `kid` if the issuer has it. Raises IssuerUnreachable."""
        ...


@dataclass(frozen=True, slots=True)
class GivenKeys:
    """Keys that do not change while the service runs."""

    keys: Keys

    @classmethod
    def of(cls, document: bytes | Mapping[str, Any]) -> GivenKeys:
        """A JWK Set (RFC 7517, 5). Raises ValueError."""
        return cls(read_jwks(document))

    @classmethod
    def from_file(cls, path: Path) -> GivenKeys:
        """The JWK Set in a file, read once. Raises OSError, ValueError."""
        return cls.of(path.read_bytes())

    async def keys_for(self, kid: str | None) -> Keys:
        """The same keys always."""
        return self.keys


@dataclass(frozen=True, slots=True)
class Upkeep:
    """How an issuer is asked, in seconds.

    `again_after`: between two questions, whatever kids come and however they end, so that junk makes no storm of them.
    `least_age`, `most_age`: the bounds of what the issuer says how long its keys may be kept; `usual_age` where it says
    nothing. `without_issuer`: how much longer the last good keys are used while no others can be had. `tls`: whom to
    trust, where the issuer's certificate is of an authority of one's own.
    """

    again_after: float = 10
    least_age: float = 30
    usual_age: float = 300
    most_age: float = 3600
    without_issuer: float = 3600
    time_out: float = 5
    most_bytes: int = 1 << 18
    tls: ssl.SSLContext | None = field(default=None, repr=False)


class Metadata(Protocol):
    """How the address of an issuer's metadata follows from the issuer."""

    def __call__(self, issuer: str) -> str:
        """The URL."""
        ...


def oauth_metadata(issuer: str) -> str:
    """RFC 8414, 3: between the host and the path of the issuer."""
    parts = urlsplit(issuer)
    path = parts.path.rstrip("/")
    return parts._replace(path=f"/.well-known/oauth-authorization-server{path}").geturl()


def oidc_metadata(issuer: str) -> str:
    """OpenID Connect Discovery 1.0, 4: below the issuer."""
    return issuer.rstrip("/") + "/.well-known/openid-configuration"


@dataclass(slots=True)
class _Held:
    keys: Keys
    fresh_until: float
    usable_until: float


@dataclass
class IssuerKeys:
    """The keys that an issuer publishes, kept for a while. All who need them at one time wait for one question.

    Belongs to one event loop. Make it by `at` or `discovered`; nothing is asked before the first token comes.
    """

    ask: Callable[[httpx.AsyncClient], Awaitable[Answer]] = field(repr=False)
    upkeep: Upkeep = Upkeep()
    clock: Clock = field(default_factory=SystemClock, repr=False)
    _held: _Held | None = field(default=None, init=False, repr=False)
    _asked_at: float | None = field(default=None, init=False, repr=False)
    _failure: IssuerUnreachable | None = field(default=None, init=False, repr=False)
    _asking: asyncio.Task[None] | None = field(default=None, init=False, repr=False)

    @classmethod
    def at(cls, url: str, *, upkeep: Upkeep | None = None, clock: Clock | None = None) -> IssuerKeys:
        """From the URL of a JWK Set. Raises ValueError where others could change it on the way."""
        confidential(url)
        upkeep = upkeep or Upkeep()

        async def ask(http: httpx.AsyncClient) -> Answer:
            return await _get(http, url, upkeep)

        return cls(ask, upkeep, clock or SystemClock())

    @classmethod
    def discovered(
        cls,
        issuer: str,
        metadata: Metadata = oauth_metadata,
        *,
        upkeep: Upkeep | None = None,
        clock: Clock | None = None,
    ) -> IssuerKeys:
        """By the issuer's metadata, which must name exactly this issuer (RFC 8414, 3.3). Raises ValueError for a URL
        over which others could change it."""
        url = confidential(metadata(issuer))
        upkeep = upkeep or Upkeep()

        async def ask(http: httpx.AsyncClient) -> Answer:
            about = (await _get(http, url, upkeep)).document
            return await _get(http, jwks_uri(about, issuer), upkeep)

        return cls(ask, upkeep, clock or SystemClock())

    async def keys_for(self, kid: str | None) -> Keys:
        """The keys; asked for again if they are old, or if `kid` is not among them. Raises IssuerUnreachable."""
        now = self.clock.monotonic()
        held = self._held
        if held is None or now >= held.fresh_until or not held.keys.knows(kid):
            await self._ask_once()
        held, now = self._held, self.clock.monotonic()
        unsure = self._failure is not None  # a key that is not known may be one of today
        if held is None or now >= held.usable_until or (unsure and not held.keys.knows(kid)):
            again = math.ceil((self._asked_at or now) + self.upkeep.again_after - now)
            raise IssuerUnreachable("the issuer's keys cannot be had", retry_after=max(1, again)) from self._failure
        return held.keys

    async def _ask_once(self) -> None:
        """Wait for the question that is being asked, or ask it unless that was done a moment ago.

        Who is cut off while waiting cuts off nobody else.
        """
        if self._asking is None:
            now = self.clock.monotonic()
            if self._asked_at is not None and now < self._asked_at + self.upkeep.again_after:
                return
            self._asked_at = now
            self._asking = asyncio.create_task(self._refresh())
        await asyncio.shield(self._asking)

    async def _refresh(self) -> None:
        try:
            async with client(self.upkeep.tls, self.upkeep.time_out) as http:
                answer = await self.ask(http)
            keys = read_jwks(answer.document)
        except IssuerUnreachable as error:
            self._failure = error
        except ValueError as error:
            self._failure = IssuerUnreachable(str(error))
        else:
            said = self.upkeep.usual_age if answer.max_age is None else answer.max_age
            age = min(max(said, self.upkeep.least_age), self.upkeep.most_age)
            fresh_until = self.clock.monotonic() + age
            self._held = _Held(keys, fresh_until, fresh_until + self.upkeep.without_issuer)
            self._failure = None
        finally:
            self._asking = None


async def verify_by(token: str, source: KeySource, expected: Expected, clock: Clock) -> Claims:
    """The claims of a token, with the keys from its issuer. Raises TokenRefused, IssuerUnreachable."""
    unverified = take_apart(token, expected)
    keys = await source.keys_for(unverified.kid)
    return unverified.verified(keys, expected, clock.now().timestamp())


async def _get(http: httpx.AsyncClient, url: str, upkeep: Upkeep) -> Answer:
    request = http.build_request("GET", url)
    return await json_object(http, request, most_bytes=upkeep.most_bytes, seconds=upkeep.time_out)


def jwks_uri(metadata: JsonObject, issuer: str) -> str:
    """Where the metadata say that the keys are. Raises IssuerUnreachable for what is not to be followed."""
    if metadata.get("issuer") != issuer:
        raise IssuerUnreachable("the metadata are those of another issuer")
    url = metadata.get("jwks_uri")
    try:
        if not isinstance(url, str):
            raise ValueError("the metadata name no `jwks_uri`")
        if urlsplit(issuer).scheme == "https" and urlsplit(url).scheme != "https":
            raise ValueError("the metadata lead from https to something else")
        return confidential(url)
    except ValueError as error:
        raise IssuerUnreachable(str(error)) from None

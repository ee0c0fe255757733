"""Login by an OpenID provider: authorization code with PKCE (OpenID Connect Core 1.0, 3.1; RFC 7636; RFC 9700, 2.1.1).

What goes over the wire and what an ID token must say is Authlib's; requests, signatures and times are checked by what
checks those of agents.
"""

from __future__ import annotations

import base64
import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote_plus, urlencode

import httpx
from authlib.oauth2.rfc6749.parameters import prepare_grant_uri
from authlib.oauth2.rfc7636 import create_s256_code_challenge
from authlib.oidc.core import CodeIDToken
from joserfc.errors import JoseError

from orchestrator.approvals.people import Person, Unproven
from orchestrator.clock import Clock
from orchestrator.errors import OrchestratorError, Unreachable
from orchestrator.jsontypes import JsonObject, JsonValue
from orchestrator.pep.errors import IssuerUnreachable, TokenRefused
from orchestrator.pep.fetching import client, confidential, json_object
from orchestrator.pep.jwt.claims import Expected
from orchestrator.pep.sources import IssuerKeys, jwks_uri, oidc_metadata, verify_by
from orchestrator.server.pages.login.declared import Provider

PENDING_SECONDS = 600
"""How long somebody may take at the provider."""

LONGEST_THEN = 1000
"""Characters of an address that is kept in a cookie, which has 4096 at most (RFC 6265, 6.1)."""

SECONDS = 10.0
MOST_BYTES = 1 << 18
ALGORITHMS = frozenset({"RS256", "PS256", "ES256", "EdDSA", "Ed25519"})
METADATA_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class Begun:
    """A login that has begun: where to send the browser, and the cookie that it keeps meanwhile.

    Nothing of it is kept here, so that nobody can push out the logins of others. What the provider is sent is derived
    from the cookie by a key of this process: whoever has only one of both, cookie or answer, has nothing.
    """

    url: str
    cookie: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Known:
    """Who came back, how people call them, and where they wanted to go."""

    person: Person
    shown: str
    then: str


@dataclass(slots=True)
class OpenId:
    """Logins at one provider, which sends people back to `redirect`."""

    provider: Provider
    redirect: str
    clock: Clock
    _key: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)
    _metadata: tuple[JsonObject, float] | None = None
    _keys: IssuerKeys | None = None

    async def begin(self, then: str) -> Begun:
        """For somebody who then wants to see this page. Raises Unreachable where the provider cannot be asked."""
        metadata = await self._described()
        until = int(self.clock.monotonic()) + PENDING_SECONDS
        page = _url_safe(then.encode() if len(then) <= LONGEST_THEN else b"")
        cookie = f"{secrets.token_urlsafe(32)}.{until}.{page}"
        url = prepare_grant_uri(
            _endpoint(metadata, "authorization_endpoint"),
            self.provider.client_id,
            "code",
            redirect_uri=self.redirect,
            scope=" ".join(self.provider.scopes),
            state=self._of("state", cookie),
            nonce=self._of("nonce", cookie),
            code_challenge=create_s256_code_challenge(self._of("verifier", cookie)),
            code_challenge_method="S256",
        )
        return Begun(str(url), cookie)

    def _of(self, name: str, cookie: str) -> str:
        """43 characters that only this process knows, and only with this cookie (RFC 7636, 4.1)."""
        return _url_safe(hmac.digest(self._key, f"{name}:{cookie}".encode(), "sha256"))

    async def finish(self, cookie: str, answered: Mapping[str, str]) -> Known:
        """Who comes back with this query string. Raises Unproven, and Unreachable.

        A state counts in the browser that it was given to alone (RFC 9700, 4.7), and a code once, for its provider.
        """
        if not hmac.compare_digest(answered.get("state", "").encode(), self._of("state", cookie).encode()):
            raise Unproven("this login was not begun in this browser", hint="begin it again")
        _, until, page = cookie.split(".")
        if int(until) <= self.clock.monotonic():
            raise Unproven("this login was begun too long ago", hint="begin it again")
        metadata = await self._described()
        said_by = answered.get("iss")
        strict = metadata.get("authorization_response_iss_parameter_supported") is True
        if (said_by is not None and said_by != self.provider.issuer) or (strict and said_by is None):  # RFC 9207, 2.4
            raise Unproven("the answer is of another provider", hint="begin the login again")
        code = answered.get("code")
        if not code:
            raise Unproven("the provider has not let you in", hint="begin the login again")
        tokens = await self._exchanged(metadata, code, self._of("verifier", cookie))
        claims = await self._verified(tokens, self._of("nonce", cookie))
        then = base64.urlsafe_b64decode(page + "=" * (-len(page) % 4)).decode()
        return Known(self._person(claims), _text(claims.get(self.provider.shown)) or str(claims["sub"]), then)

    async def _described(self) -> JsonObject:
        now = self.clock.monotonic()
        if self._metadata is not None and self._metadata[1] > now:
            return self._metadata[0]
        try:
            url = confidential(oidc_metadata(self.provider.issuer))
            async with client(None, SECONDS) as http:
                request = http.build_request("GET", url)
                found = (await json_object(http, request, most_bytes=MOST_BYTES, seconds=SECONDS)).document
            keys = IssuerKeys.at(jwks_uri(found, self.provider.issuer), clock=self.clock)
        except (IssuerUnreachable, ValueError) as error:
            raise _away(error) from None
        if self._keys is None or self._metadata is None or self._metadata[0].get("jwks_uri") != found.get("jwks_uri"):
            self._keys = keys
        self._metadata = found, now + METADATA_SECONDS
        return found

    async def _exchanged(self, metadata: JsonObject, code: str, verifier: str) -> JsonObject:
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self.redirect,
            "code_verifier": verifier,
        }
        headers = {"content-type": "application/x-www-form-urlencoded"}
        if self.provider.secret is None:
            form["client_id"] = self.provider.client_id
        else:
            pair = f"{quote_plus(self.provider.client_id)}:{quote_plus(self.provider.secret.reveal())}"
            headers["authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"  # RFC 6749, 2.3.1
        try:
            url = _endpoint(metadata, "token_endpoint")
            async with client(None, SECONDS) as http:
                request = http.build_request("POST", url, content=urlencode(form), headers=headers)
                answer = await json_object(http, request, most_bytes=MOST_BYTES, seconds=SECONDS)
        except httpx.InvalidURL as error:
            raise Unreachable("the OpenID provider names no token endpoint") from error
        except IssuerUnreachable as error:
            raise _not_exchanged(error) from None
        return answer.document

    async def _verified(self, tokens: JsonObject, nonce: str) -> Mapping[str, JsonValue]:
        token = tokens.get("id_token")
        if not isinstance(token, str) or self._keys is None:
            raise Unproven("the provider gave no ID token", hint="is `openid` among its scopes?")
        wanted = Expected(
            self.provider.issuer,
            frozenset({self.provider.client_id}),
            algorithms=ALGORITHMS,
            types=None,
            required=frozenset({"sub", "iat", "nonce"}),
            most_age=PENDING_SECONDS,
        )
        try:
            claims = await verify_by(token, self._keys, wanted, self.clock)
        except TokenRefused as error:
            raise Unproven(f"the ID token is not accepted: {error.message}") from None
        except IssuerUnreachable as error:
            raise _away(error) from None
        said: dict[str, Any] = dict(claims.all)
        params = {"nonce": nonce, "client_id": self.provider.client_id}
        try:
            CodeIDToken(said, {}, {}, params).validate(now=int(self.clock.now().timestamp()), leeway=5)
        except JoseError as error:
            raise Unproven(f"the ID token is not of this login: {error}") from None
        return said

    def _person(self, claims: Mapping[str, JsonValue]) -> Person:
        found = []
        for name in self.provider.claims:
            value = claims.get(name)
            for each in value if isinstance(value, list) else [value]:
                if text := _text(each):
                    found.append(f"oidc-{name}:{text}")
        return Person(f"oidc:{claims['sub']}", tuple(sorted(found)))


def _away(error: Exception) -> Unreachable:
    hint = "try again in a moment, or log in with a Vault token of your own"
    return Unreachable(f"the OpenID provider cannot be used: {error}", hint=hint)


def _not_exchanged(error: IssuerUnreachable) -> OrchestratorError:
    """Whose fault it is that there is nothing for a code (RFC 6749, 5.2): nobody's, ours, or that of who sent it."""
    if error.status == 400:
        return Unproven(f"the provider gave nothing for its code: {error.message}", hint="begin it again")
    if error.status == 401:
        hint = "whoever runs this service sets ORCHESTRATOR_UI_OIDC_CLIENT_ID and its _SECRET_FILE"
        return Unreachable("the OpenID provider does not know this service by its client id and secret", hint=hint)
    return _away(error)


def _endpoint(metadata: Mapping[str, JsonValue], name: str) -> str:
    url = metadata.get(name)
    try:
        return confidential(str(url))
    except ValueError as error:
        raise Unreachable(f"the OpenID provider names no {name} that can be used: {error}") from None


def _text(value: JsonValue) -> str:
    """One line that can be shown; empty for anything else."""
    return value if isinstance(value, str) and value.isprintable() and len(value) <= 200 else ""


def _url_safe(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")

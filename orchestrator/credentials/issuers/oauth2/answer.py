"""What the answer of a token endpoint gives, held against what was asked for. Pure functions over the answer.

An authorization server may give less than was asked for, or more, and answer 200 (RFC 6749, 3.3 and 5.1). Less makes
a step fail later and somewhere else, and more is what nobody agreed to: neither is taken.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestrator.credentials.faults import IssuerUnavailable
from orchestrator.grants.scope import Scope
from orchestrator.issuers.oauth2 import OAuth2Server
from orchestrator.pep.errors import TokenRefused
from orchestrator.pep.jwt import strict
from orchestrator.secret import Secret
from orchestrator.vault.faults import Outcome

_LONGEST = 2**31
_OPAQUE: Mapping[str, Any] = {}
_CLOCKS = 5
"""Seconds by which the issuer's clock may differ from ours, and how long its answer took."""


@dataclass(frozen=True, slots=True)
class Given:
    """What an answer holds. `claims` are those of an access token that is a JWT; `seconds` 0 where nothing is said.

    The claims are not verified by a signature: the token came from the endpoint itself over TLS (as OpenID Connect
    Core, 3.1.3.7, has it for ID tokens), and some issuers sign access tokens so that only the resource can verify them.
    """

    token: Secret
    kind: str
    seconds: int
    document: Mapping[str, Any] = field(repr=False)
    claims: Mapping[str, Any] = field(repr=False)
    refresh_token: Secret | None = None

    @property
    def subject(self) -> str:
        """What the issuer calls this token, if it tells: its `jti`."""
        jti = self.claims.get("jti")
        return jti if isinstance(jti, str) and len(jti) <= 200 and jti.isprintable() else ""


def secrets_in(document: Mapping[str, Any]) -> Iterator[Secret]:
    """Whatever of an answer somebody could use."""
    for name in ("access_token", "refresh_token", "id_token"):
        if isinstance(value := document.get(name), str) and value:
            yield Secret(value)


def given(document: Mapping[str, Any], now: float) -> Given:
    """Read an answer (RFC 6749, 5.1). `now` in seconds since 1970. Raises IssuerUnavailable for one without a token."""
    token = document.get("access_token")
    if not isinstance(token, str) or not token or not token.isascii() or not token.isprintable() or " " in token:
        raise IssuerUnavailable("the issuer's answer has no access token", outcome=Outcome.UNKNOWN)
    refresh = document.get("refresh_token")
    claims = claims_of(token)
    return Given(
        Secret(token),
        str(document.get("token_type", "")).lower(),
        _seconds(document.get("expires_in"), claims.get("exp"), now),
        document,
        claims,
        Secret(refresh) if isinstance(refresh, str) and refresh else None,
    )


def problem(scope: Scope, server: OAuth2Server, answer: Given) -> tuple[str, str] | None:
    """Why what was given is not what was asked for, and what to do about it; None where it is."""
    wanted = scope.proof or "bearer"
    if answer.kind != wanted:
        return f"the issuer gave a token of the type `{_shown(answer.kind)}`, not `{wanted}`", _MEND_PROOF
    if answer.refresh_token is not None and server.flow != "refresh_token":
        return "the issuer gave a refresh token that nobody asked for", _MEND_REFRESH
    if not answer.seconds:
        return "the issuer does not say how long the token is valid", "have it say `expires_in`"
    if answer.seconds > scope.ttl + _CLOCKS:
        return (
            f"the issuer gave a token for {answer.seconds}s, longer than the grant's {scope.ttl}s",
            f"have it give shorter ones, or say so: `ttl: {answer.seconds}s` in the grant",
        )
    return _other_scope(scope, server, answer) or _other_service(scope, answer) or _other_details(scope, answer)


def _other_scope(scope: Scope, server: OAuth2Server, answer: Given) -> tuple[str, str] | None:
    found = _scope_of(server, answer)
    if found is None and (server.scope_in == "unsaid" or not scope.scopes):
        return None
    if found is None:
        return "the issuer does not say which scope the token has", _MEND_SCOPE
    asked = set(scope.scopes)
    if more := sorted(found - asked):
        return f"the issuer gave more than was asked for: `{_shown(' '.join(more))}`", _MEND_SCOPE
    if less := sorted(asked - found):
        return f"the issuer gave less than was asked for: without `{_shown(' '.join(less))}`", _MEND_SCOPE
    return None


def _scope_of(server: OAuth2Server, answer: Given) -> set[str] | None:
    if server.scope_in == "token":
        said = [answer.claims[name] for name in ("scope", "scp", "roles") if name in answer.claims]
    else:
        said = [answer.document["scope"]] if answer.document.get("scope") is not None else []
    if not said:
        return None
    return {word for each in said for word in _words(each)}


def _words(value: Any) -> Sequence[str]:
    """A scope is a text with spaces (RFC 6749, 3.3); some claims are lists. What is neither is more than was asked."""
    if isinstance(value, str):
        return value.split(" ") if value else ()
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return value
    return ("(not a text)",)


def _other_service(scope: Scope, answer: Given) -> tuple[str, str] | None:
    """Whether a JWT is for another service than the one of the grant. Of an opaque token only the issuer knows."""
    audience = answer.claims.get("aud")
    if scope.audience is None or not answer.claims or audience in (scope.audience, [scope.audience]):
        return None
    return f"the issuer gave a token for another service than `{scope.audience}`", "is that the issuer's word for it?"


def _other_details(scope: Scope, answer: Given) -> tuple[str, str] | None:
    """RFC 9396, 7: the answer says what was granted, which may be less, or more, than what was asked for."""
    found = answer.document.get("authorization_details", answer.claims.get("authorization_details"))
    if found is None and not scope.details:
        return None
    if not isinstance(found, list) or _as_set(found) != _as_set(scope.details):
        return "the issuer gave other `authorization_details` than were asked for", _MEND_SCOPE
    return None


def _as_set(details: Sequence[Any]) -> set[str]:
    return {json.dumps(each, sort_keys=True) for each in details}


def claims_of(token: str) -> Mapping[str, Any]:
    """The claims of a JWT; none where it is an opaque token."""
    parts = token.split(".")
    if len(parts) != 3:
        return _OPAQUE
    try:
        strict.json_object(strict.base64url(parts[0]))
        return strict.json_object(strict.base64url(parts[1]))
    except TokenRefused:
        return _OPAQUE


def _seconds(said: Any, exp: Any, now: float) -> int:
    """The longer of what the answer and the token say; some issuers write the number as a text."""
    if isinstance(said, str) and said.isascii() and said.isdecimal() and len(said) < 11:
        said = int(said)
    found = [said] if type(said) is int and 0 < said <= _LONGEST else []
    if isinstance(exp, int | float) and not isinstance(exp, bool) and now < exp <= now + _LONGEST:
        found.append(int(exp - now))
    return max(found, default=0)


def _shown(text: str) -> str:
    """Words of somebody else, for a message."""
    return "".join(char if char.isprintable() and char != "`" else "?" for char in text)[:200]


_MEND_PROOF = "`proof: dpop` belongs to tokens that are bound to a key; the issuer decides it by the client's metadata"
_MEND_REFRESH = "take the flow `refresh_token`, or have the issuer give this client none"
_MEND_SCOPE = "what the grant names must be what this client can have, no more and no less; see `scope_in`, too"

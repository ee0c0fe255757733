"""From a token, or a certificate, to the agent that calls: nothing that a caller merely says takes part.

A token with `act` (RFC 8693, 4.1) is used by somebody for somebody else: its `sub` is on whose behalf, and the agent is
the outermost actor. What a token says of its subject never makes the actor that agent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.agents.declared import Agents, Issuer
from orchestrator.clock import Clock, SystemClock
from orchestrator.errors import Refused
from orchestrator.jsontypes import JsonObject, JsonValue
from orchestrator.pep.jwt.claims import Claims, Expected
from orchestrator.pep.jwt.verification import issuer_named
from orchestrator.pep.sources import GivenKeys, IssuerKeys, KeySource, oauth_metadata, oidc_metadata, verify_by

_DEEPEST_ACTORS = 5
"""How many may have handed a token on."""


class CallerRefused(Refused):
    """It is not known who calls. The words say what to mend, and never quote what was sent."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, by="orchestrator", hint=hint)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls, and how that is known. `issuer` is its name in the file, or empty for a certificate.

    `subject` is on whose behalf where there is an `actor`, else the agent's own name at the issuer; `actor` is the
    whole `act`, as it came. `expires` in seconds since 1970, None for a certificate. `max_open` is the agent's limit.
    """

    agent: str
    issuer: str
    subject: str
    actor: JsonObject | None = None
    expires: float | None = None
    max_open: int | None = None

    @property
    def on_behalf_of(self) -> str:
        """For whom the agent acts; empty where it acts for itself."""
        return self.subject if self.actor is not None else ""


@dataclass(frozen=True, slots=True)
class _Trusted:
    name: str
    expected: Expected
    keys: KeySource


@dataclass
class Authentication:
    """Tells the callers that `agents` declares. Belongs to one event loop; an issuer is asked when its token comes."""

    agents: Agents
    folder: Path
    clock: Clock = field(default_factory=SystemClock, repr=False)
    _trusted: Mapping[str, _Trusted] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._trusted = {
            issuer.issuer: _Trusted(name, expected(issuer), _keys(issuer, self.folder, self.clock))
            for name, issuer in self.agents.issuers.items()
        }

    async def by_token(self, token: str) -> Caller:
        """Who calls with this token. Raises CallerRefused, TokenRefused, IssuerUnreachable."""
        trusted = self._trusted.get(issuer_named(token) or "")
        if trusted is None:
            raise CallerRefused("the token is of nobody who is trusted", hint="see `issuers` in agents.yaml")
        claims = await verify_by(token, trusted.keys, trusted.expected, self.clock)
        actor = _actor(claims)
        known = claims.all if actor is None else actor
        found = {
            name
            for name, identity in self.agents.identities()
            if identity.issuer == trusted.name and _all_are(identity.claims or {}, known)
        }
        agent = _only(found, "the token" if actor is None else "the one that acts")
        return Caller(agent, trusted.name, claims.subject or "", actor, claims.expires, self._most(agent))

    def by_certificate(self, spiffe_ids: frozenset[str]) -> Caller:
        """Who calls with a certificate that the TLS layer has verified, by all URIs in its SAN. Raises CallerRefused.

        An X.509-SVID has exactly one (SPIFFE X509-SVID, 2).
        """
        if len(spiffe_ids) != 1:
            raise CallerRefused("the certificate does not have exactly one URI as its name")
        (named,) = spiffe_ids
        found = {name for name, identity in self.agents.identities() if identity.spiffe == named}
        agent = _only(found, "the certificate")
        return Caller(agent, "", named, max_open=self._most(agent))

    def audience_of(self, caller: Caller) -> str | None:
        """What tokens the caller may ask about are for, where it is a service; None for an agent."""
        service = self.agents.services.get(caller.agent)
        return None if service is None else service.audience or caller.agent

    def _most(self, name: str) -> int | None:
        agent = self.agents.agents.get(name)
        return None if agent is None else agent.max_open

    def may_open(self, caller: Caller, task_type: str) -> bool:
        """Whether the agent may open tasks of this type at all; the policy is asked besides."""
        agent = self.agents.agents.get(caller.agent)
        return agent is not None and task_type in agent.may_open


def expected(issuer: Issuer) -> Expected:
    """What a token of this issuer must be."""
    return Expected(
        issuer.issuer,
        frozenset(issuer.audience),
        algorithms=frozenset(issuer.algorithms) | ({"Ed25519"} if "EdDSA" in issuer.algorithms else frozenset()),
        types=None if issuer.types is None else frozenset(issuer.types),
        required=frozenset({"sub", "iat"}),
        leeway=issuer.clock_skew,
        longest_life=issuer.longest_life,
    )


def _keys(issuer: Issuer, folder: Path, clock: Clock) -> KeySource:
    if issuer.jwks_file is not None:
        return GivenKeys.from_file(folder / issuer.jwks_file)
    if issuer.jwks_url is not None:
        return IssuerKeys.at(issuer.jwks_url, clock=clock)
    metadata = oidc_metadata if issuer.discovery == "oidc" else oauth_metadata
    return IssuerKeys.discovered(issuer.issuer, metadata, clock=clock)


def _actor(claims: Claims) -> JsonObject | None:
    """The outermost actor, who uses the token now. Raises CallerRefused for one that cannot be told."""
    if "act" not in claims.all:
        return None
    outermost = each = claims.all["act"]
    for _ in range(_DEEPEST_ACTORS):
        if not isinstance(each, Mapping) or not isinstance(each.get("sub"), str) or not each["sub"]:
            break
        if each.get("iss", claims.issuer) != claims.issuer:
            raise CallerRefused("an actor of the token is of another issuer than the token")
        if "act" not in each:
            assert isinstance(outermost, Mapping)
            return outermost
        each = each["act"]
    raise CallerRefused("the token does not say plainly who acts (`act`)")


def _all_are(wanted: Mapping[str, str], claims: Mapping[str, JsonValue]) -> bool:
    return all(isinstance(claims.get(name), str) and claims[name] == value for name, value in wanted.items())


def _only(found: set[str], what: str) -> str:
    if not found:
        raise CallerRefused(f"{what} is of nobody who is declared", hint="see `agents` in agents.yaml")
    if len(found) > 1:
        raise CallerRefused(f"{what} could be of several", hint="let their `claims` in agents.yaml exclude each other")
    return found.pop()

"""Whether a token of ours still counts, for the service that it is for: by its lease, its task and the policy of now.

A signature says what was granted. That it was taken back since, only the ledger says.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, field

from orchestrator.errors import OrchestratorError
from orchestrator.grants.models import TOKEN_KEY
from orchestrator.ledger.events import Decided
from orchestrator.ledger.lease import LeaseState
from orchestrator.ledger.states import TaskState
from orchestrator.ledger.types import LeaseRecord
from orchestrator.pep.access import AccessToken, access_tokens
from orchestrator.pep.details import Operation, permits
from orchestrator.pep.errors import IssuerUnreachable, TokenRefused
from orchestrator.pep.jwt.keys import Keys, read_jwks
from orchestrator.pep.jwt.verification import issuer_named
from orchestrator.pep.sources import verify_by
from orchestrator.policy.engines.rego.engine import RegoEngine
from orchestrator.policy.types import Question
from orchestrator.policy.watched import WatchedPolicies
from orchestrator.runs.types import Services
from orchestrator.vault.jwks import issuer_of, jwks_from_transit

KEYS_SECONDS = 60.0
"""How long public keys are taken as they were; one that is not known is looked for sooner."""

AGAIN_SECONDS = 2.0
"""Between two looks for a key that is not known."""

VAULT_SECONDS = 10.0

_KEY_ID = re.compile(r"([A-Za-z0-9_-]{1,64}):v\d{1,9}")
_OF_A_KEY = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(slots=True)
class TransitKeys:
    """The public keys of the keys in Vault that sign our tokens."""

    services: Services
    _known: dict[str, tuple[float, Keys]] = field(default_factory=dict)

    async def keys_for(self, kid: str | None) -> Keys:
        """Raises IssuerUnreachable."""
        named = _KEY_ID.fullmatch(kid or "")
        if named is None:
            return Keys(())
        name, now = named[1], self.services.clock.monotonic()
        since, keys = self._known.get(name, (-KEYS_SECONDS, Keys(())))
        if now - since < (KEYS_SECONDS if keys.knows(kid) else AGAIN_SECONDS):
            return keys
        try:
            answer = await self.services.broker.vault.runtime_request(
                "get", f"transit/keys/{name}", deadline=now + VAULT_SECONDS
            )
            keys = read_jwks(jwks_from_transit(name, answer))
        except (OrchestratorError, ValueError, KeyError, TypeError) as error:
            raise IssuerUnreachable("the keys cannot be had from Vault now") from error
        self._known[name] = (now, keys)
        return keys


@dataclass(frozen=True, slots=True)
class Judgement:
    """Whether a token permits an operation now; why not, for whoever runs the service."""

    permitted: bool
    reason: str = ""


@dataclass(slots=True)
class Inquiry:
    """One per process. Belongs to one event loop."""

    services: Services
    _keys: TransitKeys = field(init=False)

    def __post_init__(self) -> None:
        self._keys = TransitKeys(self.services)

    async def active(self, text: str, audience: str) -> tuple[AccessToken, LeaseRecord] | None:
        """The token, if it is one of ours for this audience that counts now. Raises IssuerUnreachable, LedgerError."""
        issuer = self.services.broker.token_issuer
        try:
            named = issuer_named(text)
            if issuer is None or named is None or not _is_ours(named, issuer):
                return None
            expected = access_tokens(named, audience)
            token = AccessToken.of(await verify_by(text, self._keys, expected, self.services.clock))
        except TokenRefused:
            return None
        lease = await asyncio.to_thread(self.services.reader.lease, token.token_id)
        if lease is None or lease.lease_id != token.token_id or not await asyncio.to_thread(self._counts, lease):
            return None
        return token, lease

    async def permitted(self, text: str, audience: str, operation: Operation) -> Judgement:
        """Whether the token permits the operation now. Raises IssuerUnreachable, LedgerError."""
        found = await self.active(text, audience)
        if found is None:
            return Judgement(False, "the token is not active")
        token, lease = found
        if not permits(token.details or (), operation):
            return Judgement(False, "the token is not for this")
        return await self._still_allowed(lease)

    def _counts(self, lease: LeaseRecord) -> bool:
        """Whether the lease is held, its task is open, and its agent is not cut off."""
        now, reader = self.services.clock.now(), self.services.reader
        if lease.grant_kind != "token" or lease.state is not LeaseState.ISSUED:
            return False
        if lease.expires_at is None or lease.expires_at <= now:
            return False
        if any(each.agent == lease.agent for each in self.services.agents.blocks(now=now)):
            return False
        run = reader.run(lease.run_id)
        if run is None or run.task is None:
            return run is not None
        task = reader.task(run.task)
        return task is not None and task.state is TaskState.OPEN and task.deadline > now

    async def _still_allowed(self, lease: LeaseRecord) -> Judgement:
        """What the policies of now say to the question that was asked when the token was issued."""
        engine = self.services.policy
        if isinstance(engine, WatchedPolicies):
            engine = engine.engine
        if not isinstance(engine, RegoEngine):
            return Judgement(True)
        asked = [
            event.data
            for event in await asyncio.to_thread(self.services.reader.events, lease.run_id, kind=Decided.kind)
            if (event.data["step"], event.data["attempt"], event.data["allow"]) == (lease.step, lease.attempt, True)
        ]
        question = asked[-1]["input"] if asked else None
        if not isinstance(question, dict):
            return Judgement(False, "it is not on record what the policy was asked")
        answer = engine.ask(Question.DECISION, {**question, "time": self.services.clock.now().isoformat()})
        return Judgement(answer.allow, "" if answer.allow else "; ".join(answer.reasons))


def _is_ours(named: str, issuer: str) -> bool:
    """Whether a key of ours signs tokens with this `iss`: each key but the usual one has an issuer of its own."""
    if named == issuer:
        return True
    name = named.removeprefix(f"{issuer}/")
    return name not in (named, TOKEN_KEY) and bool(_OF_A_KEY.fullmatch(name)) and issuer_of(issuer, name) == named

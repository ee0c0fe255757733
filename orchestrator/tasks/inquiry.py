"""Whether a token of ours still counts, for the service that it is for: by its lease, its task and the policy of now.

A signature says what was granted. That it was taken back since, only the ledger says.
"""

from __future__ import annotations

import asyncio
import math
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
from orchestrator.vault.jwks import jwks_from_transit

KEYS_SECONDS = 60.0
"""How long public keys are taken as they were; one that is not known is looked for sooner."""

AGAIN_SECONDS = 2.0
"""Between two looks for a key that is not known."""

VAULT_SECONDS = 10.0

_OF_A_KEY = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(slots=True)
class TransitKey:
    """The public keys of one key in Vault, that of an issuer of ours: what another key has signed is not its."""

    services: Services
    name: str
    _since: float = -math.inf
    _keys: Keys = field(default_factory=lambda: Keys(()))

    async def keys_for(self, kid: str | None) -> Keys:
        """Raises IssuerUnreachable."""
        now = self.services.clock.monotonic()
        if now - self._since < (KEYS_SECONDS if self._keys.knows(kid) else AGAIN_SECONDS):
            return self._keys
        try:
            answer = await self.services.broker.vault.runtime_request(
                "get", f"transit/keys/{self.name}", deadline=now + VAULT_SECONDS
            )
            self._keys, self._since = read_jwks(jwks_from_transit(self.name, answer)), now
        except (OrchestratorError, ValueError, KeyError, TypeError) as error:
            raise IssuerUnreachable("the keys cannot be had from Vault now") from error
        return self._keys


@dataclass(frozen=True, slots=True)
class Judgement:
    """Whether a token permits an operation now; why not, for whoever runs the service."""

    permitted: bool
    reason: str = ""


@dataclass(slots=True)
class Inquiry:
    """One per process. Belongs to one event loop."""

    services: Services
    _keys: dict[str, TransitKey] = field(default_factory=dict)

    async def active(self, text: str, audience: str) -> tuple[AccessToken, LeaseRecord] | None:
        """The token, if it is one of ours for this audience that counts now. Raises IssuerUnreachable, LedgerError."""
        issuer = self.services.broker.token_issuer
        try:
            named = issuer_named(text)
            key = None if issuer is None or named is None else _key_of(named, issuer)
            if named is None or key is None:
                return None
            keys = self._keys.get(key) or TransitKey(self.services, key)
            token = AccessToken.of(await verify_by(text, keys, access_tokens(named, audience), self.services.clock))
        except TokenRefused:
            return None
        self._keys[key] = keys  # which there is: it has signed this
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


def _key_of(named: str, issuer: str) -> str | None:
    """The one key of ours that signs tokens with this `iss`: each but the usual one has an issuer of its own."""
    if named == issuer:
        return TOKEN_KEY
    name = named.removeprefix(f"{issuer}/")
    return name if name not in (named, TOKEN_KEY) and _OF_A_KEY.fullmatch(name) else None

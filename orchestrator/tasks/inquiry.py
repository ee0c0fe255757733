"""Whether a token of ours still counts, for the service that it is for: by its lease, its task and the policy of now.

A signature says what was granted. That it was taken back since, only the ledger says.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from orchestrator.ledger.events import Decided
from orchestrator.ledger.lease import LeaseState
from orchestrator.ledger.states import TaskState
from orchestrator.ledger.types import LeaseRecord
from orchestrator.pep.access import AccessToken, access_tokens
from orchestrator.pep.details import Operation, permits
from orchestrator.pep.errors import TokenRefused
from orchestrator.pep.jwt.verification import claimed, issuer_named
from orchestrator.pep.sources import verify_by
from orchestrator.policy.engines.rego.engine import RegoEngine
from orchestrator.policy.types import Question
from orchestrator.policy.watched import WatchedPolicies
from orchestrator.runs.types import Services
from orchestrator.tasks.signing_keys import SigningKeys


@dataclass(frozen=True, slots=True)
class Judgement:
    """Whether a token permits an operation now; why not, for whoever runs the service."""

    permitted: bool
    reason: str = ""


@dataclass(slots=True)
class Inquiry:
    """One per process. Belongs to one event loop."""

    services: Services
    keys: SigningKeys = field(init=False)

    def __post_init__(self) -> None:
        self.keys = SigningKeys(self.services)

    async def ours(self, text: str, audience: str | None = None) -> AccessToken | None:
        """The token, if we have signed it for this audience, or for any, and it has not expired.

        Raises IssuerUnreachable.
        """
        try:
            named = issuer_named(text)
            keys = self.keys.of_issuer(named)
            if named is None or keys is None:
                return None
            meant = (audience,) if audience is not None else _audiences(text)
            token = AccessToken.of(await verify_by(text, keys, access_tokens(named, *meant), self.services.clock))
        except (TokenRefused, ValueError):
            return None
        self.keys.keep(keys)  # which there is: it has signed this
        return token

    async def active(self, text: str, audience: str) -> tuple[AccessToken, LeaseRecord] | None:
        """The token, if it is one of ours for this audience that counts now. Raises IssuerUnreachable, LedgerError."""
        token = await self.ours(text, audience)
        if token is None:
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


def _audiences(text: str) -> tuple[str, ...]:
    """Whom a token says that it is for; not to be believed before it is verified. Raises TokenRefused."""
    said = claimed(text).get("aud")
    listed = said if isinstance(said, list) else [said]
    return tuple(each for each in listed if isinstance(each, str))

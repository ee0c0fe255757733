"""Tokens that are bound to a key (RFC 9449): whoever sends one proves with each request that they have the key."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Protocol

from orchestrator.clock import Clock, SystemClock
from orchestrator.network.origins import origin
from orchestrator.pep.access import AccessToken
from orchestrator.pep.errors import ProofRefused, Reason, TokenRefused
from orchestrator.pep.jwt.proofs import Presented, Proof, proof_of
from orchestrator.secret import Secret


class Seen(Protocol):
    """Remembers proofs, so that none counts twice (RFC 9449, 11.1)."""

    async def first_time(self, proof: Proof) -> bool:
        """Whether it has not come before. May raise IssuerUnreachable where that cannot be told."""
        ...


@dataclass
class SeenHere:
    """The proofs that came to this process. Where several answer for one URL, share a store or use `Nonces` as well.

    `seconds`: how long each is remembered, longer than it is taken. With `most` of them no further one is taken.
    """

    seconds: float = 90
    most: int = 100_000
    clock: Clock = field(default_factory=SystemClock, repr=False)
    _until: OrderedDict[str, float] = field(default_factory=OrderedDict, init=False, repr=False)

    async def first_time(self, proof: Proof) -> bool:
        """Whether it has not come before."""
        now = self.clock.monotonic()
        while self._until and next(iter(self._until.values())) <= now:
            self._until.popitem(last=False)
        if proof.digest in self._until or len(self._until) >= self.most:
            return False
        self._until[proof.digest] = now + self.seconds
        return True


@dataclass(frozen=True, slots=True)
class Nonces:
    """What a service wants to find in a proof (RFC 9449, 9), so that none can be made long before it is sent.

    They say when they were made, and are an HMAC: whoever has the `key` believes them, at any process. Each is good for
    `seconds`, and once more for as long.
    """

    key: Secret
    seconds: int = 60

    def __post_init__(self) -> None:
        if len(self.key.reveal()) < 32:
            raise ValueError("the key of the nonces has at least 32 characters")

    def fresh(self, now: float) -> str:
        """The one of this moment, in seconds since 1970."""
        return self._of(int(now) // self.seconds)

    def accepts(self, nonce: str | None, now: float) -> bool:
        """Whether it is one of this moment, or of the one before."""
        period, given = int(now) // self.seconds, (nonce or "").encode(errors="surrogatepass")
        return any(hmac.compare_digest(given, self._of(each).encode()) for each in (period, period - 1))

    def _of(self, period: int) -> str:
        digest = hmac.digest(self.key.reveal().encode(), f"dpop-nonce {period}".encode(), hashlib.sha256)
        return base64.urlsafe_b64encode(digest[:18]).decode()


@dataclass(frozen=True)
class Possession:
    """How a service checks proofs. `at` is the origin under which others call it, such as `https://crm.example`: what
    a request says of it (`Host`) is not believed. Raises ValueError for what is none.

    Seconds: `age`, since when a proof may have been made, `leeway` by which clocks differ; together less than `seen`
    remembers.
    """

    at: str
    seen: Seen = field(default_factory=SeenHere, repr=False)
    nonces: Nonces | None = None
    age: float = 60
    leeway: float = 5

    def __post_init__(self) -> None:
        object.__setattr__(self, "at", origin(self.at))
        if isinstance(self.seen, SeenHere) and self.seen.seconds < self.age + 2 * self.leeway:
            raise ValueError("proofs are to be remembered for longer than they are taken")

    async def check(self, token: AccessToken, text: str, presented: Presented, now: float) -> None:
        """That the request was sent by whoever has the key of the token. Raises TokenRefused, IssuerUnreachable."""
        bound = bound_to(token)
        if bound is None:
            raise TokenRefused(Reason.CONFIRMATION, "it is bound to no key", claim="cnf")
        proof = proof_of(presented, now=now, age=self.age, leeway=self.leeway, token=text)
        if not hmac.compare_digest(bound.encode(), proof.thumbprint.encode()):
            raise TokenRefused(Reason.CONFIRMATION, "it is bound to another key", claim="cnf")
        if self.nonces is not None and not self.nonces.accepts(proof.nonce, now):
            raise ProofRefused(Reason.NONCE, "the proof is refused: it has no nonce of now")
        if not await asyncio.shield(self.seen.first_time(proof)):
            raise ProofRefused(Reason.REPLAYED, "the proof is refused: it came before")


def bound_to(token: AccessToken) -> str | None:
    """The thumbprint of the key that a token is bound to; None where it is bound to nothing.

    Raises TokenRefused for what is bound in another way: what is not understood is not passed over.
    """
    if "cnf" not in token.claims:
        return None
    confirmation = token.claims["cnf"]
    if isinstance(confirmation, dict) and set(confirmation) == {"jkt"}:
        thumbprint = confirmation["jkt"]
        if isinstance(thumbprint, str) and thumbprint.isascii() and thumbprint:
            return thumbprint
    raise TokenRefused(Reason.CONFIRMATION, "it is bound in a way that is not known here", claim="cnf")

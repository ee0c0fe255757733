"""The proof of a key to which a token is to be bound (RFC 9449, 5): once, whichever process it comes to."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from starlette.requests import Request

from orchestrator.pep.errors import ProofRefused
from orchestrator.pep.jwt.proofs import Presented, Proof, proof_of
from orchestrator.runs.types import Services
from orchestrator.server.api.oauth.errors import Code, OAuthError

PROOF_SECONDS = 60.0
"""Since when a proof may have been made."""

LEEWAY_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Proofs:
    """Checks proofs for one URL, by which others call it: None where that is not known, and then none is taken.

    No nonces are handed out: the ledger has every proof on record for as long as it could come again, to whichever
    process; and what is issued lives for minutes (RFC 9449, 11.2).
    """

    services: Services
    url: str | None

    def shown(self, request: Request) -> Proof | None:
        """The proof that a request presents, verified; None where it presents none. Raises OAuthError."""
        sent = request.headers.getlist("dpop")
        if not sent:
            return None
        if self.url is None:
            raise OAuthError(Code.INVALID_PROOF, "this server does not know by which URL it is called: see --api-url")
        try:
            return proof_of(
                Presented(sent, request.method, self.url),
                now=self.services.clock.now().timestamp(),
                age=PROOF_SECONDS,
                leeway=LEEWAY_SECONDS,
            )
        except ProofRefused as error:
            raise OAuthError(Code.INVALID_PROOF, error.message) from error

    async def use(self, proof: Proof) -> str:
        """The thumbprint of its key. Raises OAuthError where it came before, and LedgerError."""
        store, now = self.services.approvals.store, self.services.clock.now()
        if not await asyncio.to_thread(lambda: store.first_time(f"dpop:{proof.digest}", now=now)):
            raise OAuthError(Code.INVALID_PROOF, "the proof is refused: it came before")
        return proof.thumbprint

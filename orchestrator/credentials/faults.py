"""What the silences of an issuer mean that is not Vault."""

from __future__ import annotations

from orchestrator.vault.faults import Outcome, Unserved


class IssuerUnavailable(Unserved):
    """An issuer did not serve a request. `outcome` says whether a credential may exist all the same."""

    def __init__(
        self, message: str, *, outcome: Outcome, retry_after: float | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.outcome = outcome
        self.retry_after = retry_after

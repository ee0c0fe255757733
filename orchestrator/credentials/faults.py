"""What the silences of an issuer mean that is not Vault."""

from __future__ import annotations

from orchestrator.errors import Unreachable
from orchestrator.vault.faults import Outcome


class IssuerUnavailable(Unreachable):
    """An issuer did not serve a request. `outcome` says whether a credential may exist all the same."""

    def __init__(self, message: str, *, outcome: Outcome, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.outcome = outcome

"""What it takes to open and close credentials, put together once for a process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from orchestrator.clock import Clock
from orchestrator.credentials.types import SWEEP_GRANT, Confirm, Duties, Issuer, LeaseHandle
from orchestrator.ledger.ids import carries
from orchestrator.ledger.types import LedgerWriter
from orchestrator.secret import Secret
from orchestrator.vault.session import VaultSession

if TYPE_CHECKING:
    from orchestrator.credentials.governor.governor import Governor
    from orchestrator.credentials.witnesses.dead_login import DeadLogins
    from orchestrator.issuers.declared import DeclaredIssuer


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerParts:
    """What is needed to open credentials. `grace` bounds, in seconds, how long closing tries to confirm."""

    vault: VaultSession
    ledger: LedgerWriter
    issuer: Callable[[str], Issuer]
    remember: Callable[[Secret], None]
    clock: Clock
    grace: float = 30.0
    token_issuer: str | None = None
    issuers: Mapping[str, DeclaredIssuer] = field(default_factory=dict)
    """Those that are not Vault, by name, as an admin has declared them."""
    is_closed: Callable[[str], bool] = lambda lease_id: False
    """Whether a lease of this ledger has come to its end; asks the ledger."""
    duties: Duties | None = None
    confirm: Mapping[str, Confirm] = field(default_factory=dict)
    """By connection; the database where nothing is said."""
    dead_logins: DeadLogins | None = None
    """Tries what Vault says is revoked; None where no login is tried."""
    governor: Governor | None = None
    """Bounds how many leases of a connection are open at once, over all processes; None where none is limited."""

    def tries(self, handle: LeaseHandle, step_key: str) -> bool:
        """Whether this login is tried when Vault says that it is revoked: not where its database cannot be reached."""
        return self.dead_logins is not None and self.confirmed_by(handle, step_key) is Confirm.DATABASE

    def confirmed_by(self, handle: LeaseHandle, step_key: str) -> Confirm:
        """Whose word it takes that this lease is gone. A database can only be asked for names with the step key."""
        if self.duties is None or handle.connection is None or handle.grant == SWEEP_GRANT:
            return Confirm.VAULT
        if handle.subject and not carries(handle.subject, step_key):
            return Confirm.VAULT
        return self.confirm.get(handle.connection, Confirm.DATABASE)

"""What two histories can disagree about, as data. Nothing of it is a line of a log: those hold secrets."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class Kind(StrEnum):
    """What is wrong. The value is the name in JSON."""

    ISSUED_UNKNOWN = "issued_unknown"
    """Vault issued it on one of our paths, and the ledger does not know it."""
    NOT_IN_VAULT = "not_in_vault"
    """The ledger says that Vault issued it, and Vault's log does not."""
    REVOKED_BUT_OPEN = "revoked_but_open"
    """Vault revoked it, and the ledger believes it open."""
    REVOKED_BY_OTHERS = "revoked_by_others"
    """Somebody revoked it before the orchestrator began to."""
    LOGIN_UNKNOWN = "login_unknown"
    """A login with a name like ours was made that no lease of the ledger has."""
    LOGIN_NOT_DROPPED = "login_not_dropped"
    """A login was made, its lease is over or unknown, and the log shows no drop of it."""
    LOGIN_NOT_CREATED = "login_not_created"
    """The ledger has a login that the log never saw made."""
    STATEMENT_UNREADABLE = "statement_unreadable"
    """A statement with a name like ours that no parser takes, so that a login may be hidden in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One disagreement. Empty texts where nothing is known."""

    kind: Kind
    what: str
    """Vault's lease id or path, an accessor, or the name of a login."""
    time: datetime | None = None
    """When it was issued, revoked or made, by the clock of whoever logged it, or else by the ledger's."""
    lease_id: str = ""
    run_id: str = ""
    by: str = ""
    """Who did it, as Vault's log names them: a display name and where they came from."""


@dataclass(slots=True)
class Coverage:
    """How much of a log was read. `broken` are lines that are no entries, cut off ones among them."""

    entries: int = 0
    broken: int = 0
    first: datetime | None = None
    last: datetime | None = None

    def saw(self, moment: datetime | None) -> None:
        """An entry of this time; None where it says none that can be read."""
        self.entries += 1
        if moment is not None:
            self.first = moment if self.first is None else min(self.first, moment)
            self.last = moment if self.last is None else max(self.last, moment)


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """What became of one comparison."""

    coverage: Coverage
    logged: int
    """Leases or logins of ours in the log."""
    recorded: int
    """Those in the ledger in the time that the log covers."""
    matched: int
    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()
    """What could not be judged, and why."""

"""Whether the login with which Vault connects to a database still works: it is made to connect anew.

A session that Vault opened before a password was restored or rotated goes on working for a while, and so does what is
asked of it; only a new one shows what holds. `database/reset/NAME` opens one, and makes no credential that would have
to be taken back (Vault API, "Reset connection").
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from orchestrator.provision.vault.admin import VaultAdmin
from orchestrator.vault.faults import VaultRefused, VaultUnavailable

_BY_SERVER = re.compile(r"(?:FATAL|ERROR): (?P<words>[^;]*?) \(SQLSTATE (?P<state>\w{5})\)")
_WRONG_PASSWORD = ("28P01", "password authentication failed")


class Outcome(Enum):
    """What came of it."""

    WORKS = "works"
    WRONG_PASSWORD = "wrong password"  # noqa: S105 -- a word
    FAILED = "failed"
    """For another reason: the server is not there, the login may not log in, the database is another one."""
    NOT_TRIED = "not tried"
    """The admin's token does not permit it."""


@dataclass(frozen=True, slots=True)
class Login:
    """What came of it, and what Vault or the database said."""

    outcome: Outcome
    said: str = ""


def try_login(admin: VaultAdmin, connection: str) -> Login:
    """Have Vault connect anew with what it has. Raises VaultUnavailable where Vault itself serves nothing.

    A server that takes the connection and says nothing keeps Vault from answering, too, which is no fault of Vault's.
    """
    try:
        admin.reset(connection)
    except VaultRefused as refusal:
        return Login(Outcome.NOT_TRIED, refusal.message)
    except VaultUnavailable as error:
        if error.status not in (0, 500):
            raise
        said = _words(error.message)
        wrong = any(sign in error.message for sign in _WRONG_PASSWORD)
        return Login(Outcome.WRONG_PASSWORD if wrong else Outcome.FAILED, said)
    return Login(Outcome.WORKS)


def _words(message: str) -> str:
    """The database's own words where there are any: those of the last try."""
    found = list(_BY_SERVER.finditer(message))
    return f"{found[-1]['words']} (SQLSTATE {found[-1]['state']})" if found else message

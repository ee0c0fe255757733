"""Who has logged in, for as long as this process lives. A cookie names a session; of a token nothing is kept."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass, field
from enum import StrEnum

from orchestrator.approvals.people import Person
from orchestrator.clock import Clock

IDLE_SECONDS = 1800.0
LONGEST_SECONDS = 8 * 3600.0
MOST_SESSIONS = 2000
"""Of a process; the one that was idle longest makes room."""


class Role(StrEnum):
    """An approver and an operator may also read."""

    READER = "reader"
    APPROVER = "approver"
    OPERATOR = "operator"


@dataclass(slots=True)
class Session:
    """One browser of one person. `ends`, `seen`: by the monotonic clock."""

    person: Person
    shown: str
    """Their name for people to read."""
    roles: frozenset[Role]
    ends: float
    seen: float
    is_ended: bool = False
    """By whoever it is of."""
    form_token: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)
    """What every form of theirs sends back: no other site knows it."""

    def may(self, role: Role) -> bool:
        """Whether they have it."""
        return role in self.roles

    def sent(self, token: str) -> bool:
        """Whether a form is one that was given to this session."""
        return hmac.compare_digest(token.encode(), self.form_token.encode())


@dataclass(slots=True)
class Sessions:
    """The sessions of a process, by digests of what is in the cookies: whoever reads memory dumps logs in as nobody."""

    clock: Clock
    _known: dict[str, Session] = field(default_factory=dict)

    def begin(self, person: Person, shown: str, roles: frozenset[Role], *, seconds: float = LONGEST_SECONDS) -> str:
        """What to put into the cookie of a new session, which lasts so long at most."""
        now = self.clock.monotonic()
        self._known = {name: each for name, each in self._known.items() if _lasts(each, now)}
        while len(self._known) >= MOST_SESSIONS:
            del self._known[min(self._known, key=lambda name: self._known[name].seen)]
        cookie = secrets.token_urlsafe(32)
        ends = now + min(seconds, LONGEST_SECONDS)
        self._known[_digest(cookie)] = Session(person, shown, roles, ends, now)
        return cookie

    def of(self, cookie: str) -> Session | None:
        """The session of a cookie, which is in use as of now."""
        session = self._known.get(_digest(cookie))
        now = self.clock.monotonic()
        if session is None or not _lasts(session, now):
            return None
        session.seen = now
        return session

    def end(self, cookie: str) -> None:
        """Log out."""
        if session := self._known.pop(_digest(cookie), None):
            session.is_ended = True

    def lasts(self, session: Session) -> bool:
        """Whether it does, for what goes on without anybody's doing anything: that is no use of it."""
        return _lasts(session, self.clock.monotonic())


def _lasts(session: Session, now: float) -> bool:
    return not session.is_ended and now < session.ends and now - session.seen < IDLE_SECONDS


def _digest(cookie: str) -> str:
    return hashlib.sha256(cookie.encode()).hexdigest()

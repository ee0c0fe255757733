"""The orchestrator's own secrets: how it logs in to Vault, the tokens that it gets, the passwords of its databases.

A step must never see one, and where one does get out nevertheless (a program that read a file of its user's) no
output, event, message or log line carries it further.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from urllib.parse import parse_qsl, unquote, urlsplit

from orchestrator.redaction.forms import recognisable
from orchestrator.redaction.redactor import Redactor
from orchestrator.secret import Secret

_TOKENS_KEPT = 64
"""How many of the newest Vault tokens no output may hold."""

_PASSWORD_NAMES = frozenset({"password", "passwd", "pwd", "sslpassword"})
_KEYWORD = re.compile(r"(?i)(?:^|\s)(?:password|passwd|pwd|sslpassword)\s*=\s*('(?:[^'\\]|\\.)*'|(?:[^\s\\]|\\.)+)")


class OwnSecrets:
    """Those of this process. `everywhere` is its one redactor; `standing` gives the secrets that last, as of now.

    What is too short or too common to be recognised is not looked for: outputs would be refused by chance.
    """

    def __init__(self, everywhere: Redactor, *, standing: Callable[[], Iterable[Secret]] = tuple) -> None:
        self.redactor = Redactor(only=recognisable)
        self._everywhere = everywhere
        self._standing = standing
        self._since_forgotten = 0
        self.look_again()

    def remember_token(self, token: Secret) -> None:
        """A Vault token that arrived or is in use. Old ones are forgotten in time, the standing secrets never."""
        self._everywhere.add(token)
        self.redactor.add(token)
        self._since_forgotten += 1
        if self._since_forgotten >= _TOKENS_KEPT:  # the one that is in use is added again with each use
            self._since_forgotten = 0
            self.look_again()
            self.redactor.forget(until=self.redactor.position, keep=_TOKENS_KEPT)

    def look_again(self) -> None:
        """Learn the standing secrets as they are now: somebody keeps the files fresh in which they lie."""
        for secret in self._standing():
            if recognisable(secret.reveal()):
                self._everywhere.add(secret)
                self.redactor.add(secret)


def secrets_in(address: str) -> tuple[Secret, ...]:
    """The passwords in the address of a database (a URL, or a DSN of keys and values), and then the address itself."""
    parts = urlsplit(address)
    found = [unquote(parts.password)] if parts.password else []
    found += [value for name, value in parse_qsl(parts.query) if name.lower() in _PASSWORD_NAMES]
    if not parts.scheme or not parts.netloc:
        for written in _KEYWORD.findall(address):
            bare = written[1:-1] if written.startswith("'") else written
            found.append(re.sub(r"\\(.)", r"\1", bare))
    return tuple(Secret(text) for text in (*found, address)) if found else ()

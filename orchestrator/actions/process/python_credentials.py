"""What a function of a `python` step gets as `credentials`. Stand-alone: it imports only the standard library."""

from __future__ import annotations

import threading
from collections.abc import Mapping


class Credentials(dict[str, dict[str, str]]):
    """The step's credentials, as `credentials["grant"]["field"]`: always what was issued last.

    Where a grant says `on_expiry: reissue` another credential takes the place of one that cannot be renewed. All
    its fields change at once: `login = credentials["db"]` keeps what belongs together. The old one stays valid for
    the grant's `overlap`, so read it again for every connection, or `wait` for the next one in a thread.
    """

    def __init__(self, issued: Mapping[str, dict[str, str]]) -> None:
        super().__init__(issued)
        self._versions = dict.fromkeys(issued, 1)
        self._changed = threading.Condition()

    def version(self, grant: str) -> int:
        """1 for the credential that the step began with, and one more for each that took its place."""
        return self._versions[grant]

    def wait(self, grant: str, *, after: int, timeout: float | None = None) -> bool:
        """Wait for a version later than `after`; False if none has come within `timeout` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: self._versions[grant] > after, timeout)

    def take(self, grant: str, version: int, fields: dict[str, str]) -> None:
        """Put a new credential in the place of the old one."""
        with self._changed:
            self[grant] = fields
            self._versions[grant] = version
            self._changed.notify_all()

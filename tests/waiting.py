"""Waiting for what another process does."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 90) -> Any:
    """What the condition is at last. Looking takes a fifth of the time at most: the processors are for the others.

    Raises AssertionError after so many seconds.
    """
    until = time.monotonic() + seconds
    while True:
        begin = time.monotonic()
        if found := condition():
            return found
        now = time.monotonic()
        assert now < until, f"waited in vain for {what}"
        time.sleep(min(0.5, max(0.02, 4 * (now - begin))))

"""Tests with real servers and a network that fails."""

from __future__ import annotations

import pytest
from fork_server import ForkServer


@pytest.fixture(scope="session", autouse=True)
def _watched(nothing_escapes: None, children: ForkServer) -> None:
    """Search what all of these tests write for secrets that escaped; commands can be forked in any of them."""

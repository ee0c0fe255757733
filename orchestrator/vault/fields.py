"""Parts of Vault's answers, taken for what they should be or refused: a peer may say anything.

An answer in which something is missing came all the same, so what was asked for may have happened.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.vault.faults import Outcome, VaultUnavailable

LONGEST_TTL = 2**63 // 10**9
"""Seconds. Vault counts in 64 bits of nanoseconds (Go's time.Duration), so it cannot have meant more: 292 years."""


def not_understood(path: str) -> VaultUnavailable:
    """For an answer of Vault's that came and does not hold what it should."""
    return VaultUnavailable(
        f"Vault's answer to {path} cannot be understood", outcome=Outcome.UNKNOWN, path=path, status=200
    )


def section(body: Mapping[str, Any], name: str, path: str) -> Mapping[str, Any]:
    """An object within an answer, such as `auth` or `data`. Raises VaultUnavailable if it is none."""
    found = body.get(name)
    if not isinstance(found, dict):
        raise not_understood(path)
    return found


def text(body: Mapping[str, Any], name: str, path: str) -> str:
    """A text that is not empty. Raises VaultUnavailable if it is none."""
    found = body.get(name)
    if not isinstance(found, str) or not found:
        raise not_understood(path)
    return found


def seconds(body: Mapping[str, Any], name: str, path: str) -> int:
    """A whole number of seconds, from 0 to `LONGEST_TTL`. Raises VaultUnavailable if it is anything else."""
    return whole_number(body, name, path, most=LONGEST_TTL)


def whole_number(body: Mapping[str, Any], name: str, path: str, *, least: int = 0, most: int = 2**31) -> int:
    """A JSON number without a fraction within bounds. Raises VaultUnavailable if it is anything else."""
    found = body.get(name)
    if type(found) is not int or not least <= found <= most:  # True is an int, too
        raise not_understood(path)
    return found

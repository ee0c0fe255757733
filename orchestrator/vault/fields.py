"""Parts of Vault's answers, taken for what they should be or refused: a peer may say anything.

An answer in which something is missing came all the same, so what was asked for may have happened. And not every
2xx is Vault's word that something was taken back: what answers for it on the way (a proxy, a cache, a server that is
being started) may say 200 to anything, and then a credential would be called revoked that still works.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from orchestrator.vault.faults import Outcome, VaultUnavailable

Confirmation = Callable[[int, Mapping[str, Any] | None], bool]
"""Whether an answer 2xx with this status and this body (None if it is empty) confirms what was asked for."""

_UNKNOWN_ACCESSOR = "No token found with this accessor"
"""OpenBao's warning, in an answer 200, to a revocation of a token that it does not know. Vault refuses it instead."""

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


def done(status: int, body: Mapping[str, Any] | None) -> bool:
    """What Vault and OpenBao answer to a revocation: 204 and nothing more (Vault's HTTP API manual, `/sys/leases`)."""
    return status == 204 and body is None


def token_gone(status: int, body: Mapping[str, Any] | None) -> bool:
    """A revocation by accessor that was done, or was not needed since there is no such token."""
    if done(status, body):
        return True
    warnings = body.get("warnings") if body is not None else None
    return status == 200 and isinstance(warnings, list) and _UNKNOWN_ACCESSOR in warnings


def no_such_token(status: int, message: str) -> bool:
    """Whether a refused revocation by accessor says that there is no token to revoke.

    Vault does not know the accessor, or has an entry of it and no token with it that may be used
    (`handleUpdateRevokeAccessor` in `token_store.go`). The second stays so where OpenBao is asked at the same moment to
    revoke a token and its parent and leaves the accessor's entry behind; who shows such a token is refused.
    """
    if "invalid accessor" in message:
        return status in (400, 403, 404)
    return status == 400 and "token not found" in message

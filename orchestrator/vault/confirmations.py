"""Which answers are Vault's word that something was taken back.

Not every 2xx is: what answers for Vault on the way (a proxy, a cache, a server that is being started) may say 200 to
anything, and then a credential would be called revoked that still works.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Confirmation = Callable[[int, Mapping[str, Any] | None], bool]
"""Whether an answer 2xx with this status and this body (None if it is empty) confirms what was asked for."""

_UNKNOWN_ACCESSOR = "No token found with this accessor"
"""OpenBao's warning, in an answer 200, to a revocation of a token that it does not know. Vault refuses it instead."""


def done(status: int, body: Mapping[str, Any] | None) -> bool:
    """What Vault and OpenBao answer to a revocation: 204 and nothing more (Vault's HTTP API manual, `/sys/leases`)."""
    return status == 204 and body is None


def token_gone(status: int, body: Mapping[str, Any] | None) -> bool:
    """A revocation by accessor that was done, or was not needed since there is no such token."""
    if done(status, body):
        return True
    warnings = body.get("warnings") if body is not None else None
    return status == 200 and isinstance(warnings, list) and _UNKNOWN_ACCESSOR in warnings

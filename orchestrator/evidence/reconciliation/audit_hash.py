"""What Vault's audit device writes instead of a value: Vault itself is asked (`sys/audit-hash/:path`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

from orchestrator.errors import ProvisionError, UsageError

AT_ONCE = 8
"""Requests under way. Each answer takes Vault a HMAC, and an entry in that very log."""


class Writes(Protocol):
    """What is asked: `orchestrator.provision.vault.admin.VaultAdmin`."""

    def write(self, path: str, payload: Mapping[str, Any]) -> dict[str, Any]:
        """Write to a path, and give what Vault said."""
        ...


@dataclass(slots=True)
class AuditHash:
    """Asks for many values, several at once. Vault is opened for the first."""

    opened: Callable[[], Writes]
    device: str
    asked: int = 0
    _vault: Writes | None = None

    def __call__(self, values: Sequence[str]) -> Sequence[str]:
        """In the same order. Raises UsageError where there is no such device, and ProvisionError."""
        if not values:
            return []
        self._vault = self._vault or self.opened()
        self.asked += len(values)
        with ThreadPoolExecutor(min(AT_ONCE, len(values))) as threads:
            return list(threads.map(self._hash, values))

    def _hash(self, value: str) -> str:
        assert self._vault is not None
        try:
            answer = self._vault.write(f"sys/audit-hash/{self.device}", {"input": value})
        except ProvisionError as error:
            if "unknown audit backend" in error.message:
                raise UsageError(
                    f"Vault has no audit device `{self.device}`",
                    hint="name the one that wrote this log with --audit-device",
                ) from None
            raise
        found = (answer.get("data") or answer).get("hash")
        return found if isinstance(found, str) else ""

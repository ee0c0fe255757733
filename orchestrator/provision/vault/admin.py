"""Vault as its administrator sees it: paths that are read, listed and written with the admin's token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.errors import ProvisionError
from orchestrator.secret import Secret
from orchestrator.vault.config import VaultConfig
from orchestrator.vault.faults import VaultRefused, VaultUnavailable, is_no_namespace
from orchestrator.vault.transport import Transport

_LONGEST_CONNECTING = 30.0
"""Seconds that Vault is given to connect to a database; it waits for ever for a server that says nothing."""

_NOT_ADMIN = "is the administrator's token (VAULT_TOKEN, or ~/.vault-token) valid, and does its policy allow that?"


class VaultAdmin:
    """Reads and writes Vault with the admin's token."""

    def __init__(self, config: VaultConfig, token: Secret) -> None:
        self._transport = Transport(config)
        self._token = token

    def read(self, path: str) -> dict[str, Any] | None:
        """The data at a path, or None. Raises VaultRefused and VaultUnavailable."""
        try:
            body = self._request("get", path)
        except VaultRefused as refusal:
            if _is_absent(refusal) or (refusal.status == 400 and path.startswith(("sys/mounts", "sys/auth"))):
                return None
            raise
        return dict(body.get("data") or body)

    def keys(self, path: str) -> list[str]:
        """The names below a path."""
        try:
            body = self._request("list", path)
        except VaultRefused as refusal:
            if _is_absent(refusal):
                return []
            raise
        return list(body.get("data", {}).get("keys", []))

    def workflows(self) -> list[str]:
        """The paths of all workflows of OpenBao's, none where the server has no such thing.

        By SCAN at the root: OpenBao 2.7.2 closes the connection at any LIST of them.
        """
        try:
            body = self._request("scan", "sys/workflows/manage")
        except VaultRefused as refusal:
            if _is_absent(refusal) or refusal.status == 405:
                return []
            raise
        return list(body.get("data", {}).get("keys", []))

    def write(self, path: str, payload: Mapping[str, Any]) -> dict[str, Any]:
        """Write to a path. Raises ProvisionError with what Vault said."""
        try:
            return self._request("post", path, payload=payload)
        except (VaultRefused, VaultUnavailable) as error:
            raise ProvisionError(error.message, hint=error.hint) from error

    def _request(self, method: str, path: str, **more: Any) -> dict[str, Any]:
        """As the administrator. What a refusal means for a step's policy is no hint for that."""
        try:
            return self._transport.request(method, path, token=self._token, **more)
        except VaultRefused as refusal:
            if refusal.status == 403:
                refusal.hint = _NOT_ADMIN
            raise

    def reset(self, connection: str) -> None:
        """Close the sessions of a database connection, and open one. Raises VaultRefused and VaultUnavailable."""
        path = f"database/reset/{connection}"
        self._request("post", path, payload={}, seconds=_LONGEST_CONNECTING)

    def new_secret_id(self, approle: str) -> Secret:
        """Another secret id of an AppRole. Raises ProvisionError."""
        return Secret(str(self.write(f"auth/approle/role/{approle}/secret-id", {})["data"]["secret_id"]))

    def accepts_secret_id(self, approle: str, secret_id: Secret) -> bool:
        """Whether one could log in with it. Raises ProvisionError."""
        role = f"auth/approle/role/{approle}"
        if self.read(role) is None:
            return False
        return bool(self.write(f"{role}/secret-id/lookup", {"secret_id": secret_id.reveal()}).get("data"))

    def delete(self, path: str) -> None:
        """Delete a path."""
        self._request("delete", path)

    def close(self) -> None:
        """Close idle connections."""
        self._transport.close()


def _is_absent(refusal: VaultRefused) -> bool:
    """Whether nothing is at the path; where there is no such namespace nothing can be said of that."""
    return refusal.status == 404 and not is_no_namespace(refusal.message)

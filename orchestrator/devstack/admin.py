"""The servers as their administrator sees them, whoever started them."""

from __future__ import annotations

from typing import Any, Protocol

from orchestrator.secret import Secret


class VaultAdmin(Protocol):
    """A Vault-compatible server and its root token."""

    root_token: Secret

    @property
    def address(self) -> str: ...

    def request(self, method: str, path: str, payload: dict[str, Any] | None = None) -> dict[str, Any]:
        """One call with the root token, and its JSON answer. Raises httpx.HTTPError."""
        import httpx

        response = httpx.request(
            method,
            f"{self.address}/v1/{path}",
            json=payload,
            headers={"X-Vault-Token": self.root_token.reveal()},
            trust_env=False,
            timeout=30,
        )
        response.raise_for_status()
        return dict(response.json()) if response.content else {}


class PostgresAdmin(Protocol):
    """A PostgreSQL server and the password of its superuser `postgres`."""

    port: int
    password: Secret

    @property
    def host(self) -> str: ...

    def dsn(self, database: str = "postgres") -> Secret:
        """How the superuser connects."""
        return Secret(f"postgresql://postgres:{self.password.reveal()}@{self.host}:{self.port}/{database}")

    def endpoint(self, database: str) -> str:
        """The address of a database, without any credentials."""
        return f"postgresql://{self.host}:{self.port}/{database}"

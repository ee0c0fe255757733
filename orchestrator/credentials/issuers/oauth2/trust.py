"""Whom a connection to an authorization server trusts: the system's authorities, or those of a declared file."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.errors import UsageError
from orchestrator.issuers.oauth2 import OAuth2Server

if TYPE_CHECKING:
    import httpx


class Trust:
    """Clients for servers. The certificates are read once for each, as they were when it was first asked."""

    def __init__(self) -> None:
        self._known: dict[Path | None, ssl.SSLContext] = {}

    def client(self, server: OAuth2Server, seconds: float) -> httpx.AsyncClient:
        """A client that takes nothing from the environment. Raises UsageError for a file that cannot be used."""
        from orchestrator.pep import fetching

        if server.ca not in self._known:
            try:
                self._known[server.ca] = ssl.create_default_context(cafile=server.ca)
            except (OSError, ssl.SSLError) as error:
                raise UsageError(
                    f"`ca` of the issuer: {server.ca} holds no certificates that can be read ({type(error).__name__})",
                    hint="name a file of certificates in PEM in declarations.yaml",
                ) from None
        return fetching.client(self._known[server.ca], seconds)

"""TLS of the API, and the names in the certificates that agents show (SPIFFE X509-SVID, 2)."""

from __future__ import annotations

import asyncio
import ipaddress
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from orchestrator.errors import UsageError
from orchestrator.server.api.callers import PEER
from orchestrator.server.connections import BoundedProtocol


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """A certificate with its key, and the authorities whose certificates agents may show."""

    certificate: Path
    key: Path
    client_authorities: Path | None = None

    def context(self) -> ssl.SSLContext:
        """Read them. Raises UsageError."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_cert_chain(self.certificate, self.key)
            if self.client_authorities is not None:
                context.load_verify_locations(self.client_authorities)
                context.verify_mode = ssl.CERT_OPTIONAL
        except (OSError, ssl.SSLError) as error:
            reason = getattr(error, "strerror", None) or type(error).__name__
            raise UsageError(
                f"the certificates for the API cannot be read: {reason}",
                hint="--api-cert and --api-key are PEM files that belong together, --api-client-ca is one as well",
            ) from error
        return context


def only_here(host: str) -> bool:
    """Whether nobody but this machine reaches an address."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


class ApiProtocol(BoundedProtocol):
    """The listener's protocol for agents: more connections, answers that take their time, and who has shown what."""

    most: ClassVar[int | None] = 1024
    patient: ClassVar[bool] = True

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Remember the names in the certificate that was shown, which the TLS layer has verified."""
        super().connection_made(transport)
        shown: Mapping[str, Any] = transport.get_extra_info("peercert") or {}
        names = tuple(value for kind, value in shown.get("subjectAltName", ()) if kind == "URI")
        if shown:
            self.app_state = {**self.app_state, PEER: names}

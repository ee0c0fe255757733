"""Whom `http.request` trusts: the system's authorities, or those of one file that policies see by its digest."""

from __future__ import annotations

import hashlib
import os
import ssl
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import StepFailed, UsageError
from orchestrator.jsontypes import JsonObject
from orchestrator.workflow.files import read_text


@dataclass(frozen=True, slots=True)
class Authorities:
    """The certificates of a file, as they were when it was read."""

    file: str
    sha256: str
    pem: str

    def view(self) -> JsonObject:
        """Which file, and the digest of what is in it."""
        return {"file": self.file, "sha256": self.sha256}


def authorities(path: Path) -> Authorities:
    """Read a file of certificates in PEM. Raises StepFailed where it holds none."""
    file = os.path.realpath(path)
    try:
        pem = read_text(Path(file))
    except UsageError as error:
        raise StepFailed(f"`ca`: {error.message}", hint="name a file of certificates in PEM") from None
    found = Authorities(file, hashlib.sha256(pem.encode()).hexdigest(), pem)
    trusting(found)
    return found


def trusting(found: Authorities | None) -> ssl.SSLContext:
    """Trust in these authorities and no others; None: in the system's. Raises StepFailed."""
    if found is None:
        return ssl.create_default_context()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # `create_default_context` of no data trusts the system's
    with suppress(ssl.SSLError, ValueError):
        context.load_verify_locations(cadata=found.pem)
    if not context.get_ca_certs():
        raise StepFailed(f"`ca`: {found.file} holds no certificate of an authority", hint="name a file in PEM")
    return context

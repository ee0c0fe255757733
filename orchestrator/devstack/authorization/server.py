"""The server as a child process: started, told what it needs, asked from behind, stopped."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from orchestrator.devstack.authorization.configuration import Configuration
from orchestrator.devstack.authorization.misbehaviours import Misbehaviour
from orchestrator.devstack.authorization.packages import SOURCES, node, packages
from orchestrator.devstack.ports import free_port
from orchestrator.devstack.process import last_lines, start, stop
from orchestrator.errors import Unreachable
from orchestrator.jsontypes import JsonObject
from orchestrator.secret import Secret


@dataclass
class AuthorizationServer:
    """One server on a free port of 127.0.0.1, its program and its log below `directory`. Use as a context manager.

    It forgets its tokens and its keys when it is stopped. `admin_token` opens its back door.
    """

    directory: Path
    configuration: Configuration
    port: int = field(default_factory=free_port)
    admin_token: Secret = field(default_factory=lambda: Secret("admin-" + secrets.token_hex(16)))
    _process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        self.directory = self.directory.absolute()

    @property
    def issuer(self) -> str:
        """`http://127.0.0.1:PORT`; its metadata are at the well-known places (RFC 8414, 3; OpenID Discovery, 4)."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def token_endpoint(self) -> str:
        """Where tokens are asked for."""
        return f"{self.issuer}/token"

    @property
    def introspection_endpoint(self) -> str:
        """RFC 7662."""
        return f"{self.issuer}/token/introspection"

    @property
    def revocation_endpoint(self) -> str:
        """RFC 7009."""
        return f"{self.issuer}/token/revocation"

    @property
    def jwks_uri(self) -> str:
        """The public keys of its signed tokens."""
        return f"{self.issuer}/jwks"

    @property
    def log(self) -> Path:
        """What the server prints."""
        return self.directory / "authorization.log"

    @property
    def pid(self) -> int:
        """The process of the running server. Raises Unreachable when it is stopped."""
        if self._process is None:
            raise Unreachable("the authorization server is not running")
        return self._process.pid

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start it and wait until it answers. Raises UsageError without node, Unreachable with the end of its log."""
        program = self._program(packages())
        environment = {"PATH": os.defpath, "HOME": str(self.directory), "NODE_ENV": "production"}
        process = start([str(node()), str(program)], log=self.log, environment=environment, piped=True)
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(self._configuration())
            process.stdin.close()
            ready = json.loads(process.stdout.readline())
            assert ready == {"issuer": self.issuer}
        except (BrokenPipeError, ValueError) as error:
            stop(process)
            said = f"the authorization server did not start; its log ends:\n{last_lines(self.log, 15)}"
            raise Unreachable(said) from error
        except BaseException:
            stop(process)
            raise
        self._process = process

    def stop(self) -> None:
        """Shut it down, if it was started."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it with SIGKILL, as a crash would."""
        self._end(signal.SIGKILL)

    def misbehave(self, *misbehaviours: Misbehaviour) -> None:
        """From now on, besides what it does wrong already."""
        self._ask("POST", "misbehaviours", [each.document() for each in misbehaviours])

    def behave(self) -> None:
        """No misbehaviour any more."""
        self._ask("DELETE", "misbehaviours")

    def refresh_token(
        self,
        client_id: str,
        subject: str,
        scope: str,
        *,
        resource: str,
        details: list[JsonObject] | None = None,
    ) -> Secret:
        """A first one, as if the owner of this account had agreed in a browser. Raises httpx.HTTPError."""
        wish: dict[str, Any] = {"client_id": client_id, "account": subject, "scope": scope, "resource": resource}
        if details is not None:
            wish["details"] = details
        return Secret(self._ask("POST", "refresh-tokens", wish)["refresh_token"])

    def requests(self) -> list[dict[str, Any]]:
        """What was asked and how it was answered, oldest first. Tokens are there by their SHA-256 only."""
        found: list[dict[str, Any]] = self._ask("GET", "state")["requests"]
        return found

    def tokens(self) -> list[dict[str, Any]]:
        """The tokens that count now, by their SHA-256: opaque access tokens, and refresh tokens. Nobody keeps JWTs."""
        found: list[dict[str, Any]] = self._ask("GET", "state")["tokens"]
        return found

    def _ask(self, method: str, path: str, body: object = None) -> Any:
        headers = {"X-Admin-Token": self.admin_token.reveal()}
        with httpx.Client(trust_env=False, timeout=10, headers=headers) as client:
            answer = client.request(method, f"{self.issuer}/_admin/{path}", json=body)
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def _configuration(self) -> bytes:
        """On standard input: neither arguments nor a file would keep a secret to themselves."""
        given = {**self.configuration.document(), "port": self.port, "admin_token": self.admin_token.reveal()}
        return json.dumps(given).encode()

    def _program(self, installed: Path) -> Path:
        """The server's modules in its folder, where they find the packages: node looks beside and above a module."""
        place = self.directory / "program"
        place.mkdir(parents=True, exist_ok=True)
        for module in SOURCES.glob("*.mjs"):
            shutil.copy(module, place)
        link = place / "node_modules"
        if not link.is_symlink():
            link.symlink_to(installed, target_is_directory=True)
        return place / "server.mjs"

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None:
            stop(self._process, how=how)
            self._process = None

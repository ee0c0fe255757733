"""A real OpenID provider, `oidc-provider` of npm, with a page of ours on which people say who they are."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urljoin

import httpx

from orchestrator.devstack.authorization.packages import node, packages
from orchestrator.devstack.ports import free_port
from orchestrator.devstack.process import last_lines, start, stop

PROGRAM = Path(__file__).parent / "openid" / "provider.mjs"


@dataclass
class OpenIdProvider:
    """One provider on a port of 127.0.0.1. Use as a context manager, once it is known where the pages are.

    `accounts`: subjects, with the claims of each. `clients`: as RFC 7591 describes them.
    """

    directory: Path
    accounts: dict[str, dict[str, Any]]
    clients: list[dict[str, Any]] = field(default_factory=list)
    port: int = field(default_factory=free_port)
    _process: subprocess.Popen[bytes] | None = None

    @property
    def issuer(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def is_running(self) -> bool:
        return self._process is not None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        log = self.directory / "provider.log"
        environment = {"PATH": os.defpath, "HOME": str(self.directory), "NODE_ENV": "production"}
        self._process = process = start(
            [str(node()), str(self._program())], log=log, environment=environment, piped=True
        )
        assert process.stdin is not None
        assert process.stdout is not None
        given = {"port": self.port, "accounts": self.accounts, "clients": self.clients}
        process.stdin.write(json.dumps(given).encode())
        process.stdin.close()
        if process.stdout.readline() != b"ready\n":
            self.stop()
            raise AssertionError(last_lines(log, 15))

    def stop(self) -> None:
        if self._process is not None:
            stop(self._process)
            self._process = None

    def _program(self) -> Path:
        """Beside its packages: node looks for them beside and above a module."""
        place = self.directory / "provider"
        place.mkdir(exist_ok=True)
        shutil.copy(PROGRAM, place)
        link = place / "node_modules"
        if not link.is_symlink():
            link.symlink_to(packages(), target_is_directory=True)
        return place / PROGRAM.name

    def issued(self) -> list[dict[str, Any]]:
        """All answers of the token endpoint that gave something."""
        found: list[dict[str, Any]] = httpx.get(f"{self.issuer}/_test", trust_env=False).json()
        return found

    def lies(self, **claims: Any) -> None:
        """From now on ID tokens say so, under the provider's own signature; `alg`: under another one."""
        httpx.post(f"{self.issuer}/_test", content=json.dumps(claims), trust_env=False).raise_for_status()

    def answers(self, location: str, name: str = "alice", answer: str = "yes") -> str:
        """Where somebody's browser is sent back to, once they have said on the provider's page who they are."""
        with httpx.Client(trust_env=False, timeout=20) as browser:
            page = browser.get(location)
            while page.is_redirect:
                url = urljoin(str(page.url), page.headers["location"])
                if not url.startswith(self.issuer):
                    return url
                asks = re.search(r"/interaction/", url)
                page = browser.post(url, data={"name": name, "answer": answer}) if asks else browser.get(url)
            raise AssertionError(f"the provider answers {page.status_code}: {page.text[:500]}")

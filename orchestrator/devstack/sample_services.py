"""The sample HTTP services, and the mail service, as child processes: started, told what they need, stopped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from orchestrator.devstack.process import last_lines, start, stop
from orchestrator.devstack.services.mail.scopes import AUDIENCE as MAIL_AUDIENCE
from orchestrator.errors import Unreachable
from orchestrator.secret import Secret


@dataclass(frozen=True, slots=True)
class SlackBot:
    """A bot user of the Slack stand-in: its OAuth scopes, and the channels it is a member of."""

    name: str
    token: Secret
    scopes: tuple[str, ...] = ("chat:write",)
    channels: tuple[str, ...] = ("#support",)


@dataclass
class ServiceProcess(ABC):
    """`orchestrator.devstack.services` as a child process, its log below `directory`. Use as a context manager."""

    directory: Path
    ports: Mapping[str, int] = field(default_factory=dict, init=False)
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @abstractmethod
    def configuration(self) -> dict[str, Any]:
        """What the process is told. It holds secrets: standard input keeps them to itself, arguments would not."""

    @property
    def log(self) -> Path:
        """What the services print."""
        return self.directory / "services.log"

    @property
    def pid(self) -> int:
        """The process of the running services. Raises Unreachable when they are stopped."""
        if self._process is None:
            raise Unreachable("the sample services are not running")
        return self._process.pid

    def __enter__(self) -> Self:
        """Start them and wait until they answer. Raises Unreachable with the end of their log."""
        self.directory.mkdir(parents=True, exist_ok=True)
        modules = os.pathsep.join(os.path.abspath(place) for place in sys.path)
        environment = {"PATH": os.defpath, "HOME": str(self.directory.absolute()), "PYTHONPATH": modules}
        command = [sys.executable, "-m", "orchestrator.devstack.services"]
        process = start(command, log=self.log, environment=environment, piped=True)
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(self.configuration()).encode() + b"\n")
            process.stdin.close()
            self.ports = json.loads(process.stdout.readline())
        except (BrokenPipeError, ValueError) as error:
            stop(process)
            raise Unreachable(f"the sample services did not start; their log ends:\n{last_lines(self.log)}") from error
        except BaseException:
            stop(process)
            raise
        self._process = process
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            stop(self._process)
            self._process = None


@dataclass
class SampleServices(ServiceProcess):
    """Token issuer, translation API, CRM and Slack stand-in, each on a free port of 127.0.0.1.

    `vault_token` may read the public part of the transit key `key` and nothing else. `admin_token`
    opens `/_admin/...` of each service.
    """

    vault_address: str
    vault_token: Secret
    key: str
    audience: str
    admin_token: Secret
    bots: tuple[SlackBot, ...]

    def url(self, service: str) -> str:
        """The address of `issuer`, `translation`, `crm` or `slack`."""
        return f"http://127.0.0.1:{self.ports[service]}"

    def configuration(self) -> dict[str, Any]:
        """As the process reads it."""
        return {
            "vault_address": self.vault_address,
            "vault_token": self.vault_token.reveal(),
            "key": self.key,
            "audience": self.audience,
            "admin_token": self.admin_token.reveal(),
            "slack_bots": {
                bot.token.reveal(): {"name": bot.name, "scopes": bot.scopes, "channels": bot.channels}
                for bot in self.bots
            },
        }


@dataclass(frozen=True, slots=True)
class Introspecting:
    """As which client the mail service asks the authorization server about opaque tokens, and where."""

    url: str
    client_id: str
    secret: Secret


@dataclass
class MailService(ServiceProcess):
    """The Gmail API over sample mailboxes, on a free port of 127.0.0.1.

    It takes the access tokens of `issuer` for `audience`. Without `introspecting` only signed ones. `admin_token` opens
    `/_admin/...`, where what was asked and decided can be read.
    """

    issuer: str
    admin_token: Secret
    introspecting: Introspecting | None = None
    audience: str = MAIL_AUDIENCE

    @property
    def url(self) -> str:
        """The address; the API is below `/gmail/v1/`."""
        return f"http://127.0.0.1:{self.ports['mail']}"

    def configuration(self) -> dict[str, Any]:
        """As the process reads it."""
        asks = self.introspecting
        introspection = asks and {"url": asks.url, "client_id": asks.client_id, "secret": asks.secret.reveal()}
        mail = {"issuer": self.issuer, "audience": self.audience, "introspection": introspection}
        return {"mail": {**mail, "admin_token": self.admin_token.reveal()}}

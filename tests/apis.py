"""Processes that answer agents over HTTP, on a bench's servers, and tokens of an issuer that they trust."""

from __future__ import annotations

import json
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from bench import Bench
from desks import TASK, loaded_task
from fork_server import Forked, ForkServer
from joserfc import jwt
from joserfc.jwk import ECKey
from waiting import wait_for

from orchestrator.clock import SystemClock
from orchestrator.ledger.opening import open_ledger
from orchestrator.ledger.writing.store import Ledger

ISSUER = "https://issuer.example"
AGENTS = """\
version: 1
issuers:
  tests: { issuer: "%s", audience: [orchestrator], jwks_file: jwks.json, algorithms: [ES256] }
agents:
  complaint-agent:
    may_open: [complaint_desk]
    identities: [ { issuer: tests, claims: { sub: complaint } }, { spiffe: "spiffe://example/complaint" } ]
  other-agent: { may_open: [complaint_desk, another], identities: [ { issuer: tests, claims: { sub: other } } ] }
  locked-out: { may_open: [another], identities: [ { issuer: tests, claims: { sub: locked } } ] }
"""


@dataclass
class Process:
    """One `orchestrator serve --api`."""

    log: Path
    process: Forked

    @property
    def url(self) -> str:
        def found() -> list[str]:
            return [record["api"] for record in self.records() if "api" in record]

        return f"http://{wait_for(found, 'the API')[-1]}"

    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.endswith("}")]

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(60)


@dataclass
class Apis:
    """A folder with a type of tasks, those who may open them, and the processes that were started."""

    bench: Bench
    children: ForkServer
    ledger_url: str
    key: ECKey = field(default_factory=lambda: ECKey.generate_key("P-256", {"kid": "k1", "alg": "ES256", "use": "sig"}))
    processes: list[Process] = field(default_factory=list)
    more: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.directory = self.bench.directory / "api"
        self.folder = self.directory / "workflows"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.agents = self.directory / "agents.yaml"
        self.agents.write_text(AGENTS % ISSUER)
        (self.directory / "jwks.json").write_text(json.dumps({"keys": [self.key.as_dict(private=False)]}))

    def put(self, text: str = TASK) -> None:
        """Provision a type of tasks, and let it be opened."""
        loaded = loaded_task(text)
        self.bench.install(loaded.workflow)
        (self.folder / f"{loaded.workflow.name}.yaml").write_text(text)

    def environment(self) -> dict[str, str]:
        return {
            **self.bench.environment(),
            "ORCHESTRATOR_LEDGER_URL": self.ledger_url,
            "ORCHESTRATOR_POLICY": "allow-all",
            "ORCHESTRATOR_DEAD_AFTER": "4",
            **self.more,
        }

    def start(self, *options: str) -> Process:
        log = self.directory / f"log-{len(self.processes)}"
        words = ("serve", str(self.folder), "--no-listen", "--log-format", "json", "--api", "127.0.0.1:0")
        with log.open("ab") as file:
            started = self.children.start(
                *words, "--agents", str(self.agents), *options, environment=self.environment(), log=file
            )
        self.processes.append(Process(log, started))
        return self.processes[-1]

    def token(self, sub: str = "complaint", **claims: Any) -> str:
        now = int(time.time())
        everything = {"iss": ISSUER, "aud": "orchestrator", "sub": sub, "iat": now, "exp": now + 600, **claims}
        return jwt.encode({"alg": "ES256", "kid": "k1"}, everything, self.key, algorithms=["ES256"])

    def client(self, process: Process | None = None, sub: str = "complaint", **claims: Any) -> httpx.Client:
        url = (process or self.processes[0]).url
        headers = {"Authorization": f"Bearer {self.token(sub, **claims)}"}
        return httpx.Client(base_url=url, headers=headers, trust_env=False, timeout=60)

    @contextmanager
    def ledger(self) -> Iterator[Ledger]:
        with open_ledger(self.ledger_url, clock=SystemClock()) as ledger:
            yield ledger

    def end(self) -> None:
        for _ in range(2):  # the second one cuts short what the first one lets end
            for each in self.processes:
                if each.process.poll() is None:
                    each.process.send_signal(signal.SIGTERM)
            time.sleep(0.3)
        for each in self.processes:
            try:
                each.process.wait(60)
            except subprocess.TimeoutExpired:
                each.process.kill()
                each.process.wait()


def opened(client: httpx.Client, customer: int = 1234, **more: Any) -> dict[str, Any]:
    answer = client.post("/v1/tasks", json={"type": "complaint_desk", "inputs": {"customer": customer}, **more})
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    assert answer.headers["location"] == f"/v1/tasks/{found['id']}"
    return found


def call(
    client: httpx.Client, task: str, tool: str, arguments: Mapping[str, Any] | None = None, key: str = ""
) -> httpx.Response:
    headers = {"Idempotency-Key": key or str(uuid.uuid4())}
    return client.post(f"/v1/tasks/{task}/tools/{tool}", json={"arguments": arguments or {}}, headers=headers)


@contextmanager
def apis_on(bench: Bench, children: ForkServer, ledger_url: str = "") -> Iterator[Apis]:
    found = Apis(bench, children, ledger_url or f"sqlite:///{bench.directory / 'ledger.db'}")
    try:
        yield found
    finally:
        found.end()
    for each in found.processes:
        assert "Traceback" not in each.log.read_text(), each.log.read_text()

"""A provisioned stack, a way to run workflows on it, and the watch for secrets that escaped.

Everything issued in these tests is recognisable: database passwords are drawn from four letters
only, Vault tokens and JWTs have prefixes of their own. When the session ends every file that it
wrote is searched for them.
"""

from __future__ import annotations

import asyncio
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import hvac
import psycopg
import pytest

from orchestrator.actions.catalog import catalog
from orchestrator.devstack.provisioned import Provisioned, provision_stack
from orchestrator.devstack.stack import DevStack, StackInfo
from orchestrator.grants.policy_names import step_policy_name
from orchestrator.grants.scope import normalise
from orchestrator.ledger.events import Event
from orchestrator.ledger.ids import new_run_id
from orchestrator.ledger.store import open_ledger
from orchestrator.policy.allow_all import AllowAllEngine
from orchestrator.policy.types import PolicyEngine
from orchestrator.provision.step_policies import step_policy
from orchestrator.redaction import Redactor
from orchestrator.runtime.runner import Runner
from orchestrator.runtime.service import RunnerConfig, open_services
from orchestrator.runtime.types import RunOutcome, RunRequest
from orchestrator.workflow.inputs import bind_inputs
from orchestrator.workflow.loader import load_text
from orchestrator.workflow.models import Workflow

ROOT = Path(__file__).parents[2]
PASSWORD_LETTERS = "QXZJ"
ESCAPED = re.compile(
    rb"[QXZJ]{20}"
    rb"|\bs\.[A-Za-z0-9]{24}\b"
    rb"|eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{20,}"
    rb"|xoxb-[A-Za-z0-9-]{10,}"
)
"""A database password, a Vault token, a signed JWT, or a Slack bot token."""


@dataclass
class Bench:
    """A provisioned stack seen by a test: it can run workflows, and ask the servers for the truth."""

    info: StackInfo
    provisioned: Provisioned
    directory: Path
    events: list[Event]

    @property
    def vault(self) -> hvac.Client:
        return hvac.Client(self.info.vault_address, token=self.info.root_token.reveal())

    def config(self, **changes: Any) -> RunnerConfig:
        config = RunnerConfig(
            vault=self.provisioned.vault_config(),
            ledger_url=f"sqlite:///{self.directory / 'ledger.db'}",
            policy=AllowAllEngine(),
            endpoints=self.provisioned.endpoints,
            token_issuer=self.info.issuer_url,
            grace=10.0,
        )
        return replace(config, **changes)

    def install(self, workflow: Workflow) -> None:
        """Give each step of a test's workflow its Vault policy, as provisioning would."""
        for step_id, step in workflow.steps.items():
            scopes = [normalise(name, grant, step_timeout=step.timeout) for name, grant in step.grants.items()]
            if scopes:
                self.vault.sys.create_or_update_policy(step_policy_name(workflow.name, step_id), step_policy(scopes))

    def run(
        self,
        text: str,
        *,
        inputs: Mapping[str, Any] | None = None,
        install: bool = True,
        policy: PolicyEngine | None = None,
        run_id: str | None = None,
        **changes: Any,
    ) -> RunOutcome:
        """Run a workflow in this process and wait for it."""
        loaded = load_text(text, filename="test.yaml", actions=catalog)
        if install:
            self.install(loaded.workflow)
        request = RunRequest(
            run_id=run_id or new_run_id(),
            loaded=loaded,
            inputs=bind_inputs(loaded.workflow, inputs or {}, from_text=False),
        )
        config = self.config(**({"policy": policy} if policy else {}), **changes)

        async def go() -> RunOutcome:
            async with open_services(
                config, redactor=Redactor(), observer=lambda run, time, event: self.events.append(event)
            ) as services:
                return await Runner(services).run(request)

        return asyncio.run(go())

    def logins(self) -> list[str]:
        """The ephemeral roles that exist now, by the database's own catalog."""
        return self.sql("SELECT rolname FROM pg_roles WHERE rolname LIKE 'orc\\_%' ORDER BY 1")

    def sessions(self) -> list[str]:
        """The sessions of ephemeral roles that are open now."""
        return self.sql("SELECT usename FROM pg_stat_activity WHERE usename LIKE 'orc\\_%'")

    def vault_leases(self) -> list[str]:
        """Every lease that Vault holds under the database mount."""
        found: list[str] = []
        pending = ["sys/leases/lookup/database/creds/"]
        while pending:
            prefix = pending.pop()
            answer = self.vault.list(prefix) or {}
            for key in answer.get("data", {}).get("keys", []):
                (pending if key.endswith("/") else found).append(prefix + key)
        return found

    def sql(self, statement: str, parameters: Sequence[Any] | None = None) -> list[Any]:
        with psycopg.connect(self.info.support_dsn.reveal(), autocommit=True) as session:
            cursor = session.execute(statement, parameters)  # type: ignore[arg-type]
            return [row[0] for row in cursor.fetchall()] if cursor.description else []

    def assert_nothing_left(self) -> None:
        assert self.logins() == []
        assert self.sessions() == []
        assert self.vault_leases() == []

    def history(self, run_id: str) -> list[Any]:
        """The leases of a run as the ledger has them, oldest first."""
        from orchestrator.clock import SystemClock
        from orchestrator.ledger.types import LeaseFilter

        ledger = open_ledger(str(self.config().ledger_url), clock=SystemClock())
        try:
            assert ledger.verify(run_id) is None
            return list(reversed(ledger.leases(LeaseFilter(run=run_id))))
        finally:
            asyncio.run(ledger.aclose())


def make_recognisable(info: StackInfo) -> None:
    """Have Vault draw database passwords from four letters, so that one that escaped is found."""
    vault = hvac.Client(info.vault_address, token=info.root_token.reveal())
    vault.write(
        "sys/policies/password/recognisable",
        policy=f'length = 24\nrule "charset" {{ charset = "{PASSWORD_LETTERS}" }}',
    )
    vault.write("database/config/support", password_policy="recognisable")


@pytest.fixture(scope="session")
def provisioned_stack(stack: StackInfo) -> Provisioned:
    """The session's stack with the sample declarations and workflows installed."""
    provisioned = provision_stack(stack, declarations=ROOT / "vault", workflows=ROOT / "workflows")
    make_recognisable(stack)
    return provisioned


@pytest.fixture
def bench(provisioned_stack: Provisioned, stack: StackInfo, tmp_path: Path) -> Iterator[Bench]:
    """The session's stack for one test, which must leave no login, session or lease behind."""
    bench = Bench(stack, provisioned_stack, tmp_path, [])
    bench.assert_nothing_left()
    yield bench
    bench.assert_nothing_left()


@pytest.fixture
def own_bench(tmp_path: Path) -> Iterator[Callable[[], Bench]]:
    """A stack of the test's own, whose servers it may seal, stop or kill."""
    with DevStack(tmp_path / "stack") as info:
        provisioned = provision_stack(info, declarations=ROOT / "vault", workflows=ROOT / "workflows")
        make_recognisable(info)
        yield lambda: Bench(info, provisioned, tmp_path, [])


@pytest.fixture(scope="session", autouse=True)
def nothing_escapes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Watch process arguments during the session, and search all that was written at its end."""
    seen: set[bytes] = set()
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.1):
            for entry in os.listdir("/proc"):
                if entry.isdigit():
                    try:
                        arguments = Path("/proc", entry, "cmdline").read_bytes()
                    except OSError:
                        continue
                    if ESCAPED.search(arguments):
                        seen.add(arguments)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    yield
    over.set()
    watcher.join()
    assert not seen, f"{len(seen)} processes had a secret among their arguments"
    written = [tmp_path_factory.getbasetemp(), Path(os.environ.get("ORCHESTRATOR_TEST_OUTPUT", "/nonexistent"))]
    assert escaped_secrets(written) == []


def escaped_secrets(roots: Sequence[Path]) -> list[str]:
    """The files below these folders that hold a recognisable secret; the servers' own data is theirs to keep."""
    found = []
    for root in roots:
        for path in root.rglob("*"):
            if path.is_file() and not path.is_symlink() and not {"pgdata", "raft"} & set(path.parts):
                try:
                    if ESCAPED.search(path.read_bytes()):
                        found.append(str(path))
                except OSError:
                    continue
    return found

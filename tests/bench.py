"""A provisioned stack, seen by a test: it runs workflows, and asks the servers for the truth."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import hvac
import ledger_databases
import psycopg
from escaped import PASSWORD_LETTERS

from orchestrator.actions.catalog import catalog
from orchestrator.assembly import RunnerConfig, open_services
from orchestrator.clock import SystemClock
from orchestrator.devstack.provisioned import Provisioned, provision_stack
from orchestrator.devstack.session import LEDGER, database_leases, runner_config, runtime_environment
from orchestrator.devstack.stack import StackInfo
from orchestrator.grants.compiled import CompiledGrant
from orchestrator.grants.models import DatabaseGrant
from orchestrator.grants.scope import compiled
from orchestrator.ledger.events import Event
from orchestrator.ledger.ids import new_run_id
from orchestrator.ledger.opening import open_ledger
from orchestrator.ledger.types import LeaseFilter, LeaseRecord
from orchestrator.policy.engines.allow_all import AllowAllEngine
from orchestrator.policy.types import PolicyEngine
from orchestrator.provision.declarations import load_declarations
from orchestrator.provision.service import Provisioning, compiled_grants, load_workflows, open_provisioning
from orchestrator.provision.vault.step_policies import step_access
from orchestrator.redaction.redactor import Redactor
from orchestrator.runs.runner import Runner
from orchestrator.runs.types import RunOutcome, RunRequest
from orchestrator.workflow.inputs import bind_inputs
from orchestrator.workflow.loader import load_text
from orchestrator.workflow.models.workflow import Workflow

ROOT = Path(__file__).parents[1]


@cache
def samples() -> tuple[Workflow, ...]:
    """The sample workflows, read once in a process."""
    return tuple(load_workflows(ROOT / "workflows"))


@dataclass(frozen=True)
class Setup:
    """Where the ledger of a test is."""

    ledger_url: str
    queue: bool = False
    """Whether DBOS's tables are there, too."""


LEDGER_FILES = (LEDGER, "setup.db")
"""Of a test on the shared stack: they are there, and empty, when it begins."""

SETUPS = ("sqlite", "postgresql")


def surroundings() -> dict[str, str]:
    """Our environment without what sets an orchestrator or names a Vault."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("ORCHESTRATOR_", "VAULT_"))}


@dataclass
class Bench:
    """A provisioned stack seen by a test: it can run workflows, and ask the servers for the truth."""

    info: StackInfo
    provisioned: Provisioned
    directory: Path
    events: list[Event]
    declarations: Path

    @property
    def vault(self) -> hvac.Client:
        """Vault, as its root."""
        return hvac.Client(self.info.vault_address, token=self.info.root_token.reveal())

    def environment(self, **more: str) -> dict[str, str]:
        """What a command finds of the runtime, and of us what says nothing of an orchestrator or of Vault."""
        return {**surroundings(), **runtime_environment(self.provisioned, self.directory), **more}

    def config(self, **changes: Any) -> RunnerConfig:
        config = runner_config(self.provisioned, self.directory, AllowAllEngine())
        return replace(config, **{"grace": 10.0, "dead_after": 4.0, **changes})

    def install(self, workflow: Workflow) -> None:
        """Provision a test's workflow; where its roles are maintained by hand its Vault policies are enough."""
        if compiled_grants([workflow], {"support"}):
            with self.provisioning([workflow]) as work:
                work.apply(work.plan())
            return
        for each in step_access([workflow], (), load_declarations(self.declarations)[0].issuers):
            for wanted in each.objects():
                self.vault.write_data(wanted.path, data=dict(wanted.payload))

    @contextmanager
    def provisioning(
        self, workflows: Sequence[Workflow] | None = None, *, prune: bool = False
    ) -> Iterator[Provisioning]:
        """Provisioning of these workflows, or of the samples, as the admin."""
        with open_provisioning(
            self.provisioned.admin_config(),
            {"support": self.info.support_dsn},
            workflows=samples() if workflows is None else workflows,
            declarations=self.declarations,
            endpoints=self.info.endpoints,
            token_issuer=self.info.issuer_url,
            prune=prune,
        ) as work:
            yield work

    def sample_grant(self, step: str) -> CompiledGrant:
        """What provisioning installed for a step of the sample workflow."""
        declared = next(each for each in samples() if each.name == "customer_feedback").steps[step]
        grant = declared.grants["db"]
        assert isinstance(grant, DatabaseGrant)
        made = compiled(grant, step_timeout=declared.timeout)
        assert made is not None
        return made

    def run(
        self,
        text: str,
        *,
        inputs: Mapping[str, Any] | None = None,
        install: bool = True,
        policy: PolicyEngine | None = None,
        run_id: str | None = None,
        reason: str = "",
        **changes: Any,
    ) -> RunOutcome:
        """Run a workflow in this process and wait for it."""
        loaded = load_text(text, filename="test.yaml", actions=catalog)
        if install:
            self.install(loaded.workflow)
        request = RunRequest(
            run_id=run_id or new_run_id(),
            loaded=loaded,
            inputs=bind_inputs(loaded.workflow, inputs or {}),
            reason=reason,
        )
        config = self.config(**({"policy": policy} if policy else {}), **changes)

        async def go() -> RunOutcome:
            async with open_services(
                config, redactor=Redactor(), observer=lambda run, time, event: self.events.append(event)
            ) as services:
                return await Runner(services).run(request)

        return asyncio.run(go())

    @contextmanager
    def setup(self, name: str) -> Iterator[Setup]:
        """One of SETUPS, or `queue`, PostgreSQL with DBOS's tables, with a ledger that is dropped at the end."""
        if name == "sqlite":
            yield Setup(f"sqlite:///{self.directory / LEDGER_FILES[1]}")
            return
        server = self.info.support_dsn.reveal()
        template = ledger_databases.template(server, queue=name == "queue")
        self.sql(f"CREATE DATABASE setup_ledger TEMPLATE {template}")
        yield Setup(server.replace("/support", "/setup_ledger", 1), queue=name == "queue")
        self.sql("DROP DATABASE setup_ledger WITH (FORCE)")

    def logins(self) -> list[str]:
        """The ephemeral roles that exist now, by the database's own catalog."""
        return self.sql("SELECT rolname FROM pg_roles WHERE rolname LIKE 'orc\\_%' ORDER BY 1")

    def logins_of_steps(self) -> list[str]:
        """Those of steps alone: a worker that tidies up holds one of its own for a moment."""
        return [login for login in self.logins() if not login.startswith("orc_sweep-")]

    def sessions(self) -> list[str]:
        """The sessions of ephemeral roles that are open now, and of roles that are there no more."""
        return self.sql(
            "SELECT coalesce(usename, 'of a dropped role: ' || usesysid) FROM pg_stat_activity "
            "WHERE usename LIKE 'orc\\_%' OR (usesysid <> 0 AND usename IS NULL)"
        )

    def vault_leases(self) -> list[str]:
        """Every lease that Vault holds under the database mount."""
        return database_leases(self.provisioned)

    def sql(self, statement: str, parameters: Sequence[Any] | None = None) -> list[Any]:
        with psycopg.connect(self.info.support_dsn.reveal(), autocommit=True, client_encoding="UTF8") as session:
            cursor = session.execute(statement, parameters)  # type: ignore[arg-type]
            return [row[0] for row in cursor.fetchall()] if cursor.description else []

    def assert_nothing_left(self) -> None:
        assert self.logins() == []
        assert self.sessions() == []
        assert self.vault_leases() == []

    def history(self, run_id: str) -> list[LeaseRecord]:
        """The leases of a run as the ledger has them, oldest first."""
        with open_ledger(self.config().ledger_url, clock=SystemClock()) as ledger:
            assert ledger.verify(run_id) is None
            return list(reversed(ledger.leases(LeaseFilter(run=run_id))))


BY_HAND = ("feedback-read", "test-role")
"""Vault roles that an admin maintains by hand in these tests."""


def prepare(info: StackInfo, directory: Path) -> Bench:
    """Provision a stack with the samples, and with a role `feedback-read` that an admin maintains by hand.

    Vault draws database passwords from four letters, so that one that escaped is found.
    """
    declarations = directory / "declarations"
    shutil.copytree(ROOT / "vault", declarations)
    file = declarations / "declarations.yaml"
    text = file.read_text().replace("secret_id_uses: 2000", "secret_id_uses: 0")  # one for all tests
    login = "    login: orchestrator_vault\n"
    file.write_text(text.replace(login, f"{login}    other_roles: [{', '.join(BY_HAND)}]\n"))
    provisioned = provision_stack(info, declarations=declarations, workflows=ROOT / "workflows")
    bench = Bench(info, provisioned, directory, [], declarations)
    vault = bench.vault
    like = vault.read(f"database/roles/{bench.sample_grant('read').vault_role}")["data"]
    vault.write_data("database/roles/feedback-read", data={**like, "default_ttl": 300, "max_ttl": 900})
    vault.write(
        "sys/policies/password/recognisable",
        policy=f'length = 24\nrule "charset" {{ charset = "{PASSWORD_LETTERS}" }}',
    )
    vault.write("database/config/support", password_policy="recognisable")
    return bench

"""One database provisioned for one workflow, with its own Vault: installed, proven, run on, looked at, taken down."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hvac
import psycopg
import pytest
from bench import ROOT
from database_kinds import DatabaseKind, as_login, superuser
from psycopg import sql

from orchestrator.actions.catalog import catalog
from orchestrator.assembly import RunnerConfig, open_services
from orchestrator.devstack.openbao import OpenBao
from orchestrator.devstack.postgres import Postgres
from orchestrator.ledger.events import Event
from orchestrator.ledger.ids import new_run_id
from orchestrator.policy.engines.allow_all import AllowAllEngine
from orchestrator.proof.examine import Examination
from orchestrator.proof.report import Proof
from orchestrator.proof.service import Prover
from orchestrator.provision.service import Provisioning, new_secret_id, open_provisioning
from orchestrator.provision.vault.admin import VaultAdmin
from orchestrator.redaction.redactor import Redactor
from orchestrator.runs.runner import Runner
from orchestrator.runs.types import RunOutcome, RunRequest
from orchestrator.secret import Secret
from orchestrator.vault.config import AppRoleAuth, TokenAuth, VaultConfig
from orchestrator.workflow.inputs import bind_inputs
from orchestrator.workflow.loader import LoadedWorkflow, load_text

NAME = "matrix"
"""Of the connection."""


@dataclass
class Site:
    """A connection `matrix` to a database of a server, as its administrator, the runtime and a superuser see it."""

    server: Postgres
    vault: OpenBao
    folder: Path
    dsn: Secret
    endpoint: str
    primary: str | None = None
    login: str = "orchestrator_vault"
    database: str = "matrix"
    namespace: str | None = None
    admin_token: Secret | None = None
    """The root's where it is not said."""
    patience: float = 60.0
    """Seconds that an answer of Vault is waited for, as its administrator."""
    events: list[Event] = field(default_factory=list)

    @contextmanager
    def provisioning(self, *texts: str, prune: bool = False) -> Iterator[Provisioning]:
        """As the administrators of Vault and of the database."""
        with open_provisioning(
            self._as_admin(),
            {NAME: self.dsn},
            workflows=[loaded(text).workflow for text in texts],
            declarations=self._declarations(),
            endpoints={NAME: self.primary or self.endpoint},
            prune=prune,
        ) as work:
            yield work

    def apply(self, *texts: str, prune: bool = False) -> list[str]:
        """Install; what was changed."""
        with self.provisioning(*texts, prune=prune) as work:
            changes = work.plan()
            work.apply(changes)
        return [change.resource for change in changes]

    def plan(self, *texts: str) -> list[str]:
        """What would be changed."""
        with self.provisioning(*texts) as work:
            return [change.resource for change in work.plan()]

    def notes(self, *texts: str) -> list[str]:
        """What a plan says beside."""
        with self.provisioning(*texts) as work:
            return list(work.preview().notes)

    def run(self, text: str, **inputs: Any) -> RunOutcome:
        """As the runtime."""
        made = loaded(text)
        request = RunRequest(run_id=new_run_id(), loaded=made, inputs=bind_inputs(made.workflow, inputs))

        async def go() -> RunOutcome:
            observer = lambda run, time, event: self.events.append(event)  # noqa: E731
            async with open_services(self.config(), redactor=Redactor(), observer=observer) as services:
                return await Runner(services).run(request)

        return asyncio.run(go())

    def output(self, step: str) -> Any:
        """Of the last run."""
        found = [event for event in self.events if event.kind == "step.finished" and event.step == step]
        return found[-1].outputs

    def prove(self, text: str, **inputs: Any) -> Proof:
        """As the runtime."""
        made = loaded(text)
        bound = bind_inputs(made.workflow, inputs)
        request = RunRequest(run_id=new_run_id(), loaded=made, inputs=bound, trigger="prove")

        async def go() -> Proof:
            async with open_services(self.config(), redactor=Redactor()) as services:
                return await Prover(services=services, wish=Examination()).prove(request)

        return asyncio.run(go())

    def take_down(self) -> None:
        """What the manual says: everything that no workflow needs, then what is left of ours."""
        self.apply(prune=True)
        text = (ROOT / "docs" / "databases.md").read_text().partition("```sql\nGRANT orch")[2].partition("```")[0]
        login = sql.Identifier(self.login).as_string(None)
        self.sql(f"GRANT orch{text}".replace("orchestrator_vault", login), self.dsn)
        self.client.delete(f"database/config/{NAME}")

    @property
    def client(self) -> hvac.Client:
        """Vault, as its root."""
        return hvac.Client(self.vault.address, token=self.vault.root_token.reveal(), namespace=self.namespace)

    def sql(self, statement: str, dsn: Secret | None = None) -> list[Any]:
        """As a superuser in the database, or by another DSN."""
        with psycopg.connect((dsn or superuser(self.server, self.database)).reveal(), autocommit=True) as session:
            cursor = session.execute(statement)  # type: ignore[arg-type]
            return [row[0] for row in cursor.fetchall()] if cursor.description else []

    def roles(self) -> list[str]:
        """Every role of the cluster."""
        return self.sql("SELECT rolname FROM pg_roles ORDER BY 1")

    def roles_of_steps(self) -> list[str]:
        """The ephemeral logins."""
        return self.sql("SELECT rolname FROM pg_roles WHERE rolname LIKE 'orc\\_%'")

    def assert_nothing_left(self) -> None:
        """No login and no session of a step, by the catalog."""
        assert self.roles_of_steps() == []
        assert self.sql("SELECT usename FROM pg_stat_activity WHERE usename LIKE 'orc\\_%'") == []

    def as_login(self, login: str, password: str) -> Secret:
        """The DSN of a login in this database."""
        return as_login(self.server, self.database, login, password)

    def is_superuser(self) -> bool:
        """Whether the administrator is one."""
        return self.sql("SELECT rolsuper FROM pg_roles WHERE rolname = CURRENT_USER", self.dsn) == [True]

    def command(self, monkeypatch: pytest.MonkeyPatch, text: str) -> list[str]:
        """The options of `orchestrator provision`, once the environment says the rest."""
        workflows = self.folder / "workflows"
        workflows.mkdir(exist_ok=True)
        (workflows / "matrix.yaml").write_text(text, encoding="utf-8")
        for name, value in {
            "VAULT_ADDR": self.vault.address,
            "VAULT_NAMESPACE": self.namespace or "",
            "VAULT_TOKEN": self.vault.root_token.reveal(),
            f"ORCHESTRATOR_ENDPOINTS__{NAME.upper()}": self.endpoint,
            f"ORCHESTRATOR_PROVISION_DATABASES__{NAME.upper()}": self.dsn.reveal(),
        }.items():
            monkeypatch.setenv(name, value)
        return ["--workflows", str(workflows), "--declarations", str(self._declarations())]

    def _as_admin(self) -> VaultConfig:
        token = self.admin_token or self.vault.root_token
        return VaultConfig(self.vault.address, TokenAuth(token), namespace=self.namespace, read_timeout=self.patience)

    def config(self) -> RunnerConfig:
        """What the runtime is told."""
        admin = VaultAdmin(self._as_admin(), self.vault.root_token)
        try:
            role_id, secret_id = new_secret_id(admin, "orchestrator-runtime")
        finally:
            admin.close()
        return RunnerConfig(
            vault=VaultConfig(self.vault.address, AppRoleAuth(role_id, secret_id), namespace=self.namespace),
            ledger_url=f"sqlite:///{self.folder / 'ledger.db'}",
            policy=AllowAllEngine(),
            endpoints={NAME: self.endpoint},
            primaries={NAME: self.primary} if self.primary else {},
            grace=10.0,
        )

    def _declarations(self) -> Path:
        folder = self.folder / "vault"
        shutil.copytree(ROOT / "vault" / "policies", folder / "policies", dirs_exist_ok=True)
        declared: Mapping[str, Any] = {
            "version": 1,
            "mounts": {"database": {"type": "database"}},
            "runtime": {"policy": "policies/orchestrator-runtime.hcl"},
            "connections": {NAME: {"login": self.login}},
        }
        (folder / "declarations.yaml").write_text(json.dumps(declared), encoding="utf-8")
        return folder


@contextmanager
def opened(kind: DatabaseKind, servers: tuple[Postgres, OpenBao], folder: Path) -> Iterator[Site]:
    """The site of a database that is made for it, with a namespace of its own in Vault."""
    postgres, openbao = servers
    root = hvac.Client(openbao.address, token=openbao.root_token.reveal())
    namespace = f"site-{os.urandom(4).hex()}"
    root.write_data(f"sys/namespaces/{namespace}", data={})
    with kind.opened(postgres, folder) as (dsn, addresses):
        yield Site(
            postgres, openbao, folder, dsn, addresses.endpoint, addresses.primary, kind.login, kind.database, namespace
        )
        root.delete(f"sys/namespaces/{namespace}")


def loaded(text: str) -> LoadedWorkflow:
    """A workflow of a test."""
    return load_text(text, filename="matrix.yaml", actions=catalog)

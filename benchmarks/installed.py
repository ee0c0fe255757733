"""The embedded servers, with what the benchmarks' own workflows need installed as an admin would install it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hvac

from orchestrator.actions.base import Params, StepContext
from orchestrator.assembly import RunnerConfig
from orchestrator.devstack.provisioned import Provisioned, provision_stack
from orchestrator.devstack.stack import DevStack
from orchestrator.jsontypes import JsonObject
from orchestrator.policy.engines.allow_all import AllowAllEngine
from orchestrator.provision.service import open_provisioning
from orchestrator.workflow.models.workflow import Workflow

ROOT = Path(__file__).parents[1]
GRANT = (
    "{ kind: database, connection: support, privileges: [{ select: customer_feedback, columns: [id, kind, comment] }] }"
)
"""What every step of the benchmarks may do: read three columns of one table."""


@dataclass(frozen=True, slots=True)
class Servers:
    """A provisioned stack and a folder for what a benchmark writes."""

    provisioned: Provisioned
    folder: Path

    @property
    def admin(self) -> hvac.Client:
        """Vault, as its root."""
        info = self.provisioned.info
        return hvac.Client(info.vault_address, token=info.root_token.reveal())

    def config(self, ledger: str, *, parallel: int) -> RunnerConfig:
        """A runner that asks no policy, with a ledger of its own in the folder."""
        return RunnerConfig(
            vault=self.provisioned.vault_config(),
            ledger_url=f"sqlite:///{self.folder / ledger}.db",
            policy=AllowAllEngine(),
            endpoints=self.provisioned.endpoints,
            max_parallel=parallel,
        )

    def install(self, workflows: Sequence[Workflow]) -> None:
        """Provision exactly these workflows."""
        with open_provisioning(
            self.provisioned.admin_config(),
            {"support": self.provisioned.info.support_dsn},
            workflows=workflows,
            declarations=ROOT / "vault",
            endpoints=self.provisioned.endpoints,
        ) as work:
            work.apply(work.plan())


@contextmanager
def servers(*, durable: bool = False) -> Iterator[Servers]:
    """Start and provision the stack in a temporary folder. `durable`: PostgreSQL waits for the disk."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)  # PostgreSQL runs as another user where this process is root
        with DevStack(folder / "stack", durable=durable) as info:
            yield Servers(provision_stack(info, declarations=ROOT / "vault", workflows=ROOT / "workflows"), folder)


class Nothing:
    """An action that does nothing, so that only the orchestrator is measured; its output is searched for secrets."""

    summary = "does nothing"
    params = Params

    def view(self, params: Any) -> JsonObject:
        return {}

    async def run(self, params: Any, context: StepContext) -> JsonObject:
        return {"rows": ["nothing"]}


class Catalog:
    """Knows that action alone."""

    def names(self) -> list[str]:
        return ["nothing"]

    def params_of(self, name: str) -> type[Params] | None:
        return Params if name == "nothing" else None

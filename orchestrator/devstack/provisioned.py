"""The embedded stack with everything installed that the sample workflows declare: ready for runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.devstack.stack import StackInfo
from orchestrator.provision.change import Change
from orchestrator.provision.service import load_workflows, new_secret_id, open_provisioning
from orchestrator.provision.vault.admin import VaultAdmin
from orchestrator.secret import Secret
from orchestrator.vault.config import AppRoleAuth, TokenAuth, VaultConfig

RUNTIME = "orchestrator-runtime"


@dataclass(frozen=True, slots=True)
class Provisioned:
    """How the runtime logs in to a provisioned stack."""

    info: StackInfo
    role_id: str
    secret_id: Secret
    changes: tuple[Change, ...] = field(default=(), repr=False)
    policies: Path = Path("workflows/policies")
    """The folder with the policies of the workflows that are installed."""

    @property
    def endpoints(self) -> dict[str, str]:
        """The addresses that the sample workflows name, without credentials."""
        return self.info.endpoints

    def vault_config(self) -> VaultConfig:
        """The runtime's identity: an AppRole."""
        return VaultConfig(self.info.vault_address, AppRoleAuth(self.role_id, self.secret_id))

    def admin_config(self) -> VaultConfig:
        """The admin's identity: the root token of the embedded server."""
        return VaultConfig(self.info.vault_address, TokenAuth(self.info.root_token))


def provision_stack(info: StackInfo, *, declarations: Path, workflows: Path) -> Provisioned:
    """Install what is declared, and make a login for the runtime."""
    config = VaultConfig(info.vault_address, TokenAuth(info.root_token))
    databases = {"support": info.support_dsn}
    with open_provisioning(
        config,
        databases,
        workflows=load_workflows(workflows),
        declarations=declarations,
        endpoints=info.endpoints,
        token_issuer=info.issuer_url,
    ) as provisioning:
        changes = provisioning.plan()
        provisioning.apply(changes)
    admin = VaultAdmin(config, info.root_token)
    try:
        role_id, secret_id = new_secret_id(admin, RUNTIME)
    finally:
        admin.close()
    return Provisioned(info, role_id, secret_id, tuple(changes), policies=(workflows / "policies").absolute())

"""Provisioning as a whole: what differs, and making it so. The admin's act; the runtime may do none of it."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from orchestrator.actions.catalog import catalog
from orchestrator.errors import ProvisionError, UsageError
from orchestrator.grants.compiled import CompiledGrant
from orchestrator.grants.models import DatabaseGrant
from orchestrator.grants.scope import compiled
from orchestrator.provision.change import Change
from orchestrator.provision.database_side import DatabaseSide
from orchestrator.provision.declarations import Declarations, load_declarations
from orchestrator.provision.step_policies import step_policies
from orchestrator.provision.vault_side import (
    VaultAdmin,
    VaultObject,
    change_of,
    desired_objects,
    new_password,
    undeclared,
    write_object,
)
from orchestrator.secret import Secret
from orchestrator.vault.config import TokenAuth, TokenFileAuth, VaultConfig
from orchestrator.workflow.loader import load
from orchestrator.workflow.models import Workflow


class Provisioning:
    """Desired against actual, for one Vault and the databases of its connections."""

    def __init__(
        self,
        admin: VaultAdmin,
        databases: Mapping[str, DatabaseSide],
        objects: Sequence[VaultObject],
        *,
        prune: bool,
    ) -> None:
        self._admin = admin
        self._databases = databases
        self._objects = objects
        self._prune = prune

    def plan(self) -> list[Change]:
        """Every difference between what is declared and what is installed; changes nothing."""
        changes = [change for database in self._databases.values() for change in database.changes()]
        changes += [change for wanted in self._objects if (change := change_of(self._admin, wanted)) is not None]
        return changes + (undeclared(self._admin, self._objects) if self._prune else [])

    def apply(self, changes: Sequence[Change], progress: Callable[[str], None] = lambda done: None) -> None:
        """Install what `plan` found. Databases first, each in one transaction; safe to interrupt and do again."""
        pending = {change.resource: change for change in changes}
        for name, database in self._databases.items():
            if any(resource.startswith(f"database {name} ") for resource in pending):
                database.apply()
                progress(f"database {name}")
        for wanted in self._objects:
            if change := pending.get(f"vault {wanted.path}"):
                write_object(self._admin, wanted, self._login_password(wanted) if change.kind == "create" else None)
                progress(wanted.path)
        for change in changes:
            if change.kind == "delete" and change.resource.startswith("vault "):
                self._admin.delete(change.resource.removeprefix("vault "))
                progress(change.resource)

    def _login_password(self, wanted: VaultObject) -> Secret | None:
        if not wanted.path.startswith("database/config/"):
            return None
        password = new_password()
        self._databases[wanted.path.rpartition("/")[2]].set_login_password(password)
        return password


@contextmanager
def open_provisioning(
    vault: VaultConfig,
    databases: Mapping[str, Secret],
    *,
    workflows: Sequence[Workflow],
    declarations: Path,
    prune: bool = False,
    endpoints: Mapping[str, str] | None = None,
) -> Iterator[Provisioning]:
    """Connect as the admin. `databases` are administrators' DSNs and `endpoints` plain addresses, by connection.

    Raises UsageError for what is declared wrongly, ProvisionError for what cannot be reached.
    """
    declared, runtime_policy = load_declarations(declarations)
    grants = compiled_grants(workflows, set(declared.connections))
    policies = step_policies(workflows, list(declared.connections))
    objects = desired_objects(declared, runtime_policy, policies, grants, endpoints or {})
    with ExitStack() as stack:
        admin = VaultAdmin(vault, admin_token(vault))
        stack.callback(admin.close)
        sides = _database_sides(declared, databases, grants, stack, prune=prune)
        yield Provisioning(admin, sides, objects, prune=prune)


def compiled_grants(workflows: Sequence[Workflow], connections: Container[str]) -> list[CompiledGrant]:
    """The distinct compiled grants of all steps, by name. Raises UsageError for a connection that is not declared."""
    found: dict[str, CompiledGrant] = {}
    for workflow in workflows:
        for step_id, step in workflow.steps.items():
            for name, grant in step.grants.items():
                if isinstance(grant, DatabaseGrant) and (made := compiled(grant, step_timeout=step.timeout)):
                    if grant.connection not in connections:
                        raise UsageError(
                            f"grant `{name}` of step `{step_id}` in `{workflow.name}` names the connection "
                            f"`{grant.connection}`, which is not declared",
                            hint="add it to `connections` in declarations.yaml",
                        )
                    found[made.vault_role] = made
    return [found[name] for name in sorted(found)]


def _database_sides(
    declared: Declarations,
    databases: Mapping[str, Secret],
    grants: Sequence[CompiledGrant],
    stack: ExitStack,
    *,
    prune: bool,
) -> dict[str, DatabaseSide]:
    sides: dict[str, DatabaseSide] = {}
    for name, connection in declared.connections.items():
        if name not in databases:
            raise ProvisionError(
                f"no administrator's login is known for the database `{name}`",
                hint=f"set ORCHESTRATOR_PROVISION_DATABASES__{name.upper()} to a DSN",
            )
        own = [grant for grant in grants if grant.connection == name]
        sides[name] = DatabaseSide(name, connection, databases[name], own, prune=prune)
        stack.callback(sides[name].close)
    return sides


def load_workflows(folder: Path) -> list[Workflow]:
    """Every workflow in a folder, by file name. Raises InvalidWorkflow or UsageError."""
    files = sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")])
    if not files:
        raise UsageError(f"there is no workflow in {folder}")
    return [load(file, actions=catalog).workflow for file in files]


def admin_token(vault: VaultConfig) -> Secret:
    """The admin's Vault token: provisioning is done with a token or a token file, not as the runtime."""
    match vault.auth:
        case TokenAuth():
            return vault.auth.token
        case TokenFileAuth():
            return Secret(vault.auth.path.read_text(encoding="utf-8").strip())
    raise UsageError(
        "provisioning needs an admin's Vault token, and the settings name the runtime's login",
        hint="set VAULT_TOKEN, and unset ORCHESTRATOR_AUTH_ROLE_ID, for this command",
    )


def new_secret_id(admin: VaultAdmin, name: str) -> tuple[str, Secret]:
    """The role id and a new secret id of an AppRole, to be handed to the runtime."""
    role_id = (admin.read(f"auth/approle/role/{name}/role-id") or {})["role_id"]
    secret_id = admin.write(f"auth/approle/role/{name}/secret-id", {})["data"]["secret_id"]
    return str(role_id), Secret(secret_id)

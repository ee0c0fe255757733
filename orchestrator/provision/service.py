"""Provisioning as a whole: what differs, and making it so. The admin's act; the runtime may do none of it."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from orchestrator.actions.catalog import catalog
from orchestrator.environment import how_to_set
from orchestrator.errors import ProvisionError, UsageError
from orchestrator.grants.compiled import CompiledGrant
from orchestrator.grants.models import DatabaseGrant
from orchestrator.grants.scope import compiled_forms
from orchestrator.provision.certificates import check_certificates
from orchestrator.provision.change import Change
from orchestrator.provision.database.side import DatabaseSide
from orchestrator.provision.declarations import Declarations, Runtime, load_declarations
from orchestrator.provision.vault.admin import VaultAdmin
from orchestrator.provision.vault.connection_login import Outcome, try_login
from orchestrator.provision.vault.identity_tokens import identity_tokens
from orchestrator.provision.vault.issuer_access import check_issuers
from orchestrator.provision.vault.objects import VaultObject, change_of, desired_objects, new_password, write_object
from orchestrator.provision.vault.step_policies import step_access
from orchestrator.provision.vault.strangers import Strangers, strangers
from orchestrator.provision.vault.token_workflows import token_workflows
from orchestrator.secret import Secret
from orchestrator.vault.config import TokenAuth, TokenFileAuth, VaultConfig
from orchestrator.workflow.loader import files_of, load_each, of_one_name
from orchestrator.workflow.models.workflow import Workflow
from orchestrator.workflow.problems import InvalidWorkflow


@dataclass(frozen=True, slots=True)
class Drift:
    """Where what is installed is not what is declared. `notes` are no differences, but should be known."""

    changes: Sequence[Change]
    notes: Sequence[str]


@dataclass(frozen=True, slots=True)
class RuntimeLogin:
    """The AppRole that the runtime logs in by. A role id is no secret: it is of no use without a secret id."""

    name: str
    role_id: str

    @property
    def secret_id_path(self) -> str:
        """Where Vault makes a secret id for it."""
        return f"auth/approle/role/{self.name}/secret-id"


class Provisioning:
    """Desired against actual, for one Vault and the databases of its connections."""

    def __init__(
        self,
        admin: VaultAdmin,
        databases: Mapping[str, DatabaseSide],
        objects: Sequence[VaultObject],
        runtime: Runtime,
        *,
        prune: bool,
    ) -> None:
        self._admin = admin
        self._databases = databases
        self._objects = objects
        self._runtime = runtime
        self._prune = prune

    def runtime_login(self) -> RuntimeLogin | None:
        """What the runtime needs to know in order to log in, as soon as it is installed."""
        found = self._admin.read(f"auth/approle/role/{self._runtime.name}/role-id") or {}
        return RuntimeLogin(self._runtime.name, str(found["role_id"])) if "role_id" in found else None

    def plan(self) -> list[Change]:
        """What `apply` would do; changes nothing."""
        return list(self.preview().changes)

    def preview(self) -> Drift:
        """What `apply` would do, and what should be known of it before; changes nothing."""
        pruned = [each for each in self._strangers().changes if each.kind == "delete"] if self._prune else []
        found = self._differences()
        return Drift([*found.changes, *pruned], found.notes)

    def check(self) -> Drift:
        """Every difference in both directions: also what is there of ours although it is not declared."""
        strangers, found = self._strangers(), self._differences()
        changes, notes = [*found.changes, *strangers.changes], [*found.notes, *strangers.notes]
        for database in self._databases.values():
            changes += database.undeclared()
            notes += database.notes()
        return Drift(changes, notes)

    def _differences(self) -> Drift:
        """Between what is declared and what is installed, of what is declared."""
        changes = [change for database in self._databases.values() for change in database.changes()]
        changes += [change for each in self._objects if (change := change_of(self._admin, each)) is not None]
        notes: list[str] = []
        for name, database in self._databases.items():
            changes, said = self._with_login(name, database, changes)
            notes += [*said, *database.hidden_rows()]
            if database.is_among(changes):
                notes += [f"database {name}: its administrator cannot {each.what}" for each in database.obstacles()]
        return Drift(changes, notes)

    def _with_login(self, name: str, database: DatabaseSide, changes: list[Change]) -> tuple[list[Change], list[str]]:
        """The changes with those of the password of Vault's login, and what could not be looked at.

        Where Vault has the connection already it tries it: a password that was restored or changed by somebody else is
        a difference that no catalog shows.
        """
        path = f"vault database/config/{name}"
        config = next((change for change in changes if change.resource == path), None)
        if config is not None and config.kind == "create":
            taken = _SET_BY_OTHERS if database.login_has_password() else None
            return [*changes, *_new_password(database, taken)], []
        if config is not None and database.login_line() not in config.before.splitlines():  # Vault had another login
            return [*changes, *_new_password(database, _SET_BY_OTHERS if database.login_has_password() else "none")], []
        login = try_login(self._admin, name)
        match login.outcome:
            case Outcome.WRONG_PASSWORD:
                return [*changes, *_new_password(database, f"not the one that Vault has: {login.said}")], []
            case Outcome.NOT_TRIED:
                return changes, [f"whether Vault can connect to the database {name} was not tried: {login.said}"]
            case Outcome.FAILED if config is not None:
                return [*changes, *_new_password(database, f"not known, as Vault cannot connect: {login.said}")], []
            case Outcome.FAILED if not any(change.resource.startswith(f"database {name} role ") for change in changes):
                return [*changes, Change("undeclared", path, f"Vault cannot connect with it: {login.said}", "")], []
        return changes, []

    def _strangers(self) -> Strangers:
        runtime = self._runtime
        return strangers(
            self._admin, self._objects, runtime=runtime.name, other_logins=runtime.other_logins, prune=self._prune
        )

    def apply(self, changes: Sequence[Change], progress: Callable[[str], None] = lambda done: None) -> None:
        """Install what `plan` found. Databases first, each in one transaction; safe to interrupt and do again.

        Raises ProvisionError before anything is changed where something is in our place that is not ours, or an
        administrator may not do what there is to do in its database.
        """
        different = [database for database in self._databases.values() if database.is_among(changes)]
        for database in different:
            database.refuse_in_vain()
        for each in changes:
            if each.kind == "undeclared" and each.resource.startswith("vault sys/"):
                raise ProvisionError(
                    f"{each.resource.removeprefix('vault ')} is there already: {each.before}",
                    hint="nothing was changed; name another mount in declarations.yaml",
                )
        pending = {change.resource: change for change in changes}
        for database in different:
            database.apply()
            progress(f"database {database.name}")
        for wanted in self._objects:
            if not wanted.imported and self._is_pending(wanted, pending):
                write_object(self._admin, wanted, self._login_password(wanted, pending))
                progress(wanted.path)
        for change in changes:
            if change.kind == "delete" and change.resource.startswith("vault "):
                self._admin.delete(change.resource.removeprefix("vault "))
                progress(change.resource)

    def _is_pending(self, wanted: VaultObject, pending: Mapping[str, Change]) -> bool:
        found = pending.get(f"vault {wanted.path}")
        return (found is not None and found.kind != "undeclared") or self._needs_password(wanted, pending)

    def _needs_password(self, wanted: VaultObject, pending: Mapping[str, Change]) -> bool:
        """Whether Vault's login is given a new password with the connection that it is for."""
        if not wanted.path.startswith(_CONNECTIONS):
            return False
        found = pending.get(f"vault {wanted.path}")
        database = self._databases[wanted.path.removeprefix(_CONNECTIONS)]
        return (found is not None and found.kind == "create") or database.password_resource() in pending

    def _login_password(self, wanted: VaultObject, pending: Mapping[str, Change]) -> Secret | None:
        if not self._needs_password(wanted, pending):
            return None
        password = new_password()
        self._databases[wanted.path.removeprefix(_CONNECTIONS)].set_login_password(password)
        return password


_CONNECTIONS = "database/config/"

_SET_BY_OTHERS = "set before, and not by this Vault: whoever has it, such as another Vault or namespace, loses it"


def _new_password(database: DatabaseSide, before: str | None) -> list[Change]:
    """The change of the password of Vault's login, which is nothing to tell where there was none."""
    if before is None:
        return []
    return [Change("change", database.password_resource(), before, "a new one that this Vault alone has")]


@contextmanager
def open_provisioning(
    vault: VaultConfig,
    databases: Mapping[str, Secret],
    *,
    workflows: Sequence[Workflow],
    declarations: Path,
    prune: bool = False,
    endpoints: Mapping[str, str] | None = None,
    token_issuer: str | None = None,
) -> Iterator[Provisioning]:
    """Connect as the admin. `databases` are administrators' DSNs and `endpoints` plain addresses, by connection;
    `token_issuer` is the `iss` of the tokens that are signed inside the server.

    Raises UsageError for what is declared wrongly, ProvisionError for what cannot be reached.
    """
    declared, runtime_policy = load_declarations(declarations)
    mounts = {name for name, mount in declared.mounts.items() if mount.type == "database"}
    grants = compiled_grants(workflows, set(declared.connections), mounts)
    check_issuers(workflows, declared)
    check_certificates(workflows, declared.certificates)
    access = [
        each.objects(declared.runtime.bound_cidrs)
        for each in step_access(workflows, declared.connections, declared.issuers)
    ]
    signing = [*token_workflows(workflows, declared.transit_keys, token_issuer), *identity_tokens(workflows)]
    objects = desired_objects(declared, runtime_policy, access, grants, signing, endpoints or {})
    with ExitStack() as stack:
        admin = VaultAdmin(vault, admin_token(vault))
        stack.callback(admin.close)
        sides = _database_sides(declared, databases, grants, stack, prune=prune)
        yield Provisioning(admin, sides, objects, declared.runtime, prune=prune)


def compiled_grants(
    workflows: Sequence[Workflow], connections: Container[str], mounts: Container[str] = ("database",)
) -> list[CompiledGrant]:
    """The distinct compiled grants of all steps, by name.

    Raises UsageError for a connection or a database engine (`mounts`) that is not declared, and where one name would
    stand for two things.
    """
    found: dict[tuple[str, str], CompiledGrant] = {}
    scopes: dict[str, CompiledGrant] = {}
    for workflow in workflows:
        for step_id, step in workflow.parts.items():
            for name, grant in step.grants.items():
                if not isinstance(grant, DatabaseGrant):
                    continue
                where = f"grant `{name}` of step `{step_id}` in `{workflow.name}`"
                for made in compiled_forms(grant, step_timeout=step.timeout).values():
                    if grant.connection not in connections:
                        raise UsageError(
                            f"{where} names the connection `{grant.connection}`, which is not declared",
                            hint="add it to `connections` in declarations.yaml",
                        )
                    if grant.mount not in mounts:
                        raise UsageError(
                            f"{where} is to be installed at `{grant.mount}`, which is no declared database engine",
                            hint="add it to `mounts` in declarations.yaml, with the type `database`",
                        )
                    first = found.setdefault((made.mount, made.vault_role), made)
                    same_scope = scopes.setdefault(made.scope_role, made)
                    if first.limits() != made.limits() or same_scope.opens() != made.opens():
                        raise UsageError(
                            f"{where} gets a name that another grant has already: {made.vault_role}, {made.scope_role}",
                            hint="whoever may run one of the two would have what the other one may",
                        )
    return [found[key] for key in sorted(found)]


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
            raise UsageError(
                f"no administrator's login is known for the database `{name}`",
                hint=how_to_set("provision_databases", name, "to a DSN"),
            )
        own = [grant for grant in grants if grant.connection == name]
        sides[name] = DatabaseSide(name, connection, databases[name], own, prune=prune)
        stack.callback(sides[name].close)
    return sides


def load_workflows(folder: Path) -> list[Workflow]:
    """Every workflow in a folder, by file name. Raises InvalidWorkflow with all that is wrong, or UsageError."""
    files = files_of(folder)
    if not files:
        raise UsageError(f"there is no workflow in {folder}")
    loaded, problems = load_each(files, actions=catalog, within=folder)
    problems += of_one_name(loaded)
    if problems:
        raise InvalidWorkflow(problems)
    return [each.workflow for each in loaded]


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
    return str(role_id), admin.new_secret_id(name)

"""What is in Vault of ours although nobody declared it: who else could give what the declared objects limit.

`objects.py` compares what is declared with what is there. This looks the other way: for policies under our names,
token roles and logins that give them or the runtime's, entities and groups that hold them, and database roles with
names of ours. Nothing of it can be told from a workflow that somebody provisions from elsewhere, so a person looks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal

from orchestrator.grants.compiled import VAULT_ROLE_PREFIX
from orchestrator.grants.policy_names import BROKER_DUTIES, SIGNING, token_role_name
from orchestrator.provision.change import Change
from orchestrator.provision.vault.admin import VaultAdmin
from orchestrator.provision.vault.objects import VaultObject, text_of
from orchestrator.provision.vault.step_policies import HEADER
from orchestrator.vault.faults import VaultRefused

FOLDERS = ("step/", *(f"{duty}/" for duty in BROKER_DUTIES), f"{SIGNING}/")
"""Under these stand the policies that provisioning writes, and nothing else."""

_SIGNERS = f"auth/approle/role/{SIGNING}."
_TOKEN_ROLES = tuple(token_role_name(folder) for folder in FOLDERS)
_POLICIES = "sys/policies/acl/"
_WORD = re.compile(r"[\w./-]+")
_MOST_ENTITIES = 1000

_LOGINS: dict[str, tuple[str, ...]] = {
    "alicloud": ("role",),
    "approle": ("role",),
    "aws": ("role",),
    "azure": ("role",),
    "cert": ("certs",),
    "cf": ("roles",),
    "gcp": ("role",),
    "github": ("map/teams", "map/users"),
    "jwt": ("role", "cel/role"),
    "kerberos": ("groups",),
    "kubernetes": ("role",),
    "ldap": ("groups", "users"),
    "oci": ("role",),
    "oidc": ("role", "cel/role"),
    "okta": ("groups", "users"),
    "radius": ("users",),
    "userpass": ("users",),
}
"""Where each kind of auth method keeps who gets which policies."""

_LISTED_ELSEWHERE = {"aws": {"role": "roles"}, "gcp": {"role": "roles"}, "alicloud": {"role": "roles"}}


@dataclass(slots=True)
class Strangers:
    """What was found, and what could not be looked at."""

    changes: list[Change] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def strangers(
    admin: VaultAdmin,
    objects: Sequence[VaultObject],
    *,
    runtime: str,
    other_logins: Collection[str] = (),
    prune: bool = False,
) -> Strangers:
    """Everything of ours that is not declared. With `prune`, what provisioning once wrote is there to be deleted."""
    return _Search(admin, {each.path for each in objects} | set(other_logins), runtime, prune).all()


class _Search:
    def __init__(self, admin: VaultAdmin, declared: Collection[str], runtime: str, prune: bool) -> None:
        self._admin = admin
        self._declared = declared
        self._runtime = runtime
        self._prune = prune
        self._found = Strangers()

    def all(self) -> Strangers:
        for what, look in (
            ("policies", self._policies),
            ("token roles", self._token_roles),
            ("auth methods", self._logins),
            ("identity", self._identity),
            ("database roles", self._database_roles),
            ("workflows", self._workflows),
            ("identity tokens", self._identity_roles),
        ):
            self._try(what, look)
        return self._found

    def _try(self, what: str, look: Callable[[], None]) -> None:
        try:
            look()
        except VaultRefused as refusal:
            self._found.notes.append(f"{what} could not be looked at: {refusal.message}")

    def _report(self, path: str, data: Any, *, ours: bool = False) -> None:
        kind: Literal["delete", "undeclared"] = "delete" if ours and self._prune else "undeclared"
        self._found.changes.append(Change(kind, f"vault {path}", text_of(data or {}), ""))

    def _policies(self) -> None:
        for name in self._below(_POLICIES):
            path = _POLICIES + name
            if name.startswith(FOLDERS) and path not in self._declared:
                text = str((self._admin.read(path) or {}).get("policy", ""))
                self._report(path, {"policy": text}, ours=text.startswith(HEADER))

    def _token_roles(self) -> None:
        policies = [name for name in self._below(_POLICIES) if self._is_ours(name)]
        for name in self._admin.keys("auth/token/roles"):
            path = f"auth/token/roles/{name}"
            if path in self._declared:
                continue
            role = self._admin.read(path) or {}
            allowed = [str(each) for each in role.get("allowed_policies") or ()]
            globs = [str(each) for each in role.get("allowed_policies_glob") or ()]
            by_glob = any(fnmatchcase(each, glob) for glob in globs for each in policies)
            if name.startswith(_TOKEN_ROLES) or by_glob or any(map(self._is_ours, allowed)):
                self._report(path, role, ours=allowed == [name.replace(".", "/")] and not globs)

    def _logins(self) -> None:
        for mount, about in (self._admin.read("sys/auth") or {}).items():
            if not isinstance(about, dict) or mount == "token/":
                continue
            kind = str(about.get("type"))
            if kind not in _LOGINS:
                self._found.notes.append(f"auth/{mount} is of the type {kind}, whose roles are not known here")
            for place in _LOGINS.get(kind, ()):
                listed = _LISTED_ELSEWHERE.get(kind, {}).get(place, place)
                self._try(f"auth/{mount}{place}", lambda m=mount, p=place, k=listed: self._roles(f"auth/{m}", p, k))  # type: ignore[misc]

    def _roles(self, mount: str, place: str, listed: str) -> None:
        for name in self._admin.keys(f"{mount}{listed}"):
            self._look(f"{mount}{place}/{name}")

    def _identity(self) -> None:
        for place in ("identity/group/id", "identity/entity/id"):
            keys = self._admin.keys(place)
            for key in keys[:_MOST_ENTITIES]:
                self._look(f"{place}/{key}", among="policies")
            if len(keys) > _MOST_ENTITIES:
                self._found.notes.append(f"{place}: only the first {_MOST_ENTITIES} of {len(keys)} were looked at")

    def _look(self, path: str, *, among: str | None = None) -> None:
        """Report what names a policy of ours, anywhere or in one field: aliases of an entity name roles, too."""
        data = self._admin.read(path) or {}
        if path not in self._declared and any(map(self._is_ours, _words(data if among is None else data.get(among)))):
            signs = [_SIGNERS + each.removeprefix(f"{SIGNING}/") for each in data.get("token_policies") or ()]
            self._report(path, data, ours=signs == [path])

    def _database_roles(self) -> None:
        wanted = {path.partition("/roles/")[0] for path in self._declared if "/roles/orc" in path}
        for mount in sorted(wanted | {"database"}):
            for name in self._admin.keys(f"{mount}/roles"):
                path = f"{mount}/roles/{name}"
                if name.startswith((VAULT_ROLE_PREFIX, "orchestrator-")) and path not in self._declared:
                    self._report(path, self._admin.read(path), ours=name.startswith(VAULT_ROLE_PREFIX))

    def _workflows(self) -> None:
        for name in self._admin.workflows():
            path = f"sys/workflows/manage/{name}"
            if name.startswith(FOLDERS) and path not in self._declared:
                self._report(path, {"path": path})  # not its text, which may hold what signs

    def _identity_roles(self) -> None:
        for name in self._admin.keys("identity/oidc/role"):
            path = f"identity/oidc/role/{name}"
            if name.startswith(_TOKEN_ROLES) and path not in self._declared:
                self._report(path, self._admin.read(path))

    def _below(self, path: str) -> Iterator[str]:
        for name in self._admin.keys(path.rstrip("/")):
            if name.endswith("/"):
                yield from (name + rest for rest in self._below(path + name))
            else:
                yield name

    def _is_ours(self, policy: str) -> bool:
        return policy == self._runtime or policy.startswith(FOLDERS)


def _words(data: Any) -> Iterator[str]:
    """Every word in which a policy could be named, however deep."""
    match data:
        case str():
            yield from _WORD.findall(data)
        case dict():
            for value in data.values():
                yield from _words(value)
        case list():
            for value in data:
                yield from _words(value)

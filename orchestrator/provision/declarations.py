"""What an admin declares in `vault/declarations.yaml`, as data."""

from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from orchestrator.errors import UsageError
from orchestrator.grants.fields import Duration, Name
from orchestrator.issuers.declared import Issuers
from orchestrator.provision.certificates import CertificateRoles
from orchestrator.samples.place import runtime_policy

Identifier = Annotated[str, Field(min_length=1, max_length=63)]
"""A name in PostgreSQL, of at most 63 bytes; the driver quotes it."""


def _network(value: str) -> str:
    ip_network(value, strict=False)
    return value


Cidr = Annotated[str, AfterValidator(_network)]
"""A network or one address, such as `10.4.0.0/16`."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Mount(_Model):
    """A secrets engine and its options (Vault API, `POST /sys/mounts/:path`)."""

    type: Literal["kv", "database", "transit", "pki", "ssh"]
    options: dict[str, str] = Field(default_factory=dict)


class TransitKey(_Model):
    """A key of the transit engine; the private part never leaves it."""

    type: Literal["ecdsa-p256", "ed25519", "rsa-2048", "rsa-3072", "rsa-4096", "hmac"] = "ecdsa-p256"
    origin: Literal["vault", "import"] = "vault"
    """Who made it: Vault, or somebody else, so that it is brought there by `orchestrator provision import-key`."""

    @model_validator(mode="after")
    def _of_somebody(self) -> Self:
        if self.type == "hmac" and self.origin != "import":
            raise ValueError("an `hmac` key is a secret that somebody else knows, too: `origin: import`")
        return self


class Runtime(_Model):
    """The AppRole of the runtime identity, and the file with its policy, below the folder of the declarations."""

    name: Name = "orchestrator-runtime"
    policy: Path | None = None
    """None: the one that comes with this version."""
    token_ttl: Duration = 3600
    """Longer than the longest step: what hangs from a token ends with it."""
    token_max_ttl: Duration = 86400
    """However often it is renewed; then the runtime logs in again."""
    secret_id_ttl: Duration = 86400
    secret_id_uses: Annotated[int, Field(ge=0)] = 2000
    """How many logins one secret id is good for; 0: as many as its life allows."""
    bound_cidrs: list[Cidr] = Field(default_factory=list)
    """Where the runtime runs: the login, its tokens and those of the steps work from nowhere else."""
    other_logins: list[Annotated[str, Field(pattern=r"^auth/[\w./-]+$")]] = Field(default_factory=list)
    """Other ways to become the runtime that are meant, such as `auth/kubernetes/role/orchestrator`."""


class Connection(_Model):
    """A database: Vault's login in it, and Vault roles that an admin maintains by hand for it.

    `admins` are roles beside the one that provisions that may hand out the roles that provisioning makes.
    """

    login: Identifier = "orchestrator_vault"
    admins: list[Identifier] = Field(default_factory=list)
    other_roles: list[Annotated[str, Field(pattern=r"^[\w-]{1,128}$")]] = Field(default_factory=list)


class Declarations(_Model):
    """Everything that provisioning installs, except the policies of steps, which the workflows declare."""

    version: Literal[1]
    mounts: dict[str, Mount]
    transit_keys: dict[Name, TransitKey] = Field(default_factory=dict)
    runtime: Runtime
    connections: dict[Name, Connection] = Field(default_factory=dict)
    issuers: Issuers = Field(default_factory=dict)
    certificates: CertificateRoles = Field(default_factory=dict)


def load_declarations(folder: Path) -> tuple[Declarations, str]:
    """The declarations in a folder, and the text of the runtime's policy. Raises UsageError."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    file = folder / "declarations.yaml"
    try:
        declarations = Declarations.model_validate(YAML(typ="safe", pure=True).load(file.read_text(encoding="utf-8")))
        named = declarations.runtime.policy
        policy = runtime_policy() if named is None else (folder / named).read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"{error.filename} cannot be read: {error.strerror}", hint=_what_to_write(file, Path(error.filename))
        ) from error
    except YAMLError as error:
        raise UsageError(f"{file} is not valid YAML: {error}") from error
    except ValidationError as error:
        found = "\n".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise UsageError(f"{file} is not valid:\n{found}") from error
    return declarations, policy


def _what_to_write(declarations: Path, missing: Path) -> str:
    if missing == declarations:
        return "name its folder with --declarations; `orchestrator init FOLDER` writes one to start from"
    return f"leave `policy` of `runtime` out in {declarations} for the policy that comes with this version"

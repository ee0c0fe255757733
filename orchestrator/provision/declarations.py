"""What an admin declares in `vault/declarations.yaml`, as data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from orchestrator.errors import UsageError
from orchestrator.grants.models import Duration, Name

Identifier = Annotated[str, Field(min_length=1, max_length=63)]
"""A name in PostgreSQL, of at most 63 bytes; the driver quotes it."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Mount(_Model):
    """A secrets engine and its options (Vault API, `POST /sys/mounts/:path`)."""

    type: Literal["kv", "database", "transit"]
    options: dict[str, str] = Field(default_factory=dict)


class TransitKey(_Model):
    """A signing key of the transit engine; the private part never leaves it."""

    type: Literal["ecdsa-p256", "ed25519"] = "ecdsa-p256"


class Runtime(_Model):
    """The AppRole of the runtime identity, and the file with its policy."""

    name: Name = "orchestrator-runtime"
    policy: Path
    token_ttl: Duration = 3600
    secret_id_ttl: Duration = 86400


class Connection(_Model):
    """A database: Vault's login in it, and Vault roles that an admin maintains by hand for it."""

    login: Identifier = "orchestrator_vault"
    other_roles: list[Annotated[str, Field(pattern=r"^[\w-]{1,128}$")]] = Field(default_factory=list)


class Declarations(_Model):
    """Everything that provisioning installs, except the policies of steps, which the workflows declare."""

    version: Literal[1]
    mounts: dict[str, Mount]
    transit_keys: dict[Name, TransitKey] = Field(default_factory=dict)
    runtime: Runtime
    token_role: Name = "orchestrator-step"  # noqa: S105 -- the name of a role
    connections: dict[Name, Connection] = Field(default_factory=dict)


def load_declarations(folder: Path) -> tuple[Declarations, str]:
    """The declarations in a folder, and the text of the runtime's policy. Raises UsageError."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    file = folder / "declarations.yaml"
    try:
        declarations = Declarations.model_validate(YAML(typ="safe", pure=True).load(file.read_text(encoding="utf-8")))
        policy = (folder / declarations.runtime.policy).read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{error.filename} cannot be read: {error.strerror}") from error
    except YAMLError as error:
        raise UsageError(f"{file} is not valid YAML: {error}") from error
    except ValidationError as error:
        found = "\n".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise UsageError(f"{file} is not valid:\n{found}") from error
    return declarations, policy

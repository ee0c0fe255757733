"""Who somebody is who approves: proven by the door they come through, never by a name that they give.

A Vault token is looked up with itself: its display name and its policies are what Vault says of it. A child token keeps
the entity of the person, who is one person however many tokens they have. Root tokens are nobody's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.errors import Refused
from orchestrator.jsontypes import JsonObject
from orchestrator.secret import Secret
from orchestrator.vault.fields import seconds, section
from orchestrator.vault.session import VaultSession

_LOOKUP = "auth/token/lookup-self"


class Unproven(Refused):
    """Nobody has proven who they are."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, by="orchestrator", hint=hint)


@dataclass(frozen=True, slots=True)
class Person:
    """`name` is as in `approvers` of the obligation, and so are `claims`; `entity` is the same for all their tokens."""

    name: str
    claims: tuple[str, ...] = ()
    entity: str = ""

    @property
    def door(self) -> str:
        """What proved who they are: `vault`, `slack` or `oidc`."""
        return self.name.partition(":")[0].partition("-")[0]

    @property
    def key(self) -> str:
        """Of one person it is always the same."""
        return f"vault-entity:{self.entity}" if self.entity else self.name

    def is_one_of(self, approvers: tuple[str, ...]) -> bool:
        """Whether a decision counts them among who may approve."""
        return self.name in approvers or not set(self.claims).isdisjoint(approvers)

    def is_same_as(self, other: Person) -> bool:
        """Whether both are the same, as far as anybody can tell."""
        return bool(self.name and self.name == other.name) or bool(self.entity and self.entity == other.entity)

    def as_json(self) -> JsonObject:
        """For the record."""
        return {"name": self.name, "claims": list(self.claims), "entity": self.entity}

    @classmethod
    def from_json(cls, recorded: Mapping[str, Any]) -> Person:
        """The inverse. Raises KeyError and TypeError for anything else."""
        return cls(str(recorded["name"]), tuple(map(str, recorded["claims"])), str(recorded["entity"]))


@dataclass(frozen=True, slots=True)
class Bearer:
    """Who shows a token, and for how many seconds more it counts; None: until it is revoked."""

    person: Person
    seconds: int | None


async def owner_of(vault: VaultSession, token: Secret, *, deadline: float) -> Person:
    """Whom Vault knows by this token. Raises Refused where it is nobody's; VaultRefused and VaultUnavailable."""
    return (await bearer_of(vault, token, deadline=deadline)).person


async def bearer_of(vault: VaultSession, token: Secret, *, deadline: float) -> Bearer:
    """The same, with how long the token lasts."""
    data = section(await vault.request("get", _LOOKUP, token=token, deadline=deadline), "data", _LOOKUP)
    found = _person(data)
    if "vault-policy:root" in found.claims:
        raise Refused(
            "a root token belongs to nobody in particular: it cannot approve anything", by="orchestrator", hint=_HINT
        )
    if found.name in ("", "vault:"):
        raise Refused("this Vault token does not say whose it is", by="orchestrator", hint=_HINT)
    ends = data.get("expire_time") is not None  # without an end Vault says a `ttl` of 0, too
    return Bearer(found, seconds(data, "ttl", _LOOKUP) if ends else None)


async def ourselves(vault: VaultSession, *, deadline: float) -> Person:
    """Whom Vault takes this process for. Raises VaultRefused and VaultUnavailable."""
    return _person(section(await vault.runtime_request("get", _LOOKUP, deadline=deadline), "data", _LOOKUP))


_HINT = "log in to Vault as yourself, by a method that knows people, such as OIDC or userpass, and use that token"


def _person(data: Mapping[str, Any]) -> Person:
    """A child token has the name that its maker gave it, behind `token-`: it goes by its entity, if it has one."""
    name, entity = str(data.get("display_name") or ""), str(data.get("entity_id") or "")
    policies = {*_texts(data.get("policies")), *_texts(data.get("identity_policies"))} - {"default"}
    if name == "token" or name.startswith("token-") or any(char.isspace() for char in name):
        named = f"vault-entity:{entity}" if entity else ""
    else:
        named = f"vault:{name}"
    return Person(named, tuple(sorted(f"vault-policy:{policy}" for policy in policies)), entity)


def _texts(value: object) -> list[str]:
    return [each for each in value if isinstance(each, str)] if isinstance(value, list) else []

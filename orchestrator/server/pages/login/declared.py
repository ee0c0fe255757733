"""What is said of the login to the pages in the settings."""

from __future__ import annotations

from dataclasses import dataclass, field

from orchestrator.secret import Secret
from orchestrator.server.pages.login.roles import Roles


@dataclass(frozen=True, slots=True)
class Provider:
    """An OpenID provider. `claims`: which of an ID token's say who somebody is, beside its subject: `groups` makes
    `oidc-groups:NAME`. `shown`: the claim that people read."""

    issuer: str
    client_id: str
    secret: Secret | None = field(default=None, repr=False)
    scopes: tuple[str, ...] = ("openid", "profile")
    claims: tuple[str, ...] = ("groups",)
    shown: str = "preferred_username"


@dataclass(frozen=True, slots=True)
class Login:
    """`url`: how browsers reach the pages, scheme and host; empty: at their listener. Without a provider by Vault
    tokens alone."""

    url: str
    roles: Roles
    provider: Provider | None = None

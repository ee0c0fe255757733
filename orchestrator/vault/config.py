"""How to reach Vault and who to be there. Built from the settings; nothing here reads the environment."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from orchestrator.errors import UsageError
from orchestrator.network.loopback import is_loopback
from orchestrator.secret import Secret


@dataclass(frozen=True, slots=True)
class AppRoleAuth:
    """A role and a secret id (Vault documentation, "AppRole auth method")."""

    role_id: str
    secret_id: Secret
    mount: str = "approle"


@dataclass(frozen=True, slots=True)
class TokenAuth:
    """A token that was given: it is renewed, and not given back at the end."""

    token: Secret


@dataclass(frozen=True, slots=True)
class TokenFileAuth:
    """A file that somebody else keeps fresh, such as the sink of Vault Agent; read at every login."""

    path: Path


@dataclass(frozen=True, slots=True)
class KubernetesAuth:
    """A pod's service account token, read at every login (Vault documentation, "Kubernetes auth method")."""

    role: str
    jwt_file: Path = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")
    mount: str = "kubernetes"


@dataclass(frozen=True, slots=True)
class JwtAuth:
    """A workload identity token (OIDC) in a file, exchanged at Vault's JWT auth method."""

    role: str
    jwt_file: Path
    mount: str = "jwt"


Auth = AppRoleAuth | TokenAuth | TokenFileAuth | KubernetesAuth | JwtAuth


@dataclass(frozen=True, slots=True)
class VaultConfig:
    """`connect_timeout` and `read_timeout` are seconds of one HTTP request.

    The read time-out is longer than Vault's own limit of 90 s per request on purpose: an issuance
    whose connection we close leaves a database role behind that Vault does not know of.
    """

    address: str
    auth: Auth = field(repr=False)
    namespace: str | None = None
    ca_cert: Path | None = None
    connect_timeout: float = 5.0
    read_timeout: float = 100.0
    connections: int = 16
    plain_http: bool = False
    """Whether an address on another machine may do without TLS."""

    def __post_init__(self) -> None:
        """Raises UsageError for plain http to another machine: logins and secrets would be read on the way.

        What is no address at all is told by whoever connects.
        """
        try:
            address = urlsplit(self.address)
            host = address.hostname if address.port != 0 else None
        except ValueError:
            return
        if address.scheme == "http" and host and not self.plain_http and not is_loopback(host):
            raise UsageError(
                f"Vault at {self.address} would be spoken to without TLS, "
                "and anybody on the way would read every secret",
                hint="use https:// (VAULT_CACERT names the authority's certificate); where the network in between is "
                "trusted, such as that of the containers of one machine, say ORCHESTRATOR_VAULT_PLAIN_HTTP=true",
            )

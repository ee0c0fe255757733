"""Who to be at Vault: from the settings to one way of logging in."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar, assert_never

from pydantic import SecretStr

from orchestrator.environment import PREFIX
from orchestrator.errors import UsageError
from orchestrator.secret import Secret
from orchestrator.settings import Method, Settings
from orchestrator.vault.config import (
    AppRoleAuth,
    Auth,
    JwtAuth,
    KubernetesAuth,
    TokenAuth,
    TokenFileAuth,
    VaultConfig,
)

T = TypeVar("T")

CLI_TOKEN_FILE = ".vault-token"  # noqa: S105 -- the name of the file in the home folder that `vault login` writes


def home_token() -> Path | None:
    """The file that `vault login` writes for a person, where it is there."""
    try:
        file = Path.home() / CLI_TOKEN_FILE
        return file if file.is_file() else None
    except (OSError, RuntimeError):  # no home, or none that may be looked into
        return None


def admin_config(settings: Settings) -> VaultConfig:
    """As `vault_config`, for what an admin does at a terminal after `vault login`: its token is taken last."""
    return vault_config(settings, person=True)


def vault_config(settings: Settings, *, person: bool = False) -> VaultConfig:
    """How to reach Vault and who to be there. Raises UsageError, naming the variable that is missing.

    The token of `vault login` is a person's, often an administrator's: without `person` it is used only where the
    settings say so.
    """
    if settings.vault_addr is None:
        raise UsageError(
            "it is not known where Vault is: VAULT_ADDR is not set",
            hint="set VAULT_ADDR=https://vault.example.com:8200; `orchestrator dev` starts a Vault of your own",
        )
    if settings.vault_cacert is not None and not settings.vault_cacert.exists():
        raise UsageError(f"VAULT_CACERT names {settings.vault_cacert}, which does not exist")
    return VaultConfig(
        address=settings.vault_addr,
        auth=_auth(settings, settings.auth_method or _first_that_is_set(settings, person=person)),
        namespace=settings.vault_namespace,
        ca_cert=settings.vault_cacert,
        plain_http=settings.vault_plain_http,
    )


def _auth(settings: Settings, method: Method) -> Auth:
    match method:
        case "approle":
            role_id = _needed(settings.auth_role_id, "AUTH_ROLE_ID", method)
            return AppRoleAuth(role_id, _secret_id(settings), mount=settings.auth_mount or "approle")
        case "token":
            return TokenAuth(_secret(_needed(settings.auth_token, "AUTH_TOKEN", method)))
        case "token-file":
            return TokenFileAuth(settings.auth_token_file or Path.home() / CLI_TOKEN_FILE)
        case "kubernetes":
            role = _needed(settings.auth_role, "AUTH_ROLE", method)
            usual = KubernetesAuth(role)
            return KubernetesAuth(role, settings.auth_jwt_file or usual.jwt_file, settings.auth_mount or usual.mount)
        case "jwt":
            role = _needed(settings.auth_role, "AUTH_ROLE", method)
            file = _needed(settings.auth_jwt_file, "AUTH_JWT_FILE", method)
            return JwtAuth(role, file, mount=settings.auth_mount or "jwt")
        case _:
            assert_never(method)


def _first_that_is_set(settings: Settings, *, person: bool) -> Method:
    if settings.auth_role_id is not None:
        return "approle"
    if settings.auth_token is not None:
        return "token"
    if settings.auth_token_file is not None:
        return "token-file"
    file = home_token()
    if person and file is not None:
        return "token-file"
    unused = f"; {file} is not used, unless {PREFIX}AUTH_METHOD=token-file says so" if file else ""
    raise UsageError(
        "it is not known how to log in to Vault",
        hint=f"set {PREFIX}AUTH_ROLE_ID with {PREFIX}AUTH_SECRET_ID_FILE, or VAULT_TOKEN, "
        f"or {PREFIX}AUTH_METHOD=kubernetes or jwt{unused}",
    )


def _secret_id(settings: Settings) -> Secret:
    if settings.auth_secret_id is not None:
        return _secret(settings.auth_secret_id)
    file = _needed(settings.auth_secret_id_file, "AUTH_SECRET_ID_FILE", "approle")
    try:
        return Secret(file.read_text(encoding="utf-8").strip())
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise UsageError(f"{PREFIX}AUTH_SECRET_ID_FILE: {file} cannot be read: {reason}") from None


def _secret(value: SecretStr) -> Secret:
    return Secret(value.get_secret_value())


def _needed(value: T | None, name: str, method: str) -> T:
    if value is None:
        raise UsageError(f"{PREFIX}{name} is not set, and logging in by `{method}` needs it")
    return value

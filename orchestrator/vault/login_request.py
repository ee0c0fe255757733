"""What a login says to Vault, for each way of logging in."""

from __future__ import annotations

from pathlib import Path

from orchestrator.errors import UsageError
from orchestrator.secret import Secret
from orchestrator.vault.config import (
    AppRoleAuth,
    Auth,
    JwtAuth,
    KubernetesAuth,
    TokenAuth,
    TokenFileAuth,
    VaultConfig,
)


def login_request(auth: Auth) -> tuple[str, dict[str, str]]:
    """The path and the payload of a login (Vault manual, "Auth Methods"); a token in a file is read anew each time.

    Raises UsageError where the file cannot be read.
    """
    match auth:
        case AppRoleAuth():
            return f"auth/{auth.mount}/login", {"role_id": auth.role_id, "secret_id": auth.secret_id.reveal()}
        case KubernetesAuth() | JwtAuth():
            jwt = read_secret(auth.jwt_file, "workload identity token")
            return f"auth/{auth.mount}/login", {"role": auth.role, "jwt": jwt.reveal()}
        case _:
            raise AssertionError(f"{type(auth).__name__} has no login request")


def standing_secrets(config: VaultConfig) -> tuple[Secret, ...]:
    """What this process logs in with, as far as it can be read now."""
    match config.auth:
        case AppRoleAuth():
            return (config.auth.secret_id,)
        case TokenAuth():
            return (config.auth.token,)
        case TokenFileAuth():
            path = config.auth.path
        case KubernetesAuth() | JwtAuth():
            path = config.auth.jwt_file
    try:
        return (read_secret(path, "login"),)
    except UsageError:
        return ()


def read_secret(path: Path, what: str) -> Secret:
    """A secret in a file that somebody else keeps fresh. Raises UsageError, naming the file."""
    try:
        text = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise UsageError(f"the {what} {path} cannot be read: {error.strerror}") from error
    if not text:
        raise UsageError(f"the {what} {path} is empty")
    return Secret(text)

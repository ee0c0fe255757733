"""The login to the pages, from the settings."""

from __future__ import annotations

from urllib.parse import urlsplit

from orchestrator.errors import UsageError
from orchestrator.network.loopback import is_loopback
from orchestrator.network.origins import is_confidential
from orchestrator.network.origins import origin as origin_of
from orchestrator.secret import Secret
from orchestrator.server.pages.login.declared import Login, Provider
from orchestrator.server.pages.login.roles import Roles
from orchestrator.settings import Settings


def login(settings: Settings, listen: str) -> Login:
    """Who may log in, and how. Raises UsageError where that is not said, or others could listen."""
    roles = Roles(tuple(settings.ui_readers), tuple(settings.ui_approvers), tuple(settings.ui_operators))
    if not roles.is_any:
        raise UsageError(
            "nobody may log in to the pages",
            hint="ORCHESTRATOR_UI_READERS='[\"vault-policy:NAME\"]' says who; or --ui-without-login",
        )
    if settings.ui_url is None and not is_loopback(listen.rpartition(":")[0]):
        raise UsageError(
            "browsers reach the pages from elsewhere, and it is not said how",
            hint="ORCHESTRATOR_UI_URL=https://HOST is the address of what puts TLS before them",
        )
    return Login(_origin(settings.ui_url) if settings.ui_url else "", roles, _provider(settings))


def _origin(url: str) -> str:
    """As browsers say it. Raises UsageError for what is none, and where a token could be read on the way."""
    try:
        origin, confidential = origin_of(url), is_confidential(url)
    except ValueError as error:
        raise UsageError(f"ORCHESTRATOR_UI_URL cannot be used: {error}") from None
    if not confidential:
        raise UsageError(
            "ORCHESTRATOR_UI_URL is of another machine, and begins with http://",
            hint="people send tokens there: put TLS before the listener, and say https://",
        )
    if urlsplit(url)[2:] != ("", "", ""):
        raise UsageError("ORCHESTRATOR_UI_URL has a path", hint=f"the pages are at {origin}/ui/")
    return origin


def _provider(settings: Settings) -> Provider | None:
    if settings.ui_oidc_issuer is None:
        return None
    if settings.ui_oidc_client_id is None:
        raise UsageError("the OpenID provider needs to know who we are", hint="set ORCHESTRATOR_UI_OIDC_CLIENT_ID")
    secret = None
    if (file := settings.ui_oidc_client_secret_file) is not None:
        try:
            secret = Secret(file.read_text(encoding="utf-8").strip())
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{file} cannot be read: {type(error).__name__}") from None
    return Provider(
        settings.ui_oidc_issuer,
        settings.ui_oidc_client_id,
        secret,
        tuple(settings.ui_oidc_scopes),
        tuple(settings.ui_oidc_claims),
    )

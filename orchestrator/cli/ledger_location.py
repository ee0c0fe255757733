"""The one setting that can be told without reading all of them: where the ledger is."""

from __future__ import annotations

import os

from orchestrator.environment import PREFIX, config_file, default_ledger, has_password, is_http

_OF_VAULT = ("VAULT_ADDR", "VAULT_NAMESPACE", "VAULT_CACERT", "VAULT_TOKEN")
_ANY_TEXT = {
    *(f"{PREFIX}{name}" for name in ("LEDGER_URL", "AUTH_ROLE_ID", "AUTH_SECRET_ID", "AUTH_TOKEN", "TOKEN_ROLE")),
    *_OF_VAULT[1:],
}
"""Variables of which every text is a valid setting."""


def ledger_location() -> str:
    """The URL of the ledger that the settings name.

    The other settings are read, and checked, where there is a file or a variable that could be wrong. Raises
    UsageError as `orchestrator.settings.load_settings` does.
    """
    given = {name: value for name, value in os.environ.items() if name.upper().startswith((PREFIX, *_OF_VAULT))}
    if config_file() is None and all(value and _cannot_be_wrong(name, value) for name, value in given.items()):
        return given.get(f"{PREFIX}LEDGER_URL") or default_ledger()
    from orchestrator.settings import load_settings

    return load_settings().ledger_location()


def _cannot_be_wrong(name: str, value: str) -> bool:
    if name in ("VAULT_ADDR", f"{PREFIX}VAULT_ADDR"):
        return is_http(value) and not has_password(value)
    return name in _ANY_TEXT

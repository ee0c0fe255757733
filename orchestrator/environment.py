"""Where settings come from, and the two that can be told without reading all of them: where ledger and policies are.

Kept apart from `orchestrator.settings`, whose checks take longer to import than a list takes to print.
"""

from __future__ import annotations

import os
import re
import signal
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

from orchestrator.errors import UsageError

PREFIX = "ORCHESTRATOR_"

_OF_VAULT = ("VAULT_ADDR", "VAULT_NAMESPACE", "VAULT_CACERT", "VAULT_TOKEN")
_ANY_TEXT = {
    *(f"{PREFIX}{name}" for name in ("LEDGER_URL", "AUTH_ROLE_ID", "AUTH_SECRET_ID", "AUTH_TOKEN")),
    *_OF_VAULT[1:],
}
"""Variables of which every text is a valid setting."""

_PASSWORD = re.compile(r"(?i)(?:^|[\s?&;])(?:password|passwd|pwd)\s*=")


NOT_READ = "orchestrator.toml"
"""A file of this name in the working directory looks like settings. It is not read: whoever can write to a folder
must not choose the Vault, the policies or the addresses of those who work in it."""


NAMES = frozenset(
    PREFIX + name
    for name in [
        "AUTH_JWT_FILE",
        "AUTH_METHOD",
        "AUTH_MOUNT",
        "AUTH_ROLE",
        "AUTH_ROLE_ID",
        "AUTH_SECRET_ID",
        "AUTH_SECRET_ID_FILE",
        "AUTH_TOKEN",
        "AUTH_TOKEN_FILE",
        "CONFIG",
        "CONFINEMENT",
        "DEAD_AFTER",
        "DEBUG",
        "GRACE",
        "ISSUERS",
        "KEEP_INPUTS",
        "KEEP_OUTPUTS",
        "LEDGER_URL",
        "LOG_LEVEL",
        "MAX_OUTPUT_BYTES",
        "MAX_PARALLEL",
        "MAX_TAKEOVERS",
        "POLICY",
        "POLICY_ON_ERROR",
        "POLICY_PATH",
        "QUEUE",
        "SETTLE",
        "SLACK_API",
        "SLACK_CHANNEL",
        "SLACK_TOKEN_FILE",
        "SWEEP_INTERVAL",
        "TOKEN_ISSUER",
        "TRY_DEAD_LOGINS",
        "UI_APPROVERS",
        "UI_OIDC_CLAIMS",
        "UI_OIDC_CLIENT_ID",
        "UI_OIDC_CLIENT_SECRET_FILE",
        "UI_OIDC_ISSUER",
        "UI_OIDC_SCOPES",
        "UI_OPERATORS",
        "UI_READERS",
        "UI_URL",
        "VAULT_ADDR",
        "VAULT_CACERT",
        "VAULT_NAMESPACE",
        "VAULT_PLAIN_HTTP",
    ]
)
"""The variables that are read."""

TABLES = frozenset(
    PREFIX + name
    for name in [
        "CATALOG_DATABASES",
        "CONFIRM",
        "CONNECTION_LEASES",
        "ENDPOINTS",
        "HISTORY_PUBLISH",
        "NOTIFY",
        "POLICY_OPTIONS",
        "PRIMARIES",
        "PROVISION_DATABASES",
    ]
)
"""Those that hold parts with names of their own: `ORCHESTRATOR_ENDPOINTS__SUPPORT`, or all of them as a JSON object."""

REMOVED = {
    f"{PREFIX}ENGINE": "unset it: every process walks its own runs, and a queue spreads runs over workers",
    f"{PREFIX}CONNECTION_RUNS": "unset it: ORCHESTRATOR_CONNECTION_LEASES limits the leases of a connection",
}
"""Variables that earlier versions read, and what to do now."""

_OF_TESTS = f"{PREFIX}TEST_"
"""What the tests of this project are told."""

_EXPORTED = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
"""The name of a variable in a shell (POSIX, 3.216)."""


def unknown_variables(names: Iterable[str]) -> Iterator[tuple[str, str | None]]:
    """Those that begin as ours do and are no setting, each with the setting that is meant by it, if one is near."""
    from difflib import get_close_matches

    for name in names:
        told = name.upper()
        table, parts, part = told.partition("__")
        if not told.startswith(PREFIX) or told.startswith(_OF_TESTS) or told in NAMES | TABLES:
            continue
        if table in TABLES and part:
            continue
        near = get_close_matches(table if parts else told, sorted(NAMES | TABLES), n=1, cutoff=0.8)
        yield name, f"{near[0]}{parts}{part}" if near and told not in REMOVED else None


def unset_by_shells(name: str) -> bool:
    """Whether it is of ours, and a shell can neither export nor assign it."""
    return name.upper().startswith(PREFIX) and _EXPORTED.fullmatch(name) is None


def setting_of(table: str, name: str) -> str:
    """Where a part of a table of the settings is: its variable, or its place in the file where no shell exports one.

    A shell cannot export a name with a hyphen, and names of variables know no case.
    """
    if _can_be_a_variable(name):
        return f"{PREFIX}{table.upper()}__{name.upper()}"
    return f"`{name}` under [{table}] in the file that {PREFIX}CONFIG names"


def how_to_set(table: str, name: str, what: str = "") -> str:
    """What to do so that a table of the settings (`endpoints`) has a part; `what` is its value, as in `to a DSN`."""
    to = f" {what}" if what else ""
    why = "" if _can_be_a_variable(name) else ": no shell exports such a variable"
    return f"set {setting_of(table, name)}{to}{why}"


def _can_be_a_variable(name: str) -> bool:
    return re.fullmatch(r"[a-z0-9]+(?:_[a-z0-9]+)*", name) is not None


def config_file() -> Path | None:
    """The settings file, if one was named. Raises UsageError when it does not exist."""
    if named := os.environ.get(f"{PREFIX}CONFIG"):
        if not (path := Path(named)).is_file():
            raise UsageError(f"{PREFIX}CONFIG names {named}, which is not a file")
        return path
    return None


def ledger_location() -> str | None:
    """The URL of the ledger that the settings name, or None where all settings are to be read for it.

    They are, and are checked by it, where there is a file or a variable that could be wrong. Raises UsageError.
    """
    given = {name: value for name, value in os.environ.items() if name.upper().startswith((PREFIX, *_OF_VAULT))}
    if config_file() is None and all(value and _cannot_be_wrong(name, value) for name, value in given.items()):
        return given.get(f"{PREFIX}LEDGER_URL") or default_ledger()
    return None


def _cannot_be_wrong(name: str, value: str) -> bool:
    if name in ("VAULT_ADDR", f"{PREFIX}VAULT_ADDR"):
        return is_http(value) and not has_password(value)
    return name in _ANY_TEXT


def is_http(address: str) -> bool:
    """Whether it begins with `http://` or `https://` and a host."""
    parts = urlsplit(address)
    return parts.scheme in ("http", "https") and bool(parts.netloc)


def has_password(address: str) -> bool:
    """Whether a password is in an address: before the host, among the parameters, or in a key-value DSN."""
    return urlsplit(address).password is not None or _PASSWORD.search(address) is not None


def default_policies() -> Path:
    """The folder of policies where none is named: one of the user's own, wherever the command is called."""
    from platformdirs import user_config_path

    return user_config_path("orchestrator", appauthor=False).absolute() / "policies"


def policy_location() -> Path:
    """The folder of policies that the settings name, where no other setting has to be valid. Raises UsageError."""
    named = next(
        (value for name, value in os.environ.items() if name.upper() == f"{PREFIX}POLICY_PATH" and value), None
    )
    if named is None and (file := config_file()) is not None:
        try:
            named = tomllib.loads(file.read_text(encoding="utf-8")).get("policy_path")
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise UsageError(f"{file}: is not valid TOML: {error}") from error
        if named is not None and not isinstance(named, str):
            raise UsageError(f"{file}: `policy_path` is not a text")
    return default_policies() if named is None else Path(named)


def default_ledger() -> str:
    """The URL of an SQLite file in the user's state folder. The folder is made, readable by its owner only."""
    from platformdirs import user_state_path

    folder = user_state_path("orchestrator", appauthor=False)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"the ledger's folder {folder} cannot be made: {error.strerror}",
            hint=f"say with {PREFIX}LEDGER_URL where the history is to be kept",
        ) from error
    return f"sqlite:///{folder / 'ledger.db'}"


def ending_signals() -> tuple[signal.Signals, ...]:
    """Those that end the work. SIGHUP does not where whoever began the process has it ignored (`nohup`)."""
    hangup = () if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else (signal.SIGHUP,)
    return (signal.SIGINT, signal.SIGTERM, *hangup)

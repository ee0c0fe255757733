"""What the process is told from outside: the environment, and one TOML file.

Variables begin with `ORCHESTRATOR_`; parts of a table are joined by two underscores, as in
`ORCHESTRATOR_ENDPOINTS__SUPPORT`. The file is the one that `ORCHESTRATOR_CONFIG` names, and no other; variables win
over it.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    AliasChoices,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from orchestrator.actions.confinement import Confinement
from orchestrator.environment import (
    PREFIX,
    TABLES,
    config_file,
    default_ledger,
    default_policies,
    has_password,
    is_http,
    setting_of,
)
from orchestrator.errors import UsageError
from orchestrator.grants.fields import parse_duration
from orchestrator.network.origins import is_confidential
from orchestrator.network.postgres import problem_of
from orchestrator.network.slack import SLACK

Method = Literal["approle", "token", "token-file", "kubernetes", "jwt"]
"""Ways of logging in to Vault."""


def _without_password(value: str) -> str:
    if has_password(value):
        raise ValueError(
            "this address contains a password; addresses are shown and recorded, "
            "and the login comes from Vault: declare a grant for it"
        )
    return value


def http_address(value: str) -> str:
    """The address, without a slash at its end. Raises ValueError, which never shows a password."""
    if not is_http(value):
        raise ValueError("an address begins with https:// or http://")
    return _without_password(value).rstrip("/")


def endpoint_address(value: str) -> str:
    """The address as it is. Raises ValueError, which never shows a password."""
    if problem := problem_of(_without_password(value)):
        raise ValueError(problem)
    return value


Address = Annotated[str, AfterValidator(endpoint_address)]
HttpAddress = Annotated[str, AfterValidator(http_address)]


def days(value: object) -> int:
    """Seconds of `30d` or `4w`, or of a duration such as `36h`. Raises ValueError."""
    if isinstance(value, str) and (match := re.fullmatch(r"(\d{1,5})([dw])", value.strip())):
        return parse_duration(int(match[1]) * {"d": 86_400, "w": 604_800}[match[2]])
    try:
        return parse_duration(value)
    except ValueError:
        raise ValueError("it is no time; write it like 90d, 12w or 36h") from None


Retention = Annotated[int, BeforeValidator(days)]


def _or_vaults(name: str, field: str) -> AliasChoices:
    """The variable of ours, else the one that Vault's own command line reads."""
    return AliasChoices(f"{PREFIX}{field.upper()}", name)


def _confidential(value: str) -> str:
    if not is_confidential(http_address(value)):
        raise ValueError("a token is not sent over plain http, except to this machine itself; use https")
    return value.rstrip("/") + "/"


class _FromFile(TomlConfigSettingsSource):
    """The settings file. Relative paths in it begin in its folder."""

    def __init__(self, settings_cls: type[BaseSettings], file: Path) -> None:
        super().__init__(settings_cls, file)
        self._folder = file.absolute().parent

    def __call__(self) -> dict[str, Any]:
        """What it says, by the names of the settings."""
        return {name: self._placed(name, value) for name, value in super().__call__().items()}

    def _placed(self, name: str, value: Any) -> Any:
        field = self.settings_cls.model_fields.get(name.lower().removeprefix(PREFIX.lower()))
        of_path = field is not None and Path in (field.annotation, *get_args(field.annotation))
        return str(self._folder / value) if of_path and isinstance(value, str) else value


class Settings(BaseSettings):
    """Everything that can be set. Made by `load_settings`."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        env_ignore_empty=True,
        extra="forbid",
        frozen=True,
        populate_by_name=True,
        hide_input_in_errors=True,
    )

    vault_addr: HttpAddress | None = Field(default=None, validation_alias=_or_vaults("VAULT_ADDR", "vault_addr"))
    """Where Vault is. On another machine it is `https`, unless `vault_plain_http` says otherwise."""
    vault_namespace: str | None = Field(default=None, validation_alias=_or_vaults("VAULT_NAMESPACE", "vault_namespace"))
    """The namespace of Vault that everything is in, where it has such."""
    vault_cacert: Path | None = Field(default=None, validation_alias=_or_vaults("VAULT_CACERT", "vault_cacert"))
    """A file of certificates in PEM: the authorities that are trusted with Vault's, instead of the system's."""
    vault_plain_http: bool = False
    """Whether Vault may be spoken to without TLS on another machine: who can listen there reads every secret."""
    auth_method: Method | None = None
    """None: the first of approle, token and token file for which something is set."""
    auth_role_id: str | None = None
    """Of an AppRole login: what Vault has at `auth/approle/role/orchestrator-runtime/role-id`."""
    auth_secret_id: SecretStr | None = None
    """Of an AppRole login. A file is better: other processes of the user can read variables."""
    auth_secret_id_file: Path | None = None
    """The file that holds the secret id, read when the process starts."""
    auth_token: SecretStr | None = Field(default=None, validation_alias=_or_vaults("VAULT_TOKEN", "auth_token"))
    """A token of Vault's, instead of a login."""
    auth_token_file: Path | None = None
    """The file that holds a token, such as the sink of a Vault Agent."""
    auth_role: str | None = None
    """The role of a Kubernetes or JWT login."""
    auth_jwt_file: Path | None = None
    """The file that holds the JWT of such a login; for Kubernetes the pod's own, where none is named."""
    auth_mount: str | None = None
    """The mount path of the auth method; by default that method's name."""

    endpoints: dict[str, Address] = Field(default_factory=dict)
    """Addresses of services and databases without any secret, by the name that workflows use."""
    primaries: dict[str, Address] = Field(default_factory=dict)
    """Where the orchestrator's own duties and Vault go instead, by connection, where the endpoint is a standby."""
    token_issuer: HttpAddress | None = None
    """The `iss` of the tokens that are issued; None: grants of the kind `token` are refused."""
    issuers: Path | None = None
    """The file whose `issuers` are those that are not Vault, usually vault/declarations.yaml; None: there are none."""
    ledger_url: SecretStr | None = None
    """None: an SQLite file in the user's state folder."""
    policy: str = "rego"
    """The engine that decides: `rego`, `opa`, `authzen`, `allow-all`, or that of an extension."""
    policy_path: Path = Field(default_factory=default_policies)
    """The folder of the policies; by default `orchestrator/policies` in the user's folder for configuration."""
    policy_options: dict[str, str] = Field(default_factory=dict)
    """What the engine is told that asks a service, such as `url`; see docs/policies.md."""
    notify: dict[str, SecretStr] = Field(default_factory=dict)
    """URLs of webhooks, by the names that policies use for whom they want told; each counts as a secret."""
    history_publish: dict[str, SecretStr] = Field(default_factory=dict)
    """Where checkpoints of the history are published, by a name: addresses that begin with `file:`, `git:`, `syslog:`
    or `https:`; each counts as a secret."""
    keep_inputs: Retention | None = None
    """How long what runs were given is kept after their end, such as `90d`, and then dropped; None: for good."""
    keep_outputs: Retention | None = None
    """The same for what their steps gave."""
    ui_url: HttpAddress | None = None
    """How browsers reach the pages of `serve --ui`, such as `https://orchestrator.example`; None: at its listener."""
    ui_readers: list[str] = Field(default_factory=list)
    """Who may read them, as a policy names those who approve: `vault-policy:NAME`, `vault:NAME`, `oidc-groups:NAME`."""
    ui_approvers: list[str] = Field(default_factory=list)
    """Who may say something there to requests for approval, as far as the policy lets them."""
    ui_operators: list[str] = Field(default_factory=list)
    """Who may cancel runs there."""
    ui_oidc_issuer: HttpAddress | None = None
    """An OpenID provider by which people log in there, beside Vault."""
    ui_oidc_client_id: str | None = None
    """Who we are to it."""
    ui_oidc_client_secret_file: Path | None = None
    """Our secret there, if it gave us one; without it PKCE alone protects the code."""
    ui_oidc_scopes: list[str] = Field(default_factory=lambda: ["openid", "profile"])
    """What is asked of it."""
    ui_oidc_claims: list[str] = Field(default_factory=lambda: ["groups"])
    """The claims of its ID tokens that say who somebody is: `groups` makes `oidc-groups:NAME`."""
    slack_channel: str | None = None
    """Where requests for approval are posted, with buttons; None: nowhere."""
    slack_token_file: Path | None = None
    """A bot token for that (`chat:write`), read anew each time."""
    slack_api: Annotated[str, AfterValidator(_confidential)] = SLACK
    """The address of Slack's Web API."""
    policy_on_error: Literal["keep", "deny"] = "keep"
    """What decides while changed policies are not valid: those of before, or nobody, so that everything is denied."""
    grace: Annotated[float, Field(gt=0)] = 30.0
    """Seconds that revocation may take when a step ends."""
    settle: Annotated[float, Field(gt=0)] = 95.0
    """Seconds after which a request to Vault whose answer was lost is certainly over."""
    confirm: dict[str, Literal["database", "vault"]] = Field(default_factory=dict)
    """Whose word it takes that a login is gone, by connection: the database's, or `vault` where it cannot be asked."""
    try_dead_logins: bool = True
    """Whether a login that Vault says is revoked is tried once: off for servers that lock out or alarm on refusals."""
    dead_after: Annotated[float, Field(ge=2)] = 15.0
    """Seconds without a sign of life after which a process is taken for dead that nobody can see to be gone."""
    max_takeovers: Annotated[int, Field(ge=0)] = 3
    """How often a run whose process died is gone on with, and a queued one tried again that could not be begun."""
    sweep_interval: Annotated[float, Field(ge=1)] = 900.0
    """Seconds between two sweeps of expired logins by `serve` and `worker`."""
    max_output_bytes: Annotated[int, Field(gt=0)] = 1 << 20
    """Bytes of JSON that the kept output of a step may have."""
    max_parallel: Annotated[int, Field(gt=0)] = 8
    """How many steps of a run may be under way at once."""
    queue: bool = False
    """Whether `serve` puts what is scheduled into the shared queue, for workers, instead of running it itself."""
    connection_leases: dict[str, Annotated[int, Field(gt=0)]] = Field(default_factory=dict)
    """How many leases of a connection steps and calls may have open at once, over all processes, by connection."""
    confinement: Confinement = Confinement.BEST
    """Whether programs of `exec` and `python` steps are confined: `required`, `best` or `off`."""
    log_level: Literal["debug", "info", "warning", "error"] = "warning"
    """The least that is logged; `debug` shows where errors come from, too."""
    provision_databases: dict[str, SecretStr] = Field(default_factory=dict)
    """DSNs of the administrators' logins, by connection; only `provision` uses them."""
    catalog_databases: dict[str, SecretStr] = Field(default_factory=dict)
    """DSNs of logins that may only connect, by connection; `grants infer` uses them."""

    @field_validator("primaries", mode="after")
    @classmethod
    def _of_endpoints(cls, primaries: dict[str, str], info: ValidationInfo) -> dict[str, str]:
        endpoints = info.data.get("endpoints", {})
        if unknown := sorted(set(primaries) - set(endpoints)):
            raise ValueError(f"there is no endpoint of the name {', '.join(unknown)}")
        return primaries

    @field_validator("notify", mode="after")
    @classmethod
    def _webhooks(cls, notify: dict[str, SecretStr]) -> dict[str, SecretStr]:
        for name, url in notify.items():
            if not is_confidential(url.get_secret_value()):
                raise ValueError(f"`{name}` is not the https URL of a webhook (http only on this machine itself)")
        return notify

    @property
    def database_addresses(self) -> dict[str, str]:
        """The endpoints, and instead of standbys their primaries: where logins are made."""
        return {**self.endpoints, **self.primaries}

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment, then the TOML file. No `.env` is read: what a folder contains must not choose a Vault."""
        file = config_file()
        from_file = (_FromFile(settings_cls, file),) if file else ()
        return (init_settings, env_settings, *from_file)

    def ledger_location(self) -> str:
        """The ledger's URL. The folder of the default one is made, readable by its owner only."""
        if self.ledger_url is not None:
            return self.ledger_url.get_secret_value()
        return default_ledger()


def load_settings() -> Settings:
    """The settings of this process. Raises UsageError, which names the variable and never shows its value."""
    try:
        return Settings()
    except ValidationError as error:
        lines = [f"{_variable(problem['loc'])}: {_said(problem['msg'])}" for problem in error.errors(include_url=False)]
        raise UsageError("\n".join(lines), hint=_where_from()) from None  # the cause may show the value
    except SettingsError as error:
        field = re.search(r'field "(\w+)"', str(error))
        name = f"{PREFIX}{field[1].upper()}" if field else "the environment"
        example = f"{name}__NAME=value"
        raise UsageError(f"{name}: is not a JSON object", hint=f"set its parts one by one: {example}") from None
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{config_file()}: is not valid TOML: {error}") from error


def _variable(location: tuple[int | str, ...]) -> str:
    """The variable that a setting is read from: `('endpoints', 'support')` is ORCHESTRATOR_ENDPOINTS__SUPPORT."""
    table = str(location[0]).upper().removeprefix(PREFIX)
    if len(location) == 2 and PREFIX + table in TABLES:
        return setting_of(table.lower(), str(location[1]))
    first, *rest = (str(part).upper() for part in location)
    if first not in {"VAULT_ADDR", "VAULT_NAMESPACE", "VAULT_CACERT", "VAULT_TOKEN"}:
        first = PREFIX + first.removeprefix(PREFIX)
    return "__".join([first, *rest])


def _said(message: str) -> str:
    known = {"Extra inputs are not permitted": "there is no such setting"}
    return known.get(message, message.removeprefix("Value error, "))


def _where_from() -> str | None:
    file = config_file()
    return f"variables are read first, then {file}" if file else None

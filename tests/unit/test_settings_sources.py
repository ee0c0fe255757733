"""What the process is told from outside, and how it is told that something is wrong."""

import re
import stat
from pathlib import Path

import pytest

import orchestrator
from orchestrator.configured.vault_login import admin_config, vault_config
from orchestrator.environment import NAMES, PREFIX, REMOVED, TABLES, how_to_set, unknown_variables
from orchestrator.errors import Unreachable, UsageError
from orchestrator.network.webhooks import Webhooks
from orchestrator.provision.database.administrator import setting as administrator_of
from orchestrator.settings import Settings, load_settings
from orchestrator.vault.config import AppRoleAuth, JwtAuth, KubernetesAuth, TokenAuth, TokenFileAuth

PASSWORD = "canary-5f2c"


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An environment with nothing of ours in it, an empty home and an empty working directory."""
    import os

    for name in os.environ:
        if name.startswith(("ORCHESTRATOR_", "VAULT_")):
            monkeypatch.delenv(name)
    (tmp_path / "home").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.chdir(tmp_path / "work")


def load(monkeypatch: pytest.MonkeyPatch, **variables: str) -> Settings:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return load_settings()


def test_nothing_need_be_set_to_plan() -> None:
    settings = load_settings()
    assert settings.policy == "rego"
    assert settings.grace == 30
    assert settings.max_output_bytes == 1024 * 1024


def test_a_primary_takes_the_place_of_its_endpoint_where_logins_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(
        monkeypatch,
        ORCHESTRATOR_ENDPOINTS__SUPPORT="postgresql://replica:5432/support",
        ORCHESTRATOR_ENDPOINTS__OTHER="postgresql://other:5432/other",
        ORCHESTRATOR_PRIMARIES__SUPPORT="postgresql://primary:5432/support",
    )
    assert settings.endpoints["support"] == "postgresql://replica:5432/support"
    assert settings.database_addresses == {
        "support": "postgresql://primary:5432/support",
        "other": "postgresql://other:5432/other",
    }


@pytest.mark.parametrize(
    ("name", "address", "said"),
    [
        ("SUPORT", "postgresql://primary/support", "PRIMARIES: there is no endpoint of the name suport"),
        ("SUPPORT", f"postgresql://u:{PASSWORD}@primary/support", "contains a password"),
    ],
)
def test_a_primary_without_an_endpoint_or_with_a_password_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, address: str, said: str
) -> None:
    monkeypatch.setenv("ORCHESTRATOR_ENDPOINTS__SUPPORT", "postgresql://replica:5432/support")
    with pytest.raises(UsageError, match=said) as caught:
        load(monkeypatch, **{f"ORCHESTRATOR_PRIMARIES__{name}": address})
    assert PASSWORD not in str(caught.value)


def test_vaults_own_variables_are_understood(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    ca.touch()
    settings = load(
        monkeypatch,
        VAULT_ADDR="https://vault.example:8200/",
        VAULT_NAMESPACE="team",
        VAULT_CACERT=str(ca),
        VAULT_TOKEN=PASSWORD,
    )
    config = vault_config(settings)
    assert config.address == "https://vault.example:8200"
    assert config.namespace == "team"
    assert config.ca_cert == ca
    assert isinstance(config.auth, TokenAuth)
    assert config.auth.token.reveal() == PASSWORD


def test_our_own_variables_win_over_vaults(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(monkeypatch, VAULT_ADDR="http://theirs", ORCHESTRATOR_VAULT_ADDR="http://ours")
    assert settings.vault_addr == "http://ours"


def test_the_file_that_is_named_is_read_and_variables_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHESTRATOR_CONFIG", "mine.toml")
    Path("mine.toml").write_text(
        'vault_addr = "http://from-file"\ngrace = 5\n[endpoints]\nsupport = "postgresql://db/a"\nother = "http://o"\n'
    )
    settings = load(monkeypatch, ORCHESTRATOR_GRACE="7", ORCHESTRATOR_ENDPOINTS__SUPPORT="postgresql://db/b")
    assert settings.vault_addr == "http://from-file"
    assert settings.grace == 7
    assert settings.endpoints == {"support": "postgresql://db/b", "other": "http://o"}


def test_a_file_elsewhere_can_be_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "my.toml").write_text("max_parallel = 3\n")
    Path("orchestrator.toml").write_text("max_parallel = 4\n")
    assert load(monkeypatch, ORCHESTRATOR_CONFIG=str(tmp_path / "my.toml")).max_parallel == 3


def test_a_named_file_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="ORCHESTRATOR_CONFIG names nowhere"):
        load(monkeypatch, ORCHESTRATOR_CONFIG="nowhere.toml")


@pytest.mark.parametrize(
    "planted",
    [
        'policy = "allow-all"\n',
        'policy_path = "evil"\n',
        'vault_addr = "http://127.0.0.1:1"\n[auth]\n',
        'grace = 1\n[endpoints]\nsupport = "postgresql://evil/x"\n',
        "this is no TOML\n",
    ],
)
def test_no_file_of_the_working_directory_is_read_however_it_is_reached(
    planted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = load_settings()
    for name in ("orchestrator.toml", ".orchestrator.toml", "settings.toml"):
        Path(name).write_text(planted)
    assert load_settings() == before
    monkeypatch.setenv("ORCHESTRATOR_CONFIG", "")
    assert load_settings() == before


def test_policies_are_looked_for_in_the_users_own_folder_wherever_the_command_is_called(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    Path("workflows/policies").mkdir(parents=True)
    here = load_settings().policy_path
    monkeypatch.chdir(tmp_path)
    assert here == load_settings().policy_path == Path.home() / ".config" / "orchestrator" / "policies"


@pytest.mark.parametrize(
    "address",
    [
        "http://vault.prod.example:8200",
        "http://10.0.0.1",
        "http://127.0.0.1.evil.test",
        "http://[fe80::1]:8200",
        "http://localhost.evil.test",
        "http://0.0.0.0:8200",
    ],
)
def test_plain_http_to_another_machine_is_refused_unless_it_is_asked_for_by_name(
    monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    settings = load(monkeypatch, VAULT_ADDR=address, VAULT_TOKEN=PASSWORD)
    with pytest.raises(UsageError, match="without TLS") as caught:
        vault_config(settings)
    assert "ORCHESTRATOR_VAULT_PLAIN_HTTP" in (caught.value.hint or "")
    assert PASSWORD not in str(caught.value)
    assert vault_config(load(monkeypatch, ORCHESTRATOR_VAULT_PLAIN_HTTP="true")).address == address


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:8200", "http://127.8.9.1", "http://[::1]:8200", "http://LOCALHOST:8200"]
)
def test_plain_http_to_this_machine_is_on_no_network(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    assert vault_config(load(monkeypatch, VAULT_ADDR=address, VAULT_TOKEN=PASSWORD)).address == address


def test_no_env_file_is_read() -> None:
    Path(".env").write_text("VAULT_ADDR=http://planted\nORCHESTRATOR_VAULT_ADDR=http://planted\n")
    assert load_settings().vault_addr is None


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"ORCHESTRATOR_GRACE": "soon"}, "ORCHESTRATOR_GRACE: "),
        ({"ORCHESTRATOR_MAX_PARALLEL": "0"}, "ORCHESTRATOR_MAX_PARALLEL: "),
        ({"ORCHESTRATOR_LOG_LEVEL": "loud"}, "ORCHESTRATOR_LOG_LEVEL: "),
        ({"ORCHESTRATOR_AUTH_METHOD": "magic"}, "ORCHESTRATOR_AUTH_METHOD: "),
        ({"ORCHESTRATOR_ENDPOINTS": "{"}, "ORCHESTRATOR_ENDPOINTS: "),
        ({"VAULT_ADDR": "vault.example"}, "VAULT_ADDR: an address begins with https://"),
    ],
)
def test_a_wrong_value_is_told_by_the_name_of_its_variable(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], told: str
) -> None:
    with pytest.raises(UsageError) as caught:
        load(monkeypatch, **variables)
    assert told in caught.value.message


def test_a_setting_that_does_not_exist_is_found_in_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHESTRATOR_CONFIG", "mine.toml")
    Path("mine.toml").write_text("max_paralel = 3\n")
    with pytest.raises(UsageError, match="ORCHESTRATOR_MAX_PARALEL: there is no such setting"):
        load_settings()


def test_a_file_that_is_not_toml_is_told_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHESTRATOR_CONFIG", "mine.toml")
    Path("mine.toml").write_text("grace 3\n")
    with pytest.raises(UsageError, match=r"mine\.toml: is not valid TOML"):
        load_settings()


@pytest.mark.parametrize(
    "address",
    [
        f"postgresql://user:{PASSWORD}@db/support",
        f"https://user:{PASSWORD}@api.example",
        f"postgresql://db/support?user=u&password={PASSWORD}",
        f"host=db user=u password={PASSWORD}",
        f"host=db user=u password = '{PASSWORD}'",
    ],
)
def test_an_address_with_a_password_in_it_is_refused_without_showing_it(
    monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    with pytest.raises(UsageError, match="ORCHESTRATOR_ENDPOINTS__SUPPORT: this address contains a password") as caught:
        load(monkeypatch, ORCHESTRATOR_ENDPOINTS__SUPPORT=address)
    assert PASSWORD not in str(caught.value)


@pytest.mark.parametrize("setting", ["ENDPOINTS", "PRIMARIES"])
@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("host=db dbname=support", "is a URL: postgresql://host:port/database"),
        ("  dbname = support", "is a URL: postgresql://host:port/database"),
        ("postgresql://app@db/support", "contains a user"),
        ("postgres://app@a:1,b:2/support", "contains a user"),
        ("postgresql://@db/support", "contains a user"),
        ("postgresql:///support?host=/run/postgresql&user=app", "contains a user"),
        ("postgresql://db/support?user=", "contains a user"),
        ("postgresql://db/support?options=-c%20search_path", "`-c` without name=value"),
        ("postgresql://db/support?options=-c", "`-c` without name=value"),
        ("postgresql://[::1/support", "Invalid IPv6 URL"),
    ],
)
def test_an_address_that_is_not_one_of_a_database_alone_is_refused(
    monkeypatch: pytest.MonkeyPatch, setting: str, address: str, why: str
) -> None:
    monkeypatch.setenv("ORCHESTRATOR_ENDPOINTS__SUPPORT", "postgresql://db/support")
    with pytest.raises(UsageError) as caught:
        load(monkeypatch, **{f"ORCHESTRATOR_{setting}__SUPPORT": address})
    assert caught.value.message.startswith(f"ORCHESTRATOR_{setting}__SUPPORT: ")
    assert why in caught.value.message


@pytest.mark.parametrize(
    "address",
    [
        "postgresql://db/support",
        "postgresql:///support?host=/run/postgresql",
        "postgresql://a:1,b:2/support?target_session_attrs=read-write",
        "postgresql://db/support?options=-c%20search_path%3Da%2C%5C%20b%20-cTimeZone%3DUTC",
        "postgresql://db/support?options=project%3Dname&sslmode=verify-full",
        "https://app@api.example/path?user=x",
        "redis.example:6379",
        "/run/service.sock",
    ],
)
def test_an_address_without_a_login_is_one(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    assert load(monkeypatch, ORCHESTRATOR_ENDPOINTS__SUPPORT=address).endpoints == {"support": address}


def test_secrets_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(
        monkeypatch,
        ORCHESTRATOR_AUTH_TOKEN=PASSWORD,
        ORCHESTRATOR_AUTH_SECRET_ID=PASSWORD,
        ORCHESTRATOR_LEDGER_URL=f"postgresql://u:{PASSWORD}@db/ledger",
        ORCHESTRATOR_PROVISION_DATABASES__SUPPORT=f"postgresql://u:{PASSWORD}@db/support",
    )
    assert PASSWORD not in repr(settings)
    assert PASSWORD not in settings.model_dump_json()
    assert settings.provision_databases["support"].get_secret_value().startswith("postgresql://u:")


def test_logging_in_by_role_comes_before_a_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    secret_id = tmp_path / "secret-id"
    secret_id.write_text(f"{PASSWORD}\n")
    settings = load(
        monkeypatch,
        VAULT_ADDR="https://v",
        VAULT_TOKEN="t",
        ORCHESTRATOR_AUTH_ROLE_ID="role",
        ORCHESTRATOR_AUTH_SECRET_ID_FILE=str(secret_id),
    )
    auth = vault_config(settings).auth
    assert isinstance(auth, AppRoleAuth)
    assert (auth.role_id, auth.secret_id.reveal(), auth.mount) == ("role", PASSWORD, "approle")


def test_the_token_of_a_person_is_taken_for_what_a_person_does_and_else_only_where_that_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = load(monkeypatch, VAULT_ADDR="https://v")
    with pytest.raises(UsageError, match="not known how to log in") as caught:
        vault_config(settings)
    assert "ORCHESTRATOR_AUTH_ROLE_ID" in (caught.value.hint or "")
    (Path.home() / ".vault-token").write_text(PASSWORD)
    with pytest.raises(UsageError, match="not known how to log in") as caught:
        vault_config(settings)
    assert ".vault-token is not used, unless ORCHESTRATOR_AUTH_METHOD=token-file says so" in (caught.value.hint or "")
    theirs = TokenFileAuth(Path.home() / ".vault-token")
    assert admin_config(settings).auth == theirs
    assert vault_config(load(monkeypatch, ORCHESTRATOR_AUTH_METHOD="token-file")).auth == theirs


def test_a_token_file_that_is_named_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(monkeypatch, VAULT_ADDR="https://v", ORCHESTRATOR_AUTH_TOKEN_FILE="/run/agent/token")
    assert vault_config(settings).auth == TokenFileAuth(Path("/run/agent/token"))


def test_workload_identities_need_a_role(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings = load(monkeypatch, VAULT_ADDR="https://v", ORCHESTRATOR_AUTH_METHOD="kubernetes")
    with pytest.raises(UsageError, match="ORCHESTRATOR_AUTH_ROLE is not set"):
        vault_config(settings)
    assert vault_config(load(monkeypatch, ORCHESTRATOR_AUTH_ROLE="runner")).auth == KubernetesAuth("runner")
    settings = load(monkeypatch, ORCHESTRATOR_AUTH_METHOD="jwt", ORCHESTRATOR_AUTH_MOUNT="ci")
    with pytest.raises(UsageError, match="ORCHESTRATOR_AUTH_JWT_FILE is not set"):
        vault_config(settings)
    settings = load(monkeypatch, ORCHESTRATOR_AUTH_JWT_FILE=str(tmp_path / "id"))
    assert vault_config(settings).auth == JwtAuth("runner", tmp_path / "id", mount="ci")


def test_not_knowing_where_vault_is_says_which_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="VAULT_ADDR is not set"):
        vault_config(load(monkeypatch, VAULT_TOKEN="t"))


def test_a_secret_id_file_that_cannot_be_read_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(
        monkeypatch, VAULT_ADDR="https://v", ORCHESTRATOR_AUTH_ROLE_ID="r", ORCHESTRATOR_AUTH_SECRET_ID_FILE="nowhere"
    )
    with pytest.raises(UsageError, match="ORCHESTRATOR_AUTH_SECRET_ID_FILE: nowhere cannot be read"):
        vault_config(settings)


def test_the_default_ledger_is_in_a_folder_that_only_its_owner_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    location = load_settings().ledger_location()
    assert location.startswith(f"sqlite:///{Path.home()}")
    folder = Path(location.removeprefix("sqlite:///")).parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    settings = load(monkeypatch, ORCHESTRATOR_LEDGER_URL="sqlite:////elsewhere/l.db")
    assert settings.ledger_location() == "sqlite:////elsewhere/l.db"


def test_every_setting_is_known_as_a_variable_and_no_other() -> None:
    fields = Settings.model_fields
    tables = {name for name, field in fields.items() if str(field.annotation).startswith("dict[")}
    assert {f"{PREFIX}{name.upper()}" for name in tables} == TABLES
    read_elsewhere = {f"{PREFIX}CONFIG", f"{PREFIX}DEBUG"}
    assert {f"{PREFIX}{name.upper()}" for name in set(fields) - tables} | read_elsewhere == NAMES


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("ORCHESTRATOR_PLICY", "ORCHESTRATOR_POLICY"),
        ("ORCHESTRATOR_ENDPOINT__SUPPORT", "ORCHESTRATOR_ENDPOINTS__SUPPORT"),
        ("ORCHESTRATOR_LEDGER", None),
        ("ORCHESTRATOR_ENDPOINTS__", None),
        ("orchestrator_whatever", None),
    ],
)
def test_what_nobody_reads_is_found_with_what_may_be_meant(name: str, near: str | None) -> None:
    ((found, meant),) = unknown_variables([name])
    assert found == name
    assert near is None or meant == near


@pytest.mark.parametrize("name", ["ORCHESTRATOR_ENGINE", "orchestrator_engine"])
def test_for_what_was_removed_no_other_setting_is_proposed(name: str) -> None:
    assert list(unknown_variables([name])) == [(name, None)]
    assert not REMOVED.keys() & (NAMES | TABLES)


def test_what_is_read_is_not_unknown_in_either_case() -> None:
    known = [
        "ORCHESTRATOR_GRACE",
        "orchestrator_grace",
        "ORCHESTRATOR_ENDPOINTS__A-B",
        "ORCHESTRATOR_ENDPOINTS",
        "PATH",
    ]
    assert list(unknown_variables(known)) == []


@pytest.mark.parametrize("name", ["support", "legacy_db", "a1"])
def test_a_part_that_a_shell_can_export_is_told_as_a_variable(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert how_to_set("endpoints", name) == f"set ORCHESTRATOR_ENDPOINTS__{name.upper()}"
    loaded = load(monkeypatch, **{f"ORCHESTRATOR_ENDPOINTS__{name.upper()}": "https://x.example"})
    assert dict(loaded.endpoints) == {name: "https://x.example"}


@pytest.mark.parametrize("name", ["legacy-db", "Legacy", "a__b", "a.b", "_a"])
def test_a_part_that_no_variable_can_name_is_told_as_a_line_of_the_file(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    in_the_file = f"`{name}` under [endpoints] in the file that ORCHESTRATOR_CONFIG names"
    assert how_to_set("endpoints", name, "to it") == f"set {in_the_file} to it: no shell exports such a variable"
    (tmp_path / "settings.toml").write_text(f'[endpoints]\n"{name}" = "https://x.example"\n')
    loaded = load(monkeypatch, ORCHESTRATOR_CONFIG=str(tmp_path / "settings.toml"))
    assert dict(loaded.endpoints) == {name: "https://x.example"}


FITTING = {
    "auth_method": '"jwt"',
    "log_level": '"debug"',
    "grace": "5",
    "settle": "5",
    "confirm": '"vault"',
    "queue": "true",
    "vault_plain_http": "true",
    "try_dead_logins": "false",
    "connection_leases": "2",
    "sweep_interval": "5",
    "keep_inputs": '"90d"',
    "keep_outputs": '"4w"',
    "policy_on_error": '"deny"',
    "dead_after": "5",
    "confinement": '"required"',
    **dict.fromkeys(("ui_readers", "ui_approvers", "ui_operators", "ui_oidc_scopes", "ui_oidc_claims"), '["one"]'),
    **dict.fromkeys(("max_output_bytes", "max_parallel", "max_takeovers"), "7"),
}
"""A value other than the default, where not any text is one."""


@pytest.mark.parametrize("name", Settings.model_fields)
def test_the_settings_file_takes_each_setting_by_its_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = FITTING.get(name, '"https://value.test"')
    table = Settings.model_fields[name].annotation
    needed = f"[endpoints]\nmain = {value}\n" if name == "primaries" else ""  # a primary is one of an endpoint
    file = tmp_path / "settings.toml"
    is_table = getattr(table, "__origin__", None) is dict
    file.write_text(f"{needed}[{name}]\nmain = {value}\n" if is_table else f"{name} = {value}\n")
    monkeypatch.setenv("ORCHESTRATOR_CONFIG", str(file))
    assert getattr(load_settings(), name) != Settings.model_fields[name].get_default(call_default_factory=True)


def test_relative_paths_of_the_settings_file_begin_in_its_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "work" / "etc").mkdir()
    (tmp_path / "work" / "etc" / "o.toml").write_text(
        'policy_path = "rules"\nissuers = "/abs/issuers.yaml"\nauth_secret_id_file = "../secret"\n'
        'vault_cacert = "ca.pem"\nledger_url = "sqlite:///relative.db"\n'
    )
    monkeypatch.setenv("ORCHESTRATOR_CONFIG", "etc/o.toml")
    settings, folder = load_settings(), tmp_path / "work" / "etc"
    assert settings.policy_path == folder / "rules"
    assert settings.issuers == Path("/abs/issuers.yaml")
    assert settings.auth_secret_id_file == folder / ".." / "secret"
    assert settings.vault_cacert == folder / "ca.pem"
    assert settings.ledger_location() == "sqlite:///relative.db"
    monkeypatch.setenv("ORCHESTRATOR_POLICY_PATH", "mine")
    assert load_settings().policy_path == Path("mine")


async def test_whoever_is_lacking_a_part_tells_where_it_can_be_set(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    in_the_file = "`on-call` under [{}] in the file that ORCHESTRATOR_CONFIG names"
    with pytest.raises(Unreachable) as lost:
        await Webhooks().deliver("on-call", "text", {})
    assert str(lost.value.hint).startswith(f"set {in_the_file.format('notify')} to the URL of a webhook")
    assert administrator_of("on-call") == in_the_file.format("provision_databases")
    assert administrator_of("support") == "ORCHESTRATOR_PROVISION_DATABASES__SUPPORT"
    (tmp_path / "settings.toml").write_text('[endpoints]\non-call = "postgresql://u:canary@h/d"\n')
    with pytest.raises(UsageError, match="contains a password") as wrong:
        load(monkeypatch, ORCHESTRATOR_CONFIG=str(tmp_path / "settings.toml"))
    assert wrong.value.message.startswith(f"{in_the_file.format('endpoints')}: ")


def test_only_one_place_makes_the_name_of_a_variable_for_a_part() -> None:
    """What upper-cases a name by itself tells variables that no shell exports; `devstack` has names of its own."""
    package = Path(orchestrator.__file__).parent
    made = re.compile(rf"(?:{'|'.join(sorted(table.removeprefix(PREFIX) for table in TABLES))})__\{{")
    files = [file for file in package.rglob("*.py") if "devstack" not in file.parts]
    assert [str(file) for file in files if made.search(file.read_text())] == []

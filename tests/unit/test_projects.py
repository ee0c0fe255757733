"""`orchestrator init FOLDER`: what it writes is valid at once, and it writes all of it or nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from orchestrator.cli.main import main
from orchestrator.configured.vault_login import vault_config
from orchestrator.projects import project
from orchestrator.projects.packaged import repository
from orchestrator.provision.declarations import load_declarations
from orchestrator.settings import load_settings


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


def test_what_is_written_is_valid_tested_and_allowed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    about = ["--connection", "shop_2", "--table", "sales.orders", "--agent", "Clerk.1"]
    where = ["--address", "postgresql://db.example/shop", "--vault", "https://vault.example:8200"]
    assert main(["init", "deep/orders", *about, *where, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {Path(file).relative_to("deep/orders").as_posix() for file in told["files"]} == {
        ".gitignore",
        "README.md",
        "orchestrator.toml",
        "policies/data.json",
        "policies/orchestrator.rego",
        "policies/orchestrator_test.rego",
        "vault/declarations.yaml",
        "vault/policies/orchestrator-runtime.hcl",
        "workflows/first.yaml",
    }
    folder = tmp_path / "deep" / "orders"
    texts = [path.read_text() for path in folder.rglob("*") if path.is_file()]
    assert not [text for text in texts if re.search("%[A-Z_]+%", text)]
    monkeypatch.setenv("ORCHESTRATOR_CONFIG", str(folder / "orchestrator.toml"))
    assert main(["validate", str(folder / "workflows")]) == 0
    assert main(["policy", "check", str(folder / "policies")]) == 0
    assert main(["policy", "test", str(folder / "policies")]) == 0
    capsys.readouterr()
    assert main(["plan", str(folder / "workflows" / "first.yaml"), "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert (planned["allowed"], planned["agent"], planned["lacks"]) == (True, "Clerk.1", [])
    declared, policy = load_declarations(folder / "vault")
    assert list(declared.connections) == ["shop_2"]
    assert policy == (repository() / project.RUNTIME_POLICY).read_text()
    settings = load_settings()
    assert settings.policy_path == folder / "policies"
    assert settings.endpoints == {"shop_2": "postgresql://db.example/shop"}
    monkeypatch.setenv("VAULT_TOKEN", "t")
    assert vault_config(load_settings()).address == "https://vault.example:8200"


def test_the_same_without_any_option(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["init", "new"]) == 0
    assert capsys.readouterr().out.endswith("next: cd new, and what its README.md says\n")
    monkeypatch.setenv("ORCHESTRATOR_CONFIG", "new/orchestrator.toml")
    assert main(["plan", "new/workflows/first.yaml"]) == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--connection", "Shop"], "--connection 'Shop' is not a name such as"),
        (["--connection", 'a"\n[x]'], "is not a name such as"),
        (["--table", "orders"], "is not a table such as `public.orders`"),
        (["--table", 'a.b; DROP TABLE "c"'], "is not a table such as"),
        (["--agent", "a: b"], "is not a name such as `report-writer`"),
        (["--address", "mysql://x"], "is not the URL of a database"),
        (["--address", "postgresql://u:secret@x/y"], "an address holds no credentials"),
        (["--address", 'postgresql://x/y"\nvault_addr = "http://evil'], "is not the URL of a database"),
        (["--vault", "vault.example"], "is not the URL of Vault"),
        (["--force"], "--force is for a file"),
    ],
)
def test_what_cannot_stand_in_the_files_is_refused_and_nothing_written(
    options: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["init", "new", *options]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_what_is_there_is_left_alone(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for name in ("full", "file", "link"):
        assert main(["init", name]) == 2
        assert f"{name} is there already, and is no empty folder" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "full", "link"]
    (tmp_path / "empty").mkdir()
    assert main(["init", "empty"]) == 0


def test_all_is_written_or_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fails(path: Path) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(project, "write_starter", fails)
    assert main(["init", "new"]) == 2
    assert [path.name for path in tmp_path.iterdir() if path.name != "home"] == []


def test_one_workflow_is_a_file_as_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "one.yaml"]) == 0
    assert (tmp_path / "one.yaml").is_file()
    assert main(["validate", "one.yaml"]) == 0
    assert main(["init", "one.yaml"]) == 2
    assert main(["init", "one.yaml", "--force"]) == 0
    assert "next: orchestrator validate one.yaml" in capsys.readouterr().out


def test_relative_paths_of_the_settings_file_begin_in_its_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "o.toml").write_text(
        'policy_path = "rules"\nissuers = "/abs/issuers.yaml"\nauth_secret_id_file = "../secret"\n'
        'vault_cacert = "ca.pem"\nledger_url = "sqlite:///relative.db"\n'
    )
    monkeypatch.setenv("ORCHESTRATOR_CONFIG", "etc/o.toml")
    settings = load_settings()
    assert settings.policy_path == tmp_path / "etc" / "rules"
    assert settings.issuers == Path("/abs/issuers.yaml")
    assert settings.auth_secret_id_file == tmp_path / "etc" / ".." / "secret"
    assert settings.vault_cacert == tmp_path / "etc" / "ca.pem"
    assert settings.ledger_location() == "sqlite:///relative.db"
    monkeypatch.setenv("ORCHESTRATOR_POLICY_PATH", "mine")
    assert load_settings().policy_path == Path("mine")

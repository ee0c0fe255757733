"""`orchestrator init`: one file, or a folder in which everything is right that can be checked without a server."""

from __future__ import annotations

import json
import os
import re
import threading
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.actions.catalog import catalog
from orchestrator.cli.main import main
from orchestrator.errors import UsageError
from orchestrator.grants.models import DatabaseGrant
from orchestrator.grants.privileges import Privilege, quoted
from orchestrator.planning.lint import lint
from orchestrator.policy.authoring.checking import check_folder
from orchestrator.policy.authoring.testing import run_tests
from orchestrator.provision.declarations import load_declarations
from orchestrator.samples.place import runtime_policy
from orchestrator.settings import load_settings
from orchestrator.starter.project import Choices, write_project
from orchestrator.workflow.loader import load

VAULT, DATABASE = "https://vault.example:8200", "postgresql://db.example/app"


def choices(**changed: str) -> Choices:
    usual = {"connection": "shop", "table": "sales.orders", "columns": "id", "agent": "first-agent"}
    usual |= {"database": DATABASE, "vault": VAULT}
    return Choices.parse(**(usual | changed))


def privileges(folder: Path) -> list[Privilege]:
    loaded = load(folder / "workflows" / "first_run.yaml", actions=catalog)
    assert list(lint(loaded)) == []
    grant = loaded.workflow.steps["read"].grants["db"]
    assert isinstance(grant, DatabaseGrant)
    return [declared.privilege() for declared in grant.privileges or ()]


def run(*arguments: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.chdir(folder)
    return int(main(list(arguments)))


def test_a_project_is_valid_and_its_policy_allows_it_before_anything_is_filled_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("init", "shop", folder=tmp_path, monkeypatch=monkeypatch) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[-1] == "next: cd shop && cat README.md"
    assert "settings.toml" in said
    monkeypatch.setenv("ORCHESTRATOR_CONFIG", "settings.toml")  # relative paths in it begin in its folder
    offline = (tmp_path / "shop" / "README.md").read_text().split("```sh\n")[1].split("```")[0]
    commands = re.findall(r"^orchestrator (.*)$", offline, re.MULTILINE)
    assert len(commands) == 4
    for command in commands:
        assert run(*command.split(), folder=tmp_path / "shop", monkeypatch=monkeypatch) == 0, command
    assert "policy allowed" in capsys.readouterr().out


def test_its_workflow_reads_the_columns_that_were_named_and_no_others(tmp_path: Path) -> None:
    write_project(tmp_path / "p", choices(table='"Odd Schema"."user"', columns='order, Größe,the "50%"'))
    assert privileges(tmp_path / "p") == [
        Privilege("select", "Odd Schema", "user", tuple(sorted(("order", "Größe", 'the "50%"'))))
    ]


NAMES = st.sampled_from(["order", "user", "select", "left", "between", "timestamp"]) | st.text(
    st.characters(exclude_categories=["C", "Z"], exclude_characters=","), min_size=1, max_size=15
).filter(lambda name: "${{" not in name and name != "*" and name.isprintable())


@given(NAMES, NAMES, st.lists(NAMES, min_size=1, max_size=4, unique=True))
def test_whatever_a_table_is_called_the_project_is_about_that_table(
    tmp_path_factory: pytest.TempPathFactory, schema: str, table: str, columns: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("named") / "p"
    written = ".".join('"' + name.replace('"', '""') + '"' for name in (schema, table))
    write_project(folder, choices(table=written, columns=",".join(columns)))
    assert privileges(folder) == [Privilege("select", schema, table, tuple(sorted(columns)))]
    policies = check_folder(folder / "policies")
    assert policies.problems == ()
    allowed = json.loads((folder / "policies" / "data.json").read_text())["agents"]["first-agent"]["grants"]
    assert allowed == [f"shop: select {quoted(schema)}.{quoted(table)}"]


def test_its_own_tests_of_the_policy_notice_an_agent_that_may_do_more(tmp_path: Path) -> None:
    write_project(tmp_path / "p", choices())
    data = tmp_path / "p" / "policies" / "data.json"
    held = run_tests(check_folder(data.parent, evaluated=False), seconds=60)
    assert held.holds
    for more in ("shop: delete sales.orders", "shop: select pg_catalog.pg_authid", "another: select sales.orders"):
        document = json.loads(data.read_text())
        document["agents"]["first-agent"]["grants"].append(more)
        data.write_text(json.dumps(document))
        assert not run_tests(check_folder(data.parent, evaluated=False), seconds=60).holds, more
        document["agents"]["first-agent"]["grants"].remove(more)
        data.write_text(json.dumps(document))
    data.write_text('{"agents": {}}')
    assert not run_tests(check_folder(data.parent, evaluated=False), seconds=60).holds


def test_its_settings_and_declarations_are_what_was_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_project(tmp_path / "p", choices(database="postgresql://db.example:5433/shop?sslmode=verify-full"))
    monkeypatch.setenv("ORCHESTRATOR_CONFIG", str(tmp_path / "p" / "settings.toml"))
    settings = load_settings()
    assert settings.vault_addr == VAULT
    assert settings.endpoints == {"shop": "postgresql://db.example:5433/shop?sslmode=verify-full"}
    declared, policy = load_declarations(tmp_path / "p" / "vault")
    assert list(declared.connections) == ["shop"]
    assert policy == runtime_policy()
    readme = (tmp_path / "p" / "README.md").read_text()
    assert (
        "export ORCHESTRATOR_PROVISION_DATABASES__SHOP="
        "'postgresql://ADMIN:PASSWORD@db.example:5433/shop?sslmode=verify-full'\n" in readme
    )
    assert "REVOKE ALL ON DATABASE shop, postgres, template1 FROM PUBLIC;" in readme


def test_what_holds_no_secret_may_be_committed_and_what_does_may_not(tmp_path: Path) -> None:
    write_project(tmp_path / "p", choices())
    settings = tomllib.loads((tmp_path / "p" / "settings.toml").read_text())
    assert f"/{settings['auth_secret_id_file']}" in (tmp_path / "p" / ".gitignore").read_text().splitlines()


def contents(folder: Path) -> dict[str, Any]:
    return {str(path.relative_to(folder)): path.is_file() and path.read_bytes() for path in folder.rglob("*")}


@pytest.mark.parametrize("there", ["folder", "empty folder", "file", "dangling link"])
def test_nothing_that_is_there_is_touched(
    there: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "shop"
    if there in ("folder", "empty folder"):
        place.mkdir()
    if there == "folder":
        (place / "README.md").write_text("mine")
    if there == "file":
        place.write_text("mine")
    if there == "dangling link":
        place.symlink_to(tmp_path / "nowhere")
    before = contents(tmp_path)
    assert run("init", "shop", folder=tmp_path, monkeypatch=monkeypatch) == 2
    assert "shop is there already" in capsys.readouterr().err
    assert contents(tmp_path) == before
    assert os.path.lexists(place)


def test_a_project_that_cannot_be_written_to_its_end_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("orchestrator.starter.project.runtime_policy", full)  # the last file
    with pytest.raises(UsageError, match=r"p cannot be written: No space left on device"):
        write_project(tmp_path / "p", choices())
    assert list(tmp_path.iterdir()) == []


def test_of_two_at_the_same_time_one_writes_the_project_and_the_other_is_told(tmp_path: Path) -> None:
    told: list[str] = []

    def write(connection: str) -> None:
        try:
            write_project(tmp_path / "p", choices(connection=connection))
        except UsageError as error:
            told.append(str(error))

    threads = [threading.Thread(target=write, args=[f"c{number}"]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(told) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["p"]
    assert len({re.findall(r"c\d", (tmp_path / "p" / name).read_text())[0] for name in NAMED}) == 1


NAMED = ("settings.toml", "vault/declarations.yaml", "policies/data.json")

WRONG = {
    "--table": ["", "a.b.c", "orders;drop", '"a${{b"', "x" * 64],
    "--columns": ["", "id,,name", "id,id", "*", "a\nb", "${{ inputs.limit }}"],
    "--agent": ["", "a: b", 'a"', "-a", "x" * 65],
    "--connection": ["", "My Shop", "shop-db", "1st", "x" * 60, "a__b", "a_"],
    "--database": ["db.example/app", "postgresql://u:not-shown@db.example/app", "mysql://db.example/app"],
    "--vault": ["vault.example", "ftp://vault.example", "https://u:not-shown@vault.example"],
}


@pytest.mark.parametrize(("option", "value"), [(option, value) for option, values in WRONG.items() for value in values])
def test_a_choice_that_cannot_be_is_refused_before_anything_is_written(
    option: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("init", "shop", option, value, folder=tmp_path, monkeypatch=monkeypatch) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: ")
    assert "not-shown" not in said.err
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_ends_with_yaml_is_one_workflow_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("init", folder=tmp_path, monkeypatch=monkeypatch) == 0
    assert capsys.readouterr().out == "workflow.yaml written; next: orchestrator validate workflow.yaml\n"
    assert run("validate", "workflow.yaml", folder=tmp_path, monkeypatch=monkeypatch) == 0
    (tmp_path / "workflow.yaml").write_text("mine")
    assert run("init", folder=tmp_path, monkeypatch=monkeypatch) == 2
    assert (tmp_path / "workflow.yaml").read_text() == "mine"
    assert run("init", "--force", folder=tmp_path, monkeypatch=monkeypatch) == 0
    assert run("init", "other.yml", "--table", "a.b", folder=tmp_path, monkeypatch=monkeypatch) == 2
    assert run("init", "shop", "--force", folder=tmp_path, monkeypatch=monkeypatch) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["workflow.yaml"]


def test_a_script_is_told_what_was_written_and_what_is_to_be_filled_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("init", "a shop", "--vault", f"{VAULT}/", "--json", folder=tmp_path, monkeypatch=monkeypatch) == 0
    told = json.loads(capsys.readouterr().out)
    assert {
        str(path.relative_to(tmp_path / "a shop")) for path in (tmp_path / "a shop").rglob("*") if path.is_file()
    } == (set(told["files"]))
    assert told["next"] == ["cd 'a shop'", "cat README.md"]
    assert told["to_fill_in"] == ["database"]
    assert f'vault_addr = "{VAULT}"\n' in (tmp_path / "a shop" / "settings.toml").read_text()


def test_declarations_without_a_policy_of_the_runtime_take_the_one_of_this_version(tmp_path: Path) -> None:
    write_project(tmp_path / "p", choices())
    file = tmp_path / "p" / "vault" / "declarations.yaml"
    (tmp_path / "p" / "vault" / "policies" / "orchestrator-runtime.hcl").unlink()
    with pytest.raises(UsageError, match=r"orchestrator-runtime\.hcl cannot be read") as missing:
        load_declarations(file.parent)
    assert missing.value.hint == (
        f"leave `policy` of `runtime` out in {file} for the policy that comes with this version"
    )
    file.write_text(file.read_text().replace("  policy: policies/orchestrator-runtime.hcl\n", ""))
    assert load_declarations(file.parent)[1] == runtime_policy()
    file.unlink()
    with pytest.raises(UsageError, match=r"declarations\.yaml cannot be read") as missing:
        load_declarations(file.parent)
    assert "orchestrator init FOLDER" in str(missing.value.hint)

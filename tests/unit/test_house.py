"""The maps that contributors read, held against the code, and the rules of the house."""

from __future__ import annotations

import re
import tomllib

import pytest
from bench import ROOT
from ruamel.yaml import YAML

PACKAGE = ROOT / "orchestrator"
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()
MOST_MODULES = 13
MOST_LINES = 400


def folders() -> set[str]:
    """The packages below `orchestrator/`, as paths relative to it."""
    found = {path.parent.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("__init__.py")}
    return found - {"."}


def drawn(text: str) -> list[str]:
    """The folders of the picture, as paths below its first line; two spaces of indentation are one level."""
    picture = text.partition("```text\n")[2].partition("```")[0]
    above: list[str] = []
    found = []
    for line in picture.splitlines():
        match = re.match(r"( *)([a-z][a-z0-9_]*)/", line)
        assert match, f"a line of the map names no folder: {line!r}"
        level = len(match[1]) // 2
        above = [*above[:level], match[2]]
        found.append("/".join(above))
    assert found[0] == "orchestrator"
    return [path.removeprefix("orchestrator/") for path in found[1:]]


def test_the_map_shows_the_folders_that_there_are() -> None:
    shown = drawn(CONTRIBUTING)
    assert sorted(shown) == sorted(folders())


def test_the_map_says_what_each_folder_is_for() -> None:
    picture = CONTRIBUTING.partition("```text\n")[2].partition("```")[0]
    for line in picture.splitlines():
        assert len(line.split("/", 1)[1].split()) >= 3, line


def test_a_folder_that_the_map_lacks_is_noticed() -> None:
    text = "```text\norchestrator/  the package\n  cli/  one\n    display/  two\n  runs/  three\n```"
    assert drawn(text) == ["cli", "cli/display", "runs"]


REVISIONS = "ledger/storage/migrations/versions"
"""One module for each change of the tables there ever was."""


@pytest.mark.parametrize("folder", [".", *sorted(set(folders()) - {REVISIONS})])
def test_a_folder_holds_a_dozen_modules_at_most(folder: str) -> None:
    modules = {path.name for path in (PACKAGE / folder).glob("*.py")} - {"__init__.py"}
    assert len(modules) <= MOST_MODULES, f"{folder} holds {len(modules)} modules: part it by concern"


def test_no_module_is_longer_than_can_be_read_at_once() -> None:
    lines = {path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.py")}
    assert {path: count for path, count in lines.items() if count > MOST_LINES} == {}


def named_paths(text: str) -> set[str]:
    """Everything in backticks that is written like the path of a file."""
    inline = {match for match in re.findall(r"`([^`\s]+)`", text) if re.fullmatch(r"[\w./-]+/[\w.-]+\.\w+", match)}
    modules = set(re.findall(r"`(\w+\.py)`", text))
    return inline | modules


def test_every_module_of_the_architecture_is_there() -> None:
    named = named_paths(ARCHITECTURE)
    assert len(named) > 30
    missing = {path for path in named if not (PACKAGE / path).exists() and not (ROOT / path).exists()}
    assert missing == set()


@pytest.mark.parametrize("room", ["runs", "credentials", "ledger", "vault", "actions", "recovery", "workflow"])
def test_the_architecture_goes_through_every_room_of_a_step(room: str) -> None:
    assert any(path.startswith(f"{room}/") for path in named_paths(ARCHITECTURE))


def test_every_file_and_target_that_contributing_names_is_there() -> None:
    own = set(re.findall(r"^# (\S+)$", CONTRIBUTING, re.MULTILINE))  # the files that its examples write
    for path in named_paths(CONTRIBUTING) - own:
        assert (ROOT / path).exists() or (PACKAGE / path).exists(), path
    commands = re.findall(r"(?:^|`)(?:\S+=\S+ )*make (\.venv/\.installed|[a-z ]+[a-z])", CONTRIBUTING, re.MULTILINE)
    assert len(commands) >= 5
    for command in commands:
        for target in command.split():
            assert target == ".venv/.installed" or re.search(rf"^{re.escape(target)}:", MAKEFILE, re.MULTILINE), target
    for path in re.findall(r"\.venv/bin/(?:pytest|python) (?:-\S+ \S+ )*([\w./]+)", CONTRIBUTING):
        assert (ROOT / path).exists(), path


def test_the_hooks_before_a_commit_run_what_make_runs() -> None:
    hooks = YAML(typ="safe", pure=True).load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [repository["repo"] for repository in hooks] == ["local"], "no tool of another version than CI's"
    entries = {hook["id"]: hook["entry"] for hook in hooks[0]["hooks"]}
    recipes = MAKEFILE.replace("$(BIN)", ".venv/bin")
    for entry in entries.values():
        program = " ".join(word for word in entry.split() if not word.startswith("-"))
        assert program in recipes, entry
    assert set(entries) == {"format", "lint", "types", "contracts"}


def test_the_licence_is_the_one_that_is_declared() -> None:
    licence = (ROOT / "LICENSE").read_text()
    assert licence.split()[:4] == ["Apache", "License", "Version", "2.0,"]
    assert "END OF TERMS AND CONDITIONS" in licence
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["license"] == "Apache-2.0"


def test_the_changelog_says_what_is_not_released_yet() -> None:
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == "Unreleased"
    for part in re.findall(r"^### (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE):
        assert part in {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}, part


def test_what_every_folder_is_for_stands_in_its_init_too() -> None:
    silent = [folder for folder in sorted(folders()) if not (PACKAGE / folder / "__init__.py").read_text().strip()]
    assert silent == []


def test_paths_are_found_where_they_are_written() -> None:
    assert named_paths("see `a/b.py`, `c.py`, not `d.e`, `x y/z.py` or `make`") == {"a/b.py", "c.py"}

"""Every block of the documentation is run by a test, or says why not, and is at least what its language says it is."""

from __future__ import annotations

import ast
import json
import re
import shlex
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from bench import ROOT
from ruamel.yaml import YAML
from typer.main import get_command

from orchestrator.actions.catalog import catalog
from orchestrator.cli.main import command_line
from orchestrator.policy.engines.rego.engine import RegoEngine
from orchestrator.workflow.loader import load_text

RUN = {
    "README.md",
    "CONTRIBUTING.md",
    "docs/tutorial.md",
    "docs/own-vault.md",
    "docs/write-a-policy.md",
    "docs/production.md",
}
"""Pages whose commands are run, but where a mark says why not.

By test_readme, test_contributing, test_docs_guides and test_wheel.
"""

LEFT_OUT = {"README.md": "inputs: { limit: { type: integer } }\n"}
"""What a page that shows the heart of a workflow leaves out of it."""

PAGES = ["README.md", "CONTRIBUTING.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]


@dataclass(frozen=True)
class Block:
    """One fenced block, with the reason before it why it is not run."""

    page: str
    line: int
    language: str
    text: str
    reason: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(page: str, text: str) -> list[Block]:
    found = re.finditer(r"(?:^<!-- not run: (.+?) -->\n)?^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [Block(page, text.count("\n", 0, each.start(2)) + 1, each[2], each[3], each[1] or "") for each in found]


BLOCKS = [block for page in PAGES for block in blocks_of(page, (ROOT / page).read_text())]


def of(*languages: str) -> list[Block]:
    return [block for block in BLOCKS if block.language in languages]


@pytest.mark.parametrize("block", of("sh", "console"), ids=str)
def test_commands_are_run_or_it_says_why_not(block: Block) -> None:
    assert block.page in RUN or block.reason, "run it in a test, or say why not: <!-- not run: reason -->"


@cache
def program() -> Any:
    return get_command(command_line())


def problem_of(words: list[str]) -> str:
    """What is wrong with a command of the program, or an empty text."""
    command, path = program(), "orchestrator"
    while getattr(command, "commands", None) and words and not words[0].startswith("-"):
        if words[0] not in command.commands:
            return f"`{path}` has no command `{words[0]}`"
        path, command = f"{path} {words[0]}", command.commands[words[0]]
        words = words[1:]
    known = {each for option in command.params for each in (*option.opts, *option.secondary_opts)} | {"--help", "-h"}
    known |= {"--install-completion", "--show-completion", "--version"} if command is program() else set()
    unknown = [word for word in words if re.match(r"--?[a-z]", word) and word.partition("=")[0] not in known]
    return f"`{path}` has no option {unknown[0]}" if unknown else ""


def commands_in(text: str) -> list[list[str]]:
    """The commands of the program, each as its words after `orchestrator`."""
    joined = re.sub(r"\\\n\s*", " ", text)
    lines = re.findall(r"^(?:\$ |\s*)(?:[A-Z_]+=\S+ )*orchestrator ([^\n]*)", joined, re.MULTILINE)
    split = (shlex.split(re.sub(r"[|&;<>].*", "", line), comments=True) for line in lines)
    return [words for words in split if words and not any(word == "..." for word in words[:1])]


@pytest.mark.parametrize("block", of("sh", "console", "text"), ids=str)
def test_commands_and_their_options_are_those_of_the_program(block: Block) -> None:
    shown = block.text if block.language != "text" else "\n".join(re.findall(r"^\$ .*$", block.text, re.MULTILINE))
    for words in commands_in(shown):
        assert problem_of(words) == "", f"{block}: orchestrator {' '.join(words)}"


def test_a_command_or_option_that_there_is_not_is_noticed() -> None:
    text = "orchestrator runs shows X\n$ orchestrator run w.yaml --inptu a=1 # x\n"
    text += "A=b orchestrator plan w.yaml \\\n  --json\n"
    assert [problem_of(words) for words in commands_in(text)] == [
        "`orchestrator runs` has no command `shows`",
        "`orchestrator run` has no option --inptu",
        "",
    ]


@pytest.mark.parametrize("block", of("json"), ids=str)
def test_json_is_json(block: Block) -> None:
    json.loads(block.text)


@pytest.mark.parametrize("block", of("python"), ids=str)
def test_python_is_python(block: Block) -> None:
    ast.parse(block.text)


@pytest.mark.parametrize("block", of("rego"), ids=str)
def test_rego_is_rego(block: Block, tmp_path: Path) -> None:
    text = block.text if "package " in block.text else f"package orchestrator\n\nimport rego.v1\n\n{block.text}"
    (tmp_path / "shown.rego").write_text(text)
    if "package orchestrator\n" not in text:
        (tmp_path / "other.rego").write_text('package orchestrator\n\ndecision := {"allow": false}\n')
    RegoEngine.from_directory(tmp_path)


@pytest.mark.parametrize("block", of("yaml"), ids=str)
def test_yaml_is_yaml_and_a_whole_workflow_is_a_valid_one(block: Block) -> None:
    data = YAML(typ="safe", pure=True).load(block.text)
    assert isinstance(data, dict | list)
    if isinstance(data, dict) and {"version", "name"} <= data.keys() and "acme." not in block.text:
        load_text(block.text + LEFT_OUT.get(block.page, ""), filename=str(block), actions=catalog)

"""Every command of the README, run as it stands there, and its tables, compared with the code.

Only the values of `export NAME=value` are replaced: by those of a stack of this module's own, which
the README's own `provision apply` installs. A new command is run without anybody adding it here.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import hvac
import psycopg
import pytest
from bench import ROOT, surroundings
from ruamel.yaml import YAML

from orchestrator.devstack.provisioned import RUNTIME, Provisioned
from orchestrator.devstack.session import admin_environment, runtime_environment, what_is_left
from orchestrator.devstack.stack import DevStack
from orchestrator.provision.service import new_secret_id
from orchestrator.provision.vault.admin import VaultAdmin
from orchestrator.secret import Secret

README = (ROOT / "README.md").read_text()

INIT = next(line for line in README.splitlines() if line.startswith("orchestrator init shop"))
NOT_RUN = {
    INIT: "writes a folder beside it: run in an empty one below",
    "make demo": "is `orchestrator demo` in the environment that make has made; `make -n` proves the target",
    "make demo-mail": "is `orchestrator demo mail`, which test_mail_agent.py runs; `make -n` proves the target",
    "make test": "would run these very tests again; `make -n` proves the target",
}


@dataclass(frozen=True)
class Block:
    """A fenced block: the language after its fence, its text, and its line in the README."""

    language: str
    text: str
    line: int

    @property
    def commands(self) -> list[str]:
        """The commands, without comments; in a `console` block they follow a `$`."""
        lines = self.text.splitlines()
        if self.language == "console":
            lines = [line[2:] for line in lines if line.startswith("$ ")]
        return [stripped for line in lines if (stripped := re.sub(r"(^|\s)#.*", "", line).strip())]

    @property
    def output(self) -> list[str]:
        """What a `console` block shows below its commands."""
        if self.language != "console":
            return []
        return [line for line in self.text.splitlines() if line and not line.startswith("$ ")]


def blocks_of(text: str) -> list[Block]:
    found = re.finditer(r"^```(\S*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [Block(match[1], match[2], text.count("\n", 0, match.start()) + 1) for match in found]


BLOCKS = blocks_of(README)
SHELL = [block for block in BLOCKS if block.language in ("sh", "bash", "console")]
PROVISIONING = next(block for block in SHELL if "provision apply" in block.text)
DEMO = next(block for block in SHELL if "orchestrator demo" in block.commands)
RUN = [block for block in SHELL if block not in (PROVISIONING, DEMO) and set(block.commands) - set(NOT_RUN)]


def test_the_readmes_project_is_written_and_valid(tmp_path: Path) -> None:
    for command in (INIT, "orchestrator validate shop/workflows", "orchestrator policy test shop/policies"):
        environment = {**surroundings(), "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        done = subprocess.run(
            command.split(), cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr


@dataclass(frozen=True)
class Installed:
    """The module's stack after the README's provisioning, and where its commands are run."""

    provisioned: Provisioned
    directory: Path
    provisioning: subprocess.CompletedProcess[str]

    def shell(self, block: Block, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
        return shell(block, environment, self.directory)


def shell(block: Block, real: Mapping[str, str], directory: Path) -> subprocess.CompletedProcess[str]:
    """Run the commands of a block in one shell, which ends at the first that fails, in the checkout.

    `real` are variables with their real values. Those that the block exports reach it only through
    its own `export`.
    """
    exported = set(re.findall(r"([A-Z_]+)=", "\n".join(line for line in block.commands if line.startswith("export"))))
    assert exported <= set(real), f"line {block.line}: the test knows no value for {exported - set(real)}"

    def with_real_values(line: str) -> str:
        return re.sub(r"([A-Z_]+)=\S+", r'\1="$REAL_\1"', line) if line.startswith("export") else line

    commands = [with_real_values(line) for line in block.commands if line not in NOT_RUN]
    inherited = surroundings()
    environment = {
        **inherited,
        **{name: value for name, value in real.items() if name not in exported},
        **{f"REAL_{name}": value for name, value in real.items() if name in exported},
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{inherited['PATH']}",
        "HOME": str(directory),
    }
    return subprocess.run(
        ["sh", "-e", "-c", "\n".join(commands)], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120
    )


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    """A stack that holds nothing of ours until the README's own commands have installed it."""
    directory = tmp_path_factory.mktemp("readme")
    with DevStack(directory / "stack") as info:
        empty = Provisioned(info, "", Secret(""))
        ended = shell(PROVISIONING, admin_environment(empty), directory)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        admin = VaultAdmin(empty.admin_config(), info.root_token)
        role_id, secret_id = new_secret_id(admin, RUNTIME)
        admin.close()
        yield Installed(replace(empty, role_id=role_id, secret_id=secret_id), directory, ended)


@pytest.fixture
def runtime(installed: Installed) -> Iterator[dict[str, str]]:
    """The variables of the runtime, whose secret id is in a file as in the README."""
    file = installed.directory / "secret-id"
    file.write_text(installed.provisioned.secret_id.reveal())
    variables = runtime_environment(installed.provisioned, installed.directory)
    del variables["ORCHESTRATOR_AUTH_SECRET_ID"]
    yield {
        **variables,
        "ORCHESTRATOR_AUTH_SECRET_ID_FILE": str(file),
        "ORCHESTRATOR_CATALOG_DATABASES__SUPPORT": installed.provisioned.info.support_dsn.reveal(),
    }
    file.unlink()


def test_every_block_says_what_it_is() -> None:
    assert {block.language for block in BLOCKS} <= {"sh", "bash", "console", "text", "yaml"}
    assert len(SHELL) >= 4
    for block in BLOCKS:
        if block.language in ("text", "yaml"):
            assert not re.search(r"^\s*(\$ |orchestrator |make |export )", block.text, re.MULTILINE), block.line


def test_commands_are_found_where_they_are_written() -> None:
    text = "```sh\nmake a   # why\n\norchestrator b\n```\nx\n```console\n$ orchestrator c --input d='#e'\nout\n```\n"
    first, second = blocks_of(text)
    assert (first.commands, second.commands) == (
        ["make a", "orchestrator b"],
        ["orchestrator c --input d='#e'"],
    )
    assert second.output == ["out"]
    assert (first.line, second.line) == (1, 7)


def test_what_is_not_run_is_a_target_of_the_makefile_and_in_the_readme() -> None:
    everything = {command for block in SHELL for command in block.commands}
    assert set(NOT_RUN) <= everything, "not in the README any more"
    for command in set(NOT_RUN) - {INIT}:
        program, *targets = command.split()
        assert program == "make"
        subprocess.run(["make", "-n", *targets], cwd=ROOT, check=True, capture_output=True)


def test_the_provisioning_commands_install_an_empty_stack_and_find_it_as_declared(installed: Installed) -> None:
    assert "vault database/roles/orc-support-" in installed.provisioning.stdout


@pytest.mark.parametrize("block", RUN, ids=lambda block: f"line-{block.line}")
def test_the_commands_of_a_block_run_as_they_stand_and_leave_nothing(
    installed: Installed, runtime: dict[str, str], block: Block
) -> None:
    ended = installed.shell(block, runtime)
    shown = re.search(r"exit code (\d+)", "\n".join(block.output))
    assert ended.returncode == (int(shown[1]) if shown else 0), ended.stdout + ended.stderr
    assert_shown(block, ended)
    assert what_is_left(installed.provisioned).clean


def test_the_demo_shows_what_agents_may_do_who_refuses_the_rest_and_that_nothing_is_left(installed: Installed) -> None:
    ended = installed.shell(DEMO, {})
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert_shown(DEMO, ended)
    lines = ended.stdout.splitlines()
    by = [found[1] for line in lines if (found := re.search(r"  (done|refused by the \w+)  ", line))]
    assert by == ["done"] * 3 + [f"refused by the {name}" for name in ("CRM", "broker", "policy", "policy")]
    shown = next(found[1] for line in lines if (found := re.search(r"  \d messages: (.+)$", line)))
    with psycopg.connect(installed.provisioned.info.support_dsn.reveal()) as session:  # the same rows are in each stack
        theirs = session.execute("SELECT id FROM customer_feedback WHERE customer_id = 1234").fetchall()
    assert sorted(shown.split(", ")) == sorted(str(number) for (number,) in theirs)
    assert "  PostgreSQL   0 ephemeral logins (pg_roles), 10 translations recorded" in lines
    assert "  Vault        0 leases under database/" in lines
    assert "  CRM          1 ticket(s) of customer 1234" in lines


def assert_shown(block: Block, ended: subprocess.CompletedProcess[str]) -> None:
    real = [masked(line) for line in (ended.stdout + ended.stderr).splitlines()]
    for line in block.output:
        assert masked(line) in real, f"{line!r} is not what it says today:\n{ended.stdout}{ended.stderr}"


def masked(line: str) -> str:
    """A line of output without what differs from run to run: ids, durations, widths."""
    line = re.sub(r"run_[0-9A-Z]{26}", "RUN", line)
    return re.sub(r"\s+", " ", re.sub(r"\b\d+\.\d+s\b", "0s", line)).strip()


def test_the_check_answers_4_on_drift_as_the_readme_says(installed: Installed) -> None:
    assert "exit 4 on drift" in PROVISIONING.text
    (check,) = [command for command in PROVISIONING.commands if "provision check" in command]
    info = installed.provisioned.info
    vault = hvac.Client(info.vault_address, token=info.root_token.reveal())
    path = next(f"database/roles/{name}" for name in vault.list("database/roles")["data"]["keys"] if name[:4] == "orc-")
    before = vault.read(path)["data"]
    vault.write_data(path, data={**before, "max_ttl": 7200})
    try:
        ended = installed.shell(Block("sh", check, 0), admin_environment(installed.provisioned))
    finally:
        vault.write_data(path, data=before)
    assert ended.returncode == 4, ended.stdout + ended.stderr
    assert path in ended.stdout + ended.stderr


def rows_of(heading: str) -> list[list[str]]:
    """The cells of the table that has this first column."""
    _, _, rest = README.partition(f"| {heading} |")
    assert rest, f"no table has the column {heading!r}"
    lines = rest.split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_the_commands_are_those_of_the_program() -> None:
    from typer.main import get_command

    from orchestrator.cli.main import command_line

    group: Any = get_command(command_line())
    real = set()
    for name, command in group.commands.items():
        real |= {f"{name} {sub}" for sub in command.commands} if hasattr(command, "commands") else {name}
    written = set()
    for _, cell in rows_of("for"):
        noun = ""
        for words in re.findall(r"`([^`]+)`", cell):
            first, *rest = [word for word in words.split() if word.islower()]
            groups = {name for name, command in group.commands.items() if hasattr(command, "commands")}
            noun = first if first in groups else noun
            written.add(f"{noun} {rest[0]}" if first in groups else f"{noun} {first}".strip())
    assert written == real


def test_the_excerpt_of_a_workflow_is_what_its_file_says() -> None:
    yaml = YAML(typ="safe", pure=True)
    (block,) = [block for block in BLOCKS if block.language == "yaml"]
    excerpt, whole = yaml.load(block.text), yaml.load((ROOT / "workflows" / "customer_feedback.yaml").read_text())
    assert set(excerpt) == {"version", "name", "agent", "steps"}
    for name, step in excerpt["steps"].items():
        assert {"action", "grants", "with", "outputs"} <= set(step)
        assert step == {key: value for key, value in whole["steps"][name].items() if key in step}
    assert {**excerpt, "steps": None} == {key: None if key == "steps" else whole[key] for key in excerpt}


def test_the_share_of_privileges_is_the_one_that_the_proof_finds(installed: Installed, runtime: dict[str, str]) -> None:
    (command,) = [command for block in SHELL for command in block.commands if "--before" in command]
    ended = installed.shell(Block("sh", f"{command} --json", 0), runtime)
    proof = next(grant for grant in json.loads(ended.stdout)["grants"] if grant["grant"] == "db")
    assert proof["holds"]
    for when in ("before", "after"):
        share = proof[when]
        assert f"{share['held']} of {share['of']} privileges in the database ({share['percent']:.2f} %)" in README
    assert proof["former"] == "feedback_app"
    assert proof["after"]["percent"] < proof["before"]["percent"] / 15
    columns = [each for each in proof["held"] if each.startswith("SELECT on column public.customer_feedback.")]
    assert f"needs {len(columns)} of the 15 columns" in README

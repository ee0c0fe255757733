"""What the command line says of itself: names that people use, options that are there, and counts in plain English."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from typing import Any

import pytest
from typer.main import get_command

from orchestrator.cli.connect import log_to_stderr
from orchestrator.cli.log_format import LogFormat, formatter
from orchestrator.cli.main import command_line, main
from orchestrator.cli.value_names import named
from orchestrator.jsontypes import being, counted


def commands() -> Iterator[tuple[str, Any]]:
    """Every command by its whole name."""
    waiting = [("orchestrator", named(get_command(command_line())))]
    for name, command in waiting:
        inner = getattr(command, "commands", {})
        waiting += [(f"{name} {each}", below) for each, below in inner.items()]
        if not inner:
            yield name, command


COMMANDS = dict(commands())


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_names_values_as_people_do_and_tells_of_its_own_options_only(name: str) -> None:
    command = COMMANDS[name]
    text = command.get_help(command.make_context(name, [], resilient_parsing=True))
    assert not re.search(r"<[a-z]|list\[|\{[A-Z]|\[\[|\.\.\.\.", text)
    own = {option for each in command.params for option in (*each.opts, *each.secondary_opts)}
    told = [command.help or "", *(getattr(each, "help", "") or "" for each in command.params)]
    assert {option for words in told for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*", words)} <= own


@pytest.mark.parametrize(
    ("name", "usage", "line"),
    [
        ("orchestrator validate", "orchestrator validate [OPTIONS] FILE...", "  FILE...  Workflows, folders"),
        ("orchestrator serve", "orchestrator serve [OPTIONS] [FOLDER]", "  --max-runs NUMBER "),
        ("orchestrator runs show", "orchestrator runs show [OPTIONS] RUN", "  RUN  The id of the run"),
        ("orchestrator worker", "orchestrator worker [OPTIONS] [FOLDER]", "  --log-format text|json "),
        ("orchestrator prove", "orchestrator prove [OPTIONS] FILE", "  -s, --step TEXT "),
    ],
)
def test_usage_and_values_stand_as_in_a_manual(name: str, usage: str, line: str) -> None:
    command = COMMANDS[name]
    context = command.make_context(name, [], resilient_parsing=True)
    lines = command.get_help(context).splitlines()
    assert lines[0] == f"Usage: {usage}"
    assert any(each.startswith(line) for each in lines)


@pytest.mark.parametrize("arguments", [[], ["runs"], ["policy"], ["queue"]])
def test_a_command_that_is_missing_is_answered_with_what_there_is(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"Usage: {' '.join(['orchestrator', *arguments])} [OPTIONS] COMMAND")
    assert "Commands:" in said.err
    assert "error:" not in said.err


def test_a_command_that_there_is_not_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "lst"]) == 2
    assert capsys.readouterr().err.startswith("error: No such command 'lst'")


@pytest.mark.parametrize(
    ("number", "words", "state"),
    [(0, "0 steps", "0 steps are"), (1, "1 step", "1 step is"), (2, "2 steps", "2 steps are")],
)
def test_numbers_and_nouns_agree(number: int, words: str, state: str) -> None:
    assert counted(number, "step") == words
    assert being(number, "step") == state


def test_large_numbers_and_odd_plurals_are_readable() -> None:
    assert counted(12000, "policy", "policies") == "12,000 policies"
    assert counted(1, "policy", "policies") == "1 policy"


def test_a_line_of_the_log_says_in_which_zone_its_time_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Kathmandu")
    import time

    time.tzset()
    try:
        record = logging.makeLogRecord(
            {"name": "root", "msg": "it began", "levelname": "INFO", "created": 1772452809.5}
        )
        assert formatter(LogFormat.TEXT).format(record) == "2026-03-02 17:45:09.500+05:45 INFO root: it began"
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize("level", ["debug", "info", "warning"])
def test_a_log_has_nothing_of_the_event_loops_own(
    level: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root, loop = logging.getLogger(), logging.getLogger("asyncio")
    before = (root.level, root.handlers[:], loop.level)
    try:
        log_to_stderr(level)
        loop.debug("Using selector: EpollSelector")
        loop.warning("a task was never awaited")
        logging.getLogger("orchestrator").debug("of ours")
        said = capsys.readouterr().err
    finally:
        root.setLevel(before[0])
        root.handlers[:] = before[1]
        loop.setLevel(before[2])
    assert "selector" not in said
    assert "never awaited" in said
    assert ("of ours" in said) is (level == "debug")

"""Nothing that a service, a program or a file says moves, colours or forges what a person sees."""

import io
import json
import logging
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from cli_samples import RUN, START, STARTED
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.cli import failures
from orchestrator.cli.display import listing, terminal
from orchestrator.cli.display.board import Board
from orchestrator.cli.display.printable import clean, one_line
from orchestrator.cli.display.runs.live import LiveTable, Outlet, PlainLines
from orchestrator.cli.display.summary import problems
from orchestrator.cli.log_format import LogFormat, formatter
from orchestrator.cli.main import main
from orchestrator.errors import ExitCode, StepFailed
from orchestrator.ledger.events import AttemptStarted, StepFinished
from orchestrator.ledger.states import RunState, StepState

HOSTILE = {
    "title": "\x1b]0;owned\x07",
    "clipboard": "\x1b]52;c;cm0gLXJmIH4=\x1b\\",
    "colour": "\x1b[31mred",
    "single characters of C1": "\x9b31m\x9d0;owned\x9c",
    "return": "x\rrun_FAKE succeeded",
    "delete": "abc\x08\x08\x7f",
    "direction": "\u202egnp.exe\u2066\u2069",
    "line separator": "a\u2028b\u2029c\x85d",
    "markup": "[bold red]x[/] [link=http://evil]y[/link] :smile:",
    "null": "a\x00b\x0b\x0c",
}
FORGED = "x\n2026-01-01 ERROR root: forged line\nSTEP forged"
BAD = set(map(chr, [*range(9), *range(11, 32), *range(0x7F, 0xA0)])) | set(
    "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u2028\u2029"
)


def bad(text: str) -> set[str]:
    return BAD & set(text)


@given(st.text(st.characters(max_codepoint=0x2100) | st.sampled_from(sorted(BAD))))
def test_a_clean_text_has_none_of_them_and_ordinary_text_stays(text: str) -> None:
    assert not bad(clean(text))
    assert "\n" not in one_line(text)
    assert clean(clean(text)) == clean(text)
    if not bad(text):
        assert clean(text) == text


def test_what_was_taken_out_can_be_read() -> None:
    assert clean("\x1b[31m\x07\r\u202e\x9b\tb\n") == "\\x1b[31m\\a\\r\\u202e\\x9b\tb\n"
    assert one_line("a\nb") == "a\\nb"


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("piped", [True, False])
def test_lists_and_facts_show_it(
    text: str, piped: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not piped:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("NO_COLOR", "1")
    listing.print_list(("RUN", "STATE"), [("a", text), (text, "b")], fold=("STATE",))
    listing.print_line(text)
    terminal.console().print(terminal.facts([("agent", text)]))
    terminal.console().print(terminal.table(("A", "B"), [(text, text)]))
    terminal.console().print(text)
    shown = re.sub("\x1b\\[[012]m", "", capsys.readouterr().out)  # headings are bold, names are dim
    assert not bad(shown)
    if text == HOSTILE["markup"]:
        assert shown.count("[bold red]x[/]") >= 6


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_the_live_table_and_what_is_said_above_it_show_it(text: str) -> None:
    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Screen()
    view = LiveTable(screen=terminal.console(stream))
    view.observe(RUN, START, replace(STARTED, steps=("read",)))
    view.observe(RUN, START, AttemptStarted(step="read", attempt=1, step_key="k", action=text, timeout=30))
    view.notice(text)
    view.screen.print(view.table())
    assert not bad(stream.getvalue()) - {"\x1b"}
    assert "\x1b]" not in stream.getvalue()
    assert "\x1b[31m" not in stream.getvalue()


@pytest.mark.parametrize("text", [*HOSTILE.values(), FORGED], ids=[*HOSTILE, "forged"])
def test_each_line_of_a_run_is_one_line(text: str) -> None:
    stream = io.StringIO()
    view = PlainLines(outlet=Outlet(stream))
    view.observe(RUN, START, replace(STARTED, agent=text))
    view.observe(RUN, START, StepFinished(step="read", state=StepState.FAILED, reason=text))
    view.notice(text)
    assert stream.getvalue().count("\n") == 3
    assert not bad(stream.getvalue())


@pytest.mark.parametrize("text", [*HOSTILE.values(), FORGED], ids=[*HOSTILE, "forged"])
def test_a_record_in_a_log_of_lines_is_one_line_and_a_traceback_is_set_in(text: str) -> None:
    try:
        raise ValueError(text)
    except ValueError:
        error = sys.exc_info()
    record = logging.makeLogRecord({"name": "root", "msg": "it said %s", "args": (text,), "exc_info": error})
    lines = formatter(LogFormat.TEXT).format(record).split("\n")
    assert not bad("".join(lines))
    assert all(line.startswith("  ") or not line for line in lines[1:])
    record = logging.makeLogRecord({"msg": "it said %s", "args": (text,), "said": text})
    line = formatter(LogFormat.JSON).format(record)
    assert "\n" not in line
    assert json.loads(line)["message"] == f"it said {text}"


@pytest.mark.parametrize("text", [*HOSTILE.values(), FORGED], ids=[*HOSTILE, "forged"])
def test_errors_and_the_last_words_on_a_run_show_it(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    lease = SimpleNamespace(lease_id="lease_a", step="read", grant="db", subject="", reason=text)
    outcome = SimpleNamespace(
        errors={"read": StepFailed(text, hint=text)},
        tolerated=frozenset(),
        unconfirmed=[lease],
        reason=text,
        state=RunState.FAILED,
        exit_code=ExitCode.STEP_FAILED,
    )
    shown = problems(outcome, Board())  # type: ignore[arg-type]
    assert not bad(shown)
    assert all(line.startswith(("error: ", "warning: ", "  ")) for line in shown.splitlines())
    failures.expected(StepFailed(text, hint=text), as_json=True)
    failures.note(text)
    said = capsys.readouterr()
    assert not bad(said.err)
    assert json.loads(said.out)["error"]["message"] == text


def test_a_file_that_is_not_valid_is_shown_without_obeying_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, text in enumerate(HOSTILE.values()):
        file = tmp_path / f"{number}.yaml"
        file.write_text(f"version: 1\nname: {json.dumps(text)}\nagent: a\nsteps: {{}}\n{json.dumps(text)}: 1\n")
        assert main(["validate", str(file)]) == 2
        said = capsys.readouterr()
        assert not bad(said.out + said.err)

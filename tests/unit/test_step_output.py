"""What shows what programs write: lines in order, with names, and a bound that loses nothing silently."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from orchestrator.cli.display.runs import output
from orchestrator.cli.display.runs.output import MOST_QUEUED, StepOutput
from orchestrator.redaction.redactor import Redactor
from orchestrator.secret import Secret

SECRET = "q7w3-canary-of-a-step"


class Screen:
    """Takes lines when it is let to."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.open = threading.Event()
        self.open.set()
        self.changed = threading.Condition()

    def tell(self, line: str) -> None:
        self.open.wait(30)
        with self.changed:
            self.lines.append(line)
            self.changed.notify_all()

    def wait_for(self, line: str) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: line in self.lines, 30), self.lines


@pytest.fixture
def screen() -> Iterator[Screen]:
    made = Screen()
    yield made
    made.open.set()


def followed(screen: Screen) -> StepOutput:
    return StepOutput(Redactor([Secret(SECRET)]), screen.tell)


def test_lines_of_programs_and_of_the_run_are_told_in_their_order_with_the_names_of_steps(screen: Screen) -> None:
    with followed(screen) as shown:
        shown.line("a: started")
        shown.printed("a", 1, b"one\nt")
        shown.printed("b[3]", 2, b"other\n")
        shown.printed("a", 1, b"wo\x1b[2J\n")
        shown.printed("a", 1, b"no end")
        shown.printed("a", 1, b"")
        shown.line("a: succeeded")
    told = ["a: started", "a | one", "b[3] | other", "a | two\\x1b[2J", "a | no end", "a: succeeded"]
    assert screen.lines == told


def test_a_secret_in_pieces_is_masked_and_each_stream_is_a_text_of_its_own(screen: Screen) -> None:
    with followed(screen) as shown:
        for byte in f"it is {SECRET}\n".encode():
            shown.printed("a", 1, bytes([byte]))
            shown.printed("a", 2, bytes([byte]))
    assert screen.lines == ["a | it is ***"] * 2


def test_what_waits_is_told_after_a_pause_but_for_the_beginning_of_a_secret(screen: Screen) -> None:
    with followed(screen) as shown:
        shown.printed("a", 1, SECRET[:9].encode())
        shown.printed("b", 1, b"what is your name? ")
        screen.wait_for("b | what is your name?")
        shown.printed("b", 1, b"still here; ")
        screen.wait_for("b | still here;")
        assert not any(line.startswith("a |") for line in screen.lines)
        shown.printed("a", 1, SECRET[9:].encode() + b"\n")
    assert screen.lines[-1] == "a | ***"


def test_nobody_waits_for_a_screen_and_what_has_no_room_is_counted(screen: Screen) -> None:
    screen.open.clear()
    with followed(screen) as shown:
        line = b"x" * 99 + b"\n"
        for _ in range(3 * MOST_QUEUED // 100):
            shown.printed("a", 1, line)
        shown.printed("b", 1, b"few words\n")
        screen.open.set()
        shown.printed("a", 1, b"")
    told = 100 * len([text for text in screen.lines if text.startswith("a | xxx")])
    (lost,) = [int(text.split("[")[1].split()[0]) for text in screen.lines if "not shown" in text]
    assert told + lost == 3 * MOST_QUEUED // 100 * 100
    # Besides what has room, that may be told which was in hand already when the screen took nothing more.
    assert MOST_QUEUED - 100 < told <= 2 * MOST_QUEUED
    assert "b | few words" in screen.lines


def test_the_end_does_not_wait_for_ever_for_a_screen_that_takes_nothing(
    screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "PATIENCE", 0.05)
    screen.open.clear()
    with followed(screen) as shown:
        shown.printed("a", 1, b"one\ntwo\n")
    assert screen.lines == []


class Slow(Redactor):
    """Takes its time over each line, as on a machine that has much else to do."""

    def redact(self, text: str) -> str:
        time.sleep(0.02)
        return super().redact(text)


def test_whoever_looks_for_secrets_slowly_is_waited_for_at_the_end(
    screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "PATIENCE", 0.05)
    with StepOutput(Slow([Secret(SECRET)]), screen.tell) as shown:
        shown.printed("a", 1, b"words\n" * 40)
    assert screen.lines == ["a | words"] * 40

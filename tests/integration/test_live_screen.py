"""The table of a run on a small terminal, as somebody who sits there sees it."""

from __future__ import annotations

import codecs
import fcntl
import os
import pty
import re
import signal
import struct
import termios
import threading
from pathlib import Path

from bench import Bench
from fork_server import ForkServer
from waiting import wait_for

WIDTH, HEIGHT = 46, 20
STEPS = """version: 1
name: many
agent: tester
steps:
"""
WORD = re.compile(r"\x1b\[([?0-9;]*)([A-Za-z])|(\r)|(\n)|([^\x1b\r\n])")

BEGUN = re.compile(r"\x1b(?:\[[?0-9;]*)?$")
"""A command to the terminal whose end is yet to come."""


class Screen:
    """What is seen on a terminal of this size, and what has gone out of it at the top."""

    def __init__(self, descriptor: int) -> None:
        self.lines = [""]
        self.frames: list[list[str]] = []
        """What was on it each time when something had been written."""
        self._row = self._column = 0
        self._reading = threading.Thread(target=self._read, args=(descriptor,), daemon=True)
        self._reading.start()

    def _read(self, descriptor: int) -> None:
        rest = ""
        decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        while True:
            try:
                data = os.read(descriptor, 65536)
            except OSError:  # nobody has the other end any more
                return
            text = rest + decode(data)
            whole = text.rindex("\x1b") if BEGUN.search(text) else len(text)
            text, rest = text[:whole], text[whole:]
            for number, word, home, feed, char in WORD.findall(text):
                self._take(number, word, home, feed, char)
            self.frames.append([line.rstrip() for line in self.lines[-HEIGHT:]])

    def _take(self, number: str, word: str, home: str, feed: str, char: str) -> None:
        if home:
            self._column = 0
        elif feed:
            self._down()
        elif word == "A":
            self._row = max(0, len(self.lines) - HEIGHT, self._row - int(number or 1))
        elif word == "K":
            self.lines[self._row] = ""
        elif char:
            if self._column == WIDTH:
                self._down()
                self._column = 0
            line = self.lines[self._row].ljust(self._column)
            self.lines[self._row] = line[: self._column] + char + line[self._column + 1 :]
            self._column += 1

    def _down(self) -> None:
        self._row += 1
        if self._row == len(self.lines):
            self.lines.append("")

    def once(self, shown: re.Pattern[str]) -> list[str] | None:
        """The lines that were on it when they were such."""
        return next((frame for frame in list(self.frames) if shown.search("\n".join(frame))), None)

    def all(self) -> list[str]:
        self._reading.join(10)
        return [line.rstrip() for line in self.lines]


def test_a_small_screen_shows_what_works_with_its_state_and_time_and_keeps_no_stray_heading(
    bench: Bench, tmp_path: Path, children: ForkServer
) -> None:
    go = tmp_path / "go"
    step = "  step_with_a_long_name_{n:02d}:\n    action: exec\n    needs: [{needs}]\n    with: {{ {with_} }}\n"
    quick, slow = "command: [/bin/true]", f"command: [/bin/sh, -c, 'until test -e {go}; do sleep 0.05; done']"
    text = STEPS + "".join(
        step.format(
            n=n,
            needs=f"step_with_a_long_name_{n - 1:02d}" if n else "",
            with_=f"{slow}, paths: {{ read: ['{tmp_path}'] }}" if n == 3 else quick,
        )
        for n in range(30)
    )
    (tmp_path / "w.yaml").write_text(text)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", HEIGHT, WIDTH, 0, 0))
    environment = {**bench.environment(), "ORCHESTRATOR_POLICY": "allow-all", "TERM": "xterm"}
    for name in ("COLUMNS", "LINES"):  # which those who hand out the tests set: a size that this terminal has not
        environment.pop(name, None)
    run = children.start_on(
        "run", str(tmp_path / "w.yaml"), "--follow", environment=environment, streams=(theirs, theirs, theirs)
    )
    os.close(theirs)
    screen = Screen(ours)
    # Drawn anew line by line: what is looked at is whole when it has its last line, and the line above that.
    shown = re.compile(r"STEP .*\nstep_\S+ +running +\d.*\n3 succeeded, \d+ waiting$", re.DOTALL)
    seen = wait_for(lambda: screen.once(shown), "a step to work", 90)
    assert [line.split() for line in seen if line.startswith("STEP")] == [["STEP", "STATE", "TOOK", "CREDENTIALS"]]
    assert len([line for line in seen if re.fullmatch(r"step_\S+… +running +[\d.]+s", line)]) == 1
    assert re.fullmatch(r"3 succeeded, \d+ waiting", seen[-1])
    assert len(seen) <= HEIGHT
    run.send_signal(signal.SIGINT)
    assert run.wait(60) == 130
    lines = screen.all()
    assert len([line for line in lines if line.startswith("STEP")]) == 1
    assert len([line for line in lines if line.startswith("step_with")]) == 30
    assert any(line.startswith("SIGINT: stopping the steps") for line in lines)
    os.close(ours)

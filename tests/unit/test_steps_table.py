"""The table of a run on screens of any size."""

from __future__ import annotations

import io

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from orchestrator.cli.display.runs.steps_table import NOT_BEGUN, Row, drawn, fitted
from orchestrator.ledger.states import StepState

STATES = [*(state.value for state in StepState if state is not StepState.WAITING), NOT_BEGUN]
NAMES = st.from_regex(r"[a-z][a-z0-9_-]{0,62}", fullmatch=True)


@st.composite
def rows(draw: st.DrawFn) -> list[Row]:
    names = draw(st.lists(NAMES, min_size=1, max_size=60, unique=True))
    return [made(name, draw(st.sampled_from(STATES)), again=draw(st.booleans())) for name in names]


def made(name: str, state: str = "succeeded", *, again: bool = False) -> Row:
    return Row(name, "postgres.execute", f"{state} #2" if again else state, "12.3s", "✓ step  ✓ db", state)


def lines(steps: list[Row], width: int, height: int = 1000) -> list[str]:
    screen = Console(record=True, width=width, file=io.StringIO())
    screen.print(drawn(fitted(steps, height), width))
    return [line.rstrip() for line in screen.export_text().splitlines()]


@given(rows(), st.integers(40, 200))
def test_state_and_time_are_whole_and_each_step_is_one_line(steps: list[Row], width: int) -> None:
    heading, *shown = lines(steps, width)
    assert len(shown) == len(steps)
    assert all(len(line) <= width - 3 for line in shown), "what Ctrl-C leaves has room"
    for row, line in zip(steps, shown, strict=True):
        assert f"  {row.shown} " in line
        assert line[: heading.index("TOOK") + 4].endswith(row.took)
        name = line.split()[0]
        assert row.step.startswith(name.removesuffix("…"))
        assert len(name) >= min(len(row.step), 12)


def test_a_long_name_is_shortened_before_any_other_column_is_left_out() -> None:
    names = ["a_step_with_a_very_long_name_that_says_everything", "short"]
    shown = {width: lines([made(name) for name in names], width)[0].split() for width in (120, 70, 48, 34)}
    assert shown[120] == shown[70] == ["STEP", "ACTION", "STATE", "TOOK", "CREDENTIALS"]
    assert shown[48] == ["STEP", "STATE", "TOOK", "CREDENTIALS"]
    assert shown[34] == ["STEP", "STATE", "TOOK"]


@given(rows(), st.integers(3, 40))
def test_with_more_steps_than_lines_what_works_is_seen_then_what_failed_and_the_rest_is_counted(
    steps: list[Row], most: int
) -> None:
    shown = fitted(steps, most)
    assert len(shown.rows) + bool(shown.others) <= most
    kept = [row.state for row in shown.rows]
    left = [row.state for row in steps if row not in shown.rows]
    assert sum(int(part.split()[0]) for part in shown.others.split(", ") if part) == len(left)
    if "running" in left:
        assert set(kept) == {"running"}
    if {"failed", "refused"} & set(left):
        assert not {"succeeded", "skipped", NOT_BEGUN} & set(kept)
    assert [row for row in steps if row in shown.rows] == list(shown.rows)


def test_the_rest_is_one_line_below_the_table() -> None:
    steps = [made(f"step{number}") for number in range(12)]
    shown = lines([*steps, made("now", "running"), made("bad", "failed"), made("next", NOT_BEGUN)], 80, 3)
    assert [line.split()[0] for line in shown[1:3]] == ["now", "bad"]
    assert shown[3] == "12 succeeded, 1 waiting"


def test_no_column_moves_while_a_run_goes_on() -> None:
    begun = lines([made("a", NOT_BEGUN), made("b", NOT_BEGUN)], 100)
    ended = lines([made("a", "succeeded"), made("b", "cancelled")], 100)
    assert begun[0] == ended[0]

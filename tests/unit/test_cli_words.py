"""Moments, spans and inputs as people type and read them."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from orchestrator.cli.display.terminal import lasting
from orchestrator.cli.options import inputs_from, refuse_secrets_among_arguments
from orchestrator.errors import UsageError
from orchestrator.presentation.events import words
from orchestrator.presentation.moments import parse_moment
from orchestrator.workflow.models.workflow import Workflow

NOW = datetime(2026, 3, 2, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2h ago", NOW - timedelta(hours=2)),
        ("2h", NOW - timedelta(hours=2)),
        ("90 s ago", NOW - timedelta(seconds=90)),
        ("3d", NOW - timedelta(days=3)),
        ("1w ago", NOW - timedelta(weeks=1)),
        ("2026-03-02T12:00:00Z", NOW),
        ("2026-03-02T19:00:00+07:00", NOW),
    ],
)
def test_moments_are_exact_or_ago(text: str, moment: datetime) -> None:
    assert parse_moment(text, now=NOW) == moment


def test_a_moment_without_an_offset_is_local() -> None:
    assert parse_moment("2026-03-02", now=NOW) == datetime(2026, 3, 2).astimezone()


@pytest.mark.parametrize("text", ["", "soon", "2x", "-2h", "2h later", "2026-13-01", "999999w"])
def test_anything_else_is_no_moment(text: str) -> None:
    with pytest.raises(UsageError, match="is not a time"):
        parse_moment(text, now=NOW)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.00s"), (0.424, "0.42s"), (12.34, "12.3s"), (59.9, "59.9s"), (185, "3m05s"), (7500, "2h05m"), (-1, "0.00s")],
)
def test_spans_are_told_in_the_units_that_matter(seconds: float, text: str) -> None:
    assert lasting(timedelta(seconds=seconds)) == text


def test_single_inputs_win_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "inputs.yaml"
    file.write_text("limit: 3\nchannel: '#support'\ntags: [a, b]\n")
    assert inputs_from(["limit=5", "note=a=b", "empty="], file) == {
        "limit": "5",
        "channel": "#support",
        "tags": ["a", "b"],
        "note": "a=b",
        "empty": "",
    }


def test_json_files_are_inputs_too(tmp_path: Path) -> None:
    file = tmp_path / "inputs.json"
    file.write_text('{"limit": 3, "nested": {"a": null}}')
    assert inputs_from(None, file) == {"limit": 3, "nested": {"a": None}}


@pytest.mark.parametrize("content", ["- a\n- b\n", "canary: [", "1: a", "\x00canary", "!!python/object:os.system {}"])
def test_a_file_that_holds_no_inputs_is_refused_without_quoting_it(tmp_path: Path, content: str) -> None:
    file = tmp_path / "inputs.yaml"
    file.write_text(content)
    with pytest.raises(UsageError) as caught:
        inputs_from(None, file)
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize("pair", ["limit", "=5", ""])
def test_an_input_has_a_name_and_a_value(pair: str) -> None:
    with pytest.raises(UsageError, match="NAME=VALUE"):
        inputs_from([pair], None)


def test_a_secret_input_may_not_be_an_argument() -> None:
    workflow = Workflow.model_validate(
        {
            "version": 1,
            "name": "w",
            "agent": "a",
            "inputs": {"key": {"secret": True}, "limit": {}},
            "steps": {"one": {"action": "exec"}},
        }
    )
    refuse_secrets_among_arguments(workflow, ["limit=5"])
    with pytest.raises(UsageError, match="`key` is secret") as caught:
        refuse_secrets_among_arguments(workflow, ["key=canary"])
    assert "canary" not in str(caught.value)


def test_an_event_of_a_newer_version_is_shown_as_it_was_recorded() -> None:
    assert words("lease.borrowed", {"lease_id": "x", "by": "y"}) == "lease_id=x, by=y"

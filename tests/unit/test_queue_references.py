"""What DBOS may store: how a run has ended, and no way to write anything else."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import StepFailed
from orchestrator.ledger.states import RunState
from orchestrator.queue.references import UnknownError, decode, encode


@given(st.sampled_from(RunState))
def test_the_end_of_a_run_is_the_same_after_reading(state: RunState) -> None:
    assert decode(encode(state)) is state


def test_a_run_is_put_in_without_any_argument() -> None:
    assert decode(encode({"args": (), "kwargs": {}})) == {"args": (), "kwargs": {}}


@given(st.text())
def test_of_an_error_only_its_kind_is_kept(message: str) -> None:
    text = encode(StepFailed(message))
    assert text == '{"!": "StepFailed"}'
    assert isinstance(decode(text), UnknownError)


@pytest.mark.parametrize(
    "data",
    [
        "hvs.secret",
        b"hvs.secret",
        {"password": "hvs.secret"},
        {"args": ("hvs.secret",), "kwargs": {}},
        {"args": (), "kwargs": {"a": "hvs.secret"}},
        ["hvs.secret"],
        17,
        None,
        True,
        object(),
    ],
)
def test_anything_else_is_refused_without_being_shown(data: Any) -> None:
    with pytest.raises(TypeError) as refused:
        encode(data)
    assert "hvs" not in str(refused.value)

"""What an engine may store: references, and no way to write anything else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import StepFailed
from orchestrator.ledger.states import StepState
from orchestrator.runs.engines.references import UnknownError, decode, encode

STATES = st.sampled_from(StepState)
IDS = st.text(min_size=1).filter(lambda text: text != "!")


@given(IDS, st.integers(min_value=1))
def test_a_run_and_its_fence_come_back(run_id: str, fence: int) -> None:
    given = {"args": (run_id, fence), "kwargs": {}}
    assert decode(encode(given)) == given


@given(st.one_of(STATES, st.dictionaries(IDS, STATES)))
def test_the_states_of_steps_come_back(states: StepState | dict[str, StepState]) -> None:
    assert decode(encode(states)) == states


def test_of_an_error_only_the_name_of_its_class_is_kept() -> None:
    text = encode(StepFailed("the password is hunter2", hint="try hunter2"))
    assert text == '{"!": "StepFailed"}'
    error = decode(text)
    assert isinstance(error, UnknownError)
    assert str(error) == "StepFailed"


@pytest.mark.parametrize(
    "data",
    [
        "hunter2",
        b"hunter2",
        None,
        {"rows": ["hunter2"]},
        {"read": "succeeded"},
        {"args": ("run_1", 1, "hunter2"), "kwargs": {}},
        {"args": ("run_1", 1), "kwargs": {"inputs": "hunter2"}},
        {"args": ({"limit": "hunter2"}, 1), "kwargs": {}},
        ["run_1", 1],
    ],
)
def test_what_is_more_than_a_reference_is_refused_without_being_shown(data: object) -> None:
    with pytest.raises(TypeError) as caught:
        encode(data)
    assert "hunter2" not in str(caught.value)

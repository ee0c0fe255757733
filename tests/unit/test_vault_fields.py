"""Numbers and texts of Vault's answers: what cannot be meant is an answer that cannot be understood."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.vault.faults import Outcome, VaultUnavailable
from orchestrator.vault.fields import LONGEST_TTL, no_such_token, seconds, section, text, whole_number

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda inner: st.lists(inner), max_leaves=3
)


@pytest.mark.parametrize("given", [0, 1, 300, LONGEST_TTL])
def test_a_duration_is_a_whole_number_of_seconds(given: int) -> None:
    assert seconds({"ttl": given}, "ttl", "a/b") == given


@pytest.mark.parametrize(
    "given", [-1, True, False, 1.0, 1.5, "60", "60s", "", None, [], {}, 10**30, LONGEST_TTL + 1, float("nan")]
)
def test_what_is_none_leaves_the_outcome_unknown(given: Any) -> None:
    with pytest.raises(VaultUnavailable, match="answer to a/b cannot be understood") as error:
        seconds({"ttl": given}, "ttl", "a/b")
    assert error.value.outcome is Outcome.UNKNOWN


@pytest.mark.parametrize("given", [None, "", 5, True, ["s.x"], {}])
def test_a_text_is_one_that_says_something(given: Any) -> None:
    for body in ({"token": given}, {}):
        with pytest.raises(VaultUnavailable) as error:
            text(body, "token", "a/b")
        assert error.value.outcome is Outcome.UNKNOWN


@pytest.mark.parametrize("given", [0, 2**40, True, "1"])
def test_a_number_is_within_its_bounds(given: Any) -> None:
    with pytest.raises(VaultUnavailable):
        whole_number({"version": given}, "version", "a/b", least=1)


@given(JSON)
def test_nothing_else_is_raised_whatever_comes(value: Any) -> None:
    for take in (seconds, section, text, whole_number):
        try:
            take({"x": value}, "x", "a/b")
        except VaultUnavailable:
            continue


@pytest.mark.parametrize(
    ("status", "message", "gone"),
    [
        (400, "invalid accessor", True),
        (403, "1 error occurred: invalid accessor", True),
        (404, "invalid accessor", True),
        (500, "invalid accessor", False),
        (400, "token not found", True),
        (403, "token not found", False),
        (500, "token not found", False),
        (403, "permission denied", False),
        (400, "", False),
    ],
)
def test_which_refusal_says_that_there_is_no_such_token(status: int, message: str, gone: bool) -> None:
    assert no_such_token(status, message) is gone

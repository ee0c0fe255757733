"""Whatever a policy answers: allowed only when the answer is exactly a well-formed yes."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.policy.documents import decision_from

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
hashables = st.none() | st.booleans() | st.integers() | st.text(max_size=8)
near_answers = st.dictionaries(
    st.sampled_from(["allow", "reasons", "obligations", "Allow", "extra"]) | hashables,
    json_values
    | st.just({"max_ttl": 60})
    | st.dictionaries(st.just("max_ttl") | hashables, json_values)
    | st.sets(hashables),
    max_size=4,
)


def well_formed_yes(answer: Any) -> bool:
    """The same question asked in another way: the shape, checked from the outside in."""
    if not isinstance(answer, dict) or answer.get("allow") is not True:
        return False
    if any(key not in ("allow", "reasons", "obligations") for key in answer):
        return False
    reasons, obligations = answer.get("reasons", []), answer.get("obligations", {})
    if not isinstance(reasons, list | set) or any(type(reason) is not str for reason in reasons):
        return False
    if not isinstance(obligations, dict):
        return False
    return obligations == {} or (
        list(obligations) == ["max_ttl"] and type(obligations["max_ttl"]) is int and obligations["max_ttl"] > 0
    )


@given(json_values | near_answers)
def test_only_a_well_formed_yes_allows(answer: Any) -> None:
    decision = decision_from(answer, engine="e", revision="r")
    assert decision.allow == well_formed_yes(answer)
    assert decision.allow or decision.reasons


@given(
    st.fixed_dictionaries(
        {"allow": st.booleans()},
        optional={
            "reasons": st.lists(st.text(), max_size=3) | st.sets(st.text(), max_size=3),
            "obligations": st.just({}) | st.fixed_dictionaries({"max_ttl": st.integers(1, 10**6)}),
        },
    )
)
def test_a_well_formed_answer_is_obeyed_to_the_letter(answer: dict[str, Any]) -> None:
    decision = decision_from(answer, engine="e", revision="r")
    assert decision.allow is answer["allow"]
    assert decision.obligations.max_ttl == answer.get("obligations", {}).get("max_ttl")
    assert set(answer.get("reasons", [])) <= set(decision.reasons)

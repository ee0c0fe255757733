"""Whatever a policy answers: allowed only when the answer is exactly a well-formed yes."""

from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.policy.documents import DECISION_EXAMPLE, decision_from
from orchestrator.policy.obligations import SUPPORTED, Obligations

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
hashables = st.none() | st.booleans() | st.integers() | st.text(max_size=8)


def mostly(right: st.SearchStrategy[Any], wrong: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """What is right, and one time in twenty what may be wrong."""
    return st.sampled_from(range(20)).flatmap(lambda drawn: right if drawn < 19 else wrong)


def nearly(right: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return mostly(right, json_values)


def members(**each: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """An object with some of these members, and sometimes with one that nobody knows."""
    unknown = mostly(st.just({}), st.dictionaries(hashables, json_values, max_size=1))
    some = st.fixed_dictionaries({}, optional={name: nearly(value) for name, value in each.items()})
    return st.tuples(some, unknown).map(lambda two: {**two[0], **two[1]})


def near_map(
    keys: st.SearchStrategy[Any], values: st.SearchStrategy[Any], least: int = 0
) -> st.SearchStrategy[dict[str, Any]]:
    return nearly(st.dictionaries(keys, values, min_size=least, max_size=2))


amounts = mostly(st.integers(1, 20), st.integers(-1, 22) | st.booleans() | st.sampled_from([1.0, 60.0, "60"]))
names = mostly(
    st.sampled_from(["id", "security", "to-me_1", "x" * 63]),
    st.sampled_from(["x" * 64, "", "Security", "1st", "security\n"]),
)
people = mostly(
    st.sampled_from(["vault:a", "vault-policy:b", "vault-entity:c", "slack:U1"]),
    st.sampled_from(
        ["vault:", "slack:a b", "vault:a\n", "mail:a", " vault:a", "VAULT:a", "vault:" + "a" * 201, "a", ""]
    ),
)
verbs = mostly(st.sampled_from(["select", "insert", "update"]), st.sampled_from(["delete", "all", ""]))
texts = mostly(st.sampled_from(["x", "x" * 2000]), st.sampled_from(["", "x" * 2001]))
some_columns = near_map(names, near_map(names, near_map(verbs, nearly(st.lists(names, min_size=1, max_size=3)))), 1)
near_obligations = members(
    max_ttl=amounts,
    max_rows=amounts,
    reason_required=st.booleans(),
    columns=mostly(some_columns, st.just({})),
    notify=mostly(
        st.lists(st.fixed_dictionaries({"to": names, "text": texts}) | members(to=names, text=texts), max_size=2),
        st.integers(9, 11).map(lambda count: [{"to": "security", "text": "x"}] * count),
    ),
    approval=st.fixed_dictionaries(
        {"approvers": nearly(st.lists(people, min_size=1, max_size=2))},
        optional={"count": amounts, "expires_in": amounts, "valid_for": amounts},
    )
    | members(approvers=st.lists(people, max_size=3), count=amounts, extra=amounts),
)
near_answers = members(
    allow=st.just(True),
    version=mostly(st.just(1), st.sampled_from([2, True, 1.0, "1"])),
    reasons=mostly(st.lists(st.text(max_size=3), max_size=2), st.sets(hashables)),
    obligations=near_obligations,
) | st.fixed_dictionaries({"allow": st.just(True), "obligations": near_obligations})


def is_amount(value: Any, most: int | None = None) -> bool:
    return type(value) is int and value > 0 and (most is None or value <= most)


def has_only(value: Any, *known: str) -> bool:
    return isinstance(value, dict) and all(key in known for key in value)


def is_list_of(value: Any, right: Callable[[Any], bool], least: int = 0, most: int = 1 << 30) -> bool:
    return isinstance(value, list) and least <= len(value) <= most and all(map(right, value))


def is_map_of(value: Any, key: Callable[[str], bool], right: Callable[[Any], bool]) -> bool:
    return (
        isinstance(value, dict)
        and all(isinstance(each, str) and key(each) for each in value)
        and all(map(right, value.values()))
    )


def is_text(value: Any, least: int = 0, most: int = 1 << 30) -> bool:
    return type(value) is str and least <= len(value) <= most


def is_destination(value: Any) -> bool:
    letters = "abcdefghijklmnopqrstuvwxyz"
    return is_text(value, 1, 63) and value[0] in letters and set(value) <= {*letters, *"0123456789_-"}


def is_approver(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    kind, colon, name = value.partition(":")
    spaces = any(character.isspace() for character in name)
    return (
        kind in ("vault", "vault-policy", "vault-entity", "slack")
        and colon == ":"
        and is_text(name, 1, 200)
        and not spaces
    )


def anyhow(key: str) -> bool:
    return True


def is_notice(value: Any) -> bool:
    return has_only(value, "to", "text") and is_destination(value.get("to")) and is_text(value.get("text"), 1, 2000)


def is_columns(value: Any) -> bool:
    def of_verb(given: Any) -> bool:
        return is_list_of(given, lambda name: is_text(name, 1, 63), least=1)

    def of_table(given: Any) -> bool:
        return is_map_of(given, lambda verb: verb in ("select", "insert", "update"), of_verb)

    return value != {} and is_map_of(value, anyhow, lambda tables: is_map_of(tables, anyhow, of_table))


def is_approval(value: Any) -> bool:
    return (
        has_only(value, "approvers", "count", "expires_in", "valid_for")
        and is_list_of(value.get("approvers"), is_approver, least=1)
        and is_amount(value.get("count", 1), 20)
        and is_amount(value.get("expires_in", 1))
        and is_amount(value.get("valid_for", 1))
    )


OBLIGATIONS: dict[str, Callable[[Any], bool]] = {
    "max_ttl": is_amount,
    "max_rows": is_amount,
    "reason_required": lambda value: isinstance(value, bool),
    "columns": is_columns,
    "notify": lambda value: is_list_of(value, is_notice, most=10),
    "approval": is_approval,
}


def well_formed_yes(answer: Any) -> bool:
    """The same question asked in another way: the shape, checked from the outside in."""
    if not has_only(answer, "version", "allow", "reasons", "obligations") or answer.get("allow") is not True:
        return False
    version, reasons, obligations = (
        answer.get(key, default) for key, default in (("version", 1), ("reasons", []), ("obligations", {}))
    )
    if type(version) is not int or version != 1:
        return False
    if not isinstance(reasons, list | set) or any(type(reason) is not str for reason in reasons):
        return False
    return has_only(obligations, *OBLIGATIONS) and all(OBLIGATIONS[key](value) for key, value in obligations.items())


def test_the_oracle_knows_every_obligation() -> None:
    assert set(OBLIGATIONS) == set(SUPPORTED)
    assert well_formed_yes(DECISION_EXAMPLE)


@given(json_values | near_answers)
def test_only_a_well_formed_yes_allows(answer: Any) -> None:
    decision = decision_from(answer, engine="e", revision="r")
    assert decision.allow == well_formed_yes(answer)
    assert decision.allow or decision.reasons


@given(near_obligations)
def test_what_only_the_obligations_decide(demanded: Any) -> None:
    answer = {"allow": True, "obligations": demanded}
    decision = decision_from(answer, engine="e", revision="r")
    assert decision.allow == well_formed_yes(answer)
    if decision.allow:
        written = decision.obligations.as_json()
        assert set(written) <= set(demanded)
        assert all(
            written.get(name) == demanded.get(name) for name in ("max_ttl", "max_rows", "notify") if name in written
        )
        assert decision.obligations.reason_required == demanded.get("reason_required", False)
    else:
        assert decision.obligations == Obligations(notify=decision.obligations.notify)


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

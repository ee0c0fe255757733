"""Access tokens, and which requests their scope and their authorization_details permit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pep_tokens import AUDIENCE, attempt, claims

from orchestrator.pep.access import AccessToken, Shortfall, permits, shortfall
from orchestrator.pep.details import Operation, element_permits
from orchestrator.pep.details import permits as details_permit
from orchestrator.pep.errors import Reason, TokenRefused

TICKET = {"type": "crm_record", "actions": ["read", "write_ticket"], "identifier": "1234"}
WRITE = Operation("crm_record", "write_ticket", "1234")


def access(**changes: Any) -> AccessToken:
    return AccessToken.of(attempt(body={**claims(), **changes}))


def test_an_access_token_has_what_rfc_9068_says() -> None:
    token = access(authorization_details=[TICKET], act={"sub": "agent"})
    assert (token.subject, token.client_id, token.token_id) == ("feedback-assistant", "customer_feedback", "lease-1")
    assert token.scope == {"crm:read", "crm:write"}
    assert (token.details, token.actor) == ((TICKET,), {"sub": "agent"})
    assert access().details is None


@pytest.mark.parametrize("scope", [None, "", ["crm:read"], 7, {"crm:read": 1}, "CRM:READ", "crm:readers", "crm:read,x"])
def test_a_scope_that_is_not_exactly_there_is_not_granted(scope: Any) -> None:
    assert permits(access(), scope="crm:read")
    assert not permits(access(scope=scope), scope="crm:read")


@pytest.mark.parametrize("name", ["authorization_details", "act", "client_id"])
@pytest.mark.parametrize("value", [None, "x" * 0, 7, {}, [], [1], [{"kind": "a"}], [{"type": 1}], "text"])
def test_a_claim_of_another_shape_is_refused(name: str, value: Any) -> None:
    fits: dict[str, list[Any]] = {"authorization_details": [[]], "act": [{}], "client_id": ["text"]}
    if value in fits[name]:
        assert access(**{name: value}).claims[name] == value
        return
    with pytest.raises(TokenRefused) as refused:
        access(**{name: value})
    assert refused.value.reason in (Reason.CLAIM_TYPE, Reason.MISSING_CLAIM)
    assert refused.value.claim == name


def test_what_a_token_lacks_is_told_apart() -> None:
    token = access(authorization_details=[TICKET])
    assert shortfall(token, scope="crm:read crm:write", operation=WRITE) is None
    assert shortfall(token, scope="crm:read crm:admin", operation=WRITE) is Shortfall.SCOPE
    assert shortfall(token, scope="crm:read", operation=replace(WRITE, identifier="1235")) is Shortfall.DETAILS
    assert shortfall(replace(token, details=None), operation=WRITE) is Shortfall.DETAILS
    assert shortfall(replace(token, details=()), operation=WRITE) is Shortfall.DETAILS


@pytest.mark.parametrize("nothing", [{}, {"scope": ""}, {"scope": "  "}])
def test_a_demand_of_nothing_is_a_mistake_and_no_permission(nothing: dict[str, str]) -> None:
    with pytest.raises(ValueError):
        permits(access(), **nothing)  # type: ignore[arg-type]


def even(value: Any) -> bool:
    return isinstance(value, int) and value % 2 == 0


NO_MATCH: dict[str, tuple[dict[str, Any], Operation]] = {
    "another type": ({**TICKET, "type": "crm"}, WRITE),
    "another action": ({**TICKET, "actions": ["read"]}, WRITE),
    "an action that holds ours": ({**TICKET, "actions": ["write_tickets"]}, WRITE),
    "actions a text": ({**TICKET, "actions": "write_ticket"}, WRITE),
    "actions an object": ({**TICKET, "actions": {"write_ticket": True}}, WRITE),
    "actions with another thing": ({**TICKET, "actions": ["write_ticket", 1]}, WRITE),
    "no actions": ({"type": "crm_record", "identifier": "1234"}, WRITE),
    "another identifier": ({**TICKET, "identifier": "12345"}, WRITE),
    "identifier a number": ({**TICKET, "identifier": 1234}, WRITE),
    "identifier null": ({**TICKET, "identifier": None}, replace(WRITE, identifier=None)),
    "no identifier": ({"type": "crm_record", "actions": ["write_ticket"]}, WRITE),
    "limited to an identifier": (TICKET, replace(WRITE, identifier=None)),
    "limited to a location": ({**TICKET, "locations": [AUDIENCE]}, WRITE),
    "limited to no location": ({**TICKET, "locations": []}, WRITE),
    "another location": ({**TICKET, "locations": ["x"]}, replace(WRITE, locations=frozenset({AUDIENCE}))),
    "no location": (TICKET, replace(WRITE, locations=frozenset({AUDIENCE}))),
    "one of two data types": ({**TICKET, "datatypes": ["a"]}, replace(WRITE, datatypes=frozenset({"a", "b"}))),
    "data types a text": ({**TICKET, "datatypes": "a"}, replace(WRITE, datatypes=frozenset({"a"}))),
    "another privilege": ({**TICKET, "privileges": ["user"]}, replace(WRITE, privileges=frozenset({"admin"}))),
    "a member that nobody knows": ({**TICKET, "until": "tomorrow"}, WRITE),
    "a member that is judged": ({**TICKET, "n": 3}, replace(WRITE, understood={"n": even})),
    "a judge that does not say": ({**TICKET, "n": 2}, replace(WRITE, understood={"n": lambda value: 1})),  # type: ignore[dict-item, return-value]
}


@pytest.mark.parametrize(("element", "operation"), NO_MATCH.values(), ids=NO_MATCH)
def test_an_element_that_is_narrower_or_other_than_the_request_permits_nothing(
    element: dict[str, Any], operation: Operation
) -> None:
    assert not element_permits(element, operation)


def test_an_element_that_says_all_of_it_permits_it() -> None:
    assert element_permits(TICKET, WRITE)
    assert element_permits({"type": "t", "actions": ["a"]}, Operation("t", "a"))
    whole: dict[str, Any] = {
        **TICKET,
        "locations": [AUDIENCE, "x"],
        "datatypes": ["a", "b"],
        "privileges": ["admin"],
        "n": 4,
    }
    asked = replace(
        WRITE,
        understood={"n": even},
        locations=frozenset({AUDIENCE}),
        datatypes=frozenset({"a", "b"}),
        privileges=frozenset({"admin"}),
    )
    assert element_permits(whole, asked)


@pytest.mark.parametrize("wrong", [{"understood": {"actions": even}}, {"locations": AUDIENCE}, {"datatypes": "a"}])
def test_an_operation_that_would_be_judged_wrongly_cannot_be_made(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        Operation("t", "a", **wrong)


def test_two_elements_that_permit_a_half_each_permit_nothing_together() -> None:
    here, there = {**TICKET, "identifier": "5"}, {**TICKET, "actions": ["read"]}
    assert not details_permit([here, there], WRITE)
    assert not details_permit([there, here], WRITE)
    assert details_permit([here, there, TICKET], WRITE)
    of_two_places = replace(WRITE, locations=frozenset({"a", "b"}))
    assert not details_permit([{**TICKET, "locations": ["a"]}, {**TICKET, "locations": ["b"]}], of_two_places)


TEXTS = st.sampled_from(["a", "b", "c"])
VALUES = st.one_of(TEXTS, st.lists(TEXTS, max_size=3), st.none(), st.integers(0, 1))
MEMBERS = st.sampled_from(["actions", "identifier", "locations", "datatypes", "privileges", "other"])
LISTS = st.lists(TEXTS, min_size=1, max_size=2)
LIKELY = st.fixed_dictionaries(
    {"type": TEXTS, "actions": LISTS},
    optional={"identifier": TEXTS, "locations": LISTS, "datatypes": LISTS, "other": TEXTS},
)
ELEMENTS = LIKELY | st.dictionaries(MEMBERS, VALUES).map(lambda members: {"type": "a", **members})
SETS = st.frozensets(TEXTS, max_size=2)
OPERATIONS = st.builds(
    Operation, TEXTS, TEXTS, st.none() | TEXTS, locations=SETS, datatypes=SETS, privileges=st.just(frozenset())
)


@given(st.lists(ELEMENTS, max_size=4), OPERATIONS)
def test_several_elements_permit_nothing_that_none_of_them_permits(
    elements: list[dict[str, Any]], operation: Operation
) -> None:
    assert details_permit(elements, operation) == any(details_permit([element], operation) for element in elements)


@given(ELEMENTS, OPERATIONS)
def test_whatever_an_element_permits_it_says(element: dict[str, Any], operation: Operation) -> None:
    if not element_permits(element, operation):
        return
    said = {
        "type": operation.type,
        "identifier": operation.identifier,
        "locations": operation.locations,
        "datatypes": operation.datatypes,
    }
    assert operation.action in element["actions"]
    assert set(element) <= {"actions", *(name for name, value in said.items() if value)}
    for name, value in said.items():
        assert value is None or (value <= set(element.get(name, ())) if isinstance(value, frozenset) else True)
        assert not isinstance(value, str) or element[name] == value

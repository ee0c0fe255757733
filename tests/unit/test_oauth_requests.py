"""What the token endpoint understands of a request, without any server: forms, wishes, and errors in its words."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from exchanges import GRANT, JWT
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import AgentBlocked, BudgetSpent, LedgerError, PolicyDenied, TaskEnded
from orchestrator.grants.scope import Scope, scope_from_json
from orchestrator.grants.wish import NO_WISH, Wish
from orchestrator.runs.calls import call_digest, recorded_digest
from orchestrator.server.api.oauth.errors import Code, OAuthError, oauth_error_of
from orchestrator.server.api.oauth.exchange import Exchange, agreed, exchange_of
from orchestrator.server.api.oauth.forms import Form, parsed
from orchestrator.tasks.errors import KeyUsed

SCOPE = Scope("crm", "token", "transit/sign/k", 60, audience="crm", scopes=("read", "write"))
DETAILS = json.dumps([{"type": "tool_call", "task": "t", "tool": "u", "arguments": {"a": 1}}])
GOOD = {"grant_type": GRANT, "subject_token": "s", "subject_token_type": JWT, "authorization_details": DETAILS}


def wish(**changes: Any) -> Exchange:
    return replace(Exchange("s", None, "t", "u", {}, None, ()), **changes)


class TestForms:
    def test_the_example_of_the_standard_is_read(self) -> None:
        """RFC 8693, 2.3."""
        body = (
            b"grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Atoken-exchange"
            b"&resource=https%3A%2F%2Fbackend.example.com%2Fapi"
            b"&subject_token=accVkjcJyb4BWCxGsndESCJQbdFMogUC5PbRDqceLTC"
            b"&subject_token_type=urn%3Aietf%3Aparams%3Aoauth%3Atoken-type%3Aaccess_token"
        )
        form = parsed(body, several=frozenset({"resource"}))
        assert form.one("grant_type") == GRANT
        assert form.several("resource") == ("https://backend.example.com/api",)
        with pytest.raises(OAuthError) as refused:
            exchange_of(form)
        assert refused.value.code is Code.INVALID_DETAILS, "nothing is issued that is for no task"

    @pytest.mark.parametrize(
        "body", [b"a=%", b"a=%f", b"a=%ff", b"a=\xff", b"a=1&a=2", b"a=1&a=", b"&".join([b"a=1"] * 41)]
    )
    def test_what_can_be_read_in_two_ways_is_not_read(self, body: bytes) -> None:
        with pytest.raises(OAuthError) as refused:
            parsed(body)
        assert (refused.value.code, refused.value.status) == (Code.INVALID_REQUEST, 400)

    def test_what_has_no_value_is_as_if_it_were_not_there(self) -> None:
        form = parsed(b"a=&b=1&c", several=frozenset({"b"}))
        assert (form.one("a"), form.one("b"), form.one("c"), form.several("d")) == (None, "1", None, ())
        assert "1" not in repr(form)

    @given(st.binary(max_size=200))
    def test_any_body_is_a_form_or_refused(self, body: bytes) -> None:
        try:
            assert isinstance(parsed(body), Form)
        except OAuthError as error:
            assert error.code is Code.INVALID_REQUEST

    @given(st.text(max_size=80) | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(json.dumps))
    def test_any_details_are_understood_or_refused(self, details: str) -> None:
        form = Form({name: (value,) for name, value in {**GOOD, "authorization_details": details}.items()})
        with pytest.raises(OAuthError) as refused:
            exchange_of(form)
        assert refused.value.code is Code.INVALID_DETAILS

    def test_a_good_one_says_what_is_wanted(self) -> None:
        found = exchange_of(Form({**{name: (value,) for name, value in GOOD.items()}, "scope": ("a b",)}))
        assert (found.task, found.tool, found.arguments, found.scopes) == ("t", "u", {"a": 1}, ("a", "b"))
        assert "'s'" not in repr(found), "the subject token"


class TestWishes:
    def test_everything_is_as_in_the_grant_where_nothing_is_wanted(self) -> None:
        assert agreed(SCOPE, wish(scopes=("write", "read", "read")), "") == NO_WISH
        assert NO_WISH.applied(SCOPE) == SCOPE
        assert NO_WISH.as_json() == {}

    @given(st.sets(st.sampled_from(["read", "write", "admin", "Read", ""]), min_size=1))
    def test_a_wish_is_never_more_than_the_grant(self, scopes: set[str]) -> None:
        try:
            given_ = agreed(SCOPE, wish(scopes=tuple(scopes)), "").applied(SCOPE)
        except OAuthError as error:
            assert error.code is Code.INVALID_SCOPE
            assert not scopes <= set(SCOPE.scopes)
        else:
            assert set(given_.scopes) == scopes <= set(SCOPE.scopes)

    @pytest.mark.parametrize("profile", ["workflow", "identity"])
    def test_claims_that_are_fixed_in_the_server_are_not_changed(self, profile: str) -> None:
        fixed = replace(SCOPE, profile=profile)
        assert agreed(fixed, wish(scopes=("read", "write")), "") == NO_WISH
        with pytest.raises(OAuthError) as refused:
            agreed(fixed, wish(scopes=("read",)), "")
        assert refused.value.code is Code.INVALID_SCOPE
        with pytest.raises(OAuthError) as refused:
            agreed(fixed, wish(), "thumb")
        assert (refused.value.code, "fixed in the server" in refused.value.description) == (Code.INVALID_PROOF, True)
        with pytest.raises(ValueError, match="fixed"):
            Wish(thumbprint="thumb").applied(fixed)

    def test_only_tokens_are_narrowed(self) -> None:
        login = Scope("db", "database", "database/creds/x", 60)
        assert NO_WISH.applied(login) == login
        with pytest.raises(ValueError, match="no token"):
            Wish(("read",)).applied(login)
        with pytest.raises(ValueError, match="no such scope"):
            Wish(()).applied(SCOPE)

    def test_the_key_is_part_of_what_policies_and_the_ledger_see(self) -> None:
        bound = Wish(("read",), "thumb").applied(SCOPE)
        assert bound.as_json()["cnf"] == {"jkt": "thumb"}
        assert scope_from_json(bound.as_json()) == bound
        assert "bound to a key" in bound.describe()
        assert "cnf" not in SCOPE.as_json()

    def test_another_wish_is_another_call(self) -> None:
        wishes = [NO_WISH, Wish(("read",)), Wish(("read",), "a"), Wish(None, "a"), Wish(None, "b")]
        digests = [call_digest({"a": 1}, each.as_json()) for each in wishes]
        assert len(set(digests)) == len(wishes)
        recorded = [recorded_digest({"call": {"a": 1}, "token": each.as_json()}) for each in wishes]
        assert recorded == digests
        assert recorded_digest({"call": {"a": 1}}) == digests[0], "as calls were recorded before there were wishes"
        assert recorded_digest({}) == recorded_digest({"call": 1}) == ""


class TestErrors:
    @pytest.mark.parametrize(
        ("error", "code", "status", "problem"),
        [
            (TaskEnded("over"), "invalid_grant", 400, "task-ended"),
            (BudgetSpent("spent"), "access_denied", 400, "budget-spent"),
            (AgentBlocked("cut off"), "unauthorized_client", 400, "agent-cut-off"),
            (PolicyDenied("no", reasons=("r",)), "access_denied", 400, "denied"),
            (KeyUsed("used"), "invalid_request", 400, "idempotency-key-used"),
            (LedgerError("postgresql://secret"), "temporarily_unavailable", 503, "unavailable"),
            (KeyError("secret"), "server_error", 500, "defect"),
        ],
    )
    def test_each_is_the_same_problem_in_other_words(
        self, error: Exception, code: str, status: int, problem: str
    ) -> None:
        answer = oauth_error_of(error).response()
        body = json.loads(bytes(answer.body))
        assert (answer.status_code, body["error"]) == (status, code)
        assert body["problem"] == f"urn:credential-orchestrator:problem:{problem}"
        assert b"secret" not in bytes(answer.body)

    @given(st.text(max_size=60))
    def test_a_description_holds_only_what_it_may(self, text: str) -> None:
        body = json.loads(bytes(OAuthError(Code.INVALID_REQUEST, text).response().body))
        assert all(0x20 <= ord(char) <= 0x7E and char not in '"\\' for char in body["error_description"])

"""A token that says nothing by itself: it is what the issuer says of it, and refused for what the issuer leaves out."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.pep.access import AccessToken, access_tokens
from orchestrator.pep.errors import IssuerUnreachable, Reason, TokenRefused
from orchestrator.pep.introspection import described

NOW = 1_800_000_000.0
ISSUER, AUDIENCE = "https://tokens.example", "https://mail.example"
ANSWER = {
    "active": True,
    "iss": ISSUER,
    "aud": AUDIENCE,
    "client_id": "agent",
    "sub": "support@shop.example",
    "iat": int(NOW) - 10,
    "exp": int(NOW) + 60,
    "scope": "mail.read mail.send",
}


def token(**changes: Any) -> AccessToken:
    answer = {name: value for name, value in {**ANSWER, **changes}.items() if value is not None}
    return described(answer, "the-text", access_tokens(ISSUER, AUDIENCE), NOW)


def test_it_is_what_the_issuer_says_of_it() -> None:
    found = token(act={"sub": "agent-7"}, jti="token-1")
    assert (found.issuer, found.subject, found.client_id) == (ISSUER, "support@shop.example", "agent")
    assert (found.scope, found.token_id, found.actor) == ({"mail.read", "mail.send"}, "token-1", {"sub": "agent-7"})


def test_a_client_without_a_subject_acts_for_itself() -> None:
    assert token(sub=None).subject == "agent"


def test_its_id_does_not_give_it_away() -> None:
    assert token().token_id == token().token_id
    assert "the-text" not in token().token_id


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"active": False}, Reason.REVOKED),
        ({"iss": "https://elsewhere.example"}, Reason.ISSUER),
        ({"iss": None}, Reason.MISSING_CLAIM),
        ({"aud": "https://files.example"}, Reason.AUDIENCE),
        ({"aud": None}, Reason.MISSING_CLAIM),
        ({"exp": int(NOW) - 60}, Reason.EXPIRED),
        ({"exp": None}, Reason.MISSING_CLAIM),
        ({"exp": "soon"}, Reason.CLAIM_TYPE),
        ({"client_id": None}, Reason.MISSING_CLAIM),
        ({"client_id": None, "sub": None}, Reason.MISSING_CLAIM),
        ({"sub": ["support@shop.example"]}, Reason.CLAIM_TYPE),
    ],
)
def test_it_is_refused_where_it_is_not_what_is_expected(changes: dict[str, Any], reason: Reason) -> None:
    with pytest.raises(TokenRefused) as refused:
        token(**changes)
    assert refused.value.reason is reason


@pytest.mark.parametrize("active", [None, "true", 1])
def test_what_is_no_clear_answer_is_none(active: Any) -> None:
    with pytest.raises(IssuerUnreachable):
        token(active=active)

"""What an admin declares of an authorization server, what a grant may ask of it, and reading its answers: pure."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given as cases
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from orchestrator.actions.catalog import catalog
from orchestrator.credentials.faults import IssuerUnavailable
from orchestrator.credentials.issuers.oauth2.answer import given, problem
from orchestrator.credentials.issuers.oauth2.endpoint import Form, without_echo
from orchestrator.credentials.issuers.oauth2.metadata import metadata_url
from orchestrator.errors import UsageError
from orchestrator.grants.scope import Scope
from orchestrator.issuers.declared import Issuers, load_issuers
from orchestrator.issuers.oauth2 import OAuth2Server, beyond
from orchestrator.secret import Secret
from orchestrator.workflow.loader import load_text

DOCUMENT = (Path(__file__).parents[2] / "docs" / "oauth2.md").read_text()
BLOCKS = re.findall(r"```yaml\n(.*?)```", DOCUMENT, re.DOTALL)
NOW = 1_800_000_000.0
KEY = {"name": "k", "algorithm": "ES256"}
SERVER: dict[str, Any] = {
    "kind": "oauth2",
    "issuer": "https://auth.example",
    "token_endpoint": "https://auth.example/token",
    "flow": "client_credentials",
    "client": {"id": "us", "method": "private_key_jwt", "key": KEY},
    "scopes": ["read", "write"],
    "resources": ["https://files.example"],
}


def server(**parts: Any) -> OAuth2Server:
    return OAuth2Server.model_validate({**SERVER, **parts})


def scope(**parts: Any) -> Scope:
    return Scope(**{"name": "api", "kind": "oauth2", "resource": "oauth2/x", "ttl": 60, "scopes": ("read",), **parts})


def jwt(**claims: Any) -> str:
    def part(value: Any) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    return f"{part({'alg': 'ES256'})}.{part(claims)}.AAAA"


def answer(**parts: Any) -> dict[str, Any]:
    return {"access_token": "opaque", "token_type": "Bearer", "expires_in": 60, "scope": "read", **parts}


def test_every_recipe_of_the_document_is_a_declaration() -> None:
    recipes = [yaml.safe_load(block)["issuers"] for block in BLOCKS if block.startswith("issuers:")]
    assert len(recipes) == 6
    for recipe in recipes:
        TypeAdapter(Issuers).validate_python(recipe)


def test_the_first_example_of_the_document_is_a_workflow() -> None:
    workflow = load_text(BLOCKS[0], filename="example.yaml", actions=catalog).workflow
    assert workflow.steps["list"].grants["mail"].kind == "oauth2"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"issuer": "http://auth.example"}, "over https"),
        ({"discovery": "oauth"}, "either `discovery` or a `token_endpoint`"),
        ({"token_endpoint": None}, "either `discovery` or a `token_endpoint`"),
        ({"flow": "jwt_bearer"}, "`assertion` belongs to"),
        ({"assertion": {"key": KEY}}, "`assertion` belongs to"),
        ({"flow": "token_exchange", "assertion": {}}, "signed by a `key`"),
        ({"flow": "token_exchange", "assertion": {"identity_role": "r", "subjects": ["a"]}}, "fixed in Vault"),
        ({"flow": "refresh_token"}, "`refresh_token` belongs to"),
        ({"client": {"id": "us", "method": "none"}}, "can show who it is"),
        ({"client": {"id": "us", "method": "private_key_jwt"}}, "takes a `key`"),
        ({"client": {"id": "us", "method": "client_secret_post", "key": KEY}}, "takes a `secret`"),
        ({"client": {"id": "us", "method": "none", "key": KEY}}, "neither"),
        ({"client": {"id": "us", "method": "client_secret_jwt", "key": KEY}}, "signed with HS256"),
        ({"parameters": {"scope": "everything"}}, "cannot have scope"),
        ({"parameters": {"client_secret": "x"}}, "cannot have client_secret"),
        ({"scopes": ["two words"]}, "should match pattern"),
        ({"resources": ["files.example"]}, "absolute URI"),
    ],
)
def test_a_declaration_that_says_two_things_or_none_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(said)):
        server(**change)


def test_what_is_wrong_with_a_file_is_told_with_its_place(tmp_path: Path) -> None:
    file = tmp_path / "declarations.yaml"
    file.write_text(yaml.safe_dump({"version": 1, "issuers": {"files": {**SERVER, "flow": "password"}}}))
    with pytest.raises(UsageError, match="flow"):
        load_issuers(file)
    file.write_text("issuers: [")
    with pytest.raises(UsageError):
        load_issuers(file)
    file.write_text("version: 1\n")
    assert load_issuers(file) == {}


def test_metadata_are_where_the_standards_have_them() -> None:
    kept = {"token_endpoint": None}
    oauth = server(**kept, discovery="oauth", issuer="https://auth.example/tenant")
    assert metadata_url(oauth) == "https://auth.example/.well-known/oauth-authorization-server/tenant"
    oidc = server(**kept, discovery="oidc", issuer="https://auth.example/tenant/")
    assert metadata_url(oidc) == "https://auth.example/tenant/.well-known/openid-configuration"


@pytest.mark.parametrize(
    ("parts", "more"),
    [
        ({"scopes": ("read", "delete")}, "the scope `delete`"),
        ({"audience": "https://other.example"}, "the resource `https://other.example`"),
        ({"details": ({"type": "file"},)}, "details of the type `file`"),
        ({"subject": "boss"}, "a token on behalf of `boss`"),
        ({"subject": "${{ inputs.who }}"}, None),
        ({"audience": "https://files.example"}, None),
        ({}, None),
    ],
)
def test_a_grant_asks_for_what_is_declared_and_for_nothing_beyond(parts: dict[str, Any], more: str | None) -> None:
    assert beyond(server(), scope(**parts)) == more


RIGHT = [
    ("as asked", {}, {}, {}),
    ("in another order", {"scope": "write read"}, {"scopes": ("read", "write")}, {}),
    ("a number as a text", {"expires_in": "60"}, {}, {}),
    ("a JWT that says the same", {"access_token": jwt(exp=NOW + 60, scope="read")}, {}, {}),
    ("no scope, and the issuer is known for it", {"scope": None}, {}, {"scope_in": "unsaid"}),
    ("roles in the token", {"access_token": jwt(roles=["read"]), "scope": "other"}, {}, {"scope_in": "token"}),
    ("scp in the token", {"access_token": jwt(scp="read write")}, {"scopes": ("read", "write")}, {"scope_in": "token"}),
    ("an audience in a list", {"access_token": jwt(aud=["a:b"])}, {"audience": "a:b"}, {}),
    ("bound", {"token_type": "DPoP"}, {"proof": "dpop"}, {}),
    ("details", {"authorization_details": [{"b": 1, "type": "t"}]}, {"details": ({"type": "t", "b": 1},)}, {}),
]
WRONG = [
    ("more", {"scope": "read write"}, {}, {}, "more than was asked for: `write`"),
    ("less", {"scope": ""}, {}, {}, "less than was asked for: without `read`"),
    ("not a text", {"scope": 7}, {}, {}, "more than was asked for: `(not a text)`"),
    ("unsaid", {"scope": None}, {}, {}, "does not say which scope"),
    ("unsaid in the token", {}, {}, {"scope_in": "token"}, "does not say which scope"),
    ("said otherwise although it may be unsaid", {"scope": "all"}, {}, {"scope_in": "unsaid"}, "more than"),
    ("more by another claim", {"access_token": jwt(scp="read", roles=["admin"])}, {}, {"scope_in": "token"}, "`admin`"),
    ("without an end", {"expires_in": None}, {}, {}, "does not say how long"),
    ("an end that has been", {"expires_in": 0}, {}, {}, "does not say how long"),
    ("true seconds", {"expires_in": True}, {}, {}, "does not say how long"),
    ("longer", {"expires_in": 66}, {}, {}, "longer than the grant's 60s"),
    ("longer by its own claim", {"access_token": jwt(exp=NOW + 3600)}, {}, {}, "for 3600s"),
    ("another type", {"token_type": "mac"}, {}, {}, "of the type `mac`"),
    ("not bound", {}, {"proof": "dpop"}, {}, "of the type `bearer`, not `dpop`"),
    ("bound although nobody asked", {"token_type": "DPoP"}, {}, {}, "of the type `dpop`, not `bearer`"),
    ("for another service", {"access_token": jwt(aud="x:y")}, {"audience": "a:b"}, {}, "another service"),
    ("for two services", {"access_token": jwt(aud=["a:b", "x:y"])}, {"audience": "a:b"}, {}, "another service"),
    ("other details", {"authorization_details": [{"type": "u"}]}, {"details": ({"type": "t"},)}, {}, "other `auth"),
    ("details nobody asked for", {"authorization_details": [{"type": "u"}]}, {}, {}, "other `authorization_details`"),
    ("details unsaid", {}, {"details": ({"type": "t"},)}, {}, "other `authorization_details`"),
    ("a refresh token", {"refresh_token": "r"}, {}, {}, "nobody asked for"),
]


@pytest.mark.parametrize(("said", "asked", "declared"), [each[1:] for each in RIGHT], ids=[each[0] for each in RIGHT])
def test_an_answer_is_taken_that_gives_what_was_asked_for(
    said: dict[str, Any], asked: dict[str, Any], declared: dict[str, Any]
) -> None:
    assert problem(scope(**asked), server(**declared), given(answer(**said), NOW)) is None


@pytest.mark.parametrize(
    ("said", "asked", "declared", "told"), [each[1:] for each in WRONG], ids=[each[0] for each in WRONG]
)
def test_an_answer_that_gives_anything_else_is_not_taken(
    said: dict[str, Any], asked: dict[str, Any], declared: dict[str, Any], told: str
) -> None:
    found = problem(scope(**asked), server(**declared), given(answer(**said), NOW))
    assert found is not None
    assert told in found[0]


@pytest.mark.parametrize("token", [None, "", 7, "two words", "näh", "line\nbreak"])
def test_an_answer_without_a_token_is_of_unknown_outcome(token: Any) -> None:
    with pytest.raises(IssuerUnavailable):
        given(answer(access_token=token), NOW)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
NAMES = ("scope", "token_type", "expires_in", "refresh_token", "authorization_details", "id_token")


@cases(st.dictionaries(st.sampled_from(NAMES), JSON), st.dictionaries(st.sampled_from(("exp", "aud", "scp")), JSON))
def test_whatever_else_an_answer_holds_it_is_read_or_refused_and_never_more_is_given(
    said: dict[str, Any], claims: dict[str, Any]
) -> None:
    asked = scope()
    found = given(answer(**said, access_token=jwt(**claims)), NOW)
    if problem(asked, server(), found) is None:
        assert set(str(found.document["scope"]).split()) == set(asked.scopes)
        assert 0 < found.seconds <= asked.ttl + 5
        assert found.kind == "bearer"


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("client authentication failed", True),
        ("we do not know the secret QZJXQZJX of you", False),
        ("the header Basic b3JjaGVzdHJhdG9y is wrong", False),
        ("", True),
    ],
)
def test_an_error_that_repeats_what_was_secret_is_told_by_its_code_alone(said: str, kept: bool) -> None:
    headers: dict[str, str | Secret] = {"authorization": Secret("Basic b3JjaGVzdHJhdG9y"), "accept": "json"}
    form = Form((("client_id", "us"), ("client_secret", Secret("QZJXQZJX"))), headers)
    document = {"error": "invalid_client", "error_description": said}
    found = without_echo(document, form)
    assert found == (document if kept else {"error": "invalid_client"})

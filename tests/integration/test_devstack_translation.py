"""The translation API and the token issuer: tokens signed inside a real transit engine, right ones and wrong ones."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from joserfc import jwt
from joserfc.jwk import ECKey, KeySet, OctKey
from transit_signer import Signer, encode

from orchestrator.devstack.admin import VaultAdmin
from orchestrator.devstack.stack import AUDIENCE, TOKEN_KEY, StackInfo
from orchestrator.vault.jwks import jwks_from_transit, key_id

_BODY = {"target": "en", "messages": [{"id": 7, "comment": "ขอบคุณค่ะ"}]}


@pytest.fixture
def vault(stack: StackInfo) -> VaultAdmin:
    return VaultAdmin(stack.vault_address, stack.root_token)


@pytest.fixture
def signer(stack: StackInfo, vault: VaultAdmin) -> Signer:
    return Signer(vault, stack.issuer_url)


@pytest.fixture
def other_key(vault: VaultAdmin) -> Iterator[str]:
    vault.request("POST", "transit/keys/somebody-else", {"type": "ecdsa-p256"})
    yield "somebody-else"
    vault.request("POST", "transit/keys/somebody-else/config", {"deletion_allowed": True})
    vault.request("DELETE", "transit/keys/somebody-else")


@pytest.fixture
def api(stack: StackInfo) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=stack.translation_url, trust_env=False) as client:
        yield client


def _translate(api: httpx.Client, token: str, body: Any = _BODY) -> httpx.Response:
    return api.post("/v1/translate", json=body, headers={"Authorization": f"Bearer {token}"})


def _assert_refused(response: httpx.Response, because: str) -> None:
    assert response.status_code == 401
    challenge = f'Bearer realm="translation", error="invalid_token", error_description="{because}"'
    assert response.headers["WWW-Authenticate"] == challenge
    assert "translations" not in response.json()


def test_a_token_for_this_audience_with_the_scope_is_accepted(api: httpx.Client, signer: Signer) -> None:
    response = _translate(api, signer.token())
    assert response.status_code == 200
    assert response.json() == {"translations": [{"id": 7, "language": "en", "text": "[glossed] thank you (polite)"}]}


def test_several_audiences_and_several_scopes_are_accepted_if_ours_are_among_them(
    api: httpx.Client, signer: Signer
) -> None:
    token = signer.token(aud=["billing", AUDIENCE], scope="profile translate")
    assert _translate(api, token).status_code == 200


def test_a_request_without_a_token_is_challenged_without_an_error_code(api: httpx.Client) -> None:
    response = api.post("/v1/translate", json=_BODY)
    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"] == 'Bearer realm="translation"'


@pytest.mark.parametrize("scope", ["glossary:write", "translate-all", "TRANSLATE", "", None, ["translate"]])
def test_a_token_without_the_scope_is_forbidden_and_told_which_one_is_needed(
    api: httpx.Client, signer: Signer, scope: Any
) -> None:
    response = _translate(api, signer.token(scope=scope))
    assert response.status_code == 403
    assert 'error="insufficient_scope"' in response.headers["WWW-Authenticate"]
    assert 'scope="translate"' in response.headers["WWW-Authenticate"]


@pytest.mark.parametrize(
    ("changes", "because"),
    [
        ({"aud": "billing"}, "the token is for another audience"),
        ({"aud": ["billing", "crm"]}, "the token is for another audience"),
        ({"aud": None}, "the token lacks a required claim"),
        ({"iss": "https://issuer.example"}, "the token is of another issuer"),
        ({"iss": None}, "the token lacks a required claim"),
        ({"exp": 1}, "the token has expired"),
        ({"exp": None}, "the token lacks a required claim"),
        ({"exp": "tomorrow"}, "the token has expired"),
        ({"nbf": 4102444800}, "the token is not valid yet"),
        ({"sub": None}, "the token lacks a required claim"),
        ({"jti": None}, "the token lacks a required claim"),
        ({"client_id": None}, "the token lacks a required claim"),
    ],
)
def test_a_token_with_wrong_claims_is_refused(
    api: httpx.Client, signer: Signer, changes: dict[str, Any], because: str
) -> None:
    _assert_refused(_translate(api, signer.token(**changes)), because)


@pytest.mark.parametrize("kind", ["JWT", "id_token+jwt", None])
def test_a_signed_token_that_is_no_access_token_is_refused(api: httpx.Client, signer: Signer, kind: str | None) -> None:
    _assert_refused(_translate(api, signer.token(header={"typ": kind})), "this is not an access token")


def test_a_token_that_was_changed_after_signing_is_refused(api: httpx.Client, signer: Signer) -> None:
    header, _, signature = signer.token(scope="nothing").split(".")
    forged = f"{header}.{encode(signer.claims(scope='translate'))}.{signature}"
    _assert_refused(_translate(api, forged), "the signature cannot be verified")


@pytest.mark.parametrize("algorithm", ["none", "None", "nOnE"])
def test_an_unsigned_token_is_refused(api: httpx.Client, signer: Signer, algorithm: str) -> None:
    header = {"alg": algorithm, "typ": "at+jwt", "kid": key_id(TOKEN_KEY, 1)}
    token = f"{encode(header)}.{encode(signer.claims())}."
    _assert_refused(_translate(api, token), "the signature cannot be verified")


def test_the_public_key_used_as_a_shared_secret_is_refused(
    api: httpx.Client, signer: Signer, vault: VaultAdmin
) -> None:
    public = vault.request("GET", f"transit/keys/{TOKEN_KEY}")["data"]["keys"]["1"]["public_key"]
    secret = OctKey.import_key(base64.urlsafe_b64encode(public.encode()).decode())
    header = {"alg": "HS256", "typ": "at+jwt", "kid": key_id(TOKEN_KEY, 1)}
    token = jwt.encode(header, signer.claims(), secret, algorithms=["HS256"])
    _assert_refused(_translate(api, token), "the signature cannot be verified")


def test_a_token_of_another_key_of_the_same_vault_is_refused(api: httpx.Client, signer: Signer, other_key: str) -> None:
    because = "the signature cannot be verified"
    _assert_refused(_translate(api, signer.token(key=other_key)), because)
    named_like_ours = {"kid": key_id(TOKEN_KEY, 1)}
    _assert_refused(_translate(api, signer.token(key=other_key, header=named_like_ours)), because)


def test_a_key_that_the_token_brings_along_is_not_believed(api: httpx.Client, signer: Signer) -> None:
    mine = ECKey.generate_key("P-256")
    header = {"alg": "ES256", "typ": "at+jwt", "jwk": mine.as_dict(private=False), "kid": key_id(TOKEN_KEY, 1)}
    _assert_refused(_translate(api, jwt.encode(header, signer.claims(), mine)), "the signature cannot be verified")


@pytest.mark.parametrize("token", ["x", "a.b.c", "....", "é.é.é".encode().decode("latin-1")])
def test_a_token_that_is_none_is_refused(api: httpx.Client, token: str) -> None:
    response = api.post("/v1/translate", json=_BODY, headers={b"Authorization": f"Bearer {token}".encode("latin-1")})
    _assert_refused(response, "the signature cannot be verified")


def test_a_key_rotated_after_the_service_learnt_the_keys_is_found(
    api: httpx.Client, signer: Signer, vault: VaultAdmin
) -> None:
    before = signer.token()
    assert _translate(api, before).status_code == 200
    vault.request("POST", f"transit/keys/{TOKEN_KEY}/rotate")
    after = signer.token()
    assert jwt_header(after)["kid"] != jwt_header(before)["kid"]
    assert _translate(api, after).status_code == 200
    assert _translate(api, before).status_code == 200


def jwt_header(token: str) -> dict[str, Any]:
    encoded = token.partition(".")[0]
    return dict(json.loads(base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))))


def test_writing_the_glossary_needs_a_scope_of_its_own(api: httpx.Client, signer: Signer) -> None:
    def define(scope: str) -> httpx.Response:
        headers = {"Authorization": f"Bearer {signer.token(scope=scope)}"}
        return api.put("/v1/glossary/zzz", json={"meaning": "sleep"}, headers=headers)

    refused = define("translate")
    assert refused.status_code == 403
    assert 'scope="glossary:write"' in refused.headers["WWW-Authenticate"]
    assert define("glossary:write").status_code == 204
    response = _translate(api, signer.token(), {"messages": [{"id": "a", "text": "zzz"}]})
    assert response.json()["translations"][0]["text"] == "[glossed] sleep"


@pytest.mark.parametrize("body", [{}, {"messages": [{"id": 1}]}, {"messages": "all"}, [], "text"])
def test_a_malformed_body_is_a_bad_request(api: httpx.Client, signer: Signer, body: Any) -> None:
    assert _translate(api, signer.token(), body).status_code == 400


def test_planned_failures_come_as_often_as_planned_and_say_when_to_retry(
    stack: StackInfo, api: httpx.Client, signer: Signer
) -> None:
    admin = {"X-Admin-Token": stack.admin_token.reveal()}
    api.post("/_admin/fail-next", json={"status": 429, "times": 2, "retry_after": 1}, headers=admin).raise_for_status()
    answers = [_translate(api, signer.token()) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [429, 429, 200]
    assert [answer.headers.get("Retry-After") for answer in answers] == ["1", "1", None]


def test_the_back_door_does_not_exist_for_those_without_its_token(stack: StackInfo) -> None:
    for url in (stack.translation_url, stack.slack_url):
        for headers in ({}, {"X-Admin-Token": "guess"}):
            assert httpx.get(f"{url}/_admin/state", headers=headers, trust_env=False).status_code == 404
            wish = {"status": 500}
            answer = httpx.post(f"{url}/_admin/fail-next", json=wish, headers=headers, trust_env=False)
            assert answer.status_code == 404


def test_the_back_door_shows_who_called(stack: StackInfo, api: httpx.Client, signer: Signer) -> None:
    _translate(api, signer.token(jti="lease-seen"))
    state = api.get("/_admin/state", headers={"X-Admin-Token": stack.admin_token.reveal()}).json()
    assert {"sub": "feedback-assistant", "jti": "lease-seen", "messages": 1} in state["calls"]


def test_the_issuer_publishes_its_metadata_and_public_keys_only(stack: StackInfo) -> None:
    metadata = httpx.get(f"{stack.issuer_url}/.well-known/oauth-authorization-server", trust_env=False).json()
    assert metadata["issuer"] == stack.issuer_url
    keys = httpx.get(metadata["jwks_uri"], trust_env=False).json()["keys"]
    assert {key["alg"] for key in keys} == {"ES256"}
    assert all("d" not in key for key in keys)


@pytest.mark.parametrize(("kind", "algorithm"), [("ecdsa-p256", "ES256"), ("ed25519", "EdDSA")])
def test_the_jwks_of_a_transit_key_verifies_what_every_version_of_it_signs(
    vault: VaultAdmin, signer: Signer, kind: str, algorithm: str
) -> None:
    name = f"jwks-{kind}"
    vault.request("POST", f"transit/keys/{name}", {"type": kind})
    tokens = [signer.token(key=name)]
    vault.request("POST", f"transit/keys/{name}/rotate")
    tokens.append(signer.token(key=name))
    jwks = jwks_from_transit(name, vault.request("GET", f"transit/keys/{name}"))
    assert [key["kid"] for key in jwks["keys"]] == [key_id(name, 2), key_id(name, 1)]
    assert {key["alg"] for key in jwks["keys"]} == {algorithm}
    for token in tokens:
        decoded = jwt.decode(token, KeySet.import_key_set(jwks), algorithms=[algorithm])  # type: ignore[arg-type]
        assert decoded.claims["aud"] == AUDIENCE


def test_the_token_of_the_issuer_reads_the_signing_key_and_nothing_else(vault: VaultAdmin) -> None:
    from orchestrator.devstack.stack import _jwks_reader

    reader = VaultAdmin(vault.address, _jwks_reader(vault))
    assert reader.request("GET", f"transit/keys/{TOKEN_KEY}")["data"]["name"] == TOKEN_KEY
    attempts = [
        ("POST", f"transit/sign/{TOKEN_KEY}", {"input": "YQ=="}),
        ("GET", "secret/data/slack/support-bot", None),
        ("GET", "auth/token/lookup-self", None),
        ("POST", "auth/token/create", {}),
    ]
    for method, path, payload in attempts:
        with pytest.raises(httpx.HTTPStatusError) as refused:
            reader.request(method, path, payload)
        assert refused.value.response.status_code == 403

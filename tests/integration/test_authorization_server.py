"""The authorization server: every grant that it knows, what it refuses, and everything that it can do wrong."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from authorization import (
    ALICE,
    ASSERTIONS,
    CLIENT_KEY,
    CONFIGURATION,
    FILES,
    GRANT,
    MAIL,
    PEOPLE,
    PEOPLE_KEY,
    READ,
    ROBOT,
    SECRETS,
    SEND,
    SHORT,
    SUPPORT,
    TOKEN_TYPE,
    claims_of,
    client_assertion,
    hmac_assertion,
    person,
    proof,
    robot,
    sha256,
)
from joserfc.jwk import ECKey
from pep_issuer import issuer_server, json_of
from waiting import wait_for

from orchestrator.clock import SystemClock
from orchestrator.devstack.authorization.misbehaviours import Endpoint, Kind, Misbehaviour
from orchestrator.devstack.authorization.server import AuthorizationServer
from orchestrator.pep.access import AccessToken, access_tokens
from orchestrator.pep.sources import IssuerKeys, verify_by

BASIC = ("basic", SECRETS["basic"])
REFRESHER = ("refresher", SECRETS["refresher"])
Form = dict[str, Any]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AuthorizationServer]:
    with AuthorizationServer(tmp_path_factory.mktemp("authorization"), CONFIGURATION) as server:
        yield server


@pytest.fixture
def server(running: AuthorizationServer) -> Iterator[AuthorizationServer]:
    yield running
    running.behave()


@pytest.fixture
def http(server: AuthorizationServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.issuer, trust_env=False) as client:
        yield client


def credentials_form(scope: str = "read", resource: str = FILES, **more: Any) -> Form:
    return {"grant_type": "client_credentials", "scope": scope, "resource": resource, **more}


def granted(answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    assert answer.headers["cache-control"] == "no-store"
    document: dict[str, Any] = answer.json()
    return document


def refused(answer: httpx.Response) -> tuple[int, str]:
    assert answer.status_code >= 400
    return answer.status_code, answer.json()["error"]


def introspected(http: httpx.Client, token: str, auth: tuple[str, str] = ("guard", SECRETS["guard"])) -> dict[str, Any]:
    return granted(http.post("/token/introspection", auth=auth, data={"token": token}))


def test_the_metadata_say_what_the_server_can(server: AuthorizationServer, http: httpx.Client) -> None:
    about = http.get("/.well-known/oauth-authorization-server").json()
    assert about["issuer"] == server.issuer
    assert about["token_endpoint"] == server.token_endpoint
    assert about["introspection_endpoint"] == server.introspection_endpoint
    assert about["revocation_endpoint"] == server.revocation_endpoint
    assert about["jwks_uri"] == server.jwks_uri
    wanted = {"client_credentials", "refresh_token", GRANT + "jwt-bearer", GRANT + "token-exchange"}
    assert wanted <= set(about["grant_types_supported"])
    assert about["authorization_details_types_supported"] == ["file"]
    assert http.get("/.well-known/openid-configuration").json() == about


def test_a_signed_token_is_one_that_services_verify_by_the_public_keys(
    server: AuthorizationServer, http: httpx.Client
) -> None:
    answer = granted(http.post("/token", auth=BASIC, data=credentials_form(READ, MAIL)))
    assert (answer["scope"], answer["token_type"], answer["expires_in"]) == (READ, "Bearer", 300)
    keys = IssuerKeys.discovered(server.issuer)
    claims = asyncio.run(verify_by(answer["access_token"], keys, access_tokens(server.issuer, MAIL), SystemClock()))
    token = AccessToken.of(claims)
    assert (token.subject, token.client_id, token.scope) == ("basic", "basic", frozenset({READ}))


def test_each_way_to_authenticate_gives_a_token(server: AuthorizationServer, http: httpx.Client) -> None:
    form = credentials_form()
    post = {"client_id": "post", "client_secret": SECRETS["post"]}
    for given in (post, hmac_assertion(server.issuer), client_assertion(server.token_endpoint)):
        assert granted(http.post("/token", data={**form, **given}))["scope"] == "read"


def test_a_client_is_believed_once_and_only_with_what_is_its_own(
    server: AuthorizationServer, http: httpx.Client
) -> None:
    once = client_assertion(server.issuer)
    assert http.post("/token", data={**credentials_form(), **once}).status_code == 200
    for given in (
        once,
        client_assertion("https://elsewhere.example"),
        client_assertion(server.issuer, exp=1),
        client_assertion(server.issuer, jti=None),
        client_assertion(server.issuer, iss="basic"),
        hmac_assertion("https://elsewhere.example"),
        {"client_id": "post", "client_secret": "wrong"},
        {"client_id": "nobody", "client_secret": "wrong"},
    ):
        answer = http.post("/token", data={**credentials_form(), **given})
        assert refused(answer) == (401, "invalid_client")
    assert refused(http.post("/token", data=credentials_form())) == (400, "invalid_request")


def test_what_a_client_may_not_have_is_left_out_silently(http: httpx.Client) -> None:
    answer = granted(http.post("/token", auth=BASIC, data=credentials_form(f"{READ} mail.settings", MAIL)))
    assert answer["scope"] == READ
    nothing = granted(http.post("/token", auth=BASIC, data=credentials_form("mail.settings", MAIL)))
    assert "scope" not in nothing


def test_a_resource_is_named_by_the_request_or_by_the_client(http: httpx.Client) -> None:
    post = {"client_id": "post", "client_secret": SECRETS["post"]}
    answer = granted(http.post("/token", data={"grant_type": "client_credentials", "scope": "read", **post}))
    assert introspected(http, answer["access_token"])["aud"] == FILES
    unknown = http.post("/token", auth=BASIC, data=credentials_form(resource="https://unknown.example/"))
    assert refused(unknown) == (400, "invalid_target")


def test_authorization_details_are_granted_as_they_are_asked_for(
    server: AuthorizationServer, http: httpx.Client
) -> None:
    details = [{"type": "file", "actions": ["read"], "identifier": "report", "locations": ["https://files.example/eu"]}]
    form = credentials_form(authorization_details=json.dumps(details), **hmac_assertion(server.issuer))
    answer = granted(http.post("/token", data=form))
    assert answer["authorization_details"] == details
    assert introspected(http, answer["access_token"])["authorization_details"] == details


@pytest.mark.parametrize(
    "detail",
    [
        {"type": "file", "actions": ["delete"], "identifier": "report"},
        {"type": "file", "actions": ["read"], "identifier": "payroll"},
        {"type": "file", "actions": ["read"]},
        {"type": "file", "identifier": "report"},
        {"type": "file", "actions": ["read"], "identifier": "report", "until": "noon"},
        {"type": "file", "actions": ["read"], "identifier": "report", "locations": ["https://files.example/us"]},
        {"type": "folder", "actions": ["read"], "identifier": "report"},
    ],
)
def test_details_that_are_not_supported_are_refused(
    server: AuthorizationServer, http: httpx.Client, detail: dict[str, Any]
) -> None:
    form = credentials_form(authorization_details=json.dumps([detail]), **hmac_assertion(server.issuer))
    assert refused(http.post("/token", data=form)) == (400, "invalid_authorization_details")


def test_details_are_for_clients_that_may_have_their_type(http: httpx.Client) -> None:
    detail = json.dumps([{"type": "file", "actions": ["read"], "identifier": "report"}])
    answer = http.post("/token", auth=BASIC, data=credentials_form(authorization_details=detail))
    assert refused(answer) == (400, "invalid_authorization_details")


def exchange(server: AuthorizationServer, **changes: Any) -> Form:
    form = {
        "grant_type": GRANT + "token-exchange",
        "subject_token": person(server.issuer),
        "subject_token_type": TOKEN_TYPE + "jwt",
        "resource": MAIL,
        "scope": READ,
        **client_assertion(server.issuer),
        **changes,
    }
    return {name: value for name, value in form.items() if value is not None}


def test_a_token_is_exchanged_for_one_of_the_mailbox(server: AuthorizationServer, http: httpx.Client) -> None:
    answer = granted(http.post("/token", data=exchange(server)))
    assert answer["issued_token_type"] == TOKEN_TYPE + "access_token"
    said = claims_of(answer["access_token"])
    assert (said["sub"], said["client_id"], said["scope"], said["aud"]) == (SUPPORT, "key", READ, MAIL)
    assert "act" not in said
    by_name = granted(http.post("/token", data=exchange(server, resource=None, audience=MAIL)))
    assert claims_of(by_name["access_token"])["aud"] == MAIL


def test_who_acts_for_the_subject_is_in_the_token(server: AuthorizationServer, http: httpx.Client) -> None:
    actor = person(server.issuer, "agent-7")
    form = exchange(server, actor_token=actor, actor_token_type=TOKEN_TYPE + "jwt", resource=FILES, scope="read")
    answer = granted(http.post("/token", data=form))
    assert introspected(http, answer["access_token"])["act"] == {"iss": PEOPLE, "sub": "agent-7"}
    assert introspected(http, answer["access_token"])["sub"] == SUPPORT


def test_an_exchange_is_refused_where_anything_of_it_is_not_so(server: AuthorizationServer, http: httpx.Client) -> None:
    stranger = ECKey.generate_key("P-256", {"kid": "people"})
    may_act = {"may_act": {"sub": "agent-7"}}
    grant, request = (400, "invalid_grant"), (400, "invalid_request")
    cases: list[tuple[Form, tuple[int, str]]] = [
        ({"subject_token": person(server.issuer, key=stranger)}, grant),
        ({"subject_token": person("https://elsewhere.example")}, grant),
        ({"subject_token": person(server.issuer, exp=1)}, grant),
        ({"subject_token": person(server.issuer, iat=1)}, grant),
        ({"subject_token": person(server.issuer, iss="https://unknown.example")}, grant),
        ({"subject_token": person(server.issuer, "person-9")}, grant),
        ({"subject_token": person(server.issuer, "person-3")}, grant),
        ({"subject_token": person(server.issuer, **may_act)}, grant),
        ({"subject_token": "junk"}, grant),
        ({"subject_token": None}, request),
        ({"subject_token_type": None}, request),
        ({"subject_token_type": TOKEN_TYPE + "saml2"}, request),
        ({"requested_token_type": TOKEN_TYPE + "refresh_token"}, request),
        ({"actor_token": person(server.issuer)}, request),
        ({"audience": "https://unknown.example/"}, (400, "invalid_target")),
        ({"resource": None}, (400, "invalid_target")),
        ({"subject_token": person(server.issuer, "person-2")}, (401, "unauthorized_client")),
        ({"scope": "mail.settings"}, (401, "unauthorized_client")),
    ]
    for changes, wanted in cases:
        assert refused(http.post("/token", data=exchange(server, **changes))) == wanted, changes.keys()


def test_an_actor_is_the_one_that_the_subject_permits(server: AuthorizationServer, http: httpx.Client) -> None:
    permitted = person(server.issuer, may_act={"sub": "agent-7"})
    for agent, status in (("agent-7", 200), ("agent-8", 400)):
        actor = {"actor_token": person(server.issuer, agent), "actor_token_type": TOKEN_TYPE + "jwt"}
        answer = http.post("/token", data=exchange(server, subject_token=permitted, **actor))
        assert answer.status_code == status


def test_an_assertion_alone_is_enough_for_a_service_account(server: AuthorizationServer, http: httpx.Client) -> None:
    form = {"grant_type": GRANT + "jwt-bearer", "assertion": robot(server.token_endpoint)}
    said = claims_of(granted(http.post("/token", data=form))["access_token"])
    assert (said["sub"], said["client_id"], said["scope"], said["aud"]) == (SUPPORT, ROBOT, READ, MAIL)
    assert refused(http.post("/token", data=form)) == (400, "invalid_grant"), "each counts once"


def test_the_scope_of_an_assertion_may_be_a_parameter(server: AuthorizationServer, http: httpx.Client) -> None:
    form = {"grant_type": GRANT + "jwt-bearer", "assertion": person(server.issuer), "scope": SEND, "resource": MAIL}
    answer = granted(http.post("/token", data={**form, **client_assertion(server.issuer)}))
    assert answer["scope"] == SEND
    assert claims_of(answer["access_token"])["sub"] == SUPPORT


def test_an_issuer_is_believed_for_its_use_and_from_its_clients(
    server: AuthorizationServer, http: httpx.Client
) -> None:
    asked = {"grant_type": GRANT + "jwt-bearer", "scope": READ, "resource": MAIL}
    good = person(server.issuer, SUPPORT, iss=ASSERTIONS)
    for assertion, status in ((good, 200), (robot(server.issuer), 400)):
        form = {**asked, "assertion": assertion, **client_assertion(server.issuer)}
        assert http.post("/token", data=form).status_code == status
    assert refused(http.post("/token", data=exchange(server, subject_token=good))) == (400, "invalid_grant")
    actor = {"actor_token": good, "actor_token_type": TOKEN_TYPE + "jwt"}
    assert refused(http.post("/token", data=exchange(server, **actor))) == (400, "invalid_grant")


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"scope": SEND}, (401, "unauthorized_client")),
        ({"subject": ALICE}, (401, "unauthorized_client")),
        ({"subject": "nobody@shop.example"}, (400, "invalid_grant")),
        ({"exp": 1}, (400, "invalid_grant")),
        ({"exp": 9_999_999_999}, (400, "invalid_grant")),
        ({"jti": None}, (400, "invalid_grant")),
        ({"iss": "basic"}, (401, "invalid_client")),
        ({"iss": PEOPLE}, (401, "invalid_client")),
        ({"iss": None}, (400, "invalid_request")),
    ],
)
def test_an_assertion_is_refused_where_it_is_not_delegated(
    server: AuthorizationServer, http: httpx.Client, changes: Form, wanted: tuple[int, str]
) -> None:
    form = {"grant_type": GRANT + "jwt-bearer", "assertion": robot(server.token_endpoint, **changes)}
    assert refused(http.post("/token", data=form)) == wanted


def test_a_refresh_token_gives_access_and_another_refresh_token_once(
    server: AuthorizationServer, http: httpx.Client
) -> None:
    first = server.refresh_token("refresher", SUPPORT, "read write", resource=FILES).reveal()
    form = {"grant_type": "refresh_token", "refresh_token": first}
    answer = granted(http.post("/token", auth=REFRESHER, data={**form, "scope": "read"}))
    assert answer["scope"] == "read"
    assert answer["refresh_token"] != first
    assert introspected(http, answer["access_token"])["sub"] == SUPPORT
    second = {**form, "refresh_token": answer["refresh_token"]}
    assert granted(http.post("/token", auth=REFRESHER, data=second))["scope"] == "read write"
    assert refused(http.post("/token", auth=REFRESHER, data=form)) == (400, "invalid_grant")
    assert introspected(http, answer["access_token"]) == {"active": False}, "reuse revokes the whole family"


def test_a_refresh_token_that_does_not_rotate_stays_the_same(server: AuthorizationServer, http: httpx.Client) -> None:
    token = server.refresh_token("keeper", SUPPORT, "read", resource=FILES).reveal()
    form = {"grant_type": "refresh_token", "refresh_token": token}
    for _ in range(3):
        assert granted(http.post("/token", auth=("keeper", SECRETS["refresher"]), data=form))["refresh_token"] == token
    assert refused(http.post("/token", auth=REFRESHER, data=form)) == (400, "invalid_grant")


def test_a_refresh_token_gives_no_more_than_was_granted(server: AuthorizationServer, http: httpx.Client) -> None:
    token = server.refresh_token("refresher", SUPPORT, "read", resource=FILES).reveal()
    form = {"grant_type": "refresh_token", "refresh_token": token, "scope": "read write"}
    assert refused(http.post("/token", auth=REFRESHER, data=form)) == (400, "invalid_scope")


@pytest.mark.parametrize(
    ("client", "account", "resource"),
    [("nobody", SUPPORT, FILES), ("refresher", "gone@shop.example", FILES), ("refresher", SUPPORT, MAIL + "x")],
)
def test_a_first_refresh_token_is_only_for_what_there_is(
    server: AuthorizationServer, client: str, account: str, resource: str
) -> None:
    with pytest.raises(httpx.HTTPStatusError, match="400"):
        server.refresh_token(client, account, "read", resource=resource)


def test_a_token_is_bound_to_the_key_of_a_proof(server: AuthorizationServer, http: httpx.Client) -> None:
    key = ECKey.generate_key("P-256")
    auth = ("bound", SECRETS["basic"])
    once = proof(key, server.token_endpoint)
    answer = granted(http.post("/token", auth=auth, data=credentials_form(), headers={"DPoP": once}))
    assert answer["token_type"] == "DPoP"
    assert introspected(http, answer["access_token"])["cnf"] == {"jkt": key.thumbprint()}
    for wrong in (once, proof(key, server.issuer), "junk", None):
        given = {} if wrong is None else {"DPoP": wrong}
        assert http.post("/token", auth=auth, data=credentials_form(), headers=given).status_code == 400


def test_an_exchanged_token_is_bound_to_the_key_of_a_proof(server: AuthorizationServer, http: httpx.Client) -> None:
    key = ECKey.generate_key("P-256")
    answer = http.post("/token", data=exchange(server), headers={"DPoP": proof(key, server.token_endpoint)})
    assert granted(answer)["token_type"] == "DPoP"
    assert claims_of(answer.json()["access_token"])["cnf"] == {"jkt": key.thumbprint()}


def test_introspection_tells_the_client_itself_and_the_service_that_the_token_is_for(http: httpx.Client) -> None:
    token = granted(http.post("/token", auth=BASIC, data=credentials_form(resource=SHORT)))["access_token"]
    said = introspected(http, token, BASIC)
    assert (said["active"], said["client_id"], said["aud"]) == (True, "basic", SHORT)
    assert introspected(http, token) == {"active": False}, "it is for another service"


def test_a_token_ends_by_itself(http: httpx.Client) -> None:
    token = granted(http.post("/token", auth=BASIC, data=credentials_form(resource=SHORT)))["access_token"]
    wait_for(lambda: introspected(http, token, BASIC) == {"active": False}, "the end of the token")


def test_a_revoked_token_counts_no_more(server: AuthorizationServer, http: httpx.Client) -> None:
    post = {"client_id": "post", "client_secret": SECRETS["post"]}
    token = granted(http.post("/token", data={**credentials_form(), **post}))["access_token"]
    assert introspected(http, token)["active"] is True
    assert introspected(http, token, BASIC) == {"active": False}, "it is for another service"
    assert http.post("/token/revocation", auth=BASIC, data={"token": token}).status_code == 200
    assert introspected(http, token)["active"] is True, "it is of another client"
    assert sha256(token) in {each["sha256"] for each in server.tokens()}
    assert http.post("/token/revocation", data={"token": token, **post}).status_code == 200
    assert introspected(http, token) == {"active": False}
    assert sha256(token) not in {each["sha256"] for each in server.tokens()}
    assert http.post("/token/revocation", data={"token": "junk", **post}).status_code == 200


def test_revoking_a_refresh_token_ends_its_access_tokens(server: AuthorizationServer, http: httpx.Client) -> None:
    first = server.refresh_token("keeper", SUPPORT, "read", resource=FILES).reveal()
    auth = ("keeper", SECRETS["refresher"])
    form = {"grant_type": "refresh_token", "refresh_token": first}
    token = granted(http.post("/token", auth=auth, data=form))["access_token"]
    assert http.post("/token/revocation", auth=auth, data={"token": first}).status_code == 200
    assert introspected(http, token) == {"active": False}
    assert refused(http.post("/token", auth=auth, data=form)) == (400, "invalid_grant")


def test_a_signed_token_can_neither_be_introspected_nor_revoked(http: httpx.Client) -> None:
    token = granted(http.post("/token", auth=BASIC, data=credentials_form(READ, MAIL)))["access_token"]
    for path in ("/token/introspection", "/token/revocation"):
        assert refused(http.post(path, auth=BASIC, data={"token": token})) == (400, "unsupported_token_type")


def test_keys_may_be_fetched_from_where_they_are_published(tmp_path: Path) -> None:
    with issuer_server() as published:
        uri = f"{published.url}/jwks"
        published.answers["/jwks"] = json_of({"keys": [key.as_dict(private=False) for key in (CLIENT_KEY, PEOPLE_KEY)]})
        clients = tuple(
            replace(each, jwks=None, jwks_uri=uri) if each.client_id == "key" else each
            for each in CONFIGURATION.clients
        )
        people = replace(CONFIGURATION.issuers[0], jwks=None, jwks_uri=uri)
        changed = replace(CONFIGURATION, clients=clients, issuers=(people,))
        with AuthorizationServer(tmp_path, changed) as server:
            answer = granted(httpx.post(server.token_endpoint, data=exchange(server), trust_env=False))
            assert claims_of(answer["access_token"])["sub"] == SUPPORT


def test_more_than_may_be_had_can_be_refused(tmp_path: Path) -> None:
    with AuthorizationServer(tmp_path, replace(CONFIGURATION, refuse_excess_scope=True)) as server:
        form = credentials_form(f"{READ} mail.settings", MAIL)
        answer = httpx.post(server.token_endpoint, auth=BASIC, data=form, trust_env=False)
        assert refused(answer) == (400, "invalid_scope")
        form = exchange(server, scope=f"{READ} mail.settings")
        assert refused(httpx.post(server.token_endpoint, data=form, trust_env=False)) == (401, "unauthorized_client")


def test_the_log_tells_what_was_asked_and_no_secret(server: AuthorizationServer, http: httpx.Client) -> None:
    form = credentials_form(f"{READ} mail.settings", MAIL)
    token = granted(http.post("/token", auth=BASIC, data=form))["access_token"]
    last = server.requests()[-1]
    assert (last["endpoint"], last["client_id"], last["scope"]) == ("/token", "basic", form["scope"])
    assert (last["granted"], last["status"], last["resource"]) == (READ, 200, MAIL)
    assert last["access_token_sha256"] == sha256(token)
    http.post("/token", auth=("basic", "wrong"), data=form)
    assert (server.requests()[-1]["status"], server.requests()[-1]["error"]) == (401, "invalid_client")
    everything = json.dumps(server.requests()) + server.log.read_text()
    assert not any(secret in everything for secret in (token, *SECRETS.values()))


def test_the_back_door_exists_only_for_those_who_know_it(server: AuthorizationServer, http: httpx.Client) -> None:
    for headers in ({}, {"X-Admin-Token": "guessed"}):
        assert http.get("/_admin/state", headers=headers).status_code == 404


class TestMisbehaviours:
    """Each is something that servers do; the token beneath is real."""

    @pytest.fixture
    def asked(self, server: AuthorizationServer, http: httpx.Client) -> Any:
        """Asks for a token of `files` once, with these misbehaviours."""

        def ask(*kinds: Kind | Misbehaviour, scope: str = "read") -> httpx.Response:
            wishes = [each if isinstance(each, Misbehaviour) else Misbehaviour(each, times=1) for each in kinds]
            server.misbehave(*wishes)
            post = {"client_id": "post", "client_secret": SECRETS["post"]}
            return http.post("/token", data={**credentials_form(scope), **post})

        return ask

    def test_a_wider_scope_than_was_asked_for(self, asked: Any, http: httpx.Client) -> None:
        answer = granted(asked(Misbehaviour(Kind.WIDER_SCOPE, scope="write", times=1)))
        assert answer["scope"] == "read write"
        assert introspected(http, answer["access_token"])["scope"] == "read write"

    def test_a_wider_scope_that_is_only_said(self, asked: Any, http: httpx.Client) -> None:
        answer = granted(asked(Misbehaviour(Kind.WIDER_SCOPE, scope="admin", times=1)))
        assert answer["scope"] == "read admin"
        assert introspected(http, answer["access_token"])["scope"] == "read"

    def test_a_narrower_scope_without_a_word(self, asked: Any, http: httpx.Client) -> None:
        answer = granted(asked(Kind.NARROWER_SCOPE, Kind.NO_SCOPE, scope="read write"))
        assert "scope" not in answer
        assert introspected(http, answer["access_token"])["scope"] == "read"

    def test_a_narrower_scope(self, asked: Any) -> None:
        assert granted(asked(Misbehaviour(Kind.NARROWER_SCOPE, scope="write"), scope="read write"))["scope"] == "write"

    def test_no_scope(self, asked: Any, http: httpx.Client) -> None:
        answer = granted(asked(Kind.NO_SCOPE))
        assert "scope" not in answer
        assert introspected(http, answer["access_token"])["scope"] == "read"

    def test_no_expiry(self, asked: Any) -> None:
        assert "expires_in" not in granted(asked(Kind.NO_EXPIRES_IN))

    def test_a_longer_life(self, asked: Any, http: httpx.Client) -> None:
        answer = granted(asked(Misbehaviour(Kind.LONGER_EXPIRY, seconds=86_400, times=1)))
        assert answer["expires_in"] == 86_400
        said = introspected(http, answer["access_token"])
        assert said["exp"] - said["iat"] == 86_400

    def test_another_token_type(self, asked: Any) -> None:
        assert granted(asked(Kind.OTHER_TOKEN_TYPE))["token_type"] == "N_A"
        assert granted(asked(Misbehaviour(Kind.OTHER_TOKEN_TYPE, token_type="mac")))["token_type"] == "mac"

    def test_a_refresh_token_that_nobody_asked_for(self, server: AuthorizationServer, asked: Any) -> None:
        answer = granted(asked(Kind.UNASKED_REFRESH_TOKEN))
        assert sha256(answer["refresh_token"]) in {each["sha256"] for each in server.tokens()}

    def test_garbage(self, server: AuthorizationServer, asked: Any) -> None:
        answer = asked(Kind.GARBAGE)
        assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json; charset=utf-8")
        with pytest.raises(ValueError):
            answer.json()
        issued(server)

    def test_a_page(self, server: AuthorizationServer, asked: Any) -> None:
        answer = asked(Kind.HTML)
        assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
        issued(server)

    def test_an_error_of_the_server(self, server: AuthorizationServer, asked: Any) -> None:
        assert refused(asked(Kind.SERVER_ERROR)) == (500, "server_error")
        issued(server)
        busy = asked(Misbehaviour(Kind.SERVER_ERROR, status=503, retry_after=7, times=1))
        assert (busy.status_code, busy.headers["retry-after"]) == (503, "7")

    def test_a_redirect(self, server: AuthorizationServer, asked: Any) -> None:
        answer = asked(Kind.REDIRECT)
        assert (answer.status_code, answer.headers["location"]) == (307, f"{server.issuer}/moved")
        issued(server)
        elsewhere = asked(Misbehaviour(Kind.REDIRECT, status=302, location="http://127.0.0.1:9/token", times=1))
        assert (elsewhere.status_code, elsewhere.headers["location"]) == (302, "http://127.0.0.1:9/token")

    def test_an_answer_that_comes_late(self, server: AuthorizationServer, http: httpx.Client) -> None:
        server.misbehave(Misbehaviour(Kind.LATE, seconds=3600))
        with pytest.raises(httpx.ReadTimeout):
            http.post("/token", auth=BASIC, data=credentials_form(READ, MAIL), timeout=1)
        assert server.requests()[-1]["misbehaviours"] == ["late"]
        server.behave()
        server.misbehave(Misbehaviour(Kind.LATE, seconds=0.01))
        granted(http.post("/token", auth=BASIC, data=credentials_form(READ, MAIL)))

    def test_a_connection_that_is_closed_without_an_answer(self, server: AuthorizationServer, asked: Any) -> None:
        with pytest.raises(httpx.RemoteProtocolError):
            asked(Kind.HANG_UP)
        issued(server)

    def test_a_revocation_that_revokes_nothing(
        self, server: AuthorizationServer, asked: Any, http: httpx.Client
    ) -> None:
        token = granted(asked())["access_token"]
        server.misbehave(Misbehaviour(Kind.REVOCATION_IGNORED))
        post = {"client_id": "post", "client_secret": SECRETS["post"]}
        answer = http.post("/token/revocation", data={"token": token, **post})
        assert (answer.status_code, answer.content) == (200, b"")
        assert introspected(http, token)["active"] is True
        wrong = {"client_id": "post", "client_secret": "wrong"}
        assert http.post("/token/revocation", data={"token": token, **wrong}).status_code == 401

    def test_an_introspection_that_knows_nothing(
        self, server: AuthorizationServer, asked: Any, http: httpx.Client
    ) -> None:
        token = granted(asked())["access_token"]
        server.misbehave(Misbehaviour(Kind.ALWAYS_INACTIVE))
        assert introspected(http, token) == {"active": False}
        server.behave()
        assert introspected(http, token)["active"] is True

    def test_revocation_and_introspection_fail_as_well(
        self, server: AuthorizationServer, asked: Any, http: httpx.Client
    ) -> None:
        token = granted(asked())["access_token"]
        for endpoint in (Endpoint.REVOCATION, Endpoint.INTROSPECTION):
            server.misbehave(Misbehaviour(Kind.SERVER_ERROR, endpoint=endpoint, times=1))
            assert http.post(f"/token/{endpoint}", auth=BASIC, data={"token": token}).status_code == 500

    def test_only_those_are_treated_badly_who_are_meant(self, server: AuthorizationServer, http: httpx.Client) -> None:
        server.misbehave(
            Misbehaviour(Kind.SERVER_ERROR, client_id="somebody"),
            Misbehaviour(Kind.SERVER_ERROR, grant_type="refresh_token"),
        )
        granted(http.post("/token", auth=BASIC, data=credentials_form(READ, MAIL)))


def issued(server: AuthorizationServer) -> None:
    """The last request gave a token that counts, whatever was answered."""
    asked = [each for each in server.requests() if each["endpoint"] == "/token"][-1]
    assert asked["access_token_sha256"] in {each["sha256"] for each in server.tokens()}

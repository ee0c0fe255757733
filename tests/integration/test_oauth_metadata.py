"""What is published of the token endpoint (RFC 8414), and that all of it is true."""

from __future__ import annotations

import asyncio
import socket
import ssl
import warnings
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from apis import Apis, apis_on, opened
from bench import Bench
from database_servers import Authority
from desks import TASK
from exchanges import ACCESS_TOKEN, claims_of, exchange, new_key, oauth_error, proof, wanted
from fork_server import ForkServer
from joserfc import jwt
from joserfc.jwk import KeySet
from waiting import wait_for

from orchestrator.devstack.admin import VaultAdmin
from orchestrator.pep.access import access_tokens
from orchestrator.pep.protection import Protection
from orchestrator.pep.sources import IssuerKeys, oauth_metadata

SERVICES = "services: { crm: { identities: [ { issuer: tests, claims: { sub: crm-service } } ] } }\n"
OTHER = """\
  other:
    description: A token that another key signs.
    grants: { crm: { kind: token, ttl: 60s, audience: crm, scope: [read], key: another } }
    hand_over: crm
"""


@pytest.fixture
def apis(bench: Bench, children: ForkServer) -> Iterator[Apis]:
    with apis_on(bench, children) as found:
        found.put(TASK + OTHER)
        found.agents.write_text(found.agents.read_text() + SERVICES)
        yield found
    bench.assert_nothing_left()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def issuer(apis: Apis) -> str:
    """One with a path, at the address of the API itself."""
    address = f"127.0.0.1:{free_port()}"
    apis.more["ORCHESTRATOR_TOKEN_ISSUER"] = f"http://{address}/our/tokens"
    assert apis.start("--api", address).url == f"http://{address}"
    return apis.more["ORCHESTRATOR_TOKEN_ISSUER"]


@pytest.fixture
def another_key(bench: Bench) -> Iterator[None]:
    """A transit key that the runtime may read."""
    admin = VaultAdmin(bench.info.vault_address, bench.info.root_token)
    admin.request("POST", "transit/keys/another", {"type": "ed25519"})
    before = bench.vault.sys.read_policy("orchestrator-runtime")["rules"]
    more = 'path "transit/keys/another" { capabilities = ["read"] }'
    bench.vault.sys.create_or_update_policy("orchestrator-runtime", f"{before}\n{more}\n")
    try:
        yield
    finally:
        bench.vault.sys.create_or_update_policy("orchestrator-runtime", before)
        admin.request("POST", "transit/keys/another/config", {"deletion_allowed": True})
        admin.request("DELETE", "transit/keys/another")


def metadata_of(issuer: str) -> dict[str, Any]:
    answer = httpx.get(oauth_metadata(issuer), trust_env=False)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    found: dict[str, Any] = answer.json()
    return found


def issued(apis: Apis, url: str, task: str, tool: str = "ticket") -> str:
    answer = exchange(url, wanted(apis.token(), task, tool))
    assert answer.status_code == 200, answer.text
    found: str = answer.json()["access_token"]
    return found


def opened_task(apis: Apis) -> str:
    with apis.client() as agent:
        found: str = opened(agent)["id"]
        return found


def test_everything_that_is_listed_works(apis: Apis, issuer: str) -> None:
    metadata, task = metadata_of(issuer), opened_task(apis)
    assert metadata["issuer"] == issuer, "exactly (RFC 8414, 3.3)"
    assert oauth_metadata(issuer).endswith("/.well-known/oauth-authorization-server/our/tokens")
    (grant,) = metadata["grant_types_supported"]
    for algorithm in metadata["dpop_signing_alg_values_supported"]:
        dpop = proof(new_key(algorithm), "POST", metadata["token_endpoint"], algorithm=algorithm)
        parameters = {**wanted(apis.token(), task), "grant_type": grant}
        answer = httpx.post(metadata["token_endpoint"], data=parameters, headers={"DPoP": dpop}, trust_env=False)
        assert answer.status_code == 200, (algorithm, answer.text)
        token = answer.json()["access_token"]
        own = {"Authorization": f"Bearer {apis.token('crm-service')}"}
        asked = httpx.post(metadata["introspection_endpoint"], data={"token": token}, headers=own, trust_env=False)
        assert asked.json()["active"], algorithm
        own = {"Authorization": f"Bearer {apis.token()}"}
        back = httpx.post(metadata["revocation_endpoint"], data={"token": token}, headers=own, trust_env=False)
        assert back.status_code == 200
    keys = httpx.get(metadata["jwks_uri"], trust_env=False)
    assert keys.headers["content-type"] == "application/jwk-set+json"
    assert not any("d" in key for key in keys.json()["keys"])
    decoded = jwt.decode(token, KeySet.import_key_set(keys.json()), algorithms=["ES256"])
    assert (decoded.claims["iss"], decoded.header["typ"]) == (issuer, "at+jwt")
    assert metadata["authorization_details_types_supported"] == ["tool_call"]
    listed = {
        name.removesuffix("_supported"): values for name, values in metadata.items() if name.endswith("_supported")
    }
    assert listed["token_endpoint_auth_methods"] == ["none"], "no certificates are asked for here"
    assert listed["introspection_endpoint_auth_methods"] == listed["revocation_endpoint_auth_methods"] == ["Bearer"]
    assert listed["response_types"] == [], "there is no authorization endpoint"
    assert {urlsplit(metadata[name]).path for name in metadata if name.endswith("_endpoint")} == {
        "/oauth/token",
        "/oauth/introspect",
        "/oauth/revoke",
    }


def test_a_service_finds_the_keys_by_the_issuer_alone(apis: Apis, issuer: str) -> None:
    token = issued(apis, apis.processes[0].url, opened_task(apis))

    async def verified() -> str:
        protection = Protection(access_tokens(issuer, "crm"), IssuerKeys.discovered(issuer), "crm")
        return (await protection.authenticate([f"Bearer {token}"])).subject

    assert asyncio.run(verified()) == "complaint-agent"


def test_each_key_has_an_issuer_of_its_own(apis: Apis, another_key: None, issuer: str) -> None:
    url, task = apis.processes[0].url, opened_task(apis)
    usual, other = metadata_of(issuer), metadata_of(f"{issuer}/another")
    assert (usual["issuer"], other["issuer"]) == (issuer, f"{issuer}/another")
    sets = [httpx.get(each["jwks_uri"], trust_env=False).json()["keys"] for each in (usual, other)]
    assert {key["kid"].partition(":")[0] for key in sets[0]} == {"orchestrator-token"}
    assert [key["kid"] for key in sets[1]] == ["another:v1"]
    token = issued(apis, url, task, "other")
    assert claims_of(token)["iss"] == f"{issuer}/another"
    with warnings.catch_warnings(action="ignore"):  # RFC 9864 has another name for EdDSA
        jwt.decode(token, KeySet.import_key_set({"keys": sets[1]}), algorithms=["EdDSA"])
    with apis.client(sub="crm-service") as crm:
        assert crm.post("/oauth/introspect", data={"token": token}).json()["active"]
    with apis.client() as agent:
        assert agent.post("/oauth/revoke", data={"token": token}).status_code == 200
    with apis.client(sub="crm-service") as crm:
        assert crm.post("/oauth/introspect", data={"token": token}).json() == {"active": False}


def test_what_is_no_issuer_of_ours_is_not_there(apis: Apis, bench: Bench, issuer: str) -> None:
    url = apis.processes[0].url
    seen = len(bench.vault.list("transit/keys")["data"]["keys"])
    for path in (
        "/.well-known/oauth-authorization-server",
        "/.well-known/oauth-authorization-server/our",
        "/.well-known/oauth-authorization-server/our/tokens/",
        "/.well-known/oauth-authorization-server/our/tokens/orchestrator-approvals",
        "/.well-known/oauth-authorization-server/our/tokens/..%2f..%2fsys",
        "/.well-known/jwks.json",
        "/our/.well-known/jwks.json",
        "/our/tokens/orchestrator-token/.well-known/jwks.json",
        "/our/tokens/orchestrator-approvals/.well-known/jwks.json",
    ):
        assert httpx.get(url + path, trust_env=False).status_code == 404, path
    away = httpx.get(f"{url}/our/tokens/another/.well-known/jwks.json", trust_env=False)
    assert (away.status_code, "retry-after" in away.headers) == (503, True), "it is declared, and not in Vault"
    assert len(bench.vault.list("transit/keys")["data"]["keys"]) == seen


def test_keys_are_asked_of_vault_now_and_then_only(apis: Apis, issuer: str) -> None:
    answers = [httpx.get(f"{issuer}/.well-known/jwks.json", trust_env=False) for _ in range(20)]
    assert {each.status_code for each in answers} == {200}
    assert answers[0].headers["cache-control"] == "max-age=60"


def test_a_rotated_key_is_published_beside_the_one_before(apis: Apis, another_key: None, issuer: str) -> None:
    admin = VaultAdmin(apis.bench.info.vault_address, apis.bench.info.root_token)
    jwks = f"{issuer}/another/.well-known/jwks.json"
    assert len(httpx.get(jwks, trust_env=False).json()["keys"]) == 1
    admin.request("POST", "transit/keys/another/rotate", {})
    wait_for(lambda: len(httpx.get(jwks, trust_env=False).json()["keys"]) == 2, "the new key")


def test_another_url_than_the_address_is_the_operators_word(apis: Apis) -> None:
    url = apis.start("--api-url", "https://broker.example/api/").url
    metadata = httpx.get(f"{url}/.well-known/oauth-authorization-server", trust_env=False).json()
    assert metadata["token_endpoint"] == "https://broker.example/api/oauth/token"
    assert metadata["jwks_uri"] == "https://broker.example/api/.well-known/jwks.json"
    task = opened_task(apis)
    for claimed, status in (("https://broker.example/api/oauth/token", 200), (f"{url}/oauth/token", 400)):
        answer = exchange(url, wanted(apis.token(), task), DPoP=proof(new_key(), "POST", claimed), Host="x.example")
        assert answer.status_code == status, answer.text
    for wrong in ("broker.example", "http://broker.example", "https://broker.example?a=b", "ftp://broker.example"):
        refused = apis.children.command(
            *("serve", str(apis.folder), "--no-listen", "--api", "127.0.0.1:0", "--api-url", wrong),
            *("--agents", str(apis.agents)),
            environment=apis.environment(),
        )
        assert (refused.returncode, "--api-url" in refused.stderr) == (2, True), wrong


def test_who_does_not_know_its_own_url_says_so_and_takes_no_proofs(apis: Apis) -> None:
    authority = Authority.make(apis.directory, "authority")
    own = str(authority.issued("127.0.0.1"))
    process = apis.start("--api", "0.0.0.0:0", "--api-cert", own, "--api-key", own)
    url = process.url.replace("http://0.0.0.0", "https://127.0.0.1")
    trusting = ssl.create_default_context(cafile=authority.file)
    with httpx.Client(base_url=url, verify=trusting, trust_env=False) as http:
        missing = http.get("/.well-known/oauth-authorization-server")
        assert (missing.status_code, "--api-url" in missing.json()["hint"]) == (404, True)
        http.headers["Authorization"] = f"Bearer {apis.token()}"
        task = opened(http)["id"]
        dpop = proof(new_key(), "POST", f"{url}/oauth/token")
        refused = http.post("/oauth/token", data=wanted(apis.token(), task), headers={"DPoP": dpop})
        assert "--api-url" in oauth_error(refused, "invalid_dpop_proof")["error_description"]
        assert http.post("/oauth/token", data=wanted(apis.token(), task)).json()["issued_token_type"] == ACCESS_TOKEN

"""Tokens that are bound to a key (RFC 9449), on real processes: issued for a proof, and of no use without one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from apis import Apis, apis_on, opened
from bench import Bench
from desks import TASK
from escaped import escaped_secrets
from exchanges import claims_of, exchange, new_key, oauth_error, proof, signed, wanted
from fork_server import ForkServer
from joserfc.jwk import OctKey
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from orchestrator.ledger.events import Decided, RunStarted
from orchestrator.pep.access import access_tokens
from orchestrator.pep.details import Operation
from orchestrator.pep.introspection import Bearer, Introspection
from orchestrator.pep.middleware import BearerAuthentication
from orchestrator.pep.possession import Nonces, Possession
from orchestrator.pep.protection import Protection
from orchestrator.pep.sources import IssuerKeys
from orchestrator.secret import Secret

SERVICES = "services: { crm: { identities: [ { issuer: tests, claims: { sub: crm-service } } ] } }\n"
CRM = "https://crm.example"


@pytest.fixture
def apis(bench: Bench, children: ForkServer) -> Iterator[Apis]:
    with apis_on(bench, children) as found:
        found.put(TASK)
        found.agents.write_text(found.agents.read_text() + SERVICES)
        found.start()
        yield found
        assert escaped_secrets([found.directory]) == [], "a proof is a token, too"
    bench.assert_nothing_left()


@pytest.fixture
def task(apis: Apis) -> str:
    with apis.client() as agent:
        found: str = opened(agent)["id"]
        return found


def endpoint(apis: Apis, number: int = 0) -> str:
    return f"{apis.processes[number].url}/oauth/token"


def ask(apis: Apis, task: str, dpop: str, number: int = 0, **more: Any) -> httpx.Response:
    headers = {"DPoP": dpop, **({"Idempotency_Key": more.pop("key")} if "key" in more else {})}
    return exchange(apis.processes[number].url, wanted(apis.token(), task, **more), **headers)


def test_a_token_is_bound_to_the_key_of_the_proof(apis: Apis, task: str) -> None:
    key = new_key()
    answer = ask(apis, task, proof(key, "POST", endpoint(apis)))
    assert answer.status_code == 200, answer.text
    assert answer.json()["token_type"] == "DPoP"
    token = answer.json()["access_token"]
    claims = claims_of(token)
    assert claims["cnf"] == {"jkt": key.thumbprint()}
    with apis.client(sub="crm-service") as crm:
        told = crm.post("/oauth/introspect", data={"token": token}).json()
        assert (told["cnf"], told["token_type"]) == ({"jkt": key.thumbprint()}, "DPoP")
    with apis.ledger() as ledger:
        lease = ledger.lease(claims["jti"])
        assert lease is not None
        assert lease.scope["cnf"] == {"jkt": key.thumbprint()}, "the intent on record says it"
        asked = ledger.events(lease.run_id, kind=Decided.kind)[0].data["input"]
        assert asked["grants"][0]["cnf"] == {"jkt": key.thumbprint()}, "and the policy was shown it"  # type: ignore[index,call-overload]
        assert ledger.events(lease.run_id, kind=RunStarted.kind)[0].data["token"] == {"cnf": {"jkt": key.thumbprint()}}
        assert ledger.verify(lease.run_id) is None


def test_every_proof_that_does_not_hold_is_refused(apis: Apis, task: str) -> None:
    key, other, url, now = new_key(), new_key(), endpoint(apis), int(time.time())
    jwk = key.as_dict(private=False)
    secret = OctKey.generate_key(256)
    good = proof(key, "POST", url)
    head, body, signature = good.split(".")
    bad = {
        "no JWT": "abc",
        "two parts": f"{head}.{body}",
        "another signature": f"{head}.{body}.{signature[:-8]}AAAAAAAA",
        "another signer": proof(key, "POST", url, signer=other),
        "another type": proof(key, "POST", url, header={"typ": "JWT"}),
        "no type": proof(key, "POST", url, header={"typ": None}),
        "none": proof(key, "POST", url, header={"alg": "none"}),
        "HMAC": signed(
            {"typ": "dpop+jwt", "alg": "HS256", "jwk": secret.as_dict()},
            {"jti": "1", "htm": "POST", "htu": url, "iat": now},
            secret,
            "HS256",
        ),
        "another algorithm than the key's": proof(key, "POST", url, header={"alg": "ES384"}),
        "no key": proof(key, "POST", url, header={"jwk": None}),
        "a private key": proof(key, "POST", url, header={"jwk": key.as_dict(private=True)}),
        "half a key": proof(key, "POST", url, header={"jwk": {**jwk, "y": None}}),
        "the key of another": proof(key, "POST", url, header={"jwk": other.as_dict(private=False)}),
        "an extension": proof(key, "POST", url, header={"crit": ["b64"], "b64": False}),
        "another method": proof(key, "GET", url),
        "the method in small letters": proof(key, "post", url),
        "no method": proof(key, "POST", url, htm=None),
        "another path": proof(key, "POST", url + "/"),
        "another endpoint": proof(key, "POST", url.replace("/token", "/revoke")),
        "another port": proof(key, "POST", "http://127.0.0.1:1/oauth/token"),
        "another scheme": proof(key, "POST", url.replace("http:", "https:")),
        "no URL": proof(key, "POST", url, htu=None),
        "a relative URL": proof(key, "POST", "/oauth/token"),
        "made long ago": proof(key, "POST", url, iat=now - 70),
        "made in the future": proof(key, "POST", url, iat=now + 20),
        "no time": proof(key, "POST", url, iat=None),
        "a time as a text": proof(key, "POST", url, iat=str(now)),
        "no id": proof(key, "POST", url, jti=None),
        "an empty id": proof(key, "POST", url, jti=""),
        "a huge id": proof(key, "POST", url, jti="x" * 300),
        "a huge one": proof(key, "POST", url, more="x" * 9000),
    }
    for name, dpop in bad.items():
        try:
            oauth_error(ask(apis, task, dpop), "invalid_dpop_proof")
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error
    twice = [("DPoP", good), ("DPoP", proof(key, "POST", url))]
    oauth_error(httpx.post(url, data=wanted(apis.token(), task), headers=twice, trust_env=False), "invalid_dpop_proof")
    with apis.ledger() as ledger:
        assert list(ledger.calls(task)) == [], "nothing was begun for any of them"
    for name, same in {
        "a query": f"{url}?a=b#c",
        "capital letters": url.replace("http://", "HTTP://"),
        "escaped": url.replace("/token", "/%74oken"),
        "dots": url.replace("/oauth", "/x/../oauth/."),
    }.items():
        assert ask(apis, task, proof(key, "POST", same)).status_code == 200, name


def test_a_proof_counts_once_at_all_processes(apis: Apis, task: str) -> None:
    port = apis.processes[0].url.rpartition(":")[2]
    elsewhere = apis.start("--api-url", f"http://127.0.0.1:{port}").url
    dpop = proof(new_key(), "POST", endpoint(apis))
    assert ask(apis, task, dpop).status_code == 200
    for url in (apis.processes[0].url, elsewhere):
        found = oauth_error(exchange(url, wanted(apis.token(), task), DPoP=dpop), "invalid_dpop_proof")
        assert "came before" in found["error_description"]
    with apis.ledger() as ledger:
        assert len(list(ledger.calls(task))) == 1


def test_a_call_belongs_to_the_key_that_it_was_made_with(apis: Apis, task: str) -> None:
    key, url = new_key(), endpoint(apis)
    assert ask(apis, task, proof(key, "POST", url), key="k").json()["token_type"] == "DPoP"
    again = oauth_error(ask(apis, task, proof(key, "POST", url), key="k"), "invalid_request")
    assert "lease" in again, "a fresh proof, the same call"
    for other in (ask(apis, task, proof(new_key(), "POST", url), key="k"), exchange_without(apis, task, "k")):
        assert "lease" not in oauth_error(other, "invalid_request")


def exchange_without(apis: Apis, task: str, key: str) -> httpx.Response:
    return exchange(apis.processes[0].url, wanted(apis.token(), task), Idempotency_Key=key)


class TestServices:
    """By `orchestrator.pep`, as a service has it."""

    @pytest.fixture
    def protection(self, apis: Apis, bench: Bench) -> Protection:
        return self.protected(bench)

    def protected(self, bench: Bench, possession: Possession | None = None, **more: Any) -> Protection:
        assert bench.info.issuer_url is not None
        return Protection(
            access_tokens(bench.info.issuer_url, "crm"),
            IssuerKeys.at(f"{bench.info.issuer_url}/.well-known/jwks.json"),
            "crm",
            possession=possession or Possession(CRM),
            **more,
        )

    def asked(self, protection: Protection, *requests: tuple[str, str, dict[str, str]]) -> list[httpx.Response]:
        """What a service answers to these requests: method, path, headers."""

        async def ticket(request: Request) -> JSONResponse:
            operation = Operation("crm_record", "write_ticket", identifier=request.path_params["record"])
            protection.require(request.state.access_token, scope="write_ticket", operation=operation)
            return JSONResponse({"by": request.state.access_token.subject}, 201)

        routes = [Route("/records/{record}/tickets", ticket, methods=["POST"])]
        app = Starlette(routes=routes, middleware=[Middleware(BearerAuthentication, protection=protection)])

        async def serve() -> list[httpx.Response]:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://inside:8080") as http:
                try:
                    return [await http.request(method, path, headers=headers) for method, path, headers in requests]
                finally:
                    await protection.aclose()

        return asyncio.run(serve())

    def test_a_bound_token_is_of_use_with_a_proof_only(self, apis: Apis, task: str, protection: Protection) -> None:
        key, other = new_key(), new_key()
        token = ask(apis, task, proof(key, "POST", endpoint(apis))).json()["access_token"]
        free = exchange(apis.processes[0].url, wanted(apis.token(), task)).json()["access_token"]
        path = "/records/1234/tickets"
        url = CRM + path

        def sent(scheme: str, with_: str, dpop: str | None, method: str = "POST", to: str = path) -> Any:
            return method, to, {"Authorization": f"{scheme} {with_}"} | ({"DPoP": dpop} if dpop else {})

        good = proof(key, "POST", url, token=token)
        requests = {
            "good": (sent("DPoP", token, good), 201, ""),
            "in small letters, with a query": (
                sent("dpop", token, proof(key, "POST", url, token=token), to=f"{path}?a=b"),
                201,
                "",
            ),
            "a token without a key": (sent("Bearer", free, None), 201, ""),
            "as if it were a plain one": (
                sent("Bearer", token, None),
                401,
                'Bearer realm="crm", error="invalid_token"',
            ),
            "as if it were, with a proof": (
                sent("Bearer", token, proof(key, "POST", url, token=token)),
                401,
                "Bearer ",
            ),
            "a plain one as if it were bound": (sent("DPoP", free, proof(key, "POST", url, token=free)), 401, "DPoP "),
            "without a proof": (sent("DPoP", token, None), 401, "invalid_dpop_proof"),
            "once more": (sent("DPoP", token, good), 401, "invalid_dpop_proof"),
            "by another key": (
                sent("DPoP", token, proof(other, "POST", url, token=token)),
                401,
                'error="invalid_token"',
            ),
            "without the hash": (sent("DPoP", token, proof(key, "POST", url)), 401, "invalid_dpop_proof"),
            "with that of another": (
                sent("DPoP", token, proof(key, "POST", url, token=free)),
                401,
                "invalid_dpop_proof",
            ),
            "another method": (sent("DPoP", token, proof(key, "GET", url, token=token)), 401, "invalid_dpop_proof"),
            "another record": (
                sent("DPoP", token, proof(key, "POST", url, token=token), to="/records/1235/tickets"),
                401,
                "invalid_dpop_proof",
            ),
            "another service": (
                sent("DPoP", token, proof(key, "POST", f"https://evil.example{path}", token=token)),
                401,
                "invalid_dpop_proof",
            ),
            "what the host header says": (
                sent("DPoP", token, proof(key, "POST", f"http://inside:8080{path}", token=token)),
                401,
                "invalid_dpop_proof",
            ),
            "not for this": (
                sent(
                    "DPoP",
                    token,
                    proof(key, "POST", f"{CRM}/records/1235/tickets", token=token),
                    to="/records/1235/tickets",
                ),
                403,
                'DPoP realm="crm", error="insufficient_scope"',
            ),
        }
        answers = self.asked(protection, *(request for request, _, _ in requests.values()))
        for (name, (_, status, challenge)), answer in zip(requests.items(), answers, strict=True):
            assert (answer.status_code, challenge in answer.headers.get("www-authenticate", "")) == (status, True), (
                f"{name}: {answer.headers}"
            )
        (bare,) = self.asked(protection, ("POST", path, {}))
        assert bare.headers["www-authenticate"].startswith('Bearer realm="crm", DPoP realm="crm", algs="ES256 ')

    def test_a_service_that_knows_no_proofs_takes_no_bound_tokens(self, apis: Apis, bench: Bench, task: str) -> None:
        key, path = new_key(), "/records/1234/tickets"
        token = ask(apis, task, proof(key, "POST", endpoint(apis))).json()["access_token"]
        unaware = self.protected(bench)
        object.__setattr__(unaware, "possession", None)
        dpop = proof(key, "POST", CRM + path, token=token)
        answers = self.asked(
            unaware,
            ("POST", path, {"Authorization": f"Bearer {token}"}),
            ("POST", path, {"Authorization": f"DPoP {token}", "DPoP": dpop}),
        )
        assert [each.status_code for each in answers] == [401, 401]
        assert all("DPoP" not in each.headers["www-authenticate"] for each in answers)

    def test_nonces_say_when_a_proof_was_made_at_any_process_of_a_service(
        self, apis: Apis, bench: Bench, task: str
    ) -> None:
        key, path = new_key(), "/records/1234/tickets"
        token = ask(apis, task, proof(key, "POST", endpoint(apis))).json()["access_token"]
        of_all = Secret("x" * 32)

        def asked(dpop: str) -> httpx.Response:
            process = self.protected(bench, Possession(CRM, nonces=Nonces(of_all)))
            (answer,) = self.asked(process, ("POST", path, {"Authorization": f"DPoP {token}", "DPoP": dpop}))
            return answer

        for nonce in (None, "x", Nonces(Secret("y" * 32)).fresh(time.time()), Nonces(of_all).fresh(time.time() - 300)):
            answer = asked(proof(key, "POST", CRM + path, token=token, nonce=nonce))
            assert (answer.status_code, answer.json()["error"]) == (401, "use_dpop_nonce")
        fresh = answer.headers["dpop-nonce"]
        assert asked(proof(key, "POST", CRM + path, token=token, nonce=fresh)).status_code == 201

    def test_what_was_given_back_is_refused_although_its_proof_holds(self, apis: Apis, bench: Bench, task: str) -> None:
        key, path = new_key(), "/records/1234/tickets"
        token = ask(apis, task, proof(key, "POST", endpoint(apis))).json()["access_token"]
        own, url = apis.token("crm-service"), f"{apis.processes[0].url}/oauth/introspect"

        def asked() -> int:
            protection = self.protected(bench, introspection=Introspection(url, Bearer(lambda: own)))
            dpop = proof(key, "POST", CRM + path, token=token)
            (answer,) = self.asked(protection, ("POST", path, {"Authorization": f"DPoP {token}", "DPoP": dpop}))
            return answer.status_code

        assert asked() == 201
        with apis.client() as agent:
            assert agent.post("/oauth/revoke", data={"token": token}).status_code == 200
        assert asked() == 401

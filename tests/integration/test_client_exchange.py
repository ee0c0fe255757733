"""The client at the token endpoint: tokens for less, bound to a key, and given back whatever happens."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from apis import Apis, apis_on
from app_server import served
from bench import Bench
from both_clients import Driven, Make, driven
from desks import TASK
from escaped import holds_secret
from exchanges import claims_of
from fork_server import ForkServer
from proxy import Answer, DropAnswer, Proxy
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from orchestrator.client import (
    ApprovalPending,
    AsyncBroker,
    Broker,
    BudgetSpent,
    Denied,
    InvalidRequest,
    NotFound,
    Patience,
    ProofKey,
    TaskClosed,
)
from orchestrator.pep.access import access_tokens
from orchestrator.pep.middleware import BearerAuthentication
from orchestrator.pep.possession import Nonces, Possession
from orchestrator.pep.protection import Protection
from orchestrator.pep.sources import IssuerKeys
from orchestrator.secret import Secret

SERVICES = """\
services:
  crm: { identities: [ { issuer: tests, claims: { sub: crm-service } } ] }
  wide: { audience: wide, identities: [ { issuer: tests, claims: { sub: wide-service } } ] }
"""
TOOLS = """\
  wide:
    description: A token for more than one thing.
    grants: { crm: { kind: token, ttl: 60s, audience: wide, scope: [read, write_ticket] } }
    hand_over: crm
    max_open: 1
"""
APPROVAL = '{"allow": true, "obligations": {"approval": {"approvers": ["vault:userpass-alice"]}}}'
DENIAL = '{"allow": false, "reasons": ["not on a Sunday"]}'


@pytest.fixture
def apis(bench: Bench, children: ForkServer) -> Iterator[Apis]:
    with apis_on(bench, children) as found:
        found.put(TASK + TOOLS)
        found.agents.write_text(found.agents.read_text() + SERVICES)
        yield found
    bench.assert_nothing_left()


@pytest.fixture
def started(apis: Apis) -> Apis:
    apis.start()
    return apis


@pytest.fixture(params=["blocking", "asyncio"])
def make(request: pytest.FixtureRequest) -> Iterator[Make]:
    """Makes brokers of either kind."""
    if request.param == "blocking":
        yield Broker
        return
    with asyncio.Runner() as runner:
        yield lambda *given, **named: Driven(AsyncBroker(*given, **named), runner.run)


@pytest.fixture
def broker(started: Apis, make: Make) -> Iterator[Any]:
    with make(started.processes[0].url, started.token()) as found:
        yield found


def is_active(apis: Apis, token: str, service: str = "crm-service") -> bool:
    with apis.client(sub=service) as crm:
        found: bool = crm.post("/oauth/introspect", data={"token": token}).json()["active"]
        return found


def made(apis: Apis, task_id: str, tool: str) -> dict[str, int]:
    with apis.client() as client:
        found: dict[str, int] = client.get(f"/v1/tasks/{task_id}").json()["calls"][tool]
        return found


def test_a_token_for_as_long_as_a_block_lasts(started: Apis, broker: Any) -> None:
    with broker.task("complaint_desk", customer=1234) as task:
        with task.exchange("ticket", priority="high") as credential:
            claims = claims_of(credential.token)
            assert (claims["aud"], claims["scope"], "cnf" in claims) == ("crm", "write_ticket", False)
            assert (credential.kind, credential.token_type, 0 < credential.ttl <= 60) == ("token", "Bearer", True)
            assert credential.scope["details"] == claims["authorization_details"]
            assert is_active(started, credential.token)
        assert not is_active(started, credential.token)
        with task.exchange("wide").for_scope("read").for_audience("wide") as less:
            assert (claims_of(less.token)["scope"], less.scope["scopes"]) == ("read", ["read"])
            with pytest.raises(BudgetSpent):
                task.exchange("wide").open()
        for wish in (
            task.exchange("wide").for_scope("read admin"),
            task.exchange("wide").for_audience("crm"),
            task.exchange("ticket", priority="urgent"),
            task.exchange("login"),
        ):
            with pytest.raises(InvalidRequest):
                wish.open()
        with pytest.raises(NotFound):
            task.exchange("tickets").open()
        left = task.exchange("ticket")
        token = left.open().token
    assert not is_active(started, token), "the task is closed"
    with pytest.raises(TaskClosed):
        task.exchange("ticket").open()


def test_a_token_that_is_bound_to_a_key(started: Apis, broker: Any) -> None:
    key = ProofKey.generate()
    with broker.task("complaint_desk", customer=1234) as task:
        with task.exchange("ticket").bound_to(key) as credential:
            assert credential.token_type == "DPoP"
            assert claims_of(credential.token)["cnf"] == {"jkt": key.thumbprint}
            assert is_active(started, credential.token)
            assert not holds_secret(f"{credential!r} {key!r}".encode())
        assert not is_active(started, credential.token)


def decide(apis: Apis, decision: str) -> None:
    """Start a process with this policy."""
    folder = apis.directory / "policies"
    folder.mkdir()
    (folder / "p.rego").write_text(f"package orchestrator\ndecision := {decision}\n")
    apis.more = {"ORCHESTRATOR_POLICY": "rego", "ORCHESTRATOR_POLICY_PATH": str(folder)}
    apis.start()


def test_what_is_denied(apis: Apis, make: Make) -> None:
    decide(apis, DENIAL)
    url = apis.processes[0].url
    with make(url, apis.token()) as broker, broker.task("complaint_desk", customer=1) as task:
        with pytest.raises(Denied, match="not on a Sunday") as denied:
            task.exchange("ticket").open()
        assert (denied.value.by, denied.value.reasons) == ("policy", ("not on a Sunday",))


def test_what_waits_goes_on_once_somebody_has_agreed(apis: Apis, make: Make) -> None:
    decide(apis, APPROVAL)
    vault, key = apis.bench.vault, ProofKey.generate()
    vault.sys.enable_auth_method("userpass")
    try:
        vault.write_data("auth/userpass/users/alice", data={"password": "x" * 12})
        token = vault.write_data("auth/userpass/login/alice", data={"password": "x" * 12})["auth"]["client_token"]
        with make(apis.processes[0].url, apis.token()) as broker, broker.task("complaint_desk", customer=1) as task:
            with pytest.raises(ApprovalPending) as pending, task.exchange("ticket").bound_to(key):
                pytest.fail("nobody has agreed")
            with pytest.raises(ApprovalPending) as still:
                driven(make, broker, pending.value.resume())
            assert still.value.approval == pending.value.approval, "it is the same call"
            environment = {**apis.environment(), "VAULT_TOKEN": token}
            answer = apis.children.command("approvals", "approve", pending.value.approval, environment=environment)
            assert answer.returncode == 0, answer.stderr
            with driven(make, broker, pending.value.wait(60)) as credential:
                assert claims_of(credential.token)["cnf"] == {"jkt": key.thumbprint}
    finally:
        vault.sys.disable_auth_method("userpass")


def test_a_token_whose_answer_was_lost_is_given_back(started: Apis, make: Make) -> None:
    host, port = started.processes[0].url.removeprefix("http://").split(":")
    with (
        Proxy((host, int(port)), http=True) as proxy,
        make(proxy.address, started.token(), patience=Patience(closing=30)) as broker,
        broker.task("complaint_desk", customer=1234) as task,
    ):
        proxy.fail(DropAnswer(), when=lambda line: "/oauth/token" in line)
        with task.exchange("wide") as credential:
            assert made(started, task.id, "wide") == {"made": 2, "open": 1}
            assert is_active(started, credential.token, "wide-service")
            proxy.fail(DropAnswer(), when=lambda line: "/oauth/revoke" in line)
            proxy.fail(Answer(503), when=lambda line: "/oauth/revoke" in line)
        assert proxy.unused == 0
        assert not is_active(started, credential.token, "wide-service")
        assert made(started, task.id, "wide") == {"made": 2, "open": 0}


@dataclass
class Crm:
    """A service that takes bound tokens with a nonce of its own, and remembers what was sent."""

    url: str
    sent: list[tuple[str, str]] = field(default_factory=list)


@pytest.fixture
def crm(bench: Bench) -> Iterator[Crm]:
    crm = Crm("")

    async def ticket(request: Request) -> Response:
        return JSONResponse({"by": request.state.access_token.subject})

    async def away(request: Request) -> Response:
        return RedirectResponse("http://localhost:1/", 307)

    def app(url: str) -> Any:
        assert bench.info.issuer_url is not None
        protection = Protection(
            access_tokens(bench.info.issuer_url, "crm"),
            IssuerKeys.at(f"{bench.info.issuer_url}/.well-known/jwks.json"),
            "crm",
            possession=Possession(url, nonces=Nonces(Secret("x" * 32))),
        )
        routes = [Route("/tickets", ticket, methods=["GET", "POST"]), Route("/away", away)]
        inner = Starlette(routes=routes, middleware=[Middleware(BearerAuthentication, protection=protection)])

        async def remembering(scope: Any, receive: Any, send: Any) -> None:
            headers = {name.decode(): value.decode() for name, value in scope["headers"]}
            crm.sent.append((headers.get("authorization", ""), headers.get("dpop", "")))
            await inner(scope, receive, send)

        return remembering

    with served(app) as url:
        crm.url = url
        yield crm


@pytest.mark.parametrize("kind", ["blocking", "asyncio"])
def test_requests_with_a_proof_each(started: Apis, crm: Crm, kind: str) -> None:
    key, url = ProofKey.generate(), started.processes[0].url

    async def asynchronously() -> tuple[list[httpx.Response], str]:
        async with (
            AsyncBroker(url, started.token()) as broker,
            broker.task("complaint_desk", customer=1234) as task,
            httpx.AsyncClient(auth=task.dpop_auth("ticket", crm.url, key, priority="high"), trust_env=False) as client,
        ):
            first = await client.post(f"{crm.url}/tickets?a=b#c", json={"a": 1})
            rest = await asyncio.gather(*(client.get(f"{crm.url}/tickets") for _ in range(5)))
            return [first, *rest], task.id

    if kind == "asyncio":
        answers, task_id = asyncio.run(asynchronously())
    else:
        with (
            Broker(url, started.token()) as broker,
            broker.task("complaint_desk", customer=1234) as task,
            httpx.Client(auth=task.dpop_auth("ticket", crm.url, key, priority="high"), trust_env=False) as http,
        ):
            answers = [http.post(f"{crm.url}/tickets?a=b#c", json={"a": 1})]
            answers += [http.get(f"{crm.url}/tickets") for _ in range(5)]
            with pytest.raises(httpx.ConnectError):
                http.get("http://127.0.0.1:1/")
            task_id = task.id
    assert [each.json() for each in answers] == [{"by": "complaint-agent"}] * 6, [each.text for each in answers]
    assert len({authorization for authorization, _ in crm.sent}) == 1, "one token does for all"
    assert all(authorization.startswith("DPoP ey") for authorization, _ in crm.sent)
    proofs = [proof for _, proof in crm.sent]
    assert len(set(proofs)) == len(proofs) == 7, "the first one lacked the nonce that the service wanted"
    claims = [claims_of(each) for each in proofs]
    assert [("nonce" in each) for each in claims] == [False] + [True] * 6
    assert claims[1]["htu"] == f"{crm.url}/tickets"
    assert made(started, task_id, "ticket") == {"made": 1, "open": 0}

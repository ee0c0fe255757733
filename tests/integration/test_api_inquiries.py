"""What a service may ask about tokens of ours: they count while they are held, and no longer."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from apis import ISSUER, Apis, apis_on, call, opened
from bench import Bench
from fork_server import ForkServer
from transit_signer import Signer
from waiting import wait_for

from orchestrator.clock import SystemClock
from orchestrator.devstack.admin import VaultAdmin
from orchestrator.pep.access import access_tokens
from orchestrator.pep.challenges import AccessRefused
from orchestrator.pep.details import Operation
from orchestrator.pep.introspection import Bearer, Introspection
from orchestrator.pep.protection import Protection
from orchestrator.pep.sources import IssuerKeys

SERVICES = """\
services:
  crm: { identities: [ { issuer: tests, claims: { sub: crm-service } } ] }
  mailer: { audience: crm-of-another, identities: [ { issuer: tests, claims: { sub: mail-service } } ] }
"""
POLICY = """
package orchestrator
import rego.v1
default decision := {"allow": false, "reasons": ["closed for today"]}
decision := {"allow": true} if input.agent == "complaint-agent"
"""


@pytest.fixture
def apis(bench: Bench, children: ForkServer) -> Iterator[Apis]:
    with apis_on(bench, children) as found:
        found.put()
        found.agents.write_text(found.agents.read_text() + SERVICES)
        policies = found.directory / "policies"
        policies.mkdir()
        (policies / "p.rego").write_text(POLICY)
        found.more = {"ORCHESTRATOR_POLICY": "rego", "ORCHESTRATOR_POLICY_PATH": str(policies)}
        found.start()
        yield found
    bench.assert_nothing_left()


@pytest.fixture
def agent(apis: Apis) -> Iterator[httpx.Client]:
    with apis.client() as client:
        yield client


@pytest.fixture
def crm(apis: Apis) -> Iterator[httpx.Client]:
    with apis.client(sub="crm-service") as client:
        yield client


def token_of(agent: httpx.Client, customer: int = 1234) -> tuple[str, str, str]:
    """A token that was handed over, its lease and its task."""
    task = opened(agent, customer)["id"]
    got = call(agent, task, "ticket").json()
    return got["credential"]["fields"]["token"], got["lease"]["id"], task


def active(service: httpx.Client, token: str) -> dict[str, Any]:
    answer = service.post("/v1/introspect", data={"token": token, "token_type_hint": "access_token"})
    assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store"), answer.text
    found: dict[str, Any] = answer.json()
    return found


def evaluation(token: str, action: str = "write_ticket", identifier: str = "1234", kind: str = "crm_record") -> Any:
    return {
        "subject": {"type": "access_token", "id": "t", "properties": {"token": token}},
        "action": {"name": action},
        "resource": {"type": kind, "id": identifier},
    }


def decision(service: httpx.Client, asked: Any) -> bool:
    answer = service.post("/access/v1/evaluation", json=asked, headers={"X-Request-ID": "r1"})
    assert (answer.status_code, answer.headers["x-request-id"]) == (200, "r1"), answer.text
    found: bool = answer.json()["decision"]
    return found


class TestIntrospection:
    def test_a_token_is_active_while_its_lease_is_held(self, agent: httpx.Client, crm: httpx.Client) -> None:
        token, lease, _ = token_of(agent)
        found = active(crm, token)
        assert (found["active"], found["sub"], found["aud"], found["jti"]) == (True, "complaint-agent", "crm", lease)
        assert found["authorization_details"] == [
            {"type": "crm_record", "actions": ["write_ticket"], "identifier": "1234"}
        ]
        assert agent.delete(f"/v1/leases/{lease}").json() == {"confirmed": True}
        assert active(crm, token) == {"active": False}

    @pytest.mark.parametrize("end", ["closed", "cut off"])
    def test_it_ends_with_its_task_and_its_agent(
        self, apis: Apis, agent: httpx.Client, crm: httpx.Client, end: str
    ) -> None:
        token, _, task = token_of(agent)
        if end == "closed":
            assert agent.delete(f"/v1/tasks/{task}").json() == {"confirmed": True}
        else:
            with apis.ledger() as ledger:
                ledger.agents.block("complaint-agent", until=None, by="x", reason="", now=SystemClock().now())
        assert active(crm, token) == {"active": False}

    def test_only_the_service_that_it_is_for_is_told(self, apis: Apis, agent: httpx.Client, crm: httpx.Client) -> None:
        token, _, _ = token_of(agent)
        with apis.client(sub="mail-service") as other:
            assert active(other, token) == {"active": False}
        assert agent.post("/v1/introspect", data={"token": token}).status_code == 403
        assert httpx.post(agent.base_url.join("/v1/introspect"), data={"token": token}).status_code == 401
        answer = crm.post("/v1/tasks", json={"type": "complaint_desk", "inputs": {"customer": 1}})
        assert answer.status_code == 403, "a service opens no tasks"

    def test_what_is_no_token_of_ours_is_not_active(self, apis: Apis, agent: httpx.Client, crm: httpx.Client) -> None:
        token, _, _ = token_of(agent)
        head, body, signature = token.split(".")
        claims = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
        changed = {**claims, "authorization_details": [{"type": "crm_record", "actions": ["write_ticket"]}]}
        forged = base64.urlsafe_b64encode(json.dumps(changed).encode()).rstrip(b"=").decode()
        elsewhere = {**claims, "iss": ISSUER}
        tokens = [
            "x",
            "a.b.c",
            f"{head}.{forged}.{signature}",
            f"{head}.{body}.{signature[:-4]}AAAA",
            apis.token(**claims | {"exp": int(time.time()) + 60}),
            apis.token(**elsewhere),
        ]
        assert [active(crm, each) for each in tokens] == [{"active": False}] * len(tokens)
        for body_ in (b"", b"token=", b"token=a&token=b", b"token=" + b"x" * 20_000, b"a=&" * 21 + b"token=a"):
            headers = {"Content-Type": "application/x-www-form-urlencoded"}
            assert crm.post("/v1/introspect", content=body_, headers=headers).status_code == 400

    def test_what_another_key_of_ours_has_signed_is_not_active(
        self, bench: Bench, agent: httpx.Client, crm: httpx.Client
    ) -> None:
        """Each key has an issuer of its own: whoever may sign with one makes no tokens of another's."""
        token, lease, _ = token_of(agent)
        claims = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))
        wider = [{"type": "crm_record", "actions": ["write_ticket"], "identifier": "1235"}]
        admin = VaultAdmin(bench.info.vault_address, bench.info.root_token)
        admin.request("POST", "transit/keys/another", {"type": "ecdsa-p256"})
        signer = Signer(admin, claims["iss"])
        try:
            forged = signer.token(key="another", **claims | {"authorization_details": wider})
            of_its_own = signer.token(key="another", **claims | {"iss": claims["iss"] + "/another", "jti": lease + "x"})
            own = signer.token(**claims)
            assert active(crm, own)["active"], "the same claims by the right key"
            assert active(crm, forged) == {"active": False}
            assert not decision(crm, evaluation(forged, identifier="1235"))
            answer = crm.post("/v1/introspect", data={"token": of_its_own})
            assert answer.status_code == 503 or answer.json() == {"active": False}
        finally:
            admin.request("POST", "transit/keys/another/config", {"deletion_allowed": True})
            admin.request("DELETE", "transit/keys/another")

    def test_a_service_that_enforces_refuses_what_was_given_back(
        self, apis: Apis, bench: Bench, agent: httpx.Client
    ) -> None:
        """By `orchestrator.pep`, as a service has it: signature and details here, the rest by asking."""
        token, lease, _ = token_of(agent)
        service_token = apis.token("crm-service")
        operation = Operation("crm_record", "write_ticket", "1234")

        async def served() -> None:
            assert bench.info.issuer_url is not None
            protection = Protection(
                access_tokens(bench.info.issuer_url, "crm"),
                IssuerKeys.at(f"{bench.info.issuer_url}/.well-known/jwks.json"),
                "crm",
                introspection=Introspection(str(agent.base_url.join("/v1/introspect")), Bearer(lambda: service_token)),
            )
            try:
                known = await protection.authenticate([f"Bearer {token}"])
                protection.require(known, operation=operation)
                await asyncio.to_thread(agent.delete, f"/v1/leases/{lease}")
                with pytest.raises(AccessRefused) as refused:
                    await protection.authenticate([f"Bearer {token}"])
                assert refused.value.answer.status == 401
            finally:
                await protection.aclose()

        asyncio.run(served())


class TestEvaluation:
    def test_a_token_permits_what_it_is_for_while_the_policy_does(
        self, apis: Apis, agent: httpx.Client, crm: httpx.Client
    ) -> None:
        token, _, task = token_of(agent)
        assert decision(crm, evaluation(token))
        refused = {
            "another customer": evaluation(token, identifier="1235"),
            "another action": evaluation(token, action="delete_ticket"),
            "another type": evaluation(token, kind="invoice"),
            "a changed token": evaluation(token[:-4] + "AAAA"),
        }
        assert {name: decision(crm, asked) for name, asked in refused.items()} == dict.fromkeys(refused, False)
        (apis.directory / "policies" / "p.rego").write_text(POLICY.replace("complaint-agent", "nobody"))
        wait_for(lambda: not decision(crm, evaluation(token)), "the policy of now")
        answer = crm.post("/access/v1/evaluation", json=evaluation(token)).json()
        assert answer == {"decision": False, "context": {"reason": "closed for today"}}
        (apis.directory / "policies" / "p.rego").write_text(POLICY)
        wait_for(lambda: decision(crm, evaluation(token)), "the policy of now")
        agent.delete(f"/v1/tasks/{task}")
        assert not decision(crm, evaluation(token))

    def test_several_at_once(self, agent: httpx.Client, crm: httpx.Client) -> None:
        token, _, _ = token_of(agent)
        whole = evaluation(token)
        resources = [{"type": "crm_record", "id": each} for each in ("1234", "1235", "1234")]
        batch = {**whole, "evaluations": [{"resource": each} for each in resources]}
        found = {}
        for semantic in ("execute_all", "deny_on_first_deny", "permit_on_first_permit"):
            asked = {**batch, "options": {"evaluations_semantic": semantic}}
            answer = crm.post("/access/v1/evaluations", json=asked).json()
            found[semantic] = [each["decision"] for each in answer["evaluations"]]
        assert found == {
            "execute_all": [True, False, True],
            "deny_on_first_deny": [True, False],
            "permit_on_first_permit": [True],
        }
        assert crm.post("/access/v1/evaluations", json=whole).json() == {"decision": True}
        many = {**whole, "evaluations": [{}] * 101}
        assert crm.post("/access/v1/evaluations", json=many).status_code == 400

    def test_what_is_no_question_is_refused(self, agent: httpx.Client, crm: httpx.Client) -> None:
        token, _, _ = token_of(agent)
        whole = evaluation(token)
        for without in ("subject", "action", "resource"):
            asked = {name: value for name, value in whole.items() if name != without}
            assert crm.post("/access/v1/evaluation", json=asked).status_code == 400
        wrong = {**whole, "subject": {"type": "user", "id": "alice", "properties": {}}}
        assert crm.post("/access/v1/evaluation", json=wrong).status_code == 400
        assert crm.post("/access/v1/evaluation", content=b"{").status_code == 400
        assert agent.post("/access/v1/evaluation", json=whole).status_code == 403

    def test_it_says_where_it_is(self, crm: httpx.Client) -> None:
        found = crm.get("/.well-known/authzen-configuration").json()
        here = str(crm.base_url).rstrip("/")
        assert found["policy_decision_point"] == here
        assert found["access_evaluation_endpoint"] == f"{here}/access/v1/evaluation"

"""The token endpoint of OAuth in processes of its own: what is issued to whom, and what other wishes are answered."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from apis import Apis, apis_on, call, opened
from bench import Bench
from database_servers import Authority
from desks import TASK
from escaped import escaped_secrets, holds_secret
from exchanges import ACCESS_TOKEN, GRANT, claims_of, exchange, oauth_error, wanted
from fork_server import ForkServer
from waiting import wait_for

from orchestrator.clock import SystemClock
from orchestrator.ledger.events import Decided
from orchestrator.ledger.lease import LeaseState
from orchestrator.ledger.types import LeaseFilter

PROBLEM = "urn:credential-orchestrator:problem:"
SERVICES = """\
services:
  crm: { identities: [ { issuer: tests, claims: { sub: crm-service } } ] }
  wide-crm: { audience: "https://crm.example/api", identities: [ { issuer: tests, claims: { sub: wide-service } } ] }
"""
TOOLS = """\
  wide:
    description: A token for more than one thing.
    grants: { crm: { kind: token, ttl: 60s, audience: "https://crm.example/api", scope: [read, write_ticket] } }
    hand_over: crm
  few:
    description: A token, twice at most.
    grants: { crm: { kind: token, ttl: 60s, audience: crm, scope: [read] } }
    hand_over: crm
    max_calls: 2
    max_open: 1
"""
POLICY = """\
package orchestrator
import rego.v1
decision := {"allow": true} if input.step.id != "few"
decision := {"allow": false, "reasons": ["not \\"few\\" today"]} if input.step.id == "few"
"""
APPROVAL = """\
package orchestrator
decision := {"allow": true, "obligations": {"approval": {"approvers": ["vault:userpass-alice"]}}}
"""


@pytest.fixture
def apis(bench: Bench, children: ForkServer) -> Iterator[Apis]:
    with apis_on(bench, children) as found:
        found.put(TASK + TOOLS)
        found.agents.write_text(found.agents.read_text() + SERVICES)
        yield found
        assert escaped_secrets([found.directory]) == []
    bench.assert_nothing_left()


@pytest.fixture
def url(apis: Apis) -> str:
    return apis.start().url


@pytest.fixture
def task(apis: Apis, url: str) -> str:
    with apis.client() as agent:
        found: str = opened(agent)["id"]
        return found


def decide(apis: Apis, policy: str) -> None:
    """What processes that are started from now on decide by."""
    folder = apis.directory / "policies"
    folder.mkdir()
    (folder / "p.rego").write_text(policy)
    apis.more |= {"ORCHESTRATOR_POLICY": "rego", "ORCHESTRATOR_POLICY_PATH": str(folder)}


def issued(answer: httpx.Response) -> dict[str, Any]:
    """An answer with a token: exactly what RFC 8693, 2.2.1 and RFC 9396, 7 have it consist of."""
    assert answer.status_code == 200, answer.text
    assert (answer.headers["cache-control"], answer.headers["pragma"]) == ("no-store", "no-cache")
    assert answer.headers["content-type"] == "application/json"
    found: dict[str, Any] = answer.json()
    members = {"access_token", "issued_token_type", "token_type", "expires_in", "scope", "authorization_details"}
    assert set(found) == members
    assert (found["issued_token_type"], type(found["expires_in"])) == (ACCESS_TOKEN, int)
    return found


def active(apis: Apis, token: str, url: str, service: str = "crm-service") -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {apis.token(service)}"}
    told = [
        httpx.post(f"{url}{path}", data={"token": token}, headers=headers, trust_env=False).json()
        for path in ("/oauth/introspect", "/v1/introspect")
    ]
    assert told[0] == told[1], "two doors to the same"
    found: dict[str, Any] = told[0]
    return found


def revoke(apis: Apis, token: str, url: str, who: str = "complaint") -> httpx.Response:
    headers = {"Authorization": f"Bearer {apis.token(who)}"}
    return httpx.post(f"{url}/oauth/revoke", data={"token": token}, headers=headers, trust_env=False, timeout=30)


class TestExchange:
    def test_an_agent_gets_the_token_of_a_tool(self, apis: Apis, url: str, task: str) -> None:
        answer = issued(exchange(url, wanted(apis.token(), task, arguments={"priority": "high"})))
        details = [{"type": "crm_record", "actions": ["write_ticket"], "identifier": "1234"}]
        assert (answer["token_type"], answer["scope"]) == ("Bearer", "write_ticket")
        assert answer["authorization_details"] == details
        assert 0 < answer["expires_in"] <= 60
        claims = claims_of(answer["access_token"])
        assert (claims["sub"], claims["aud"], claims["scope"]) == ("complaint-agent", "crm", "write_ticket")
        assert (claims["authorization_details"], "cnf" in claims) == (details, False)
        told = active(apis, answer["access_token"], url)
        assert (told["active"], told["jti"], told["token_type"]) == (True, claims["jti"], "Bearer")
        with apis.ledger() as ledger:
            lease = ledger.lease(claims["jti"])
            assert lease is not None
            assert (lease.state, lease.agent, lease.step) == (LeaseState.ISSUED, "complaint-agent", "ticket")
            run = ledger.run(lease.run_id)
            assert run is not None
            assert (run.task, run.trigger) == (task, "call")
            decided = ledger.events(lease.run_id, kind=Decided.kind)[0].data
            assert decided["input"]["task"]["call"] == {"priority": "high"}  # type: ignore[index,call-overload]
        with apis.client() as agent:
            shown = agent.get(f"/v1/tasks/{task}").json()
            assert shown["calls"]["ticket"] == {"made": 1, "open": 1}
            assert agent.delete(f"/v1/tasks/{task}").json() == {"confirmed": True}
        assert active(apis, answer["access_token"], url) == {"active": False}

    def test_a_wish_for_less_is_issued_as_less(self, apis: Apis, url: str, task: str) -> None:
        for wish, scope in (("read", "read"), ("write_ticket read", "read write_ticket"), (None, "read write_ticket")):
            parameters = wanted(apis.token(), task, "wide", scope=wish, audience="https://crm.example/api")
            answer = issued(exchange(url, parameters))
            claims = claims_of(answer["access_token"])
            assert (answer["scope"], claims["scope"]) == (scope, scope)
            assert active(apis, answer["access_token"], url, "wide-service")["scope"] == scope
            with apis.ledger() as ledger:
                lease = ledger.lease(claims["jti"])
                assert lease is not None
                assert lease.scope["scopes"] == scope.split(), "the intent says what was asked for"
                asked = ledger.events(lease.run_id, kind=Decided.kind)[0].data["input"]
                assert asked["grants"][0]["scopes"] == scope.split(), "and so was the policy"  # type: ignore[index,call-overload]
        same = {"resource": ["https://crm.example/api"] * 2, "audience": "https://crm.example/api"}
        issued(exchange(url, wanted(apis.token(), task, "wide", **same)))

    def test_a_wish_for_more_or_for_another_is_refused(self, apis: Apis, url: str, task: str) -> None:
        api = "https://crm.example/api"
        wishes: list[tuple[str, dict[str, Any], str]] = [
            ("wide", {"scope": "read admin"}, "invalid_scope"),
            ("wide", {"scope": "admin"}, "invalid_scope"),
            ("wide", {"scope": "READ"}, "invalid_scope"),
            ("wide", {"scope": "read  write_ticket"}, "invalid_scope"),
            ("wide", {"scope": 'read "'}, "invalid_scope"),
            ("wide", {"audience": "crm"}, "invalid_target"),
            ("wide", {"audience": [api, "crm"]}, "invalid_target"),
            ("wide", {"resource": f"{api}/"}, "invalid_target"),
            ("wide", {"resource": [api, "https://other.example"]}, "invalid_target"),
            ("wide", {"resource": f"{api}#all"}, "invalid_target"),
            ("wide", {"resource": "crm.example/api"}, "invalid_target"),
            ("wide", {"audience": api, "resource": "https://other.example"}, "invalid_target"),
            ("ticket", {"resource": "https://crm.example"}, "invalid_target"),
        ]
        for tool, wish, error in wishes:
            oauth_error(exchange(url, wanted(apis.token(), task, tool, **wish)), error)
        with apis.client() as agent:
            assert {each["made"] for each in agent.get(f"/v1/tasks/{task}").json()["calls"].values()} == {0}

    def test_what_is_no_request_is_refused_as_the_standards_say(self, apis: Apis, url: str, task: str) -> None:
        token = apis.token()

        def details(*elements: Any) -> dict[str, Any]:
            return {"authorization_details": json.dumps(list(elements))}

        whole = {"type": "tool_call", "task": task, "tool": "ticket"}
        wrong: list[tuple[dict[str, Any], str]] = [
            ({"grant_type": None}, "invalid_request"),
            ({"grant_type": ""}, "invalid_request"),
            ({"grant_type": "client_credentials"}, "unsupported_grant_type"),
            ({"grant_type": GRANT.upper()}, "unsupported_grant_type"),
            ({"grant_type": [GRANT, GRANT]}, "invalid_request"),
            ({"subject_token": None}, "invalid_request"),
            ({"subject_token": [token, token]}, "invalid_request"),
            ({"subject_token": "x" * 20_000}, "invalid_request"),
            ({"subject_token_type": None}, "invalid_request"),
            ({"subject_token_type": "urn:ietf:params:oauth:token-type:saml2"}, "invalid_request"),
            ({"requested_token_type": "urn:ietf:params:oauth:token-type:refresh_token"}, "invalid_request"),
            ({"requested_token_type": "urn:ietf:params:oauth:token-type:jwt"}, "invalid_request"),
            ({"actor_token": token, "actor_token_type": "urn:ietf:params:oauth:token-type:jwt"}, "invalid_request"),
            ({"scope": ["write_ticket", "write_ticket"]}, "invalid_request"),
            ({"unheard_of": ["a", "b"]}, "invalid_request"),
            ({"authorization_details": None}, "invalid_authorization_details"),
            ({"authorization_details": "[" * 100}, "invalid_authorization_details"),
            ({"authorization_details": json.dumps(whole)}, "invalid_authorization_details"),
            ({"authorization_details": '[], "more": [1]'}, "invalid_authorization_details"),
            ({"authorization_details": '[{"type": "tool_call", "type": "a"}]'}, "invalid_authorization_details"),
            (details(), "invalid_authorization_details"),
            (details(whole, whole), "invalid_authorization_details"),
            (details("tool_call"), "invalid_authorization_details"),
            (details({**whole, "type": "crm_record"}), "invalid_authorization_details"),
            (details({**whole, "actions": ["write_ticket"]}), "invalid_authorization_details"),
            (details({"type": "tool_call", "tool": "ticket"}), "invalid_authorization_details"),
            (details({"type": "tool_call", "task": task}), "invalid_authorization_details"),
            (details({**whole, "task": 1}), "invalid_authorization_details"),
            (details({**whole, "tool": None}), "invalid_authorization_details"),
            (details({**whole, "arguments": []}), "invalid_authorization_details"),
            (details({**whole, "arguments": {"priority": "urgent"}}), "invalid_authorization_details"),
            (details({**whole, "arguments": {"customer": 1}}), "invalid_authorization_details"),
            (details({**whole, "tool": "tickets"}), "invalid_authorization_details"),
            (details({**whole, "tool": "read"}), "invalid_authorization_details"),
            (details({**whole, "tool": "login"}), "invalid_authorization_details"),
            (details({**whole, "task": "task_x"}), "invalid_grant"),
            (details({**whole, "task": "../" + task}), "invalid_grant"),
        ]
        for number, (changes, error) in enumerate(wrong):
            if number % 30 == 29:
                time.sleep(0.5)  # the agent's rate
            parameters = {
                name: value for name, value in {**wanted(token, task), **changes}.items() if value is not None
            }
            oauth_error(exchange(url, parameters), error)
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        bodies: list[tuple[bytes, dict[str, str], int]] = [
            (b"", form, 400),
            (b"{}", {"Content-Type": "application/json"}, 400),
            (b"grant_type=a", {}, 400),
            (b"grant_type=%", form, 400),
            (b"grant_type=%zz", form, 400),
            (b"grant_type=%ff", form, 400),
            (b"grant_type=\xff", form, 400),
            (b"a=&" * 41, form, 400),
            (b"a=" + b"x" * 70_000, form, 413),
        ]
        for body, headers, status in bodies:
            answer = httpx.post(f"{url}/oauth/token", content=body, headers=headers, trust_env=False)
            oauth_error(answer, "invalid_request", status)
        oauth_error(httpx.post(f"{url}/oauth/token?a=b", data=wanted(token, task)), "invalid_request")
        for key in ("a b", "x" * 129):
            oauth_error(exchange(url, wanted(token, task), Idempotency_Key=key), "invalid_request")
        assert httpx.get(f"{url}/oauth/token").status_code == 405
        with apis.ledger() as ledger:
            assert list(ledger.calls(task)) == [], "nothing of all that began a call"

    def test_who_may_not_is_told_so_in_the_words_of_the_standards(self, apis: Apis, url: str, task: str) -> None:
        now = int(time.time())
        of_nobody = {
            "expired": apis.token(exp=now - 60),
            "not yet": apis.token(nbf=now + 60),
            "for another": apis.token(aud="crm"),
            "of another issuer": apis.token(iss="https://evil.example"),
            "changed": apis.token()[:-8] + "AAAAAAAA",
            "nobody": apis.token("somebody"),
            "nobody, for the agent": apis.token("complaint", act={"sub": "somebody"}),
            "no JWT": "abc",
        }
        for name, token in of_nobody.items():
            found = oauth_error(exchange(url, wanted(token, task)), "invalid_request")
            assert "subject_token" in found["error_description"], name
        for token in (apis.token("other"), apis.token("alice", act={"sub": "complaint"})):
            found = oauth_error(exchange(url, wanted(token, task)), "invalid_grant")
            assert found["problem"] == f"{PROBLEM}not-found", "whether another has it is not for them to know"
        oauth_error(exchange(url, wanted(apis.token("crm-service"), task)), "unauthorized_client")
        token = apis.token()
        oauth_error(exchange(url, wanted(token, task, client_id="other-agent")), "invalid_client", 401)
        another = f"Bearer {apis.token('other')}"
        oauth_error(exchange(url, wanted(token, task), Authorization=another), "invalid_client", 401)
        oauth_error(exchange(url, wanted(token, task), Authorization="Basic YTpi"), "invalid_client", 401)
        same = exchange(url, wanted(token, task, client_id="complaint-agent"), Authorization=f"Bearer {token}")
        assert claims_of(issued(same)["access_token"])["sub"] == "complaint-agent"
        with apis.client(sub="alice", act={"sub": "complaint"}) as delegated:
            theirs = opened(delegated)["id"]
        parameters = wanted(apis.token("alice", act={"sub": "complaint"}), theirs)
        assert claims_of(issued(exchange(url, parameters))["access_token"])["sub"] == "complaint-agent"
        with apis.client() as agent:
            agent.delete(f"/v1/tasks/{task}")
        assert oauth_error(exchange(url, wanted(token, task)), "invalid_grant")["problem"] == f"{PROBLEM}task-ended"
        with apis.ledger() as ledger:
            ledger.agents.block("complaint-agent", until=None, by="x", reason="", now=SystemClock().now())
        cut_off = exchange(url, parameters)  # which closes its tasks, too, a moment later
        if "closed" in cut_off.json()["error_description"]:
            assert "cut off" in oauth_error(cut_off, "invalid_grant")["error_description"]
        else:
            assert oauth_error(cut_off, "unauthorized_client")["problem"] == f"{PROBLEM}agent-cut-off"

    def test_budgets_and_policies_hold_here_too(self, apis: Apis) -> None:
        decide(apis, POLICY)
        url = apis.start().url
        with apis.client() as agent:
            task = opened(agent)["id"]
        denied = oauth_error(exchange(url, wanted(apis.token(), task, "few"), Idempotency_Key="k"), "access_denied")
        assert (denied["by"], denied["reasons"]) == ("policy", ['not "few" today'])
        again = oauth_error(exchange(url, wanted(apis.token(), task, "few"), Idempotency_Key="k"), "access_denied")
        assert again["call"] == denied["call"], "the same call is told again"
        (apis.directory / "policies" / "p.rego").write_text('package orchestrator\ndecision := {"allow": true}\n')

        def allowed() -> httpx.Response | None:
            answer = exchange(url, wanted(apis.token(), opened_task(apis), "few"))
            return answer if answer.status_code == 200 else None

        first = issued(wait_for(allowed, "the new policy"))
        assert first["scope"] == "read"
        with apis.client() as agent:
            task = opened(agent)["id"]
        token = issued(exchange(url, wanted(apis.token(), task, "few")))["access_token"]
        for _ in range(2):
            found = oauth_error(exchange(url, wanted(apis.token(), task, "few")), "access_denied")
            assert found["problem"] == f"{PROBLEM}budget-spent"
        assert revoke(apis, token, url).status_code == 200
        token = issued(exchange(url, wanted(apis.token(), task, "few")))["access_token"]
        assert revoke(apis, token, url).status_code == 200
        found = oauth_error(exchange(url, wanted(apis.token(), task, "few")), "access_denied")
        assert found["problem"] == f"{PROBLEM}budget-spent", "every call counts, however it ended"

    def test_whoever_asks_again_with_a_key_is_told_of_the_same_call(self, apis: Apis, url: str, task: str) -> None:
        parameters = wanted(apis.token(), task)
        first = issued(exchange(url, parameters, Idempotency_Key="mine"))
        lease = claims_of(first["access_token"])["jti"]
        again = oauth_error(exchange(url, parameters, Idempotency_Key="mine"), "invalid_request")
        assert (again["problem"], again["lease"]) == (f"{PROBLEM}idempotency-key-used", lease)
        other = wanted(apis.token(), task, arguments={"priority": "high"})
        for changed in (other, wanted(apis.token(), task, "wide")):
            found = oauth_error(exchange(url, changed, Idempotency_Key="mine"), "invalid_request")
            assert (found["problem"], "lease" in found) == (f"{PROBLEM}idempotency-key-used", False)
        issued(exchange(url, wanted(apis.token(), task, "wide", scope="read"), Idempotency_Key="less"))
        more = exchange(url, wanted(apis.token(), task, "wide"), Idempotency_Key="less")
        assert "lease" not in oauth_error(more, "invalid_request"), "another wish is another call"
        with apis.client() as agent:
            assert call(agent, task, "ticket", key="mine").json()["lease"]["id"] == lease, "at the other door, too"
            assert agent.delete(f"/v1/leases/{lease}").json() == {"confirmed": True}
        ended = oauth_error(exchange(url, parameters, Idempotency_Key="mine"), "invalid_request")
        assert ("has ended" in ended["error_description"], "lease" in ended) == (True, False)
        fresh = issued(exchange(url, parameters, Idempotency_Key="next"))
        assert fresh["access_token"] != first["access_token"]

    @pytest.fixture
    def says(self, apis: Apis) -> Iterator[Callable[[str, str], None]]:
        """Alice approves, or denies."""
        vault = apis.bench.vault
        vault.sys.enable_auth_method("userpass")
        try:
            vault.write_data("auth/userpass/users/alice", data={"password": "x" * 12})
            token = vault.write_data("auth/userpass/login/alice", data={"password": "x" * 12})["auth"]["client_token"]

            def vote(verdict: str, approval: str) -> None:
                environment = {**apis.environment(), "VAULT_TOKEN": token}
                answer = apis.children.command("approvals", verdict, approval, environment=environment)
                assert answer.returncode == 0, answer.stderr

            yield vote
        finally:
            vault.sys.disable_auth_method("userpass")

    @pytest.mark.parametrize("key", ["mine", None])
    def test_what_waits_for_people_goes_on_when_it_is_asked_for_again(
        self, apis: Apis, says: Callable[[str, str], None], key: str | None
    ) -> None:
        decide(apis, APPROVAL)
        urls = [apis.start().url, apis.start().url]
        task = opened_task(apis)

        def ask(url: str, **more: Any) -> httpx.Response:
            return exchange(url, wanted(apis.token(), task, "wide", **more), Idempotency_Key=key)

        pending = oauth_error(ask(urls[0], scope="read"), "authorization_pending")
        assert (pending["interval"], pending["approval"].startswith("appr_")) == (5, True)
        for url in urls:
            assert oauth_error(ask(url, scope="read"), "authorization_pending")["call"] == pending["call"]
        says("approve", pending["approval"])
        answer = issued(ask(urls[1], scope="read"))
        assert answer["scope"] == "read"
        assert [active(apis, answer["access_token"], url, "wide-service")["active"] for url in urls] == [True, True]
        if key is None:
            second = oauth_error(ask(urls[0]), "authorization_pending")
            assert second["call"] != pending["call"]
            says("deny", second["approval"])
            denied = oauth_error(ask(urls[0]), "access_denied")
            assert "alice has refused it" in denied["error_description"]


def opened_task(apis: Apis, **more: Any) -> str:
    with apis.client() as agent:
        found: str = opened(agent, **more)["id"]
        return found


class TestRevocation:
    def test_only_who_holds_a_token_gives_it_back(self, apis: Apis, url: str, task: str) -> None:
        token = issued(exchange(url, wanted(apis.token(), task)))["access_token"]
        lease_id = claims_of(token)["jti"]
        for stranger in ("other", "crm-service"):
            oauth_error(revoke(apis, token, url, stranger), "unauthorized_client")
        oauth_error(revoke(apis, token, url, "nobody"), "invalid_client", 401)
        oauth_error(httpx.post(f"{url}/oauth/revoke", data={"token": token}), "invalid_client", 401)
        assert active(apis, token, url)["active"], "still"
        back = revoke(apis, token, url)
        assert (back.status_code, back.json(), back.headers["cache-control"]) == (200, {}, "no-store")
        assert active(apis, token, url) == {"active": False}
        with apis.ledger() as ledger:
            lease = ledger.lease(lease_id)
            assert lease is not None
            assert lease.state is LeaseState.ENDED, "a signature is not taken back: until then it verifies"
            assert lease.expires_at is not None
            assert int(lease.expires_at.timestamp()) >= claims_of(token)["exp"] - 2
            assert lease.closed_at is not None
        assert revoke(apis, token, url).status_code == 200, "again"

    def test_what_is_no_token_of_ours_is_as_good_as_revoked(self, apis: Apis, url: str, task: str) -> None:
        token = issued(exchange(url, wanted(apis.token(), task)))["access_token"]
        head, body, signature = token.split(".")
        for other in ("x", "a.b.c", apis.token(), f"{head}.{body}.{signature[:-8]}AAAAAAAA", "y" * 20_000):
            assert revoke(apis, other, url).status_code == 200
        assert active(apis, token, url)["active"]
        with apis.client() as agent:
            oauth_error(agent.post("/oauth/revoke", data={"token": [token, token]}), "invalid_request")
            oauth_error(agent.post("/oauth/revoke", data={"token": ""}), "invalid_request")
            oauth_error(agent.post("/oauth/revoke", json={"token": token}), "invalid_request")
            hinted = agent.post("/oauth/revoke", data={"token": token, "token_type_hint": "refresh_token"})
            assert hinted.status_code == 200
        assert active(apis, token, url) == {"active": False}

    def test_a_token_that_another_door_has_handed_over_is_given_back(self, apis: Apis, url: str, task: str) -> None:
        with apis.client() as agent:
            token = call(agent, task, "ticket").json()["credential"]["fields"]["token"]
        assert revoke(apis, token, url).status_code == 200
        assert active(apis, token, url) == {"active": False}


class TestIntrospection:
    def test_only_services_are_told(self, apis: Apis, url: str, task: str) -> None:
        token = issued(exchange(url, wanted(apis.token(), task)))["access_token"]
        with apis.client() as agent:
            refused = agent.post("/oauth/introspect", data={"token": token})
            assert (refused.status_code, refused.json()["error"]) == (403, "insufficient_scope")
            assert 'error="insufficient_scope"' in refused.headers["www-authenticate"]
        oauth_error(httpx.post(f"{url}/oauth/introspect", data={"token": token}), "invalid_client", 401)
        with apis.client(sub="crm-service") as crm:
            oauth_error(crm.post("/oauth/introspect", data={"token": [token, token]}), "invalid_request")
            oauth_error(crm.post("/oauth/introspect", data={}), "invalid_request")
        assert active(apis, token, url, "wide-service") == {"active": False}, "it is for another service"

    def test_a_token_is_inactive_after_the_deadline_of_its_task(self, apis: Apis, url: str) -> None:
        apis.put((TASK + TOOLS).replace("duration: 10m", "duration: 4s"))

        def short() -> dict[str, Any] | None:
            with apis.client() as agent:
                task = opened(agent)
            seconds = [
                time.mktime(time.strptime(task[name][:19], "%Y-%m-%dT%H:%M:%S")) for name in ("opened_at", "deadline")
            ]
            return task if seconds[1] - seconds[0] < 60 else None

        task = wait_for(short, "the new version")["id"]
        answer = issued(exchange(url, wanted(apis.token(), task)))
        assert answer["expires_in"] <= 4, "no token outlives its task"
        with apis.client(sub="crm-service") as crm:
            asked = {"token": answer["access_token"]}
            wait_for(lambda: crm.post("/oauth/introspect", data=asked).json() == {"active": False}, "the deadline")
        wait_for(lambda: exchange(url, wanted(apis.token(), task)).status_code == 400, "the end of its last second")
        oauth_error(exchange(url, wanted(apis.token(), task)), "invalid_grant")
        assert revoke(apis, answer["access_token"], url).status_code == 200


class TestProcesses:
    @pytest.fixture
    def urls(self, bench: Bench, children: ForkServer, apis: Apis) -> list[str]:
        return [apis.start().url, apis.start().url]

    def test_what_one_has_issued_another_one_ends(self, apis: Apis, urls: list[str]) -> None:
        task = opened_task(apis)
        tokens = [issued(exchange(each, wanted(apis.token(), task)))["access_token"] for each in urls]
        for token in tokens:
            assert [active(apis, token, url)["active"] for url in urls] == [True, True]
        assert revoke(apis, tokens[0], urls[1]).status_code == 200
        assert [active(apis, tokens[0], url) for url in urls] == [{"active": False}] * 2, "at once, at both"
        assert [active(apis, tokens[1], url)["active"] for url in urls] == [True, True]
        with apis.client(apis.processes[0]) as agent:
            assert agent.delete(f"/v1/tasks/{task}").json() == {"confirmed": True}
        assert [active(apis, tokens[1], url) for url in urls] == [{"active": False}] * 2

    def test_one_key_is_one_call_at_all_of_them(self, apis: Apis, urls: list[str]) -> None:
        task = opened_task(apis)
        with ThreadPoolExecutor(6) as pool:
            asked = [
                pool.submit(exchange, urls[number % 2], wanted(apis.token(), task), Idempotency_Key="k")
                for number in range(6)
            ]
            answers = [each.result() for each in asked]
        assert sorted(each.status_code for each in answers) == [200] + [400] * 5
        errors = {each.json()["error"] for each in answers if each.status_code == 400}
        assert errors <= {"invalid_request", "authorization_pending"}
        with apis.ledger() as ledger:
            assert len(list(ledger.calls(task))) == 1

    def test_kill_9_of_the_process_that_holds_a_call(self, apis: Apis, urls: list[str]) -> None:
        task = opened_task(apis)
        parameters = wanted(apis.token(), task)
        token = issued(exchange(urls[0], parameters, Idempotency_Key="k"))["access_token"]
        apis.processes[0].process.send_signal(signal.SIGKILL)
        apis.processes[0].process.wait()
        with apis.client(apis.processes[1], sub="crm-service") as crm:
            asked = {"token": token}
            closed = {"active": False}
            wait_for(lambda: crm.post("/oauth/introspect", data=asked).json() == closed, "its calls to be closed", 40)
        failed = exchange(urls[1], parameters, Idempotency_Key="k")
        assert "is gone" in oauth_error(failed, "server_error", 500)["error_description"]
        assert revoke(apis, token, urls[1]).status_code == 200
        assert active(apis, issued(exchange(urls[1], parameters))["access_token"], urls[1])["active"]
        with apis.ledger() as ledger:
            leases = ledger.leases(LeaseFilter(task=task, limit=100))
            assert [each.closed_at is not None for each in leases if each.lease_id == claims_of(token)["jti"]] == [True]

    def test_one_that_is_about_to_end_sends_elsewhere(self, apis: Apis, urls: list[str]) -> None:
        task = opened_task(apis)
        with ThreadPoolExecutor(1) as pool, apis.client(apis.processes[0]) as agent:
            slow = pool.submit(call, agent, task, "pause", {"seconds": 3})
            sleeping = "SELECT pid FROM pg_stat_activity WHERE usename LIKE 'orc\\_pause%' AND wait_event = 'PgSleep'"
            wait_for(lambda: apis.bench.sql(sleeping), "the call to wait")
            apis.processes[0].process.send_signal(signal.SIGTERM)
            wait_for(lambda: any("no new runs" in each["message"] for each in apis.processes[0].records()), "the drain")
            refused = exchange(urls[0], wanted(apis.token(), task))
            oauth_error(refused, "temporarily_unavailable", 503)
            assert (refused.headers["retry-after"], refused.headers["connection"]) == ("1", "close")
            assert slow.result().json()["state"] == "done"


class TestCertificates:
    def test_a_certificate_and_the_subject_token_are_to_be_of_one_agent(self, apis: Apis) -> None:
        authority = Authority.make(apis.directory, "authority")
        own = str(authority.issued("127.0.0.1"))
        process = apis.start("--api-cert", own, "--api-key", own, "--api-client-ca", str(authority.file))
        url = process.url.replace("http://", "https://")

        def client(name: str | None) -> httpx.Client:
            import ssl

            context = ssl.create_default_context(cafile=authority.file)
            if name is not None:
                context.load_cert_chain(authority.issued(name))
            return httpx.Client(base_url=url, verify=context, trust_env=False, timeout=60)

        with client("spiffe://example/complaint") as agent:
            task = opened(agent)["id"]
            answer = issued(agent.post("/oauth/token", data=wanted(apis.token(), task)))
            oauth_error(agent.post("/oauth/token", data=wanted(apis.token("other"), task)), "invalid_client", 401)
            metadata = agent.get("/.well-known/oauth-authorization-server").json()
            assert metadata["token_endpoint_auth_methods_supported"] == ["none", "tls_client_auth"]
            assert agent.post("/oauth/revoke", data={"token": answer["access_token"]}).status_code == 200
        with client("spiffe://example/somebody") as nobody:
            oauth_error(nobody.post("/oauth/token", data=wanted(apis.token(), task)), "invalid_client", 401)
        with client(None) as bare:
            issued(bare.post("/oauth/token", data=wanted(apis.token(), task)))


def test_no_token_rests_anywhere(apis: Apis) -> None:
    url = apis.start("--drain", "0").url
    task = opened_task(apis)
    token = issued(exchange(url, wanted(apis.token(), task)))["access_token"]
    exchange(url, wanted(token, task))  # as its own subject
    exchange(url, {**wanted(apis.token(), task), "authorization_details": token})
    exchange(url, wanted(apis.token(), task, scope=token, audience=token, client_id=token))
    exchange(url, wanted(apis.token(), task, tool=token[:60]))
    revoke(apis, token + "x", url)
    assert holds_secret(token.encode()), "it would be recognised"
    apis.processes[0].stop()
    log = apis.processes[0].log.read_text()
    assert token[:30] not in log
    assert escaped_secrets([apis.directory, apis.bench.directory]) == []
    listed = apis.children.command("leases", "list", "--json", environment=apis.environment())
    assert not holds_secret(listed.stdout.encode())

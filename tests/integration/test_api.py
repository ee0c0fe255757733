"""The HTTP API in processes of its own: who may do what, and how everything is answered."""

from __future__ import annotations

import base64
import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from apis import Apis, apis_on, call, opened
from bench import Bench
from fork_server import ForkServer
from waiting import wait_for

PROBLEM = "urn:credential-orchestrator:problem:"
SLEEPING = "SELECT pid FROM pg_stat_activity WHERE usename LIKE 'orc\\_pause%' AND wait_event = 'PgSleep'"


@pytest.fixture
def apis(bench: Bench, children: ForkServer) -> Iterator[Apis]:
    with apis_on(bench, children) as found:
        found.put()
        yield found
    bench.assert_nothing_left()


@pytest.fixture
def client(apis: Apis) -> Iterator[httpx.Client]:
    apis.start()
    with apis.client() as found:
        yield found


def problem(answer: httpx.Response, status: int, kind: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["cache-control"] == "no-store"
    found: dict[str, Any] = answer.json()
    assert (found["type"], found["status"]) == (PROBLEM + kind, status), found
    return found


class TestTasks:
    def test_from_opening_to_closing(self, apis: Apis, client: httpx.Client) -> None:
        task = opened(client, reason="case 7")
        assert (task["type"], task["agent"], task["state"], task["on_behalf_of"]) == (
            "complaint_desk",
            "complaint-agent",
            "open",
            "",
        )
        tools = {each["name"]: each for each in task["tools"]}
        assert tools["read"]["arguments"]["properties"]["limit"] == {
            "type": "integer",
            "minimum": 1,
            "maximum": 50,
            "default": 10,
        }
        assert (tools["login"]["hands_over"], tools["login"]["max_open"], tools["pause"]["max_calls"]) == (True, 2, 3)
        answer = call(client, task["id"], "read", {"limit": 1})
        assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store")
        done = answer.json()
        assert (done["state"], len(done["output"]["rows"]), done["confirmed"]) == ("done", 1, True)
        shown = client.get(f"/v1/tasks/{task['id']}").json()
        assert shown["calls"]["read"] == {"made": 1, "open": 0}
        closed = client.request("DELETE", f"/v1/tasks/{task['id']}", json={"reason": "that is all"})
        assert (closed.status_code, closed.json()) == (200, {"confirmed": True})
        assert client.delete(f"/v1/tasks/{task['id']}").status_code == 200, "again"
        shown = client.get(f"/v1/tasks/{task['id']}").json()
        assert (shown["state"], shown["reason"]) == ("closed", "that is all")
        found = problem(call(client, task["id"], "read"), 409, "task-ended")
        assert "that is all" in found["detail"]

    def test_a_login_is_handed_over_and_given_back(self, apis: Apis, client: httpx.Client) -> None:
        task = opened(client)
        answer = call(client, task["id"], "login", key="mine")
        assert answer.status_code == 200
        got = answer.json()
        assert got["state"] == "handed_over"
        assert got["lease"]["scope"]["privileges"][0]["where"] == {"customer_id": "1234"}
        fields, address = got["credential"]["fields"], got["credential"]["address"]
        where = psycopg.conninfo.conninfo_to_dict(address)
        with psycopg.connect(**{**where, "user": fields["username"], "password": fields["password"]}) as session:
            assert session.execute("SELECT count(*) FROM customer_feedback").fetchone() == (3,)
        again = call(client, task["id"], "login", key="mine")
        assert (again.status_code, again.json()["state"], "credential" in again.json()) == (202, "running", False)
        assert again.json()["lease"] == got["lease"], "whoever has lost the answer can give it back"
        back = client.delete(f"/v1/leases/{got['lease']['id']}")
        assert (back.status_code, back.json()) == (200, {"confirmed": True})
        assert apis.bench.logins_of_steps() == []
        over = call(client, task["id"], "login", key="mine").json()
        assert (over["state"], over["output"], {"credential", "lease"} & over.keys()) == ("done", {}, set())
        logs = apis.processes[0].log.read_text()
        assert fields["password"] not in logs
        assert apis.token()[:40] not in logs

    def test_the_types_are_those_of_the_folder_as_it_is_now(self, apis: Apis, client: httpx.Client) -> None:
        missing = client.post("/v1/tasks", json={"type": "complaint_dask", "inputs": {}})
        assert "did you mean `complaint_desk`?" in problem(missing, 403, "not-allowed")["hint"]
        file = apis.folder / "complaint_desk.yaml"
        file.write_text(file.read_text().replace("duration: 10m", "duration: 20m"))

        def longer() -> bool:
            task = opened(client)
            seconds = [task[name][:19] for name in ("opened_at", "deadline")]
            begin, end = (time.mktime(time.strptime(each, "%Y-%m-%dT%H:%M:%S")) for each in seconds)
            return end - begin == 1200

        wait_for(longer, "the new version")

    def test_a_failed_call_says_why(self, apis: Apis, client: httpx.Client) -> None:
        text = (apis.folder / "complaint_desk.yaml").read_text()
        apis.put(text.replace("complaint_desk", "another").replace("SELECT id, comment", "SELECT id, email"))
        with apis.client(sub="other") as other:
            wait_for(
                lambda: other.post("/v1/tasks", json={"type": "another", "inputs": {"customer": 1}}).status_code == 201,
                "the type",
            )
            task = other.post("/v1/tasks", json={"type": "another", "inputs": {"customer": 1}}).json()
            failed = call(other, task["id"], "read")
            assert (failed.status_code, failed.json()["state"]) == (200, "failed")
            assert "permission denied" in failed.json()["error"]["detail"]


def _part(members: dict[str, Any]) -> str:
    """A part of a token."""
    return base64.urlsafe_b64encode(json.dumps(members).encode()).rstrip(b"=").decode()


BODIES: dict[str, tuple[bytes, int, str]] = {
    "nothing": (b"", 422, "invalid-request"),
    "no JSON": (b"{", 400, "malformed-request"),
    "a list": (b"[]", 400, "malformed-request"),
    "a member twice": (b'{"type": "a", "type": "complaint_desk"}', 400, "malformed-request"),
    "not UTF-8": (b'{"type": "\xff"}', 400, "malformed-request"),
    "deep": (b'{"inputs": ' + b"[" * 200 + b"]" * 200 + b"}", 400, "malformed-request"),
    "NaN": (b'{"type": "complaint_desk", "inputs": {"customer": NaN}}', 400, "malformed-request"),
    "no type": (b'{"inputs": {}}', 422, "invalid-request"),
    "another type of type": (b'{"type": 5}', 422, "invalid-request"),
    "an agent of its own choosing": (
        b'{"type": "complaint_desk", "inputs": {"customer": 1234}, "agent": "other-agent"}',
        422,
        "invalid-request",
    ),
    "an input too many": (
        b'{"type": "complaint_desk", "inputs": {"customer": 1234, "admin": true}}',
        422,
        "invalid-request",
    ),
    "an input of another type": (b'{"type": "complaint_desk", "inputs": {"customer": "1234"}}', 422, "invalid-request"),
    "an input that is missing": (b'{"type": "complaint_desk", "inputs": {}}', 422, "invalid-request"),
    "too large": (b'{"reason": "' + b"x" * 70_000 + b'"}', 413, "too-large"),
}


class TestWhatIsRefused:
    def test_bodies(self, apis: Apis, client: httpx.Client) -> None:
        for name, (body, status, kind) in BODIES.items():
            answer = client.post("/v1/tasks", content=body, headers={"Content-Type": "application/json"})
            try:
                problem(answer, status, kind)
            except AssertionError as error:
                raise AssertionError(f"{name}: {error}") from error
        form = client.post("/v1/tasks", data={"type": "complaint_desk"})
        problem(form, 400, "malformed-request")
        with apis.ledger() as ledger:
            assert ledger.tasks() == []

    def test_calls(self, apis: Apis, client: httpx.Client) -> None:
        task = opened(client)["id"]
        problem(call(client, task, "read", {"limit": 51}), 422, "invalid-request")
        problem(call(client, task, "read", {"customer": 1}), 422, "invalid-request")
        problem(call(client, task, "raed"), 404, "not-found")
        problem(call(client, "task_x", "read"), 404, "not-found")
        for headers in ({}, {"Idempotency-Key": ""}, {"Idempotency-Key": "x" * 129}, {"Idempotency-Key": "a b"}):
            answer = client.post(f"/v1/tasks/{task}/tools/read", json={}, headers=headers)
            problem(answer, 400, "malformed-request")
        twice = [("Idempotency-Key", "a"), ("Idempotency-Key", "b"), ("Content-Type", "application/json")]
        problem(client.post(f"/v1/tasks/{task}/tools/read", content=b"{}", headers=twice), 400, "malformed-request")
        assert call(client, task, "read", {"limit": 1}, "k").status_code == 200
        problem(call(client, task, "read", {"limit": 2}, "k"), 409, "idempotency-key-used")
        logins = [call(client, task, "login").json()["lease"]["id"] for _ in range(2)]
        problem(call(client, task, "login"), 409, "budget-spent")
        assert client.delete(f"/v1/leases/{logins[0]}").status_code == 200
        assert call(client, task, "login").status_code == 200
        assert client.delete(f"/v1/tasks/{task}").json() == {"confirmed": True}

    def test_paths_and_methods(self, apis: Apis, client: httpx.Client) -> None:
        problem(client.get("/v1/nothing"), 404, "not-found")
        for wrong in ("a%00b", "%ff", "..", "task_" + "x" * 500, "task_%F0%9F%92%A9", "%2e%2e%2fhealthz"):
            assert client.get(f"/v1/tasks/{wrong}").status_code == 404
            assert client.delete(f"/v1/leases/{wrong}").status_code == 404
            assert call(client, wrong, "read").status_code == 404
        problem(client.get("/v1/tasks"), 405, "method-not-allowed")
        wrong_method = client.put("/v1/tasks/task_x")
        problem(wrong_method, 405, "method-not-allowed")
        assert set(wrong_method.headers["allow"].split(", ")) == {"GET", "HEAD", "DELETE"}
        assert client.get("/healthz").json() == {"ok": True}

    def test_whoever_is_not_known(self, apis: Apis, client: httpx.Client) -> None:
        task = opened(client)["id"]
        url = apis.processes[0].url
        head, body, signature = apis.token().split(".")
        none = _part({"alg": "none"})
        wrong = {
            "nothing": None,
            "another scheme": "Basic YTpi",
            "no token": "Bearer",
            "no JWT": "Bearer abc",
            "a changed signature": f"Bearer {head}.{body}.{signature[:-4]}AAAA",
            "another body": f"Bearer {head}.{_part({'sub': 'complaint'})}.{signature}",
            "no algorithm": f"Bearer {none}.{body}.",
            "expired": f"Bearer {apis.token(exp=int(time.time()) - 60)}",
            "not yet": f"Bearer {apis.token(nbf=int(time.time()) + 60)}",
            "another audience": f"Bearer {apis.token(aud='crm')}",
            "another issuer": f"Bearer {apis.token(iss='https://evil.example')}",
            "nobody": f"Bearer {apis.token('somebody')}",
            "nobody, acting for the agent": f"Bearer {apis.token('complaint', act={'sub': 'somebody'})}",
            "huge": "Bearer " + "x" * 20_000,
        }
        for name, header in wrong.items():
            headers = {} if header is None else {"Authorization": header}
            with httpx.Client(base_url=url, headers=headers, trust_env=False) as stranger:
                for answer in (
                    stranger.get(f"/v1/tasks/{task}"),
                    stranger.post("/v1/tasks", json={"type": "complaint_desk", "inputs": {"customer": 1234}}),
                    stranger.delete("/v1/leases/lease_x"),
                ):
                    if answer.status_code != 431:  # the server's own limit on headers
                        assert answer.headers["www-authenticate"].startswith("Bearer"), name
                        problem(answer, 401, "unauthenticated")

    def test_whoever_may_not(self, apis: Apis, client: httpx.Client) -> None:
        task = opened(client)["id"]
        lease = call(client, task, "login").json()["lease"]["id"]
        with apis.client(sub="locked") as locked:
            answer = locked.post("/v1/tasks", json={"type": "complaint_desk", "inputs": {"customer": 1234}})
            unknown = locked.post("/v1/tasks", json={"type": "complaint_dosk", "inputs": {}})
            told = [problem(each, 403, "not-allowed") for each in (answer, unknown)]
            assert told[0]["hint"] == told[1]["hint"] == "there is none that it may open"
        others = [{"sub": "other"}, {"sub": "alice", "act": {"sub": "complaint"}}]
        for who in others:
            with apis.client(**who) as other:  # type: ignore[arg-type]
                problem(other.get(f"/v1/tasks/{task}"), 404, "not-found")
                problem(call(other, task, "read"), 404, "not-found")
                problem(other.delete(f"/v1/tasks/{task}"), 404, "not-found")
                problem(other.delete(f"/v1/leases/{lease}"), 404, "not-found")
        with apis.client(sub="alice", act={"sub": "complaint"}) as delegated:
            task = opened(delegated)
            assert (task["agent"], task["on_behalf_of"]) == ("complaint-agent", "alice")  # type: ignore[index]

    def test_who_asks_too_often_waits(self, apis: Apis, client: httpx.Client) -> None:
        def ask(_: int) -> httpx.Response:
            return client.get("/v1/tasks/task_x")

        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(ask, range(400)))
        late = [each for each in answers if each.status_code == 429]
        assert {each.status_code for each in answers} == {404, 429}
        assert int(late[0].headers["retry-after"]) >= 1
        problem(late[0], 429, "too-many-requests")
        with apis.client(sub="other") as other:
            assert other.get("/v1/tasks/task_x").status_code == 404, "others are not held up"

    def test_whoever_sends_slowly_holds_nothing_up(self, apis: Apis, client: httpx.Client) -> None:
        host, port = apis.processes[0].url.removeprefix("http://").split(":")
        slow = [socket.create_connection((host, int(port))) for _ in range(100)]
        try:
            for each in slow:
                each.send(b"POST /v1/tasks HTTP/1.1\r\nHost: x\r\n")
            task = opened(client)
            assert call(client, task["id"], "read").status_code == 200
        finally:
            for each in slow:
                each.close()

    def test_it_is_not_offered_to_others_without_tls(self, apis: Apis, tmp_path: Path) -> None:
        answer = apis.children.command(
            *("serve", str(apis.folder), "--no-listen", "--api", "0.0.0.0:0", "--agents", str(apis.agents)),
            environment=apis.environment(),
        )
        assert answer.returncode == 2
        assert "--api-cert" in answer.stderr


class TestTheProcess:
    def test_a_signal_lets_calls_end_and_takes_credentials_back(self, apis: Apis, client: httpx.Client) -> None:
        task = opened(client)["id"]
        with ThreadPoolExecutor(1) as pool:
            slow = pool.submit(call, client, task, "pause", {"seconds": 3})
            wait_for(lambda: apis.bench.sql(SLEEPING), "the call to wait")
            process = apis.processes[0]
            process.process.send_signal(15)
            wait_for(lambda: any("no new runs" in each["message"] for each in process.records()), "the drain")
            with apis.client() as late:
                refused = late.post("/v1/tasks", json={"type": "complaint_desk"})
                problem(refused, 503, "draining")
                assert (refused.headers["retry-after"], refused.headers["connection"]) == ("1", "close")
            assert slow.result().json()["state"] == "done"
        assert process.process.wait(30) == 0
        apis.bench.assert_nothing_left()

    def test_with_no_time_left_it_cancels(self, apis: Apis) -> None:
        process = apis.start("--drain", "0")
        with apis.client() as client:
            task = opened(client)["id"]
            call(client, task, "login")
            with ThreadPoolExecutor(1) as pool:
                slow = pool.submit(call, client, task, "pause", {"seconds": 60})
                wait_for(lambda: apis.bench.sql(SLEEPING), "the call to wait")
                process.stop()
                assert slow.result().json()["state"] == "cancelled"
        apis.bench.assert_nothing_left()

    def test_the_document_describes_what_there_is(self, apis: Apis, client: httpx.Client) -> None:
        document = client.get("/v1/openapi.json").json()
        assert document["openapi"] == "3.1.0"
        assert set(document["paths"]) == {
            "/v1/tasks",
            "/v1/tasks/{task_id}",
            "/v1/tasks/{task_id}/tools/{tool}",
            "/v1/leases/{lease_id}",
            "/v1/leases/{lease_id}/renew",
            "/v1/introspect",
            "/oauth/token",
            "/oauth/introspect",
            "/oauth/revoke",
            "/access/v1/evaluation",
            "/access/v1/evaluations",
        }

"""MCP over streamable HTTP, beside the API: processes of their own, clients of the official SDK."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from apis import ISSUER, Apis, Process, apis_on, call, opened
from bench import Bench
from desks import TASK
from escaped import holds_secret
from fork_server import ForkServer
from mcp.shared.exceptions import MCPError
from mcp_clients import APPROVAL, DENIAL, META, MODES, done, http_client, policy, refused, words
from waiting import wait_for

from orchestrator.ledger.states import RunState, TaskState
from orchestrator.ledger.types import RunRecord, TaskRecord

SLEEPING = "SELECT pid FROM pg_stat_activity WHERE usename LIKE 'orc\\_pause%' AND wait_event = 'PgSleep'"
ASK = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}
URL = "/mcp/complaint_desk?customer=1234"


@pytest.fixture
def apis(bench: Bench, children: ForkServer) -> Iterator[Apis]:
    with apis_on(bench, children) as found:
        found.put()
        yield found
    bench.assert_nothing_left()


def start(apis: Apis, *options: str) -> Process:
    """A process that answers MCP clients, and has loaded the types of tasks."""
    process = apis.start("--mcp", *options)
    with apis.client(process) as client:
        wait_for(lambda: client.delete(URL).status_code != 404, "the types")
    return process


@pytest.fixture
def served(apis: Apis) -> Apis:
    start(apis)
    return apis


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def tasks(apis: Apis) -> list[TaskRecord]:
    """The oldest first."""
    with apis.ledger() as ledger:
        return list(reversed(ledger.tasks()))


def calls(apis: Apis, number: int = 0) -> list[RunRecord]:
    with apis.ledger() as ledger:
        return list(ledger.calls(tasks(apis)[number].task_id))


async def eventually(condition: Any, what: str) -> None:
    await asyncio.to_thread(wait_for, condition, what)


async def test_tools_are_listed_and_called(served: Apis, mode: str) -> None:
    async with http_client(served, mode) as client:
        tools = {each.name: each for each in (await client.list_tools()).tools}
        assert sorted(tools) == ["pause", "read"]
        assert tasks(served) == [], "a list opens nothing"
        assert [len((await done(client, "read", {"limit": number}))["rows"]) for number in (1, 2)] == [1, 2]
        assert served.bench.logins_of_steps() == []
        (task,) = tasks(served)
        assert (task.agent, task.inputs, task.state) == ("complaint-agent", {"customer": 1234}, TaskState.OPEN)
        with served.ledger() as ledger:
            caller = ledger.events(task.task_id)[0].data["caller"]
        assert caller == {
            "issuer": "tests",
            "subject": "complaint",
            "actor": None,
            "on_behalf_of": "",
            "address": "127.0.0.1" if mode == "auto" else "127.0.0.1 (session)",
        }


async def test_what_is_not_right_is_told_to_the_model(served: Apis, mode: str) -> None:
    async with http_client(served, mode) as client:
        for wrong in ({"limit": 51}, {"limit": "10"}, {"limit": 1, "customer": 1}):
            assert "Correct the arguments" in await refused(client, "read", wrong)
        for name in ("raed", "login", "give-back"):
            with pytest.raises(MCPError, match="there is no tool") as error:
                await client.call_tool(name, {})
            assert error.value.code == -32602
        assert tasks(served) == []
        for _ in range(3):
            await done(client, "pause", {"seconds": 0})
        assert "`pause` may be called 3 times" in await refused(client, "pause", {"seconds": 0})


async def test_a_denial_and_an_approval_are_told_to_the_model(apis: Apis, mode: str) -> None:
    apis.more = policy(apis.directory, DENIAL)
    start(apis)
    async with http_client(apis, mode) as client:
        assert "no more than 5 at once" in await refused(client, "read")
        assert len((await done(client, "read", {"limit": 1}))["rows"]) == 1
    apis.more = policy(apis.directory, APPROVAL)
    second = start(apis)
    async with http_client(apis, mode, "customer=1235", process=second) as client:
        first, again = [await client.call_tool("read", {"limit": 1}) for _ in range(2)]
        assert "somebody's approval" in words(first)
        assert first.meta is not None
        assert again.meta is not None
        assert again.meta[f"{META}approval"] == first.meta[f"{META}approval"]
        task = str(first.meta[f"{META}task"])
    with apis.client(second) as api:  # of a newer client it waits on
        api.delete(f"/v1/tasks/{task}")


async def test_a_cancelled_request_ends_its_call_at_once(served: Apis, mode: str) -> None:
    bench = served.bench
    async with http_client(served, mode) as client:
        slow = asyncio.create_task(client.call_tool("pause", {"seconds": 60}))
        await eventually(lambda: bench.sql(SLEEPING), "the query")
        slow.cancel()
        await asyncio.wait({slow})
        await eventually(lambda: not bench.sql(SLEEPING), "the end of the query")
        await eventually(lambda: not bench.logins_of_steps(), "the end of the login")
        await eventually(lambda: calls(served)[0].state is RunState.CANCELLED, "the end of the call")
        assert calls(served)[0].reason == "the agent is gone"
        assert len((await done(client, "read"))["rows"]) == 3


async def test_a_session_has_its_own_task_and_takes_it_along(served: Apis) -> None:
    async with http_client(served, "legacy", process=None) as client, http_client(served, "legacy") as other:
        await asyncio.gather(*(done(client, "read", {"limit": number}) for number in (1, 2, 3)))
        await done(other, "read")
        async with http_client(served, "auto") as newer:
            await done(newer, "read")
        slow = asyncio.create_task(client.call_tool("pause", {"seconds": 60}))
        await eventually(lambda: served.bench.sql(SLEEPING), "the query")
        assert [each.state for each in tasks(served)] == [TaskState.OPEN] * 3
    await asyncio.wait({slow})
    await eventually(lambda: tasks(served)[0].state is tasks(served)[1].state is TaskState.CLOSED, "the end of both")
    assert [each.reason for each in tasks(served)] == ["the session has ended", "the session has ended", ""]
    await eventually(lambda: not served.bench.logins_of_steps(), "the end of the login")


async def test_a_session_is_of_one_caller_and_one_task(served: Apis) -> None:
    url = served.processes[0].url
    begin = {
        "jsonrpc": "2.0",
        "id": 0,
        "method": "initialize",
        "params": {
            "protocolVersion": "2025-11-25",
            "capabilities": {},
            "clientInfo": {"name": "by hand", "version": "1"},
        },
    }
    accept = {"Accept": "application/json, text/event-stream"}
    with served.client() as client:
        answer = client.post(URL, json=begin, headers=accept)
        assert answer.status_code == 200, answer.text
        session = {**accept, "Mcp-Session-Id": answer.headers["mcp-session-id"], "MCP-Protocol-Version": "2025-11-25"}
        assert client.post(URL, json=ASK, headers=session).status_code == 200
        assert client.post(URL.replace("1234", "1235"), json=ASK, headers=session).status_code == 404
        assert client.post(URL, json=ASK, headers={**session, "Mcp-Session-Id": "0" * 32}).status_code == 404
        for who in ({"sub": "other"}, {"sub": "alice", "act": {"sub": "complaint"}}):
            with served.client(**who) as stranger:  # type: ignore[arg-type]
                assert stranger.post(URL, json=ASK, headers=session).status_code == 404
        assert httpx.post(url + URL, json=ASK, headers=session, trust_env=False).status_code == 401
        assert client.delete(URL, headers=session).status_code == 200
        assert client.post(URL, json=ASK, headers=session).status_code == 404


async def test_without_a_session_the_address_is_the_handle_at_every_process(apis: Apis) -> None:
    start(apis)
    second = start(apis)
    async with http_client(apis, "auto") as client, http_client(apis, "auto", process=second) as elsewhere:
        await asyncio.gather(*(done(client, "read", {"limit": 1}) for _ in range(3)))
        await asyncio.gather(*(done(where, "read", {"limit": 1}) for where in (client, elsewhere) * 3))
        still_open = [each for each in tasks(apis) if each.state is TaskState.OPEN]
        assert len(still_open) == 1
        await asyncio.gather(*(done(where, "pause", {"seconds": 0}) for where in (client, elsewhere)))
        await done(elsewhere, "pause", {"seconds": 0})
        assert "may be called 3 times" in await refused(client, "pause", {"seconds": 0}), "the budget is one"
        with apis.client() as api:
            assert api.delete(f"/v1/tasks/{still_open[0].task_id}").json() == {"confirmed": True}
        await done(client, "pause", {"seconds": 0})
    async with http_client(apis, "auto", "customer=1235") as client:
        await done(client, "read")
    async with http_client(apis, "auto", sub="alice", act={"sub": "complaint"}) as client:
        await done(client, "read")
    async with http_client(apis, "auto", sub="other") as client:
        await done(client, "read")
    found = [each for each in tasks(apis) if each.state is TaskState.OPEN]
    assert [(each.agent, each.inputs["customer"]) for each in found] == [
        ("complaint-agent", 1234),
        ("complaint-agent", 1235),
        ("complaint-agent", 1234),
        ("other-agent", 1234),
    ]


async def test_an_idle_task_is_followed_by_a_new_one(apis: Apis) -> None:
    apis.put(TASK.replace("{ duration: 10m }", "{ duration: 10m, idle: 1s }"))
    start(apis)
    async with http_client(apis, "auto") as client:
        await done(client, "read")
        await eventually(lambda: tasks(apis)[0].state is TaskState.CLOSED, "the end of the task")
        await done(client, "read")
    assert len(tasks(apis)) == 2
    async with http_client(apis, "legacy") as client:
        await done(client, "read")
        await eventually(lambda: tasks(apis)[2].state is TaskState.CLOSED, "the end of the task")
        assert "which has to be begun anew" in await refused(client, "read")


async def test_the_end_of_a_subscription_is_the_end_of_the_task(served: Apis) -> None:
    async with http_client(served, "auto") as client:
        async with client.listen(tools_list_changed=True):
            async with client.listen(tools_list_changed=True):
                await done(client, "read")
            await done(client, "read")
            assert [each.state for each in tasks(served)] == [TaskState.OPEN]
        await eventually(lambda: tasks(served)[0].state is TaskState.CLOSED, "the end of the task")
        assert tasks(served)[0].reason == "the subscription has ended"


async def test_with_the_option_credentials_are_handed_over(apis: Apis, mode: str) -> None:
    start(apis, "--mcp-hand-over")
    async with http_client(apis, mode) as client:
        assert sorted(each.name for each in (await client.list_tools()).tools) == [
            "give-back",
            "login",
            "pause",
            "read",
            "ticket",
        ]
        got = (await client.call_tool("login", {})).structured_content
        assert apis.bench.logins_of_steps() == [got["credential"]["fields"]["username"]]
        assert await done(client, "give-back", {"lease": got["lease"]["id"]}) == {"confirmed": True}
        assert apis.bench.logins_of_steps() == []
    assert got["credential"]["fields"]["password"] not in apis.processes[0].log.read_text()


async def test_a_process_that_ends_takes_everything_back(apis: Apis, mode: str) -> None:
    process = start(apis, "--drain", "0")
    async with http_client(apis, mode) as client:
        slow = asyncio.create_task(client.call_tool("pause", {"seconds": 60}))
        await eventually(lambda: apis.bench.sql(SLEEPING), "the query")
        assert await asyncio.to_thread(process.stop) == 0
        slow.cancel()
        await asyncio.wait({slow})
    assert apis.bench.logins_of_steps() == []
    assert calls(apis)[0].state is RunState.CANCELLED
    assert tasks(apis)[0].state is (TaskState.OPEN if mode == "auto" else TaskState.CLOSED)


class TestWhoeverIsNotKnown:
    def test_learns_where_tokens_come_from(self, served: Apis) -> None:
        url = served.processes[0].url
        for headers in ({}, {"Authorization": "Bearer x"}, {"Authorization": f"Bearer {served.token(exp=1)}"}):
            with httpx.Client(base_url=url, headers=headers, trust_env=False) as stranger:
                for answer in (stranger.post(URL, json={}), stranger.get(URL), stranger.delete("/mcp/nothing")):
                    assert answer.status_code == 401
                    challenge = answer.headers["www-authenticate"]
                    assert challenge.startswith("Bearer ")
                    metadata = challenge.partition('resource_metadata="')[2].rstrip('"')
                    name = answer.request.url.path.rpartition("/")[2]
                    assert metadata == f"{url}/.well-known/oauth-protected-resource/mcp/{name}"
                    document = stranger.get(metadata).json()
                    assert document["resource"] == f"{url}/mcp/{name}"
                    assert document["authorization_servers"] == [ISSUER]
                    assert document["bearer_methods_supported"] == ["header"]

    def test_and_cannot_choose_what_is_answered(self, served: Apis) -> None:
        with httpx.Client(base_url=served.processes[0].url, trust_env=False) as stranger:
            for host in ('x", error="', "a b", "x/y"):
                assert stranger.get(URL, headers={"Host": host}).status_code in (400, 404)

    def test_the_refusal_of_the_sdk_is_one_of_ours(self, served: Apis) -> None:
        """Its client tells its user of it."""

        async def ask() -> None:
            async with http_client(served, "auto", sub="nobody") as client:
                await client.list_tools()

        with pytest.raises(BaseExceptionGroup) as error:
            asyncio.run(ask())
        assert error.group_contains(Exception)
        assert tasks(served) == []


class TestWhatIsRefused:
    def test_types_inputs_and_pages(self, served: Apis) -> None:
        def post(path: str, sub: str = "complaint", **headers: str) -> int:
            with served.client(sub=sub) as client:
                return client.post(path, json=ASK, headers=headers).status_code

        assert post("/mcp/nothing") == 404
        assert post(URL, sub="locked") == 403
        assert post(URL, Origin="https://evil.example") == 403
        for query in ("", "?customer=x", "?customer=1&customer=2", "?customer=1&admin=true", "?customer=1&agent=x"):
            assert post(f"/mcp/complaint_desk{query}") == 422
        assert tasks(served) == []

    def test_bodies(self, served: Apis) -> None:
        headers = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
        bodies = {
            b"": 400,
            b"[]": 400,
            b'{"jsonrpc": "2.0", "id": 1, "id": 2, "method": "ping"}': 400,
            b'{"jsonrpc": "2.0", "id": 1, "method": "ping", "params": ' + b"[" * 500 + b"]" * 500 + b"}": 400,
            b'{"x": "' + b"x" * 70_000 + b'"}': 413,
        }
        with served.client() as client:
            for version in ("2025-11-25", "2026-07-28", "1999-01-01"):
                for body, status in bodies.items():
                    answer = client.post(URL, content=body, headers={**headers, "MCP-Protocol-Version": version})
                    assert answer.status_code == status, (version, body[:40])
            answer = client.post(URL, json=ASK, headers={**headers, "MCP-Protocol-Version": "1999-01-01"})
            assert answer.status_code == 400
        assert tasks(served) == []

    def test_the_option_needs_the_api(self, apis: Apis) -> None:
        words = ("serve", str(apis.folder), "--no-listen", "--mcp")
        ended = apis.children.command(*words, environment=apis.environment())
        assert (ended.returncode, "--mcp" in ended.stderr) == (2, True)

    def test_without_the_option_there_is_nothing(self, apis: Apis) -> None:
        apis.start()
        with apis.client() as client:
            assert client.post(URL, json=ASK).status_code == 404
            assert client.get("/.well-known/oauth-protected-resource/mcp/complaint_desk").status_code == 404


def test_no_secret_comes_out(served: Apis) -> None:
    """Every byte that a client gets, of each version."""
    accept = {"Accept": "application/json, text/event-stream"}
    with served.client() as client:
        meta = {
            "io.modelcontextprotocol/protocolVersion": "2026-07-28",
            "io.modelcontextprotocol/clientCapabilities": {},
        }
        came = b""
        for number, (tool, arguments) in enumerate(
            (("read", {}), ("read", {"limit": 0}), ("login", {}), ("pause", {"seconds": 0}))
        ):
            params = {"name": tool, "arguments": arguments, "_meta": meta}
            headers = {**accept, "MCP-Protocol-Version": "2026-07-28", "Mcp-Method": "tools/call", "Mcp-Name": tool}
            message = {"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": params}
            answer = client.post(URL, json=message, headers=headers)
            assert answer.status_code in (200, 400), answer.text
            came += answer.content + json.dumps(dict(answer.headers)).encode()
        assert b"comment" in came
        task = opened(client, customer=1235)
        came += call(client, task["id"], "read").content
    log = served.processes[0].log.read_bytes()
    assert not holds_secret(came + log)
    assert served.token().partition(".")[0].encode() not in log

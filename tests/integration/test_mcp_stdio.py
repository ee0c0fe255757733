"""`orchestrator mcp`: a task over standard input and output, as clients of the official SDK see it."""

from __future__ import annotations

import asyncio
import getpass
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from bench import ROOT, Bench
from escaped import holds_secret
from fork_server import ForkServer
from mcp.shared.exceptions import MCPError
from mcp_clients import APPROVAL, DENIAL, META, MODES, Stdio, done, policy, refused, words
from waiting import wait_for

from orchestrator.clock import SystemClock
from orchestrator.ledger.opening import open_ledger
from orchestrator.ledger.states import RunState, TaskState
from orchestrator.ledger.types import RunRecord, TaskRecord

SLEEPING = "SELECT pid FROM pg_stat_activity WHERE usename LIKE 'orc\\_pause%' AND wait_event = 'PgSleep'"


@pytest.fixture
def stdio(bench: Bench, children: ForkServer) -> Iterator[Stdio]:
    yield Stdio(bench, children)
    bench.assert_nothing_left()


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def ledger(bench: Bench, look: Callable[[Any], Any]) -> Any:
    with open_ledger(bench.config().ledger_url, clock=SystemClock()) as found:
        return look(found)


def the_task(bench: Bench) -> TaskRecord:
    (task,) = ledger(bench, lambda found: found.tasks())
    assert isinstance(task, TaskRecord)
    return task


def the_calls(bench: Bench) -> list[RunRecord]:
    task = the_task(bench)
    return list(ledger(bench, lambda found: found.calls(task.task_id)))


async def eventually(condition: Callable[[], Any], what: str) -> None:
    await asyncio.to_thread(wait_for, condition, what)


async def test_a_task_is_as_long_as_its_client(stdio: Stdio, mode: str) -> None:
    async with stdio.client(mode) as client:
        tools = {each.name: each for each in (await client.list_tools()).tools}
        assert sorted(tools) == ["pause", "read"], "what hands credentials over is not offered"
        assert tools["read"].input_schema == {
            "type": "object",
            "properties": {"limit": {"type": "integer", "minimum": 1, "maximum": 50, "default": 10}},
            "required": [],
            "additionalProperties": False,
        }
        assert tools["pause"].description == "Waits in the database.\nAt most 3 calls in a task."
        found = await done(client, "read", {"limit": 2})
        expected = stdio.bench.sql("SELECT id FROM customer_feedback WHERE customer_id = 1234 ORDER BY id LIMIT 2")
        assert [row["id"] for row in found["rows"]] == expected
        stdio.bench.assert_nothing_left()
        assert the_task(stdio.bench).state is TaskState.OPEN
    record = the_task(stdio.bench)
    assert (record.state, record.reason) == (TaskState.CLOSED, "the client is gone")
    opened = ledger(stdio.bench, lambda found: found.events(record.task_id)[0].data)
    assert opened["caller"] == {
        "issuer": "",
        "subject": getpass.getuser(),
        "actor": None,
        "on_behalf_of": "",
        "address": "stdio",
    }
    assert record.agent == "complaint-agent"


async def test_what_is_not_declared_is_refused_before_anything_is_asked_for(stdio: Stdio, mode: str) -> None:
    async with stdio.client(mode) as client:
        for wrong in ({"limit": 51}, {"limit": 0}, {"limit": "10"}, {"limit": True}, {"limit": 1, "customer": 1}):
            assert "Correct the arguments" in await refused(client, "read", wrong)
        for name in ("raed", "login", "ticket", "give-back", "read\0", "x" * 500):
            with pytest.raises(MCPError, match="there is no tool") as error:
                await client.call_tool(name, {})
            assert error.value.code == -32602
            assert len(error.value.message) < 200
        assert the_calls(stdio.bench) == []
        assert len((await done(client, "read"))["rows"]) == 3


async def test_a_denial_is_told_to_the_model(stdio: Stdio, mode: str) -> None:
    stdio.more = policy(stdio.bench.directory, DENIAL)
    async with stdio.client(mode) as client:
        said = await refused(client, "read", {"limit": 6})
        assert said.startswith("Denied: ")
        assert "no more than 5 at once" in said
        assert "go on without it" in said
        assert len((await done(client, "read", {"limit": 5}))["rows"]) == 3
    assert [each.state for each in the_calls(stdio.bench)] == [RunState.REFUSED, RunState.SUCCEEDED]


async def test_a_spent_budget_is_told_to_the_model(stdio: Stdio, mode: str) -> None:
    async with stdio.client(mode) as client:
        for _ in range(3):
            await done(client, "pause", {"seconds": 0})
        said = await refused(client, "pause", {"seconds": 0})
        assert "`pause` may be called 3 times" in said
        assert "go on with what it has given" in said


async def test_who_waits_for_an_approval_asks_again_by_calling_again(stdio: Stdio, mode: str) -> None:
    stdio.more = policy(stdio.bench.directory, APPROVAL)
    vault = stdio.bench.vault
    vault.sys.enable_auth_method("userpass")
    try:
        vault.write_data("auth/userpass/users/alice", data={"password": "x" * 12})
        token = vault.write_data("auth/userpass/login/alice", data={"password": "x" * 12})["auth"]["client_token"]
        async with stdio.client(mode) as client:
            first, again = [await client.call_tool("read", {"limit": 1}) for _ in range(2)]
            assert "Call the same tool with the same arguments again" in words(first)
            assert first.meta is not None
            assert again.meta is not None
            approval = first.meta[f"{META}approval"]
            assert again.meta[f"{META}approval"] == approval
            assert len(the_calls(stdio.bench)) == 1
            other = await client.call_tool("read", {"limit": 2})
            assert other.meta is not None
            assert other.meta[f"{META}approval"] != approval
            said = await approve(stdio, token, approval)
            assert said.returncode == 0, said.stderr
            assert len((await done(client, "read", {"limit": 1}))["rows"]) == 1
            assert "approval" in await refused(client, "read", {"limit": 1}), "it was agreed to once"
    finally:
        vault.sys.disable_auth_method("userpass")
    assert sorted(each.state.value for each in the_calls(stdio.bench)) == ["cancelled", "cancelled", "succeeded"]


async def approve(stdio: Stdio, token: str, approval: str) -> subprocess.CompletedProcess[str]:
    environment = {**stdio.environment(), "VAULT_TOKEN": token}
    return await asyncio.to_thread(stdio.children.command, "approvals", "approve", approval, environment=environment)


async def test_a_cancelled_request_ends_its_call_at_once(stdio: Stdio, mode: str) -> None:
    bench = stdio.bench
    async with stdio.client(mode) as client:
        slow = asyncio.create_task(client.call_tool("pause", {"seconds": 60}))
        await eventually(lambda: bench.sql(SLEEPING), "the query")
        slow.cancel()
        await asyncio.wait({slow})
        await eventually(lambda: not bench.sql(SLEEPING), "the end of the query")
        await eventually(lambda: not bench.logins_of_steps(), "the end of the login")
        await eventually(lambda: the_calls(bench)[0].state is RunState.CANCELLED, "the end of the call")
        assert the_calls(bench)[0].reason == "the agent is gone"
        assert the_task(bench).state is TaskState.OPEN
        assert len((await done(client, "read"))["rows"]) == 3


async def test_an_ended_task_is_told_to_the_model(stdio: Stdio, mode: str) -> None:
    stdio.file.write_text(stdio.file.read_text().replace("{ duration: 10m }", "{ duration: 10m, idle: 1s }"))
    async with stdio.client(mode) as client:
        await done(client, "read")
        await eventually(lambda: the_task(stdio.bench).state is TaskState.CLOSED, "the end of the task")
        said = await refused(client, "read")
        assert "start it anew" in said
        assert "nothing was called in it for too long" in said


async def test_with_the_option_credentials_are_handed_over_and_given_back(stdio: Stdio, mode: str) -> None:
    bench = stdio.bench
    async with stdio.client(mode, "--hand-over") as client:
        tools = [each.name for each in (await client.list_tools()).tools]
        assert sorted(tools) == ["give-back", "login", "pause", "read", "ticket"]
        got = (await client.call_tool("login", {})).structured_content
        assert set(got["credential"]["fields"]) == {"username", "password"}
        assert bench.logins_of_steps() == [got["credential"]["fields"]["username"]]
        await client.call_tool("login", {})
        assert "Now: wait for one to end, or give a credential back." in await refused(client, "login")
        assert await done(client, "give-back", {"lease": got["lease"]["id"]}) == {"confirmed": True}
        assert len(bench.logins_of_steps()) == 1
        assert "no lease" in await refused(client, "give-back", {"lease": "lease_x"})
        assert "Correct the arguments" in await refused(client, "give-back", {"lease": 1})
        await client.call_tool("ticket", {})
    assert bench.logins_of_steps() == []


async def test_the_end_of_the_client_ends_what_is_under_way(stdio: Stdio, mode: str) -> None:
    async with stdio.client(mode) as client:
        slow = asyncio.create_task(client.call_tool("pause", {"seconds": 60}))
        await eventually(lambda: stdio.bench.sql(SLEEPING), "the query")
    await asyncio.wait({slow})
    await eventually(lambda: the_task(stdio.bench).state is TaskState.CLOSED, "the end of the task")
    assert [each.state for each in the_calls(stdio.bench)] == [RunState.CANCELLED]


class ByHand:
    """A client that writes lines, to see every byte that comes back; and that neither reads nor closes if told so."""

    def __init__(self, stdio: Stdio, *options: str) -> None:
        self.errors = (stdio.bench.directory / "stderr-by-hand").open("wb+")
        (input, writing), (reading, output) = os.pipe(), os.pipe()
        self.stdin, self.stdout = os.fdopen(writing, "wb"), os.fdopen(reading, "rb")
        self.process = stdio.children.start_on(
            *stdio.words(*options), environment=stdio.environment(), streams=(input, output, self.errors.fileno())
        )
        os.close(input)
        os.close(output)

    def write(self, method: str, params: dict[str, Any], number: int | None = None) -> None:
        message = {"jsonrpc": "2.0", "method": method, "params": params, **({} if number is None else {"id": number})}
        self.stdin.write(json.dumps(message).encode() + b"\n")
        self.stdin.flush()

    def begin(self) -> None:
        info = {"name": "by hand", "version": "1"}
        self.write("initialize", {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": info}, 0)
        assert b"serverInfo" in self.line()
        self.write("notifications/initialized", {})

    def line(self) -> bytes:
        return self.stdout.readline()

    def end(self) -> bytes:
        """What it still writes when its input has ended, and what it has told the log."""
        if self.errors.closed:
            return b""
        with suppress(BrokenPipeError):
            self.stdin.close()
        rest = self.stdout.read()
        self.stdout.close()
        self.process.wait(60)
        self.errors.seek(0)
        with self.errors:
            return rest + self.errors.read()

    def kill(self) -> None:
        self.process.kill()
        self.end()


@pytest.fixture
def by_hand(stdio: Stdio) -> Iterator[Callable[..., ByHand]]:
    begun: list[ByHand] = []

    def begin(*options: str) -> ByHand:
        begun.append(ByHand(stdio, *options))
        return begun[-1]

    yield begin
    for each in begun:
        each.kill()


def test_nothing_but_the_protocol_and_no_secret_comes_out(stdio: Stdio, by_hand: Callable[..., ByHand]) -> None:
    stdio.more["ORCHESTRATOR_LOG_LEVEL"] = "debug"
    client = by_hand()
    client.begin()
    calls = [("tools/list", {})] + [
        ("tools/call", {"name": name, "arguments": arguments})
        for name, arguments in (("read", {}), ("read", {"limit": 0}), ("login", {}), ("pause", {"seconds": 0}))
    ]
    came = b""
    for number, (method, params) in enumerate(calls, 1):
        client.write(method, params, number)
        line = client.line()
        assert json.loads(line)["id"] == number
        came += line
    client.write("tools/call", {"name": ["no", "name"]}, 9)
    assert json.loads(client.line())["error"]["code"] == -32602
    client.stdin.write(b"no JSON\n")
    client.write("ping", {}, 10)
    assert json.loads(client.line())["id"] == 10
    rest = client.end()
    assert client.process.returncode == 0
    assert b"RUNNING" not in came
    assert not holds_secret(came + rest)
    assert the_task(stdio.bench).state is TaskState.CLOSED


@pytest.mark.parametrize(("number", "code"), [(15, 143), (2, 130)])
def test_a_signal_closes_the_task_though_the_client_neither_reads_nor_leaves(
    stdio: Stdio, by_hand: Callable[..., ByHand], number: int, code: int
) -> None:
    client = by_hand("--hand-over")
    client.begin()
    client.write("tools/call", {"name": "login", "arguments": {}}, 1)
    client.write("tools/call", {"name": "pause", "arguments": {"seconds": 60}}, 2)
    wait_for(lambda: stdio.bench.sql(SLEEPING), "the query")
    for more in range(3, 1500):  # more than its pipe holds
        client.write("tools/list", {}, more)
    client.process.send_signal(number)
    assert client.process.wait(30) == code
    stdio.bench.assert_nothing_left()
    record = the_task(stdio.bench)
    assert record.state is TaskState.CLOSED
    assert sorted(each.state.value for each in the_calls(stdio.bench)) == ["cancelled", "cancelled"]


def test_what_a_killed_one_left_the_next_one_closes(stdio: Stdio, by_hand: Callable[..., ByHand]) -> None:
    stdio.file.write_text(stdio.file.read_text().replace("{ duration: 10m }", "{ duration: 15s }"))
    first = by_hand()
    first.begin()
    first.write("tools/call", {"name": "pause", "arguments": {"seconds": 60}}, 1)
    wait_for(lambda: stdio.bench.sql(SLEEPING), "the query")
    first.process.kill()
    first.process.wait()
    second = by_hand()
    second.begin()
    wait_for(lambda: not stdio.bench.logins_of_steps(), "the end of the login")

    def first_task() -> TaskRecord:
        return ledger(stdio.bench, lambda found: found.tasks()[-1])  # type: ignore[no-any-return]

    wait_for(lambda: first_task().state is TaskState.CLOSED, "its deadline")
    assert first_task().reason == "its deadline has passed"
    second.end()


def test_what_is_wrong_is_said_before_a_client_is_answered(stdio: Stdio) -> None:
    def said(words: list[str]) -> tuple[int, str]:
        ended = stdio.children.command(*words, environment=stdio.environment())
        assert ended.stdout == ""
        return ended.returncode, ended.stderr

    code, text = said([*stdio.words(), "--input", "customer=many"])
    assert (code, "the input `customer` is not right" in text) == (2, True)
    code, text = said([word if word != "complaint-agent" else "-" for word in stdio.words()])
    assert (code, "no name of an agent" in text) == (2, True)
    stdio.more = policy(stdio.bench.directory, DENIAL + 'admit := {"allow": false, "reasons": ["who are you"]}')
    code, text = said(stdio.words())
    assert (code, "admits `complaint-agent` to no tool" in text) == (3, True)


def test_the_scripted_agent_of_the_documentation_is_denied_and_adapts(stdio: Stdio) -> None:
    stdio.more = policy(stdio.bench.directory, DENIAL)
    command = [sys.executable, "-m", "orchestrator.cli", *stdio.words()]  # a process that nobody has forked
    script = [sys.executable, str(ROOT / "docs" / "examples" / "scripted_agent.py"), *command]
    ended = subprocess.run(script, env=stdio.environment(), capture_output=True, text=True, timeout=90, check=False)
    assert ended.returncode == 0, ended.stderr
    said = ended.stdout.splitlines()
    assert said[0] == "tools: read, pause"
    assert said[1].startswith("read {'limit': 50} -> Denied: ")
    assert said[-2].startswith("read {'limit': 3} -> {\"rows\": [")
    assert said[-1] == "allowed at call 5"
    assert the_task(stdio.bench).state is TaskState.CLOSED
    assert [each.state.value for each in the_calls(stdio.bench)] == ["refused"] * 4 + ["succeeded"]
    assert not holds_secret((ended.stdout + ended.stderr).encode())

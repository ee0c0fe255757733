"""`orchestrator tasks` and `orchestrator agents` beside a process in which an agent is at work."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest
from bench import Bench
from desks import AGENT, loaded_task, open_desk
from fork_server import ForkServer

from orchestrator.errors import AgentBlocked, TaskEnded
from orchestrator.tasks.desk import TaskDesk
from orchestrator.tasks.results import CallState, HandedOver


@pytest.fixture
def provisioned(bench: Bench) -> Iterator[Bench]:
    bench.install(loaded_task().workflow)
    yield bench
    bench.assert_nothing_left()


class Commands:
    """The command line, as other processes use it."""

    def __init__(self, bench: Bench, children: ForkServer) -> None:
        self.bench = bench
        self.children = children

    async def __call__(self, *words: str) -> subprocess.CompletedProcess[str]:
        return await asyncio.to_thread(lambda: self.children.command(*words, environment=self.bench.environment()))

    async def told(self, *words: str) -> Any:
        answer = await self(*words, "--json")
        assert answer.returncode == 0, answer.stderr
        return json.loads(answer.stdout)


@pytest.fixture
def commands(provisioned: Bench, children: ForkServer) -> Commands:
    return Commands(provisioned, children)


async def at_work(desk: TaskDesk) -> tuple[str, HandedOver]:
    """A task with one call that has ended and one that holds a login."""
    task = await desk.open(AGENT, "complaint_desk", {"customer": 1234}, reason="case 7", address="10.0.0.7")
    done = await desk.call(AGENT, task.task_id, "read", {"limit": 3}, "k1")
    assert done.state is CallState.DONE
    held = await desk.call(AGENT, task.task_id, "login", {}, "k2")
    assert held.handed is not None
    return task.task_id, held.handed


async def test_tasks_are_listed_and_shown(provisioned: Bench, commands: Commands) -> None:
    assert (await commands("tasks", "list")).stdout == "no tasks\n"
    async with open_desk(provisioned) as desk:
        task, held = await at_work(desk)
        (listed,) = await commands.told("tasks", "list", "--agent", "complaint-agent", "--state", "open")
        assert (listed["task_id"], listed["workflow"], listed["state"]) == (task, "complaint_desk", "open")
        assert await commands.told("tasks", "list", "--agent", "somebody") == []
        assert task in (await commands("tasks", "list")).stdout
        shown = await commands.told("tasks", "show", task)
        assert [(each["steps"], each["state"]) for each in shown["calls"]] == [
            (["read"], "succeeded"),
            (["login"], "running"),
        ]
        assert held.lease.lease_id in {each["lease_id"] for each in shown["leases"]}
        assert shown["opened"]["caller"]["address"] == "10.0.0.7"
        words = (await commands("tasks", "show", task)).stdout
        for expected in (
            "complaint-agent",
            "customer=1234",
            "case 7",
            held.lease.lease_id,
            "hash chain whole",
            "10.0.0.7",
        ):
            assert expected in words
        for secret in held.credential.fields.values():
            assert secret.reveal() not in words or secret.reveal() == held.lease.subject
        call = shown["calls"][0]["run_id"]
        story = (await commands("runs", "show", call)).stdout
        assert task in story
        assert "limit=3" in story
        leases = await commands.told("leases", "list", "--task", task)
        assert {each["step"] for each in leases} >= {"read", "login"}
        assert await commands.told("leases", "list", "--task", "task_x") == []
        verified = await commands.told("runs", "verify", task)
        assert verified["whole"]
        runs = await commands.told("runs", "list")
        assert runs == []
        assert await desk.close(AGENT, task)


async def test_what_is_no_task_is_said_so(provisioned: Bench, commands: Commands) -> None:
    for words in (("tasks", "show", "task_x"), ("tasks", "close", "task_x")):
        answer = await commands(*words)
        assert answer.returncode == 2
        assert "no task task_x" in answer.stderr
    async with open_desk(provisioned) as desk:
        task = await desk.open(AGENT, "complaint_desk", {"customer": 1234})
        answer = await commands("runs", "show", task.task_id)
        assert answer.returncode == 2
        assert f"orchestrator tasks show {task.task_id}" in answer.stderr


async def test_an_operator_closes_a_task_of_another_process(provisioned: Bench, commands: Commands) -> None:
    async with open_desk(provisioned) as desk:
        task, _ = await at_work(desk)
        found = await commands.told("tasks", "close", task, "--reason", "enough")
        assert found == {"task": task, "was_open": True, "confirmed": True}
        provisioned.assert_nothing_left()
        with pytest.raises(TaskEnded, match="enough"):
            await desk.call(AGENT, task, "read", {}, "k9")
        again = await commands("tasks", "close", task)
        assert again.returncode == 0
        assert "was closed already; nothing of it is left" in again.stdout


async def test_a_task_whose_process_is_gone_is_closed_and_not_confirmed(provisioned: Bench, commands: Commands) -> None:
    """As with a process that was killed a moment ago: its leases are closed by the next recovery."""
    async with open_desk(provisioned) as desk:
        task, _ = await at_work(desk)
        desk.services.heartbeat._over.set()  # it gives no sign of life, and hears of nothing
        answer = await commands("tasks", "close", task)
        assert answer.returncode == 6
        assert "not everything is confirmed gone yet" in answer.stdout


class TestCuttingOff:
    async def test_an_agent_is_cut_off_and_let_in_again(self, provisioned: Bench, commands: Commands) -> None:
        assert (await commands("agents", "list")).stdout == "no agents\n"
        async with open_desk(provisioned) as desk:
            task, _ = await at_work(desk)
            (stands,) = await commands.told("agents", "list")
            assert (stands["agent"], stands["open_tasks"], stands["under_way"]) == ("complaint-agent", 1, 1)
            shown = (await commands("agents", "show", "complaint-agent")).stdout
            assert task in shown
            found = await commands.told("agents", "revoke", "complaint-agent", "--reason", "it went wild")
            assert found["confirmed"]
            assert found["ended"] == {"tasks": 1, "runs": 1}
            provisioned.assert_nothing_left()
            with pytest.raises(AgentBlocked):
                await desk.open(AGENT, "complaint_desk", {"customer": 1234})
            (stands,) = await commands.told("agents", "list")
            assert (stands["cut_off"]["reason"], stands["cut_off"]["until"]) == ("it went wild", None)
            assert "until it is restored" in (await commands("agents", "list")).stdout
            assert "is let in again" in (await commands("agents", "restore", "complaint-agent")).stdout
            assert await commands.told("agents", "restore", "complaint-agent") == {
                "agent": "complaint-agent",
                "was_cut_off": False,
            }
            anew = await desk.open(AGENT, "complaint_desk", {"customer": 1234})
            assert (await desk.call(AGENT, anew.task_id, "read", {}, "k1")).state is CallState.DONE
            with pytest.raises(TaskEnded):
                await desk.call(AGENT, task, "read", {}, "k9")

    async def test_for_a_while(self, provisioned: Bench, commands: Commands) -> None:
        async with open_desk(provisioned) as desk:
            began = time.monotonic()
            await commands.told("agents", "revoke", "complaint-agent", "--for", "3s")
            with pytest.raises(AgentBlocked):
                await desk.open(AGENT, "complaint_desk", {"customer": 1234})
            await asyncio.sleep(max(0.0, 4 - (time.monotonic() - began)))
            await desk.open(AGENT, "complaint_desk", {"customer": 1234})
            assert (await commands("agents", "revoke", "x", "--for", "soon")).returncode == 2

    async def test_runs_of_the_agent_end_and_none_begins(self, provisioned: Bench, commands: Commands) -> None:
        text = WORKFLOW
        running = asyncio.create_task(asyncio.to_thread(lambda: provisioned.run(text)))
        async with asyncio.timeout(60):
            while not provisioned.sql("SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'"):
                await asyncio.sleep(0.1)
        found = await commands.told("agents", "revoke", "sleeper")
        assert found["confirmed"]
        outcome = await running
        assert outcome.state.value == "cancelled"
        assert outcome.reason.startswith("the agent was cut off")
        with pytest.raises(AgentBlocked):
            await asyncio.to_thread(lambda: provisioned.run(text, install=False))
        await commands.told("agents", "restore", "sleeper")


WORKFLOW = """
version: 1
name: sleeps
agent: sleeper
steps:
  work:
    action: postgres.query
    grants: { db: { kind: database, connection: support, role: feedback-read } }
    with: { sql: SELECT pg_sleep(60) }
    timeout: 90s
"""

"""`orchestrator tasks` and `orchestrator agents` beside a process in which an agent is at work."""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import re
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest
from bench import ROOT, Bench
from desks import AGENT, TASK, loaded_task, open_desk
from fork_server import ForkServer

from orchestrator.agents.declared import load_agents
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
        assert "known by  " in story
        assert "vault, entity-1" in story
        lease = (await commands("leases", "show", held.lease.lease_id)).stdout
        assert task in lease
        assert (await commands.told("leases", "show", held.lease.lease_id))["task"] == task
        calls = (await commands("runs", "list", "--workflow", "complaint_desk")).stdout.splitlines()
        assert [line.split()[-1] for line in calls] == ["TASK", task, task]
        leases = await commands.told("leases", "list", "--task", task)
        assert {each["step"] for each in leases} >= {"read", "login"}
        assert await commands.told("leases", "list", "--task", "task_x") == []
        verified = await commands.told("runs", "verify", task)
        assert verified["whole"]
        everything = (await commands("runs", "verify")).stdout
        assert everything == "2 runs and 1 task: all histories are whole, and the tables say the same\n"
        runs = await commands.told("runs", "list")
        assert runs == []
        assert await desk.close(AGENT, task)


async def test_the_budgets_of_a_task_are_told_as_its_own_file_has_them(provisioned: Bench, commands: Commands) -> None:
    async with open_desk(provisioned) as desk:
        task, _ = await at_work(desk)
        shown = await commands.told("tasks", "show", task)
        assert {each.pop("tool"): tuple(each.values()) for each in shown["budgets"]} == {
            "read": (1, None, 0, None),
            "ticket": (0, None, 0, None),
            "login": (1, None, 1, 2),
            "pause": (0, 3, 0, None),
        }
        assert shown["limits_unknown"] == ""
        words = [line.split() for line in (await commands("tasks", "show", task)).stdout.splitlines()]
        assert ["login", "1", "1", "of", "2"] in words
        assert ["pause", "0", "of", "3", "0"] in words
        with sqlite3.connect(provisioned.directory / "ledger.db") as connection:
            connection.execute("UPDATE workflow_text SET text = replace(text, 'max_open: 2', 'max_open: 9')")
        connection.close()
        shown = await commands.told("tasks", "show", task)
        assert shown["limits_unknown"].startswith("the workflow's text in the ledger is not the one that was recorded")
        assert {each["max_open"] for each in shown["budgets"]} == {None}
        assert "the limits are not known" in (await commands("tasks", "show", task)).stdout
        assert await desk.close(AGENT, task)


async def test_a_closed_task_says_who_closed_it_and_a_late_one_that_it_is_late(
    provisioned: Bench, commands: Commands
) -> None:
    async with open_desk(provisioned) as desk:
        task = await desk.open(AGENT, "complaint_desk", {"customer": 1234})
        await commands.told("tasks", "close", task.task_id, "--reason", "enough")
        me = pwd.getpwuid(os.getuid()).pw_name
        words = (await commands("tasks", "show", task.task_id)).stdout
        assert re.search(rf"^closed +.* by {re.escape(me)} *$", words, re.MULTILINE)
        assert re.search(r"^reason +enough *$", words, re.MULTILINE)
    short = TASK.replace("duration: 10m", "duration: 1s")
    async with open_desk(provisioned, short) as desk:
        late = await desk.open(AGENT, "complaint_desk", {"customer": 1234})
        while desk.services.clock.now() < late.deadline:
            await asyncio.sleep(0.1)
        words = (await commands("tasks", "show", late.task_id)).stdout
        assert re.search(r"^state +open, past its deadline *$", words, re.MULTILINE)


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
        done = await desk.call(AGENT, task.task_id, "read", {}, "k1")
        for command in ("show", "close"):
            answer = await commands("tasks", command, done.call_id, "--json")
            assert answer.returncode == 2
            error = json.loads(answer.stdout)["error"]
            assert (error["kind"], f"call in the task {task.task_id}" in error["message"]) == ("UnknownTask", True)
        outcome = await asyncio.to_thread(lambda: provisioned.run(QUICK))
        answer = await commands("tasks", "show", outcome.run_id)
        assert f"orchestrator runs show {outcome.run_id}" in answer.stderr


async def test_an_operator_closes_a_task_of_another_process(provisioned: Bench, commands: Commands) -> None:
    async with open_desk(provisioned) as desk:
        task, _ = await at_work(desk)
        found = await commands.told("tasks", "close", task, "--reason", "enough")
        left = {"runs": [], "leases": []}
        assert found == {"task": task, "was_open": True, "confirmed": True, "left": left}
        provisioned.assert_nothing_left()
        with pytest.raises(TaskEnded, match="enough"):
            await desk.call(AGENT, task, "read", {}, "k9")
        again = await commands("tasks", "close", task)
        assert again.returncode == 0
        assert "was closed already; nothing of it is left" in again.stdout


async def test_a_task_whose_process_is_gone_is_closed_and_not_confirmed(provisioned: Bench, commands: Commands) -> None:
    """As with a process that was killed a moment ago: its leases are closed by the next recovery."""
    async with open_desk(provisioned) as desk:
        task, held = await at_work(desk)
        desk.services.heartbeat._over.set()  # it gives no sign of life, and hears of nothing
        call = held.lease.run_id
        closing = commands.children.start("tasks", "close", task, environment=provisioned.environment())
        revoked = await commands("agents", "revoke", "complaint-agent", "--json")
        words, _ = await asyncio.to_thread(closing.communicate, 60)
        assert (closing.returncode, revoked.returncode) == (6, 6)
        assert "not everything is confirmed gone yet" in words
        lines = [line.rstrip() for line in words.splitlines()]
        assert f"  {call} goes on" in lines
        assert f"  {held.lease.lease_id} is open" in lines
        told = json.loads(revoked.stdout)
        assert (told["confirmed"], told["ended"]["runs"], told["left"]["runs"]) == (False, 0, [call])
        assert held.lease.lease_id in told["left"]["leases"]
        assert provisioned.logins() == [held.lease.subject]


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

    async def test_what_was_said_before_is_replaced_and_told(self, provisioned: Bench, commands: Commands) -> None:
        mistyped = await commands("agents", "revoke", "complaint-agnet", "--for", "1h")
        assert mistyped.returncode == 0
        assert mistyped.stdout.startswith("complaint-agnet is cut off until ")
        assert mistyped.stdout.endswith(": 0 tasks and 0 runs ended; nothing of it is left\n")
        assert "nothing of an agent `complaint-agnet` is on record" in mistyped.stderr
        again = await commands("agents", "revoke", "complaint-agnet", "--reason", "for good")
        assert again.stderr.startswith("hint: it was cut off before, until ")
        (stands,) = await commands.told("agents", "list")
        assert (stands["cut_off"]["until"], stands["cut_off"]["reason"]) == (None, "for good")
        assert stands["cut_off"]["by"] == pwd.getpwuid(os.getuid()).pw_name
        shown = await commands.told("agents", "show", "complaint-agnet")
        assert shown == {
            "agent": "complaint-agnet",
            "cut_off": stands["cut_off"],
            "tasks": [],
            "runs": [],
            "leases": [],
        }

    async def test_those_that_are_declared_are_listed_if_their_file_is_named(
        self, provisioned: Bench, commands: Commands
    ) -> None:
        file = ROOT / "vault" / "agents.yaml"
        declared = await commands.told("agents", "list", "--file", str(file))
        assert {each["agent"] for each in declared} == set(load_agents(file).agents)
        assert {(each["open_tasks"], each["under_way"], each["cut_off"]) for each in declared} == {(0, 0, None)}
        assert await commands.told("agents", "list") == []

    async def test_runs_of_the_agent_end_and_none_begins(self, provisioned: Bench, commands: Commands) -> None:
        text = WORKFLOW
        running = asyncio.create_task(asyncio.to_thread(lambda: provisioned.run(text)))
        async with asyncio.timeout(60):
            while not provisioned.sql("SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'"):
                await asyncio.sleep(0.1)
        (stands,) = await commands.told("agents", "list")
        assert (stands["agent"], stands["open_tasks"], stands["under_way"]) == ("sleeper", 0, 1)
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

QUICK = """
version: 1
name: quick
agent: tester
steps:
  work:
    action: postgres.query
    grants: { db: { kind: database, connection: support, role: feedback-read } }
    with: { sql: SELECT 1 AS one }
"""

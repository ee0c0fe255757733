"""Several processes answer agents on one ledger: any of them for any task, and nothing outlives one that is killed."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from typing import Any

import httpx
import pytest
from apis import Apis, apis_on, call, opened
from bench import Bench
from desks import TASK
from fork_server import ForkServer
from waiting import wait_for

from orchestrator.ledger.states import RunState, TaskState
from orchestrator.ledger.types import LeaseFilter

PROCESSES = 3
MANY = 50
SLEEPING = "SELECT pid FROM pg_stat_activity WHERE usename LIKE 'orc\\_pause%' AND wait_event = 'PgSleep'"


class RoundRobin:
    """What a proxy without sticky sessions does: each request to the next process that answers."""

    def __init__(self, apis: Apis, sub: str = "complaint") -> None:
        self._clients = [apis.client(each, sub) for each in apis.processes]
        self._turns = cycle(range(len(self._clients)))

    def __enter__(self) -> RoundRobin:
        return self

    def __exit__(self, *_: object) -> None:
        for each in self._clients:
            each.close()

    def request(self, method: str, path: str, **how: Any) -> httpx.Response:
        for _ in range(2 * len(self._clients)):
            try:
                answer = self._clients[next(self._turns)].request(method, path, **how)
            except httpx.TransportError:
                continue
            if answer.status_code != 429:
                return answer
            time.sleep(0.2)
        raise AssertionError("no process answers")

    def post(self, path: str, **how: Any) -> httpx.Response:
        return self.request("POST", path, **how)

    def get(self, path: str) -> httpx.Response:
        return self.request("GET", path)

    def delete(self, path: str) -> httpx.Response:
        return self.request("DELETE", path)


@pytest.fixture
def apis(bench: Bench, children: ForkServer) -> Iterator[Apis]:
    with bench.setup("postgresql") as setup:
        with apis_on(bench, children, setup.ledger_url) as found:
            found.put(TASK.replace("max_calls: 3", "max_calls: 30"))
            for _ in range(PROCESSES):
                found.start()
            yield found
        bench.assert_nothing_left()


def together(number: int, work: Any) -> list[Any]:
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(work, range(number)))


def owned_by(apis: Apis, pid: int) -> list[str]:
    """The calls that a process carries out."""
    with apis.ledger() as ledger:
        running = ledger.runs(workflow="complaint_desk", state=RunState.RUNNING, limit=1000)
        return [each.run_id for each in running if f"-{pid}-" in (ledger.runners.owner(each.run_id) or "")]


def test_kill_9_with_many_tasks_and_credentials_leaves_nothing(apis: Apis) -> None:
    with RoundRobin(apis) as broker:
        tasks = [task["id"] for task in together(MANY, lambda number: opened(broker))]  # type: ignore[arg-type]
        tools = ("login", "ticket")
        got = together(MANY, lambda number: call(broker, tasks[number], tools[number % 2], key="k").json())  # type: ignore[arg-type]
        assert {each["state"] for each in got} == {"handed_over"}
        assert len(apis.bench.logins_of_steps()) == MANY // 2
        victim = apis.processes[0]
        theirs = owned_by(apis, victim.process.pid)
        assert len(theirs) >= 10
        victim.process.send_signal(signal.SIGKILL)
        victim.process.wait()
        wait_for(lambda: not owned_by(apis, victim.process.pid), "its calls to be closed", 60)
        with apis.ledger() as ledger:
            for run_id in theirs:
                assert [lease.closed_at is not None for lease in ledger.leases(LeaseFilter(run=run_id))].count(
                    False
                ) == 0
                record = ledger.run(run_id)
                assert record is not None
                assert (record.state, "is gone" in record.reason) == (RunState.FAILED, True)
            alive = {
                lease.subject for lease in ledger.leases(LeaseFilter(task=None, limit=1000)) if not lease.closed_at
            }
        assert set(apis.bench.logins_of_steps()) <= alive
        index = next(number for number, each in enumerate(got) if each["id"] in theirs)
        told = call(broker, tasks[index], tools[index % 2], key="k")  # type: ignore[arg-type]
        assert (told.status_code, told.json()["state"]) == (200, "failed")
        assert "the process that carried it out is gone" in told.json()["error"]["detail"]
        anew = call(broker, tasks[index], tools[index % 2], key="k2")  # type: ignore[arg-type]
        assert anew.json()["state"] == "handed_over"
        closed = together(MANY, lambda number: broker.delete(f"/v1/tasks/{tasks[number]}"))
        assert {each.status_code for each in closed} == {200}, [each.text for each in closed if each.status_code != 200]
        assert apis.bench.logins_of_steps() == []
        with apis.ledger() as ledger:
            assert ledger.leases(LeaseFilter(limit=1000)) != []
            assert all(each.whole for each in ledger.examine_all())
    for each in apis.processes[1:]:
        assert each.stop() == 0


def test_a_client_that_vanishes_leaves_nothing_after_its_deadline(apis: Apis) -> None:
    apis.put(TASK.replace("complaint_desk", "another").replace("duration: 10m", "duration: 8s"))
    with RoundRobin(apis, "other") as broker:
        wanted = {"type": "another", "inputs": {"customer": 1234}}
        wait_for(lambda: all(broker.post("/v1/tasks", json=wanted).status_code == 201 for _ in range(6)), "the type")
        task = broker.post("/v1/tasks", json=wanted).json()["id"]
        assert call(broker, task, "login").json()["state"] == "handed_over"  # type: ignore[arg-type]
        assert call(broker, task, "ticket").json()["state"] == "handed_over"  # type: ignore[arg-type]
    with apis.ledger() as ledger:

        def is_closed() -> bool:
            record = ledger.task(task)
            assert record is not None
            return record.state is TaskState.CLOSED

        wait_for(is_closed, "the task to be closed")
        wait_for(lambda: not [each for each in ledger.calls(task) if each.state is RunState.RUNNING], "its calls")
        assert ledger.task(task).reason == "its deadline has passed"  # type: ignore[union-attr]
        assert [lease for lease in ledger.leases(LeaseFilter(task=task)) if lease.closed_at is None] == []
    wait_for(lambda: not apis.bench.logins_of_steps(), "the login to go")


def test_an_agent_is_cut_off_under_load(apis: Apis) -> None:
    """Nothing succeeds afterwards, and nothing of it is in the database two seconds later."""
    with RoundRobin(apis) as broker, RoundRobin(apis, "other") as others:
        tasks = [opened(broker)["id"] for _ in range(8)]  # type: ignore[arg-type]
        kept = opened(others)["id"]  # type: ignore[arg-type]
        assert call(others, kept, "login").json()["state"] == "handed_over"  # type: ignore[arg-type]
        begun = time.monotonic()
        over: list[float] = []
        late: list[tuple[float, int, str]] = []

        def work(number: int) -> int:
            done = 0
            while time.monotonic() < (over[0] + 3 if over else begun + 60):
                begin = time.monotonic()
                tool = ("read", "login", "pause")[done % 3]
                arguments = {"seconds": 1} if tool == "pause" else {}
                answer = call(broker, tasks[number], tool, arguments)  # type: ignore[arg-type]
                state = answer.json().get("state", "")
                late.append((begin, answer.status_code, state))
                if state == "handed_over":
                    broker.delete(f"/v1/leases/{answer.json()['lease']['id']}")
                done += 1
            return done

        with ThreadPoolExecutor(8) as pool:
            working = [pool.submit(work, number) for number in range(8)]
            time.sleep(4)
            answer = apis.children.command("agents", "revoke", "complaint-agent", environment=apis.environment())
            over.append(time.monotonic())
            assert answer.returncode == 0, answer.stdout + answer.stderr
            gone = wait_for(
                lambda: [time.monotonic()] if len(apis.bench.logins_of_steps()) == 1 else [], "the logins to go", 10
            )
            assert gone[0] - over[0] < 2
            assert all(each.result() > 0 for each in working)
        after = [(code, state) for begin, code, state in late if begin > over[0]]
        assert after
        assert not [each for each in after if each[0] in (200, 202) and each[1] not in ("failed", "cancelled")]
        assert {code for code, _ in after} <= {403, 409}
        assert call(others, kept, "read").json()["state"] == "done"  # type: ignore[arg-type]
        with apis.ledger() as ledger:
            mine = ledger.leases(LeaseFilter(agent="complaint-agent", limit=10_000))
            assert [lease for lease in mine if lease.closed_at is None] == []
        assert broker.post("/v1/tasks", json={"type": "complaint_desk", "inputs": {"customer": 1}}).status_code == 403

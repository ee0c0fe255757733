"""`serve` and `worker` as processes, given what hostile authors write: they live, tell, and run what others wrote."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from bench import Bench, Setup
from fork_server import Forked, ForkServer
from queued import queued
from test_hostile_workflows import HOSTILE, workflow
from test_serve import QUICK, WORKFLOW, Served, served_on
from waiting import wait_for

from orchestrator.actions.catalog import catalog
from orchestrator.clock import SystemClock
from orchestrator.ledger.states import RunState
from orchestrator.workflow.cel.engine import MEMORY
from orchestrator.workflow.files import MAX_BYTES
from orchestrator.workflow.loader import load_text

MOST_MEMORY = 300 << 20
"""Resident, of a service itself: twice what it needs without hostile files, and far less than these ask for. The
engine of expressions beside it may take what the kernel grants it, for as long as one of these is looked at."""


NO_WORKFLOW: dict[str, Callable[[Path], object]] = {
    "fifo": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "sparse": lambda path: (path.touch(), os.truncate(path, 8 << 30)),
    "aliases": lambda path: path.write_text(
        "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30))
    ),
    "lists": lambda path: path.write_text("version: 1\nname: " + "[" * 100_000),
    "number": lambda path: path.write_text("version: " + "9" * (MAX_BYTES - 20)),
    "expression": lambda path: path.write_text(workflow("bad", "(" * 4_000 + "1" + ")" * 4_000)),
    "operators": lambda path: path.write_text(workflow("bad", "1" + " + 1" * 100_000)),
}
SQL = {
    "brackets": "SELECT " + "(" * 60_000 + "1" + ")" * 60_000,
    "chain": "SELECT 1" + " + 1" * 60_000,
}


def stays_small(process: Forked | subprocess.Popen[bytes] | None) -> None:
    """A service and what it started take no more memory than they may."""
    assert process is not None
    status = [_status(entry) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    own = [_resident(each) for each in status if each.get("Pid") == str(process.pid)]
    children = [_resident(each) for each in status if each.get("PPid") == str(process.pid)]
    assert len(own) == 1
    assert own[0] < MOST_MEMORY
    assert sum(children) < MEMORY


def _status(process: Path) -> dict[str, str]:
    try:
        lines = (process / "status").read_text().splitlines()
    except OSError:
        return {}
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _resident(status: dict[str, str]) -> int:
    return int(status.get("VmRSS", "0 kB").split()[0]) << 10


@pytest.fixture
def served(bench: Bench, children: ForkServer) -> Iterator[Served]:
    with served_on(bench, children) as served:
        yield served


def succeeds_from_now_on(served: Served, name: str) -> None:
    since = SystemClock().now()
    wait_for(
        lambda: any(run.started_at > since for run in served.runs(name, RunState.SUCCEEDED)), f"another run of {name}"
    )


def hostile() -> dict[str, str]:
    """Valid workflows by name, each of which asks for more than there is as soon as it is carried out."""
    texts = [workflow(f"hostile_{n}", f"dyn({each})") for n, each in enumerate(HOSTILE.values())]
    texts = [text.replace("agent: tester", "agent: tester\nschedule: { every: 2s }") for text in texts]
    texts += [WORKFLOW.format(name=f"hostile_{name}", schedule="{ every: 2s }", sql=sql) for name, sql in SQL.items()]
    return {text.partition("name: ")[2].partition("\n")[0]: text for text in texts}


def installed(served: Served, name: str, text: str, folder: Path) -> Path:
    served.bench.install(load_text(text, filename="test.yaml", actions=catalog).workflow)
    (path := folder / f"{name}.yaml").write_text(text)
    return path


def all_fail(served: Served) -> None:
    for name in hostile():
        ended = wait_for(lambda n=name: served.runs(n, RunState.FAILED), name, 90)
        told = "`with.parameters.n`" if name[-1].isdigit() else "SQL"
        assert told in ended[0].reason
        assert len(ended[0].reason) < 2_000


@pytest.mark.parametrize("late", [False, True], ids=["before it starts", "while it runs"])
def test_a_scheduler_goes_on_with_the_others_whatever_lies_in_its_folder(served: Served, late: bool) -> None:
    served.put("wanted", "{ every: 1s }")
    if late:
        served.start()
        succeeds_from_now_on(served, "wanted")
    for name, make in NO_WORKFLOW.items():
        make(served.folder / f"{name}.yaml")
    if not late:
        served.start()
    wait_for(
        lambda: f"orchestrator_workflows_invalid {len(NO_WORKFLOW)}.0" in served.get("/metrics").text, "the figure", 90
    )
    complaints = [one["message"] for one in served.records() if "it is not scheduled" in one["message"]]
    assert len(complaints) == len(NO_WORKFLOW), "each is told once"
    assert {name for name in NO_WORKFLOW if any(f"/{name}.yaml: " in each for each in complaints)} == set(NO_WORKFLOW)
    assert max(map(len, complaints)) < 2_000
    succeeds_from_now_on(served, "wanted")
    assert served.get("/readyz").status_code == 200
    stays_small(served.process)
    assert served.runs("bad") == []
    assert served.stop() == 0


def test_a_scheduler_goes_on_with_the_others_whatever_workflows_ask_for(served: Served) -> None:
    served.put("wanted", "{ every: 1s }")
    for name, text in hostile().items():
        installed(served, name, text, served.folder)
    served.start()
    all_fail(served)
    succeeds_from_now_on(served, "wanted")
    assert served.get("/readyz").status_code == 200
    stays_small(served.process)
    assert served.stop() == 0
    served.bench.assert_nothing_left()


@pytest.mark.parametrize("setup", ["queue"], indirect=True)
def test_a_worker_goes_on_with_the_others_whatever_is_queued(served: Served, setup: Setup) -> None:
    served.environment["ORCHESTRATOR_LEDGER_URL"] = setup.ledger_url
    texts = {**hostile(), "wanted": WORKFLOW.format(name="wanted", schedule="{ every: 1h }", sql=QUICK)}
    for name, text in texts.items():
        path = installed(served, name, text, served.bench.directory)
        queued(setup.ledger_url, path)
    with served.log.open("ab") as log:
        words = ("worker", "--listen", "127.0.0.1:0", "--log-format", "json")
        served.process = served.children.start(*words, environment=served.environment, log=log)
    wait_for(lambda: served.runs("wanted", RunState.SUCCEEDED), "the run behind the hostile ones", 90)
    all_fail(served)
    assert served.process.poll() is None
    stays_small(served.process)
    assert served.get("/readyz").status_code == 200
    assert served.stop() == 0
    served.bench.assert_nothing_left()

"""Other programs put runs into the queue by DBOS's own client, and get no further than a worker's folder allows."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bench import Bench, Setup
from dbos import DBOSClient, WorkflowSerializationFormat
from fork_server import ForkServer
from test_shared_queue import Crew
from waiting import wait_for

from orchestrator.ledger.states import RunState
from orchestrator.queue.tables import QueueState

pytestmark = pytest.mark.parametrize("setup", ["queue"], indirect=True)

ROOT = Path(__file__).parents[2]


class Offering(Crew):
    """A crew whose workers offer the workflows of a folder."""

    @property
    def folder(self) -> Path:
        return self.bench.directory / "offered"

    def offer(self, name: str, **how: str) -> None:
        loaded = self.loaded(name, **how)
        self.folder.mkdir(exist_ok=True)
        (self.folder / f"{name}.yaml").write_text(loaded.text)

    def offering_worker(self) -> None:
        self.start("worker", str(self.folder), "--no-listen")

    def enqueue(self, workflow: str, inputs: Any = None, **options: Any) -> Any:
        client = DBOSClient(system_database_url=self.ledger_url, dbos_system_schema="orchestrator_dbos")
        try:
            return client.enqueue(
                {
                    "workflow_name": "orchestrator.run",
                    "queue_name": "runs",
                    "queue_partition_key": workflow,
                    "priority": 100,
                    "serialization_type": WorkflowSerializationFormat.PORTABLE,
                    **options,
                },
                workflow=workflow,
                inputs=inputs or {},
            ).get_workflow_id()
        finally:
            client.destroy()

    def result(self, run_id: str) -> Any:
        """What DBOS's client tells when it is over."""
        client = DBOSClient(system_database_url=self.ledger_url, dbos_system_schema="orchestrator_dbos")
        try:
            handle = client.retrieve_workflow(run_id)
            wait_for(
                lambda: handle.get_status().status in ("SUCCESS", "ERROR", "CANCELLED"), f"the end of {run_id}", 40
            )
            return handle.get_result()
        finally:
            client.destroy()


@pytest.fixture
def crew(bench: Bench, setup: Setup, tmp_path: Path, children: ForkServer) -> Iterator[Offering]:
    with Offering(bench, setup, tmp_path / "marks", children) as crew:
        yield crew


def test_a_workflow_of_the_workers_folder_is_carried_out_once_for_each_id(crew: Offering) -> None:
    crew.offer("greet")
    crew.offering_worker()
    for _ in range(2):
        assert crew.enqueue("greet", {"mark": "a"}, workflow_id="order-1234") == "order-1234"
    assert crew.result("order-1234") == "succeeded"
    assert crew.done() == ["greet a"]
    record = crew.run("order-1234")
    assert record is not None
    assert (record.state, record.trigger, record.inputs) == (RunState.SUCCEEDED, "queue", {"mark": "a"})
    assert crew.enqueue("greet", {"mark": "b"}, workflow_id="order-1234") == "order-1234"
    crew.enqueue("greet", {"mark": "c"}, workflow_id="order-5")
    assert crew.result("order-5") == "succeeded"
    assert crew.done() == ["greet a", "greet c"]


def test_what_the_folder_does_not_offer_is_refused_and_nothing_else_is(crew: Offering) -> None:
    crew.offer("greet")
    crew.offering_worker()
    unknown = crew.enqueue("other", workflow_id="one")
    wrong = crew.enqueue("greet", {"mark": {"no": "text SECRET-IN-AN-INPUT"}}, workflow_id="two")
    nameless = crew.enqueue("greet", workflow_id="an id with spaces")
    for run_id, words in (
        (unknown, "no workflow `other` is offered"),
        (wrong, "its inputs do not fit"),
        (nameless, "id"),
    ):
        with pytest.raises(Exception, match=words) as refused:
            crew.result(run_id)
        assert "SECRET-IN-AN-INPUT" not in str(refused.value)
        assert crew.run(run_id) is None
    fine = crew.enqueue("greet", {"mark": "x"})
    assert crew.result(fine) == "succeeded"
    assert crew.done() == ["greet x"]


def test_limits_hold_for_what_others_put_into_another_of_dboss_queues(crew: Offering) -> None:
    crew.offer("alone", top="max_runs: 1", then="sleep 0.5; echo over >> {marks}".replace("{marks}", str(crew.marks)))
    crew.offering_worker()
    crew.offering_worker()
    runs = [crew.enqueue("alone", {"mark": str(number)}) for number in range(4)]
    for run_id in runs:
        assert crew.result(run_id) == "succeeded"
    assert [line.partition(" ")[0] for line in crew.done()] == ["alone", "over"] * 4


def test_a_dead_workers_run_of_another_program_is_gone_on_with(crew: Offering) -> None:
    once = "if [ $(grep -c slow {marks}) = 1 ]; then sleep 40; fi".replace("{marks}", str(crew.marks))
    crew.offer("slow", then=once)
    crew.offering_worker()
    run_id = crew.enqueue("slow", {"mark": "1"})
    wait_for(lambda: crew.done() == ["slow 1"], "the run to go on", 30)
    crew.driver(run_id).kill()
    crew.offering_worker()
    assert crew.result(run_id) == "succeeded"
    assert crew.done() == ["slow 1", "slow 1"]
    wait_for(lambda: crew.states() == {}, "the queue to be empty", 30)
    assert QueueState.DEAD not in crew.states().values()


def test_the_example_of_the_guide_does_what_it_says(crew: Offering, tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "workers.md").read_text(), re.DOTALL)
    [example] = [block for block in blocks if "DBOSClient" in block]
    crew.offer("customer_feedback", top="")
    crew.offering_worker()
    script = tmp_path / "enqueue.py"
    script.write_text(example.replace('{"limit": 20}', '{"mark": "z"}'))
    ran = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "LEDGER_URL": crew.ledger_url},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == "succeeded\n"
    assert crew.done() == ["customer_feedback z"]
    assert json.dumps(crew.told("queue", "list")) == "[]"

"""`orchestrator serve` as a process on the real stack: it runs what is due, obeys overlap, reloads, and drains."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from bench import Bench
from fork_server import Forked, ForkServer
from waiting import wait_for

from orchestrator.actions.catalog import catalog
from orchestrator.clock import SystemClock
from orchestrator.ledger.coordination.schedules import open_schedules
from orchestrator.ledger.lease import LeaseState
from orchestrator.ledger.opening import open_ledger
from orchestrator.ledger.reading.queries import SWEEP_WORKFLOW
from orchestrator.ledger.states import RunState
from orchestrator.ledger.types import RunRecord
from orchestrator.workflow.loader import load_text

WORKFLOW = """
version: 1
name: {name}
agent: tester
schedule: {schedule}
steps:
  ask:
    action: postgres.query
    grants:
      db: {{ kind: database, connection: support, role: feedback-read }}
    with: {{ sql: "{sql}" }}
    timeout: 120s
"""
QUICK = "SELECT 1 AS one"
SLOW = "SELECT pg_sleep(100)"
SLEEPING = "SELECT pid FROM pg_stat_activity WHERE usename LIKE 'orc\\_%' AND wait_event = 'PgSleep'"


class Served:
    """A running `orchestrator serve`, its folder, its log and its ledger."""

    def __init__(self, bench: Bench, children: ForkServer) -> None:
        self.bench = bench
        self.children = children
        self.folder = bench.directory / "workflows"
        self.folder.mkdir(exist_ok=True)
        self.log = bench.directory / "stderr"
        self.process: Forked | subprocess.Popen[bytes] | None = None
        self.environment = {
            **bench.environment(),
            "ORCHESTRATOR_POLICY": "allow-all",
        }

    def put(self, name: str, schedule: str, sql: str = QUICK, *, file: str | None = None) -> Path:
        text = WORKFLOW.format(name=name, schedule=schedule, sql=sql)
        self.bench.install(load_text(text, filename="test.yaml", actions=catalog).workflow)
        path = self.folder / f"{file or name}.yaml"
        draft = self.folder / f".{path.name}"
        draft.write_text(text)
        draft.rename(path)
        return path

    def start(self, *options: str) -> None:
        with self.log.open("ab") as log:
            self.process = self.children.start(*self.words(*options), environment=self.environment, log=log)

    def words(self, *options: str) -> list[str]:
        return ["serve", str(self.folder), "--listen", "127.0.0.1:0", "--log-format", "json", *options]

    def schedules(self, *arguments: str) -> Any:
        answer = self.children.command("schedules", *arguments, "--json", environment=self.environment)
        answer.check_returncode()
        return json.loads(answer.stdout)

    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.endswith("}")]

    def begun(self) -> list[dict[str, Any]]:
        """The records of runs that began, sweeps included."""
        return [one for one in self.records() if one.get("event") == "run.started"]

    def get(self, path: str) -> httpx.Response:
        address = wait_for(lambda: [one["address"] for one in self.records() if "address" in one], "the listener")
        return httpx.get(f"http://{address[-1]}{path}", trust_env=False, timeout=20)

    @property
    def ledger_url(self) -> str:
        return self.environment["ORCHESTRATOR_LEDGER_URL"]

    def runs(self, workflow: str, state: RunState | None = None) -> list[RunRecord]:
        with open_ledger(self.ledger_url, clock=SystemClock()) as ledger:
            return list(ledger.runs(workflow=workflow, state=state, limit=1000))

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(60)


@contextmanager
def served_on(bench: Bench, children: ForkServer) -> Iterator[Served]:
    served = Served(bench, children)
    try:
        yield served
    finally:
        if served.process is not None and served.process.poll() is None:
            served.process.send_signal(signal.SIGTERM)
            served.process.send_signal(signal.SIGTERM)
            try:
                served.process.wait(60)
            except subprocess.TimeoutExpired:
                served.process.kill()
                served.process.wait()
    assert "Traceback" not in served.log.read_text()


@pytest.fixture
def served(bench: Bench, children: ForkServer) -> Iterator[Served]:
    with served_on(bench, children) as served:
        yield served


def test_what_is_due_is_run_again_and_again_and_a_signal_ends_it_with_nothing_left(served: Served) -> None:
    served.put("often", "{ every: 1s }")
    served.start()
    wait_for(lambda: len(served.runs("often", RunState.SUCCEEDED)) >= 3, "three runs")
    assert served.stop() == 0
    runs = served.runs("often")
    assert {run.state for run in runs} == {RunState.SUCCEEDED}
    assert {run.trigger for run in runs} == {"schedule"}
    assert len({run.run_id for run in runs}) == len(runs)
    served.bench.assert_nothing_left()


def test_with_overlap_forbidden_no_second_run_begins_while_one_goes_on(served: Served) -> None:
    served.put("slow", "{ every: 1s }", SLOW)
    served.put("often", "{ every: 1s }")
    served.start("--drain", "0")
    wait_for(lambda: "orchestrator_schedule_skipped_total{" in served.get("/metrics").text, "a time that is skipped")
    wait_for(lambda: len(served.runs("often")) >= 2, "runs of another workflow meanwhile")
    assert len(served.runs("slow")) == 1
    assert 'orchestrator_schedule_skipped_total{reason="overlap",workflow="slow"}' in served.get("/metrics").text


def test_a_run_that_outlasts_the_drain_is_cancelled_and_revokes_what_it_holds(served: Served) -> None:
    served.put("slow", "{ every: 1s }", SLOW)
    served.start("--drain", "0")
    wait_for(lambda: served.bench.sql(SLEEPING), "the step to query")
    assert served.stop() == 143
    (run,) = served.runs("slow")
    assert (run.state, run.exit_code, run.reason) == (RunState.CANCELLED, 143, "the scheduler was stopped")
    assert served.bench.logins() == []
    assert {lease.state for lease in served.bench.history(run.run_id)} == {LeaseState.REVOKED}


def test_no_more_runs_go_on_than_are_allowed_and_those_that_wait_are_given_up_at_the_end(served: Served) -> None:
    for name in ("one", "two", "three"):
        served.put(name, "{ every: 1s }", SLOW)
    served.put("triggered", "{ every: 1s, enabled: false }")
    served.start("--max-runs", "2", "--drain", "0")
    wait_for(lambda: len(served.bench.sql(SLEEPING)) == 2, "two steps to query")
    wait_for(lambda: served.get("/readyz").status_code == 200, "readiness")
    wait_for(lambda: served.schedules("list", str(served.folder)), "the schedules")
    assert len(served.bench.sql(SLEEPING)) == 2
    assert served.stop() == 143
    runs = [run for name in ("one", "two", "three", "triggered") for run in served.runs(name)]
    assert [run.state for run in runs] == [RunState.CANCELLED] * 2
    served.bench.assert_nothing_left()


def test_a_second_signal_does_not_wait_for_the_drain(served: Served) -> None:
    served.put("slow", "{ every: 1s }", SLOW)
    served.start("--drain", "3600")
    wait_for(lambda: served.bench.sql(SLEEPING), "the step to query")
    assert served.process is not None
    served.process.send_signal(signal.SIGINT)
    wait_for(lambda: served.get("/readyz").json()["workflows"] == "draining", "the drain")
    assert served.get("/healthz").status_code == 200
    assert served.stop(signal.SIGINT) == 130
    served.bench.assert_nothing_left()


def test_a_run_may_end_by_itself_within_the_drain(served: Served) -> None:
    served.put("brief", "{ every: 1s }", "SELECT pg_sleep(2)")
    served.start()
    wait_for(lambda: served.bench.sql(SLEEPING), "the step to query")
    assert served.stop() == 0
    assert {run.state for run in served.runs("brief")} == {RunState.SUCCEEDED}


def test_a_changed_file_is_run_as_it_is_now_and_a_broken_one_as_it_was(served: Served) -> None:
    path = served.put("changing", "{ every: 1s }")
    served.start()
    first = wait_for(lambda: served.runs("changing", RunState.SUCCEEDED), "a run")[0].digest
    served.put("changing", "{ every: 1s }", "SELECT 2 AS two")
    second = wait_for(
        lambda: [run.digest for run in served.runs("changing") if run.digest != first], "a run of the new version"
    )[0]
    path.write_text("version: 1\nname: [")
    wait_for(lambda: [one for one in served.records() if "last valid version" in one["message"]], "the complaint")
    assert "orchestrator_workflows_invalid 1.0" in served.get("/metrics").text
    assert served.get("/readyz").status_code == 200
    broken_since = SystemClock().now()
    wait_for(lambda: served.runs("changing")[0].started_at > broken_since, "a run after the file was broken")
    assert served.runs("changing")[0].digest == second
    path.unlink()
    wait_for(lambda: "orchestrator_workflows_loaded 0.0" in served.get("/metrics").text, "the file to be missed")
    assert served.stop() == 0


ALLOWING = 'package orchestrator\ndecision := {"allow": true, "reasons": ["open"]}\n'
DENYING = 'package orchestrator\ndecision := {"allow": false, "reasons": ["the agent is cut off"]}\n'


def policies(served: Served, text: str) -> None:
    folder = served.bench.directory / "policies"
    folder.mkdir(exist_ok=True)
    (folder / ".draft").write_text(text)
    (folder / ".draft").rename(folder / "policy.rego")
    served.environment |= {"ORCHESTRATOR_POLICY": "rego", "ORCHESTRATOR_POLICY_PATH": str(folder)}


def test_a_tightened_policy_holds_for_the_next_run_and_a_broken_one_is_told(served: Served) -> None:
    policies(served, ALLOWING)
    served.put("watched", "{ every: 1s }")
    served.start()
    wait_for(lambda: served.runs("watched", RunState.SUCCEEDED), "a run")
    policies(served, DENYING)
    since = SystemClock().now()
    refused = wait_for(lambda: served.runs("watched", RunState.REFUSED), "a run that is refused")
    assert "the agent is cut off" in refused[0].reason
    policies(served, "package orchestrator\ndecision := {")
    wait_for(lambda: served.get("/readyz").json()["policy"] == "stale", "that the service is not ready")
    assert served.get("/readyz").status_code == 503
    wait_for(lambda: "orchestrator_policies_stale 1.0" in served.get("/metrics").text, "the figure")
    (complaint,) = [one for one in served.records() if "changed policies cannot be used" in one["message"]]
    assert complaint["level"].lower() == "error"
    assert "policy.rego:2:" in complaint["message"]
    count = len(served.runs("watched", RunState.REFUSED))
    wait_for(lambda: len(served.runs("watched", RunState.REFUSED)) > count, "another run that is refused")
    states = {run.state for run in served.runs("watched") if run.started_at > since}
    assert states <= {RunState.REFUSED, RunState.RUNNING}
    policies(served, ALLOWING)
    wait_for(lambda: served.runs("watched")[0].state is RunState.SUCCEEDED, "a run that is allowed")
    wait_for(lambda: served.get("/readyz").status_code == 200, "readiness")
    assert served.stop() == 0
    served.bench.assert_nothing_left()


def test_a_running_run_is_cancelled_for_its_successor_where_the_schedule_replaces(served: Served) -> None:
    served.put("newest", "{ every: 3s, overlap: replace }", SLOW)
    served.start("--drain", "0")
    wait_for(lambda: len(served.runs("newest")) >= 3, "a third run")
    assert served.stop() == 143
    runs = served.runs("newest")
    assert len([run for run in runs if run.reason.startswith("replaced by the run ")]) >= 2
    for run, successor in zip(runs[1:], runs, strict=False):
        assert run.finished_at is not None
        assert run.finished_at <= successor.started_at


def test_pausing_stops_the_schedule_triggering_runs_once_and_resuming_goes_on(served: Served) -> None:
    served.put("often", "{ every: 1s }")
    served.start()
    wait_for(lambda: served.runs("often", RunState.SUCCEEDED), "a run")
    served.schedules("pause", "often")
    (line,) = served.schedules("list", str(served.folder))
    assert (line["state"], line["next"]) == ("paused", None)

    def triggered() -> list[RunRecord]:
        return [run for run in served.runs("often", RunState.SUCCEEDED) if run.trigger == "trigger"]

    told = served.schedules("trigger", "often")
    wait_for(triggered, "the run that was asked for")
    assert [run.run_id for run in triggered()] == [told["run_id"]]
    seen = len(served.runs("often"))  # the pause was seen before the request, in the same look
    again = served.schedules("trigger", "often")
    wait_for(lambda: len(triggered()) == 2, "the second run that was asked for")
    assert again["run_id"] != told["run_id"]
    assert len(served.runs("often")) == seen + 1

    served.schedules("resume", "often")
    wait_for(lambda: len(served.runs("often")) > seen + 1, "a scheduled run")
    assert served.stop() == 0


def test_two_schedulers_share_the_times_and_run_none_twice(served: Served) -> None:
    served.put("shared", "{ every: 1s }")
    served.start()
    other = Served(served.bench, served.children)
    other.log = served.bench.directory / "stderr-other"
    other.start()
    try:
        wait_for(lambda: len(served.runs("shared", RunState.SUCCEEDED)) >= 5, "five runs")
    finally:
        assert other.stop() == 0
    assert served.stop() == 0
    begun = [one for log in (served, other) for one in log.begun() if one["workflow"] == "shared"]
    ids = [one["run"] for one in begun]
    assert len(ids) == len(set(ids)) == len(served.runs("shared"))
    assert "Traceback" not in other.log.read_text()


def test_after_an_absence_the_latest_time_is_made_up_for_and_never_a_second_time(served: Served) -> None:
    def forget() -> None:
        """As if nothing had been scheduled for years."""
        with open_schedules(served.bench.config().ledger_url) as store:
            state = store.get("yearly")
            assert state is not None
            assert store.put(replace(state, handled=datetime(2020, 5, 1, tzinfo=UTC))) is not None

    served.put("yearly", "{ cron: '0 0 1 1 *', catch_up: latest }")
    served.start()
    wait_for(lambda: served.get("/readyz").status_code == 200, "readiness")
    assert served.stop() == 0
    assert served.runs("yearly") == []
    forget()
    served.start()
    wait_for(lambda: served.runs("yearly", RunState.SUCCEEDED), "the run that is made up for")
    assert served.stop() == 0
    forget()
    served.start()
    wait_for(lambda: [one for one in served.records() if one["message"].endswith("skipped: taken")], "the refusal")
    assert served.stop() == 0
    assert len(served.runs("yearly")) == 1


def test_the_listener_tells_health_readiness_and_figures_but_no_secrets(served: Served) -> None:
    served.put("often", "{ every: 1s }")
    served.start()
    wait_for(lambda: served.runs("often", RunState.SUCCEEDED), "a run")
    assert served.get("/healthz").json() == {"ok": True, "loop": "ok"}
    ready = served.get("/readyz")
    every = {"ok": True, "ledger": "ok", "vault": "ok", "policy": "ok", "workflows": "ok"}
    assert (ready.status_code, ready.json()) == (200, every)
    shown = wait_for(
        lambda: [text for text in [served.get("/metrics")] if 'runs_total{state="succeeded"' in text.text], "figures"
    )[0]
    assert shown.headers["content-type"].startswith("text/plain; version=0.0.4")
    for line in (
        'orchestrator_runs_total{state="succeeded",workflow="often"}',
        'orchestrator_run_duration_seconds_bucket{le="60.0",workflow="often"}',
        'orchestrator_leases_total{kind="database",outcome="issued"}',
        'orchestrator_leases_total{kind="database",outcome="revoked"}',
        'orchestrator_schedule_lag_seconds_count{workflow="often"}',
        "orchestrator_leases_pending 0.0",
    ):
        assert line in shown.text
    assert served.get("/").status_code == 404
    assert served.stop() == 0
    started = served.begun()
    assert {one["workflow"] for one in started} - {SWEEP_WORKFLOW} == {"often"}
    assert all(one["run"].startswith("run_") for one in started)


def test_without_vault_it_is_alive_but_not_ready(served: Served) -> None:
    served.environment["VAULT_ADDR"] = "http://127.0.0.1:9"
    served.environment["ORCHESTRATOR_VAULT_ADDR"] = "http://127.0.0.1:9"
    served.start()
    wait_for(lambda: [one for one in served.records() if "with a schedule" in one["message"]], "the start")
    ready = served.get("/readyz")
    assert (ready.status_code, ready.json()["vault"], ready.json()["ledger"]) == (503, "unreachable", "ok")
    assert served.get("/healthz").status_code == 200
    assert "127.0.0.1" not in ready.text
    assert served.stop() == 0


def test_an_address_that_is_taken_is_told_before_anything_runs(served: Served) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        served.start("--listen", f"127.0.0.1:{taken.getsockname()[1]}")
        assert served.process is not None
        assert served.process.wait(30) == 2
    assert "cannot listen at" in served.log.read_text()

"""Exit codes are those of the README, also where what fails is far from the command."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys

import fork_server
import pytest
from bench import ROOT, Bench
from waiting import wait_for

from orchestrator.actions.catalog import catalog
from orchestrator.devstack.ports import free_port
from orchestrator.errors import ExitCode
from orchestrator.ledger.states import RunState, StepState
from orchestrator.workflow.loader import load_text

COMMAND = [sys.executable, "-c", "from orchestrator.cli.entry import run; run()"]
READ = """version: 1
name: reads
agent: tester
steps:
  read:
    action: postgres.query
    grants: { db: { kind: database, connection: support, role: feedback-read } }
    with: { sql: SELECT 1 AS one }
    timeout: 10s
"""
ECHO = """version: 1
name: says
agent: tester
inputs: { m: { type: integer, default: 1 }, key: { type: string, secret: true } }
steps:
  say: { action: exec, with: { command: [/bin/echo, "${{ inputs.m }}"] } }
"""


def orchestrator(
    bench: Bench, *arguments: str, shell: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    """The command; with `shell`, what a shell does with its streams, in a process of its own from the start."""
    program = ["/bin/sh", "-c", f'exec "$@" {shell}', "sh", *COMMAND] if shell else fork_server.orchestrator()
    return subprocess.run(
        [*program, *arguments],
        cwd=bench.directory,
        env=surroundings(bench, **environment),
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


def surroundings(bench: Bench, **environment: str) -> dict[str, str]:
    return {
        **bench.environment(),
        "ORCHESTRATOR_POLICY": "allow-all",
        "PYTHONPATH": os.pathsep.join(sys.path),
        **environment,
    }


def test_every_code_that_there_is_has_its_row_in_the_reference() -> None:
    table = (
        (ROOT / "docs" / "reference" / "exit-codes.md")
        .read_text()
        .partition("| code | name | meaning |")[2]
        .partition("\n\n")[0]
    )
    told = {
        int(code)
        for row in table.splitlines()
        if (cells := row.split("|"))[1:]
        for code in re.findall(r"\d+", cells[1])
    }
    assert told == {int(code) for code in ExitCode}


def test_a_database_that_the_step_cannot_reach_is_a_service_that_did_not_answer(bench: Bench) -> None:
    nobody = f"postgresql://127.0.0.1:{free_port()}/support"
    outcome = bench.run(READ, endpoints={"support": nobody}, primaries={"support": bench.info.endpoints["support"]})
    assert outcome.steps == {"read": StepState.FAILED}
    assert outcome.exit_code is ExitCode.UNREACHABLE
    assert "cannot connect to the database `support`" in outcome.errors["read"].message


def test_one_that_it_reaches_and_that_refuses_the_statement_is_a_failed_step(bench: Bench) -> None:
    assert bench.run(READ.replace("SELECT 1 AS one", "SELECT 1 / 0 AS one")).exit_code is ExitCode.STEP_FAILED


@pytest.mark.parametrize(
    ("address", "said"), [("https", "does not speak TLS as it is asked to"), ("http", "did not accept a connection")]
)
def test_a_vault_that_is_not_reached_is_a_service_that_did_not_answer(address: str, said: str, bench: Bench) -> None:
    (bench.directory / "w.yaml").write_text(READ)
    there = bench.info.vault_address.replace("http:", "https:") if address == "https" else "http://127.0.0.1:1"
    ran = orchestrator(bench, "run", "w.yaml", VAULT_ADDR=there, ORCHESTRATOR_VAULT_ADDR=there)
    assert (ran.returncode, said in ran.stderr) == (5, True), ran.stderr
    assert "certificate" not in ran.stderr


def test_a_run_that_an_operator_cancels_answers_as_one_that_is_interrupted(bench: Bench) -> None:
    text = READ.replace("SELECT 1 AS one", "SELECT pg_sleep(600)").replace("timeout: 10s", "timeout: 100s")
    (bench.directory / "w.yaml").write_text(text)
    bench.install(load_text(text, filename="w.yaml", actions=catalog).workflow)
    running = subprocess.Popen(
        [*COMMAND, "run", "w.yaml", "--run-id", "long"],
        cwd=bench.directory,
        env=surroundings(bench),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_for(bench.sessions, "its session")
        assert orchestrator(bench, "runs", "cancel", "long", "--reason", "enough of it").returncode == 0
        said = running.communicate(timeout=60)[1]
    finally:
        running.kill()
    assert running.returncode == 130
    assert "enough of it" in said
    bench.assert_nothing_left()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("after", [0.05, 0.15, 0.3, 0.5, 0.8])
def test_a_signal_at_the_beginning_is_answered_by_its_code(number: signal.Signals, after: float, bench: Bench) -> None:
    """Whatever a library makes of it while workflows are read and expressions compiled."""
    (bench.directory / "w.yaml").write_text(
        ECHO.replace(", key: { type: string, secret: true }", "").replace(
            "[/bin/echo,", "[/bin/sleep, '100', '${{ string(inputs.m + 1) }}',"
        )
    )
    # What comes while Python itself starts is Python's to answer.
    ours = [sys.executable, "-c", "from orchestrator.cli.entry import run; print(flush=True); run()"]
    running = subprocess.Popen(
        [*ours, "run", "w.yaml", "--quiet"],
        cwd=bench.directory,
        env=surroundings(bench),
        stderr=subprocess.PIPE,
        text=True,
        stdout=subprocess.PIPE,
    )
    assert running.stdout is not None
    assert running.stdout.readline() == "\n"
    try:
        running.wait(timeout=after)
    except subprocess.TimeoutExpired:
        running.send_signal(number)
    said = running.communicate(timeout=60)[1]
    assert running.returncode in (128 + number, -number), said
    assert "defect" not in said
    assert "Traceback" not in said


class TestWhoReadsIt:
    @pytest.mark.parametrize("shell", [">&-", "2>&-", ">&- 2>&-", "<&-"])
    def test_a_closed_stream_keeps_no_run_from_its_end(self, shell: str, bench: Bench) -> None:
        (bench.directory / "w.yaml").write_text(ECHO.replace(", key: { type: string, secret: true }", ""))
        ran = orchestrator(bench, "run", "w.yaml", shell=shell)
        assert (ran.returncode, "defect" in ran.stderr) == (0, False), ran.stderr
        assert orchestrator(bench, "runs", "list", shell=shell).returncode == 0

    @pytest.mark.parametrize("command", [["run", "w.yaml"], ["runs", "list"], ["validate", "w.yaml"], ["schema"]])
    def test_a_full_disk_behind_the_output_is_said_as_what_it_is(self, command: list[str], bench: Bench) -> None:
        (bench.directory / "w.yaml").write_text(ECHO.replace(", key: { type: string, secret: true }", ""))
        ran = orchestrator(bench, *command, shell="> /dev/full")
        assert ran.returncode == 5
        assert "cannot be written: No space left on device" in ran.stderr
        assert "defect" not in ran.stderr
        assert "Exception ignored" not in ran.stderr

    @pytest.mark.parametrize("fails", [False, True])
    def test_a_run_ends_with_its_own_code_whoever_reads(self, fails: bool, bench: Bench) -> None:
        text = READ.replace("SELECT 1", "SELECT 1/0" if fails else "SELECT 1")
        (bench.directory / "w.yaml").write_text(text)
        bench.install(load_text(text, filename="w.yaml", actions=catalog).workflow)
        reading, writing = os.pipe()
        os.close(reading)
        with open("/dev/full", "w") as full, open(os.devnull, "r+") as nothing:
            gone = writing
            for more, out, err in (
                ([], nothing.fileno(), full.fileno()),
                (["--json"], nothing.fileno(), gone),
                ([], gone, gone),
                (["--json", "--follow"], gone, full.fileno()),
                *([(["--quiet"], full.fileno(), full.fileno())]),
                *([([], full.fileno(), full.fileno()), (["--json"], full.fileno(), gone)] if fails else []),
            ):
                process = fork_server.ForkServer.of_session.start_on(
                    "run",
                    str(bench.directory / "w.yaml"),
                    *more,
                    environment=surroundings(bench),
                    streams=(nothing.fileno(), out, err),
                )
                assert process.wait(60) == (4 if fails else 0), more
        os.close(writing)
        bench.assert_nothing_left()

    def test_what_cannot_be_said_on_the_standard_error_changes_no_code_and_leaves_no_traceback(
        self, bench: Bench
    ) -> None:
        (bench.directory / "w.yaml").write_text(ECHO)
        for words, code in (
            (["validate", "w.yaml"], 0),
            (["validate", "gone.yaml"], 2),
            (["runs", "show", "nobody", "--json"], 2),
            (["leases", "list"], 0),
            (["plan", "gone.yaml"], 2),
            (["no-such-command"], 2),
        ):
            ran = orchestrator(bench, *words, shell="2> /dev/full")
            assert ran.returncode == code, words
            assert "Traceback" not in ran.stdout

    def test_an_object_that_cannot_be_written_changes_no_code_either(self, bench: Bench) -> None:
        ran = orchestrator(bench, "runs", "show", "nobody", "--json", shell="> /dev/full")
        assert ran.returncode == 2
        assert "Traceback" not in ran.stderr
        assert "Exception ignored" not in ran.stderr
        assert "no run nobody" in ran.stderr

    def test_a_tolerated_failure_is_a_warning_and_nothing_for_those_who_want_quiet(self, bench: Bench) -> None:
        text = ECHO.replace(", key: { type: string, secret: true }", "").replace(
            '[/bin/echo, "${{ inputs.m }}"] }', "[/bin/false] }, continue_on_error: true"
        )
        (bench.directory / "w.yaml").write_text(text)
        ran = orchestrator(bench, "run", "w.yaml")
        assert ran.returncode == 0
        assert "warning: step `say` failed, and the run went on" in ran.stderr
        assert "error:" not in ran.stderr
        again = orchestrator(bench, "run", "w.yaml", "--quiet")
        assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
        told = json.loads(orchestrator(bench, "run", "w.yaml", "--json").stdout.splitlines()[-1])
        assert (told["tolerated"], "error" in told) == (["say"], False)


class TestAnIdGivenAgain:
    @pytest.fixture
    def begun(self, bench: Bench) -> Bench:
        (bench.directory / "w.yaml").write_text(ECHO)
        (bench.directory / "s.yaml").write_text(json.dumps({"key": "a-key-of-somebody"}))
        ran = orchestrator(bench, "run", "w.yaml", "--run-id", "day-1", "-i", "m=1", "--inputs", "s.yaml")
        assert ran.returncode == 0, ran.stderr
        return bench

    def again(self, bench: Bench, *more: str) -> subprocess.CompletedProcess[str]:
        return orchestrator(bench, "run", "w.yaml", "--run-id", "day-1", "--inputs", "s.yaml", *more)

    def test_its_outcome_is_told_and_that_it_had_ended_before(self, begun: Bench) -> None:
        told = self.again(begun, "-i", "m=1")
        assert told.returncode == 0
        assert "run day-1 had ended before: its outcome is told, and nothing is run" in told.stderr
        assert "day-1 succeeded, before, exit code 0" in told.stdout
        assert "STEP" not in told.stdout

    def test_other_inputs_are_refused_by_name_and_secret_ones_are_not_told(self, begun: Bench) -> None:
        refused = self.again(begun, "-i", "m=2")
        assert refused.returncode == 2
        assert "run day-1 was begun with other inputs: `m`" in refused.stderr
        (begun.directory / "s.yaml").write_text(json.dumps({"key": "another-key-of-somebody"}))
        assert self.again(begun, "-i", "m=1").returncode == 0

    @pytest.mark.parametrize("name", ["bad id!", "", "-x", "a/b", "x" * 501, "a\nb", "é"])
    def test_what_is_no_id_is_refused_before_anything(self, name: str, bench: Bench) -> None:
        (bench.directory / "w.yaml").write_text(ECHO)
        refused = orchestrator(bench, "run", "w.yaml", f"--run-id={name}")
        assert (refused.returncode, "a run's id has letters" in refused.stderr) == (2, True)


def test_what_keeps_every_step_from_running_is_not_told_as_a_step(bench: Bench) -> None:
    (bench.directory / "w.yaml").write_text(
        ECHO.replace(", key: { type: string, secret: true }", "").replace("inputs.m }}", "endpoints.nowhere }}")
    )
    ran = orchestrator(bench, "run", "w.yaml", "--run-id", "day-2")
    assert (ran.returncode, "error: the run failed\n" in ran.stderr) == (2, True), ran.stderr
    assert "set ORCHESTRATOR_ENDPOINTS__NOWHERE" in ran.stderr
    assert RunState.FAILED.value in ran.stdout

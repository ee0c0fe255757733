"""The parts of the scheduler that need no server: maintenance, logs, figures, the overview."""

import asyncio
import io
import json
import logging
import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import cast

import pytest

from orchestrator.actions.catalog import catalog
from orchestrator.cli.log_format import LogFormat, formatter
from orchestrator.errors import ExitCode, UsageError, VaultUnreachable
from orchestrator.ledger.coordination.schedules import ScheduleState
from orchestrator.ledger.events import LeaseIssued, LeaseRequested, LeaseRevoked, LeaseRevoking, RunFinished, RunStarted
from orchestrator.ledger.states import RunState
from orchestrator.redaction.redactor import RedactingFilter, Redactor
from orchestrator.runs.runner import Runner
from orchestrator.runs.types import Interruption, RunOutcome, RunRequest
from orchestrator.scheduling.launcher import SECRETS_KEPT, Launcher
from orchestrator.scheduling.overview import overview
from orchestrator.secret import Secret
from orchestrator.server.listener import bind
from orchestrator.server.maintenance import maintained
from orchestrator.telemetry.event_log import log_event
from orchestrator.telemetry.metrics import ConnectionFigures, Metrics
from orchestrator.telemetry.prometheus import PrometheusMetrics
from orchestrator.workflow.loader import load_text

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
CANARY = "canary-7d1f-secret"
STARTED = RunStarted(workflow="w", digest="d", agent="a", trigger="schedule", inputs={"limit": CANARY}, steps=("only",))


class Counted(Metrics):
    def __init__(self) -> None:
        self.failures: list[str] = []

    def failed(self, part: str) -> None:
        self.failures.append(part)


async def test_a_hook_that_fails_is_counted_and_tried_again_while_the_others_go_on() -> None:
    metrics, done = Counted(), asyncio.Event()
    turns: list[str] = []

    async def recovery() -> None:
        turns.append("recovery")
        if len(turns) > 8:
            done.set()
        raise VaultUnreachable("no answer") if len(turns) % 2 else ZeroDivisionError

    async def sweep() -> None:
        turns.append("sweep")

    async with maintained([(0.0, recovery), (0.0, sweep)], metrics):
        await done.wait()
    assert metrics.failures.count("recovery") >= 2
    assert set(metrics.failures) == {"recovery"}
    assert turns.count("sweep") >= 2


async def test_hooks_end_with_the_service() -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def endless() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with maintained([(1.0, endless)], Metrics()):
        await begun.wait()
    assert ended.is_set()


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    """What a JSON log with redaction writes."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter(LogFormat.JSON))
    handler.addFilter(RedactingFilter(Redactor([Secret(CANARY)])))
    logger = logging.getLogger("orchestrator.run")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield stream
    logger.removeHandler(handler)
    logger.setLevel(before)


def test_a_record_is_one_json_object_with_the_ids_of_run_step_and_lease(written: io.StringIO) -> None:
    log_event("run_1", STARTED)
    log_event("run_1", LeaseRevoking(lease_id="lease_1", reason=f"step ended with {CANARY}"))
    begun, revoking = (json.loads(line) for line in written.getvalue().splitlines())
    assert (begun["level"], begun["run"], begun["workflow"], begun["event"]) == ("info", "run_1", "w", "run.started")
    assert (revoking["level"], revoking["lease"]) == ("debug", "lease_1")
    assert datetime.fromisoformat(begun["time"]).tzinfo is not None
    assert CANARY not in written.getvalue()


def test_an_issued_secret_is_taken_out_of_message_fields_and_traceback(written: io.StringIO) -> None:
    try:
        raise ValueError(f"password {CANARY}")
    except ValueError:
        logging.getLogger("orchestrator.run").exception("with %s", CANARY, extra={"step": CANARY})
    record = json.loads(written.getvalue())
    assert record["message"] == "with ***"
    assert record["step"] == "***"
    assert "ValueError: password ***" in record["exception"]
    assert CANARY not in written.getvalue()


def test_figures_count_runs_and_leases_and_never_show_inputs_or_ids() -> None:
    metrics = PrometheusMetrics()
    metrics.event("run_1", NOON, STARTED)
    metrics.event(
        "run_1",
        NOON,
        LeaseRequested(
            lease_id="lease_1",
            step="only",
            attempt=1,
            grant="db",
            grant_kind="database",
            resource="database/creds/x",
            scope={},
            ttl=60,
        ),
    )
    metrics.event("run_1", NOON, LeaseIssued(lease_id="lease_1", ttl=60, expires_at=NOON, subject="orc_x"))
    text = metrics.exposition()[0].decode()
    assert 'orchestrator_leases_open{kind="database"} 1.0' in text
    assert 'orchestrator_runs_running{workflow="w"} 1.0' in text
    metrics.event("run_1", NOON, LeaseRevoked(lease_id="lease_1", confirmed_by="vault"))
    metrics.event("run_1", NOON + timedelta(seconds=3), RunFinished(state=RunState.SUCCEEDED, exit_code=0))
    metrics.pending(2)
    metrics.places([ConnectionFigures("support", 3, 2, 4, 1.5)])
    body, content_type = metrics.exposition()
    text = body.decode()
    for line in (
        'orchestrator_leases_open{kind="database"} 0.0',
        'orchestrator_leases_total{kind="database",outcome="issued"} 1.0',
        'orchestrator_leases_total{kind="database",outcome="revoked"} 1.0',
        'orchestrator_runs_total{state="succeeded",workflow="w"} 1.0',
        'orchestrator_run_duration_seconds_sum{workflow="w"} 3.0',
        "orchestrator_leases_pending 2.0",
        'orchestrator_connection_leases_limit{connection="support"} 3.0',
        'orchestrator_connection_leases{connection="support"} 2.0',
        'orchestrator_connection_attempts_waiting{connection="support"} 4.0',
        'orchestrator_connection_longest_wait_seconds{connection="support"} 1.5',
    ):
        assert line in text
    assert content_type.startswith("text/plain; version=0.0.4")
    for hidden in (CANARY, "run_1", "lease_1", "orc_x", "database/creds"):
        assert hidden not in text


@pytest.mark.parametrize("address", ["9464", "localhost", "127.0.0.1:http", "127.0.0.1:99999", "256.0.0.1:0"])
def test_an_address_that_is_none_is_a_usage_error(address: str) -> None:
    with pytest.raises(UsageError):
        bind(address)


async def test_an_answer_does_not_wait_for_an_acknowledgement_of_its_head() -> None:
    listening = bind("127.0.0.1:0")
    found: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        found.set_result(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    async with await asyncio.start_server(connected, sock=listening):
        _, writer = await asyncio.open_connection(*listening.getsockname())
        assert await found
        writer.close()


def test_the_overview_tells_the_state_of_each_schedule() -> None:
    text = (
        "version: 1\nname: {0}\nagent: a\nschedule: {1}\nsteps: {{ s: {{ action: exec, with: {{ command: [x] }} }} }}"
    )
    schedules = {
        "active": "{ every: 1h, jitter: 5m }",
        "disabled": "{ every: 1h, enabled: false }",
        "new": "{ cron: '0 7 * * *', timezone: Asia/Bangkok }",
        "paused": "{ every: 1h }",
    }
    workflows = {
        name: load_text(text.format(name, schedule), filename="t.yaml", actions=catalog)
        for name, schedule in schedules.items()
    }
    states = [
        ScheduleState(workflow=name, handled=NOON, paused=name == "paused", version=1)
        for name in ("active", "disabled", "gone", "paused")
    ]
    lines = {line.workflow: line for line in overview(workflows, states, NOON)}
    assert {name: line.state for name, line in lines.items()} == {
        **{name: name for name in schedules},
        "gone": "not in folder",
    }
    assert lines["new"].next == datetime(2026, 6, 2, 0, 0, tzinfo=UTC)
    assert lines["active"].when == "every 1h +5m"
    assert lines["paused"].next is lines["disabled"].next is None


class HeldRunner:
    """Stands for a runner whose ledger has not answered yet."""

    def __init__(self, launcher: Launcher) -> None:
        self._launcher = launcher
        self.asked, self.answer = asyncio.Event(), asyncio.Event()
        self.cancelled_before_the_answer = False

    async def run(self, request: RunRequest, interruption: Interruption) -> RunOutcome:
        self.asked.set()
        try:
            await self.answer.wait()
        except asyncio.CancelledError:
            self.cancelled_before_the_answer = True
            raise
        self._launcher.observe(request.run_id, STARTED)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            pass
        return RunOutcome(run_id=request.run_id, state=RunState.CANCELLED, exit_code=interruption.exit_code)


def request(run_id: str) -> RunRequest:
    text = "version: 1\nname: w\nagent: a\nsteps: { s: { action: exec, with: { command: [x] } } }"
    return RunRequest(run_id=run_id, loaded=load_text(text, filename="t.yaml", actions=catalog), inputs={})


async def test_a_run_is_never_cut_off_between_its_beginning_and_the_ledgers_answer() -> None:
    launcher = Launcher(max_runs=1, redactor=Redactor())
    runner = HeldRunner(launcher)
    launched = launcher.launch(cast(Runner, runner), request("run_1"))
    await runner.asked.wait()
    launched.cancel(ExitCode.TERMINATED, "stopped")
    assert not await launcher.wait([launched], seconds=0)
    runner.answer.set()
    assert await launcher.wait([launched], seconds=10)
    assert not runner.cancelled_before_the_answer
    assert launched.begun.done()


async def test_what_waits_for_a_place_is_given_up_without_having_begun() -> None:
    launcher = Launcher(max_runs=1, redactor=Redactor())
    runner = HeldRunner(launcher)
    first = launcher.launch(cast(Runner, runner), request("run_1"))
    await runner.asked.wait()
    second = launcher.launch(cast(Runner, runner), request("run_2"))
    launcher.drop_waiting()
    assert await launcher.wait([second], seconds=10)
    assert launcher.active == (first,)
    first.cancel(ExitCode.TERMINATED, "stopped")
    runner.answer.set()
    assert await launcher.wait([first], seconds=10)


async def test_secrets_are_forgotten_when_no_run_can_hold_them_any_more() -> None:
    redactor = Redactor([Secret(f"password-{number:04}") for number in range(SECRETS_KEPT + 10)])
    launcher = Launcher(max_runs=2, redactor=redactor)
    runner = HeldRunner(launcher)
    launched = launcher.launch(cast(Runner, runner), request("run_1"))
    await runner.asked.wait()
    redactor.add(Secret("password-of-the-run"))
    redactor.add(Secret("password-0000"))  # still in use
    launched.cancel(ExitCode.TERMINATED, "stopped")
    runner.answer.set()
    await launcher.wait([launched], seconds=10)
    while launcher.active:
        await asyncio.sleep(0)
    assert redactor.redact("password-0001 password-0000 password-of-the-run") == "password-0001 *** ***"
    assert redactor.find(f"password-{SECRETS_KEPT + 9:04}")

"""Spans as a collector receives them: a real OTLP/HTTP receiver, real runs, and no secret in what was sent."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from bench import Bench, Setup
from escaped import holds_secret
from fork_server import orchestrator
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from test_serve import Served, served  # noqa: F401 -- a fixture
from waiting import wait_for

from orchestrator.actions.catalog import catalog
from orchestrator.ledger.events import WHOLE_RUN
from orchestrator.telemetry.spans import trace_id_of
from orchestrator.workflow.loader import load_text

WORKFLOW = """
version: 1
name: traced_flow
agent: tester
inputs: { word: { type: string, default: inputcanary } }
steps:
  ask:
    action: postgres.query
    grants:
      db: { kind: database, connection: support, role: feedback-read }
    with: { sql: "SELECT 'outputcanary' AS found, %(word)s::text AS word", parameters: { word: "${{ inputs.word }}" } }
    outputs: [rows]
  refused:
    needs: [ask]
    action: exec
    grants:
      gone: { kind: secret, path: nowhere/at-all, keys: [token] }
    with: { command: [/bin/true] }
"""
BLOCKED = "import sys; sys.modules['opentelemetry'] = None; from orchestrator.cli.main import main; sys.exit(main())"


class Collector:
    """The receiving side of OTLP over HTTP. What arrived is kept as it came."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.requests: list[tuple[str, str | None]] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                collector.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
                collector.requests.append((self.path, self.headers["Content-Type"]))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    @property
    def environment(self) -> dict[str, str]:
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self.server.server_address[1]}"}

    def spans(self, run_id: str | None = None) -> list[Span]:
        wanted = None if run_id is None else trace_id_of(run_id).to_bytes(16)
        return [
            span
            for body in list(self.bodies)
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
            if wanted is None or span.trace_id == wanted
        ]

    def services(self) -> set[str]:
        return {
            attribute.value.string_value
            for body in self.bodies
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans
            for attribute in resource.resource.attributes
            if attribute.key == "service.name"
        }


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    thread = threading.Thread(target=collector.server.serve_forever)
    thread.start()
    yield collector
    collector.server.shutdown()
    thread.join()
    collector.server.server_close()


def attributes(span: Span) -> dict[str, str | int]:
    return {
        attribute.key.removeprefix("orchestrator."): attribute.value.string_value or attribute.value.int_value
        for attribute in span.attributes
    }


def installed(bench: Bench) -> Path:
    path = bench.directory / "traced_flow.yaml"
    path.write_text(WORKFLOW)
    bench.install(load_text(WORKFLOW, filename="test.yaml", actions=catalog).workflow)
    return path


def run(
    bench: Bench, path: Path, variables: Mapping[str, str], *arguments: str, start: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    environment = {
        **bench.environment(),
        "ORCHESTRATOR_POLICY": "allow-all",
        **variables,
    }
    program = [sys.executable, *start] if start else orchestrator()
    command = [*program, "run", str(path), "--json", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def outcome_of(done: subprocess.CompletedProcess[str]) -> Any:
    return json.loads(done.stdout.splitlines()[-1])


def test_a_run_is_received_as_a_tree_of_attempts_and_leases(bench: Bench, collector: Collector) -> None:
    done = run(bench, installed(bench), collector.environment, "--run-id", "run-traced")
    assert done.returncode == 3, done.stderr
    spans = {(span.name, attributes(span).get("step", "")): span for span in collector.spans()}
    assert set(spans) == {
        ("run traced_flow", ""),
        ("step ask", "ask"),
        ("lease (step token)", "ask"),
        ("lease db", "ask"),
        ("step refused", "refused"),
        ("lease (step token)", "refused"),
        ("lease gone", "refused"),
        ("lease (step token)", WHOLE_RUN),
        ("lease (sweep)", WHOLE_RUN),
    }
    whole = spans["run traced_flow", ""]
    assert {span.trace_id for span in spans.values()} == {trace_id_of("run-traced").to_bytes(16)}
    assert whole.parent_span_id == b""
    for step in ("ask", "refused"):
        attempt = spans[f"step {step}", step]
        assert attempt.parent_span_id == whole.span_id
        below = [span for (name, of), span in spans.items() if of == step and name.startswith("lease")]
        assert {span.parent_span_id for span in below} == {attempt.span_id}
        assert all(attempt.start_time_unix_nano <= span.start_time_unix_nano for span in below)
        assert all(span.end_time_unix_nano <= attempt.end_time_unix_nano for span in below)
    lease = spans["lease db", "ask"]
    assert attributes(lease)["state"] == "revoked"
    assert [event.name for event in lease.events] == ["issued", "revoking", "vault_revoked", "login_tried", "revoked"]
    assert attributes(spans["lease gone", "refused"])["state"] == "denied"
    assert attributes(whole) == {
        "run": "run-traced",
        "workflow": "traced_flow",
        "agent": "tester",
        "trigger": "manual",
        "state": "refused",
        "exit_code": 3,
    }
    assert set(collector.requests) == {("/v1/traces", "application/x-protobuf")}
    assert collector.services() == {"credential-orchestrator"}


def test_neither_secrets_nor_inputs_nor_outputs_are_sent(bench: Bench, collector: Collector) -> None:
    done = run(bench, installed(bench), {**collector.environment, "OTEL_SERVICE_NAME": "support-jobs"})
    assert b"outputcanary" in bench.directory.joinpath("ledger.db").read_bytes() + b"".join(
        path.read_bytes() for path in bench.directory.glob("ledger.db-wal")
    ), "the canary went nowhere, so this test could not fail"
    sent = b"".join(collector.bodies)
    assert outcome_of(done)["run"].encode() in sent
    assert not holds_secret(sent)
    for canary in (b"outputcanary", b"inputcanary", bench.provisioned.secret_id.reveal().encode()):
        assert canary not in sent
    assert collector.services() == {"support-jobs"}


@contextmanager
def silent_collector() -> Iterator[str]:
    """Takes connections, and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(64)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@contextmanager
def absent_collector() -> Iterator[str]:
    """Nobody listens here."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


@pytest.mark.parametrize("broken", [silent_collector, absent_collector], ids=["silent", "absent"])
def test_a_collector_that_does_not_answer_changes_nothing_of_a_run(bench: Bench, broken: Any) -> None:
    path = installed(bench)
    with broken() as endpoint:
        done = run(bench, path, {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint})
    assert done.returncode == 3
    assert outcome_of(done)["steps"]["ask"] == "succeeded"
    assert "Traceback" not in done.stderr
    bench.assert_nothing_left()


def test_without_the_extra_the_variable_is_a_warning(bench: Bench, collector: Collector) -> None:
    done = run(bench, installed(bench), collector.environment, start=("-c", BLOCKED))
    assert done.returncode == 3
    assert "no spans are sent" in done.stderr
    assert "credential-orchestrator[otel]" in done.stderr
    assert collector.bodies == []


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "OTLP by grpc is not supported"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "-3", "a variable OTEL_... is not valid"),
    ],
)
def test_what_the_variables_ask_for_and_cannot_be_done_is_a_warning(
    bench: Bench, collector: Collector, variable: str, value: str, told: str
) -> None:
    done = run(bench, installed(bench), {**collector.environment, variable: value})
    assert done.returncode == 3
    assert told in done.stderr
    assert collector.bodies == []


@pytest.mark.parametrize(
    "off", [{"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, {"OTEL_SDK_DISABLED": "true"}, {"OTEL_TRACES_EXPORTER": "none"}]
)
def test_unless_it_is_asked_for_nothing_is_imported_or_sent(
    bench: Bench, collector: Collector, off: dict[str, str]
) -> None:
    path = installed(bench)
    code = (
        "import sys, atexit; from orchestrator.cli.main import main; "
        "atexit.register(lambda: print('opentelemetry' in sys.modules, file=sys.stderr)); sys.exit(main())"
    )
    done = run(bench, path, {**collector.environment, **off}, start=("-c", code))
    assert done.returncode == 3
    assert done.stderr.splitlines()[-1] == "False"
    assert collector.bodies == []


def test_the_scheduler_sends_spans_of_what_it_runs(served: Served, collector: Collector) -> None:  # noqa: F811
    served.environment |= collector.environment | {"OTEL_BSP_SCHEDULE_DELAY": "100"}
    served.put("often", "{ every: 1s }")
    served.start()
    wait_for(lambda: [span for span in collector.spans() if span.name == "run often"], "the span of a run")
    assert served.stop() == 0
    (first, *_) = served.runs("often")
    names = sorted(span.name for span in collector.spans(first.run_id))
    own = ["lease (step token)", "lease (sweep)"]  # of the look into the database at the end of the run
    assert names == sorted([*own, "lease (step token)", "lease db", "run often", "step ask"])
    assert {attributes(span)["trigger"] for span in collector.spans() if span.name == "run often"} == {"schedule"}


@pytest.mark.parametrize("setup", ["queue"], indirect=True)
def test_a_worker_sends_spans_of_what_was_queued(bench: Bench, setup: Setup, collector: Collector) -> None:
    path = installed(bench)
    environment = {
        **bench.environment(),
        "ORCHESTRATOR_POLICY": "allow-all",
        "ORCHESTRATOR_LEDGER_URL": setup.ledger_url,
        "OTEL_BSP_SCHEDULE_DELAY": "100",
        **collector.environment,
    }
    command = orchestrator()
    subprocess.run([*command, "queue", "add", str(path), "--run-id", "queued"], env=environment, check=True)
    with (bench.directory / "worker.log").open("wb") as log:
        worker = subprocess.Popen([*command, "worker", "--no-listen"], env=environment, stderr=log)
    try:
        wait_for(lambda: [span for span in collector.spans("queued") if span.name == "run traced_flow"], "the span")
    finally:
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(60) == 0

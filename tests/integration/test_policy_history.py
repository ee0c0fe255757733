"""Decisions on record: explained, asked again of other policies, exported; with real ledgers and a collector."""

from __future__ import annotations

import gzip
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from bench import ROOT, Bench
from policy_questions import DENIED, QUERY

from orchestrator.cli.main import main
from orchestrator.clock import SystemClock
from orchestrator.ledger.events import Decided, RunFinished, RunStarted
from orchestrator.ledger.findings import DecisionFilter
from orchestrator.ledger.opening import open_ledger
from orchestrator.ledger.states import RunState
from orchestrator.policy.engines.rego.engine import RegoEngine
from orchestrator.policy.types import PolicyRequest, Question, input_digest

POLICIES = ROOT / "workflows" / "policies"
BEGUN = datetime(2026, 6, 1, 12, tzinfo=UTC)


class Ticking(SystemClock):
    """Each look is a second later."""

    def __init__(self) -> None:
        self.seen = BEGUN

    def now(self) -> datetime:
        self.seen += timedelta(seconds=1)
        return self.seen


def decided(engine: RegoEngine, request: PolicyRequest) -> Callable[[str, int], Decided]:
    """What is recorded of a decision about the request, by run and attempt: the sample asks for neither."""
    decision = engine.ask(Question.DECISION, request.as_json())

    def recorded(run: str, attempt: int) -> Decided:
        named = {"id": run, "trigger": "manual", "reason": "", "inputs": {"limit": attempt}}
        document = {**request.as_json(), "run": named}
        return Decided(
            step=request.step,
            attempt=attempt,
            engine=decision.engine,
            revision=decision.revision,
            input_digest=input_digest(document),
            allow=decision.allow,
            reasons=decision.reasons,
            input=document,
            answer=decision.answer,
            obligations=decision.obligations.as_json(),
        )

    return recorded


async def history(path: Path, runs: int, each: int) -> str:
    """A ledger with so many runs of so many decisions each, one in ten of them a denial; the URL."""
    url = f"sqlite:///{path}"
    engine = RegoEngine.from_directory(POLICIES)
    allowed, denied = decided(engine, QUERY), [decided(engine, request) for request, _ in DENIED.values()]
    with open_ledger(url, clock=Ticking()) as ledger:
        for number in range(runs):
            run = f"run_{number:06d}"
            started = RunStarted(
                workflow="customer_feedback",
                digest="sha256:0",
                agent="feedback-assistant",
                trigger="manual",
                inputs={},
                steps=("a_step",),
            )
            fence = await ledger.begin_run(run, started)
            events: list[Any] = [
                (denied[(number + n) % len(denied)] if n % 10 == 9 else allowed)(run, n + 1) for n in range(each)
            ]
            await ledger.append(run, fence, [*events, RunFinished(state=RunState.SUCCEEDED, exit_code=0)])
    return url


def _begun(url: str, number: int) -> str:
    """When a run began: it is included by `--since`, and not by `--until`."""
    with open_ledger(url, clock=SystemClock()) as ledger:
        record = ledger.run(f"run_{number:06d}")
    assert record is not None
    return record.started_at.isoformat()


@pytest.fixture
def policies(tmp_path: Path) -> Path:
    """A copy of the sample policies, to be changed."""
    return Path(shutil.copytree(POLICIES, tmp_path / "policies"))


def change(policies: Path, before: str, after: str, file: str = "orchestrator.rego") -> None:
    text = (policies / file).read_text()
    assert before in text
    (policies / file).write_text(text.replace(before, after))


@contextmanager
def environment(monkeypatch: pytest.MonkeyPatch, url: str) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setenv("ORCHESTRATOR_LEDGER_URL", url)
        patch.setenv("ORCHESTRATOR_POLICY_PATH", str(POLICIES))
        yield


class TestReplay:
    async def test_a_planted_change_is_found_in_a_thousand_decisions(
        self, tmp_path: Path, policies: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        url = await history(tmp_path / "ledger.db", 50, 20)
        change(policies, "max_ttl := 900", "max_ttl := 119")
        with environment(monkeypatch, url):
            assert main(["policy", "replay", "--json", "--policy-path", str(policies)]) == 4
            found = json.loads(capsys.readouterr().out)
            assert found["asked"] == 1_000
            assert found["counts"]["denied"] == 900
            assert found["counts"]["allowed"] == 0
            assert found["changed"][0]["now"]["reasons"] == [
                "grant `db` lives 120s, longer than the 119s that are allowed"
            ]

    async def test_the_same_policies_decide_the_same(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with environment(monkeypatch, await history(tmp_path / "ledger.db", 40, 20)):
            assert main(["policy", "replay", "--json"]) == 0
            found = json.loads(capsys.readouterr().out)
            assert (found["asked"], found["unchanged"]) == (800, True)
            assert main(["policy", "replay"]) == 0
            assert "newly" not in capsys.readouterr().out

    async def test_what_would_newly_be_allowed_is_told_too(
        self, tmp_path: Path, policies: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        url = await history(tmp_path / "ledger.db", 40, 10)
        data = json.loads((policies / "data.json").read_text())
        data["agents"]["feedback-assistant"]["channels"].append("#general")
        (policies / "data.json").write_text(json.dumps(data))
        with environment(monkeypatch, url):
            assert main(["policy", "replay", "--policy-path", str(policies)]) == 4
            out = capsys.readouterr().out
            assert "newly allowed" in out
            assert "newly denied" not in out
            assert "400 decisions asked again" in out
            assert "may not post to the channel #general" in out.replace("\n", " ")

    async def test_it_can_be_limited_to_some_runs(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
    ) -> None:
        url = await history(tmp_path / "ledger.db", 5, 10)
        with environment(monkeypatch, url):
            for limits, expected in (
                (["--run", "run_000002"], 10),
                (["--workflow", "another"], 0),
                (["--since", _begun(url, 3)], 20),
                (["--until", _begun(url, 3)], 30),
                (["--since", "2030-01-01"], 0),
            ):
                assert main(["policy", "replay", "--json", *limits]) == 0
                assert json.loads(capsys.readouterr().out)["asked"] == expected, limits

    async def test_runs_are_read_in_batches_without_a_gap(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from orchestrator.ledger.reading import decisions

        monkeypatch.setattr(decisions, "RUNS_AT_ONCE", 3)
        url = await history(tmp_path / "ledger.db", 10, 2)
        with open_ledger(url, clock=SystemClock()) as ledger:
            found = [(each.run_id, each.decided.attempt) for each in ledger.decisions(DecisionFilter())]
        assert found == [(f"run_{number:06d}", attempt) for number in range(10) for attempt in (1, 2)]


WORKFLOW = """
version: 1
name: explained
agent: feedback-assistant
steps:
  work:
    action: postgres.query
    grants:
      db:
        kind: database
        connection: support
        privileges: [{ select: customer_feedback, columns: [COLUMNS] }]
    with: { sql: SELECT 1 AS one }
"""


class TestExplain:
    def test_a_denial_of_a_real_run_says_what_to_leave_out(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        engine = RegoEngine.from_directory(POLICIES)
        outcome = bench.run(WORKFLOW.replace("COLUMNS", "id, email"), policy=engine)
        with environment(monkeypatch, bench.config().ledger_url):
            assert main(["policy", "explain", outcome.run_id, "work", "--json"]) == 0
            found = json.loads(capsys.readouterr().out)
            assert (found["allow"], found["policies"]["same"], found["question"]) == (False, True, "decision")
            assert found["input"]["run"]["id"] == outcome.run_id
            assert {"op": "remove", "path": "/grants/0/privileges/0/columns/0", "before": "email"} in [
                edit for change in found["changes"] for edit in change
            ]
            rules = {rule["rule"]: rule for rule in found["rules"]}
            assert rules["data.orchestrator.denials"]["value"] == found["reasons"]
            assert all("reasons.rego:" in place for place in rules["data.orchestrator.denials"]["at"])
            assert "data.orchestrator.permitted" not in rules
            assert main(["policy", "explain", outcome.run_id, "work"]) == 0
            out = " ".join(capsys.readouterr().out.split())
            assert "DENIED" in out
            assert "allowed instead: without grants[0].privileges[0].columns[0] (`email`)" in out

    def test_a_lease_tells_why_it_was_allowed(
        self, bench: Bench, policies: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        outcome = bench.run(WORKFLOW.replace("COLUMNS", "id, kind"), policy=RegoEngine.from_directory(POLICIES))
        (lease,) = [lease for lease in bench.history(outcome.run_id) if lease.grant == "db"]
        change(policies, "max_ttl := 900", "max_ttl := 5")
        with environment(monkeypatch, bench.config().ledger_url):
            assert main(["policy", "explain", lease.lease_id, "--json", "--policy-path", str(policies)]) == 0
            found = json.loads(capsys.readouterr().out)
        assert (found["allow"], found["policies"]["same"], found["policies"]["allow"]) == (True, False, False)

    def test_what_is_not_there_is_said(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        outcome = bench.run(WORKFLOW.replace("COLUMNS", "id"), policy=RegoEngine.from_directory(POLICIES))
        with environment(monkeypatch, bench.config().ledger_url):
            for words in (["run_nothing", "work"], [outcome.run_id, "other"], [outcome.run_id], ["lease_zzzzzz"]):
                assert main(["policy", "explain", *words]) == 2
                assert "hint:" in capsys.readouterr().err


class Collector:
    """A real HTTP server that takes decision logs as OPA sends them."""

    def __init__(self, statuses: list[int]) -> None:
        self.events: list[Any] = []
        self.requests: list[tuple[str, str | None]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                outer.requests.append((self.path, self.headers.get("authorization")))
                status = statuses.pop(0) if statuses else 200
                if status == 200:
                    assert self.headers["content-encoding"] == "gzip"
                    outer.events += json.loads(gzip.decompress(body))
                self.send_response(status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@contextmanager
def collector(*statuses: int) -> Iterator[Collector]:
    made = Collector(list(statuses))
    thread = threading.Thread(target=made.server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield made
    finally:
        made.server.shutdown()
        thread.join()
        made.server.server_close()


class TestDecisionLog:
    async def test_one_line_an_event_in_the_order_of_the_history(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        url = await history(tmp_path / "ledger.db", 3, 4)
        with environment(monkeypatch, url):
            assert main(["policy", "decisions", "--mask", "/input/run/inputs"]) == 0
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [line["requested_by"] for line in lines] == [
            f"run_{number:06d}/a_step/{attempt}" for number in range(3) for attempt in range(1, 5)
        ]
        assert all(line["erased"] == ["/input/run/inputs"] and "inputs" not in line["input"]["run"] for line in lines)
        assert lines[0]["result"]["allow"] is True

    async def test_the_mask_of_the_policies_is_obeyed(
        self, tmp_path: Path, policies: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (policies / "mask.rego").write_text(
            "package system.log\nimport rego.v1\n"
            'mask contains "/input/context" if input.input.agent == "feedback-assistant"\n'
            'mask contains {"op": "upsert", "path": "/input/agent", "value": "***"}\n'
        )
        url = await history(tmp_path / "ledger.db", 1, 2)
        with environment(monkeypatch, url):
            assert main(["policy", "decisions", "--policy-path", str(policies)]) == 0
            first = json.loads(capsys.readouterr().out.splitlines()[0])
            assert first["input"]["agent"] == "***"
            assert "context" not in first["input"]
            assert (first["erased"], first["masked"]) == (["/input/context"], ["/input/agent"])
            (policies / "mask.rego").write_text(
                "package system.log\nimport rego.v1\nmask contains x if x := to_number(input.path)\n"
            )
            assert main(["policy", "decisions", "--policy-path", str(policies)]) == 2
            shown = capsys.readouterr()
            assert "cannot be evaluated" in shown.err
            assert shown.out == ""

    async def test_a_collector_gets_them_all_with_a_token(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        from orchestrator.policy.review import collector as sending

        monkeypatch.setattr(sending, "EVENTS_AT_ONCE", 7)
        monkeypatch.setattr(sending, "_PAUSES", (0.01, 0.01))
        url = await history(tmp_path / "ledger.db", 5, 4)
        token = tmp_path / "token"
        token.write_text("secret-of-the-collector\n")
        with environment(monkeypatch, url), collector(503, 200) as there:
            assert main(["policy", "decisions", "--post", there.url, "--token-file", str(token)]) == 0
            assert len(there.events) == 20
            assert len({event["decision_id"] for event in there.events}) == 20
            assert set(there.requests) == {("/logs", "Bearer secret-of-the-collector")}
            assert len(there.requests) == 4
        assert "20 decisions sent" in capsys.readouterr().err

    async def test_a_collector_that_does_not_take_them_is_told(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        from orchestrator.policy.review import collector as sending

        monkeypatch.setattr(sending, "EVENTS_AT_ONCE", 3)
        monkeypatch.setattr(sending, "_PAUSES", (0.01,))
        url = await history(tmp_path / "ledger.db", 2, 4)
        with environment(monkeypatch, url):
            with collector(200, 403) as there:
                assert main(["policy", "decisions", "--post", f"{there.url}/opa/logs"]) == 5
                assert len(there.events) == 3
                assert [path for path, _ in there.requests] == ["/opa/logs"] * 2
            err = capsys.readouterr().err
            assert "answered 403" in err
            assert "3 were taken" in err
            assert main(["policy", "decisions", "--post", there.url]) == 5
            assert "no answer (ConnectError)" in capsys.readouterr().err
            assert main(["policy", "decisions", "--post", "http://collector.example/logs"]) == 2

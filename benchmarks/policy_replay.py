"""What it costs to ask recorded decisions again of changed policies, beside bare questions to the policy engine.

    python benchmarks/policy_replay.py [--decisions 10000] [--rounds 3]

A ledger in SQLite has so many decisions about one step of a sample workflow, twenty in a run. `policy replay` is the
whole command in this process, from opening the ledger to the report; the bare loop has the questions in memory and asks
the same engine the same number of times. Both take turns, and the table has the median of the rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import os
import statistics
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from orchestrator.cli.main import main as command
from orchestrator.clock import SystemClock
from orchestrator.grants.privileges import Privilege
from orchestrator.grants.scope import Scope
from orchestrator.jsontypes import JsonObject
from orchestrator.ledger.events import Decided, RunFinished, RunStarted
from orchestrator.ledger.opening import open_ledger
from orchestrator.ledger.states import RunState
from orchestrator.policy.engines.rego.engine import RegoEngine
from orchestrator.policy.types import PolicyRequest, Question, input_digest

POLICIES = Path(__file__).parents[1] / "workflows" / "policies"
IN_A_RUN = 20
READ = Privilege("select", "public", "customer_feedback", ("comment", "id", "kind"))
REQUEST = PolicyRequest(
    workflow="customer_feedback",
    workflow_digest="sha256:0",
    run="run",
    trigger="manual",
    inputs={},
    context={},
    step="read",
    attempt=1,
    agent="feedback-assistant",
    action="postgres.query",
    action_view={"verbs": ["select"]},
    grants=(Scope("db", "database", "database/creds/read", 120, connection="support", privileges=(READ,)),),
    time=datetime(2026, 3, 2, 12, tzinfo=UTC),
)


async def filled(url: str, engine: RegoEngine, runs: int) -> list[JsonObject]:
    """Record the decisions; the questions of all of them."""
    questions: list[JsonObject] = []
    decision = engine.ask(Question.DECISION, REQUEST.as_json())
    assert decision.allow, decision.reasons
    with open_ledger(url, clock=SystemClock()) as ledger:
        for number in range(runs):
            run = f"run_{number:06d}"
            started = RunStarted(
                workflow=REQUEST.workflow, digest="", agent=REQUEST.agent, trigger="manual", inputs={}, steps=("read",)
            )
            fence = await ledger.begin_run(run, started)
            asked = [
                {**REQUEST.as_json(), "run": {"id": run, "trigger": "manual", "reason": "", "inputs": {"n": each}}}
                for each in range(IN_A_RUN)
            ]
            decided = [
                Decided(
                    step=REQUEST.step,
                    attempt=attempt,
                    engine=decision.engine,
                    revision=decision.revision,
                    input_digest=input_digest(document),
                    allow=True,
                    reasons=(),
                    input=document,
                    answer=decision.answer,
                    obligations=decision.obligations.as_json(),
                )
                for attempt, document in enumerate(asked, 1)
            ]
            await ledger.append(run, fence, [*decided, RunFinished(state=RunState.SUCCEEDED, exit_code=0)])
            questions += asked
    return questions


def replayed(decisions: int) -> float:
    """Seconds of the whole command."""
    said = io.StringIO()
    begin = time.perf_counter()
    with contextlib.redirect_stdout(said):
        code = command(["policy", "replay", "--json", "--policy-path", str(POLICIES)])
    seconds = time.perf_counter() - begin
    found = json.loads(said.getvalue())
    assert (code, found["asked"], found["unchanged"]) == (0, decisions, True), found
    return seconds


def bare(engine: RegoEngine, questions: list[JsonObject]) -> float:
    """Seconds of the questions alone."""
    begin = time.perf_counter()
    for each in questions:
        if engine.admits:
            engine.ask(Question.ADMIT, {**each, "context": {}, "action": {"name": REQUEST.action}})
        assert engine.ask(Question.DECISION, each).allow
    return time.perf_counter() - begin


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--decisions", type=int, default=10_000)
    options.add_argument("--rounds", type=int, default=3)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/ledger.db"
        engine = RegoEngine.from_directory(POLICIES)
        questions = asyncio.run(filled(url, engine, given.decisions // IN_A_RUN))
        os.environ["ORCHESTRATOR_LEDGER_URL"] = url
        taken: dict[str, list[float]] = {"policy replay": [], "bare questions": []}
        for _ in range(given.rounds):
            taken["policy replay"].append(replayed(len(questions)))
            taken["bare questions"].append(bare(engine, questions))
    print(f"| {len(questions)} decisions | seconds (median) | least | most |\n| --- | --- | --- | --- |")
    for name, each in taken.items():
        print(f"| {name} | {statistics.median(each):.2f} | {min(each):.2f} | {max(each):.2f} |")
    print(f"\nratio {statistics.median(taken['policy replay']) / statistics.median(taken['bare questions']):.2f}")


if __name__ == "__main__":
    main()

"""Takes hostile inputs, one a line, and tells how each was answered: the process that a crash would end.

Everything runs on a thread with a small stack, as other systems than Linux give to theirs, and each input has its own
processor time.
"""

from __future__ import annotations

import json
import resource
import sys
import threading
from typing import Any

from orchestrator.actions.catalog import action, catalog
from orchestrator.errors import OrchestratorError, UsageError
from orchestrator.grants.sql.parsing import UnreadableSql, deparse, parse
from orchestrator.grants.sql.statements import statement_verbs
from orchestrator.inference.analysis.bodies import body_statements
from orchestrator.inference.analysis.plpgsql import computation
from orchestrator.inference.offline import certain
from orchestrator.inference.statements import split
from orchestrator.planning.lint import lint
from orchestrator.planning.plan import build
from orchestrator.workflow.cel.engine import check
from orchestrator.workflow.expressions import evaluate, holds, parse_template, references
from orchestrator.workflow.inputs import bind_inputs
from orchestrator.workflow.loader import load_text

MEMORY = 2 << 30
SECONDS = 20
CONTEXT = {
    "inputs": {"n": 5, "name": "Ada", "list": [1, 2, 3], "big": "x" * 100_000},
    "steps": {"read": {"state": "succeeded", "output": {"rows": [{"id": each, "t": "a"} for each in range(500)]}}},
    "run": {"id": "run_1"},
    "endpoints": {"api": "http://x"},
    "context": {"a": None},
}


def yaml(text: str) -> None:
    loaded = load_text(text, filename="w.yaml", actions=catalog)
    lint(loaded)
    try:
        bound = bind_inputs(loaded.workflow, {}, partial=True)
        build(loaded, bound, action=action, endpoints={})
    except UsageError:
        return


def cel(text: str) -> None:
    refused = None
    for work in (
        lambda: parse_template(text),
        lambda: references(text),
        lambda: check([text], {"inputs.n": "int", "inputs.name": "string"}),
        lambda: evaluate("${{ " + text + " }}", CONTEXT),
        lambda: evaluate(text, CONTEXT),
        lambda: holds(text, CONTEXT),
    ):
        try:
            work()
        except OrchestratorError as error:
            refused = error
    if refused is not None:
        raise refused


def sql(text: str) -> None:
    for placeholders in (False, True):
        statement_verbs(text, placeholders=placeholders)
        certain(text, placeholders=placeholders)
    body_statements(text)
    computation(f"CREATE FUNCTION f() RETURNS int LANGUAGE plpgsql AS $b${text}$b$", text)
    try:
        split(text)
    except UnreadableSql:
        pass
    for raw in parse(text):
        if raw.stmt is not None:
            deparse(raw.stmt)


WORK = {"yaml": yaml, "cel": cel, "sql": sql}


def answer(asked: dict[str, Any]) -> dict[str, Any]:
    used = resource.getrusage(resource.RUSAGE_SELF)
    limit = int(used.ru_utime + used.ru_stime) + SECONDS
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))
    try:
        WORK[asked["kind"]](asked["text"])
        ended = "accepted"
    except OrchestratorError as error:
        ended = "refused"
        if len(str(error)) > 1 << 20:
            ended = f"an error of {len(str(error))} characters"
    except Exception as error:  # noqa: BLE001 -- whatever else it is, it is a finding
        ended = f"{type(error).__name__}: {str(error)[:200]}"
    return {"ended": ended, "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10}


def serve() -> None:
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    threading.stack_size(512 * 1024)
    thread = threading.Thread(target=serve)
    thread.start()
    thread.join()

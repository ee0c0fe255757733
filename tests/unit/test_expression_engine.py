"""The process that evaluates expressions: what a hostile one does to it, and that it does nothing to us."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from test_expressions import DEEP

from orchestrator.errors import InvalidExpression
from orchestrator.workflow.cel import engine
from orchestrator.workflow.expressions import evaluate

ROWS = [{"id": number, "text": f"row {number}"} for number in range(9_000)]
DATA = {"inputs": {"n": 5}, "steps": {"read": {"output": {"rows": ROWS, "text": "a" * 2_000_000}}}}
READ = "steps.read.output"


@pytest.fixture(autouse=True)
def own(monkeypatch: pytest.MonkeyPatch) -> Iterator[engine.Engine]:
    fresh = engine.Engine()
    monkeypatch.setattr(engine, "_engine", fresh)
    yield fresh
    fresh.close()


def child_of(own: engine.Engine) -> psutil.Process:
    assert own._child is not None
    return psutil.Process(own._child.pid)


def refused(cel: str) -> InvalidExpression:
    with pytest.raises(InvalidExpression) as caught:
        evaluate("${{ " + cel + " }}", DATA)
    assert evaluate("${{ inputs.n + 1 }}", DATA) == 6, "the next one is evaluated as if nothing had been"
    return caught.value


@pytest.mark.parametrize(
    ("cel", "what"),
    [
        ("['" + "a" * 1_000 + "']" + ".map(s, s + s)" * 25 + ".size()", "memory"),
        (
            f"{READ}.rows.map(r, {READ}.text + {READ}.text).size()",
            "memory|too long",
        ),  # on a slow machine the time first
        ("['a']" + ".map(s, [s, s])" * 25, "too long"),
        (f"{READ}.rows.filter(r, {READ}.text.matches('(a|aa)*' + r.text)).size()", "too long"),
        (f"{READ}.rows.filter(r, {READ}.rows.exists(o, o.id == r.id)).size()", "too long|rounds"),
    ],
    ids=[
        "a text doubled",
        "a text for each row",
        "a list that holds itself twice",
        "a long search",
        "a loop in a loop",
    ],
)
def test_what_would_take_all_memory_or_time_is_ended(cel: str, what: str) -> None:
    before = psutil.Process().memory_info().rss
    error = refused(cel)
    assert re.search(what, error.message)
    assert error.hint
    assert psutil.Process().memory_info().rss - before < 100 << 20


def test_a_result_has_a_size() -> None:
    assert "bytes of JSON; the limit is" in refused(f"[1, 2, 3, 4, 5, 6, 7, 8, 9].map(x, {READ}.text)").message


def test_what_an_expression_looks_at_has_a_size() -> None:
    large = {"steps": {"read": {"output": {"a": "x" * engine.MAX_DATA, "b": "small"}}}}
    with pytest.raises(InvalidExpression, match="looks at"):
        evaluate("${{ size(steps.read.output.a) }}", large)
    assert evaluate("${{ size(steps.read.output.b) }}", large) == 5, "what is not referred to is not looked at"


def test_the_expressions_of_one_value_share_their_time() -> None:
    each = "${{ " + f"{READ}.rows.filter(r, r.id < 4000)" + ".size() }}"
    assert evaluate([each], {"steps": {"read": {"output": {"rows": ROWS[:4_000]}}}}) == [4_000]
    with pytest.raises(InvalidExpression, match=r"`with\[\d+\]`: .* takes too long"):
        evaluate([each] * 200, {"steps": {"read": {"output": {"rows": ROWS[:4_000]}}}}, at="with")


def test_what_only_names_a_value_needs_no_engine(own: engine.Engine) -> None:
    large = {"steps": {"read": {"output": {"a": "x" * (engine.MAX_DATA + 1)}}}, "inputs": {"n": 2**80}}
    assert evaluate("${{ steps.read.output.a }}", large) == large["steps"]["read"]["output"]["a"]
    assert evaluate("n=${{ inputs.n }}", large) == f"n={2**80}"
    assert own._child is None


def test_the_native_engine_is_never_in_this_process() -> None:
    code = (
        "import sys; from orchestrator.workflow.expressions import evaluate\n"
        "assert evaluate('${{ 1 + 1 }}', {}) == 2\n"
        "print([name for name in sys.modules if 'cel_expr' in name])"
    )
    ran = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert (ran.stdout.strip(), ran.stderr) == ("[]", "")


@pytest.mark.parametrize("shape", DEEP)
def test_the_largest_expressions_that_are_let_through_do_not_end_the_engine(shape: str, own: engine.Engine) -> None:
    evaluate("${{ 1 + 1 }}", DATA)
    begun = child_of(own).pid
    for size in (10, 28, 29, 30, 31, 32, 33, 50, 100, 200, 250, 330, 400, 480, 499, 500, 990):
        for cel in (DEEP[shape](size), "(" * 20 + DEEP[shape](size) + ")" * 20):
            try:
                evaluate("${{ " + cel + " }}", DATA)
            except InvalidExpression:
                continue
    assert child_of(own).pid == begun


def test_null_is_given_as_often_as_it_is_asked_for(own: engine.Engine) -> None:
    evaluate("${{ 1 + 1 }}", DATA)
    begun = child_of(own).pid
    for _ in range(40):
        assert evaluate("${{ [" + ", ".join(["null"] * 400) + "] }}", DATA) == [None] * 400
    assert child_of(own).pid == begun


def test_a_killed_engine_is_replaced(own: engine.Engine) -> None:
    assert evaluate("${{ 1 + 1 }}", DATA) == 2
    killed = child_of(own)
    killed.kill()
    psutil.wait_procs([killed])
    assert evaluate("${{ 1 + 1 }}", DATA) == 2
    assert child_of(own).pid != killed.pid


def test_an_engine_that_is_killed_at_work_fails_the_expression_alone(
    own: engine.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_and_kill(child: subprocess.Popen[bytes], frame: bytes) -> None:
        psutil.Process(child.pid).suspend()
        write(child, frame)
        child.kill()

    write = engine._write
    with monkeypatch.context() as patch:
        patch.setattr(engine, "_write", write_and_kill)
        with pytest.raises(InvalidExpression):
            evaluate("${{ 2 + 2 }}", DATA)
    assert evaluate("${{ 2 + 2 }}", DATA) == 4


def test_threads_take_turns(own: engine.Engine) -> None:
    def ask(number: int) -> object:
        return evaluate("${{ inputs.n * 2 + size(inputs.text) }}", {"inputs": {"n": number, "text": "x" * number}})

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(400))) == [number * 3 for number in range(400)]


def test_a_forked_process_has_an_engine_of_its_own(own: engine.Engine) -> None:
    evaluate("${{ 1 + 1 }}", DATA)
    begun = child_of(own).pid
    forked = os.fork()
    if forked == 0:
        right = evaluate("${{ inputs.n + 40 }}", DATA) == 45 and child_of(own).pid != begun
        os._exit(0 if right else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(forked, 0)[1]) == 0
    assert evaluate("${{ inputs.n + 2 }}", DATA) == 7
    assert child_of(own).pid == begun


def test_the_engine_ends_with_the_process_that_asked_it_however_that_ends() -> None:
    code = (
        "import os, signal; from orchestrator.workflow.cel import engine\n"
        "engine.execute('1 + 1', {}, engine.Budget()); print(engine._engine._child.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    ran = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=False)
    child = int(ran.stdout)
    with suppress(psutil.NoSuchProcess):
        psutil.Process(child).wait(timeout=60)


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
def test_the_engine_has_nothing_of_ours(own: engine.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAULT_TOKEN", "canary")
    evaluate("${{ 1 + 1 }}", DATA)
    child = child_of(own)
    assert child.environ() == {"TZ": "UTC"}
    assert child.cwd() == "/"
    assert {Path(file).name for file in os.listdir(f"/proc/{child.pid}/fd")} <= {"0", "1", "2"}

"""Real interpreters: what the function gets, how its result comes back, and that nothing else gets out."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from textwrap import dedent

import psutil
import pytest
from pydantic import ValidationError

from orchestrator.actions.base import StepContext
from orchestrator.actions.process.python import Python, PythonParams
from orchestrator.errors import OutputRefused, StepFailed
from orchestrator.grants.credential import Credential
from orchestrator.jsontypes import JsonValue
from orchestrator.secret import Secret

CANARY = "canary-pw-4711-%/+"

MODULE = f"""
    import asyncio, os, subprocess, sys, time

    CANARY_LENGTH = {len(CANARY)}

    def add(a, b=0): return {{"sum": a + b}}
    def given(credentials, context): return [sorted(credentials["db"]), len(credentials["db"]["password"]), context]
    async def later(x): await asyncio.sleep(0); return x
    def environment(): return [dict(os.environ), sys.argv[1:], sys.orig_argv, sys.stdin.read()]
    def noisy():
        print("print"); os.write(1, b"descriptor"); subprocess.run(["echo", "child"]); return "clean"
    def fails(credentials): raise ValueError("cannot log in with " + credentials["db"]["password"])
    def exits(): sys.exit(4)
    def vanishes(): os._exit(0)
    def odd(): return {{1, 2}}
    def nan(): return float("nan")
    def large(): return "x" * 10_000
    def slow(file):
        child = subprocess.Popen(["sleep", "600"], start_new_session=True)
        with open(file + ".part", "w") as out: out.write(f"{{os.getpid()}} {{child.pid}}")
        os.rename(file + ".part", file)
        time.sleep(600)
    class Group:
        @staticmethod
        def nested(): return "nested"
"""


@pytest.fixture
def modules(tmp_path: Path) -> Path:
    (tmp_path / "author_code.py").write_text(dedent(MODULE))
    return tmp_path


async def call(
    modules: Path, function: str, seconds: float = 60, max_bytes: int = 5000, **arguments: object
) -> JsonValue:
    params = PythonParams.model_validate(
        {
            "callable": f"author_code:{function}",
            "arguments": arguments,
            "path": [str(modules)],
            "max_bytes": max_bytes,
            "paths": {"write": [str(modules)]},
        }
    )
    credential = Credential("db", "database", 60, fields={"username": Secret("u-step-1"), "password": Secret(CANARY)})
    context = StepContext("r1", "w", "s", 2, "a", "r1:s", time.monotonic() + seconds, credentials={"db": credential})
    return await Python().run(params, context)


async def test_arguments_go_in_and_the_result_comes_back(modules: Path) -> None:
    assert await call(modules, "add", a=1, b=2) == {"sum": 3}
    assert await call(modules, "later", x=["ü", None]) == ["ü", None]
    assert await call(modules, "Group.nested") == "nested"


async def test_credentials_and_context_are_given_to_a_function_that_takes_them(modules: Path) -> None:
    fields, length, context = await call(modules, "given")  # type: ignore[misc]  # a list of three
    assert (fields, length) == (["password", "username"], len(CANARY))
    assert context == {
        "run_id": "r1",
        "workflow": "w",
        "step": "s",
        "attempt": 2,
        "agent": "a",
        "idempotency_key": "r1:s",
    }


async def test_environment_arguments_and_input_hold_no_credential(
    modules: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VAULT_TOKEN", "must-not-be-inherited")
    environment, arguments, command_line, stdin = await call(modules, "environment")  # type: ignore[misc]
    assert set(environment) <= {"PATH", "LC_CTYPE", "TMPDIR"}  # type: ignore[arg-type]
    assert (arguments, stdin) == ([], "")
    assert command_line[1:] == ["-I", "-m", "orchestrator.actions.process.python_child"]  # type: ignore[index]
    assert CANARY not in str(command_line)


async def test_what_the_function_prints_does_not_corrupt_the_result(modules: Path) -> None:
    assert await call(modules, "noisy") == "clean"


async def test_an_exception_comes_back_as_type_and_redacted_message(modules: Path) -> None:
    with pytest.raises(StepFailed) as caught:
        await call(modules, "fails")
    assert caught.value.message == "`author_code:fails` raised ValueError: cannot log in with ***"
    assert caught.value.kind == "error"


async def test_wrong_arguments_and_missing_functions_are_errors(modules: Path) -> None:
    with pytest.raises(StepFailed, match="TypeError"):
        await call(modules, "add", c=1)
    with pytest.raises(StepFailed, match="AttributeError") as caught:
        await call(modules, "nope")
    assert caught.value.hint is not None
    assert "path" in caught.value.hint


async def test_a_function_that_ends_its_process_gives_no_result(modules: Path) -> None:
    with pytest.raises(StepFailed, match="exit code 4") as caught:
        await call(modules, "exits")
    assert caught.value.kind == "exit_status"
    with pytest.raises(StepFailed, match="without a result"):
        await call(modules, "vanishes")


@pytest.mark.parametrize("function", ["odd", "nan"])
async def test_a_result_that_is_not_json_is_refused(modules: Path, function: str) -> None:
    with pytest.raises(OutputRefused, match="did not return JSON"):
        await call(modules, function)


async def test_a_result_above_the_limit_is_refused(modules: Path) -> None:
    with pytest.raises(StepFailed) as caught:
        await call(modules, "large")
    assert caught.value.kind == "output"


async def test_at_the_deadline_the_function_and_its_children_die(modules: Path) -> None:
    file = modules / "pids"
    task = asyncio.create_task(call(modules, "slow", seconds=5, file=str(file)))
    with pytest.raises(StepFailed) as caught:
        await task
    assert caught.value.kind == "timeout"
    assert not any(psutil.pid_exists(int(pid)) for pid in file.read_text().split())


async def test_cancellation_kills_the_function_and_its_children(modules: Path) -> None:
    file = modules / "pids"
    task = asyncio.create_task(call(modules, "slow", file=str(file)))
    async with asyncio.timeout(30):
        while not file.exists():
            await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not any(psutil.pid_exists(int(pid)) for pid in file.read_text().split())


def test_the_callable_must_be_written_with_a_colon() -> None:
    for wrong in ("os.system", "os:", ":x", "os:system()", "a b:c"):
        with pytest.raises(ValidationError):
            PythonParams(callable=wrong)


def test_the_view_shows_names_only() -> None:
    params = PythonParams(callable="json:dumps", arguments={"b": "private", "a": 1})
    view = Python().view(params)
    assert (view["callable"], view["arguments"]) == ("json:dumps", ["a", "b"])
    assert (view["paths"], view["connect"]) == ({"read": [], "write": []}, [])
    assert "private" not in str(view)

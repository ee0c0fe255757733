"""Real programs: what they see, how they end, and that nothing of them is left."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from pydantic import ValidationError

from orchestrator.actions.base import StepContext
from orchestrator.actions.handover import Handover
from orchestrator.actions.output import check_output
from orchestrator.actions.process.exec import Exec, ExecParams
from orchestrator.errors import OutputRefused, StepFailed
from orchestrator.grants.credential import Credential
from orchestrator.redaction.redactor import Redactor
from orchestrator.secret import Secret

CANARY = "canary-pw-4711-%/+"
PYTHON = sys.executable


def context(seconds: float = 60) -> StepContext:
    credential = Credential("db", "database", 60, fields={"username": Secret("u-step-1"), "password": Secret(CANARY)})
    return StepContext(
        run_id="r1",
        workflow="w",
        step="s",
        attempt=1,
        agent="a",
        idempotency_key="r1:s",
        deadline=time.monotonic() + seconds,
        credentials={"db": credential},
    )


async def run(seconds: float = 60, *, confined: bool = True, **params: object) -> dict[str, object]:
    given = context(seconds) if confined else replace(context(seconds), confinement=())
    output = await Exec().run(ExecParams.model_validate(params), given)
    assert isinstance(output, dict)
    return output


def python(code: str) -> list[str]:
    return [PYTHON, "-I", "-S", "-c", code]


def private_directories(pid: int | None = None) -> set[str]:
    """Those of a process, by default of this one: others may be running programs, too."""
    parents = [Path("/dev/shm"), Path("/tmp"), Path(os.environ.get("TMPDIR", "/tmp"))]
    return {str(path) for parent in parents for path in parent.glob(f"orchestrator-private-{pid or os.getpid()}-*")}


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    directories = private_directories()
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    yield
    assert private_directories() <= directories
    assert [child for child in psutil.Process().children(recursive=True) if is_new(child, before)] == []


def is_new(process: psutil.Process, before: set[int]) -> bool:
    """Whether it was not there before, and is not of a server that was: PostgreSQL begins processes when it wants."""
    try:
        return process.pid not in before and before.isdisjoint({process.ppid(), *(up.pid for up in process.parents())})
    except psutil.NoSuchProcess:
        return False


def writing(folder: Path) -> dict[str, list[str]]:
    """What a step declares to write there."""
    return {"write": [str(folder)]}


async def pids_from(file: Path, count: int) -> list[int]:
    """The process ids that the command has written, as soon as there are so many."""
    async with asyncio.timeout(30):
        while not file.exists() or len(file.read_text().split()) < count:
            await asyncio.sleep(0.02)
    return [int(word) for word in file.read_text().split()]


def alive(pids: list[int]) -> list[int]:
    """Those that still run; a zombie is dead and only waits to be collected."""

    def runs(pid: int) -> bool:
        try:
            return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    return [pid for pid in pids if runs(pid)]


STUBBORN_FAMILY = """
import os, signal, sys, time
out = open({file!r}, "a")
def note():
    out.write(f"{{os.getpid()}}\\n"); out.flush()
signal.signal(signal.SIGTERM, signal.SIG_IGN)
note()
if os.fork() == 0:
    note()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.setsid()
            note()
            time.sleep(600)
        os._exit(0)
    time.sleep(600)
{then}
"""


async def test_the_environment_holds_only_what_is_declared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAULT_TOKEN", "must-not-be-inherited")
    output = await run(command=["env"], environment={"A": "1"}, credentials={"env": {"PGPASSWORD": "db.password"}})
    *declared, own = sorted(str(output["stdout"]).splitlines())
    assert declared == ["A=1", "PATH=/usr/local/bin:/usr/bin:/bin", f"PGPASSWORD={CANARY}"]
    assert re.fullmatch(rf"TMPDIR={tempfile.gettempdir()}/orchestrator-private-\S+", own)


async def test_no_other_process_holds_the_credential_in_arguments_or_environment(tmp_path: Path) -> None:
    code = (
        "import os\n"
        "for pid in filter(str.isdigit, os.listdir('/proc')):\n"
        "    for name in ('cmdline', 'environ'):\n"
        "        try:\n"
        "            if os.environ['PW'].encode() in open(f'/proc/{pid}/{name}', 'rb').read():\n"
        "                print(name, int(pid) == os.getpid())\n"
        "        except OSError: pass\n"
    )
    output = await run(command=python(code), credentials={"env": {"PW": "db.password"}}, confined=False)
    assert output["stdout"] == "environ True\n"


async def test_the_process_that_starts_the_program_has_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAULT_TOKEN", "must-not-be-inherited")
    code = "import os\ntry: print(open(f'/proc/{os.getppid()}/environ').read())\nexcept PermissionError: print()\n"
    assert "VAULT_TOKEN" not in str((await run(command=python(code), confined=False))["stdout"])


async def test_a_credential_file_is_private_in_memory_and_gone_afterwards() -> None:
    code = (
        "import os, stat\n"
        "path = os.environ['PW_FILE']\n"
        "mode = lambda path: oct(stat.S_IMODE(os.stat(path).st_mode))\n"
        "print(path, mode(path), mode(os.path.dirname(path)))\n"
        "print(len(open(path).read()))"
    )
    output = await run(command=python(code), credentials={"files": {"PW_FILE": "db.password"}})
    path, mode, directory_mode, length = str(output["stdout"]).split()
    assert (mode, directory_mode, int(length)) == ("0o600", "0o700", len(CANARY))
    assert path.startswith("/dev/shm/") or not os.path.isdir("/dev/shm")
    assert not os.path.exists(path)


async def test_a_credential_file_goes_even_when_the_program_fails_or_moves_into_its_directory() -> None:
    code = "import os, sys; os.chdir(os.path.dirname(os.environ['F'])); open('more', 'w').write('x'); sys.exit(3)"
    with pytest.raises(StepFailed) as caught:
        await run(command=python(code), credentials={"files": {"F": "db.password"}}, confined=False)
    assert "exit code 3" in caught.value.message


async def test_the_working_directory_is_fresh_private_and_removed() -> None:
    code = "import os; print(os.getcwd(), os.listdir(), oct(os.stat('.').st_mode & 0o777)); open('left', 'w')"
    path, listing, mode = str((await run(command=python(code)))["stdout"]).split()
    assert (listing, mode) == ("[]", "0o700")
    assert not os.path.exists(path)


async def test_a_declared_directory_is_used_and_stays(tmp_path: Path) -> None:
    assert (await run(command=["pwd"], cwd=str(tmp_path)))["stdout"] == f"{tmp_path}\n"
    assert tmp_path.is_dir()


_OF_THE_C_LIBRARY = 0b11 << 31
"""Signals 32 and 33: no program can set what becomes of them (signal(7)), so they are inherited as they were."""


async def test_core_files_are_off_and_signals_are_at_their_defaults() -> None:
    code = (
        "import resource, signal; print(resource.getrlimit(resource.RLIMIT_CORE));"
        "print([l for l in open('/proc/self/status') if l.startswith(('SigBlk',))])"
    )
    proc = {"read": ["/proc"]}
    lines = str((await run(command=python(code), paths=proc))["stdout"]).splitlines()
    assert lines == ["(0, 0)", "['SigBlk:\\t0000000000000000\\n']"]
    ignored = int(
        str((await run(command=["grep", "SigIgn", "/proc/self/status"], paths=proc))["stdout"]).split()[1], 16
    )
    assert ignored & ~_OF_THE_C_LIBRARY == 0


async def test_only_the_three_standard_descriptors_are_inherited() -> None:
    output = await run(command=["ls", "/proc/self/fd"], paths={"read": ["/proc"]})
    assert str(output["stdout"]).split() == ["0", "1", "2", "3"], "3 is ls reading the directory"


async def test_standard_input_is_text_as_it_is_and_other_values_as_json() -> None:
    assert (await run(command=["cat"], stdin="Grüße\n"))["stdout"] == "Grüße\n"
    assert (await run(command=["cat"], stdin={"a": [1]}, output="json"))["json"] == {"a": [1]}
    assert (await run(command=["cat"]))["stdout"] == ""
    assert await run(command=["true"], stdin="x" * 3_000_000, output="none") == {"exit_code": 0}
    assert len(str((await run(command=["cat"], stdin="x" * 3_000_000))["stdout"])) == 3_000_000


async def test_arguments_are_never_seen_by_a_shell() -> None:
    assert (await run(command=["echo", "$HOME; `id` *"]))["stdout"] == "$HOME; `id` *\n"


async def test_a_failure_shows_the_redacted_end_of_stderr() -> None:
    code = "import os, sys; sys.stderr.write('x' * 300000 + '\\nbad password ' + os.environ['PW']); sys.exit(7)"
    with pytest.raises(StepFailed, match="exit code 7") as caught:
        await run(command=python(code), credentials={"env": {"PW": "db.password"}})
    assert caught.value.kind == "exit_status"
    assert caught.value.message.endswith("bad password ***")
    assert len(caught.value.message) < 3000


async def test_a_program_killed_by_a_signal_is_told_apart() -> None:
    with pytest.raises(StepFailed, match="killed by signal 9"):
        await run(command=python("import os; os.kill(os.getpid(), 9)"))


@pytest.mark.parametrize("command", [["/no/such/program"], ["no-such-program-anywhere"], ["/etc/passwd"]])
async def test_a_program_that_cannot_start_says_so(command: list[str]) -> None:
    with pytest.raises(StepFailed, match="cannot be started") as caught:
        await run(command=command)
    assert caught.value.kind == "error"


async def test_output_that_is_not_json_is_refused_when_json_was_promised() -> None:
    with pytest.raises(StepFailed, match="not JSON") as caught:
        await run(command=["echo", "{"], output="json")
    assert caught.value.kind == "output"


BINARY = python(r"import os; os.write(1, b'caf\xe9 \x00\xff')")


@pytest.mark.parametrize("form", ["text", "json"])
async def test_output_that_is_no_text_is_refused_and_says_where_it_stops_being_one(form: str) -> None:
    with pytest.raises(StepFailed, match=r"\(7 bytes\) is not UTF-8, first at byte 3") as caught:
        await run(command=BINARY, output=form)
    assert (caught.value.kind, "`output: base64`" in str(caught.value.hint)) == ("output", True)


async def test_binary_output_is_kept_byte_by_byte_in_base64() -> None:
    output = await run(command=BINARY, output="base64")
    assert output == {"exit_code": 0, "base64": "Y2Fm6SAA/w=="}
    assert await run(command=BINARY, output="none") == {"exit_code": 0}


async def test_a_secret_in_binary_output_is_found_in_base64_wherever_it_begins() -> None:
    for before in range(3):
        code = f"import os; os.write(1, b'\\xff' * {before} + {CANARY!r}.encode() + b'\\x00')"
        output = await run(command=python(code), output="base64")
        with pytest.raises(OutputRefused, match="base64 contains a secret"):
            check_output(output, redactor=Redactor([Secret(CANARY)]), limit_bytes=1000)


async def test_output_that_nobody_keeps_may_be_anything_and_is_searched_for_secrets_all_the_same() -> None:
    code = f"import os; os.write(1, b'\\xff' + {CANARY!r}.encode() + b'\\xff')"
    output = await Exec().run(ExecParams(command=python(code)), replace(context(), kept=("exit_code",)))
    with pytest.raises(OutputRefused, match="stdout contains a secret"):
        check_output(output, redactor=Redactor([Secret(CANARY)]), limit_bytes=1000)
    with pytest.raises(StepFailed, match="not UTF-8"):
        await Exec().run(ExecParams(command=python(code)), replace(context(), kept=("exit_code", "stdout")))


async def test_json_may_begin_with_a_byte_order_mark_and_is_utf_8() -> None:
    marked = r"import os; os.write(1, '\ufeff{\"a\": \"ü\"}'.encode('{}'))"
    assert (await run(command=python(marked.replace("{}", "utf-8")), output="json"))["json"] == {"a": "ü"}
    with pytest.raises(StepFailed, match="not UTF-8"):
        await run(command=python(marked.replace("{}", "utf-16-le")), output="json")


async def test_endless_output_is_stopped_at_the_limit() -> None:
    with pytest.raises(StepFailed, match="more than 100000 bytes") as caught:
        await run(command=["yes"], max_bytes=100_000)
    assert caught.value.kind == "output"


async def test_endless_stderr_takes_no_memory_and_ends_at_the_deadline() -> None:
    with pytest.raises(StepFailed) as caught:
        await run(seconds=0.5, command=["sh", "-c", "yes >&2"])
    assert caught.value.kind == "timeout"


async def test_at_the_deadline_a_whole_stubborn_family_dies_also_in_sessions_of_their_own(tmp_path: Path) -> None:
    file = tmp_path / "pids"
    code = STUBBORN_FAMILY.format(file=str(file), then="time.sleep(600)")
    with pytest.raises(StepFailed) as caught:
        await run(
            seconds=4,
            command=python(code),
            credentials={"files": {"F": "db.password"}},
            paths=writing(tmp_path),
        )
    assert caught.value.kind == "timeout"
    pids = await pids_from(file, 3)
    assert alive(pids) == []


async def test_cancellation_kills_the_family_before_it_goes_on_even_when_repeated(tmp_path: Path) -> None:
    file = tmp_path / "pids"
    code = STUBBORN_FAMILY.format(file=str(file), then="time.sleep(600)")
    task = asyncio.create_task(
        run(command=python(code), credentials={"files": {"F": "db.password"}}, paths=writing(tmp_path))
    )
    pids = await pids_from(file, 3)
    task.cancel()
    await asyncio.sleep(0.1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert alive(pids) == []


async def test_a_program_may_finish_cleanly_on_sigterm(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys, time\n"
        f"finish = lambda *_: (open({str(tmp_path / 'clean')!r}, 'w').write('yes'), sys.exit(0))\n"
        "signal.signal(signal.SIGTERM, finish)\n"
        f"open({str(tmp_path / 'pids')!r}, 'w').write(str(os.getpid()))\n"
        "time.sleep(600)"
    )
    task = asyncio.create_task(run(command=python(code), paths=writing(tmp_path)))
    await pids_from(tmp_path / "pids", 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (tmp_path / "clean").read_text() == "yes"


async def test_a_daemon_left_behind_by_a_finished_program_dies_too(tmp_path: Path) -> None:
    file = tmp_path / "pids"
    code = STUBBORN_FAMILY.format(
        file=str(file), then="\nwhile len(open(out.name).read().split()) < 3: time.sleep(0.02)"
    )
    assert (await run(command=python(code), paths=writing(tmp_path)))["exit_code"] == 0
    assert alive(await pids_from(file, 3)) == []


async def test_when_the_orchestrator_is_killed_the_program_and_its_credential_file_go(tmp_path: Path) -> None:
    file = tmp_path / "pids"
    family = STUBBORN_FAMILY.format(file=str(file), then="time.sleep(600)")
    code = (
        "import asyncio\n"
        "from orchestrator.actions.process.supervised import Command, run_process\n"
        "from orchestrator.secret import Secret\n"
        f"command = Command([{PYTHON!r}, '-I', '-S', '-c', {family!r}], files={{'F': Secret('x' * 20)}})\n"
        "asyncio.run(run_process(command))"
    )
    orchestrator = subprocess.Popen([PYTHON, "-c", code])
    pids = await pids_from(file, 3)
    assert len(private_directories(orchestrator.pid)) == 2
    orchestrator.send_signal(signal.SIGKILL)
    orchestrator.wait()
    async with asyncio.timeout(30):
        while alive(pids) or private_directories(orchestrator.pid):
            await asyncio.sleep(0.05)


async def test_a_supervisor_that_is_killed_takes_the_program_along(tmp_path: Path) -> None:
    code = f"import os, time; open({str(tmp_path / 'pids')!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    task = asyncio.create_task(
        run(command=python(code), credentials={"files": {"F": "db.password"}}, paths=writing(tmp_path))
    )
    (pid,) = await pids_from(tmp_path / "pids", 1)
    psutil.Process(pid).parent().kill()  # type: ignore[union-attr]  # it has one
    with pytest.raises(StepFailed, match="stopped from outside"):
        await task
    async with asyncio.timeout(30):
        while alive([pid]):  # the kernel kills it with its parent; its pipes are closed a moment before it is gone
            await asyncio.sleep(0.01)


def test_a_variable_cannot_be_set_twice_and_a_reference_needs_a_field() -> None:
    with pytest.raises(ValidationError, match="set more than once: A"):
        ExecParams.model_validate({"command": ["x"], "environment": {"A": "1"}, "credentials": {"env": {"A": "db.x"}}})
    with pytest.raises(ValidationError):
        ExecParams.model_validate({"command": ["x"], "credentials": {"env": {"A": "db"}}})
    with pytest.raises(ValidationError):
        ExecParams.model_validate({"command": []})


async def test_an_unknown_grant_or_field_is_named() -> None:
    with pytest.raises(StepFailed, match="no credential for a grant `nope`"):
        await run(command=["true"], credentials={"env": {"A": "nope.password"}})
    with pytest.raises(StepFailed, match="no field `nope`") as caught:
        await run(command=["true"], credentials={"env": {"A": "db.nope"}})
    assert caught.value.hint is not None
    assert "password, username" in caught.value.hint


def test_the_view_shows_the_program_but_no_argument() -> None:
    params = ExecParams(command=["true", "private"], environment={"A": "secretive"})
    program = os.path.realpath("/usr/bin/true")
    assert Exec().view(params) == {
        "program": program,
        "called": "true",
        "arguments": 1,
        "environment": ["A"],
        "paths": {"read": [], "write": []},
        "connect": [],
    }


REREADING = """
import json, os, time
path, seen = os.environ["LOGIN"], []
while not seen or seen[-1]["version"] < 3:
    with open(path) as file:
        found = json.load(file)
    if found not in seen:
        seen.append(found)
    open({file!r}, "w").close()
print(json.dumps([seen, sorted(os.listdir(os.path.dirname(path)))]))
"""


async def test_a_whole_credential_in_a_file_is_replaced_at_once_by_the_next_version(tmp_path: Path) -> None:
    file, handover = tmp_path / "begun", Handover()
    params = ExecParams.model_validate(
        {
            "command": python(REREADING.format(file=str(file))),
            "credentials": {"files": {"LOGIN": "db"}},
            "output": "json",
            "paths": writing(tmp_path),
        }
    )
    running = asyncio.create_task(Exec().run(params, replace(context(), handover=handover)))
    for version in (2, 3):
        await until_there(file)
        fields = {"username": Secret(f"u-step-{version}"), "password": Secret(f"{CANARY}-{version}")}
        await handover.deliver(Credential("db", "database", 60, fields=fields, version=version))
    output = await running
    assert isinstance(output, dict)
    seen, files = output["json"]  # type: ignore[misc]  # a list of two
    first = {"version": 1, "fields": {"username": "u-step-1", "password": CANARY}}
    second = {"version": 2, "fields": {"username": "u-step-2", "password": f"{CANARY}-2"}}
    third = {"version": 3, "fields": {"username": "u-step-3", "password": f"{CANARY}-3"}}
    assert seen in ([first, second, third], [first, third]), "each as a whole, and in their order"
    assert files == ["LOGIN"], "nothing lies beside it"


async def until_there(file: Path) -> None:
    async with asyncio.timeout(30):
        while not file.exists():
            await asyncio.sleep(0.02)


async def test_a_new_credential_that_comes_before_the_program_is_there_when_it_begins() -> None:
    handover = Handover()
    fields = {"username": Secret("u-step-2"), "password": Secret("second")}
    early = asyncio.create_task(handover.deliver(Credential("db", "database", 60, fields=fields, version=2)))
    code = (
        "import json, os\nwhile (found := json.load(open(os.environ['LOGIN'])))['version'] == 1: pass\n"
        "print(found['fields']['password'] == 'second')"
    )
    params = ExecParams.model_validate({"command": python(code), "credentials": {"files": {"LOGIN": "db"}}})
    output = await Exec().run(params, replace(context(), handover=handover))
    await early
    assert output == {"exit_code": 0, "stdout": "True\n"}


async def test_a_new_credential_for_a_program_that_has_ended_is_nobodys() -> None:
    handover = Handover()
    params = ExecParams.model_validate({"command": ["true"], "credentials": {"files": {"LOGIN": "db"}}})
    await Exec().run(params, replace(context(), handover=handover))
    await handover.deliver(Credential("db", "database", 60, fields={"password": Secret("too-late")}, version=2))


async def test_a_file_that_cannot_be_replaced_fails_the_handover(tmp_path: Path) -> None:
    handover, begun = Handover(), tmp_path / "begun"
    code = f"import os, time\nos.mkdir(os.environ['LOGIN'] + '.new')\nopen({str(begun)!r}, 'w').close()\ntime.sleep(60)"
    params = ExecParams.model_validate({"command": python(code), "credentials": {"files": {"LOGIN": "db"}}})
    running = asyncio.create_task(Exec().run(params, replace(context(), handover=handover, confinement=())))
    await until_there(begun)
    with pytest.raises(StepFailed, match="could not be written to its file: File exists"):
        await handover.deliver(Credential("db", "database", 60, fields={"password": Secret("second")}, version=2))
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running

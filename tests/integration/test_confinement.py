"""What a program of a step can do to what is not its own: tried by real programs, with and without confinement."""

from __future__ import annotations

import errno
import os
import shutil
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from confinement_world import ATTEMPTS, FILES, HAS_V6, Attempt, program_of, world_around

from orchestrator.actions.base import StepContext
from orchestrator.actions.confinement import PARTS, available_parts
from orchestrator.actions.process.exec import Exec, ExecParams
from orchestrator.actions.process.python import Python, PythonParams
from orchestrator.errors import StepFailed

Tries = Callable[..., Awaitable[dict[str, str]]]


def context(parts: Sequence[str], **more: Any) -> StepContext:
    return StepContext("r1", "w", "s", 1, "a", "r1/s", time.monotonic() + 120, confinement=tuple(parts), **more)


async def by_exec(folder: Path, tried: Sequence[Attempt], world: dict[str, Any], parts: Sequence[str], **params: Any):  # type: ignore[no-untyped-def]
    """The outcomes of the attempts, in a step that runs the program."""
    command = [sys.executable, "-I", "-c", program_of(tried)]
    given = ExecParams.model_validate({"command": command, "stdin": world, "output": "json", **params})
    output = await Exec().run(given, context(parts))
    return output["json"]  # type: ignore[index, call-overload]


async def by_python(folder: Path, tried: Sequence[Attempt], world: dict[str, Any], parts: Sequence[str], **params: Any):  # type: ignore[no-untyped-def]
    """The same, in a step that calls the function."""
    modules = folder / "modules"
    modules.mkdir()
    (modules / "hostile.py").write_text(program_of(tried))
    given = {"callable": "hostile:try_all", "arguments": {"world": world}, "path": [str(modules)], **params}
    return await Python().run(PythonParams.model_validate(given), context(parts))


@pytest.mark.parametrize("tries", [by_exec, by_python])
async def test_what_is_not_the_steps_own_is_out_of_reach(tries: Tries, tmp_path: Path) -> None:
    outcomes = {}
    for kind, parts in (("free", ()), ("confined", available_parts())):
        folder = tmp_path / kind
        folder.mkdir()
        with world_around(folder) as world:
            outcomes[kind] = await tries(folder, ATTEMPTS, world, parts)
    free = outcomes["free"]
    assert {a.name: free[a.name] for a in ATTEMPTS if a.everywhere and free[a.name] != "done"} == {}
    there = available_parts()
    got_through = {a.name for a in ATTEMPTS if outcomes["confined"][a.name] == "done"}
    assert got_through == {a.name for a in ATTEMPTS if a.part not in there and outcomes["free"][a.name] == "done"}
    refusals = {said for name, said in outcomes["confined"].items() if name not in got_through}
    assert refusals <= {
        *("EACCES", "EPERM", "EXDEV", "ENOSYS", "ENOTSUP", "EPROTONOSUPPORT", "EAFNOSUPPORT"),
        *("OperationalError", "unable to open database file", "DatabaseError"),
    }, "refused by the kernel, not by an accident of the test"


@pytest.mark.parametrize("part", sorted({attempt.part for attempt in ATTEMPTS}))
async def test_what_a_part_stops_is_open_without_that_part(part: str, tmp_path: Path) -> None:
    """So each part does what it is named for, and a record that lacks it says truly what is open."""
    tried = [attempt for attempt in ATTEMPTS if attempt.part == part and attempt.everywhere]
    without = [each for each in available_parts() if each != part]
    if part == "files":
        without = [each for each in without if each == "seccomp"]  # the other parts of Landlock come with it
        tried = [each for each in tried if "/proc/{world['sibling']}" not in each.code]  # root's capabilities are gone
    with world_around(tmp_path) as world:
        outcomes = await by_exec(tmp_path, tried, world, without)
    assert set(outcomes.values()) == {"done"}, outcomes


async def test_commands_to_a_device_need_more_than_reading() -> None:
    code = (
        "import fcntl, os; print(fcntl.ioctl(os.open('/dev/ptmx', os.O_RDONLY | os.O_NOCTTY), 0x80045430, b'1234')[:0])"
    )
    command, paths = [sys.executable, "-I", "-S", "-c", code], {"read": ["/dev/ptmx"]}
    without = [part for part in available_parts() if part != "ioctl"]
    assert (await run(command, parts=without, paths=paths))["stdout"] == "b''\n"
    if "ioctl" in available_parts():
        with pytest.raises(StepFailed, match="Permission denied"):
            await run(command, paths=paths)


async def test_all_of_proc_opens_no_other_process(tmp_path: Path) -> None:
    """Declared, for programs that need it, it shows who there is, and still nobody's memory, files or environment."""
    tried = [each for each in FILES if "/proc/{world['sibling']}" in each.code]
    with world_around(tmp_path) as world:
        outcomes = await by_exec(tmp_path, tried, world, available_parts(), paths={"read": ["/proc"]})
    assert "files" not in available_parts() or set(outcomes.values()) <= {"EACCES", "EPERM"}, outcomes


async def test_declared_paths_are_reached_and_their_neighbours_are_not(tmp_path: Path) -> None:
    for name in ("read", "write", "neither"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    script = (
        "cat read/file write/file; echo new > write/made; mv write/made write/moved\n"
        "echo x 2>&- > read/made && echo no\n"
        "cat neither/file 2>&- && echo no; rm -f read/file 2>&-; exit 0"
    )
    paths = {"read": [str(tmp_path / "read")], "write": [str(tmp_path / "write")]}
    output = await run(["sh", "-c", f"cd {tmp_path} && {script}"], paths=paths)
    assert output["stdout"] == "readwrite" or "files" not in available_parts()
    assert (tmp_path / "write" / "moved").read_text() == "new\n"
    assert (tmp_path / "read" / "file").exists() or "files" not in available_parts()


async def test_a_single_file_may_be_declared_and_a_relative_path_begins_where_the_orchestrator_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "one").write_text("one")
    (tmp_path / "two").write_text("two")
    monkeypatch.chdir(tmp_path)
    output = await run(["sh", "-c", f"cat {tmp_path}/one; cat {tmp_path}/two 2>&-; exit 0"], paths={"read": ["one"]})
    assert output["stdout"] == ("one" if "files" in available_parts() else "onetwo")


async def test_a_declared_path_that_is_not_there_fails_the_step_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(StepFailed, match="which is not there") as caught:
        await run(["true"], paths={"read": [str(tmp_path / "nowhere")]})
    assert caught.value.kind == "parameters"


async def test_only_ports_of_named_endpoints_are_connected_to(tmp_path: Path) -> None:
    code = (
        "import socket, sys\nfor host, port in (('127.0.0.1', {port4}), ('::1', {port6})):\n"
        "    s = socket.socket(socket.AF_INET6 if ':' in host else socket.AF_INET)\n"
        "    print(s.connect_ex((host, port)))"
    )
    with world_around(tmp_path) as world:
        endpoints = {"four": f"http://127.0.0.1:{world['port4']}", "six": f"tcp://[::1]:{world['port6']}"}
        command = [sys.executable, "-I", "-S", "-c", code.format(**world)]

        async def connected(*names: str) -> list[int]:
            output = await run(command, connect=list(names), endpoints=endpoints)
            return [int(word) for word in str(output["stdout"]).split()]

        refused = errno.EACCES if "tcp" in available_parts() else 0
        assert await connected("four") == [0, refused] or not HAS_V6
        assert (await connected("four"))[0] == 0
        assert await connected("six") == [refused, 0] or not HAS_V6
        assert (await connected("six"))[0] == refused
        assert await connected() == [refused, refused] or not HAS_V6
        assert await connected("six", "four") == [0, 0] or not HAS_V6


async def test_an_endpoint_that_is_not_there_is_named() -> None:
    with pytest.raises(StepFailed, match="`nope`, and there is no such endpoint") as caught:
        await run(["true"], connect=["nope"], endpoints={"support": "postgresql://localhost/support"})
    assert "support" in str(caught.value.hint)


async def test_a_program_that_is_refused_something_learns_what_it_may_declare(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for command in (["cat", str(tmp_path / "file")], [sys.executable, "-c", f"open({str(tmp_path / 'file')!r})"]):
        with pytest.raises(StepFailed) as caught:
            await run(command)
        assert "paths: {read: [...], write: [...]}" in str(caught.value.hint)
    with pytest.raises(StepFailed) as caught:
        await run(["false"])
    assert "paths" not in str(caught.value.hint)


async def test_a_script_whose_interpreter_is_out_of_reach_says_so(tmp_path: Path) -> None:
    shell, script = tmp_path / "sh", tmp_path / "script"
    shutil.copy(os.path.realpath("/bin/sh"), shell)
    script.write_text(f"#!{shell}\necho it works\n")
    script.chmod(0o700)
    assert (await run([str(script)], paths={"read": [str(shell)]}))["stdout"] == "it works\n"
    if "files" in available_parts():
        with pytest.raises(StepFailed, match="cannot be started: Permission denied") as caught:
            await run([str(script)])
        assert "interpreter" in str(caught.value.hint)


async def test_rules_that_the_kernel_refuses_stop_the_program_before_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from orchestrator.actions.process import rules

    monkeypatch.setattr(rules, "_FIRST", 1 << 60)
    begun = tmp_path / "begun"
    with pytest.raises(StepFailed, match="cannot be confined, and was not started") as caught:
        await run(["touch", str(begun)], paths={"write": [str(tmp_path)]}, parts=PARTS)
    assert caught.value.kind == "confinement"
    assert not begun.exists()


async def run(
    command: list[str], *, parts: Sequence[str] | None = None, endpoints: dict[str, str] | None = None, **params: Any
) -> dict[str, Any]:
    given = context(available_parts() if parts is None else parts, endpoints=endpoints or {})
    output = await Exec().run(ExecParams.model_validate({"command": command, **params}), given)
    assert isinstance(output, dict)
    return output


WORKS = {
    "pipes": "seq 100 | sort -r | head -1",
    "a here-document": "cat <<X\n$((1 + 1))\nX",
    "the standard streams by name": "echo out > /dev/stdout; echo err > /dev/stderr",
    "nothing and zeros": "head -c 4 /dev/zero > /dev/null; echo x > /dev/null",
    "temporary files": 'file=$(mktemp) && echo x > "$file" && cat "$file"',
    "its own folder": "mkdir a && echo x > a/b && mv a c && ln c/b d && ln -s d e && cat e && rm -r c d e && mkfifo f",
    "other programs": "find / -maxdepth 0 && uname && id -u && date",
    "its own children": "sleep 60 & kill $!; wait $!; test $? -gt 100",
    "names of hosts": "getent hosts localhost",
}


@pytest.mark.parametrize("what", WORKS)
async def test_a_shell_goes_on_working_with(what: str) -> None:
    assert (await run(["sh", "-c", f"set -e; {WORKS[what]}" if what != "its own children" else WORKS[what]]))[
        "exit_code"
    ] == 0


async def test_bash_goes_on_working() -> None:
    if shutil.which("bash"):
        output = await run(
            ["bash", "-c", "diff <(echo a) <(echo a) && cat <<< here && read -r x < <(echo y) && echo $x"]
        )
        assert output["stdout"] == "here\ny\n"


PYTHON_WORKS = """
import asyncio, concurrent.futures, ctypes, locale, os, pathlib, socket, sqlite3, ssl, subprocess, sys, tempfile
import threading, time, zoneinfo

def everything():
    ssl.create_default_context()
    assert socket.getaddrinfo("localhost", 80)
    assert subprocess.run(["echo", "x"], capture_output=True, check=True).stdout == b"x\\n"
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert list(pool.map(abs, [-1, -2])) == [1, 2]
    with tempfile.TemporaryDirectory() as folder, tempfile.NamedTemporaryFile() as file:
        file.write(b"x")
        with sqlite3.connect(folder + "/db") as db:
            db.execute("create table t (a)")
    left, right = socket.socketpair()
    left.send(b"x")
    assert right.recv(1) == b"x"
    os.close(os.memfd_create("x"))
    assert os.urandom(4) and os.getlogin is not None and time.strftime("%Z") and zoneinfo.ZoneInfo("Europe/Berlin")
    server = socket.socket(socket.AF_UNIX); server.bind("own"); server.listen()
    socket.socket(socket.AF_UNIX).connect("own")
    a = socket.socket(socket.AF_UNIX); a.bind("\\0own-%d" % os.getpid()); a.listen()
    socket.socket(socket.AF_UNIX).connect("\\0own-%d" % os.getpid())
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", 9))
    async def main():
        process = await asyncio.create_subprocess_exec("cat", stdin=-1, stdout=-1)
        return (await process.communicate(b"y"))[0]
    assert asyncio.run(main()) == b"y"
    import psycopg, pydantic, yaml_or_not
"""


async def test_python_goes_on_working_with_what_is_installed(tmp_path: Path) -> None:
    (tmp_path / "author.py").write_text(PYTHON_WORKS.replace(", yaml_or_not", ""))
    params = PythonParams.model_validate({"callable": "author:everything", "path": [str(tmp_path)]})
    assert await Python().run(params, context(available_parts())) is None


async def test_curl_goes_on_working_to_a_named_endpoint(tmp_path: Path) -> None:
    if not shutil.which("curl", path="/usr/bin:/bin"):
        return
    with world_around(tmp_path) as world:
        url = f"http://127.0.0.1:{world['port4']}/"
        with pytest.raises(StepFailed) as caught:
            await run(["curl", "-sS", url], connect=["it"], endpoints={"it": url})
    assert "Empty reply" in caught.value.message or "reset" in caught.value.message, "it got there"

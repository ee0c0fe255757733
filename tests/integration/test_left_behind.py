"""Folders of programs whose orchestrator and supervisor died together: gone with the next look, and only those."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from bench import Bench
from waiting import wait_for

from orchestrator.actions.process import private_folders
from orchestrator.actions.process.private_folders import (
    memory_folder,
    private_folder,
    remove_left_behind,
    temporary_folder,
)
from orchestrator.actions.process.supervised import Command, run_process
from orchestrator.assembly import open_services
from orchestrator.recovery.takeover import Recovery
from orchestrator.redaction.redactor import Redactor
from orchestrator.secret import Secret

PLACES = """
import sys
from orchestrator.actions.process import private_folders
if len(sys.argv) > 2:
    private_folders._memory_folders = lambda: (sys.argv[2],)
"""
RUNNER = (
    PLACES
    + """
import asyncio
from orchestrator.actions.process.supervised import Command, run_process
from orchestrator.secret import Secret
words = ["/bin/sh", "-c", "echo x > left; exec sleep 600"]
asyncio.run(run_process(Command(words, files={"TOKEN": Secret("issued" * 4)})))
"""
)


@pytest.fixture
def own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A memory folder and a temporary folder of the test's own: processes of other tests look at the usual ones, and
    take away what is left there."""
    memory, temporary = tmp_path / "memory", tmp_path / "temporary"
    memory.mkdir()
    temporary.mkdir()
    monkeypatch.setattr(private_folders, "_memory_folders", lambda: (str(memory),))
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setenv("TMPDIR", str(temporary))
    return memory


def folders(pid: int) -> set[Path]:
    parents = {memory_folder() or temporary_folder(), temporary_folder()}
    return {path for parent in parents for path in parent.glob(f"orchestrator-private-{pid}-*")}


class Runner:
    """A process that runs a program with a credential file."""

    def __init__(self) -> None:
        memory = str(memory_folder() or temporary_folder())
        self.process = subprocess.Popen([sys.executable, "-c", RUNNER, "", memory])
        wait_for(lambda: any(path.name == "left" for each in self.folders for path in each.iterdir()), "the program")

    @property
    def folders(self) -> set[Path]:
        return folders(self.process.pid)

    def family(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def die(self) -> None:
        """All of it at once, as the kernel kills a control group that is out of memory."""
        family = self.family()
        for process in family:
            process.send_signal(signal.SIGSTOP)  # so that none sees another one die
        self.process.kill()
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()
        wait_for(lambda: not any(runs(process) for process in family), "their end")


def runs(process: psutil.Process) -> bool:
    """Whether it still does; a zombie is dead."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def runner() -> Iterator[Runner]:
    runner = Runner()
    yield runner
    if runner.process.poll() is None:
        runner.die()
    remove_left_behind()
    assert runner.folders == set()


def test_what_both_left_is_removed_by_the_next_look(own_places: Path, runner: Runner) -> None:
    left = runner.folders
    assert any((folder / "TOKEN").exists() for folder in left)
    runner.die()
    assert runner.folders == left, "nobody was there to remove it"
    assert remove_left_behind() == len(left) == 2
    assert [path for path in left if path.parent == own_places] != []
    assert runner.folders == set()


def test_the_next_process_removes_it_when_it_starts(runner: Runner, bench: Bench) -> None:
    runner.die()

    async def start() -> None:
        async with open_services(bench.config(), redactor=Redactor()):
            pass

    asyncio.run(start())
    assert runner.folders == set()


def test_recovery_of_a_dead_process_removes_it_in_a_process_that_runs_already(own_places: Path, bench: Bench) -> None:
    async def recover() -> None:
        async with open_services(bench.config(), redactor=Redactor()) as services:
            dying = subprocess.run(
                [sys.executable, "-c", DIES, bench.config().ledger_url, str(own_places)],
                capture_output=True,
                text=True,
                check=False,
            )
            assert dying.returncode == -signal.SIGKILL, dying.stderr
            left = Path(dying.stdout.strip())
            assert (left / "TOKEN").exists()
            await Recovery(services).until_decided()
            assert not left.exists()

    asyncio.run(recover())


DIES = (
    PLACES
    + """
import os, signal
from orchestrator.actions.process.private_folders import memory_folder, private_folder
from orchestrator.clock import SystemClock
from orchestrator.ledger.opening import open_ledger
from orchestrator.runs.heartbeat import Heartbeat
ledger = open_ledger(sys.argv[1], clock=SystemClock())
beats = Heartbeat(ledger.runners)
folder = private_folder(memory_folder())
(folder.path / "TOKEN").write_text("issued")
beats.enter()
print(folder.path, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
)


@pytest.mark.parametrize("dies", ["neither", "runner", "supervisor"])
def test_nothing_of_the_living_is_removed(runner: Runner, dies: str) -> None:
    """Whoever is still there removes it itself, when it is done with its program."""
    (supervisor,) = psutil.Process(runner.process.pid).children()
    if dies == "runner":
        supervisor.suspend()  # it has not seen it yet
        runner.process.kill()
        runner.process.wait()
    elif dies == "supervisor":
        runner.process.send_signal(signal.SIGSTOP)
        supervisor.kill()
    before = {path: set(os.listdir(path)) for path in runner.folders}
    remove_left_behind()
    assert {path: set(os.listdir(path)) for path in runner.folders} == before
    assert len(before) == 2
    if dies == "runner":
        supervisor.resume()
        wait_for(lambda: not runner.folders, "the supervisor to remove it")
    elif dies == "supervisor":
        runner.process.send_signal(signal.SIGCONT)
        wait_for(lambda: not runner.folders, "the runner to remove it")


async def test_programs_go_on_while_others_look_all_the_time() -> None:
    """Between making a folder and holding it a look may take it for one that was left: it is made again."""
    looking = True

    def look() -> None:
        while looking:
            remove_left_behind()

    looks = asyncio.create_task(asyncio.to_thread(look))
    try:
        for _ in range(20):
            command = Command(["/bin/sh", "-c", 'cat "$TOKEN"; echo x > own'], files={"TOKEN": Secret("issued")})
            finished = await run_process(command)
            assert (finished.exit_code, finished.stdout) == (0, b"issued")
    finally:
        looking = False
        await looks


def test_a_machine_of_many_leftovers_is_clean_after_one_look(tmp_path: Path) -> None:
    for number in range(500):
        folder = private_folder(tmp_path)
        (folder.path / "TOKEN").write_text(f"issued {number}")
        (folder.path / "deep" / "er").mkdir(parents=True)
        folder.close()
    living = private_folder(tmp_path)
    assert remove_left_behind([tmp_path]) == 500
    assert list(tmp_path.iterdir()) == [living.path]
    living.close()


def test_a_number_that_belongs_to_another_process_by_now_protects_nothing(tmp_path: Path) -> None:
    """The folder's name has our own process id, which lives; nobody holds it."""
    folder = private_folder(tmp_path)
    assert f"-{os.getpid()}-" in folder.path.name
    folder.close()
    assert remove_left_behind([tmp_path]) == 1


def test_what_was_planted_under_such_a_name_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "file").write_text("precious")
    parent = tmp_path / "memory"
    parent.mkdir()
    (parent / "orchestrator-private-1-link").symlink_to(victim)
    (parent / "orchestrator-private-1-file").write_text("no folder")
    os.mkfifo(parent / "orchestrator-private-1-fifo")
    folder = private_folder(parent)
    (folder.path / "inner").symlink_to(victim)
    (folder.path / "inner-file").symlink_to(victim / "file")
    os.link(victim / "file", folder.path / "hard")
    os.mkfifo(folder.path / "fifo")
    folder.close()
    assert remove_left_behind([parent]) == 1
    assert (victim / "file").read_text() == "precious"
    assert {path.name for path in parent.iterdir()} == {
        f"orchestrator-private-1-{kind}" for kind in ("link", "file", "fifo")
    }


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make what is another user's")
def test_what_is_another_users_is_left_alone_even_by_root(tmp_path: Path) -> None:
    folder = private_folder(tmp_path)
    folder.close()
    os.chown(folder.path, 12345, 12345)
    assert remove_left_behind([tmp_path]) == 0
    assert folder.path.exists()


def test_a_credential_is_overwritten_before_its_file_goes(tmp_path: Path) -> None:
    folder = private_folder(tmp_path)
    (folder.path / "TOKEN").write_text("issued")
    folder.close()
    with (folder.path / "TOKEN").open("rb") as file:
        assert remove_left_behind([tmp_path]) == 1
        assert file.read() == b"\0" * len("issued")

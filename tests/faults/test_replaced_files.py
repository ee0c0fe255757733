"""A workflow that `--write` replaces is the old one or the new one, whole, whatever happens meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from bench import ROOT

OLD, NEW = "old\r\n" * 2_000, "new\n" * 20_000

REPLACING = """
import sys
from pathlib import Path
from orchestrator.inference.replacing import read_exactly, replace_text
file, texts = Path(sys.argv[1]), sys.argv[2:]
"""
FOR_EVER = (
    REPLACING
    + """
old, new = "old\\r\\n" * 2_000, "new\\n" * 20_000
try:
    print("ready", flush=True)
    while True:
        replace_text(file, old, new)
        replace_text(file, new, old)
        print("again", flush=True)
except KeyboardInterrupt:
    pass
"""
)
COUNTING = (
    REPLACING
    + """
from orchestrator.errors import UsageError
done = 0
while done < 20:
    text = read_exactly(file)
    try:
        replace_text(file, text, str(int(text) + 1))
    except UsageError as error:
        assert "changed by somebody else meanwhile" in error.message, error.message
    else:
        done += 1
"""
)
ONCE = (
    REPLACING
    + """
from orchestrator.errors import UsageError
try:
    replace_text(file, "old\\r\\n" * 2_000, "new\\n" * 20_000)
except UsageError as error:
    print(error.message)
"""
)
LIMITED = f"""
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
{ONCE}
"""
ORDINARY = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []
"""What root may do because it is root is taken away."""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "folder" / "w.yaml"
    file.parent.mkdir()
    file.write_bytes(OLD.encode())
    return file


def child(script: str, file: Path, *before: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*before, sys.executable, "-c", script, str(file)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_signal_in_the_middle_leaves_one_of_the_two_whole(file: Path, number: signal.Signals) -> None:
    for rounds in range(5):
        with child(FOR_EVER, file) as process:
            assert process.stdout is not None
            for _ in range(rounds + 1):
                process.stdout.readline()
            process.send_signal(number)
        assert file.read_bytes().decode() in (OLD, NEW)
        file.write_bytes(OLD.encode())
        if number != signal.SIGKILL:
            assert os.listdir(file.parent) == ["w.yaml"]


def test_of_processes_that_replace_at_once_none_undoes_what_another_did(file: Path) -> None:
    file.write_text("0")
    processes = [child(COUNTING, file) for _ in range(4)]
    assert [process.wait(120) for process in processes] == [0, 0, 0, 0]
    for process in processes:
        process.communicate()
    assert file.read_text() == "80"
    assert os.listdir(file.parent) == ["w.yaml"]


def test_where_the_disk_is_full_the_file_is_as_it_was(file: Path) -> None:
    said, _ = child(LIMITED, file).communicate(timeout=60)
    assert said == f"{file} cannot be written: File too large; nothing was changed\n"
    assert file.read_bytes().decode() == OLD
    assert os.listdir(file.parent) == ["w.yaml"]


@pytest.mark.parametrize("which", ["folder", "file"])
def test_what_may_not_be_written_is_not_replaced(file: Path, which: str) -> None:
    if which == "file":
        file.chmod(0o444)
    else:
        file.parent.chmod(0o555)
    said, _ = child(ONCE, file, *ORDINARY).communicate(timeout=60)
    file.parent.chmod(0o755)
    assert said == f"{file} cannot be written: Permission denied; nothing was changed\n"
    assert file.read_bytes().decode() == OLD
    assert os.listdir(file.parent) == ["w.yaml"]


def test_without_these_limits_it_is_replaced(file: Path) -> None:
    assert child(ONCE, file, *ORDINARY).communicate(timeout=60) == ("", None)
    assert file.read_bytes().decode() == NEW


def test_whoever_reads_meanwhile_never_sees_half_a_file(file: Path) -> None:
    seen: set[str] = set()
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            seen.add(file.read_bytes().decode())

    reader = threading.Thread(target=look)
    with child(FOR_EVER, file) as process:
        assert process.stdout is not None
        process.stdout.readline()
        reader.start()
        for _ in range(30):
            process.stdout.readline()
        stop.set()
        reader.join()
        process.send_signal(signal.SIGINT)
    assert seen <= {OLD, NEW}
    assert seen

"""Child processes of the embedded stack: they die with us, and Ctrl-C does not reach them before we do."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def start(
    command: Sequence[str],
    *,
    log: Path,
    environment: Mapping[str, str],
    user: str | None = None,
    inherit: Sequence[int] = (),
    death_signal: signal.Signals = signal.SIGKILL,
    piped: bool = False,
) -> subprocess.Popen[bytes]:
    """Start a server in a session of its own, at `/`, what it prints appended to `log`.

    `user` is who it runs as (needs root), `inherit` the file descriptors it keeps. The kernel sends
    it `death_signal` when the thread that called this ends (prctl(2), Linux only): start servers
    from a thread that stays. `piped` gives pipes to its standard input and output.
    """
    with log.open("ab") as output:
        return subprocess.Popen(  # noqa: S603 -- an argument list of ours, no shell
            command,
            stdin=subprocess.PIPE if piped else subprocess.DEVNULL,
            stdout=subprocess.PIPE if piped else output,
            stderr=output,
            cwd="/",
            env=dict(environment),
            start_new_session=True,
            preexec_fn=_before_exec(user, death_signal),
            pass_fds=tuple(inherit),
        )


def _before_exec(user: str | None, death_signal: signal.Signals) -> Callable[[], None]:
    """What the child does between fork and exec. All that needs a lock or a lookup is done before the fork.

    We switch the user ourselves: a switch after prctl(2) would clear the parent-death signal.
    """
    import pwd

    entry = pwd.getpwnam(user) if user else None
    libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
    parent = os.getpid()

    def prepare() -> None:
        if entry is not None:
            os.setgroups([])
            os.setgid(entry.pw_gid)
            os.setuid(entry.pw_uid)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())  # what we block, it must still hear
        if libc is not None:
            libc.prctl(_PR_SET_PDEATHSIG, int(death_signal))
            if os.getppid() != parent:  # it died before we asked, and no signal will come
                os._exit(1)

    return prepare


def stop(process: subprocess.Popen[bytes], *, how: signal.Signals = signal.SIGTERM, seconds: float = 10.0) -> None:
    """End a process and reap it; after `seconds` by SIGKILL to its whole group."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(how)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def last_lines(log: Path, count: int = 5) -> str:
    """The end of a server's log, for an error message."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-count:]) if log.exists() else ""

"""Checkpoints kept where whoever can write the ledger cannot: then a ledger that was set back or rewritten is found.

A destination is an address in the settings: `file:///path`, to which each is added; `git:///path` of a repository, in
which each is a commit, pushed where the branch has an upstream; `syslog:` of this machine, or `syslog://host:514` by
UDP; or `https://...`, to which each is posted.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import subprocess
from collections.abc import Awaitable, Callable, Iterator, Mapping
from logging.handlers import SysLogHandler
from pathlib import Path
from urllib.parse import unquote, urlsplit

from orchestrator.errors import EvidenceRejected, Unreachable, UsageError
from orchestrator.evidence.log.checkpoint import Checkpoint, notes_in
from orchestrator.evidence.log.note import LONGEST
from orchestrator.network.origins import is_confidential
from orchestrator.secret import Secret

Publish = Callable[[str, str], Awaitable[None]]
"""Takes the origin of a log and the signed note of a checkpoint. Raises Unreachable."""

SECONDS = 20.0
"""How long one destination may take."""

SYSLOG_WORD = "orchestrator-checkpoint"
"""What comes before the note, as a JSON string, in a line of syslog."""

_SYSLOG_LINE = re.compile(rf'{SYSLOG_WORD} ("(?:[^"\\]|\\.)*")')
_OF_AN_ORIGIN = re.compile(r"[^A-Za-z0-9.-]+")
_FORMS = "file:///path, git:///path, syslog:, syslog://host:514 or https://..."


class SetBack(Unreachable):
    """A destination has a checkpoint of more entries of this log than the one that it was to get."""

    def __init__(self, name: str, entries: int) -> None:
        super().__init__(
            f"the checkpoint was not published to `{name}`: one of {entries} entries is there, so that this ledger was "
            "set back",
            hint="`orchestrator history verify --against` tells what is lost; where an older copy was restored on "
            "purpose, `orchestrator history restart` says so",
        )
        self.entries = entries


class _Older(Exception):
    def __init__(self, entries: int) -> None:
        super().__init__(entries)
        self.entries = entries


def destinations(addresses: Mapping[str, Secret]) -> Mapping[str, Publish]:
    """By the names of the settings. Raises UsageError for an address that is none."""
    return {name: destination(name, address) for name, address in addresses.items()}


def destination(name: str, address: Secret) -> Publish:
    """How checkpoints get there. Raises UsageError, which does not show the address: it may hold a secret."""
    parts = urlsplit(address.reveal())
    path = Path(unquote(parts.path))
    if parts.scheme == "file" and path.is_absolute() and not parts.netloc:
        return lambda origin, note: _in_thread(name, lambda: _append(path, note))
    if parts.scheme == "git" and path.is_absolute() and not parts.netloc:
        return lambda origin, note: _in_thread(name, lambda: _commit(path, origin, note))
    if parts.scheme == "syslog" and parts.path in ("", "/"):
        server = (parts.hostname, parts.port or 514) if parts.hostname else None
        return lambda origin, note: _in_thread(name, lambda: _to_syslog(server, note))
    if parts.scheme in ("http", "https") and is_confidential(address.reveal()):
        return lambda origin, note: _post(name, address, note)
    raise UsageError(f"checkpoints cannot be published to `{name}`: its address is none of {_FORMS}")


def published_in(text: str) -> Iterator[str]:
    """The signed notes of what was published: of a file, or of lines of syslog. Raises EvidenceRejected."""
    lines = _SYSLOG_LINE.findall(text)
    if lines:
        for each in lines:
            yield str(json.loads(each))
        return
    found = False
    for note in notes_in(text):
        found = True
        yield note
    if not found:
        raise EvidenceRejected("there is no checkpoint in it")


async def _in_thread(name: str, work: Callable[[], None]) -> None:
    try:
        async with asyncio.timeout(SECONDS):
            await asyncio.to_thread(work)
    except TimeoutError:
        raise _unpublished(name, f"it took more than {SECONDS:g} seconds") from None
    except _Older as error:
        raise SetBack(name, error.entries) from None
    except subprocess.CalledProcessError as error:
        said = str(error.stderr or "").strip().splitlines()
        raise _unpublished(name, f"git {error.cmd[3]}: {said[-1] if said else error.returncode}") from None
    except (OSError, subprocess.SubprocessError) as error:
        raise _unpublished(name, str(error) or type(error).__name__) from None


def _append(path: Path, note: str) -> None:
    """In one write, and on disk when this returns. Raises _Older."""
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        end = os.fstat(descriptor).st_size
        _refuse_older(os.pread(descriptor, LONGEST, max(0, end - LONGEST)).decode(errors="replace"), note)
        _write(descriptor, note.encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _refuse_older(published: str, note: str) -> None:
    """Raise _Older where a larger one of the same log is there: whoever reads on would take it for what is now.

    What is there is believed without its signature: whoever can write there could prevent publishing anyway.
    """
    mine = Checkpoint.of_text(note.partition("\n\n")[0] + "\n")
    sizes = re.findall(rf"^{re.escape(mine.origin)}\n(0|[1-9][0-9]{{0,17}})\n", published, re.MULTILINE)
    if (largest := max(map(int, sizes), default=0)) > mine.size:
        raise _Older(largest)


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _commit(repository: Path, origin: str, note: str) -> None:
    """Add the checkpoint to the file of its log, commit that file alone, and push it where there is an upstream."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(repository), *words]
        return subprocess.run(  # noqa: S603 -- words of ours, no shell
            command, capture_output=True, text=True, check=True, timeout=SECONDS, stdin=subprocess.DEVNULL
        ).stdout.strip()

    name = f"{_OF_AN_ORIGIN.sub('_', origin)}.checkpoints"
    _append(Path(git("rev-parse", "--show-toplevel")) / name, note)
    git("add", "--", f":/{name}")
    git("commit", "--quiet", "--message", f"Checkpoint {note.splitlines()[1]} of {origin}", "--", f":/{name}")
    if git("for-each-ref", "--format=%(upstream)", git("symbolic-ref", "HEAD")):
        git("push", "--quiet")


def _to_syslog(server: tuple[str, int] | None, note: str) -> None:
    address = server or next((path for path in ("/dev/log", "/var/run/syslog") if os.path.exists(path)), "/dev/log")
    handler = _Syslog(address=address, facility=SysLogHandler.LOG_AUTHPRIV)
    try:
        handler.ident = "orchestrator: "
        handler.emit(logging.makeLogRecord({"msg": f"{SYSLOG_WORD} {json.dumps(note)}", "levelno": logging.INFO}))
    finally:
        handler.close()


class _Syslog(SysLogHandler):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 -- the name is logging's
        """It would be printed and forgotten."""
        raise


async def _post(name: str, address: Secret, note: str) -> None:
    import httpx

    from orchestrator.network.http_client import http_client

    headers = {"Content-Type": "text/plain; charset=utf-8"}
    try:
        async with (
            http_client(SECONDS) as client,
            client.stream("POST", address.reveal(), content=note.encode(), headers=headers) as response,
        ):
            if not response.is_success:
                raise _unpublished(name, f"it answered {response.status_code}")
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
        raise _unpublished(name, type(error).__name__) from None


def _unpublished(name: str, problem: str) -> Unreachable:
    return Unreachable(f"the checkpoint could not be published to `{name}`: {problem}")

"""What a hostile program finds around its step, and what it tries; shared by the tests of confinement.

Each attempt is a piece of Python that succeeds or raises. They run one after another, each in a process of its own,
inside one real step, which answers with what came of each.
"""

from __future__ import annotations

import os
import socket
import sqlite3
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent, indent
from typing import Any

from orchestrator.actions.process.private_folders import memory_folder, private_folder


def _has_version_6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


HAS_V6 = _has_version_6()
"""Whether this machine speaks IPv6 to itself."""


@dataclass(frozen=True)
class Attempt:
    """`part` is what stops it. `everywhere`: it succeeds on every kernel where nothing stops it."""

    name: str
    part: str
    code: str
    everywhere: bool = True


def attempts(part: str, *, everywhere: bool = True, **codes: str) -> list[Attempt]:
    return [Attempt(name, part, dedent(code).strip(), everywhere) for name, code in codes.items()]


FILES = attempts(
    "files",
    reads_the_secret_id="open(own['secret']).read()",
    appends_to_it="open(own['secret'], 'a').write('x')",
    lists_its_folder="os.listdir(own['folder'])",
    removes_it="os.unlink(own['secret'])",
    makes_a_file_beside_it="open(own['folder'] + '/new', 'x')",
    makes_a_folder_beside_it="os.mkdir(own['folder'] + '/new')",
    makes_a_socket_beside_it="os.chdir(own['folder']); socket.socket(socket.AF_UNIX).bind('s')",
    executes_what_lies_there="subprocess.run([own['program']], check=True)",
    reads_by_a_symbolic_link="os.symlink(own['secret'], 'symbolic'); open('symbolic').read()",
    reads_by_a_hard_link="os.link(own['secret'], 'hard'); open('hard').read()",
    moves_it_here="os.rename(own['secret'], 'moved'); open('moved').read()",
    moves_its_folder_here="os.rename(own['folder'], 'moved-folder'); open('moved-folder/secret-id').read()",
    exchanges_it="""
        open('mine', 'w').close()
        if libc.renameat2(-100, b'mine', -100, own['secret'].encode(), 2) < 0: raise OSError(ctypes.get_errno(), '')
        open('mine').read()
    """,
    reads_beneath_an_open_folder="fd = os.open(own['folder'], os.O_PATH); open(os.open('secret-id', 0, dir_fd=fd))",
    reads_by_dots="open('../' * 9 + own['secret']).read()",
    reads_the_ledger="sqlite3.connect(f\"file:{own['ledger']}?mode=ro\", uri=True).execute('select * from run')",
    writes_the_ledger="db = sqlite3.connect(own['ledger']); db.execute('delete from run'); db.commit()",
    reads_another_steps_credential="open(world['credential']).read()",
    lists_the_credential_folders="os.listdir(os.path.dirname(os.path.dirname(world['credential'])))",
    reads_a_siblings_environment="open(f\"/proc/{world['sibling']}/environ\").read()",
    reads_a_siblings_memory="open(f\"/proc/{world['sibling']}/mem\", 'rb')",
    reads_a_siblings_maps="open(f\"/proc/{world['sibling']}/maps\").read()",
    reads_a_siblings_descriptor="open(f\"/proc/{world['sibling']}/fd/0\").read()",
    reads_through_a_siblings_root="open(f\"/proc/{world['sibling']}/root{own['secret']}\").read()",
    lists_a_siblings_folder="os.listdir(f\"/proc/{world['sibling']}/cwd\")",
    reads_the_arguments_of_the_orchestrator="open(f\"/proc/{world['orchestrator']}/cmdline\").read()",
)
TRUNCATE = attempts("truncate", empties_the_ledger="os.truncate(own['ledger'], 0)")
SIGNALS = attempts(
    "signals",
    kills_a_sibling="os.kill(own['sibling'], signal.SIGKILL)",
    kills_a_sibling_by_descriptor="signal.pidfd_send_signal(os.pidfd_open(own['sibling']), signal.SIGKILL)",
    signals_a_group="os.killpg(os.getpgid(own['sibling']), signal.SIGKILL)",
    signals_its_supervisor="os.kill(supervisor, signal.SIGCHLD)",
    signals_the_orchestrator="os.kill(world['orchestrator'], signal.SIGCONT)",
    connects_to_an_abstract_socket="socket.socket(socket.AF_UNIX).connect('\\0' + world['abstract'])",
    sends_to_an_abstract_socket="""
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b'x', '\\0' + world['abstract'] + '-datagrams')
    """,
)
TCP = attempts(
    "tcp",
    connects="socket.create_connection(('127.0.0.1', world['port4']))",
    connects_without_waiting="""
        s = socket.socket(); s.setblocking(False)
        number = s.connect_ex(('127.0.0.1', world['port4']))
        if number not in (0, errno.EINPROGRESS): raise OSError(number, '')
    """,
    connects_with_the_first_data="""
        s = socket.socket(); s.setsockopt(socket.IPPROTO_TCP, 30, 1)
        s.connect(('127.0.0.1', world['port4'])); s.sendall(b'x')
    """,
    listens="s = socket.socket(); s.bind(('127.0.0.1', 0)); s.listen()",
) + attempts(
    "tcp",
    everywhere=HAS_V6,
    connects_by_version_6="socket.create_connection(('::1', world['port6']))",
    connects_by_a_mapped_address="socket.create_connection(('::ffff:127.0.0.1', world['port4']))",
)
_CALL = "\nif answer < 0: raise OSError(ctypes.get_errno(), '')"
SECCOMP = [
    *attempts(
        "seccomp",
        sends_without_connecting="socket.socket().sendto(b'x', 0x20000000, ('127.0.0.1', world['port4']))",
        sends_messages_without_connecting="""
            socket.socket().sendmsg([b'x'], [], 0x20000000, ('127.0.0.1', world['port4']))
        """,
        makes_shared_memory="answer = libc.shmget(0, 4096, 0o1600)" + _CALL,
        makes_a_message_queue="answer = libc.msgget(0, 0o1600)" + _CALL,
    ),
    *attempts(
        "seccomp",
        everywhere=HAS_V6,
        sends_without_connecting_by_version_6="""
            socket.socket(socket.AF_INET6).sendto(b'x', 0x20000000, ('::1', world['port6']))
        """,
    ),
    *attempts(
        "seccomp",
        everywhere=False,  # a kernel may lack them, an operator may have switched them off
        watches_a_folder="answer = libc.inotify_init1(0)" + _CALL,
        connects_by_several_paths="""
            s = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262); s.connect(('127.0.0.1', world['port4']))
            s.sendall(b'x')
        """,
        makes_a_ring="answer = libc.syscall(425, 8, ctypes.create_string_buffer(512))" + _CALL,
        makes_a_socket_to_the_host="socket.socket(40, socket.SOCK_STREAM)",
        makes_a_socket_of_the_crypto_api="socket.socket(38, socket.SOCK_SEQPACKET)",
        makes_a_packet_socket="socket.socket(17, socket.SOCK_RAW)",
        makes_a_raw_socket="socket.socket(socket.AF_INET, socket.SOCK_RAW, 6)",
        makes_a_socket_of_smc="socket.socket(43, socket.SOCK_STREAM)",
        reads_a_keyring="answer = libc.syscall({'x86_64': 250, 'aarch64': 219}[machine], 0, -3, 1)" + _CALL,
        traces_a_sibling="answer = libc.ptrace(16, world['sibling'], 0, 0)" + _CALL,
        takes_a_siblings_descriptor="""
            answer = libc.syscall(438, os.pidfd_open(world['sibling']), 0, 0)
            if answer < 0: raise OSError(ctypes.get_errno(), '')
        """,
        handles_faults="answer = libc.syscall({'x86_64': 323, 'aarch64': 282}[machine], 1)" + _CALL,
        calls_by_the_old_numbers="""
            if machine != 'x86_64': raise OSError(errno.ENOSYS, '')
            page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
            page.write(bytes.fromhex('b814000000cd80c3'))  # getpid by int 0x80
            answer = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()
            if answer < 0: raise OSError(-answer, '')
        """,
    ),
]
ATTEMPTS = [*FILES, *TRUNCATE, *SIGNALS, *TCP, *SECCOMP]


@contextmanager
def world_around(folder: Path) -> Iterator[dict[str, Any]]:
    """Files, processes, sockets and a credential of somebody else's; each attempt has some of its own to spoil."""
    with ExitStack() as stack:
        opened = folder / "opened"
        opened.write_text("of the sibling")
        stdin = stack.enter_context(opened.open())

        def sibling() -> int:
            process = subprocess.Popen(
                ["sleep", "600"], env={"TOKEN": "theirs"}, cwd=folder, stdin=stdin, start_new_session=True
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            return process.pid

        other = private_folder(memory_folder() or folder)
        stack.callback(other.close)
        stack.callback(other.path.rmdir)
        credential = other.path / "TOKEN"
        credential.write_text("theirs")
        stack.callback(credential.unlink)
        abstract = f"orchestrator-test-{os.getpid()}-{folder.name}"
        yield {
            "orchestrator": os.getpid(),
            "sibling": sibling(),
            "credential": str(credential),
            "port4": _listener(stack, socket.AF_INET, ("127.0.0.1", 0)),
            "port6": _listener(stack, socket.AF_INET6, ("::1", 0)) if HAS_V6 else 9,
            "abstract": abstract,
            "unused": [
                _listener(stack, socket.AF_UNIX, f"\0{abstract}"),
                stack.enter_context(_datagrams(f"\0{abstract}-datagrams")).fileno(),
            ],
            "own": {
                attempt.name: _belongings(
                    folder / attempt.name, sibling() if "own['sibling']" in attempt.code else None
                )
                for attempt in ATTEMPTS
            },
        }


def _belongings(folder: Path, sibling: int | None) -> dict[str, Any]:
    folder.mkdir(mode=0o700)
    (folder / "secret-id").write_text("theirs")
    program = folder / "program"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o700)
    with sqlite3.connect(folder / "ledger.db") as ledger:
        ledger.execute("create table run (run_id)")
    ledger.close()
    return {
        "folder": str(folder),
        "secret": str(folder / "secret-id"),
        "program": str(program),
        "ledger": str(folder / "ledger.db"),
        "sibling": sibling,
    }


def _listener(stack: ExitStack, family: int, address: Any) -> int:
    """A listening socket whose connections are accepted, so that nobody waits; its port."""
    server = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
    server.bind(address)
    server.listen(64)

    def accept() -> None:
        while True:
            try:
                server.accept()[0].close()
            except OSError:
                return

    threading.Thread(target=accept, daemon=True).start()
    stack.callback(_shut, server)
    return 0 if family == socket.AF_UNIX else int(server.getsockname()[1])


def _shut(server: socket.socket) -> None:
    """Whoever waits in `accept` is woken."""
    server.shutdown(socket.SHUT_RDWR)


def _datagrams(address: str) -> socket.socket:
    receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    receiver.bind(address)
    return receiver


def program_of(tried: Sequence[Attempt]) -> str:
    """A module whose function `try_all(world)` gives what came of each: `done`, or the name of the error."""
    functions = "\n".join(
        f"def {attempt.name}(world, own, supervisor):\n{indent(attempt.code, '    ')}\n" for attempt in tried
    )
    return f"""\
import ctypes, errno, json, mmap, os, platform, signal, socket, sqlite3, subprocess, sys

libc = ctypes.CDLL(None, use_errno=True)
machine = platform.machine()
{functions}
ALL = [{", ".join(attempt.name for attempt in tried)}]

def try_all(world):
    supervisor = os.getppid()
    return {{each.__name__: apart(each, world, world["own"][each.__name__], supervisor) for each in ALL}}

def apart(attempt, *arguments):
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            signal.alarm(20)
            attempt(*arguments)
            os.write(writer, b"done")
        except OSError as error:
            os.write(writer, (errno.errorcode.get(error.errno) or str(error)).encode())
        except BaseException as error:
            os.write(writer, type(error).__name__.encode())
        finally:
            os._exit(0)
    os.close(writer)
    said = os.read(reader, 200).decode()
    os.close(reader)
    status = os.waitpid(pid, 0)[1]
    return said or f"ended with status {{status}}"

if __name__ == "__main__":
    print(json.dumps(try_all(json.load(sys.stdin))))
"""

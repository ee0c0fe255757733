"""The filter of system calls under which a step's program runs: what would go around Landlock's rules is refused.

A program of classic BPF (seccomp(2)), made here as bytes and given to the kernel by the supervisor. It refuses
with an error and never kills: a program that tries a new way and takes the old one if there is none goes on.
"""

from __future__ import annotations

import errno
import platform
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_LOAD, _AND, _RETURN = 0x20, 0x54, 0x06  # BPF_LD | BPF_W | BPF_ABS, BPF_ALU | BPF_AND | BPF_K, BPF_RET | BPF_K
_EQUAL, _AT_LEAST, _ANY_BIT = 0x15, 0x35, 0x45  # BPF_JMP | BPF_K with BPF_JEQ, BPF_JGE, BPF_JSET
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000  # SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO
_X32 = 0x40000000
"""x86_64: numbers from here on are another set of calls, which reads its arguments in another way."""

_MSG_FASTOPEN = 0x20000000
_UNIX, _INET, _INET6, _NETLINK = 1, 2, 10, 16
_STREAM, _DATAGRAM, _TYPE = 1, 2, 0xF
_STREAM_PROTOCOLS = (0, 6)  # the default, TCP: MPTCP, SCTP and SMC connect past rules for TCP
_DATAGRAM_PROTOCOLS = (0, 1, 17, 58)  # the default, ICMP echo, UDP, ICMPv6 echo


@dataclass(frozen=True, slots=True)
class Machine:
    """An architecture: its name for audit(7), and its numbers. `refused` are errors by number of the call."""

    audit: int
    socket: int
    flags: Mapping[int, int]
    """Calls that send, and which of their arguments holds the flags."""
    refused: Mapping[int, int]


_GONE, _FORBIDDEN = errno.ENOSYS, errno.EPERM


def _refused(absent: Sequence[int], forbidden: Sequence[int]) -> dict[int, int]:
    return {**dict.fromkeys(absent, _GONE), **dict.fromkeys(forbidden, _FORBIDDEN)}


MACHINES: Mapping[str, Machine] = {
    # absent: io_uring, userfaultfd, bpf, perf_event_open, inotify, fanotify
    # forbidden: keyrings; ptrace, process_vm_readv and _writev, pidfd_getfd; shared memory, semaphores and message
    # queues of System V, mq_open; modules of the kernel, kexec, I/O ports
    "x86_64": Machine(
        audit=0xC000003E,
        socket=41,
        flags={44: 3, 46: 2, 307: 3},
        refused=_refused(
            absent=(425, 426, 427, 323, 321, 298, 253, 294, 300),
            forbidden=(
                *(248, 249, 250, 101, 310, 311, 438),
                *(29, 30, 31, 67, 64, 65, 66, 220, 68, 69, 70, 71, 240),
                *(175, 313, 176, 246, 320, 172, 173),
            ),
        ),
    ),
    "aarch64": Machine(
        audit=0xC00000B7,
        socket=198,
        flags={206: 3, 211: 2, 269: 3},
        refused=_refused(
            absent=(425, 426, 427, 282, 280, 241, 26, 262),
            forbidden=(
                *(217, 218, 219, 117, 270, 271, 438),
                *(194, 195, 196, 197, 190, 191, 192, 193, 186, 187, 188, 189, 180),
                *(105, 273, 106, 104, 294),
            ),
        ),
    ),
}


def program(machine: Machine | None = None) -> bytes:
    """The filter for this machine, or another one: `struct sock_filter`, one after another."""
    machine = machine or MACHINES[platform.machine()]
    code = [
        _step(_LOAD, _ARCHITECTURE),
        _step(_EQUAL, machine.audit, 1, 0),
        _refusal(_GONE),
        _step(_LOAD, _NUMBER),
        _step(_AT_LEAST, _X32, 0, 1),
        _refusal(_GONE),
    ]
    for number, error in machine.refused.items():
        code += [_step(_EQUAL, number, 0, 1), _refusal(error)]
    for number, argument in machine.flags.items():
        code += _where(
            number,
            [_step(_LOAD, _argument(argument)), _step(_ANY_BIT, _MSG_FASTOPEN, 0, 1), _refusal(errno.EOPNOTSUPP)],
        )
    code += _where(machine.socket, _socket())
    return b"".join([*code, _step(_RETURN, _ALLOW)])


def _socket() -> list[bytes]:
    """Only the families, types and protocols that programs need: with another one data can leave in another way."""
    return [
        _step(_LOAD, _argument(0)),
        *_if_equal(_UNIX, [_step(_RETURN, _ALLOW)]),
        *_if_equal(_NETLINK, [_step(_RETURN, _ALLOW)]),  # addresses and routes, for getaddrinfo(3)
        _step(_EQUAL, _INET, 2, 0),
        _step(_EQUAL, _INET6, 1, 0),
        _refusal(errno.EAFNOSUPPORT),
        _step(_LOAD, _argument(1)),
        _step(_AND, _TYPE),
        *_if_equal(_STREAM, _protocols(_STREAM_PROTOCOLS)),
        *_if_equal(_DATAGRAM, _protocols(_DATAGRAM_PROTOCOLS)),
        _refusal(_FORBIDDEN),
    ]


def _protocols(allowed: Sequence[int]) -> list[bytes]:
    code = [_step(_LOAD, _argument(2))]
    for protocol in allowed:
        code += _if_equal(protocol, [_step(_RETURN, _ALLOW)])
    return [*code, _refusal(errno.EPROTONOSUPPORT)]


def _where(number: int, then: list[bytes]) -> list[bytes]:
    """Where this is the call: `then`, and if that decides nothing it is allowed. The number is loaded before it."""
    return _if_equal(number, [*then, _step(_RETURN, _ALLOW)])


def _if_equal(value: int, then: list[bytes]) -> list[bytes]:
    return [_step(_EQUAL, value, 0, len(then)), *then]


def _argument(index: int) -> int:
    """The lower half of an argument; both architectures are little-endian, and all of these are `int`."""
    return _ARGUMENTS + 8 * index


def _refusal(error: int) -> bytes:
    return _step(_RETURN, _REFUSE | error)


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)

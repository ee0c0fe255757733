"""The filter of system calls, carried out as the kernel does, also for machines that no test runs on."""

from __future__ import annotations

import errno
import struct

import pytest

from orchestrator.actions.process.seccomp import MACHINES, program

ALLOW, REFUSE = 0x7FFF0000, 0x00050000
I386, ARM = 0x40000003, 0x40000028
CLOEXEC, NONBLOCK = 0o2000000, 0o4000


def answer(machine: str, number: int, *arguments: int, audit: int | None = None) -> int:
    """The errno that a call gets, 0 if it is allowed: classic BPF (seccomp(2), linux/bpf_common.h)."""
    code = program(MACHINES[machine])
    data = struct.pack("=iIQ6Q", number, audit or MACHINES[machine].audit, 0, *(*arguments, *[0] * 6)[:6])
    accumulator, at = 0, 0
    while True:
        what, if_true, if_false, value = struct.unpack_from("=HBBI", code, at * 8)
        at += 1
        if what == 0x20:
            (accumulator,) = struct.unpack_from("=I", data, value)
        elif what == 0x54:
            accumulator &= value
        elif what == 0x06:
            assert value == ALLOW or value & ~0xFFFF == REFUSE
            return 0 if value == ALLOW else value & 0xFFFF
        else:
            holds = {0x15: accumulator == value, 0x35: accumulator >= value, 0x45: bool(accumulator & value)}[what]
            at += if_true if holds else if_false


NUMBERS = {
    "x86_64": {"socket": 41, "sendto": 44, "sendmsg": 46, "sendmmsg": 307, "openat": 257, "execve": 59, "futex": 202},
    "aarch64": {
        "socket": 198,
        "sendto": 206,
        "sendmsg": 211,
        "sendmmsg": 269,
        "openat": 56,
        "execve": 221,
        "futex": 98,
    },
}
REFUSED = {
    "x86_64": {"ptrace": 101, "shmget": 29, "add_key": 248, "process_vm_readv": 310, "init_module": 175},
    "aarch64": {"ptrace": 117, "shmget": 194, "add_key": 217, "process_vm_readv": 270, "init_module": 105},
}
ABSENT = {
    "x86_64": {"io_uring_setup": 425, "bpf": 321, "userfaultfd": 323, "perf_event_open": 298, "inotify_init1": 294},
    "aarch64": {"io_uring_setup": 425, "bpf": 280, "userfaultfd": 282, "perf_event_open": 241, "inotify_init1": 26},
}
on_each = pytest.mark.parametrize("machine", MACHINES)


@on_each
def test_what_programs_do_is_allowed(machine: str) -> None:
    numbers = NUMBERS[machine]
    assert [answer(machine, numbers[name]) for name in ("openat", "execve", "futex")] == [0, 0, 0]


@on_each
def test_what_goes_around_the_rules_is_refused_or_absent(machine: str) -> None:
    assert {name: answer(machine, number) for name, number in REFUSED[machine].items()} == dict.fromkeys(
        REFUSED[machine], errno.EPERM
    )
    assert {name: answer(machine, number) for name, number in ABSENT[machine].items()} == dict.fromkeys(
        ABSENT[machine], errno.ENOSYS
    )


@on_each
@pytest.mark.parametrize(("name", "place"), [("sendto", 3), ("sendmsg", 2), ("sendmmsg", 3)])
def test_sending_may_not_connect_whatever_else_its_flags_say(machine: str, name: str, place: int) -> None:
    def sending(flags: int) -> int:
        arguments = [3, 0, 0, 0]
        arguments[place] = flags
        return answer(machine, NUMBERS[machine][name], *arguments)

    assert sending(0) == sending(0x4000) == 0
    assert sending(0x20000000) == sending(0x20004040) == errno.EOPNOTSUPP
    assert sending(0xFFFFFFFF_20000000) == errno.EOPNOTSUPP, "the kernel takes the lower half of an int"


@on_each
@pytest.mark.parametrize(
    ("family", "kind", "protocol", "expected"),
    [
        (1, 1, 0, 0),
        (1, 5 | CLOEXEC, 0, 0),
        (2, 1 | CLOEXEC | NONBLOCK, 0, 0),
        (2, 1, 6, 0),
        (10, 1, 6, 0),
        (10, 2 | CLOEXEC, 17, 0),
        (2, 2, 1, 0),
        (16, 3 | CLOEXEC, 0, 0),
        (2, 1, 262, errno.EPROTONOSUPPORT),
        (10, 1 | NONBLOCK, 262, errno.EPROTONOSUPPORT),
        (2, 1, 132, errno.EPROTONOSUPPORT),
        (10, 1, 256, errno.EPROTONOSUPPORT),
        (2, 5, 132, errno.EPERM),
        (2, 3, 6, errno.EPERM),
        (10, 3 | CLOEXEC, 255, errno.EPERM),
        (17, 3, 0, errno.EAFNOSUPPORT),
        (38, 5, 0, errno.EAFNOSUPPORT),
        (40, 1, 0, errno.EAFNOSUPPORT),
        (43, 1, 0, errno.EAFNOSUPPORT),
        (0, 1, 0, errno.EAFNOSUPPORT),
    ],
)
def test_sockets_are_those_that_the_rules_for_ports_know(
    machine: str, family: int, kind: int, protocol: int, expected: int
) -> None:
    assert answer(machine, NUMBERS[machine]["socket"], family, kind, protocol) == expected


@on_each
def test_other_sets_of_calls_are_absent(machine: str) -> None:
    """Their numbers mean other calls: 32-bit ones on the same machine, and x32, which has the same architecture."""
    for audit in (I386, ARM):
        assert answer(machine, NUMBERS[machine]["openat"], audit=audit) == errno.ENOSYS
    assert answer(machine, 0x40000000 | NUMBERS[machine]["sendto"]) == errno.ENOSYS
    assert answer(machine, -1) == errno.ENOSYS


def test_the_filter_is_one_that_a_kernel_takes() -> None:
    """At most BPF_MAXINSNS instructions, and no jump beyond the end: `answer` would have raised."""
    assert all(len(program(machine)) // 8 < 4096 for machine in MACHINES.values())

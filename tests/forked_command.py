"""`orchestrator WORDS` as a program that others may start, though the process that runs it is one of the fork server's.

It hands on its standard streams, its environment and its folder, passes signals on, and ends as that process does. Only
SIGKILL is not passed on: who sends that has to be told of the process itself (`ForkServer.start`). Started with
`python -I -S`, so that it is there in a fraction of the time that the command itself takes.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import sys
from contextlib import suppress


def main(address: str, words: list[str]) -> None:
    ended, ending = os.pipe()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as asking:
        asking.connect(address)
        asked = {"words": words, "environment": dict(os.environ), "folder": os.getcwd(), "seconds": 0}
        socket.send_fds(asking, [json.dumps(asked).encode()], [0, 1, 2, ending])
        pid = int(asking.recv(20))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _frame: os.kill(pid, number))
    for descriptor in (ending, 0, 1, 2):  # they are that process's alone: who reads or writes there sees when it ends
        os.close(descriptor)
    code = os.waitstatus_to_exitcode(struct.unpack("i", os.read(ended, 4))[0])
    if code < 0:
        with suppress(OSError):  # of SIGKILL, which nobody catches
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])

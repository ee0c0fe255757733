"""What a process that holds credentials keeps to itself."""

import ctypes
import os
import resource

from orchestrator.hardening import keep_memory_private

_PR_GET_DUMPABLE = 3


def test_no_core_file_is_written_and_nobody_else_reads_the_memory() -> None:
    child = os.fork()
    if child == 0:
        keep_memory_private()
        private = ctypes.CDLL(None).prctl(_PR_GET_DUMPABLE) == 0 and resource.getrlimit(resource.RLIMIT_CORE) == (0, 0)
        os._exit(0 if private else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

"""The first and the last lines of the process `orchestrator`: what a signal does before and after a command works.

Nothing is held in either phase, so a signal ends the process at once: with the code of the signal while modules
are imported (an exception would come out as a traceback of whichever import it met), and with the command's own
code once that has been decided. Importing this module installs the first of these: it is imported by nothing else.

Whatever the command, its memory is private before anything of it is loaded: an administrator's secrets are in the
environment from the first moment.
"""

import sys
from _signal import SIG_IGN, SIGHUP, SIGINT, SIGTERM, getsignal, signal  # type: ignore[import-not-found]  # `signal` without its enums: quick
from os import _exit


def _end_with_the_signals_code(number: int, frame: object) -> None:
    _exit(128 + number)


_HEEDED = [number for number in (SIGINT, SIGTERM, SIGHUP) if number != SIGHUP or getsignal(number) != SIG_IGN]
for _number in _HEEDED:
    signal(_number, _end_with_the_signals_code)


def run() -> None:
    """Run the command line and end the process."""
    from orchestrator.hardening import keep_memory_private

    keep_memory_private()
    from orchestrator.cli.main import main

    code = main()
    for number in _HEEDED:
        signal(number, lambda number, frame: _exit(code))
    sys.exit(code)

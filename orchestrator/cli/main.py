"""The command `orchestrator`. Importing this must stay cheap: what a command needs is imported inside it."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Annotated

import typer
from typer.main import get_command

from orchestrator.cli import failures, options
from orchestrator.cli.display import streams
from orchestrator.cli.interruption import interruptible, received
from orchestrator.cli.value_names import named
from orchestrator.environment import NOT_READ, PREFIX, REMOVED, unknown_variables
from orchestrator.errors import ExitCode, OrchestratorError
from orchestrator.version import __version__

_EPILOG = """\
\b
Exit codes:
  0         done, and every credential confirmed gone
  2         usage, or the workflow is not valid: nothing ran
  3         refused by a policy or by Vault
  4         a step failed
  5         a service did not answer (Vault, a database, the ledger)
  6         done, but a revocation is not confirmed yet
  7         the rest waits for somebody's approval; nothing is open meanwhile
  130, 143  interrupted by SIGINT (or runs cancel), SIGTERM, after revoking
  129       its terminal was closed (SIGHUP); after revoking
  1         a defect of the orchestrator
"""

BROKEN_PIPE = 141
"""What a shell calls a program that SIGPIPE ended: the reader went away."""

COMMANDS: Mapping[str, tuple[str, ...]] = {
    "stack.init": ("init",),
    "workflow": ("validate", "plan", "schema"),
    "run": ("run",),
    "prove": ("prove",),
    "services.serve": ("serve", "worker"),
    "services.mcp": ("mcp",),
    "grants": ("grants",),
    "policy": ("policy",),
    "services.schedules": ("schedules",),
    "services.queue": ("queue", "workers"),
    "approvals": ("approvals",),
    "agents": ("agents",),
    "issuers": ("issuers",),
    "runs": ("runs",),
    "tasks": ("tasks",),
    "leases": ("leases",),
    "evidence.history": ("history",),
    "provision": ("provision",),
    "doctor": ("doctor",),
    "stack.demo": ("demo",),
    "stack.dev": ("dev",),
}
"""The modules of `orchestrator.cli.commands` in the order of the help, each with the commands that it registers."""


def command_line(word: str = "") -> typer.Typer:
    """The program as Typer has it: with the commands of one module where `word` is one of them, else with all.

    Nobody but the help needs all of them, and making them takes as long as a list of leases.
    """
    app = typer.Typer(
        name="orchestrator",
        help="Run workflows in which no step owns a standing secret: just-in-time credentials from Vault, "
        "for one step only, revoked when it ends.",
        epilog=_EPILOG,
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_program)
    for module in [module for module, words in COMMANDS.items() if word in words] or COMMANDS:
        import_module(f"orchestrator.cli.commands.{module}").register(app)
    return app


def _version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"orchestrator {__version__}\n")
        raise typer.Exit


def _program(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and answer its exit code. Errors are reported here, and only here.

    A signal interrupts it; what is held is given back first, and the code is that of the signal.
    """
    try:
        with interruptible():
            code = _answer(arguments)
    except KeyboardInterrupt:
        code = int(ExitCode.INTERRUPTED)
    return (received() or code) if code else code


def _answer(arguments: Sequence[str] | None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in given
    streams.prepare()
    _say_what_is_not_read()
    try:
        command = named(get_command(command_line(given[0] if given else "")))
        answer = command(args=given, prog_name="orchestrator", standalone_mode=False)
        return _written(answer if isinstance(answer, int) else 0)
    except OrchestratorError as error:
        return failures.expected(error, as_json=as_json)
    except typer.TyperException as error:
        return failures.misused(error, as_json=as_json)
    except (typer.Abort, KeyboardInterrupt):
        return int(ExitCode.INTERRUPTED)
    except BrokenPipeError:
        return _reader_went_away()
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):
            return _reader_went_away()  # Typer ends the process when it meets one
        raise
    except ModuleNotFoundError as error:
        if (extra := options.extra_of(error, given)) is None:
            return failures.unexpected(error, as_json=as_json)
        missing = options.missing_extra(f"`orchestrator {given[0]}`", error, extra)
        return failures.expected(missing, as_json=as_json)
    except OSError as error:
        if error.errno not in streams.NOT_WRITTEN:
            return failures.unexpected(error, as_json=as_json)
        return _not_written(error)
    except Exception as error:  # noqa: BLE001 -- reported as the defect it is, and the process ends
        if received() is not None:  # a library has made another error of the interruption
            return int(ExitCode.INTERRUPTED)
        return failures.unexpected(error, as_json=as_json)


def _written(code: int) -> int:
    """The code of a command whose output is written to the end; of one that failed its own code in any case."""
    try:
        sys.stdout.flush()
    except OSError:
        if not code:
            raise
        streams.write_nowhere(sys.stdout)
    return code


def _not_written(error: OSError) -> int:
    failures.say(f"what was to be said cannot be written: {error.strerror}", "is the disk full?")
    streams.write_nowhere(sys.stdout)
    return int(ExitCode.UNREACHABLE)


def _say_what_is_not_read() -> None:
    """Who misspells a variable, or has settings in the working directory without naming them, believes them read."""
    for name, near in unknown_variables(sorted(os.environ)):
        meant = f"did you mean {near}?" if near else REMOVED.get(name.upper(), "")
        failures.note(f"{name} is no setting of the orchestrator: nothing reads it{meant and f'; {meant}'}")
    if os.path.isfile(NOT_READ) and not os.environ.get(f"{PREFIX}CONFIG"):
        failures.note(f"{NOT_READ} in this folder is not read: only ORCHESTRATOR_CONFIG says which file is")


def _reader_went_away() -> int:
    streams.write_nowhere(sys.stdout)
    return BROKEN_PIPE

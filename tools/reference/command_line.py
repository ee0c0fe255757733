"""The command line: every command with its arguments and options, from Typer."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from typer.main import get_command

from orchestrator.cli.main import command_line
from orchestrator.cli.value_names import named
from tools.reference.markdown import code, page, prose, table

_HEAD = """\
# The command line

What `orchestrator COMMAND --help` says. `--json` is there where a script reads; the [exit codes](exit-codes.md) are the
same for all commands.
"""


def text() -> str:
    """The page."""
    root: Any = named(get_command(command_line()))
    return page(_HEAD, *_commands(root, "orchestrator"))


def _commands(command: Any, name: str) -> Iterator[str]:
    inner = getattr(command, "commands", None)
    if inner is None:
        yield _command(command, name)
        return
    for each, sub in inner.items():
        if not sub.hidden:
            if getattr(sub, "commands", None):
                yield page(f"## {name} {each}", prose(sub.help or ""))
            yield from _commands(sub, f"{name} {each}")


def _command(command: Any, name: str) -> str:
    given = [each for each in command.params if not getattr(each, "hidden", False)]
    arguments = [each for each in given if each.param_type_name == "argument"]
    options = [each for each in given if each.param_type_name == "option"]
    level = "##" if name.count(" ") == 1 else "###"
    usage = " ".join([name, *map(_argument, arguments), *(["[OPTIONS]"] if options else [])])
    return page(
        f"{level} {name}",
        code(usage),
        "\n\n".join(prose(part) for part in re.split(r"\n\s*\n", _dedented(command.help or ""))),
        table(("argument", "meaning"), [(code(_argument(each)), prose(each.help or "")) for each in arguments]),
        table(("option", "value", "default", "meaning"), [_option(each) for each in options]),
    )


def _argument(argument: Any) -> str:
    """Its name, in brackets where it may be left out."""
    return argument.metavar if argument.required else f"[{argument.metavar}]"


def _option(option: Any) -> tuple[str, ...]:
    names = ", ".join(code(each) for each in (*option.opts, *option.secondary_opts))
    return names, _value(option), _default(option), prose(option.help or "")


def _value(option: Any) -> str:
    if option.is_flag:
        return ""
    return code(option.metavar) + (", repeatable" if option.multiple else "")


def _default(option: Any) -> str:
    if option.is_flag or option.default in (None, "", (), []) or callable(option.default):
        return "required" if option.required else ""
    value = getattr(option.default, "value", option.default)
    return code(str(value))


def _dedented(words: str) -> str:
    return "\n".join(line.strip() for line in words.replace("\b", "").splitlines())

"""What the help calls values: `NUMBER`, `TEXT`, `FILE`, and not by the types of a programming language."""

from __future__ import annotations

from functools import partial
from typing import Any

_WORDS = {"str": "TEXT", "int": "NUMBER", "float": "NUMBER", "Path": "FILE", "path": "FILE"}


def named(command: Any) -> Any:
    """The command as Typer has built it, with a name for each value that it and the commands below it take."""
    for each in getattr(command, "commands", {}).values():
        named(each)
    for parameter in command.params:
        if parameter.param_type_name == "argument":
            parameter.metavar = _argument(parameter)
            parameter.display_type_rich = _no_type  # the name says what it is
            parameter.get_usage_pieces = partial(_usage, parameter)
        elif parameter.metavar is None and not parameter.is_flag:
            parameter.metavar = _name_of(parameter.type_descriptor)
    return command


def _argument(argument: Any) -> str:
    name = argument.display_name_raw.strip("[]").removesuffix("...")
    return name if argument.nargs == 1 else f"{name}..."


def _usage(argument: Any, ctx: Any) -> list[str]:
    """Without braces around what has to be given."""
    return [argument.metavar if argument.required else f"[{argument.metavar}]"]


def _no_type(ctx: Any) -> None:
    return None


def _name_of(kind: Any) -> str:
    if kind.is_choice:
        return "|".join(str(getattr(each, "value", each)) for each in kind.choices)
    (of_one,) = kind.annotation.__args__ if kind.is_list else (kind.annotation,)
    return _WORDS.get(of_one.__name__, "VALUE")

"""Options that several commands share, and reading what they were given."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.lookup import completion
from orchestrator.errors import UsageError
from orchestrator.jsontypes import JsonObject, JsonValue

if TYPE_CHECKING:
    from orchestrator.workflow.models.workflow import Workflow

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Limit = Annotated[int, typer.Option(min=1, max=100_000, help="The most rows to show, newest first.")]
_TIME = "2026-03-02, 2026-03-02T12:00+07:00, or how long ago: 2h, 3d."
Since = Annotated[str | None, typer.Option(metavar="TIME", help=f"Only from then on: {_TIME}")]
Until = Annotated[str | None, typer.Option(metavar="TIME", help="Only from before then, written as with --since.")]
RunId = Annotated[
    str,
    typer.Argument(metavar="RUN", help="The id of the run, or the beginning of it.", autocompletion=completion.run_ids),
]
OfRun = Annotated[str | None, typer.Option(help="Only of this run.", autocompletion=completion.run_ids)]
OfTask = Annotated[str | None, typer.Option(help="Only of the calls in this task.", autocompletion=completion.task_ids)]
OfWorkflow = Annotated[
    str | None, typer.Option(help="Only of this workflow.", autocompletion=completion.workflow_names)
]
WorkflowFile = Annotated[Path, typer.Argument(metavar="FILE", help="The workflow, a YAML file.")]
Grace = Annotated[
    float | None,
    typer.Option(
        "--grace",
        metavar="SECONDS",
        min=0.1,
        help="How long revoking may take when a step ends or a signal comes. Default: ORCHESTRATOR_GRACE, or 30.",
    ),
]
Reason = Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; policies may want to know. Is recorded.")]
NoWait = Annotated[
    bool, typer.Option("--no-wait", help="Where somebody has to agree first, end with 7 instead of waiting.")
]
Follow = Annotated[
    bool, typer.Option("--follow", help="Show what programs of steps write, as they do, without secrets.")
]
Inputs = Annotated[
    list[str] | None, typer.Option("--input", "-i", metavar="NAME=VALUE", help="One input; may be given again.")
]
SecretInputsFile = Annotated[
    Path | None, typer.Option("--inputs", metavar="FILE", help="A JSON or YAML file with the secret inputs.")
]
InputsFile = Annotated[
    Path | None, typer.Option("--inputs", metavar="FILE", help="A JSON or YAML file with inputs; --input wins over it.")
]


def inputs_from(pairs: Sequence[str] | None, file: Path | None) -> dict[str, JsonValue]:
    """The inputs that were given, by name; values of `--input` are texts. Raises UsageError, showing no value."""
    given: dict[str, JsonValue] = dict(_from_file(file)) if file else {}
    for pair in pairs or ():
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise UsageError("an input is written NAME=VALUE", hint="for example --input limit=5")
        given[name] = value
    return given


def _from_file(file: Path) -> JsonObject:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        content = YAML(typ="safe", pure=True).load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise UsageError(f"{file}: the inputs cannot be read: {reason}") from None
    except YAMLError:
        raise UsageError(f"{file}: is neither JSON nor YAML") from None  # the cause quotes the file
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise UsageError(f"{file}: inputs are names with values", hint="for example: limit: 5")
    return content


def chosen_run_id(run_id: str | None) -> str | None:
    """What somebody wants a run to be called. Raises UsageError for what cannot be an id."""
    from orchestrator.ledger import ids

    return None if run_id is None else ids.chosen_run_id(run_id, "--run-id")


_STACK = ("dev", "demo")
"""Commands for which one extra brings all."""


def extra_of(error: ModuleNotFoundError, given: Sequence[str]) -> str | None:
    """The extra that a command lacks, or None where no extra brings what is missing."""
    from orchestrator.doctor.machine import PACKAGES

    missing = (error.name or "").partition(".")[0]
    bringing = [extra for extra, brings in PACKAGES.items() if missing in {each.partition(".")[0] for each in brings}]
    if "dev-stack" in bringing and given[:1] and given[0] in _STACK:
        return "dev-stack"
    return bringing[0] if bringing else None


def missing_extra(what: str, error: ImportError, extra: str) -> UsageError:
    """What is said where a package is not installed that an extra brings."""
    return UsageError(f"{what} needs the package {error.name}", hint=f"pip install 'credential-orchestrator[{extra}]'")


def refuse_secrets_among_arguments(workflow: Workflow, pairs: Sequence[str] | None) -> None:
    """A secret input may not be an argument: every user of the machine can read those. Raises UsageError."""
    for name in (pair.partition("=")[0] for pair in pairs or ()):
        declared = workflow.inputs.get(name)
        if declared is not None and declared.secret:
            raise UsageError(
                f"the input `{name}` is secret, and arguments can be read by everybody on this machine",
                hint="put it into a file that only you can read, and give that with --inputs FILE",
            )

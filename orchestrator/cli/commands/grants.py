"""`orchestrator grants infer`: the smallest grants under which the SQL of a workflow runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli import options
from orchestrator.errors import ExitCode, UsageError
from orchestrator.jsontypes import counted

if TYPE_CHECKING:
    from rich.console import Console

    from orchestrator.grants.privileges import Privilege
    from orchestrator.inference.live import Inferred
    from orchestrator.inference.workflows import Catalogs, StepNeeds
    from orchestrator.workflow.loader import LoadedWorkflow
    from orchestrator.workflow.problems import Problem

app = typer.Typer(
    help="The smallest grants, by the database's own analysis.", no_args_is_help=True, rich_markup_mode=None
)


def register(program: typer.Typer) -> None:
    """Add the group of commands."""
    program.add_typer(app, name="grants")


@app.callback()
def _grants() -> None:
    pass


def _steps(context: typer.Context, incomplete: str) -> list[str]:
    """For completion: the steps and tools of the workflow that is named already, nothing where it cannot be read."""
    from orchestrator.actions.catalog import catalog
    from orchestrator.errors import OrchestratorError
    from orchestrator.workflow.loader import load

    file = context.params.get("file") or next(iter(context.args), None)  # not parsed yet behind `--step`
    if file is None:
        return []
    try:
        return [name for name in load(Path(file), actions=catalog).workflow.parts if name.startswith(incomplete)]
    except OrchestratorError:
        return []


def _connections(incomplete: str) -> list[str]:
    """For completion: the databases of which a login is known."""
    from orchestrator.errors import OrchestratorError
    from orchestrator.settings import load_settings

    try:
        return [name for name in load_settings().catalog_databases if name.startswith(incomplete)]
    except OrchestratorError:
        return []


@app.command("infer")
def infer(
    file: Annotated[Path | None, typer.Argument(metavar="[FILE]", help="The workflow, a YAML file.")] = None,
    sql: Annotated[str | None, typer.Option("--sql", metavar="SQL", help="This SQL instead of a workflow.")] = None,
    parameters: Annotated[
        bool, typer.Option("--parameters", help="With --sql: psycopg's placeholders are in it, as in `%(name)s`.")
    ] = False,
    connection: Annotated[
        str | None,
        typer.Option(
            "--connection",
            metavar="NAME",
            help="The database: of --sql, and of steps without a grant.",
            autocompletion=_connections,
        ),
    ] = None,
    step: Annotated[
        list[str] | None,
        typer.Option("--step", "-s", help="Only this step; may be given again.", autocompletion=_steps),
    ] = None,
    write: Annotated[bool, typer.Option("--write", help="Write the privileges into the file.")] = False,
    replace_role: Annotated[
        bool, typer.Option("--replace-role", help="With --write: also instead of a `role` that is maintained by hand.")
    ] = False,
    check: Annotated[bool, typer.Option("--check", help="Exit with 4 where a grant is not what is inferred.")] = False,
    as_json: options.Json = False,
) -> None:
    """Show the smallest grant under which each step's SQL runs, and how it differs from the declared one.

    The SQL is prepared on the real database, never executed, by a login that may connect and no more:
    ORCHESTRATOR_CATALOG_DATABASES__NAME. The administrator's login is never used for it.
    """
    if (file is None) == (sql is None):
        raise UsageError("name a workflow FILE, or give --sql", hint="see `orchestrator grants infer --help`")
    if sql is not None:
        if step or write or check or replace_role:
            raise UsageError("--step, --write, --replace-role and --check are about a workflow, not about --sql")
        if connection is None:
            raise UsageError("--sql needs --connection: the database that is asked")
        _of_sql(sql, connection, placeholders=parameters, as_json=as_json)
    elif file is not None:
        if parameters:
            raise UsageError("--parameters is for --sql; a workflow says itself which steps have parameters")
        if write and check:
            raise UsageError("either --write or --check")
        if replace_role and not write:
            raise UsageError("--replace-role says what --write may do")
        needs, problems = _of_workflow(
            file, tuple(step or ()), connection, write=write, replace_role=replace_role, as_json=as_json
        )
        if problems:
            from orchestrator.workflow.problems import InvalidWorkflow

            raise InvalidWorkflow(problems)
        if check and any(need.differs for need in needs):
            raise typer.Exit(int(ExitCode.STEP_FAILED))


def _of_sql(sql: str, connection: str, *, placeholders: bool, as_json: bool) -> None:
    with _catalogs() as catalogs:
        inferred = catalogs.of(connection).of(sql, placeholders=placeholders)
    if as_json:
        from orchestrator.cli.display.json_output import print_json

        print_json(
            {
                "connection": connection,
                "complete": inferred.complete,
                "privileges": [privilege.as_json() for privilege in inferred.privileges],
                "notes": list(inferred.notes),
                "remarks": list(inferred.remarks),
            }
        )
    else:
        show_inferred(inferred)


def _of_workflow(
    file: Path, steps: tuple[str, ...], connection: str | None, *, write: bool, replace_role: bool, as_json: bool
) -> tuple[list[StepNeeds], list[Problem]]:
    from orchestrator.actions.catalog import catalog
    from orchestrator.inference.workflows import infer_workflow
    from orchestrator.workflow.loader import load

    loaded = load(file, actions=catalog)
    with _asking(len(steps or loaded.workflow.parts)), _catalogs() as catalogs:
        needs, problems = infer_workflow(loaded, catalogs, steps=steps, connection=connection)
    written = _write(file, loaded, needs, replace_role=replace_role) if write and not problems else []
    if as_json:
        from orchestrator.cli.display.json_output import print_json

        print_json(
            {
                "workflow": loaded.workflow.name,
                "steps": [{**need.as_json(), "written": need in written} for need in needs],
            }
        )
    elif needs or not problems:
        show(needs, written=written, writing=write)
    return needs, problems


def _asking(steps: int) -> AbstractContextManager[object]:
    """Says what goes on, to whoever looks: many steps take seconds."""
    from orchestrator.cli.display.terminal import console

    if not sys.stderr.isatty():
        return nullcontext()
    return console(sys.stderr).status(f"asking the database about {counted(steps, 'step')}")


def _write(file: Path, loaded: LoadedWorkflow, needs: Sequence[StepNeeds], *, replace_role: bool) -> list[StepNeeds]:
    from orchestrator.actions.catalog import catalog
    from orchestrator.inference.replacing import replace_text
    from orchestrator.inference.rewrite import rewritten, to_write

    chosen = to_write(needs, replace_roles=replace_role)
    if chosen:
        replace_text(file, loaded.text, rewritten(loaded, chosen, actions=catalog).text)
    return chosen


def _catalogs() -> AbstractContextManager[Catalogs]:
    """By the logins for it alone. Never an administrator's: the SQL is whoever's wrote the file."""
    from orchestrator.inference.workflows import open_catalogs
    from orchestrator.secret import Secret
    from orchestrator.settings import load_settings

    settings = load_settings()
    logins = {name: Secret(dsn.get_secret_value()) for name, dsn in settings.catalog_databases.items()}
    return open_catalogs(logins, settings.endpoints)


def show_inferred(inferred: Inferred, screen: Console | None = None) -> None:
    """Privileges to be pasted into a grant, and what is not known."""
    from orchestrator.cli.display.terminal import console

    screen = screen or console(sys.stdout)
    _show_privileges(screen, inferred.privileges, "")
    for note in inferred.notes:
        screen.print(f"note: {note}", style="yellow", soft_wrap=True)
    for remark in inferred.remarks:
        screen.print(f"remark: {remark}", style="cyan", soft_wrap=True)


def show(
    needs: Sequence[StepNeeds],
    *,
    written: Sequence[StepNeeds] = (),
    writing: bool = False,
    screen: Console | None = None,
) -> None:
    """Each step with the privileges to be pasted, the difference to what is declared, and what is not known."""
    from rich.text import Text

    from orchestrator.cli.display.terminal import console

    screen = screen or console(sys.stdout)
    for need in needs:
        done = need in written
        words, style = _state(need, done)
        head = Text.assemble((need.step, "bold"), f"  {need.action}, grant {need.grant} on {need.connection}: ")
        screen.print(head + Text(words, style=style), soft_wrap=True)
        _show_privileges(screen, need.found.wanted, "  ")
        compared = need.role is None and not need.added
        for mark, title, privileges in (
            ("+", "added" if done else "missing", need.found.missing if compared else ()),
            ("-", "taken out" if done else "not needed", need.found.superfluous if compared else ()),
        ):
            for privilege in privileges:
                line = f"  {mark} {title:<10}  {privilege.describe()}"
                screen.print(line, style={"+": "green", "-": "red"}[mark], soft_wrap=True)
        for note in need.found.notes:
            screen.print(f"  note: {note}", style="yellow", soft_wrap=True)
        for remark in need.found.remarks:
            screen.print(f"  remark: {remark}", style="cyan", soft_wrap=True)
    screen.print(_summary(needs, written, writing=writing), soft_wrap=True)


def _summary(needs: Sequence[StepNeeds], written: Sequence[StepNeeds], *, writing: bool) -> str:
    if not needs:
        return "no step runs SQL of the workflow"
    right = sum(need in written or (not need.differs and need.role is None) for need in needs)
    found = f"{right:,} of {counted(len(needs), 'grant')} {'is' if len(needs) == 1 else 'are'} as inferred"
    if writing:
        return f"{counted(len(written), 'grant')} written; {found}"
    return f"{found}; --write puts into the file what is" if any(need.differs for need in needs) else found


def _show_privileges(screen: Console, privileges: Sequence[Privilege], indent: str) -> None:
    from orchestrator.inference.yaml_text import lines

    if privileges:
        screen.print(f"{indent}privileges:")
        for line in lines(privileges):
            screen.print(f"{indent}  {line}", soft_wrap=True)


def _state(need: StepNeeds, written: bool) -> tuple[str, str]:
    if written:
        return "written", "green"
    if need.role is not None:
        return f"the role `{need.role}` is maintained by hand", "yellow"
    if need.added:
        return "no grant yet", "red"
    if need.differs:
        return "differs", "red"
    return ("as inferred", "green") if need.found.complete else ("as declared, which cannot be checked whole", "yellow")

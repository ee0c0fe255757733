"""`orchestrator agents`: who may call, as an admin declares it, and cutting an agent off."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli import options
from orchestrator.errors import ExitCode, UsageError
from orchestrator.jsontypes import counted
from orchestrator.ledger.states import TaskState

if TYPE_CHECKING:
    from datetime import datetime

    from orchestrator.agents.authentication import Caller
    from orchestrator.agents.declared import Agents
    from orchestrator.ledger.coordination.agents import Block
    from orchestrator.ledger.writing.store import Ledger

app = typer.Typer(help="Who may call, and cutting an agent off.", no_args_is_help=True, rich_markup_mode=None)


_MOST = 10_000


def register(program: typer.Typer) -> None:
    """Add the group of commands."""
    program.add_typer(app, name="agents")


AgentName = Annotated[str, typer.Argument(metavar="NAME", help="The agent's name.")]
AgentsFile = Annotated[Path, typer.Argument(metavar="FILE", help="Such as vault/agents.yaml.")]
TokenFile = Annotated[
    Path | None,
    typer.Option("--token-file", metavar="FILE", help="A token of an agent; `-` reads it from the standard input."),
]


@app.command("check")
def check(file: AgentsFile, token_file: TokenFile = None, as_json: options.Json = False) -> None:
    """Check a declaration of agents, and with --token-file say who would call with that token.

    Its issuer is asked for its keys then. The exit code is 3 where the token is of no agent.
    """
    from orchestrator.agents.declared import load_agents
    from orchestrator.cli import interruption
    from orchestrator.cli.display.json_output import print_json
    from orchestrator.cli.display.terminal import console

    declared = load_agents(file)
    caller = None
    if token_file is not None:
        token = _token(token_file)
        caller = interruption.run(lambda: _who(declared, file.parent, token))
    if as_json:
        print_json({"agents": {name: _json(declared, name) for name in declared.agents}, "caller": caller})
        return
    for name, agent in declared.agents.items():
        console().print(f"{name}  may open {', '.join(agent.may_open)}", markup=False, highlight=False)
        for identity in agent.identities:
            claims = " and ".join(f"{key} = {value}" for key, value in (identity.claims or {}).items())
            told = f"{identity.issuer}: {claims}" if identity.spiffe is None else f"certificate: {identity.spiffe}"
            console().print(f"  by {told}", markup=False, highlight=False)
    if caller is not None:
        for_whom = f", on behalf of {caller.on_behalf_of}" if caller.on_behalf_of else ""
        console().print(f"the token is of {caller.agent}, by {caller.issuer}{for_whom}", markup=False, highlight=False)


@app.command("list")
def list_agents(
    file: Annotated[Path | None, typer.Option(metavar="FILE", help="Also those that it declares.")] = None,
    as_json: options.Json = False,
) -> None:
    """List the agents that have tasks open or runs under way, and those that are cut off."""
    from orchestrator.cli.connect import open_store
    from orchestrator.cli.display.json_output import print_json
    from orchestrator.cli.display.listing import print_line, print_list
    from orchestrator.clock import SystemClock

    declared: set[str] = set()
    if file is not None:
        from orchestrator.agents.declared import load_agents

        declared = set(load_agents(file).agents)
    with open_store() as ledger:
        blocks = {each.agent: each for each in ledger.agents.blocks(now=SystemClock().now())}
        tasks = Counter(task.agent for task in ledger.tasks(state=TaskState.OPEN, limit=_MOST))
        runs = Counter(run.agent for run in ledger.under_way())
    names = sorted(declared | blocks.keys() | tasks.keys() | runs.keys())
    found = [Stands(name, tasks[name], runs[name], blocks.get(name)) for name in names]
    if as_json:
        print_json(found)
    elif not found:
        print_line("no agents")
    else:
        print_list(("AGENT", "OPEN TASKS", "UNDER WAY", "CUT OFF"), [_row(each) for each in found], fold=("CUT OFF",))


@app.command("show")
def show(name: AgentName, as_json: options.Json = False) -> None:
    """Show how an agent stands: its open tasks, what is under way, its open leases, and whether it is cut off."""
    from orchestrator.cli.connect import open_store
    from orchestrator.cli.display.json_output import print_json
    from orchestrator.cli.display.terminal import console, facts
    from orchestrator.clock import SystemClock
    from orchestrator.ledger.lease import OPEN
    from orchestrator.ledger.types import LeaseFilter

    with open_store() as ledger:
        block = _block_of(ledger, name, SystemClock().now())
        tasks = ledger.tasks(agent=name, state=TaskState.OPEN, limit=_MOST)
        under_way = ledger.under_way(name)
        leases = ledger.leases(LeaseFilter(agent=name, states=OPEN, limit=_MOST))
    if as_json:
        print_json({"agent": name, "cut_off": block, "tasks": tasks, "runs": under_way, "leases": leases})
        return
    rows = [
        ("agent", name),
        ("cut off", _block_words(block) or "no"),
        *(("task", f"{task.task_id}  {task.workflow}") for task in tasks),
        *(("under way", f"{run.run_id}  {run.workflow} {' '.join(run.steps)}  {run.state.value}") for run in under_way),
        *(("lease", f"{lease.lease_id}  {lease.step}.{lease.grant}  {lease.state.value}") for lease in leases),
    ]
    console().print(facts(rows))


@app.command("revoke")
def revoke(
    name: AgentName,
    lasting: Annotated[
        str | None, typer.Option("--for", metavar="DURATION", help="Such as 1h; without it, until it is restored.")
    ] = None,
    reason: Annotated[str, typer.Option(help="Why, for the record.")] = "",
    as_json: options.Json = False,
) -> None:
    """Cut an agent off, now and in all processes: its tasks and runs end, and what they hold is taken back.

    Whatever it tries from then on is refused. The exit code is 6 while something is not confirmed gone: then its
    processes, or recovery, go on with it, and the command may be repeated. What was said of the agent before, such as
    until when it is cut off, is replaced.
    """
    from datetime import timedelta

    from orchestrator.cli import failures, interruption
    from orchestrator.cli.commands.tasks import Left
    from orchestrator.cli.connect import open_store, operator
    from orchestrator.cli.display.json_output import print_json
    from orchestrator.cli.display.terminal import console, local
    from orchestrator.clock import SystemClock
    from orchestrator.grants.fields import parse_duration
    from orchestrator.tasks.closing import cut_off
    from orchestrator.tasks.reach import Reach

    clock, by = SystemClock(), operator()
    try:
        until = None if lasting is None else clock.now() + timedelta(seconds=parse_duration(lasting))
    except ValueError as error:
        raise UsageError(f"--for: {error}", hint="such as 90s, 15m or 1h30m") from None
    with open_store() as ledger:
        replaced = _block_of(ledger, name, clock.now())
        ledger.agents.block(name, until=until, by=by, reason=reason, now=clock.now())
        tasks = len(ledger.tasks(agent=name, state=TaskState.OPEN, limit=_MOST))
        runs = len(ledger.under_way(name))
        confirmed = interruption.run(lambda: cut_off(Reach.of_ledger(ledger, clock), name, by=by, reason=reason))
        left = Left() if confirmed else Left.of_agent(ledger, name)
        known = bool(tasks or runs or replaced) or _is_on_record(ledger, name)
        sessions = _sessions_left(ledger, name, clock.now())
    ended = {"tasks": tasks, "runs": max(0, runs - len(left.runs))}
    if as_json:
        print_json({"agent": name, "until": until, "ended": ended, "confirmed": confirmed, "left": left})
    else:
        told = f"{name} is cut off{f' until {local(until)}' if until else ''}"
        console().print(f"{told}: {_words(ended)} ended; {left}")
    if replaced is not None:
        failures.note(f"it was cut off before, {_block_words(replaced)}; that is replaced")
    elif not known:
        failures.note(f"nothing of an agent `{name}` is on record: is that its name?")
    for issuer, role in sessions:
        failures.note(
            f"a session of `{role}` at `{issuer}` that it was issued can still be used, if somebody kept it; "
            f"`orchestrator issuers deny FILE {issuer} {role} --agent {name}` ends it"
        )
    if not confirmed:
        raise typer.Exit(int(ExitCode.UNCONFIRMED))


@app.command("restore")
def restore(name: AgentName, as_json: options.Json = False) -> None:
    """Let an agent in again that was cut off. What was ended stays so."""
    from orchestrator.cli.connect import open_store
    from orchestrator.cli.display.json_output import print_json
    from orchestrator.cli.display.terminal import console

    with open_store() as ledger:
        was = ledger.agents.restore(name)
    if as_json:
        print_json({"agent": name, "was_cut_off": was})
    else:
        said = "is let in again" if was else "was not cut off"
        console().print(f"{name} {said}", markup=False, highlight=False)


@dataclass(frozen=True, slots=True)
class Stands:
    """How an agent stands."""

    agent: str
    open_tasks: int
    under_way: int
    cut_off: Block | None


def _words(ended: Mapping[str, int]) -> str:
    """`1 task and 2 runs`."""
    return " and ".join(counted(count, what[:-1]) for what, count in ended.items())


def _block_of(ledger: Ledger, name: str, now: datetime) -> Block | None:
    return next((each for each in ledger.agents.blocks(now=now) if each.agent == name), None)


def _is_on_record(ledger: Ledger, name: str) -> bool:
    """Whether an agent of this name has ever opened a task, or held anything."""
    from orchestrator.ledger.types import LeaseFilter

    return bool(ledger.tasks(agent=name, limit=1) or ledger.leases(LeaseFilter(agent=name, limit=1)))


def _sessions_left(ledger: Ledger, name: str, now: datetime) -> list[tuple[str, str]]:
    """Of which AWS accounts and roles the agent was issued sessions that nothing but their time ends."""
    from datetime import timedelta

    from orchestrator.grants.aws.session_policy import LONGEST_SESSION
    from orchestrator.ledger.types import LeaseFilter

    since = now - timedelta(seconds=LONGEST_SESSION)
    issued = ledger.leases(LeaseFilter(agent=name, grant_kind="aws", since=since, limit=_MOST))
    left = [each.scope for each in issued if each.expires_at is not None and each.expires_at > now]
    return sorted({(str(scope.get("issuer")), str(scope.get("role"))) for scope in left})


def _row(stands: Stands) -> tuple[str, str, str, str]:
    return stands.agent, str(stands.open_tasks), str(stands.under_way), _block_words(stands.cut_off)


def _block_words(block: Block | None) -> str:
    from orchestrator.cli.display.terminal import local

    if block is None:
        return ""
    until = f"until {local(block.until)}" if block.until else "until it is restored"
    return f"{until}, by {block.by}" + (f": {block.reason}" if block.reason else "")


async def _who(declared: Agents, folder: Path, token: str) -> Caller:
    from orchestrator.agents.authentication import Authentication

    return await Authentication(declared, folder).by_token(token)


def _token(file: Path) -> str:
    from orchestrator.workflow.files import MAX_BYTES, read_text

    text = sys.stdin.read(MAX_BYTES) if str(file) == "-" else read_text(file)
    if not text.strip():
        raise UsageError("there is no token", hint="--token-file names a file that holds it, or `-`")
    return text.strip()


def _json(declared: Agents, name: str) -> dict[str, object]:
    agent = declared.agents[name]
    return {
        "may_open": agent.may_open,
        "identities": [identity.model_dump(exclude_none=True) for identity in agent.identities],
    }

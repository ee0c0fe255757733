"""`orchestrator leases`: who held which scope, when, and when it was gone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli import options
from orchestrator.cli.commands.evidence.receipts import receipt
from orchestrator.cli.lookup import completion
from orchestrator.errors import ExitCode, UnknownRun
from orchestrator.ledger.lease import LeaseState
from orchestrator.ledger.states import IdKind

if TYPE_CHECKING:
    from orchestrator.ledger.places import Places
    from orchestrator.ledger.types import LeaseFilter, LeaseRecord, LedgerReader
    from orchestrator.recovery.closing_pass import Leftover
    from orchestrator.recovery.sweep import Swept


class ListedState(StrEnum):
    """What leases can be listed by: the states of a lease, and those who wait until there may be one."""

    WAITING = "waiting"
    REQUESTED = "requested"
    DENIED = "denied"
    FAILED = "failed"
    ISSUED = "issued"
    REVOKING = "revoking"
    REVOKED = "revoked"
    EXPIRED = "expired"
    ENDED = "ended"


app = typer.Typer(help="Who held which scope, when, and when it was gone.", no_args_is_help=True, rich_markup_mode=None)


def register(program: typer.Typer) -> None:
    """Add the group of commands."""
    app.command("receipt")(receipt)
    program.add_typer(app, name="leases")


@app.command("list")
def list_leases(
    run: options.OfRun = None,
    task: options.OfTask = None,
    workflow: options.OfWorkflow = None,
    step: Annotated[str | None, typer.Option(help="Only of this step.")] = None,
    agent: Annotated[str | None, typer.Option(help="Only of this agent.")] = None,
    state: Annotated[
        list[ListedState] | None,
        typer.Option(
            help="Only in this state; may be given again. `waiting`: the attempts that wait for a lease, "
            "where those of its connection are limited."
        ),
    ] = None,
    resource: Annotated[str | None, typer.Option(help="Only where the Vault path begins so.")] = None,
    kind: Annotated[str | None, typer.Option(help="Only of this kind of grant, or step-token.")] = None,
    since: options.Since = None,
    until: options.Until = None,
    limit: options.Limit = 200,
    as_json: options.Json = False,
) -> None:
    """List leases, newest first; with `--state waiting` who waits for one, those first whose turn is next."""
    from orchestrator.cli.connect import ledger_reader
    from orchestrator.cli.display.json_output import print_json
    from orchestrator.clock import SystemClock
    from orchestrator.ledger.reading.id_lookup import whole_id
    from orchestrator.ledger.types import LeaseFilter
    from orchestrator.presentation.moments import parse_moment

    now = SystemClock().now()
    query = LeaseFilter(
        workflow=workflow,
        step=step,
        agent=agent,
        states=frozenset(LeaseState(each) for each in state if each != ListedState.WAITING) if state else None,
        resource=resource,
        grant_kind=kind,
        since=parse_moment(since, now=now) if since else None,
        until=parse_moment(until, now=now) if until else None,
        limit=limit,
    )
    with ledger_reader() as reader:
        of_run = whole_id(reader, IdKind.RUN, run) if run is not None else None
        of_task = whole_id(reader, IdKind.TASK, task) if task is not None else None
        query = replace(query, run=of_run, task=of_task)
        if ListedState.WAITING in (state or ()):
            _list_waiting(reader.places(now), query, as_json=as_json)
            return
        found = reader.leases(query)
    if as_json:
        print_json(found)
    else:
        _print_leases(found, query)


def _list_waiting(places: Places, query: LeaseFilter, *, as_json: bool) -> None:
    from orchestrator.cli.display.json_output import print_json
    from orchestrator.cli.display.runs.waiting import print_waiting, waiting
    from orchestrator.errors import UsageError

    if query.states or query.resource is not None or query.grant_kind is not None:
        raise UsageError(
            "`--state waiting` lists attempts that have no lease yet: no other state, resource or kind goes with it",
            hint="list these on their own: run, task, workflow, agent, step, since and until can be given with it",
        )
    rows = waiting(places, query)
    if as_json:
        print_json(rows)
    else:
        print_waiting(rows)


_WHICH = "`orchestrator leases list` shows them; of an id four characters are enough, beside `lease_`"

LeaseId = Annotated[
    str,
    typer.Argument(metavar="ID", help="The lease's id, or the beginning of it.", autocompletion=completion.lease_ids),
]


@app.command("show")
def show(
    lease_id: LeaseId,
    as_json: options.Json = False,
) -> None:
    """Show one lease and its life, from the request to its confirmed end."""
    from orchestrator.cli.connect import ledger_reader
    from orchestrator.cli.display.json_output import print_json
    from orchestrator.cli.display.run_view import life_line
    from orchestrator.cli.display.terminal import console, facts
    from orchestrator.presentation.events import gone

    with ledger_reader() as reader:
        lease = _record(reader, lease_id)
        events = reader.events(lease.run_id, lease_id=lease.lease_id)
        run = reader.run(lease.run_id)
    task = run.task if run is not None else None
    if as_json:
        print_json({"lease": lease, "task": task, "events": events, "gone": gone(events)})
        return
    screen = console()
    over = "gone" if lease.state is LeaseState.REVOKED else "so far"
    screen.print(facts([*_facts(lease, task), (over, "; ".join(gone(events)))]))
    screen.print()
    screen.print(life_line(lease, events))


@app.command("sweep")
def sweep(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be closed.")] = False,
    as_json: options.Json = False,
) -> None:
    """Close what dead processes left and what ended runs could not confirm, and drop expired logins.

    Every lease is tried at once, whatever its pause. What Vault has given up revoking is listed. The exit
    code is 6 while something is left or could not be looked at. Safe to repeat, and beside other processes
    that do the same.
    """
    from orchestrator.cli import interruption

    if dry_run:
        _show_left_over(as_json=as_json)
        return
    _show_swept(interruption.run(_sweep), as_json=as_json)


@app.command("revoke")
def revoke(
    lease_id: LeaseId,
    as_json: options.Json = False,
) -> None:
    """Take one lease back now, whatever its step is doing."""
    from orchestrator.cli import interruption

    _show_closed([interruption.run(lambda: _revoke(lease_id))], as_json=as_json)


def _show_left_over(*, as_json: bool) -> None:
    from orchestrator.cli.connect import open_store
    from orchestrator.cli.display.json_output import print_json
    from orchestrator.cli.display.terminal import console
    from orchestrator.ledger.types import LeaseFilter
    from orchestrator.recovery.open_leases import left_over

    with open_store() as ledger:
        found = left_over(ledger, ledger.runners)
    if as_json:
        print_json(found)
    elif found:
        _print_leases(found, LeaseFilter(limit=len(found) + 1))
    else:
        console().print("nothing is left over")


def _show_closed(found: Sequence[Leftover], *, as_json: bool) -> None:
    from orchestrator.cli.display.json_output import print_json

    if as_json:
        print_json(found)
    else:
        _print_closed(found, none="nothing is left over")
    if not all(item.confirmed for item in found):
        raise typer.Exit(int(ExitCode.UNCONFIRMED))


def _print_closed(found: Sequence[Leftover], *, none: str) -> None:
    from orchestrator.cli.display.terminal import console, table

    rows = [
        (
            item.lease.lease_id,
            f"{item.lease.step}.{item.lease.grant}",
            _now(item),
            item.detail,
        )
        for item in found
    ]
    if rows:
        console().print(table(("LEASE", "GRANT", "NOW", "DETAIL"), rows, fold=("GRANT", "DETAIL")))
    else:
        console().print(none)


def _now(item: Leftover) -> str:
    """What nothing can revoke has ended for its step, and is not gone."""
    if not item.confirmed:
        return "left"
    return "ended" if item.state is LeaseState.ENDED else "gone"


def _show_swept(swept: Swept, *, as_json: bool) -> None:
    from orchestrator.cli.display.json_output import print_json

    if as_json:
        print_json(swept)
    else:
        _print_swept(swept)
    if not swept.clean:
        raise typer.Exit(int(ExitCode.UNCONFIRMED))


def _print_swept(swept: Swept) -> None:
    from orchestrator.cli.display.terminal import console, table

    screen = console()
    # What could not be looked at may have something left: nobody is told that there is nothing.
    _print_closed(swept.leases, none="nothing is left over" if swept.clean else "no lease is left on record, but:")
    for found in swept.orphans:
        for login in found.dropped:
            screen.print(f"{found.connection}: {login} had expired, and is dropped")
        if not found.clean:
            screen.print(f"{found.connection}: {found.reason}")
    if swept.irrevocable:
        screen.print("\nVault has given up revoking:")
        rows = [
            (each.vault_lease_id, each.lease.run_id if each.lease else "-", each.detail, each.error)
            for each in swept.irrevocable
        ]
        screen.print(table(("VAULT LEASE", "RUN", "NOW", "LAST ERROR"), rows, fold=("NOW", "LAST ERROR")))
        screen.print(
            "repair the cause and sweep again; of a lease whose login is gone an admin lets Vault forget:\n"
            "  bao lease revoke -force -prefix VAULT-LEASE",
            style="dim",
        )
    for problem in swept.problems:
        screen.print(problem)


async def _sweep() -> Swept:
    from orchestrator.cli.connect import connected_services
    from orchestrator.recovery.sweep import sweep_everything

    async with connected_services() as (services, interruptions):
        return await interruptions.carry_out(sweep_everything(services))


async def _revoke(lease_id: str) -> Leftover:
    from orchestrator.cli.connect import connected_services
    from orchestrator.recovery.open_leases import revoke_now

    async with connected_services() as (services, interruptions):
        lease = _record(services.reader, lease_id)
        return await interruptions.carry_out(revoke_now(services, lease))


def _record(reader: LedgerReader, lease_id: str) -> LeaseRecord:
    from orchestrator.ledger.reading.id_lookup import whole_id

    lease = reader.lease(whole_id(reader, IdKind.LEASE, lease_id))
    if lease is None:
        raise UnknownRun(f"no lease {lease_id} is in the ledger", hint=_WHICH)
    return lease


def _print_leases(found: Sequence[LeaseRecord], query: LeaseFilter) -> None:
    from orchestrator.cli.display.listing import print_line, print_list, width
    from orchestrator.cli.display.terminal import LEASE_MARKS, local

    if not found:
        print_line("no leases")
        return
    if query.states == frozenset({LeaseState.REVOKING}):
        _print_revoking(found)
        return
    columns = ("LEASE", "STATE", "STEP.GRANT", "REQUESTED", "RESOURCE", "AGENT", "RUN")
    rows = [
        (
            lease.lease_id,
            f"{LEASE_MARKS[lease.state]} {lease.state.value}",
            f"{lease.step}.{lease.grant}",
            local(lease.requested_at),
            lease.resource,
            lease.agent,
            lease.run_id,
        )
        for lease in found
    ]
    columns_wide = width()
    kept = 4 if columns_wide < 110 else 5 if columns_wide < 160 else len(columns)
    print_list(columns[:kept], [row[:kept] for row in rows], fold=("STEP.GRANT", "RESOURCE", "AGENT"))
    if len(found) == query.limit:
        print_line(f"the newest {query.limit}; --limit shows more", style="dim")


def _print_revoking(found: Sequence[LeaseRecord]) -> None:
    """What is being taken back: since when, how often in vain, and why it did not work the last time."""
    from orchestrator.cli.display.listing import print_list, width
    from orchestrator.cli.display.terminal import local

    columns = ("LEASE", "SINCE", "TRIES", "LAST ERROR", "STEP.GRANT", "LAST TRY", "RUN")
    rows = [
        (
            lease.lease_id,
            local(lease.revoking_since),
            str(lease.failed_tries),
            lease.reason,
            f"{lease.step}.{lease.grant}",
            local(lease.last_try_at),
            lease.run_id,
        )
        for lease in found
    ]
    kept = 4 if width() < 110 else len(columns)
    print_list(columns[:kept], [row[:kept] for row in rows], fold=("LAST ERROR", "STEP.GRANT", "LAST TRY"))


def _tries(lease: LeaseRecord) -> str:
    from orchestrator.cli.display.terminal import local

    if not lease.failed_tries:
        return ""
    return f"{lease.failed_tries} in vain since {local(lease.revoking_since)}, the last at {local(lease.last_try_at)}"


def _facts(lease: LeaseRecord, task: str | None) -> list[tuple[str, str]]:
    from orchestrator.cli.display.terminal import lease_words, local, scope_words, took

    return [
        ("lease", lease.lease_id),
        ("state", lease_words(lease.state)),
        ("scope", scope_words(lease.scope)),
        ("resource", lease.resource),
        ("held by", lease.subject),
        ("step", f"{lease.step}, attempt {lease.attempt}, key {lease.step_key}"),
        ("run", f"{lease.run_id} of {lease.workflow}"),
        ("task", task or ""),
        ("agent", lease.agent),
        ("expires", local(lease.expires_at) if lease.expires_at else ""),
        ("held for", took(lease.issued_at, lease.closed_at) if lease.issued_at and lease.closed_at else ""),
        ("Vault lease", lease.vault_lease_id),
        ("accessor", lease.accessor),
        ("reason", lease.reason),
        ("tries", _tries(lease)),
    ]

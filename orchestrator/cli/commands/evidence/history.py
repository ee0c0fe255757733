"""`orchestrator history`: the history as evidence, signed, and verified by anybody who has the public key."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli import options
from orchestrator.cli.commands.evidence.export import export
from orchestrator.cli.commands.evidence.prune import prune
from orchestrator.cli.commands.evidence.reconcile import reconcile
from orchestrator.cli.commands.evidence.restart import restart
from orchestrator.cli.lookup import completion
from orchestrator.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from orchestrator.evidence.log.note import NoteKey
    from orchestrator.evidence.log.verification import Kept, Verified

app = typer.Typer(
    help="The history as evidence: signed checkpoints, and proofs for others.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


def register(program: typer.Typer) -> None:
    """Add the group of commands."""
    app.command("export")(export)
    app.command("prune")(prune)
    app.command("restart")(restart)
    app.command("reconcile")(reconcile)
    program.add_typer(app, name="history")


Key = Annotated[
    str | None,
    typer.Option(
        "--key",
        metavar="KEY",
        help="The public key, or a file of such, as `history keys` prints it. Default: Vault is asked for it.",
    ),
]


@app.command("checkpoint")
def checkpoint(
    time_stamp: Annotated[
        str | None,
        typer.Option(
            "--time-stamp", metavar="URL", help="Have this authority say when the newest was there (RFC 3161)."
        ),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Sign the log over all runs as it is now, and publish that; what has ended since the last time enters it.

    Runs do so by themselves when they end, and services all the time. Prints the newest checkpoint.
    """
    from orchestrator.cli import failures, interruption
    from orchestrator.cli.connect import connected_services
    from orchestrator.cli.display.json_output import print_json
    from orchestrator.errors import OrchestratorError
    from orchestrator.ledger.log.reader import StoredCheckpoint

    async def make() -> tuple[StoredCheckpoint | None, StoredCheckpoint | None, Sequence[OrchestratorError]]:
        async with connected_services() as (services, interruptions):
            making = services.checkpointing

            async def work() -> tuple[StoredCheckpoint | None, StoredCheckpoint | None, Sequence[OrchestratorError]]:
                made = await making.make()
                if time_stamp is not None:
                    await making.have_stamped(time_stamp)
                return made, making.store.newest_checkpoint(), await making.publish()

            return await interruptions.carry_out(work())

    made, newest, problems = interruption.run(make)
    if as_json:
        print_json(
            {
                "new": made is not None,
                "size": newest.size if newest else 0,
                "at": newest.at if newest else None,
                "checkpoint": newest.note if newest else None,
                "time_stamp": newest.stamp if newest else "",
                "unpublished": [problem.message for problem in problems],
            }
        )
    elif newest is None:
        typer.echo("no run has ended yet: there is nothing to sign")
    else:
        typer.echo(newest.note, nl=False)
    for problem in problems:
        failures.note(problem.message)
    if problems:
        raise typer.Exit(int(ExitCode.UNREACHABLE))


@app.command("keys")
def keys(as_json: options.Json = False) -> None:
    """Print the public keys by which everything here is verified, one a line, the newest first. Vault is asked."""
    from orchestrator.cli.display.json_output import print_json

    found = [str(key) for key in _asked_keys()]
    if as_json:
        print_json(found)
    else:
        typer.echo("\n".join(found))


@app.command("verify")
def verify(
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[FILE]...", help="Of `history prove` and `leases receipt`; without any, the whole ledger."
        ),
    ] = None,
    key: Key = None,
    against: Annotated[
        list[Path] | None,
        typer.Option(
            "--against",
            metavar="FILE",
            help="Checkpoints that were published, which the ledger must go on from. May be given again.",
        ),
    ] = None,
    tsa: Annotated[
        Path | None,
        typer.Option("--tsa", metavar="FILE", help="Certificates (PEM): verify time stamps of these authorities, too."),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Verify that the ledger is what was signed, or that a run is what its proof says. With a key nobody is asked.

    Found are events that were changed, removed, added or reordered, runs that are gone, a log that was rewritten
    and, with --against, a ledger that was set back to an older state or is another one. Exits with 4 where
    something is not as it was signed.
    """
    if files and against:
        raise UsageError("published checkpoints are held against the ledger", hint="leave the files out")
    if files and tsa is not None:
        raise UsageError("time stamps are of the ledger's checkpoints, and no file has one", hint="leave --tsa out")
    keys = _given_keys(key) if key is not None else _asked_keys()
    if files:
        _verify_files(files, keys, as_json=as_json)
    else:
        _verify_ledger(keys, _kept(against or ()), tsa, as_json=as_json)


@app.command("prove")
def prove(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN",
            help="The id of the run, call or task, or the beginning of it.",
            autocompletion=completion.run_ids,
        ),
    ],
    directory: Annotated[
        Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where the files are written.")
    ] = Path(),
    values: Annotated[
        bool,
        typer.Option("--with-values", help="Also what it was given and what its steps gave, as far as that is kept."),
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Write what somebody needs to verify one run without the ledger: its events, and the proof that they are signed.

    `RUN.events.jsonl` holds the events, with digests of inputs and outputs; `RUN.tlog-proof` is a proof in the
    format of C2SP, by the newest checkpoint. With the public key alone `history verify` verifies both.
    """
    from orchestrator.cli.connect import ledger_reader
    from orchestrator.cli.display.json_output import print_json
    from orchestrator.evidence.log.proof import SUFFIX
    from orchestrator.evidence.log.run_evidence import EVENTS_SUFFIX, RunEvidence, event_lines
    from orchestrator.ledger.reading.id_lookup import whole_id
    from orchestrator.ledger.states import IdKind

    with ledger_reader() as reader:
        run = whole_id(reader, IdKind.TASK, whole_id(reader, IdKind.RUN, run))
        evidence = RunEvidence.of(reader.log, run)
        events_of = reader.log.stored_events(run, last=evidence.leaf.head.seq)
        lines = list(event_lines(events_of, values=values))
    proof, events = directory / f"{_safe(run)}{SUFFIX}", directory / f"{_safe(run)}{EVENTS_SUFFIX}"
    _write(proof, evidence.proof.text())
    _write(events, "".join(f"{line}\n" for line in lines))
    if as_json:
        print_json({"run": run, "proof": str(proof), "events": str(events), "last_event": evidence.leaf.head.seq})
    else:
        typer.echo(f"{proof}\n{events}")


def _safe(run: str) -> str:
    """What somebody calls a run may have a colon or a tilde in it, and begins with a letter or a digit."""
    return run.replace(":", "_").replace("~", "_")


def _write(file: Path, text: str) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{file} cannot be written: {error.strerror}") from None


def _asked_keys() -> Sequence[NoteKey]:
    """Those of this ledger's log, from Vault."""
    from orchestrator.cli import interruption
    from orchestrator.cli.connect import connected_services
    from orchestrator.evidence.log.checkpointing import SIGN_SECONDS

    async def ask() -> Sequence[NoteKey]:
        async with connected_services() as (services, interruptions):
            deadline = services.clock.monotonic() + SIGN_SECONDS
            return await interruptions.carry_out(services.checkpointing.signer.keys(deadline=deadline))

    return interruption.run(ask)


def _given_keys(key: str) -> Sequence[NoteKey]:
    from orchestrator.evidence.log.note import parse_keys

    found = parse_keys([key] if "+" in key and not Path(key).exists() else _read(Path(key)).splitlines())
    if not found:
        raise UsageError(f"{key} has no public key in it", hint="`orchestrator history keys` prints them")
    return found


def _kept(files: Sequence[Path]) -> Sequence[Kept]:
    from orchestrator.evidence.log.publishing import published_in
    from orchestrator.evidence.log.verification import Kept

    return [Kept(f"a checkpoint in {file}", note) for file in files for note in published_in(_read(file))]


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{file} cannot be read: {error.strerror if isinstance(error, OSError) else 'it is not text'}"
        ) from None


def _verify_ledger(keys: Sequence[NoteKey], kept: Sequence[Kept], tsa: Path | None, *, as_json: bool) -> None:
    from orchestrator.cli.connect import ledger_reader
    from orchestrator.cli.display.streams import counting
    from orchestrator.evidence.log.time_stamps import authorities
    from orchestrator.evidence.log.verification import verify as verify_all

    roots = authorities(_read(tsa).encode()) if tsa is not None else ()
    with ledger_reader() as reader, counting() as progress:
        found = verify_all(reader, reader.log, keys, kept, roots, progress)
    _print_verified(found, as_json=as_json)
    if not found.whole:
        raise typer.Exit(int(ExitCode.STEP_FAILED))


def _print_verified(found: Verified, *, as_json: bool) -> None:
    from orchestrator.cli.display.json_output import plain, print_json
    from orchestrator.cli.display.listing import print_line
    from orchestrator.jsontypes import counted

    if as_json:
        said = plain(found)
        assert isinstance(said, dict)
        print_json({"whole": found.whole, **said, "unsigned_entries": found.unsigned_entries})
        return
    for problem in found.problems:
        print_line(problem, style="red")
    for lost in found.lost:
        print_line(lost, style="yellow")
    if unsigned := found.unsigned_entries + len(found.unsigned):
        said_of = "has ended and is" if unsigned == 1 else "have ended and are"
        print_line(
            f"{counted(unsigned, 'run')} {said_of} not signed yet: `orchestrator history checkpoint` does that",
            style="yellow",
        )
    looked = f"{counted(found.runs, 'history', 'histories')}, {counted(found.checkpoints, 'checkpoint')}"
    looked += f" of up to {counted(found.signed, 'entry', 'entries')}"
    looked += f", {counted(found.kept, 'published checkpoint')}" if found.kept else ""
    looked += f", {counted(found.stamped, 'time stamp')}" if found.stamped else ""
    if found.whole:
        print_line(f"{looked}: everything is as it was signed")
    else:
        print_line(f"{looked}: {counted(len(found.problems), 'problem')}", style="red")


def _verify_files(files: Sequence[Path], keys: Sequence[NoteKey], *, as_json: bool) -> None:
    from orchestrator.cli.display.json_output import print_json
    from orchestrator.cli.display.listing import print_line
    from orchestrator.errors import EvidenceRejected

    results: list[dict[str, object]] = []
    for file in files:
        try:
            results.append({"file": str(file), "verified": True, **_verified_file(file, keys)})
        except EvidenceRejected as error:
            results.append({"file": str(file), "verified": False, "problem": error.message})
    failed = [each for each in results if not each["verified"]]
    if as_json:
        print_json(results)
    else:
        for each in results:
            style = "red" if each in failed else ""
            print_line(f"{each['file']}: {each.get('problem') or each['says']}", style=style)
    if failed:
        raise typer.Exit(int(ExitCode.STEP_FAILED))


def _verified_receipt(file: Path, keys: Sequence[NoteKey]) -> dict[str, object]:
    from orchestrator.evidence.receipts import verified_receipt

    proven = verified_receipt(_read(file), keys)
    said, lease = proven.said, proven.said["lease"]
    assert isinstance(lease, dict)
    about = f"{lease['id']} ({lease['resource']}) of {proven.leaf.run_id} is {said['state']} since {said['over_at']}"
    return {
        "lease": lease["id"],
        "run": proven.leaf.run_id,
        "state": said["state"],
        "size": proven.checkpoint.size,
        "says": f"{about}, as signed in the log {proven.checkpoint.origin} of {proven.checkpoint.size} entries",
    }


def _verified_file(file: Path, keys: Sequence[NoteKey]) -> dict[str, object]:
    """What a file proves. Raises EvidenceRejected, and UsageError for a file of another kind."""
    from orchestrator.evidence.log.proof import SUFFIX, Proof
    from orchestrator.evidence.log.run_evidence import EVENTS_SUFFIX, verified_events
    from orchestrator.evidence.receipts import SUFFIX as RECEIPT

    if str(file).endswith(RECEIPT):
        return _verified_receipt(file, keys)
    stem = str(file).removesuffix(SUFFIX).removesuffix(EVENTS_SUFFIX)
    proof, events = Path(stem + SUFFIX), Path(stem + EVENTS_SUFFIX)
    if str(file) not in (str(proof), str(events)):
        kinds = f"*{SUFFIX}, *{EVENTS_SUFFIX} and *{RECEIPT}"
        raise UsageError(f"{file}: what is verified are files of the kinds {kinds}")
    leaf, checkpoint = Proof.parse(_read(proof)).verified(keys)
    about = f"{leaf.run_id} with {leaf.head.seq} events is in the log {checkpoint.origin} of {checkpoint.size} entries"
    has_events = events.exists() or file == events
    if has_events:
        verified_events(_read(events).splitlines(), leaf)
    said = "" if has_events else f"; its events were not looked at: {events.name} is not there"
    return {"run": leaf.run_id, "events": leaf.head.seq, "size": checkpoint.size, "says": about + said}

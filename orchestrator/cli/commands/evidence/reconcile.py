"""`orchestrator history reconcile`: what Vault and PostgreSQL have logged, held against the ledger."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli import options
from orchestrator.errors import ExitCode, UsageError
from orchestrator.jsontypes import counted

if TYPE_CHECKING:
    from orchestrator.evidence.reconciliation.findings import Compared, Finding
    from orchestrator.ledger.reading.reader import Reader
    from orchestrator.provision.vault.admin import VaultAdmin

Progress = Callable[[str, int], None]

_BEFORE = timedelta(days=1)
"""So much older than a log a lease may be that is revoked in it, if it is not open: longer than steps take."""


def reconcile(
    vault_audit: Annotated[
        list[Path] | None,
        typer.Option(
            "--vault-audit",
            metavar="FILE",
            help="A file of Vault's audit device, also compressed by gzip; `-` reads the standard input. May be given "
            "again, for files that were rotated.",
        ),
    ] = None,
    postgres_log: Annotated[
        list[Path] | None,
        typer.Option(
            "--postgres-log",
            metavar="FILE",
            help="A log of PostgreSQL's with log_statement = ddl or all, as text, CSV or JSON. May be given again.",
        ),
    ] = None,
    audit_device: Annotated[
        str, typer.Option(metavar="NAME", help="The audit device that wrote the file, asked for what it hashes.")
    ] = "file",
    clock_skew: Annotated[float, typer.Option(metavar="SECONDS", min=0, help="How far clocks may be apart.")] = 2.0,
    as_json: options.Json = False,
) -> None:
    """Hold the logs of others against the ledger, both ways.

    Of Vault: what it issued and the ledger does not know, what the ledger has and Vault's log does not, and what
    somebody else revoked. Of PostgreSQL: the same of logins. Exit code 4: they do not agree.

    What the audit log has hashed is looked for by asking Vault for the hashes, as an admin: with VAULT_TOKEN, as
    `orchestrator provision` is.
    """
    from orchestrator.cli.connect import ledger_reader
    from orchestrator.cli.display.streams import counting

    if not vault_audit and not postgres_log:
        raise UsageError("there is no log to look at", hint="name one with --vault-audit or --postgres-log")
    if [*(vault_audit or ()), *(postgres_log or ())].count(Path("-")) > 1:
        raise UsageError("the standard input can be read once")
    skew = timedelta(seconds=clock_skew)
    found: dict[str, Compared] = {}
    with ledger_reader() as reader, counting() as progress:
        if vault_audit:
            found["vault"] = _of_vault(reader, vault_audit, audit_device, skew, progress)
        if postgres_log:
            found["postgres"] = _of_postgres(reader, postgres_log, skew, progress)
    _show(found, as_json=as_json)
    if any(each.findings for each in found.values()):
        raise typer.Exit(int(ExitCode.STEP_FAILED))


def _of_vault(reader: Reader, files: Sequence[Path], device: str, skew: timedelta, progress: Progress) -> Compared:
    from orchestrator.evidence.reconciliation.audit_hash import AuditHash
    from orchestrator.evidence.reconciliation.log_files import lines_of
    from orchestrator.evidence.reconciliation.vault_audit import read_audit
    from orchestrator.evidence.reconciliation.vault_leases import LeaseComparison

    facts = read_audit(_seen((line for _, line in lines_of(files)), progress))
    if not facts.coverage.entries:
        raise UsageError(
            f"no line of {_named(files)} is an entry of an audit log", hint="the file device of Vault writes such files"
        )
    first, last = facts.coverage.first, facts.coverage.last
    with ExitStack() as stack:
        comparison = LeaseComparison(facts, AuditHash(lambda: _vault(stack), device), reader.lease_paths(), skew)
        leases = reader.leases_between(first - _BEFORE - skew if first else None, last + skew if last else None)
        return comparison.compare(leases, partial(progress, "leases"))


def _of_postgres(reader: Reader, files: Sequence[Path], skew: timedelta, progress: Progress) -> Compared:
    from orchestrator.evidence.reconciliation.log_files import lines_of
    from orchestrator.evidence.reconciliation.logins import LoginComparison
    from orchestrator.evidence.reconciliation.postgres_log import read_postgres

    facts = read_postgres(lines_of(files))
    if not facts.coverage.entries:
        raise UsageError(f"no line of {_named(files)} is an entry of a log of PostgreSQL's")
    first, last = facts.coverage.first, facts.coverage.last
    leases = reader.leases_between(first - _BEFORE - skew if first else None, last + skew if last else None)
    return LoginComparison(facts, skew).compare(leases, partial(progress, "leases"))


def _vault(stack: ExitStack) -> VaultAdmin:
    from orchestrator.cli.connect import vault_admin

    return stack.enter_context(vault_admin())


def _seen(lines: Iterator[str | None], progress: Progress) -> Iterator[str | None]:
    for number, line in enumerate(lines, 1):
        yield line
        if number % 10_000 == 0:
            progress("lines", number)


def _named(files: Sequence[Path]) -> str:
    return ", ".join(map(str, files))


def _show(found: dict[str, Compared], *, as_json: bool) -> None:
    from orchestrator.cli.display.json_output import print_json

    if as_json:
        print_json({"agree": not any(each.findings for each in found.values()), **found})
        return
    for source, compared in found.items():
        _print(source, compared)


_SOURCES = {"vault": ("Vault's audit log", "lease"), "postgres": ("PostgreSQL's log", "login")}


def _print(source: str, compared: Compared) -> None:
    from orchestrator.cli.display.listing import print_line, print_list
    from orchestrator.cli.display.terminal import local

    name, noun = _SOURCES[source]
    coverage = compared.coverage
    first, last = local(coverage.first), local(coverage.last)
    covered = f"{first} to {last}" if coverage.first else "times unknown"
    print_line(f"{name}: {counted(coverage.entries, 'entry', 'entries')}, {covered}")
    if coverage.broken:
        print_line(f"{counted(coverage.broken, 'line')} broken or cut off")
    print_line(
        f"{counted(compared.logged, noun)} of ours in the log, {compared.matched:,} of them in the ledger; "
        f"{counted(compared.recorded, noun)} in the ledger that the log should have"
    )
    for note in compared.notes:
        print_line(f"note: {note}")
    if not compared.findings:
        print_line("both agree")
        return
    rows = [_row(each) for each in compared.findings]
    print_list(("WHAT", "TIME", "WHICH", "LEASE", "RUN", "BY"), rows, fold=("WHAT", "WHICH", "LEASE", "RUN", "BY"))
    print_line(f"{counted(len(compared.findings), 'disagreement')}")


def _row(finding: Finding) -> tuple[str, ...]:
    from orchestrator.cli.display.terminal import local

    time = local(finding.time) if finding.time else ""
    return (_WORDS[finding.kind.value], time, finding.what, finding.lease_id, finding.run_id, finding.by)


_WORDS = {
    "issued_unknown": "issued, and not in the ledger",
    "not_in_vault": "in the ledger, and not in Vault's log",
    "revoked_but_open": "revoked, and open in the ledger",
    "revoked_by_others": "revoked before we began to",
    "login_unknown": "made, and not in the ledger",
    "login_not_dropped": "made, and no drop in the log",
    "statement_unreadable": "a statement with a name like ours that cannot be parsed",
    "login_not_created": "in the ledger, and not made in the log",
}

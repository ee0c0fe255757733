"""The last word on a run: how every step ended, what became of the credentials, and who refused what."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING

from orchestrator.cli.display.board import Board
from orchestrator.cli.display.printable import clean, one_line
from orchestrator.cli.display.terminal import console, table, took
from orchestrator.errors import GrantRefused, LedgerError, OrchestratorError, Refused
from orchestrator.jsontypes import JsonObject, being
from orchestrator.ledger.states import RunState

if TYPE_CHECKING:
    from rich.console import Console

    from orchestrator.runs.types import RunOutcome


def print_summary(outcome: RunOutcome, board: Board, *, steps: bool, screen: Console | None = None) -> None:
    """How it came out. `steps` says whether they are still to be listed (a live table has shown them already)."""
    screen = screen or console()
    if steps and board.steps:
        rows = [
            (name, step.action, step.state.value if step.state else "not started", took(step.started, step.finished))
            for name, step in board.steps.items()
        ]
        screen.print(table(("STEP", "ACTION", "STATE", "TOOK"), rows))
    span = f" in {took(board.started, board.finished)}" if board.started else ", before"
    screen.print(f"\n{outcome.run_id} {outcome.state.value}{span}, exit code {int(outcome.exit_code)}")
    if board.started:
        screen.print(f"credentials: {board.count().words()}")


def problems(outcome: RunOutcome, board: Board, *, quiet: bool = False) -> str:
    """What went wrong, for standard error: who refused what, which step failed, what is not confirmed gone.

    `quiet`: not what the workflow tolerates.
    """
    blocks = [
        _block(step, error, board, tolerated=step in outcome.tolerated)
        for step, error in outcome.errors.items()
        if not quiet or step not in outcome.tolerated
    ]
    blocks += _unconfirmed(outcome)
    if outcome.state is RunState.WAITING:
        goes_on = f"`orchestrator runs resume {outcome.run_id}` goes on with it, and so does a service that began it"
        blocks.append(f"note: {outcome.reason}\n  hint: {goes_on}")
    if not blocks and outcome.reason:
        blocks = [f"error: {outcome.reason}"]
    return "".join(f"{clean(block)}\n" for block in blocks)


def _block(step: str, error: OrchestratorError, board: Board, *, tolerated: bool = False) -> str:
    line = board.steps.get(step)
    reasons: tuple[str, ...]
    denials = line.denials if line else ()
    match error:
        case GrantRefused():
            first, reasons = f"step `{step}`, grant `{error.grant}` was refused by {error.by}", (error.message,)
        case LedgerError():
            first, reasons = "the run could not be recorded", (error.message,)
        case Refused():
            first, reasons = f"step `{step}` was refused by {error.by}", denials or (error.message,)
        case _:
            of_no_step = step.startswith("(")
            first, reasons = "the run failed" if of_no_step else f"step `{step}` failed", (error.message,)
    path = f"asked for: {error.path}" if isinstance(error, GrantRefused) else ""
    hint = f"hint: {error.hint}" if error.hint else ""
    first = f"warning: {first}, and the run went on" if tolerated else f"error: {first}"
    return "\n".join([first, *(textwrap.indent(text, "  ") for text in (*reasons, path, hint) if text)])


def _unconfirmed(outcome: RunOutcome) -> Iterator[str]:
    if not outcome.unconfirmed:
        return
    yield f"warning: {being(len(outcome.unconfirmed), 'credential')} not confirmed gone yet"
    for lease in outcome.unconfirmed:
        subject = f" {lease.subject}" if lease.subject else ""
        yield f"  {lease.lease_id} {lease.step}.{lease.grant}{subject}: {one_line(lease.reason or lease.state.value)}"
    yield "  hint: `orchestrator leases sweep` tries again; `orchestrator leases show ID` tells its story"


def outcome_json(outcome: RunOutcome, board: Board) -> JsonObject:
    """The same for programs: the last line of `run --json`."""
    count = board.count()
    answer: dict[str, object] = {
        "kind": "outcome",
        "run": outcome.run_id,
        "state": outcome.state.value,
        "exit_code": int(outcome.exit_code),
        "reason": outcome.reason,
        "steps": {step: state.value for step, state in outcome.steps.items()},
        "outputs": dict(outcome.outputs),
        "leases": {
            "issued": count.issued,
            "revoked": count.revoked,
            "ended": count.ended,
            "refused": count.refused,
            "pending": len(outcome.unconfirmed),
        },
        "unconfirmed": [lease.lease_id for lease in outcome.unconfirmed],
    }
    if tolerated := [step for step in outcome.errors if step in outcome.tolerated]:
        answer["tolerated"] = tolerated
    if counted := {step: error for step, error in outcome.errors.items() if step not in outcome.tolerated}:
        step, error = next(iter(counted.items()))
        answer["error"] = {
            "kind": type(error).__name__,
            "step": step,
            "grant": getattr(error, "grant", None),
            "by": getattr(error, "by", None),
            "path": getattr(error, "path", None),
            "message": error.message,
            "hint": error.hint,
        }
    return answer  # type: ignore[return-value]  # every value above is JSON

"""The last word on a run: for the person, for standard error, and for programs."""

import io
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from cli_samples import DENIED, REFUSED, RUN, SUCCEEDED, UNCONFIRMED, VAULT_SAID, timed
from rich.console import Console

from orchestrator.cli.commands.leases import _now as now_of
from orchestrator.cli.display.board import Board
from orchestrator.cli.display.summary import outcome_json, print_summary, problems
from orchestrator.errors import ExitCode, GrantRefused, OrchestratorError, PolicyDenied, StepFailed
from orchestrator.ledger.events import Event
from orchestrator.ledger.lease import LeaseState
from orchestrator.ledger.states import RunState, StepState
from orchestrator.ledger.types import LeaseRecord
from orchestrator.recovery.closing_pass import Leftover
from orchestrator.runs.types import RunOutcome

NOW = datetime(2026, 3, 2, 5, tzinfo=UTC)
LEASE = LeaseRecord(
    lease_id="lease_aaaaaaaaaaaaaaaaaaaa",
    run_id=RUN,
    workflow="customer_feedback",
    agent="feedback-assistant",
    step="read",
    attempt=1,
    step_key="read-k3v9w2m7q4xa",
    grant="db",
    grant_kind="database",
    resource="database/creds/feedback-read",
    scope={},
    state=LeaseState.REVOKING,
    ttl=120,
    requested_at=NOW,
    issued_at=NOW,
    expires_at=NOW,
    closed_at=None,
    vault_lease_id="",
    accessor="",
    subject="orc_read-k3v9w2m7q4xa_Xy12",
    reason="the database did not answer",
)


def board(events: list[Event]) -> Board:
    made = Board()
    for moment in timed(events):
        made.apply(*moment)
    return made


def outcome(code: ExitCode, *, unconfirmed: bool = False, **errors: OrchestratorError) -> RunOutcome:
    return RunOutcome(
        run_id=RUN,
        state=RunState.REFUSED if errors else RunState.SUCCEEDED,
        exit_code=code,
        steps={"read": StepState.REFUSED if errors else StepState.SUCCEEDED},
        errors=errors,
        unconfirmed=(LEASE,) if unconfirmed else (),
    )


REFUSAL = GrantRefused(VAULT_SAID, grant="db", path="database/creds/feedback-read", hint="run `provision check`")


def test_a_run_that_worked_is_summed_up_and_has_no_problems() -> None:
    screen = Console(record=True, width=100, file=io.StringIO())
    print_summary(outcome(ExitCode.DONE), board(SUCCEEDED), steps=True, screen=screen)
    assert [line.rstrip() for line in screen.export_text().splitlines()] == [
        "STEP    ACTION              STATE      TOOK",
        "read    postgres.query      succeeded  0.70s",
        "notify  slack.post_message  succeeded  0.50s",
        "",
        f"{RUN} succeeded in 2.10s, exit code 0",
        "credentials: 3 issued, 2 confirmed gone, 1 ended (secret still valid)",
    ]
    assert problems(outcome(ExitCode.DONE), board(SUCCEEDED)) == ""


def test_a_refused_grant_names_step_grant_path_reason_and_what_to_do() -> None:
    assert problems(outcome(ExitCode.REFUSED, read=REFUSAL), board(REFUSED)) == (
        "error: step `read`, grant `db` was refused by vault\n"
        f"  {VAULT_SAID}\n"
        "  asked for: database/creds/feedback-read\n"
        "  hint: run `provision check`\n"
    )


def test_a_denial_lists_every_reason_of_the_policy() -> None:
    assert problems(outcome(ExitCode.REFUSED, read=PolicyDenied("the policy denied it")), board(DENIED)) == (
        "error: step `read` was refused by policy\n"
        "  SQL verb `delete` is forbidden to every agent\n"
        "  grant `db` lives 3600s\n"
    )


def test_a_failed_step_says_why() -> None:
    failed = StepFailed("relation does not exist\nLINE 1", hint="check the SQL")
    assert problems(outcome(ExitCode.STEP_FAILED, read=failed), board(SUCCEEDED)) == (
        "error: step `read` failed\n  relation does not exist\n  LINE 1\n  hint: check the SQL\n"
    )


def test_what_is_not_confirmed_gone_is_listed_by_id() -> None:
    text = problems(outcome(ExitCode.UNCONFIRMED, unconfirmed=True), board(UNCONFIRMED))
    assert "warning: 1 credential is not confirmed gone yet" in text
    assert "lease_aaaaaaaaaaaaaaaaaaaa read.db orc_read-k3v9w2m7q4xa_Xy12: the database did not answer" in text
    assert "leases sweep" in text


def test_programs_are_told_the_same() -> None:
    told = outcome_json(outcome(ExitCode.REFUSED, read=REFUSAL), board(REFUSED))
    assert told == {
        "kind": "outcome",
        "run": RUN,
        "state": "refused",
        "exit_code": 3,
        "reason": "",
        "steps": {"read": "refused"},
        "outputs": {},
        "leases": {"issued": 0, "revoked": 0, "ended": 0, "refused": 1, "pending": 0},
        "unconfirmed": [],
        "error": {
            "kind": "GrantRefused",
            "step": "read",
            "grant": "db",
            "by": "vault",
            "path": "database/creds/feedback-read",
            "message": VAULT_SAID,
            "hint": "run `provision check`",
        },
    }


@pytest.mark.parametrize(
    ("confirmed", "state", "now"),
    [
        (True, LeaseState.REVOKED, "gone"),
        (True, LeaseState.EXPIRED, "gone"),
        (True, LeaseState.ENDED, "ended"),
        (False, LeaseState.REVOKING, "left"),
        (False, None, "left"),
    ],
)
def test_what_nothing_can_revoke_is_never_called_gone(confirmed: bool, state: LeaseState | None, now: str) -> None:
    assert now_of(Leftover(LEASE, confirmed, "words", state)) == now


def test_a_failure_that_the_workflow_tolerates_is_a_warning_and_no_error_of_the_run() -> None:
    failed = StepFailed("exit code 3", hint="look")
    ended = replace(outcome(ExitCode.DONE), errors={"read": failed}, tolerated=frozenset({"read"}))
    assert problems(ended, board(SUCCEEDED)) == (
        "warning: step `read` failed, and the run went on\n  exit code 3\n  hint: look\n"
    )
    assert problems(ended, board(SUCCEEDED), quiet=True) == ""
    told = outcome_json(ended, board(SUCCEEDED))
    assert told["tolerated"] == ["read"]
    assert "error" not in told
    both = replace(ended, errors={"read": failed, "notify": StepFailed("no more")}, exit_code=ExitCode.STEP_FAILED)
    assert problems(both, board(SUCCEEDED), quiet=True) == "error: step `notify` failed\n  no more\n"
    error = outcome_json(both, board(SUCCEEDED))["error"]
    assert isinstance(error, dict)
    assert error["step"] == "notify"

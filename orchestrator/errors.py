"""The one tree of errors.

Every error says what happened, where, why, and what to do next (`hint`). None of them ever holds a
secret: whoever builds one from foreign text redacts that text first.
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """What the process answers to its scheduler."""

    DONE = 0
    """Done, and every credential is confirmed gone."""
    DEFECT = 1
    """Something that nobody foresaw: a defect of the orchestrator."""
    INVALID = 2
    """Usage, or a workflow that is not valid: nothing ran."""
    REFUSED = 3
    """A policy or Vault refused a grant."""
    STEP_FAILED = 4
    """A step failed, or a check found that something is not as it should be."""
    UNREACHABLE = 5
    """A service that the run needs did not answer."""
    UNCONFIRMED = 6
    """The work is done, but a revocation is not confirmed yet."""
    WAITING = 7
    """Nothing is open, and the rest waits until somebody has approved it."""
    HUNG_UP = 129
    """Ended by SIGHUP, as its terminal was closed, after revoking."""
    INTERRUPTED = 130
    """Ended by SIGINT, or by `runs cancel`, after revoking."""
    TERMINATED = 143
    """Ended by SIGTERM, after revoking."""


class OrchestratorError(Exception):
    """Base of all errors raised on purpose.

    `hint` is one sentence that says what to do next; `exit_code` is what the command line answers.
    """

    exit_code: ExitCode = ExitCode.STEP_FAILED

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message


class UsageError(OrchestratorError):
    """Something given on the command line, in the settings or in a file is wrong."""

    exit_code = ExitCode.INVALID


class InvalidExpression(UsageError):
    """A `${{ }}` expression cannot be parsed or evaluated."""


class Defect(OrchestratorError):
    """Something that nobody foresaw ended a run. The message is redacted by whoever builds it."""

    exit_code = ExitCode.DEFECT

    def __init__(self, message: str) -> None:
        super().__init__(message, hint=DEFECT_HINT)


DEFECT_HINT = (
    "this is a defect of the orchestrator or of an extension: please report it to whoever maintains that; "
    "ORCHESTRATOR_LOG_LEVEL=debug shows where it comes from"
)


class Interrupted(OrchestratorError):
    """A signal ended the work, after what was issued had been revoked."""

    def __init__(self, message: str, *, exit_code: ExitCode) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Refused(OrchestratorError):
    """Somebody who may say no said no. `by` names them: `policy`, `vault`, `orchestrator`, `service`."""

    exit_code = ExitCode.REFUSED

    def __init__(self, message: str, *, by: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.by = by


class PolicyDenied(Refused):
    """The policy engine did not allow the step, or gave no answer that can be obeyed. `reasons` are its own words."""

    def __init__(self, message: str, *, hint: str | None = None, reasons: tuple[str, ...] = ()) -> None:
        super().__init__(message, by="policy", hint=hint)
        self.reasons = reasons


class GrantRefused(Refused):
    """A grant of a step was not issued. `grant` is its name in the workflow, `path` what was asked for."""

    def __init__(self, message: str, *, grant: str, path: str, by: str = "vault", hint: str | None = None) -> None:
        super().__init__(message, by=by, hint=hint)
        self.grant = grant
        self.path = path


class TaskEnded(Refused):
    """The task is closed, past its deadline, or was idle for too long: nothing can be called in it."""

    def __init__(self, message: str) -> None:
        super().__init__(message, by="orchestrator", hint="open a new task if there is still something to do")


class BudgetSpent(Refused):
    """A tool was called as often as a task allows, or as many of its calls are open as may be."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, by="orchestrator", hint=hint)


class NotRenewed(Refused):
    """A credential that was handed over lives no longer than it does: it has ended, or nobody may renew it."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, by="orchestrator", hint=hint)


class AgentBlocked(Refused):
    """The agent is cut off: `orchestrator agents revoke`."""

    def __init__(self, message: str) -> None:
        super().__init__(message, by="orchestrator", hint="`orchestrator agents restore` lets it in again")


class Unreachable(OrchestratorError):
    """A service did not answer, or answered that it cannot serve now. Trying later may help."""

    exit_code = ExitCode.UNREACHABLE


class VaultUnreachable(Unreachable):
    """Vault refused the connection, is sealed, is a standby, or kept failing until the deadline."""


class RunFailed(OrchestratorError):
    """A run did not succeed: `state` says how it ended, and `exit_code` what the command line would have answered."""

    def __init__(self, run_id: str, state: str, exit_code: ExitCode, reason: str) -> None:
        super().__init__(
            f"run {run_id} {state}" + (f": {reason}" if reason else ""), hint=f"`orchestrator runs show {run_id}`"
        )
        self.run_id = run_id
        self.state = state
        self.exit_code = exit_code


class StepFailed(OrchestratorError):
    """The action of a step failed.

    `kind` is a short stable word that `retry.on` in a workflow can name, such as `timeout`,
    `connection`, `http_status`, `exit_status`, `rate_limited`, `output`.
    `retry_after` is in seconds, where the service said how long to wait.
    """

    exit_code = ExitCode.STEP_FAILED

    def __init__(
        self, message: str, *, kind: str = "error", retry_after: float | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.kind = kind
        self.retry_after = retry_after


class DatabaseUnreachable(StepFailed):
    """A step cannot connect to its database: whatever the step is about, a service did not answer."""

    exit_code = ExitCode.UNREACHABLE


class OutputRefused(StepFailed):
    """A step's output is not JSON, is too large, or contains an issued secret."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, kind="output", hint=hint)


class LedgerError(OrchestratorError):
    """The ledger cannot be read or written: nothing may be issued that cannot be recorded."""

    exit_code = ExitCode.UNREACHABLE


class FenceLost(LedgerError):
    """Another process has taken over this run: this one may not write, issue or finish anything."""


class UnknownRun(UsageError):
    """No run, attempt or lease with this id is in the ledger."""


class RunExists(UsageError):
    """The id of a run that is to begin is in the ledger already, or another process is about to begin it."""


class UnknownTask(UsageError):
    """The ledger has no such task, or it is none of the caller's: nobody is told which."""


class NotAsRecorded(UsageError):
    """What the ledger holds of a run is not what was recorded when it began, or is missing: nothing of it is run."""


class EvidenceRejected(OrchestratorError):
    """What is to prove something does not: it was changed, belongs to something else, or is signed by nobody known."""


class IllegalTransition(OrchestratorError):
    """A lease was to be moved to a state that its present state does not lead to: a defect of ours."""


class ProvisionError(OrchestratorError):
    """The desired state could not be installed in Vault or in a database."""

    exit_code = ExitCode.UNREACHABLE

"""What the parts of the runner share: the services of a process, one run, and how it came out."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from orchestrator.actions.base import Action
from orchestrator.actions.confinement import Confinement
from orchestrator.approvals.desk import ApprovalDesk
from orchestrator.approvals.slack import SlackApprovals
from orchestrator.clock import Clock
from orchestrator.credentials.broker import Broker
from orchestrator.credentials.run_leases import RunLeases
from orchestrator.errors import ExitCode, OrchestratorError, RunFailed
from orchestrator.evidence.log.checkpointing import Checkpointing
from orchestrator.evidence.retention import KEPT_FOR_GOOD, Retention
from orchestrator.grants.scope import Scope
from orchestrator.jsontypes import JsonObject, JsonValue
from orchestrator.ledger.coordination.agents import AgentStore
from orchestrator.ledger.coordination.queue import RunQueue
from orchestrator.ledger.events import StepFinished
from orchestrator.ledger.states import RunState, StepState
from orchestrator.ledger.types import LeaseRecord, LedgerReader, LedgerWriter, StepRecord
from orchestrator.network.webhooks import Webhooks
from orchestrator.planning.requests import policy_request, scopes_of
from orchestrator.policy.admission import before_evaluation
from orchestrator.policy.types import PolicyEngine, PolicyRequest
from orchestrator.redaction.forms import recognisable
from orchestrator.redaction.own_secrets import OwnSecrets
from orchestrator.redaction.redactor import Redactor
from orchestrator.runs.calls import Call
from orchestrator.runs.heartbeat import Heartbeat
from orchestrator.runs.waiting_time import WaitingTime
from orchestrator.secret import Secret
from orchestrator.step_names import declared_step, index_of
from orchestrator.workflow.loader import LoadedWorkflow
from orchestrator.workflow.models.steps import Step

_FAILED = (StepState.FAILED, StepState.REFUSED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """Everything a runner needs from outside, behind protocols. One per process, for any number of runs."""

    ledger: LedgerWriter
    reader: LedgerReader
    broker: Broker
    policy: PolicyEngine
    redactor: Redactor
    """Knows every secret of this process, to take it out of logs and messages."""
    action: Callable[[str], Action]
    endpoints: Mapping[str, str]
    clock: Clock
    heartbeat: Heartbeat
    queue: RunQueue
    approvals: ApprovalDesk
    agents: AgentStore
    """Who is cut off."""
    checkpointing: Checkpointing
    """Signs the log over the histories of all runs."""
    retention: Retention = KEPT_FOR_GOOD
    """How long what is personal is kept."""
    slack: SlackApprovals | None = None
    """Where requests for approval are shown, too."""
    waiting_time: WaitingTime
    primaries: Mapping[str, str] = field(default_factory=dict)
    """Addresses of the servers in which the logins are made, by connection, where the endpoint is a standby."""
    notifier: Webhooks = field(default_factory=Webhooks)
    """Delivers what policies want others to be told."""
    own_secrets: OwnSecrets = field(default_factory=lambda: OwnSecrets(Redactor()))
    """Knows the orchestrator's own secrets, which no output may hold."""
    parks: bool = False
    """Whether a run that waits for approval is left to be resumed by whoever finds that it can go on."""
    max_output_bytes: int = 1 << 20
    max_parallel: int = 8
    grace: float = 30.0
    """Seconds that a run which was cancelled has for its steps that run on failure, or always."""
    settle: float = 95.0
    """Seconds after which Vault has certainly ended a request whose answer was lost (its limit is 90).

    Negative: it is pretended that so much time has passed already.
    """
    max_takeovers: int = 3
    """How often a run is gone on with whose process died, and a queued one taken out again whose worker died or could
    not begin it."""
    dead_after: float = 15.0
    """Seconds without a sign of life after which a process is taken for dead that nobody can see to be gone."""
    confinement: Confinement = Confinement.BEST
    """Whether programs of steps are confined."""
    printed: Callable[[str, int, bytes], None] | None = None
    """Told what programs of steps write: the step, and what `orchestrator.actions.base.Printed` is told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """That a run goes on from the failed run `of`, in a chain of retries that began with `original`.

    `taken` are the ends of the steps that are over already: they are recorded together with its beginning.
    """

    of: str = ""
    original: str = ""
    taken: tuple[StepFinished, ...] = ()


NO_RETRY = Retry()


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRequest:
    """One run to carry out. `inputs` are bound and typed; secret ones are `Secret`."""

    run_id: str
    loaded: LoadedWorkflow
    inputs: Mapping[str, JsonValue | Secret]
    trigger: str = "manual"
    reason: str = ""
    """Why, in the words of whoever started it; shown to policies and recorded."""
    call: Call | None = None
    """Where it is the call of a tool: the workflow is then the one step that the call is."""
    retry: Retry = NO_RETRY
    """Where it goes on from a run that failed."""

    def idempotency_key(self, step: str) -> str:
        """The same for every attempt at the step, in this run and in every retry of it."""
        return f"{self.retry.original or self.run_id}/{step}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TakenRun:
    """A run that another process began and that is ours now: `fence` is the only valid one, nothing of it is open."""

    request: RunRequest
    fence: int
    steps: tuple[StepRecord, ...]


@dataclass(slots=True)
class Interruption:
    """Why the run is being cancelled from outside, set before the task is cancelled."""

    exit_code: ExitCode = ExitCode.INTERRUPTED
    reason: str = "cancelled"


@dataclass(slots=True)
class RunProgress:
    """What is known of a run while it goes on: how steps ended, their kept outputs, and the failures."""

    request: RunRequest
    leases: RunLeases
    context: JsonObject
    public_inputs: JsonObject
    states: dict[str, StepState] = field(default_factory=dict)
    results: dict[str, JsonObject] = field(default_factory=dict)
    """State and kept output of the steps that ended, as expressions see them."""
    errors: dict[str, OrchestratorError] = field(default_factory=dict)
    attempts: dict[str, int] = field(default_factory=dict)
    """How often each step was tried in earlier processes."""
    told: bool = False
    """Whether those were told of its end whom the workflow names."""
    asked_for_approval: bool = False
    """Whether people were asked to agree to something of it."""
    items: dict[str, JsonValue] = field(default_factory=dict)
    """Of steps that are carried out for each item of a list: the item of each, by the name of that (`notify[3]`)."""
    started: str = ""
    """When the run began, as the ledger has it; empty where nothing of the workflow asks for it."""
    room: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(8))
    """For as many attempts as may be under way at once."""
    deadline: float = math.inf
    """When the run's own timeout ends it, by the monotonic clock."""
    secrets: Redactor = field(default_factory=lambda: Redactor(only=recognisable))
    """Knows what was issued or given to this run, so that no output of it holds that. What others hold is no concern of
    its: else it would depend on what else this process does whether a run succeeds."""
    _declared: dict[str, tuple[Scope, ...]] = field(default_factory=dict)

    @property
    def fence(self) -> int:
        """The number under which this process may write; 0 before the run has begun."""
        return self.leases.journal.fence

    def begun(self, fence: int) -> None:
        """The run is ours under this number."""
        self.leases.journal.fence = fence

    def ended(self, step: str, state: StepState, output: JsonObject | None) -> None:
        """Remember how a step ended and what its dependents may use of it."""
        self.states[step] = state
        error = self.errors.get(step)
        self.results[step] = {"state": state.value, "output": output or {}, "error": error.message if error else ""}

    def take_over(self, taken: Iterable[StepFinished]) -> None:
        """Remember the steps that are over already when the run begins."""
        for end in taken:
            self.ended(end.step, end.state, end.outputs if isinstance(end.outputs, dict) else None)

    @property
    def outputs(self) -> dict[str, JsonObject]:
        """What is kept of the steps that ended, of each that gave something."""
        given = {step: result["output"] for step, result in self.results.items()}
        return {step: output for step, output in given.items() if isinstance(output, dict) and output}

    def failed(self, step: str, error: OrchestratorError) -> None:
        """Remember why a step failed."""
        self.errors[step] = error
        if step in self.results:
            self.results[step] = {**self.results[step], "error": error.message}

    def forget(self, instances: Iterable[str]) -> None:
        """Of a step for each item of a list that has ended only the step is left."""
        for name in instances:
            for kept in (self.states, self.results, self.errors, self.items, self.attempts):
                kept.pop(name, None)

    @property
    def failures(self) -> list[str]:
        """The steps that failed or were refused, in the order of the workflow."""
        return [name for name in self.request.loaded.workflow.steps if self.states.get(name) in _FAILED]

    def declared(self, step: str) -> Step:
        """The step as the workflow declares it, also of one that is for an item."""
        return self.request.loaded.workflow.steps[declared_step(step)]

    def declared_scopes(self, step: str) -> tuple[Scope, ...]:
        """The grants of a step, before anything in them is evaluated."""
        step = declared_step(step)
        if step not in self._declared:
            scopes, call = scopes_of(self.request.loaded.workflow, step), self.request.call
            self._declared[step] = scopes if call is None else call.asked_for(scopes)
        return self._declared[step]

    def policy_request(
        self, step: str, attempt: int, action_view: JsonObject, scopes: tuple[Scope, ...], time: datetime
    ) -> PolicyRequest:
        """What the policy is asked about an attempt at a step."""
        return policy_request(
            self.request.loaded,
            declared_step(step),
            run_id=self.request.run_id,
            trigger=self.request.trigger,
            attempt=attempt,
            inputs=self.public_inputs,
            context=self.context,
            action_view=action_view,
            scopes=scopes,
            time=time,
            reason=self.request.reason,
            call=self.request.call.asked if self.request.call else None,
            index=index_of(step),
        )

    def admission_request(self, step: str, attempt: int, time: datetime) -> PolicyRequest:
        """What the policy is asked before anything of a step is evaluated."""
        scopes = self.declared_scopes(step)
        return before_evaluation(self.policy_request(step, attempt, {}, scopes, time), scopes)

    def expression_context(self, endpoints: Mapping[str, str], step: str = "", attempt: int = 0) -> dict[str, Any]:
        """What `${{ }}` may refer to now, of an attempt at a step where one is named.

        Secret inputs are `Secret` objects and are only passed on whole.
        """
        call, loaded = self.request.call, self.request.loaded
        run = {
            "id": self.request.run_id,
            "trigger": self.request.trigger,
            "started": self.started,
            "failed": self.failures,
        }
        own: dict[str, Any] = {}
        if step:
            own["step"] = {"id": declared_step(step), "attempt": attempt}
        if step in self.items:
            own["step"]["index"] = index_of(step)
            own["item"] = self.items[step]
        return {
            **own,
            **(call.expression_context(self.request.loaded.workflow.agent) if call else {}),
            "inputs": dict(self.request.inputs),
            "context": dict(self.context),
            "run": run,
            "workflow": loaded.variables,
            "endpoints": dict(endpoints),
            "steps": self._results_of_steps(),
        }

    def _results_of_steps(self) -> dict[str, JsonObject]:
        """Without those of items, which no expression can name and of which there may be thousands."""
        return {name: self.results[name] for name in self.request.loaded.workflow.steps if name in self.results}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOutcome:
    """How a run came out. `unconfirmed` are the leases whose end nobody has confirmed yet."""

    run_id: str
    state: RunState
    exit_code: ExitCode
    reason: str = ""
    steps: Mapping[str, StepState] = field(default_factory=dict)
    errors: Mapping[str, OrchestratorError] = field(default_factory=dict)
    tolerated: frozenset[str] = frozenset()
    """The steps among these whose failure the workflow tolerates (`continue_on_error`)."""
    outputs: Mapping[str, JsonObject] = field(default_factory=dict)
    """What is kept of the steps that gave something."""
    unconfirmed: tuple[LeaseRecord, ...] = ()

    def check(self) -> None:
        """Raise RunFailed unless all of it is done, and every credential confirmed gone."""
        if self.exit_code is not ExitCode.DONE:
            raise RunFailed(self.run_id, self.state.value, self.exit_code, self.reason)

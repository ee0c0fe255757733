"""Proving a workflow: each step's credentials are issued for real, examined, and revoked, all on record."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from orchestrator.credentials.broker import StepLeases
from orchestrator.credentials.types import Attempt
from orchestrator.errors import ExitCode, InvalidExpression, OrchestratorError, Refused, Unreachable, UsageError
from orchestrator.grants.credential import Credential
from orchestrator.grants.models import DatabaseGrant, TokenGrant
from orchestrator.grants.policy_names import step_policy_name
from orchestrator.grants.scope import Scope, compiled
from orchestrator.issuers.aws import AwsAccount
from orchestrator.ledger.events import AttemptFinished, AttemptStarted, RunFinished, RunStarted, StepFinished
from orchestrator.ledger.ids import new_step_key
from orchestrator.ledger.lease import OPEN
from orchestrator.ledger.reading.queries import TRIGGER_PROOF
from orchestrator.ledger.states import RunState, StepState
from orchestrator.ledger.types import LeaseFilter
from orchestrator.planning.requests import bind, scopes_of
from orchestrator.planning.session_policies import with_any_name
from orchestrator.proof.aws import examine_session
from orchestrator.proof.examine import Examination, examine_database, examine_secret, examine_token, other_paths
from orchestrator.proof.forbidden import Trial, Verdict
from orchestrator.proof.oauth2 import examine_access_token
from orchestrator.proof.report import GrantProof, Proof
from orchestrator.runs.types import RunRequest, Services
from orchestrator.secret import Secret
from orchestrator.uninterrupted import completed, to_the_end
from orchestrator.vault.faults import VaultRefused
from orchestrator.vault.jwks import jwks_from_transit
from orchestrator.workflow.expressions import evaluate
from orchestrator.workflow.inputs import public_inputs

_NOBODY = "(proof)"
"""Stands for the agent that a tool would be called by."""

_SECONDS = 120
"""How long examining the credentials of one step may take; also their least time to live."""

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prover:
    """Proves workflows with the services of this process; `progress` is told each step's name as it begins."""

    services: Services
    wish: Examination
    progress: Progress = lambda step: None

    async def prove(self, request: RunRequest, steps: Sequence[str] = ()) -> Proof:
        """Prove the named steps, or all that have grants. Everything issued is revoked before this returns.

        Raises UsageError for a step that is not there, LedgerError or Unreachable where no proof can be made.
        """
        workflow = request.loaded.workflow
        for step in steps:
            if step not in workflow.parts:
                raise UsageError(
                    f"there is no step `{step}` in {workflow.name}", hint=f"there is: {', '.join(workflow.parts)}"
                )
        chosen = [name for name in steps or workflow.parts if workflow.parts[name].grants]
        started = RunStarted(
            workflow=workflow.name,
            digest=request.loaded.digest,
            agent=workflow.agent or _NOBODY,
            trigger=TRIGGER_PROOF,
            inputs=public_inputs(workflow, request.inputs),
            steps=tuple(chosen),
        )
        # What is begun is ended, however soon it is cancelled.
        fence, cancelled = await completed(self.services.ledger.begin_run(request.run_id, started))
        found: list[GrantProof] = []
        state, reason = RunState.FAILED, "the proof was cut short"
        try:
            if cancelled is not None:
                raise cancelled
            for step in chosen:
                self.progress(step)
                found += await self._step(request, fence, step)
            holds = all(each.holds for each in found)
            state, reason = (RunState.SUCCEEDED, "") if holds else (RunState.REFUSED, "more is held than was declared")
        finally:
            code = {RunState.SUCCEEDED: ExitCode.DONE, RunState.REFUSED: ExitCode.REFUSED}.get(
                state, ExitCode.STEP_FAILED
            )
            finished = RunFinished(state=state, exit_code=int(code), reason=reason)
            await to_the_end(self.services.ledger.append(request.run_id, fence, [finished]))
        left = await asyncio.to_thread(self.services.reader.leases, LeaseFilter(run=request.run_id, states=OPEN))
        return Proof(
            workflow=workflow.name,
            digest=request.loaded.digest,
            run_id=request.run_id,
            agent=started.agent,
            made=self.services.clock.now(),
            grants=tuple(found),
            unconfirmed=len(left),
        )

    async def _step(self, request: RunRequest, fence: int, step_id: str) -> list[GrantProof]:
        attempt = self._attempt(request, fence, step_id)
        started = AttemptStarted(step=step_id, attempt=1, step_key=attempt.step_key, action="(prove)", timeout=_SECONDS)
        leases = self.services.broker.open(attempt, prelude=(started,))
        opened = False
        try:
            async with leases as credentials:
                opened = True
                leases.epilogue = self._ended(step_id, StepState.SUCCEEDED)
                return await self._examine(request, attempt, leases, credentials)
        except Refused as refusal:
            if not opened:
                await self.services.ledger.append(
                    request.run_id, fence, self._ended(step_id, StepState.REFUSED, refusal.message)
                )
            return [
                GrantProof(step=step_id, grant=scope.name, declared=scope.describe(), refused=refusal.message)
                for scope in attempt.scopes
            ]
        except OrchestratorError as error:
            if not opened:
                await self.services.ledger.append(
                    request.run_id, fence, self._ended(step_id, StepState.FAILED, error.message)
                )
            raise

    def _attempt(self, request: RunRequest, fence: int, step_id: str) -> Attempt:
        workflow = request.loaded.workflow
        return Attempt(
            run_id=request.run_id,
            fence=fence,
            workflow=workflow.name,
            step=step_id,
            number=1,
            agent=workflow.agent or _NOBODY,
            step_key=new_step_key(step_id),
            scopes=self._scopes(request, step_id),
            policy=step_policy_name(workflow.name, step_id),
            deadline=self.services.clock.monotonic()
            + min(_SECONDS, min(s.ttl for s in self._scopes(request, step_id))),
        )

    def _scopes(self, request: RunRequest, step_id: str) -> tuple[Scope, ...]:
        """Row limits whose value only a real run knows stay unbound: the login then sees no row at all. A token has no
        details then, and in a session policy a name stands that nobody has."""
        workflow = request.loaded.workflow
        scopes = scopes_of(workflow, step_id)
        known: dict[str, Any] = {
            "inputs": {name: value for name, value in request.inputs.items() if not isinstance(value, Secret)},
            "run": {"id": request.run_id, "trigger": TRIGGER_PROOF},
            "workflow": request.loaded.variables,
            "endpoints": dict(self.services.endpoints),
        }
        try:
            known["context"] = evaluate(workflow.context, known)
            return bind(scopes, known)
        except InvalidExpression:
            return tuple(
                replace(scope, details=(), policy=None if scope.policy is None else with_any_name(scope.policy))
                for scope in scopes
            )

    @staticmethod
    def _ended(step: str, state: StepState, reason: str = "") -> tuple[AttemptFinished, StepFinished]:
        return (
            AttemptFinished(step=step, attempt=1, state=state, reason=reason),
            StepFinished(step=step, state=state, reason=reason),
        )

    async def _examine(
        self, request: RunRequest, attempt: Attempt, leases: StepLeases, credentials: Any
    ) -> list[GrantProof]:
        proofs = [await self._grant(request, attempt, scope, credentials[scope.name]) for scope in attempt.scopes]
        tried = await self._token(request, attempt, leases)
        proofs.append(
            GrantProof(step=attempt.step, grant="(step token)", declared=f"policy {attempt.policy}", trials=tried)
        )
        return proofs

    async def _grant(self, request: RunRequest, attempt: Attempt, scope: Scope, credential: Credential) -> GrantProof:
        step = request.loaded.workflow.parts[attempt.step]
        grant = step.grants[scope.name]
        if isinstance(grant, DatabaseGrant) and (made := compiled(grant, step_timeout=step.timeout)):
            # At the primary, if the endpoint is a standby: the login is the same there, and what writes can be tried.
            endpoint = self.services.primaries.get(grant.connection) or self.services.endpoints.get(grant.connection)
            if endpoint is None:
                raise Unreachable(f"no endpoint is configured for the connection `{grant.connection}`")
            return await asyncio.to_thread(
                examine_database, attempt.step, scope, made.scope_role, credential, endpoint, self.wish
            )
        if isinstance(grant, TokenGrant) and grant.profile == "identity":
            keys = await self.services.broker.vault.runtime_request(
                "get", "identity/oidc/.well-known/keys", deadline=attempt.deadline
            )
            return examine_token(attempt.step, scope, credential, keys)
        if isinstance(grant, TokenGrant):
            answer = await self.services.broker.vault.runtime_request(
                "get", f"{grant.mount}/keys/{grant.key}", deadline=attempt.deadline
            )
            return examine_token(attempt.step, scope, credential, jwks_from_transit(grant.key, answer))
        if isinstance(account := self.services.broker.issuers.get(scope.issuer or ""), AwsAccount):
            return await examine_session(attempt, scope, credential, account)
        if scope.kind == "oauth2":
            return examine_access_token(attempt.step, scope, credential)
        if scope.kind == "secret":
            return examine_secret(attempt.step, scope, credential)
        return GrantProof(step=attempt.step, grant=scope.name, declared=scope.describe())

    async def _token(self, request: RunRequest, attempt: Attempt, leases: StepLeases) -> tuple[Trial, ...]:
        """The step's own Vault token, tried on what it was not made for."""
        token = leases.step_token
        if token is None:
            return ()
        workflow = request.loaded.workflow
        everything = [scope for step_id in workflow.parts for scope in scopes_of(workflow, step_id)]
        trials = []
        for method, path in other_paths(attempt.scopes, attempt.policy, everything):
            what = f"{'read' if method == 'get' else 'write'} {path}"
            try:
                await self.services.broker.vault.request(
                    method,
                    path,
                    token=token.token,
                    deadline=attempt.deadline,
                    payload={} if method != "get" else None,
                    repeatable=False,
                )
            except VaultRefused as refusal:
                verdict = Verdict.REFUSED if refusal.status == 403 else Verdict.INCONCLUSIVE
                trials.append(
                    Trial(what, verdict, f"{refusal.status}" + (" permission denied" if refusal.status == 403 else ""))
                )
            else:
                trials.append(Trial(what, Verdict.ALLOWED, "Vault did it"))
        return tuple(trials)

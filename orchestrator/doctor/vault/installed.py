"""Whether provisioning has installed what the steps of the workflows need, as far as the runtime can see it.

The runtime can read neither policies nor roles. It can make a step's token, as a run does, and ask Vault what that
token may; nothing is issued with it, and it is revoked at once.
"""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.doctor.findings import Finding, fault, fine, not_seen
from orchestrator.doctor.subject import Subject
from orchestrator.errors import ExitCode, OrchestratorError
from orchestrator.grants.policy_names import duty_policy_name, duty_role_name, step_policy_name, token_role_name
from orchestrator.grants.scope import Scope
from orchestrator.planning.requests import scopes_of
from orchestrator.vault.faults import VaultRefused
from orchestrator.vault.fields import section
from orchestrator.vault.session import VaultSession

AREA = "provisioned"

_LIFE = 60
"""Seconds that a token lives at most that is made to be asked about."""

_USES = frozenset({"read", "update", "create", "root"})
_ADVICE = "run `orchestrator provision check` as an admin, then `orchestrator provision apply`"


async def installed(session: VaultSession, subject: Subject) -> list[Finding]:
    """For each step with grants whether its token role is there and gives what its grants are asked at."""
    found: list[Finding] = []
    wanted = _wanted(subject)
    for policy, paths in wanted.items():
        try:
            found += await _step(session, subject, policy, paths)
        except OrchestratorError as error:
            found.append(not_seen(AREA, f"whether {policy} is installed: {error.message}", _ADVICE))
    if wanted and not found:
        found.append(
            fine(AREA, f"the token roles and policies of all {len(wanted)} are there (`provision check` compares them)")
        )
    return found


def _wanted(subject: Subject) -> dict[str, Sequence[str]]:
    """The paths that are asked, by the policy that is to open them: of steps, and of the broker's duties."""
    wanted: dict[str, Sequence[str]] = {}
    connections: set[str] = set()
    for loaded in subject.workflows:
        for step_id, step in loaded.workflow.parts.items():
            if not step.grants:
                continue
            scopes = scopes_of(loaded.workflow, step_id)
            inside = [scope for scope in scopes if not scope.outside]
            wanted[step_policy_name(loaded.workflow.name, step_id)] = [scope.resource for scope in inside]
            connections |= {name for scope in inside if (name := _connection(scope)) is not None}
    for connection in sorted(connections):
        role = duty_role_name("sweep", connection)
        wanted[duty_policy_name("sweep", connection)] = [f"database/creds/{role}"]
    return wanted


def _connection(scope: Scope) -> str | None:
    return scope.connection if scope.kind == "database" else None


async def _step(session: VaultSession, subject: Subject, policy: str, paths: Sequence[str]) -> list[Finding]:
    until = subject.clock.monotonic() + subject.seconds
    role = token_role_name(policy)
    try:
        token = await session.create_step_token(
            role=role, display_name="doctor", ttl=_LIFE, metadata={}, deadline=until
        )
    except VaultRefused as refusal:
        if refusal.status == 403:
            return [
                fault(
                    AREA,
                    f"the login may not make tokens through the token role {role}",
                    f"is it the runtime's? if so {_ADVICE}",
                    ExitCode.REFUSED,
                )
            ]
        return [fault(AREA, f"the token role {role} is not there", _ADVICE, ExitCode.REFUSED)]
    try:
        if not paths:
            return []
        answer = await session.runtime_request(
            "post",
            "sys/capabilities-accessor",
            deadline=until,
            payload={"accessor": token.accessor, "paths": list(paths)},
        )
        may = section(answer, "data", "sys/capabilities-accessor")
        closed = [path for path in paths if not _USES & set(may.get(path) or ())]
        return [
            fault(AREA, f"the policy {policy} is not there, or does not open {path}", _ADVICE, ExitCode.REFUSED)
            for path in closed
        ]
    finally:
        await session.revoke_accessor(token.accessor, deadline=until)

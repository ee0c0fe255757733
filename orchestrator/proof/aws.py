"""A session of AWS, tried on what it was not issued for: each time it is the server that refuses.

Everything that is tried only reads. What is outside of the session policy is asked of the services themselves, so it
takes botocore (extra `aws`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from orchestrator.actions.aws.call import Call, CallParams
from orchestrator.actions.base import StepContext
from orchestrator.credentials.types import Attempt
from orchestrator.errors import StepFailed
from orchestrator.grants.credential import Credential
from orchestrator.grants.scope import Scope
from orchestrator.issuers.aws import AwsAccount
from orchestrator.proof.forbidden import Trial, Verdict
from orchestrator.proof.report import GrantProof

_ENDPOINT = "aws-of-issuer"


@dataclass(frozen=True, slots=True)
class _Probe:
    """An operation that only reads, and the action that it takes."""

    action: str
    operation: str
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def service(self) -> str:
        return self.action.partition(":")[0]


_PROBES = (
    _Probe("s3:ListAllMyBuckets", "ListBuckets"),
    _Probe("iam:ListUsers", "ListUsers"),
    _Probe("iam:ListRoles", "ListRoles"),
    _Probe("sqs:ListQueues", "ListQueues"),
    _Probe("dynamodb:ListTables", "ListTables"),
    _Probe("secretsmanager:ListSecrets", "ListSecrets"),
    _Probe("kms:ListKeys", "ListKeys"),
    _Probe("lambda:ListFunctions", "ListFunctions"),
)


async def examine_session(attempt: Attempt, scope: Scope, credential: Credential, account: AwsAccount) -> GrantProof:
    """Whose session it is, and what it is refused. Raises nothing for what AWS says."""
    trials: list[Trial] = []
    role = account.role(scope.role or "")
    wrong = ""
    for probe in (*_outside(scope), *_other_buckets(scope)):
        verdict, said = await _tried(attempt, credential, account, probe)
        what = f"{probe.action} {' '.join(map(str, probe.parameters.values()))}".strip()
        trials.append(Trial(what, verdict, said))
    verdict, said = await _tried(attempt, credential, account, _Probe("sts:GetCallerIdentity", "GetCallerIdentity"))
    if verdict is Verdict.ALLOWED and role is not None and f":assumed-role/{role.name}/{attempt.step_key}" not in said:
        wrong = f"it is the session of somebody else: {said}"
    chain = _Probe("sts:AssumeRole", "AssumeRole", {"RoleArn": role.arn if role else "", "RoleSessionName": "chain"})
    trials.append(Trial("make another session of its role", *await _tried(attempt, credential, account, chain)))
    return GrantProof(
        step=attempt.step, grant=scope.name, declared=scope.describe(), trials=tuple(trials), refused=wrong
    )


def _outside(scope: Scope) -> Iterator[_Probe]:
    """Those whose action the grant does not name."""
    named = [each.lower() for each in (scope.policy.actions if scope.policy else ())]
    for probe in _PROBES:
        if not any(fnmatchcase(probe.action.lower(), each) for each in named):
            yield probe


def _other_buckets(scope: Scope) -> Iterator[_Probe]:
    """Listing the buckets of whose objects it may see some, where that is not granted."""
    if scope.policy is None or any(fnmatchcase("s3:listbucket", each.lower()) for each in scope.policy.actions):
        return
    buckets = {each.split(":", 5)[5].partition("/")[0] for each in scope.policy.resources if ":s3:::" in each}
    for bucket in sorted(each for each in buckets if not set("*?") & set(each)):
        yield _Probe("s3:ListBucket", "ListObjectsV2", {"Bucket": bucket})


async def _tried(attempt: Attempt, credential: Credential, account: AwsAccount, probe: _Probe) -> tuple[Verdict, str]:
    params = CallParams(
        service=probe.service,
        operation=probe.operation,
        parameters=dict(probe.parameters),
        grant=credential.grant,
        region=account.region,
        endpoint=_ENDPOINT if account.endpoint is not None else None,
    )
    context = StepContext(
        run_id=attempt.run_id,
        workflow=attempt.workflow,
        step=attempt.step,
        attempt=attempt.number,
        agent=attempt.agent,
        idempotency_key=attempt.step_key,
        deadline=attempt.deadline,
        credentials={credential.grant: credential},
        endpoints={} if account.endpoint is None else {_ENDPOINT: account.endpoint},
    )
    try:
        output: Any = await Call().run(params, context)
    except StepFailed as failure:
        refused = failure.kind == "permission"
        told = failure.message.partition(": ")[2] if refused else failure.message
        return (Verdict.REFUSED if refused else Verdict.INCONCLUSIVE), told[:120]
    return Verdict.ALLOWED, str(output["result"].get("Arn", "AWS did it"))

"""Sessions of AWS roles: STS AssumeRole, signed with a key of the day that Vault's transit engine computes.

The secret access key is in Vault and never here: a step's own token is good for the key of one day. The session has
what its role and the session policy both allow, and the policy ends with the step, since AWS has no session of less
than 15 minutes and takes none back.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from orchestrator.credentials.faults import IssuerUnavailable
from orchestrator.credentials.types import Issued, IssueRequest
from orchestrator.errors import GrantRefused
from orchestrator.grants.aws.patterns import check_breadth, check_resource
from orchestrator.grants.aws.session_policy import LONGEST_POLICY, SHORTEST_SESSION, SessionPolicy
from orchestrator.grants.credential import Credential
from orchestrator.issuers.aws import AGENT_TAG, AccessKey, AwsAccount, AwsRole, beyond, tag_value
from orchestrator.network.aws.query import AwsUnavailable, QueryApi, Signer
from orchestrator.network.aws.sigv4 import SigningKey
from orchestrator.secret import Secret
from orchestrator.step_names import declared_step
from orchestrator.vault.faults import Outcome
from orchestrator.vault.fields import not_understood, section, text
from orchestrator.vault.retry import retrying

_CLOCK_DIFFERENCE = timedelta(seconds=5)
"""Beyond it our clock and AWS's are said to differ: the policy is compared with AWS's."""

_KEY_ID = re.compile(r"[A-Z0-9]{16,128}")
_SECRET = re.compile(r"[\x21-\x7e]{16,8192}")


@dataclass(frozen=True, slots=True)
class _Session:
    """What STS gave, and until when it is valid by AWS's own clock."""

    fields: Mapping[str, Secret]
    expires: datetime


class AwsIssuer:
    """Asks STS for one session. Nothing of it can be taken back, so its use ends by itself."""

    async def issue(self, request: IssueRequest) -> Issued:
        """A session for the rest of the attempt (STS API Reference, AssumeRole and AssumeRoleWithWebIdentity).

        Raises AwsRefused, GrantRefused, IssuerUnavailable, and VaultRefused or VaultUnavailable for the key of the day.
        """
        scope = request.scope
        account, role, policy = _declared(request)
        left = max(1, int(min(request.attempt.deadline - request.clock.monotonic(), scope.ttl)))
        seconds = max(SHORTEST_SESSION, left)
        ends, now = _later(request.clock.now(), left), request.clock.now()
        session = await self._assume(request, account, role, policy.until(ends), seconds)
        theirs = session.expires - timedelta(seconds=seconds)
        if abs(theirs - now) > _CLOCK_DIFFERENCE:  # then the one that came may be of use for too long or too short
            ends = _later(theirs, left)
            session = await self._assume(request, account, role, policy.until(ends), seconds)
        return Issued(
            Credential(scope.name, scope.kind, left, fields=session.fields),
            left,
            subject=f"{role.arn} {request.attempt.step_key}",
            valid_until=min(ends, session.expires),
        )

    async def _assume(
        self, request: IssueRequest, account: AwsAccount, role: AwsRole, policy: str, seconds: int
    ) -> _Session:
        attempt = request.attempt
        sts = QueryApi("sts", account.region, account.sts, now=request.clock.now)
        parameters = {
            "RoleArn": role.arn,
            "RoleSessionName": attempt.step_key,
            "DurationSeconds": str(seconds),
            "Policy": policy,
        }
        signer: Signer | None = None
        if account.access_key is not None:
            action = "AssumeRole"
            parameters |= {"SourceIdentity": attempt.step_key, **_tags(request)}
            if account.external_id is not None:
                parameters["ExternalId"] = account.external_id
            signer = day_keys(request, account.access_key)
        else:
            action = "AssumeRoleWithWebIdentity"
            parameters["WebIdentityToken"] = (await _identity_token(request, account.vault_path)).reveal()

        async def once() -> Mapping[str, str] | IssuerUnavailable:
            left = attempt.deadline - request.clock.monotonic()
            try:
                return await sts.call(action, parameters, signer=signer, seconds=left)
            except AwsUnavailable as error:
                outcome = Outcome.UNKNOWN if error.done else Outcome.NOT_DONE
                failed = IssuerUnavailable(error.message, outcome=outcome, hint=error.hint)
                if error.answered:
                    return failed
                raise failed from error

        # A session more does no harm: whose answer was lost, nobody holds.
        answer = await retrying(
            once, clock=request.clock, deadline=attempt.deadline, repeatable=True, stop=request.stop
        )
        if isinstance(answer, IssuerUnavailable):
            raise answer
        return _session(request, role, answer)


def day_keys(request: IssueRequest, access_key: AccessKey) -> Signer:
    """Gives the key of a day, which Vault computes for the step's own token (`POST /transit/hmac/:name`)."""

    async def day_key(day: str) -> SigningKey:
        path = access_key.resource
        body = await _ask(request, "post", path, {"input": base64.b64encode(day.encode()).decode()})
        encoded = text(section(body, "data", path), "hmac", path).rpartition(":")[2]
        request.remember(Secret(encoded))
        try:
            key = base64.b64decode(encoded, validate=True)
        except binascii.Error:
            key = b""
        if len(key) != 32:
            raise not_understood(path)
        return SigningKey(access_key.id, day, key)

    return day_key


async def _identity_token(request: IssueRequest, path: str) -> Secret:
    body = await _ask(request, "get", path, None)
    token = Secret(text(section(body, "data", path), "token", path))
    request.remember(token)
    return token


async def _ask(request: IssueRequest, method: str, path: str, payload: Mapping[str, Any] | None) -> Mapping[str, Any]:
    return await request.ask_on_the_way(method, path, payload, deadline=request.attempt.deadline, stop=request.stop)


def _declared(request: IssueRequest) -> tuple[AwsAccount, AwsRole, SessionPolicy]:
    """What the grant is about. Raises GrantRefused for what is not declared, or is no policy that may be asked for."""
    scope = request.scope
    account = request.issuers.get(scope.issuer or "")
    if not isinstance(account, AwsAccount):
        raise _refused(
            request,
            f"no AWS account `{scope.issuer}` is declared",
            "declare it under `issuers`, and name that file in ORCHESTRATOR_ISSUERS",
        )
    role = account.role(scope.role or "")
    if role is None or (more := beyond(account, scope)) is not None:
        raise _refused(
            request,
            f"it asks for {more if role else f'the role `{scope.role}`'}, which `{scope.issuer}` may not be asked for",
            "an admin adds it to the issuer in declarations.yaml, if that is meant",
        )
    policy = scope.policy
    if policy is None or not policy.actions or not policy.resources:
        raise _refused(request, "the grant names no action or no resource", None)
    try:
        resources = [[each] for each in policy.resources]
        for each in resources:
            check_resource(each)  # refuses an expression that was not evaluated, too
        check_breadth(policy.actions, resources, policy.wildcards)
    except ValueError as error:
        raise _refused(request, str(error), None) from None
    if policy.length > LONGEST_POLICY:
        raise _refused(request, f"the session policy has {policy.length} characters; AWS takes {LONGEST_POLICY}", None)
    return account, role, policy


def _refused(request: IssueRequest, message: str, hint: str | None) -> GrantRefused:
    return GrantRefused(message, grant=request.scope.name, path=request.scope.resource, by="orchestrator", hint=hint)


def _later(moment: datetime, seconds: int) -> datetime:
    """So much later, on a whole second."""
    return moment.replace(microsecond=0) + timedelta(seconds=seconds + 1)


def _tags(request: IssueRequest) -> dict[str, str]:
    """Session tags: for whom the session was made, in AWS's own records and for `orchestrator issuers deny`."""
    attempt = request.attempt
    said = {
        AGENT_TAG: attempt.agent,
        "orchestrator-run": attempt.run_id,
        "orchestrator-step": declared_step(attempt.step),
        "orchestrator-workflow": attempt.workflow,
    }
    tags: dict[str, str] = {}
    for number, (name, value) in enumerate(sorted(said.items()), 1):
        tags[f"Tags.member.{number}.Key"] = name
        tags[f"Tags.member.{number}.Value"] = tag_value(value)
    return tags


def _session(request: IssueRequest, role: AwsRole, answer: Mapping[str, str]) -> _Session:
    """What is in the answer. Raises IssuerUnavailable for what is no session of this role."""
    try:
        key_id, secret, token = (
            answer[f"Credentials/{name}"] for name in ("AccessKeyId", "SecretAccessKey", "SessionToken")
        )
        who, expires = answer["AssumedRoleUser/Arn"], datetime.fromisoformat(answer["Credentials/Expiration"])
    except (KeyError, ValueError):
        raise _unreadable("has no session in it") from None
    for each in (secret, token):
        request.remember(Secret(each))
    if not (_KEY_ID.fullmatch(key_id) and _SECRET.fullmatch(secret) and _SECRET.fullmatch(token) and expires.tzinfo):
        raise _unreadable("has no session in it")
    if not who.endswith(f":assumed-role/{role.name}/{request.attempt.step_key}"):
        raise _unreadable("is about another role or session")
    fields = {"access_key_id": key_id, "secret_access_key": secret, "session_token": token}
    # What every SDK of AWS's reads as a file, AWS_SHARED_CREDENTIALS_FILE.
    fields["shared_credentials"] = "[default]\n" + "".join(f"aws_{name} = {text}\n" for name, text in fields.items())
    return _Session({name: Secret(text) for name, text in fields.items()}, expires.astimezone(UTC))


def _unreadable(what: str) -> IssuerUnavailable:
    return IssuerUnavailable(f"the answer of AWS STS {what}", outcome=Outcome.UNKNOWN)

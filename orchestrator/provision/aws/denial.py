"""Ending the sessions of a role before their time: AWS revokes none, but a role can deny those issued until a moment.

It is an inline policy of the role with the condition `aws:TokenIssueTime` (IAM User Guide, "Revoking IAM role temporary
security credentials"). The sessions themselves are nowhere any more, so nobody can try them. What is tried instead is a
session of the same role that was issued for this before the denial: what it could do just before and cannot do now,
none of the others can.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Literal
from urllib.parse import unquote

from orchestrator.clock import Clock
from orchestrator.errors import ProvisionError, UsageError
from orchestrator.grants.aws.session_policy import SHORTEST_SESSION, compile_policy
from orchestrator.issuers.aws import AGENT_TAG, AccessKey, AwsAccount, AwsRole, tag_value
from orchestrator.ledger.ids import new_step_key
from orchestrator.network.aws.query import AwsRefused, AwsUnavailable, QueryApi, Signer, iam_region
from orchestrator.network.aws.sigv4 import SigningKey, day_key
from orchestrator.provision.vault.admin import VaultAdmin

_POLICY = "orchestrator-deny-sessions"
_PAUSE = 0.5
_MARGIN = timedelta(seconds=2)
"""Times are whole seconds at AWS: what is issued in the same one is denied, too."""

Evidence = Literal["refused", "written", "not looked at"]
"""How it is known: a session from before is refused; the policy is there as it was written; or not at all."""


@dataclass(frozen=True, slots=True)
class Denial:
    """What came of it. `before`: sessions issued until then are denied; `note` is for people."""

    role: str
    policy: str
    before: datetime
    agent: str | None
    evidence: Evidence
    note: str = ""


@dataclass(frozen=True, slots=True)
class Denier:
    """Acts on one role, as the declared identity that may change it. The admin's Vault token computes its keys."""

    account: AwsAccount
    role: AwsRole
    admin: VaultAdmin
    clock: Clock
    progress: Callable[[str], None] = field(default=lambda done: None)

    async def deny(self, agent: str | None = None, *, seconds: float = 60) -> Denial:
        """Deny what was issued until now, to one agent or to all, and see that it is refused, for so long at most.

        Raises UsageError where nobody is declared for it, AwsRefused, AwsUnavailable and ProvisionError.
        """
        iam, signer = self._iam(), self._signer(self._identity())
        probe, before = await self._probe(agent)
        useful = probe is not None and await self._is_allowed(probe)
        name, document = _policy_name(agent), _document(before, agent)
        put = {"RoleName": self.role.name, "PolicyName": name, "PolicyDocument": document}
        await iam.call("PutRolePolicy", put, signer=signer, seconds=20)
        self.progress(f"{name} is written")
        there = await iam.call(
            "GetRolePolicy", {k: put[k] for k in ("RoleName", "PolicyName")}, signer=signer, seconds=20
        )
        if _decoded(there.get("PolicyDocument", "")) != json.loads(document):
            raise ProvisionError(f"the policy `{name}` of `{self.role.name}` is not the one that was written")
        if probe is None or not useful:
            why = (
                "no session could be issued for it"
                if probe is None
                else f"`{self.role.name}` may not iam:GetRole on itself"
            )
            return Denial(self.role.arn, name, before, agent, "written", f"nothing could be tried: {why}")
        until = self.clock.monotonic() + seconds
        while await self._is_allowed(probe):
            if self.clock.monotonic() >= until:
                note = "a session from before is still allowed what it was; AWS takes a while: do it again"
                return Denial(self.role.arn, name, before, agent, "written", note)
            await asyncio.sleep(_PAUSE)
        return Denial(self.role.arn, name, before, agent, "refused", "a session from before is refused")

    async def lift(self, agent: str | None = None) -> str:
        """Take the denial away again; the name of the policy. Raises as `deny`."""
        name = _policy_name(agent)
        await self._iam().call(
            "DeleteRolePolicy",
            {"RoleName": self.role.name, "PolicyName": name},
            signer=self._signer(self._identity()),
            seconds=20,
        )
        return name

    def _identity(self) -> AccessKey:
        if self.account.denier is None:
            raise UsageError(
                "nobody is declared who may change the roles of this account",
                hint="declare a `denier` with iam:PutRolePolicy, iam:GetRolePolicy and iam:DeleteRolePolicy on them",
            )
        return self.account.denier

    def _iam(self) -> QueryApi:
        return QueryApi("iam", iam_region(self.account.region), self.account.iam, now=self.clock.now)

    def _signer(self, key: AccessKey) -> Signer:
        async def sign(day: str) -> SigningKey:
            payload = {"input": base64.b64encode(day.encode()).decode()}
            answer = await asyncio.to_thread(self.admin.write, key.resource, payload)
            return SigningKey(key.id, day, base64.b64decode(str(answer["data"]["hmac"]).rpartition(":")[2]))

        return sign

    async def _probe(self, agent: str | None) -> tuple[Signer | None, datetime]:
        """A session of the role from before the denial, and until when others are denied, by AWS's clock."""
        if self.account.access_key is None:
            return None, self.clock.now().replace(microsecond=0) + _MARGIN
        policy = compile_policy(["iam:GetRole"], ["*"], {})  # what it may see is for its role to say
        wish = {
            "RoleArn": self.role.arn,
            "RoleSessionName": new_step_key("denial"),
            "DurationSeconds": str(SHORTEST_SESSION),
            "Policy": policy.text,
        }
        if self.account.external_id is not None:
            wish["ExternalId"] = self.account.external_id
        if agent is not None:
            wish |= {"Tags.member.1.Key": AGENT_TAG, "Tags.member.1.Value": tag_value(agent)}
        sts = QueryApi("sts", self.account.region, self.account.sts, now=self.clock.now)
        try:
            given = await sts.call("AssumeRole", wish, signer=self._signer(self.account.access_key), seconds=20)
            expires = datetime.fromisoformat(given["Credentials/Expiration"]).astimezone(UTC)
            key_id, secret, token = (
                given[f"Credentials/{each}"] for each in ("AccessKeyId", "SecretAccessKey", "SessionToken")
            )
        except (AwsRefused, AwsUnavailable, ProvisionError, KeyError, ValueError) as error:
            self.progress(f"no session could be issued to try: {getattr(error, 'message', type(error).__name__)}")
            return None, self.clock.now().replace(microsecond=0) + _MARGIN

        async def sign(day: str) -> SigningKey:
            return SigningKey(key_id, day, day_key(secret, day), token)

        return sign, expires - timedelta(seconds=SHORTEST_SESSION) + _MARGIN

    async def _is_allowed(self, probe: Signer) -> bool:
        try:
            await self._iam().call("GetRole", {"RoleName": self.role.name}, signer=probe, seconds=20)
        except AwsRefused as refusal:
            if refusal.code != "AccessDenied":
                raise
            return False
        return True


def _policy_name(agent: str | None) -> str:
    if agent is None:
        return _POLICY
    readable = re.sub(r"[^A-Za-z0-9_+=,.@-]", "-", agent)[:60]
    return f"{_POLICY}-of-{readable}-{hashlib.sha256(agent.encode()).hexdigest()[:8]}"


def _document(before: datetime, agent: str | None) -> str:
    conditions: dict[str, dict[str, str]] = {
        "DateLessThan": {"aws:TokenIssueTime": before.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")}
    }
    if agent is not None:
        conditions["StringEquals"] = {f"aws:PrincipalTag/{AGENT_TAG}": tag_value(agent)}
    statement = {"Effect": "Deny", "Action": "*", "Resource": "*", "Condition": conditions}
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]}, separators=(",", ":"))


def _decoded(document: str) -> object:
    """A policy as IAM gives it back: percent-encoded (RFC 3986)."""
    try:
        return json.loads(unquote(document))
    except ValueError:
        return None

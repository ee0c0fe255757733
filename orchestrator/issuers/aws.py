"""An AWS account: who the orchestrator is there, and the roles that it may assume for steps."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from orchestrator.grants.aws.grant import ROLE_ARN
from orchestrator.grants.aws.session_policy import LONGEST_SESSION, SHORTEST_SESSION
from orchestrator.grants.fields import Duration, Name, VaultPath, format_duration
from orchestrator.grants.scope import Scope
from orchestrator.network.aws.query import check_endpoint, check_region, endpoint_of

AccessKeyId = Annotated[str, Field(pattern=r"^[A-Z0-9]{16,128}$")]
Endpoint = Annotated[str, AfterValidator(check_endpoint)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class AccessKey(_Model):
    """A user of IAM. The secret access key is in Vault's transit engine alone, imported as an `hmac` key."""

    id: AccessKeyId
    key: Name
    """The transit key: `AWS4` and the secret, as `orchestrator provision import-key` makes it."""
    mount: VaultPath = "transit"

    @property
    def resource(self) -> str:
        """Where the API computes the key of a day."""
        return f"{self.mount}/hmac/{self.key}/sha2-256"


class AwsRole(_Model):
    """A role that may be assumed."""

    arn: Annotated[str, Field(pattern=rf"^{ROLE_ARN}$")]
    max_session: Duration = 3600
    """Its own maximum session duration."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if not SHORTEST_SESSION <= self.max_session <= LONGEST_SESSION:
            least, most = format_duration(SHORTEST_SESSION), format_duration(LONGEST_SESSION)
            raise ValueError(f"the `max_session` of a role is between {least} and {most}")
        return self

    @property
    def name(self) -> str:
        """The name by which IAM knows it, without its path."""
        return self.arn.rpartition("/")[2]


def _by_arn(value: object) -> object:
    return {"arn": value} if isinstance(value, str) else value


class AwsAccount(_Model):
    """Where sessions are asked for, as whom, and of which roles."""

    kind: Literal["aws"]
    region: Annotated[str, AfterValidator(check_region)]
    access_key: AccessKey | None = None
    """Who asks for sessions. He needs sts:AssumeRole on the roles, and nothing else."""
    identity_role: Annotated[str, Field(pattern=r"^[\w.-]{1,128}$")] | None = None
    """Instead of an access key: a role of Vault's identity engine whose tokens AWS trusts (web identity)."""
    roles: Annotated[dict[Name, Annotated[AwsRole, BeforeValidator(_by_arn)]], Field(min_length=1)]
    external_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9_+=,.@:/-]{2,1224}$")] | None = None
    """What the trust policies of the roles ask for beside the identity; no secret."""
    denier: AccessKey | None = None
    """Who may end the sessions of the roles (iam:PutRolePolicy, iam:GetRolePolicy); used by an admin only."""
    endpoint: Endpoint | None = None
    """The address of STS. Default: the regional one."""
    iam_endpoint: Endpoint | None = None

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.access_key is None) == (self.identity_role is None):
            raise ValueError("sessions are asked for with an `access_key`, or with tokens of an `identity_role`")
        if self.identity_role is not None and self.external_id is not None:
            raise ValueError(
                "AWS takes no `external_id` with a web identity: its trust policy names the token's claims"
            )
        if self.denier is not None and self.access_key is not None and self.denier.key == self.access_key.key:
            raise ValueError("the `denier` is another identity than the one of steps: it can change what a role may do")
        return self

    @property
    def sts(self) -> str:
        """The address of STS."""
        return self.endpoint or endpoint_of("sts", self.region)

    @property
    def iam(self) -> str:
        """The address of IAM."""
        return self.iam_endpoint or endpoint_of("iam", self.region)

    @property
    def vault_path(self) -> str:
        """What a step's token is asked for: the key of a day, or an identity token."""
        if self.access_key is not None:
            return self.access_key.resource
        return f"identity/oidc/token/{self.identity_role}"

    def access_keys(self) -> list[AccessKey]:
        """The keys of AWS that Vault keeps for it."""
        return [key for key in (self.access_key, self.denier) if key is not None]

    def role(self, named: str) -> AwsRole | None:
        """The declared role of this name, or of this ARN."""
        return self.roles.get(named) or next((each for each in self.roles.values() if each.arn == named), None)


AGENT_TAG = "orchestrator-agent"
"""The session tag that says for which agent a session was issued."""

_TAG = re.compile(r"[^A-Za-z0-9_.:/=+@-]")


def tag_value(value: str) -> str:
    """A value as AWS takes it in a tag (STS API Reference, Tag): at most 256 of a few kinds of characters."""
    return _TAG.sub("-", value)[:256]


def beyond(account: AwsAccount, scope: Scope) -> str | None:
    """What a grant asks of an account although it is not declared for it; None where everything is."""
    role = account.role(scope.role or "")
    if role is None:
        return f"the role `{scope.role}`"
    if scope.ttl > role.max_session:
        return f"a session of {format_duration(scope.ttl)} where {format_duration(role.max_session)} is the longest"
    return None

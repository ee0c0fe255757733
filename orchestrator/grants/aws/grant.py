"""A session of an AWS role, narrowed to what a step needs: what a step may ask for."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from orchestrator.grants.aws.patterns import (
    Action,
    ConditionValue,
    Resource,
    WildcardPlace,
    check_breadth,
    check_conditions,
)
from orchestrator.grants.aws.session_policy import LONGEST_SESSION
from orchestrator.grants.fields import GrantModel, Name, format_duration

ROLE_ARN = r"arn:aws(?:-[a-z]{1,12}){0,3}:iam::[0-9]{12}:role/[A-Za-z0-9_+=,.@/-]{1,512}"


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


Conditions = dict[
    str,
    Annotated[
        dict[str, Annotated[list[ConditionValue], BeforeValidator(_listed), Field(min_length=1)]],
        Field(min_length=1),
    ],
]


class AwsGrant(GrantModel):
    """A session of an AWS role (STS AssumeRole) that may do what is named here, as far as the role may.

    It is good for nothing after `ttl`. AWS has no way to end one session early.
    """

    kind: Literal["aws"]
    issuer: Name = Field(description="The AWS account, by its name under `issuers` in declarations.yaml.")
    role: Annotated[str, Field(pattern=rf"^(?:[a-z][a-z0-9_-]{{0,62}}|{ROLE_ARN})$")] = Field(
        description="The role to be assumed, by its name in the declaration of the issuer, or its ARN."
    )
    actions: Annotated[list[Action], Field(min_length=1)] = Field(
        description="What may be done.", examples=[["s3:GetObject"]]
    )
    resources: Annotated[list[Resource], Field(min_length=1)] = Field(
        description="What it may be done to: ARNs. In the name of a thing `${{ }}` expressions may stand, which are "
        "bound when the session is issued; a value has letters, digits and `_.@=+,~-` only.",
        examples=[["arn:aws:s3:::reports/${{ inputs.customer }}/*"]],
    )
    conditions: Conditions = Field(
        default_factory=dict,
        description="Further conditions, by operator and key. Values may contain `${{ }}` expressions.",
        examples=[{"StringLike": {"s3:prefix": "${{ inputs.customer }}/*"}}],
    )
    wildcards: list[WildcardPlace] = Field(
        default_factory=list,
        description="Where the grant is as broad as a wildcard makes it: in `actions` (`s3:Get*`), or in `resources` "
        "(`*`, any account or region, anything of a type).",
    )

    @model_validator(mode="after")
    def _certain(self) -> Self:
        check_conditions(self.conditions)
        plain = [[each] for each in self.resources if "${{" not in each]
        check_breadth(self.actions, plain, self.wildcards)
        if self.ttl is not None and self.ttl > LONGEST_SESSION:
            raise ValueError(f"AWS has no session of more than {format_duration(LONGEST_SESSION)}")
        return self

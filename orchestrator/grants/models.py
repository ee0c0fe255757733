"""What a step may declare that it needs: the kinds of grant, as data.

A grant says nothing about how it is issued; `orchestrator.credentials.issuers` knows that.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from orchestrator.grants.aws.grant import AwsGrant
from orchestrator.grants.certificate import CertificateGrant
from orchestrator.grants.fields import Detail, Duration, GrantModel, LeasedGrant, Name, OAuthScope, VaultPath
from orchestrator.grants.narrowing import check_narrower
from orchestrator.grants.oauth2 import OAuth2Grant
from orchestrator.grants.parameters import Parameters
from orchestrator.grants.privileges import WRITING_VERBS, ColumnName, ColumnVerb, DeclaredPrivilege, TableName, merge

TOKEN_KEY = "orchestrator-token"  # noqa: S105 -- the name of a transit key
"""The transit key that signs where a grant names no other."""

OwnedObjects = Literal["drop", "keep"]
"""What becomes of the objects of a login that goes; dropped is the default, since nobody would look after them."""

_OF_PRIVILEGES = {"max_connections", "statement_timeout", "read_only", "owned_objects", "narrower"}
"""What a grant says of the login that provisioning compiles for it."""


Narrower = Annotated[
    dict[
        TableName,
        Annotated[
            dict[ColumnVerb, Annotated[list[ColumnName], Field(min_length=1)]],
            Field(min_length=1),
        ],
    ],
    Field(min_length=1),
]
"""By table and verb: the columns that remain."""


class DatabaseGrant(LeasedGrant):
    """A short-lived database login that may do exactly what `privileges` says.

    With `role` instead it is a role of Vault's database engine that an admin maintains by hand.
    """

    kind: Literal["database"]
    connection: Name = Field(description="The database, by the name of its Vault connection and of its endpoint.")
    privileges: list[DeclaredPrivilege] = Field(
        default_factory=list, description="What the login may do; provisioning compiles it."
    )
    role: Annotated[str, Field(pattern=r"^[\w-]{1,128}$")] | None = Field(
        default=None, description="A Vault database role that is maintained by hand, instead of `privileges`."
    )
    max_connections: Annotated[int, Field(ge=1, le=100)] = Field(default=2, description="Sessions at the same time.")
    statement_timeout: Duration | None = Field(
        default=None, description="The longest that one statement may take unless the step asks for something else."
    )
    read_only: bool = Field(
        default=False, description="No writing privilege may be declared; sessions start read-only."
    )
    owned_objects: OwnedObjects = Field(
        default="drop",
        description="What becomes of objects that the login owns when it goes: dropped, or kept by Vault's own login.",
    )
    narrower: dict[Name, Narrower] = Field(
        default_factory=dict,
        description="Forms of the grant with fewer columns, by a name of yours, that a policy may demand instead of "
        "the whole (obligation `columns`); provisioned with it. What is not named stays as it is.",
        examples=[{"without_comments": {"shop.orders": {"select": ["id", "total"]}}}],
    )
    mount: VaultPath = Field(default="database", description="Mount path of the database secrets engine.")

    @model_validator(mode="after")
    def _one_way(self) -> DatabaseGrant:
        if (self.role is None) == (not self.privileges):
            raise ValueError("a database grant has either `privileges` or the `role` that an admin maintains")
        if self.role is not None and (given := sorted(_OF_PRIVILEGES & self.model_fields_set)):
            raise ValueError(f"these belong to `privileges`, not to `role`: `{'`, `'.join(given)}`")
        declared = merge(each.privilege() for each in self.privileges)
        for name, columns in self.narrower.items():
            try:
                check_narrower(declared, columns)
            except ValueError as error:
                raise ValueError(f"`narrower.{name}`: {error}") from error
        for each in self.privileges:
            if self.read_only and each.privilege().verb in WRITING_VERBS:
                raise ValueError(f"a `read_only` grant cannot `{each.privilege().verb}`")
        return self


class SecretGrant(GrantModel):
    """Chosen keys of one secret in a KV version 2 engine. Such a secret cannot be revoked, only its access ended."""

    kind: Literal["secret"]
    path: VaultPath = Field(description="Path of the secret inside its mount.")
    keys: Annotated[list[str], Field(min_length=1)] = Field(description="The keys the step sees; no others.")
    mount: VaultPath = Field(default="secret", description="Mount path of the KV version 2 engine.")


class DynamicGrant(LeasedGrant):
    """Any Vault path that answers with a lease, such as `rabbitmq/creds/NAME` or `aws/creds/NAME`."""

    kind: Literal["dynamic"]
    path: VaultPath = Field(description="The full path to read, or with `parameters` to write to.")
    parameters: Parameters | None = Field(
        default=None,
        description="What is sent to the path, which is asked with POST then: texts, numbers, truth values, lists of "
        "texts, nothing secret. Texts may be `${{ }}` expressions, which are bound when it is issued.",
        examples=[{"common_name": "${{ inputs.host }}.orders.example", "ttl": "60s"}],
    )


class TokenGrant(GrantModel):
    """A signed JWT access token (RFC 9068) for one audience; the key never leaves Vault's transit engine."""

    kind: Literal["token"]
    audience: Annotated[str, Field(min_length=1)] = Field(description="The `aud` claim: the one service it is for.")
    scope: Annotated[list[OAuthScope], Field(min_length=1)] = Field(
        description="OAuth scopes (RFC 6749, 3.3), nothing broader."
    )
    profile: Literal["transit", "workflow", "identity"] = Field(
        default="transit",
        description="Who builds the claims. `transit`: the orchestrator, and Vault signs what it is given. `workflow`: "
        "the server itself, by a workflow that provisioning installs (OpenBao 2.6 and newer). `identity`: Vault's "
        "identity engine, by a role that provisioning installs.",
    )
    details: Annotated[list[Detail], Field(min_length=1)] | None = Field(
        default=None,
        description="What the token is for, piece by piece: `authorization_details` (RFC 9396). Values may contain "
        "`${{ }}` expressions, which are bound when the token is issued.",
        examples=[[{"type": "crm_record", "actions": ["write_ticket"], "identifier": "${{ inputs.customer_id }}"}]],
    )
    key: Name = Field(default=TOKEN_KEY, description="The transit key that signs.")
    mount: VaultPath = Field(default="transit", description="Mount path of the transit engine.")

    @model_validator(mode="after")
    def _details_are_ours(self) -> Self:
        if self.details is not None and self.profile != "transit":
            raise ValueError("`details` are bound for each token, so the orchestrator builds it: `profile: transit`")
        return self


AnyGrant = DatabaseGrant | SecretGrant | DynamicGrant | TokenGrant | OAuth2Grant | AwsGrant | CertificateGrant
Grant = Annotated[AnyGrant, Field(discriminator="kind")]

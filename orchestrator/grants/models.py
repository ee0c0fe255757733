"""What a step may declare that it needs: the kinds of grant, as data.

A grant says nothing about how it is issued; `orchestrator.credentials.issuers` knows that.
Durations are written `90s`, `5m`, `1h` and are seconds in code.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from orchestrator.grants.narrowing import check_narrower
from orchestrator.grants.privileges import WRITING_VERBS, ColumnName, ColumnVerb, DeclaredPrivilege, TableName, merge

_DURATION = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")


LONGEST_DURATION = 87_660 * 3600
"""Seconds."""


def parse_duration(value: object) -> int:
    """Seconds of `90s`, `5m`, `1h30m`, or of a plain positive integer.

    Raises ValueError for anything else, zero included, and for what is longer than `LONGEST_DURATION`: clocks end.
    """
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError("a duration is written like 90s, 5m or 1h30m")
    if isinstance(value, int):
        seconds = value
    else:
        match = _DURATION.fullmatch(value.strip())
        if match is None or not any(match.groups()) or len(value) > 40:
            raise ValueError(f"{value[:40]!r} is not a duration; write it like 90s, 5m or 1h30m")
        hours, minutes, rest = (int(part or 0) for part in match.groups())
        seconds = hours * 3600 + minutes * 60 + rest
    if seconds <= 0:
        raise ValueError("a duration is longer than zero")
    if seconds > LONGEST_DURATION:
        raise ValueError(f"a duration is at most {format_duration(LONGEST_DURATION)}, which is ten years")
    return seconds


def format_duration(seconds: float) -> str:
    """`5400` as `1h30m`: the inverse of `parse_duration`."""
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    minutes, rest = divmod(rest, 60)
    text = "".join(f"{n}{unit}" for n, unit in ((hours, "h"), (minutes, "m"), (rest, "s")) if n)
    return text or "0s"


Duration = Annotated[
    int,
    BeforeValidator(parse_duration),
    Field(json_schema_extra={"type": ["string", "integer"], "examples": ["90s", "5m", "1h30m"]}),
]
"""Seconds, written as in `parse_duration`."""


def _vault_path(value: str) -> str:
    if value != value.strip("/") or "//" in value or not value:
        raise ValueError("a Vault path has no leading, trailing or double slash")
    if any(part in (".", "..") for part in value.split("/")) or not re.fullmatch(r"[\w\-./@:+]+", value):
        raise ValueError(f"{value!r} is not a plain Vault path")
    return value


VaultPath = Annotated[str, AfterValidator(_vault_path)]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,62}$")]
"""A name that people choose: workflow, step, grant, connection."""


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


class _Grant(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    ttl: Duration | None = Field(
        default=None,
        description="How long the credential must live, and the longest it may. Default: the step's timeout plus 30s.",
    )


class _LeasedGrant(_Grant):
    on_expiry: Literal["fail", "reissue"] = Field(
        default="fail",
        description="What happens where the lease cannot be renewed although the step still runs: the step is ended "
        "in time, or a new credential is issued and handed to it.",
    )
    overlap: Duration = Field(
        default=10,
        description="With `on_expiry: reissue`: how long the old credential stays valid once the new one is there.",
    )

    @model_validator(mode="after")
    def _overlap_of_two(self) -> Self:
        if "overlap" in self.model_fields_set and self.on_expiry != "reissue":
            raise ValueError("`overlap` belongs to `on_expiry: reissue`: else there is one credential only")
        return self


class DatabaseGrant(_LeasedGrant):
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


class SecretGrant(_Grant):
    """Chosen keys of one secret in a KV version 2 engine. Such a secret cannot be revoked, only its access ended."""

    kind: Literal["secret"]
    path: VaultPath = Field(description="Path of the secret inside its mount.")
    keys: Annotated[list[str], Field(min_length=1)] = Field(description="The keys the step sees; no others.")
    mount: VaultPath = Field(default="secret", description="Mount path of the KV version 2 engine.")


class DynamicGrant(_LeasedGrant):
    """Any Vault path that answers with a lease, such as `rabbitmq/creds/NAME` or `aws/creds/NAME`."""

    kind: Literal["dynamic"]
    path: VaultPath = Field(description="The full path to read.")


class Detail(BaseModel):
    """One piece of an authorization (RFC 9396, section 2): a type of the service's own, and what it may be used for."""

    model_config = ConfigDict(extra="allow", frozen=True)

    type: Annotated[str, Field(pattern=r"^[^$\s]+$")] = Field(description="Which kind of piece, by the service's word.")
    actions: list[Annotated[str, Field(pattern=r"^[^$\s]+$")]] | None = Field(
        default=None, description="What may be done; no expression."
    )
    identifier: str | None = Field(default=None, description="The one thing it is for.")

    def declared(self) -> dict[str, Any]:
        """As it stands in the file."""
        return self.model_dump(exclude_unset=True)


class TokenGrant(_Grant):
    """A signed JWT access token (RFC 9068) for one audience; the key never leaves Vault's transit engine."""

    kind: Literal["token"]
    audience: Annotated[str, Field(min_length=1)] = Field(description="The `aud` claim: the one service it is for.")
    scope: Annotated[list[Annotated[str, Field(pattern=r"^[\x21\x23-\x5B\x5D-\x7E]+$")]], Field(min_length=1)] = Field(
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


Grant = Annotated[DatabaseGrant | SecretGrant | DynamicGrant | TokenGrant, Field(discriminator="kind")]

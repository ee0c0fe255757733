"""What a decision may demand beside its yes or no.

Whoever asks says in the question which ones it can carry out (`supported_obligations`); one that is not understood,
or that cannot be carried out for this step, turns the answer into a denial. `notify` is carried out with a denial, too.
The rules are those of the AuthZEN Obligations Profile 1.0 (draft 1, sections 4 and 5).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, NotRequired

from pydantic import ConfigDict, Field
from typing_extensions import TypedDict

from orchestrator.grants.narrowing import NarrowerColumns
from orchestrator.grants.privileges import ColumnVerb
from orchestrator.jsontypes import JsonObject

_STRICT = ConfigDict(extra="forbid", strict=True)

Columns = Annotated[list[Annotated[str, Field(min_length=1, max_length=63)]], Field(min_length=1)]
ColumnsByGrant = dict[str, dict[str, dict[ColumnVerb, Columns]]]
"""By grant, table (`schema.name`) and verb: the columns that may remain."""

MAX_NOTICES = 10
"""How many notices one decision may demand."""


class Notice(TypedDict):
    """One message that has to be delivered before the step gets credentials, or because it is denied."""

    __pydantic_config__ = ConfigDict(title="notice", **_STRICT)  # type: ignore[misc]  # PEP 589 knows no such member

    to: Annotated[
        str, Field(pattern=r"^[a-z][a-z0-9_-]{0,62}$", description="A destination of the settings, by its name there.")
    ]
    text: Annotated[str, Field(min_length=1, max_length=2000, description="What to say.")]


_Approver = Annotated[
    str,
    Field(
        max_length=300,
        pattern=r"^((vault|vault-policy|vault-entity|slack):\S{1,200}|oidc(-[!-9;-~]{1,50})?:\S+( \S+)*)$",
    ),
]
"""Groups of an OpenID provider have spaces in their names, more often than not."""


class ApprovalDocument(TypedDict):
    """People have to agree before the step gets credentials. It waits without any until they have."""

    __pydantic_config__ = ConfigDict(title="approval", **_STRICT)  # type: ignore[misc]

    approvers: Annotated[
        list[_Approver],
        Field(
            min_length=1,
            description="Who may: `vault:NAME` (the display name of a Vault token), `vault-entity:ID`, "
            "`vault-policy:NAME` (whoever has this Vault policy), `slack:USER_ID`, `oidc:SUBJECT`, "
            "`oidc-CLAIM:VALUE` (whoever an OpenID provider says this of, such as `oidc-groups:support`). "
            "Nobody approves their own.",
        ),
    ]
    count: NotRequired[Annotated[int, Field(gt=0, le=20, description="How many different ones; 1 by default.")]]
    expires_in: NotRequired[
        Annotated[
            int, Field(gt=0, description="Seconds after which it is a denial if they have not; a day by default.")
        ]
    ]
    valid_for: NotRequired[
        Annotated[int, Field(gt=0, description="Seconds that an approval counts once it is given; an hour by default.")]
    ]


class ObligationsDocument(TypedDict, total=False):
    """The member `obligations` of a decision, field by field."""

    __pydantic_config__ = ConfigDict(title="obligations", **_STRICT)  # type: ignore[misc]

    max_ttl: Annotated[
        int, Field(gt=0, description="Seconds that no credential of the attempt lives longer than, its token included.")
    ]
    columns: Annotated[
        ColumnsByGrant,
        Field(
            min_length=1,
            description="By database grant, table (`schema.name`) and verb: the columns that may remain. The grant "
            "must declare exactly that under `narrower`, so that it is provisioned.",
        ),
    ]
    max_rows: Annotated[int, Field(gt=0, description="More rows than that are an error; for actions that return rows.")]
    reason_required: Annotated[bool, Field(description="Whoever started the run must have said why (`run --reason`).")]
    notify: Annotated[
        list[Notice],
        Field(max_length=MAX_NOTICES, description="Messages to deliver; carried out with a denial, too."),
    ]
    approval: Annotated[ApprovalDocument, Field(description="Who has to agree first; then the policy is asked again.")]


SUPPORTED = tuple(ObligationsDocument.__annotations__)
"""The obligations that this version can carry out, as the question names them."""


@dataclass(frozen=True, slots=True)
class Approval:
    """Who has to agree, how many of them, and in which time. Durations in seconds."""

    approvers: tuple[str, ...]
    count: int = 1
    expires_in: int = 86_400
    valid_for: int = 3_600

    def as_json(self) -> JsonObject:
        """As a decision writes it."""
        return {
            "approvers": list(self.approvers),
            "count": self.count,
            "expires_in": self.expires_in,
            "valid_for": self.valid_for,
        }


@dataclass(frozen=True, slots=True)
class Obligations:
    """What a decision demands. `max_ttl` in seconds; `columns` by grant, table and verb."""

    max_ttl: int | None = None
    columns: Mapping[str, NarrowerColumns] = field(default_factory=dict)
    max_rows: int | None = None
    reason_required: bool = False
    notify: tuple[Notice, ...] = ()
    approval: Approval | None = None

    @classmethod
    def of(cls, document: ObligationsDocument) -> Obligations:
        """Those of a valid document."""
        columns: Mapping[str, NarrowerColumns] = {
            grant: {
                table: {verb: tuple(sorted(set(names))) for verb, names in verbs.items()}
                for table, verbs in tables.items()
            }
            for grant, tables in document.get("columns", {}).items()
        }
        return cls(
            max_ttl=document.get("max_ttl"),
            columns=columns,
            max_rows=document.get("max_rows"),
            reason_required=document.get("reason_required", False),
            notify=tuple(document.get("notify", ())),
            approval=_approval(document["approval"]) if "approval" in document else None,
        )

    @classmethod
    def strictest(cls, several: Sequence[Obligations]) -> Obligations:
        """What meets all of them: the least of each limit, the columns that all leave, every notice once."""
        columns: dict[str, dict[str, dict[ColumnVerb, Sequence[str]]]] = {}
        for each in several:
            for grant, tables in each.columns.items():
                of_grant = columns.setdefault(grant, {})  # also where it names no table: it may be unknown
                for table, verbs in tables.items():
                    kept = of_grant.setdefault(table, {})
                    for verb, names in verbs.items():
                        kept[verb] = tuple(name for name in names if name in kept.get(verb, names))
        return cls(
            max_ttl=min((each.max_ttl for each in several if each.max_ttl is not None), default=None),
            columns=columns,
            max_rows=min((each.max_rows for each in several if each.max_rows is not None), default=None),
            reason_required=any(each.reason_required for each in several),
            notify=tuple(
                {(notice["to"], notice["text"]): notice for each in several for notice in each.notify}.values()
            ),
            approval=_of_all([each.approval for each in several if each.approval is not None]),
        )

    def as_json(self) -> JsonObject:
        """As a decision writes them, without those that demand nothing."""
        found: dict[str, object] = {
            "max_ttl": self.max_ttl,
            "columns": {
                grant: {table: {verb: list(names) for verb, names in verbs.items()} for table, verbs in tables.items()}
                for grant, tables in self.columns.items()
            },
            "max_rows": self.max_rows,
            "reason_required": self.reason_required,
            "notify": [dict(notice) for notice in self.notify],
            "approval": self.approval and self.approval.as_json(),
        }
        return {name: value for name, value in found.items() if value}  # type: ignore[misc]  # JSON by construction


def _of_all(several: Sequence[Approval]) -> Approval | None:
    """Those who may approve all of it, as many and as soon as the strictest wants. Nobody may: nobody can."""
    if not several:
        return None
    may = set(several[0].approvers).intersection(*(each.approvers for each in several))
    return Approval(
        approvers=tuple(sorted(may)),
        count=max(each.count for each in several),
        expires_in=min(each.expires_in for each in several),
        valid_for=min(each.valid_for for each in several),
    )


def _approval(document: ApprovalDocument) -> Approval:
    given = {**document, "approvers": tuple(sorted(set(document["approvers"])))}
    return Approval(**given)  # type: ignore[arg-type]  # the members of a valid document

"""What the kinds of grant are made of: durations, names, paths, and what every grant may say.

Durations are written `90s`, `5m`, `1h` and are seconds in code.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

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

OAuthScope = Annotated[str, Field(pattern=r"^[\x21\x23-\x5B\x5D-\x7E]+$")]
"""One scope token (RFC 6749, 3.3)."""


BOUND = (
    *("details", "subject", "parameters", "resources", "conditions"),
    *("common_name", "names", "uris", "principals"),
)
"""Members of a grant that may hold `${{ }}` expressions, which are bound when it is issued. Row limits may, too."""


class GrantModel(BaseModel):
    """What every kind of grant may say."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ttl: Duration | None = Field(
        default=None,
        description="How long the credential must live, and the longest it may. Default: the step's timeout plus 30s.",
    )


class LeasedGrant(GrantModel):
    """One that comes with a lease of Vault's, which may be renewed."""

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

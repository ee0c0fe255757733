"""What a step receives for a grant: the issued secret parts, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from orchestrator.secret import Secret


@dataclass(frozen=True, slots=True)
class Credential:
    """The issued credential of one grant of one step attempt.

    `fields` holds what was issued: `username` and `password` for a database login, `token` for a
    JWT, the chosen keys of a secret, all string data of a dynamic path. `connection` names the
    endpoint that a database login belongs to. `ttl` is in seconds from the moment of issuance.
    `version` counts the credentials of this grant in this attempt: more than 1 were issued anew.
    """

    grant: str
    kind: str
    ttl: int
    connection: str | None = None
    fields: Mapping[str, Secret] = field(default_factory=dict)
    version: int = 1

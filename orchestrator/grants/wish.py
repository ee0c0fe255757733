"""What an agent wants of the token that a tool hands over, within what the tool's grant says: never more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from orchestrator.grants.scope import Scope
from orchestrator.jsontypes import JsonObject, JsonValue


@dataclass(frozen=True, slots=True)
class Wish:
    """`scopes` are those that are left of the grant's, None: all of them. `thumbprint` is of the key that the token is
    bound to (RFC 9449, 6.1), empty: whoever has it can use it."""

    scopes: tuple[str, ...] | None = None
    thumbprint: str = ""

    def applied(self, scope: Scope) -> Scope:
        """The grant with what is wanted of it. Raises ValueError where that is more than it says, or cannot be issued.

        Only the orchestrator itself builds claims anew for each token: what a server of Vault's signs is fixed there.
        """
        if scope.kind != "token":
            if self == NO_WISH:
                return scope
            raise ValueError("the credential is no token")
        scopes = scope.scopes if self.scopes is None else tuple(sorted(set(self.scopes)))
        if not scopes or not set(scopes) <= set(scope.scopes):
            raise ValueError("the tool's grant has no such scope")
        if scope.profile != "transit" and (scopes != scope.scopes or self.thumbprint):
            raise ValueError(f"the claims of a token of the profile `{scope.profile}` are fixed")
        return replace(scope, scopes=scopes, thumbprint=self.thumbprint)

    def as_json(self) -> JsonObject:
        """For the ledger; empty where nothing is wanted."""
        found: dict[str, JsonValue] = {} if self.scopes is None else {"scopes": sorted(set(self.scopes))}
        return found | ({"cnf": confirmation(self.thumbprint)} if self.thumbprint else {})


NO_WISH = Wish()
"""The token as the grant has it."""


def confirmation(thumbprint: str) -> Mapping[str, JsonValue]:
    """The claim `cnf` of what is bound to a key (RFC 9449, 6.1)."""
    return {"jkt": thumbprint}

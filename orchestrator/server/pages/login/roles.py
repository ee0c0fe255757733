"""What somebody may do on the pages. Who may approve what, the policy says besides."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.approvals.people import Person
from orchestrator.server.pages.sessions import Role


@dataclass(frozen=True, slots=True)
class Roles:
    """Who has which, by names and claims as policies write them: `vault-policy:ops`, `oidc-groups:support`."""

    readers: tuple[str, ...] = ()
    approvers: tuple[str, ...] = ()
    operators: tuple[str, ...] = ()

    @property
    def is_any(self) -> bool:
        """Whether anybody may look."""
        return bool(self.readers or self.approvers or self.operators)

    def of(self, person: Person) -> frozenset[Role]:
        """Their roles; none where they may not even look."""
        named = {Role.READER: self.readers, Role.APPROVER: self.approvers, Role.OPERATOR: self.operators}
        found = {role for role, names in named.items() if person.is_one_of(names)}
        return frozenset(found | ({Role.READER} if found else set()))

"""What is to be installed in a database: what the catalog says differs, and the statements that make it so.

Everything is compared by the catalog, so that a privilege that somebody granted by hand is found. All names are
quoted by the driver.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from orchestrator.grants.compiled import SCOPE_ROLE_PREFIX, CompiledGrant
from orchestrator.grants.policy_names import BROKER_DUTIES
from orchestrator.grants.privileges import Privilege, bound_limits
from orchestrator.provision.change import Change, difference
from orchestrator.provision.database.acl import AclEntry, entries, held_by, unexpected_by
from orchestrator.provision.database.administrator import acting_as
from orchestrator.provision.database.holders import Member, settings_of, strange_members
from orchestrator.provision.database.obstacles import SIGNAL, Work
from orchestrator.provision.database.own_schema import OwnSchema
from orchestrator.provision.database.roles import (
    ADMINISTRATIVE,
    OF_LOGIN,
    OF_ROLE,
    Attributes,
    Membership,
    attributes_of,
    memberships_of,
    role_statements,
)
from orchestrator.provision.database.row_limits import RowLimits, row_policies
from orchestrator.provision.database.statements import BOUND, DUTY_FUNCTIONS, DUTY_ROLES
from orchestrator.provision.database.targets import Targets
from orchestrator.provision.declarations import Connection


@dataclass(frozen=True, slots=True)
class Installation:
    """What the grants of one connection need in its database, beside Vault's login and the schema `orchestrator`.

    `scopes` are the compiled grants by scope role, `targets` what they name. With `prune` what is there of ours and not
    wanted any more goes.
    """

    session: psycopg.Connection
    name: str
    database: str
    connection: Connection
    scopes: Mapping[str, CompiledGrant]
    targets: Targets
    prune: bool

    def work(self) -> Work:
        """What there is to do that an administrator may not be allowed to."""
        login = self.connection.login
        wanted = {**self.wanted(), login: {self._connect}}
        held = {str(each) for each in memberships_of(self.session, login)}
        return Work(
            login=login,
            missing={role: privileges - held_by(self.session, role) for role, privileges in wanted.items()},
            needs_signal=f"{SIGNAL} (INHERIT)" not in held,
            roles=[role for role in self.wanted() if f"{role} (ADMIN)" not in held or not self._is_right(role)],
            ended=list(self._ended()),
            flags={role: each.flags & ADMINISTRATIVE for role in wanted if (each := attributes_of(self.session, role))},
            tables={(each.schema, each.name) for _, privileges in self.grants() for each in privileges if each.where},
        )

    def _ended(self) -> Iterator[tuple[str, str, str]]:
        """The memberships that `statements` ends."""
        login, wanted = self.connection.login, self.wanted()
        for members in self._strange_members(wanted).values():
            for member in members:
                yield f"{member.member} in {member.role}", member.grantor, member.revoke().as_string(None)
        extra = [each for each in self._login_memberships() if str(each) not in self._wanted_memberships()]
        of_roles = [(role, each) for role in wanted for each in memberships_of(self.session, role)]
        for role, each in [*((login, each) for each in extra), *of_roles]:
            yield f"{role} in {each.role}", each.grantor, each.revoke(role).as_string(None)

    def grants(self) -> list[tuple[str, tuple[Privilege, ...]]]:
        """Scope roles and what each opens."""
        return [(role, grant.privileges) for role, grant in self.scopes.items()]

    def _is_right(self, role: str) -> bool:
        return attributes_of(self.session, role) == OF_ROLE and not memberships_of(self.session, role)

    def wanted(self) -> dict[str, set[AclEntry]]:
        """What each managed NOLOGIN role may do, by role."""
        wanted = {
            role: {self._connect, *entries(grant.privileges, self.targets.signatures)}
            for role, grant in self.scopes.items()
        }
        for role, grant in self.scopes.items():
            if bound_limits(grant.privileges):
                wanted[role].add(AclEntry("EXECUTE", "ROUTINE", "orchestrator", BOUND))
        for duty in BROKER_DUTIES:
            wanted[DUTY_ROLES[duty]] = {
                self._connect,
                AclEntry("USAGE", "SCHEMA", "", "orchestrator"),
                *(AclEntry("EXECUTE", "ROUTINE", "orchestrator", each) for each in DUTY_FUNCTIONS[duty]),
            }
        return wanted

    def _wanted_of_login(self) -> set[AclEntry]:
        return {self._connect, AclEntry("USAGE", "SCHEMA", "", "orchestrator")}

    @property
    def _connect(self) -> AclEntry:
        return AclEntry("CONNECT", "DATABASE", "", self.database)

    def _own(self, wanted: Iterable[str]) -> OwnSchema:
        return OwnSchema(self.session, self.connection.login, list(wanted))

    def _strange_members(self, wanted: Iterable[str]) -> dict[str, list[Member]]:
        return strange_members(self.session, list(wanted), self.connection.login, self.connection.admins)

    def row_limits(self) -> RowLimits:
        """The row limits of all grants."""
        policies = [policy for grant in self.scopes.values() for policy in row_policies(grant, self.targets.types)]
        return RowLimits(self.session, policies, prune=self.prune)

    def differences(self) -> Iterator[Change | None]:
        """What `statements` would change, asked of the catalog one after the other; None where that is nothing."""
        place = f"database {self.name}"
        wanted = self.wanted()
        login = self.connection.login
        yield difference(f"{place} role {login}", _text(attributes_of(self.session, login)), str(OF_LOGIN))
        if not self.connection.other_roles:
            has = _lines(map(str, held_by(self.session, login)))
            meant = _lines(map(str, self._wanted_of_login()))
            yield difference(f"{place} privileges of {login}", has or None, meant)
        members = self._strange_members(wanted)
        for role in [login, *sorted(wanted)]:
            yield difference(f"{place} members of {role}", _lines(map(str, members.get(role, ()))) or "none", "none")
            settings = _lines(
                f"{each} in {where or 'every database'}" for where, each in settings_of(self.session, role)
            )
            yield difference(f"{place} settings of {role}", settings or "none", "none")
        for role in sorted(wanted):
            yield difference(f"{place} role {role}", _text(attributes_of(self.session, role)), str(OF_ROLE))
            held = _lines({*map(str, held_by(self.session, role)), *unexpected_by(self.session, role)})
            yield difference(f"{place} privileges of {role}", held or None, _lines(map(str, wanted[role])))
            yield difference(
                f"{place} memberships of {role}",
                _lines(map(str, memberships_of(self.session, role))) or "none",
                "none",
            )
        yield difference(
            f"{place} memberships of {login}",
            _lines({str(each) for each in self._login_memberships()}) or None,
            _lines(self._wanted_memberships()),
        )
        for stranger in self._own(wanted).squatters():
            yield Change("undeclared", f"{place} {stranger}", "in the place of what is to be installed", "")
        yield from self._own(wanted).differences(place)
        for (schema, table), (now, then) in self.row_limits().tables().items():
            yield difference(f"{place} row limits of {schema}.{table}", now.text(), then.text())
        for role in self.superfluous() if self.prune else []:
            yield Change("delete", f"{place} role {role}", _lines(map(str, held_by(self.session, role))), "")

    def statements(self) -> Iterator[sql.Composed]:
        """What makes it so, each to be executed before the next is asked for; the schema `orchestrator` is there."""
        login = self.connection.login
        wanted = self.wanted()
        yield from role_statements(self.session, login, OF_LOGIN)
        for role in sorted(wanted):
            yield from role_statements(self.session, role, OF_ROLE)
            if unexpected_by(self.session, role):
                yield from acting_as(self.session, [login, role], [_DROP_OWNED.format(sql.Identifier(role))])
            for membership in memberships_of(self.session, role):
                yield membership.revoke(role)
        yield from self._hand_out(login, wanted)
        for role in [login, *sorted(wanted)]:
            for database in {where for where, _ in settings_of(self.session, role)}:
                place = sql.SQL(" IN DATABASE {}").format(sql.Identifier(database)) if database else sql.SQL("")
                yield sql.SQL("ALTER ROLE {}{} RESET ALL").format(sql.Identifier(role), place)
        for members in self._strange_members(wanted).values():
            yield from (member.revoke() for member in members)
        yield from acting_as(self.session, [login], self._privileges(login, wanted))
        yield from self.row_limits().statements()
        for role in self.superfluous() if self.prune else []:
            yield from acting_as(self.session, [login, role], [_DROP_OWNED.format(sql.Identifier(role))])
            yield sql.SQL("DROP ROLE {}").format(sql.Identifier(role))

    def _hand_out(self, login: str, wanted: Iterable[str]) -> Iterator[sql.Composed]:
        """What Vault's login is a member of: the roles that it may hand out and not use, and what ends sessions."""
        going = {(each.role, each.member) for some in self._strange_members(wanted).values() for each in some}
        lasting = [each for each in memberships_of(self.session, login) if (each.role, each.grantor) not in going]
        held = {str(each) for each in lasting}
        for role in sorted(wanted):
            if f"{role} (ADMIN)" not in held:
                yield sql.SQL("GRANT {} TO {} WITH ADMIN TRUE, INHERIT FALSE, SET FALSE").format(
                    sql.Identifier(role), sql.Identifier(login)
                )
        if f"{SIGNAL} (INHERIT)" not in held:
            yield sql.SQL("GRANT {} TO {} WITH ADMIN FALSE, INHERIT TRUE, SET FALSE").format(
                sql.Identifier(SIGNAL), sql.Identifier(login)
            )
        for extra in self._login_memberships():
            if str(extra) not in self._wanted_memberships():
                yield extra.revoke(login)

    def _privileges(self, login: str, wanted: Mapping[str, set[AclEntry]]) -> Iterator[sql.Composed]:
        """What Vault's login and our roles may do, and the functions that belong to it."""
        name, held = sql.Identifier(login), held_by(self.session, login)
        if not self.connection.other_roles:
            for privilege in sorted(held - self._wanted_of_login()):
                yield sql.SQL("REVOKE {} FROM {} CASCADE").format(privilege.clause(), name)
        if self._connect not in held:
            yield sql.SQL("GRANT {} TO {}").format(self._connect.clause(), name)
        yield from self._own(wanted).statements()
        for role, privileges in sorted(wanted.items()):
            held = held_by(self.session, role)
            for privilege in sorted(held - privileges):
                yield sql.SQL("REVOKE {} FROM {}").format(privilege.clause(), sql.Identifier(role))
            for privilege in sorted(privileges - held):
                yield sql.SQL("GRANT {} TO {}").format(privilege.clause(), sql.Identifier(role))

    def superfluous(self) -> list[str]:
        """Scope roles that no grant needs and that only this database knows of."""
        rows = self.session.execute(
            "SELECT rolname FROM pg_roles r WHERE starts_with(rolname, %s) AND NOT rolname = ANY(%s) AND NOT EXISTS"
            " (SELECT FROM pg_shdepend d WHERE d.refclassid = 'pg_authid'::regclass AND d.refobjid = r.oid"
            " AND d.dbid NOT IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))) ORDER BY 1",
            [SCOPE_ROLE_PREFIX, sorted(self.scopes)],
        )
        return [str(row[0]) for row in rows]

    def _wanted_memberships(self) -> set[str]:
        roles = [*self.scopes, *DUTY_ROLES.values()]
        return {f"{SIGNAL} (INHERIT)", *(f"{role} (ADMIN)" for role in roles)}

    def _login_memberships(self) -> list[Membership]:
        """Those of Vault's login, without scope roles that other databases or earlier workflows brought."""
        return [
            held
            for held in memberships_of(self.session, self.connection.login)
            if not held.role.startswith(SCOPE_ROLE_PREFIX) or held.role in self.scopes
        ]


_DROP_OWNED = sql.SQL("DROP OWNED BY {}")


def _text(attributes: Attributes | None) -> str | None:
    return None if attributes is None else str(attributes)


def _lines(items: Any) -> str:
    return "\n".join(sorted(items))

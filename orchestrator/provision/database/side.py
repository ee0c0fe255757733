"""The desired roles, privileges, row limits and functions in a PostgreSQL database, and what is there now.

Everything is compared by the catalog, so that a privilege that somebody granted by hand is found,
and applied in one transaction. All names are quoted by the driver.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import psycopg
from psycopg import sql

from orchestrator.errors import ProvisionError
from orchestrator.grants.compiled import SCOPE_ROLE_PREFIX, CompiledGrant
from orchestrator.grants.policy_names import BROKER_DUTIES
from orchestrator.grants.privileges import bound_limits
from orchestrator.network.postgres import protected, refusal_hint
from orchestrator.provision.change import Change, difference
from orchestrator.provision.database.acl import AclEntry, entries, held_by, unexpected_by
from orchestrator.provision.database.holders import Member, settings_of, strange_members
from orchestrator.provision.database.own_schema import OwnSchema
from orchestrator.provision.database.row_limits import RowLimits, row_policies
from orchestrator.provision.database.statements import BOUND, DUTY_FUNCTIONS, DUTY_ROLES
from orchestrator.provision.database.targets import Targets, find_targets
from orchestrator.provision.declarations import Connection
from orchestrator.secret import Secret

_MIN_VERSION = 160000
_LOCK_WAIT = "10s"
"""How long `apply` waits for a table that others use, instead of holding everybody up behind it."""

_ONE_AT_A_TIME = (
    "CREATE SCHEMA IF NOT EXISTS orchestrator",
    "COMMENT ON SCHEMA orchestrator IS 'Made by `orchestrator provision`: one at a time, by this comment.'",
)
"""Under these a database is provisioned. To comment on a schema locks it against other comments until the end of the
transaction (`ShareUpdateExclusiveLock` in CommentObject of PostgreSQL), and only who owns it may: advisory locks can
be held by every login. Whoever makes the schema at the same time as another one waits for it, and is then told so."""


class DatabaseSide:
    """One database, as its administrator. `grants` are the compiled grants of this connection."""

    def __init__(
        self, name: str, connection: Connection, admin: Secret, grants: Sequence[CompiledGrant], *, prune: bool
    ) -> None:
        self.name = name
        self._connection = connection
        self._scopes = {grant.scope_role: grant for grant in grants}
        self._prune = prune
        try:
            self._session = psycopg.connect(protected(admin.reveal()), connect_timeout=10, client_encoding="UTF8")
        except psycopg.Error as error:
            raise ProvisionError(
                f"the database `{name}` cannot be reached as its administrator: {type(error).__name__}",
                hint=refusal_hint(error)
                or f"set ORCHESTRATOR_PROVISION_DATABASES__{name.upper()} to a DSN of an administrator",
            ) from None
        if self._session.info.server_version < _MIN_VERSION:
            raise ProvisionError(
                f"the database `{name}` is PostgreSQL {self._session.info.server_version // 10000}",
                hint="PostgreSQL 16 is the first in which a login cannot keep a scope role by SET ROLE",
            )
        self._database = str(self._session.info.dbname)

    def changes(self) -> list[Change]:
        """Every difference, read in one snapshot. Raises ProvisionError where a grant names what is not there."""
        try:
            with self._session.transaction(force_rollback=True):
                self._begin()
                return [change for change in self._differences(self._targets()) if change is not None]
        except psycopg.errors.CharacterNotInRepertoire as error:
            raise ProvisionError(
                f"a name in the catalog of the database `{self.name}` is no UTF-8: {error.diag.message_primary}",
                hint="the encoding of the database is SQL_ASCII: rename what has that name",
            ) from error

    def undeclared(self) -> list[Change]:
        """What is there of ours although no workflow that is provisioned here needs it."""
        place = f"database {self.name}"
        with self._session.transaction(force_rollback=True):
            self._begin()
            found = [
                Change("undeclared", f"{place} row limits of {schema}.{table}", "\n".join(policies), "")
                for (schema, table), policies in self._row_limits(self._targets()).undeclared().items()
            ]
            for role in self._superfluous():
                held = _lines(map(str, held_by(self._session, role)))
                found.append(Change("undeclared", f"{place} role {role}", held, ""))
        return [] if self._prune else found

    def notes(self) -> list[str]:
        """What makes taking logins back harder in this cluster, and is nobody's mistake."""
        others = [str(row[0]) for row in self._session.execute(_OPEN_DATABASES)]
        found = []
        if others:
            found.append(
                f"database {self.name}: every login may connect to {', '.join(others)} too, and what it makes there "
                "keeps it from being dropped (it is disabled): REVOKE CONNECT, TEMPORARY ON DATABASE ... FROM PUBLIC"
            )
        prepared = int(self._one("SELECT current_setting('max_prepared_transactions')"))
        if prepared:
            found.append(
                f"database {self.name}: max_prepared_transactions is {prepared}, so a login may leave a transaction "
                "that keeps its locks, and keeps the login from being dropped: set it to 0 where nothing needs it"
            )
        return found

    def refuse_squatters(self) -> None:
        """Raises ProvisionError where something is in the place of what `apply` installs."""
        with self._session.transaction(force_rollback=True):
            self._begin()
            self._refuse_squatters()

    def _refuse_squatters(self) -> None:
        if found := self._own(()).squatters():
            raise ProvisionError(
                f"in the database `{self.name}` there is something in the schema `orchestrator` that provisioning did "
                f"not make: {'; '.join(found)}",
                hint="nothing was changed; find out who made it and what for, then drop it; what is an administrator's "
                "own may be given to the one who provisions (ALTER ... OWNER TO)",
            )

    def apply(self) -> None:
        """Install everything in one transaction: all of it or nothing. Doing it again changes nothing.

        Raises ProvisionError where that is not possible, or would still not be what is declared.
        """
        try:
            try:
                self._apply()
            except psycopg.errors.UniqueViolation:  # another one made the schema meanwhile, and is done
                self._apply()
        except psycopg.errors.LockNotAvailable as error:
            raise ProvisionError(
                f"the database `{self.name}` is busy: a table was not free within {_LOCK_WAIT}",
                hint="nothing was changed; try again when no long transaction holds the tables of the grants",
            ) from error
        except psycopg.Error as error:
            raise ProvisionError(
                f"the database `{self.name}` refused: {error.diag.message_primary or type(error).__name__}",
                hint="nothing was changed; the administrator must own the objects that are granted, or be a superuser",
            ) from error

    def _apply(self) -> None:
        with self._session.transaction():
            self._begin()
            self._refuse_squatters()
            for statement in _ONE_AT_A_TIME:
                self._session.execute(statement)
            self._refuse_squatters()  # who had to wait finds what came meanwhile
            targets = self._targets()
            for change in self._statements(targets):
                self._session.execute(change)
            left = [change for change in self._differences(targets) if change is not None]
            if left:
                raise ProvisionError(
                    f"the database `{self.name}` would still not be what is declared:\n"
                    + "\n".join(change.render() for change in left),
                    hint="nothing was changed; the administrator may not change it: let a superuser do so, or "
                    "declare it (`admins` of the connection)",
                )

    def set_login_password(self, password: Secret) -> None:
        """Give Vault's login a new password; only its SCRAM verifier is sent."""
        login = self._connection.login
        verifier = self._session.pgconn.encrypt_password(
            password.reveal().encode(), login.encode(), b"scram-sha-256"
        ).decode()
        with self._session.transaction():
            self._session.execute(
                sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(login), sql.Literal(verifier))
            )

    def close(self) -> None:
        """Close the session."""
        self._session.close()

    def _begin(self) -> None:
        self._session.execute("SET LOCAL search_path = pg_catalog, pg_temp")
        self._session.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(_LOCK_WAIT)))

    def _targets(self) -> Targets:
        targets = find_targets(self._session, (each for grant in self._scopes.values() for each in grant.privileges))
        if targets.problems:
            raise ProvisionError(
                f"the grants do not fit the database `{self.name}`: {'; '.join(targets.problems)}",
                hint="names in double quotes are taken exactly, others in lower case; the schema is public if not said",
            )
        return targets

    def _wanted(self, targets: Targets) -> dict[str, set[AclEntry]]:
        """What each managed NOLOGIN role may do, by role."""
        connect = AclEntry("CONNECT", "DATABASE", "", self._database)
        wanted = {
            role: {connect, *entries(grant.privileges, targets.signatures)} for role, grant in self._scopes.items()
        }
        for role, grant in self._scopes.items():
            if bound_limits(grant.privileges):
                wanted[role].add(AclEntry("EXECUTE", "ROUTINE", "orchestrator", BOUND))
        for duty in BROKER_DUTIES:
            wanted[DUTY_ROLES[duty]] = {
                connect,
                AclEntry("USAGE", "SCHEMA", "", "orchestrator"),
                *(AclEntry("EXECUTE", "ROUTINE", "orchestrator", each) for each in DUTY_FUNCTIONS[duty]),
            }
        return wanted

    def _wanted_of_login(self) -> set[AclEntry]:
        return {AclEntry("CONNECT", "DATABASE", "", self._database), AclEntry("USAGE", "SCHEMA", "", "orchestrator")}

    def _own(self, wanted: Iterable[str]) -> OwnSchema:
        return OwnSchema(self._session, self._connection.login, list(wanted))

    def _strange_members(self, wanted: Iterable[str]) -> dict[str, list[Member]]:
        return strange_members(self._session, list(wanted), self._connection.login, self._connection.admins)

    def _row_limits(self, targets: Targets) -> RowLimits:
        policies = [policy for grant in self._scopes.values() for policy in row_policies(grant, targets.types)]
        return RowLimits(self._session, policies, prune=self._prune)

    def _differences(self, targets: Targets) -> Iterator[Change | None]:
        place = f"database {self.name}"
        wanted = self._wanted(targets)
        login = self._connection.login
        yield difference(f"{place} role {login}", self._attributes(login), "LOGIN CREATEROLE")
        if not self._connection.other_roles:
            has = _lines(map(str, held_by(self._session, login)))
            meant = _lines(map(str, self._wanted_of_login()))
            yield difference(f"{place} privileges of {login}", has or None, meant)
        members = self._strange_members(wanted)
        for role in [login, *sorted(wanted)]:
            yield difference(f"{place} members of {role}", _lines(map(str, members.get(role, ()))) or "none", "none")
            settings = _lines(
                f"{each} in {where or 'every database'}" for where, each in settings_of(self._session, role)
            )
            yield difference(f"{place} settings of {role}", settings or "none", "none")
        for role in sorted(wanted):
            yield difference(f"{place} role {role}", self._attributes(role), "NOLOGIN")
            held = _lines({*map(str, held_by(self._session, role)), *unexpected_by(self._session, role)})
            yield difference(f"{place} privileges of {role}", held or None, _lines(map(str, wanted[role])))
            yield difference(f"{place} memberships of {role}", _lines(self._memberships(role)) or "none", "none")
        yield difference(
            f"{place} memberships of {login}",
            _lines(self._login_memberships()) or None,
            _lines(self._wanted_memberships()),
        )
        for stranger in self._own(wanted).squatters():
            yield Change("undeclared", f"{place} {stranger}", "in the place of what is to be installed", "")
        yield from self._own(wanted).differences(place)
        for (schema, table), (now, then) in self._row_limits(targets).tables().items():
            yield difference(f"{place} row limits of {schema}.{table}", now.text(), then.text())
        for role in self._superfluous() if self._prune else []:
            yield Change("delete", f"{place} role {role}", _lines(map(str, held_by(self._session, role))), "")

    def _statements(self, targets: Targets) -> Iterator[sql.Composed]:
        login = sql.Identifier(self._connection.login)
        wanted = self._wanted(targets)
        yield from self._role(self._connection.login, "LOGIN CREATEROLE")
        for role in sorted(wanted):
            yield from self._role(role, "NOLOGIN NOCREATEROLE")
            if unexpected_by(self._session, role):
                yield sql.SQL("DROP OWNED BY {}").format(sql.Identifier(role))
            for member_of in self._memberships(role):
                yield sql.SQL("REVOKE {} FROM {}").format(sql.Identifier(member_of.split()[0]), sql.Identifier(role))
            yield sql.SQL("GRANT {} TO {} WITH ADMIN TRUE, INHERIT FALSE, SET FALSE").format(
                sql.Identifier(role), login
            )
        for role in [self._connection.login, *sorted(wanted)]:
            for database in {where for where, _ in settings_of(self._session, role)}:
                place = sql.SQL(" IN DATABASE {}").format(sql.Identifier(database)) if database else sql.SQL("")
                yield sql.SQL("ALTER ROLE {}{} RESET ALL").format(sql.Identifier(role), place)
        for members in self._strange_members(wanted).values():
            yield from (member.revoke() for member in members)
        if not self._connection.other_roles:
            for privilege in sorted(held_by(self._session, self._connection.login) - self._wanted_of_login()):
                yield sql.SQL("REVOKE {} FROM {} CASCADE").format(privilege.clause(), login)
        yield sql.SQL("GRANT CONNECT ON DATABASE {} TO {}").format(sql.Identifier(self._database), login)
        yield sql.SQL("GRANT pg_signal_backend TO {} WITH ADMIN FALSE, INHERIT TRUE, SET FALSE").format(login)
        for extra in sorted(self._login_memberships() - self._wanted_memberships()):
            if extra.split()[0] not in {*wanted, "pg_signal_backend"}:
                yield sql.SQL("REVOKE {} FROM {}").format(sql.Identifier(extra.split()[0]), login)
        yield from self._own(wanted).statements()
        for role, privileges in sorted(wanted.items()):
            held = held_by(self._session, role)
            for privilege in sorted(held - privileges):
                yield sql.SQL("REVOKE {} FROM {}").format(privilege.clause(), sql.Identifier(role))
            for privilege in sorted(privileges - held):
                yield sql.SQL("GRANT {} TO {}").format(privilege.clause(), sql.Identifier(role))
        yield from self._row_limits(targets).statements()
        for role in self._superfluous() if self._prune else []:
            yield sql.SQL("DROP OWNED BY {}").format(sql.Identifier(role))
            yield sql.SQL("DROP ROLE {}").format(sql.Identifier(role))

    def _superfluous(self) -> list[str]:
        """Scope roles that no grant needs and that only this database knows of."""
        rows = self._session.execute(
            "SELECT rolname FROM pg_roles r WHERE starts_with(rolname, %s) AND NOT rolname = ANY(%s) AND NOT EXISTS"
            " (SELECT FROM pg_shdepend d WHERE d.refclassid = 'pg_authid'::regclass AND d.refobjid = r.oid"
            " AND d.dbid NOT IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))) ORDER BY 1",
            [SCOPE_ROLE_PREFIX, sorted(self._scopes)],
        )
        return [str(row[0]) for row in rows]

    def _role(self, role: str, attributes: str) -> Iterator[sql.Composed]:
        name = sql.Identifier(role)
        if self._attributes(role) is None:
            yield sql.SQL("CREATE ROLE {}").format(name)
        yield sql.SQL("ALTER ROLE {} NOSUPERUSER NOCREATEDB NOREPLICATION NOBYPASSRLS INHERIT {}").format(
            name, sql.SQL(attributes)
        )
        now = str(self._attributes(role))
        if "CONNECTION LIMIT" in now:
            yield sql.SQL("ALTER ROLE {} CONNECTION LIMIT -1").format(name)
        if "VALID UNTIL" in now:
            yield sql.SQL("ALTER ROLE {} VALID UNTIL 'infinity'").format(name)

    def _wanted_memberships(self) -> set[str]:
        roles = [*self._scopes, *DUTY_ROLES.values()]
        return {"pg_signal_backend (INHERIT)", *(f"{role} (ADMIN)" for role in roles)}

    def _login_memberships(self) -> set[str]:
        """Those of Vault's login, without scope roles that other databases or earlier workflows brought."""
        return {
            held
            for held in self._memberships(self._connection.login)
            if not held.startswith(SCOPE_ROLE_PREFIX) or held.split()[0] in self._scopes
        }

    def _attributes(self, role: str) -> str | None:
        row = self._one(
            "SELECT concat_ws(' ', CASE WHEN rolcanlogin THEN 'LOGIN' ELSE 'NOLOGIN' END,"
            " CASE WHEN rolsuper THEN 'SUPERUSER' END, CASE WHEN rolcreaterole THEN 'CREATEROLE' END,"
            " CASE WHEN rolcreatedb THEN 'CREATEDB' END, CASE WHEN rolreplication THEN 'REPLICATION' END,"
            " CASE WHEN rolbypassrls THEN 'BYPASSRLS' END, CASE WHEN NOT rolinherit THEN 'NOINHERIT' END,"
            " CASE WHEN rolconnlimit <> -1 THEN 'CONNECTION LIMIT ' || rolconnlimit END,"
            " CASE WHEN rolvaliduntil < 'infinity' THEN 'VALID UNTIL ' || rolvaliduntil END)"
            " FROM pg_roles WHERE rolname = %s",
            role,
        )
        return None if row is None else str(row)

    def _memberships(self, role: str) -> set[str]:
        return {
            str(row[0])
            for row in self._session.execute(
                "SELECT granted.rolname || coalesce(nullif(concat(' (', concat_ws(', ',"
                " CASE WHEN m.admin_option THEN 'ADMIN' END, CASE WHEN m.inherit_option THEN 'INHERIT' END,"
                " CASE WHEN m.set_option THEN 'SET' END), ')'), ' ()'), '') FROM pg_auth_members m"
                " JOIN pg_roles granted ON granted.oid = m.roleid JOIN pg_roles member ON member.oid = m.member"
                " WHERE member.rolname = %s AND granted.rolname !~ '^orc_'",
                [role],
            )
        }

    def _one(self, statement: str, *parameters: Any) -> Any:
        row = self._session.execute(statement, parameters).fetchone()
        return None if row is None else row[0]


_OPEN_DATABASES = """
SELECT d.datname FROM pg_database d, aclexplode(coalesce(d.datacl, acldefault('d', d.datdba))) a
WHERE a.grantee = 0 AND a.privilege_type = 'CONNECT' AND d.datallowconn AND d.datname <> current_database() ORDER BY 1
"""


def _lines(items: Any) -> str:
    return "\n".join(sorted(items))

"""A PostgreSQL database as its administrator: what differs there from what is declared, and making it so at once."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import psycopg
from psycopg import sql

from orchestrator.errors import ProvisionError
from orchestrator.grants.compiled import CompiledGrant
from orchestrator.provision.change import Change
from orchestrator.provision.database.acl import held_by
from orchestrator.provision.database.administrator import connected
from orchestrator.provision.database.installation import Installation
from orchestrator.provision.database.notes import hidden_from, of_cluster
from orchestrator.provision.database.obstacles import Obstacle, obstacles
from orchestrator.provision.database.own_schema import OwnSchema
from orchestrator.provision.database.targets import find_targets
from orchestrator.provision.declarations import Connection
from orchestrator.secret import Secret

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
        self._session = connected(name, admin)
        self._database = str(self._session.info.dbname)

    def changes(self) -> list[Change]:
        """Every difference, read in one snapshot. Raises ProvisionError where a grant names what is not there."""
        with self._reading():
            return [change for change in self._installation().differences() if change is not None]

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """One snapshot, in which nothing is changed. Raises ProvisionError for what the server does not let be seen."""
        try:
            with self._session.transaction(force_rollback=True):
                self._begin()
                yield
        except psycopg.errors.CharacterNotInRepertoire as error:
            raise ProvisionError(
                f"a name in the catalog of the database `{self.name}` is no UTF-8: {error.diag.message_primary}",
                hint="the encoding of the database is SQL_ASCII: rename what has that name",
            ) from error
        except psycopg.errors.InsufficientPrivilege as error:
            if found := self.obstacles():
                raise self._obstructed(found) from error
            raise ProvisionError(
                f"the database `{self.name}` does not let its administrator compare: {error.diag.message_primary}",
                hint="nothing was changed; name a superuser in the settings, or the owner of the tables of the grants",
            ) from error

    def undeclared(self) -> list[Change]:
        """What is there of ours although no workflow that is provisioned here needs it."""
        place = f"database {self.name}"
        with self._reading():
            wanted = self._installation()
            found = [
                Change("undeclared", f"{place} row limits of {schema}.{table}", "\n".join(policies), "")
                for (schema, table), policies in wanted.row_limits().undeclared().items()
            ]
            for role in wanted.superfluous():
                held = "\n".join(sorted(map(str, held_by(self._session, role))))
                found.append(Change("undeclared", f"{place} role {role}", held, ""))
        return [] if self._prune else found

    def notes(self) -> list[str]:
        """What makes taking logins back harder in this cluster, and is nobody's mistake."""
        return [f"database {self.name}: {each}" for each in of_cluster(self._session)]

    def hidden_rows(self) -> list[str]:
        """Privileges that show no row, once everything is installed."""
        with self._reading():
            wanted = self._installation()
            found = hidden_from(self._session, wanted.grants(), wanted.row_limits().tables())
            return [f"database {self.name}: {each}" for each in found]

    def obstacles(self) -> list[Obstacle]:
        """What the administrator may not do of what there is to do."""
        with self._reading():
            return obstacles(self._session, self._installation().work())

    def _obstructed(self, found: Sequence[Obstacle]) -> ProvisionError:
        user = self._session.info.user
        return ProvisionError(
            f"the administrator `{user}` of the database `{self.name}` is no superuser, and cannot\n"
            + "\n".join(f"- {each.what}" for each in found),
            hint="nothing was changed; let one who can do it once, or name a superuser in the settings: "
            + "; ".join(each.remedy for each in found),
        )

    def refuse_in_vain(self) -> None:
        """Raises ProvisionError where something is in the place of what `apply` installs, or it may not install it."""
        with self._reading():
            self._refuse_squatters()
            if found := obstacles(self._session, self._installation().work()):
                raise self._obstructed(found)

    def _refuse_squatters(self) -> None:
        if found := self._own().squatters():
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
                f"the database `{self.name}` refused: {error.diag.message_primary or type(error).__name__}"
                + (f" ({error.diag.message_detail})" if error.diag.message_detail else ""),
                hint=f"nothing was changed; the administrator `{self._session.info.user}` may not do all of it: "
                "`provision plan` tells what it lacks, and a superuser may",
            ) from error

    def _apply(self) -> None:
        with self._session.transaction():
            self._begin()
            self._refuse_squatters()
            for first in _ONE_AT_A_TIME:
                self._session.execute(first)
            self._refuse_squatters()  # who had to wait finds what came meanwhile
            wanted = self._installation()
            for statement in wanted.statements():
                self._session.execute(statement)
            left = [change for change in wanted.differences() if change is not None]
            if left:
                raise ProvisionError(
                    f"the database `{self.name}` would still not be what is declared:\n"
                    + "\n".join(change.render() for change in left),
                    hint="nothing was changed; the administrator may not change it: let a superuser do so, or "
                    "declare it (`admins` of the connection)",
                )

    def login_has_password(self) -> bool:
        """Whether Vault's login is there and has a password; who may not read that is told so of every login there."""
        with self._reading():
            readable = self._session.execute("SELECT has_table_privilege('pg_authid', 'SELECT')").fetchone() == (True,)
            where = "pg_authid WHERE rolpassword IS NOT NULL AND" if readable else "pg_roles WHERE"
            statement = f"SELECT FROM {where} rolname = %s"
            return self._session.execute(statement, [self._connection.login]).fetchone() is not None

    def login_line(self) -> str:
        """How Vault's login stands in the text of a connection."""
        return f"username = {json.dumps(self._connection.login)}"

    def password_resource(self) -> str:
        """How a change of the password of Vault's login is called."""
        return f"database {self.name} password of {self._connection.login}"

    def is_among(self, changes: Sequence[Change]) -> bool:
        """Whether `apply` has something to do here; a new password of Vault's login comes with Vault's connection."""
        place, password = f"database {self.name} ", self.password_resource()
        return any(each.resource.startswith(place) and each.resource != password for each in changes)

    def set_login_password(self, password: Secret) -> None:
        """Give Vault's login a new password; only its SCRAM verifier is sent. Raises ProvisionError."""
        login = self._connection.login
        verifier = self._session.pgconn.encrypt_password(
            password.reveal().encode(), login.encode(), b"scram-sha-256"
        ).decode()
        try:
            with self._session.transaction():
                self._session.execute(
                    sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(login), sql.Literal(verifier))
                )
        except psycopg.Error as error:
            raise ProvisionError(
                f"the database `{self.name}` refused a new password for `{login}`: {error.diag.message_primary}",
                hint="let the administrator who made this login do it, or a superuser",
            ) from None

    def close(self) -> None:
        """Close the session."""
        self._session.close()

    def _begin(self) -> None:
        self._session.execute("SET LOCAL search_path = pg_catalog, pg_temp")
        self._session.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(_LOCK_WAIT)))

    def _installation(self) -> Installation:
        """What is wanted. Raises ProvisionError where a grant names what is not there."""
        targets = find_targets(self._session, (each for grant in self._scopes.values() for each in grant.privileges))
        if targets.problems:
            raise ProvisionError(
                f"the grants do not fit the database `{self.name}`: {'; '.join(targets.problems)}",
                hint="names in double quotes are taken exactly, others in lower case; the schema is public if not said",
            )
        return Installation(
            self._session, self.name, self._database, self._connection, self._scopes, targets, self._prune
        )

    def _own(self) -> OwnSchema:
        return OwnSchema(self._session, self._connection.login, [])

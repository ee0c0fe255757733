"""The desired roles, privileges and functions in a PostgreSQL database, and what is there now.

Everything is compared by the catalog, so that a privilege that somebody granted by hand is found,
and applied in one transaction. All names are quoted by the driver.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from orchestrator.errors import ProvisionError
from orchestrator.provision.change import Change, difference
from orchestrator.provision.declarations import Connection
from orchestrator.provision.statements import FUNCTIONS, SWEEP_FUNCTIONS, SWEEPER
from orchestrator.secret import Secret


@dataclass(frozen=True, slots=True, order=True)
class Privilege:
    """One privilege: on a table (or one column of it), a schema, a database or a function."""

    verb: str
    kind: str
    schema: str
    name: str
    column: str = ""

    def __str__(self) -> str:
        where = ".".join(part for part in (self.schema, self.name) if part)
        return f"{self.verb}{f' ({self.column})' if self.column else ''} ON {self.kind} {where}"

    def clause(self) -> sql.Composed:
        """`SELECT (a) ON TABLE s.t`, for GRANT and REVOKE."""
        verb: sql.Composable = sql.SQL(self.verb)
        if self.column:
            verb = sql.SQL("{} ({})").format(verb, sql.Identifier(self.column))
        name: sql.Composable = sql.Identifier(*(part for part in (self.schema, self.name) if part))
        if self.kind == "FUNCTION":
            name = sql.SQL(self.name)  # a signature of ours or of the catalog's own making (regprocedure)
        return sql.SQL("{} ON {} {}").format(verb, sql.SQL(self.kind), name)


def desired_privileges(connection: Connection, database: str) -> dict[str, set[Privilege]]:
    """What each managed NOLOGIN role may do, by role."""
    wanted: dict[str, set[Privilege]] = {}
    for scope, tables in connection.scopes.items():
        held = wanted.setdefault(scope, {Privilege("CONNECT", "DATABASE", "", database)})
        for table in tables:
            schema, _, name = table.table.partition(".")
            held.add(Privilege("USAGE", "SCHEMA", "", schema))
            for verb in table.privileges:
                for column in table.columns or [""]:
                    held.add(Privilege(verb.upper(), "TABLE", schema, name, column))
    wanted[SWEEPER] = {
        Privilege("CONNECT", "DATABASE", "", database),
        Privilege("USAGE", "SCHEMA", "", "orchestrator"),
        *(Privilege("EXECUTE", "FUNCTION", "", f"orchestrator.{signature}") for signature in SWEEP_FUNCTIONS),
    }
    return wanted


class DatabaseSide:
    """One database, as its administrator."""

    def __init__(self, name: str, connection: Connection, admin: Secret) -> None:
        self.name = name
        self._connection = connection
        try:
            self._session = psycopg.connect(admin.reveal(), connect_timeout=10)
        except psycopg.Error as error:
            raise ProvisionError(
                f"the database `{name}` cannot be reached as its administrator: {type(error).__name__}",
                hint=f"set ORCHESTRATOR_PROVISION_DATABASES__{name.upper()} to a DSN of an administrator",
            ) from None
        self._database = str(self._session.info.dbname)

    def changes(self) -> list[Change]:
        """Every difference, read in one snapshot."""
        with self._session.transaction():
            return [change for change in self._differences() if change is not None]

    def apply(self) -> None:
        """Install everything in one transaction: all of it or nothing. Doing it again changes nothing."""
        try:
            with self._session.transaction():
                for statement in self._statements():
                    self._session.execute(statement)
        except psycopg.Error as error:
            raise ProvisionError(
                f"the database `{self.name}` refused: {error.diag.message_primary or type(error).__name__}",
                hint="check that the tables and columns of the declarations exist",
            ) from error

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

    def _differences(self) -> Iterator[Change | None]:
        place = f"database {self.name}"
        wanted = desired_privileges(self._connection, self._database)
        login = self._connection.login
        yield difference(f"{place} role {login}", self._attributes(login), "LOGIN CREATEROLE")
        for role in sorted(wanted):
            yield difference(f"{place} role {role}", self._attributes(role), "NOLOGIN")
            yield difference(
                f"{place} privileges of {role}", _lines(self._privileges(role)) or None, _lines(wanted[role])
            )
            yield difference(f"{place} memberships of {role}", _lines(self._memberships(role)) or "none", "none")
        yield difference(
            f"{place} memberships of {login}",
            _lines(self._memberships(login)) or None,
            _lines(self._wanted_memberships()),
        )
        for signature, text in FUNCTIONS.items():
            yield difference(f"{place} function orchestrator.{signature}", self._function(signature), _body(text))

    def _statements(self) -> Iterator[sql.Composed]:
        login = sql.Identifier(self._connection.login)
        wanted = desired_privileges(self._connection, self._database)
        yield from self._role(self._connection.login, "LOGIN CREATEROLE")
        for role in sorted(wanted):
            yield from self._role(role, "NOLOGIN NOCREATEROLE")
            for member_of in self._memberships(role):
                yield sql.SQL("REVOKE {} FROM {}").format(sql.Identifier(member_of.split()[0]), sql.Identifier(role))
            yield sql.SQL("GRANT {} TO {} WITH ADMIN TRUE, INHERIT FALSE, SET FALSE").format(
                sql.Identifier(role), login
            )
        yield sql.SQL("GRANT pg_signal_backend TO {} WITH ADMIN FALSE, INHERIT TRUE, SET FALSE").format(login)
        for extra in sorted(self._memberships(self._connection.login) - self._wanted_memberships()):
            if extra.split()[0] not in {*wanted, "pg_signal_backend"}:
                yield sql.SQL("REVOKE {} FROM {}").format(sql.Identifier(extra.split()[0]), login)
        yield from self._functions(login)
        for role, privileges in sorted(wanted.items()):
            held = self._privileges(role)
            for privilege in sorted(held - privileges):
                yield sql.SQL("REVOKE {} FROM {}").format(privilege.clause(), sql.Identifier(role))
            for privilege in sorted(privileges - held):
                yield sql.SQL("GRANT {} TO {}").format(privilege.clause(), sql.Identifier(role))

    def _role(self, role: str, attributes: str) -> Iterator[sql.Composed]:
        name = sql.Identifier(role)
        if self._attributes(role) is None:
            yield sql.SQL("CREATE ROLE {}").format(name)
        yield sql.SQL("ALTER ROLE {} NOSUPERUSER NOCREATEDB NOREPLICATION NOBYPASSRLS {}").format(
            name, sql.SQL(attributes)
        )

    def _functions(self, login: sql.Identifier) -> Iterator[sql.Composed]:
        yield sql.Composed([sql.SQL("CREATE SCHEMA IF NOT EXISTS orchestrator")])
        yield sql.SQL("GRANT USAGE ON SCHEMA orchestrator TO {}").format(login)
        for signature, text in FUNCTIONS.items():
            function = sql.SQL(f"orchestrator.{signature}")
            yield sql.Composed([sql.SQL(text)])
            yield sql.SQL("REVOKE ALL ON FUNCTION {} FROM PUBLIC").format(function)
            yield sql.SQL("GRANT CREATE ON SCHEMA orchestrator TO {}").format(login)
            yield sql.SQL("ALTER FUNCTION {} OWNER TO {}").format(function, login)
            yield sql.SQL("REVOKE CREATE ON SCHEMA orchestrator FROM {}").format(login)

    def _wanted_memberships(self) -> set[str]:
        roles = [*self._connection.scopes, SWEEPER]
        return {"pg_signal_backend (INHERIT)", *(f"{role} (ADMIN)" for role in roles)}

    def _attributes(self, role: str) -> str | None:
        row = self._one(
            "SELECT concat_ws(' ', CASE WHEN rolcanlogin THEN 'LOGIN' ELSE 'NOLOGIN' END,"
            " CASE WHEN rolsuper THEN 'SUPERUSER' END, CASE WHEN rolcreaterole THEN 'CREATEROLE' END,"
            " CASE WHEN rolcreatedb THEN 'CREATEDB' END, CASE WHEN rolreplication THEN 'REPLICATION' END,"
            " CASE WHEN rolbypassrls THEN 'BYPASSRLS' END) FROM pg_roles WHERE rolname = %s",
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

    def _privileges(self, role: str) -> set[Privilege]:
        rows = self._session.execute(_PRIVILEGES, {"role": role}).fetchall()
        return {Privilege(*map(str, row)) for row in rows}

    def _function(self, signature: str) -> str | None:
        body = self._one(
            "SELECT p.prosrc || '-- owner ' || r.rolname || ' definer ' || p.prosecdef || ' '"
            " || coalesce(array_to_string(p.proconfig, ' '), '') || CASE WHEN EXISTS (SELECT FROM"
            " aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) WHERE grantee = 0) THEN ' PUBLIC' ELSE '' END"
            " FROM pg_proc p JOIN pg_roles r ON r.oid = p.proowner WHERE p.oid = to_regprocedure(%s)",
            f"orchestrator.{signature}",
        )
        expected = f"-- owner {self._connection.login} definer true search_path=pg_catalog, pg_temp"
        return None if body is None else str(body).removesuffix(expected).strip()

    def _one(self, statement: str, *parameters: Any) -> Any:
        row = self._session.execute(statement, parameters).fetchone()
        return None if row is None else row[0]


_PRIVILEGES = """
SELECT a.privilege_type, 'TABLE', n.nspname, c.relname, '' FROM pg_class c
       JOIN pg_namespace n ON n.oid = c.relnamespace, aclexplode(c.relacl) a
       WHERE a.grantee = to_regrole(quote_ident(%(role)s))
UNION SELECT a.privilege_type, 'TABLE', n.nspname, c.relname, t.attname FROM pg_attribute t
       JOIN pg_class c ON c.oid = t.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace,
       aclexplode(t.attacl) a WHERE a.grantee = to_regrole(quote_ident(%(role)s))
UNION SELECT a.privilege_type, 'SCHEMA', '', n.nspname, '' FROM pg_namespace n, aclexplode(n.nspacl) a
       WHERE a.grantee = to_regrole(quote_ident(%(role)s))
UNION SELECT a.privilege_type, 'DATABASE', '', d.datname, '' FROM pg_database d, aclexplode(d.datacl) a
       WHERE a.grantee = to_regrole(quote_ident(%(role)s)) AND d.datname = current_database()
UNION SELECT a.privilege_type, 'FUNCTION', '', n.nspname || '.' || p.proname || '('
       || pg_get_function_identity_arguments(p.oid) || ')', ''
       FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace, aclexplode(p.proacl) a
       WHERE a.grantee = to_regrole(quote_ident(%(role)s)) AND n.nspname <> 'orchestrator'
UNION SELECT a.privilege_type, 'FUNCTION', '', 'orchestrator.' || p.proname || '('
       || coalesce((SELECT string_agg(format_type(t, NULL), ', ') FROM unnest(p.proargtypes) t), '') || ')', ''
       FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace, aclexplode(p.proacl) a
       WHERE a.grantee = to_regrole(quote_ident(%(role)s)) AND n.nspname = 'orchestrator'
"""


def _lines(items: set[Privilege] | set[str]) -> str:
    return "\n".join(sorted(map(str, items)))


def _body(text: str) -> str:
    return text.partition("$body$")[2].rpartition("$body$")[0].strip()

"""Databases as they are found: each kind is set up, and described to whoever provisions, proves and runs on it.

A kind is one entry of `KINDS`: what differs from an ordinary database is a field or a function of it. One that is
reached in another way (a standby, a pooler) is one more `Reach`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
from pgbouncer import pgbouncer
from psycopg import sql
from standby import Standby

from orchestrator.devstack.postgres import Postgres
from orchestrator.secret import Secret

PASSWORD = "of the test's & own"


@dataclass(frozen=True)
class Addresses:
    """How the steps reach a database, and how Vault and the orchestrator's own duties do where that is another way."""

    endpoint: str
    primary: str | None = None


Reach = Callable[[Postgres, str, Path], AbstractContextManager[Addresses]]
"""Opens the way to a database of a server; files may be put below the folder."""


@contextmanager
def directly(server: Postgres, database: str, folder: Path) -> Iterator[Addresses]:
    """At the server's own port."""
    yield Addresses(endpoint(server, database))


@contextmanager
def by_a_standby(server: Postgres, database: str, folder: Path) -> Iterator[Addresses]:
    """The steps read from a streaming replica."""
    with Standby(folder / "standby", durable=False, primary=server) as standby:
        yield Addresses(endpoint(standby, database), endpoint(server, database))


@contextmanager
def by_a_pooler(server: Postgres, database: str, folder: Path) -> Iterator[Addresses]:
    """Everything goes through a PgBouncer, Vault's connection and the orchestrator's duties included."""
    with pgbouncer(superuser(server, database).reveal(), folder / "pgbouncer") as pooler:
        yield Addresses(pooler.endpoint)


@contextmanager
def steps_by_a_pooler(server: Postgres, database: str, folder: Path) -> Iterator[Addresses]:
    """Only the steps go through a PgBouncer, which gives its sessions to others after each transaction."""
    with pgbouncer(superuser(server, database).reveal(), folder / "pgbouncer", {"pool_mode": "transaction"}) as pooler:
        yield Addresses(pooler.endpoint, endpoint(server, database))


def endpoint(server: Postgres, database: str) -> str:
    """The address of a database of any name."""
    return f"postgresql://{server.host}:{server.port}/{quote(database, safe='')}"


def superuser(server: Postgres, database: str) -> Secret:
    """The server's own, who owns everything."""
    return Secret(server.dsn("DATABASE").reveal().replace("/DATABASE", f"/{quote(database, safe='')}"))


def managed(server: Postgres, database: str) -> Secret:
    """Whom managed servers give to their customers: CREATEROLE and CREATEDB, owner, no superuser."""
    with psycopg.connect(superuser(server, database).reveal(), autocommit=True) as session:
        session.execute(sql.SQL("CREATE ROLE managed_admin LOGIN CREATEROLE CREATEDB PASSWORD {}").format(PASSWORD))
        session.execute("GRANT pg_signal_backend TO managed_admin WITH ADMIN TRUE")
        session.execute(sql.SQL("ALTER DATABASE {} OWNER TO managed_admin").format(sql.Identifier(database)))
    return as_login(server, database, "managed_admin")


def as_login(server: Postgres, database: str, login: str, password: str = PASSWORD) -> Secret:
    """The DSN of a login."""
    return Secret(endpoint(server, database).replace("://", f"://{quote(login)}:{quote(password, safe='')}@", 1))


def nothing(server: Postgres, database: str, login: str) -> None:
    """What happens to most databases between their installation and a run."""


def restored(server: Postgres, database: str, login: str) -> None:
    """A backup brings the password back that Vault's login had before."""
    with psycopg.connect(superuser(server, database).reveal(), autocommit=True) as session:
        session.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(login), "of the backup"))


TABLES = """
CREATE TABLE note (id int PRIMARY KEY, owner text, words text, stamp date);
INSERT INTO note VALUES (1, 'ann', 'first', NULL), (2, 'bob', 'second', NULL), (3, 'ann', 'third', NULL);
CREATE TABLE locked (id int, words text);
CREATE PROCEDURE close_day(day date) LANGUAGE sql AS 'UPDATE note SET stamp = day WHERE owner = ''ann''';
REVOKE EXECUTE ON PROCEDURE close_day(date) FROM PUBLIC;
"""

READ = """[{ select: note, columns: [id, owner, words], where: { owner: "${{ inputs.owner }}" } }]"""
SELECT = "SELECT id, words FROM note ORDER BY id"
CHANGE = """
  - execute: close_day(date)
  - { select: note, columns: [owner] }
  - { update: note, columns: [stamp] }"""
CALL = "CALL close_day('2026-11-28')"


@dataclass(frozen=True)
class DatabaseKind:
    """What differs from an ordinary database, and what a workflow of two steps does in it."""

    name: str
    database: str = "matrix"
    login: str = "orchestrator_vault"
    encoding: str = "UTF8"
    administrator: Callable[[Postgres, str], Secret] = superuser
    reach: Reach = directly
    tables: str = TABLES
    """SQL of the administrator, who owns what it makes."""
    prepare: str = ""
    """SQL of a superuser before that."""
    meanwhile: Callable[[Postgres, str, str], None] = nothing
    """Between the installation and what uses it, with the name of Vault's login."""
    read: str = READ
    select: str = SELECT
    rows: list[dict[str, Any]] = field(
        default_factory=lambda: [{"id": 1, "words": "first"}, {"id": 3, "words": "third"}]
    )
    change: str = CHANGE
    call: str = CALL
    """Empty: nothing can be written there."""

    def workflow(self) -> str:
        """The first step reads, the second one changes."""
        text = f"""
version: 1
name: matrix
agent: tester
inputs: {{ owner: {{ type: string, default: ann }} }}
steps:
  read:
    action: postgres.query
    grants: {{ db: {{ kind: database, connection: matrix, privileges: {self.read} }} }}
    with: {{ sql: {quoted(self.select)} }}
    outputs: [rows]
"""
        if not self.call:
            return text
        indented = self.change.replace("\n", "\n      ")
        return (
            f"{text}  change:\n    action: postgres.execute\n    needs: [read]\n    grants:\n      db:\n"
            f"        kind: database\n        connection: matrix\n        privileges:{indented}\n"
            f"    with: {{ sql: {quoted(self.call)} }}\n"
        )

    @contextmanager
    def opened(self, server: Postgres, folder: Path) -> Iterator[tuple[Secret, Addresses]]:
        """The database with its tables: the administrator's DSN, and its addresses. It is dropped at the end."""
        with psycopg.connect(server.dsn().reveal(), autocommit=True) as session:
            name = sql.Identifier(self.database)
            session.execute(
                sql.SQL("CREATE DATABASE {} ENCODING {} TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'").format(
                    name, self.encoding
                )
            )
            session.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(name))
        try:
            dsn = self.administrator(server, self.database)
            for who, statements in ((superuser(server, self.database), self.prepare), (dsn, self.tables)):
                with psycopg.connect(who.reveal(), client_encoding="UTF8") as session:
                    session.execute(statements)  # type: ignore[arg-type]
            with self.reach(server, self.database, folder) as addresses:
                yield dsn, addresses
        finally:
            with psycopg.connect(server.dsn().reveal(), autocommit=True) as session:
                session.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))
                # Who made the others goes last, also where a test has failed and left them.
                for (role,) in session.execute(_OF_TESTS).fetchall():
                    session.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))


_OF_TESTS = """
SELECT rolname FROM pg_roles WHERE oid >= 16384 AND rolname <> 'postgres'
ORDER BY rolname !~ '^orc_', rolname = 'managed_admin', rolcanlogin, rolname
"""


def quoted(text: str) -> str:
    """A text of YAML in single quotes."""
    return "'" + text.replace("'", "''") + "'"


EXISTING_ROW_SECURITY = """
ALTER TABLE note ENABLE ROW LEVEL SECURITY;
CREATE POLICY published ON note TO PUBLIC USING (id < 3) WITH CHECK (id < 3);
CREATE POLICY own ON note TO app_user USING (true);
"""

SCHEMAS = """
CREATE SCHEMA aaa_internal;
CREATE TABLE aaa_internal.thing (id int);
CREATE SCHEMA shop;
CREATE TABLE shop.note (id int PRIMARY KEY, owner text, words text, stamp date);
INSERT INTO shop.note VALUES (1, 'ann', 'first', NULL), (2, 'bob', 'second', NULL), (3, 'ann', 'third', NULL);
CREATE SCHEMA jobs;
CREATE PROCEDURE jobs.close_day(day date) LANGUAGE sql AS 'UPDATE shop.note SET stamp = day WHERE owner = ''ann''';
REVOKE EXECUTE ON PROCEDURE jobs.close_day(date) FROM PUBLIC;
CREATE SCHEMA zzz_internal;
CREATE TABLE zzz_internal.thing (id int);
"""

WORDS = """
CREATE SCHEMA "Order by";
CREATE TABLE "Order by"."select" (
    "user" int PRIMARY KEY, "from" text, "Über ""all"".x" text, "position" date, "table" text
);
CREATE TABLE "Order by"."table" ("group" int);
INSERT INTO "Order by"."select" VALUES (1, 'ann', 'first'), (2, 'bob', 'second'), (3, 'ann', 'third');
CREATE SEQUENCE "Order by"."sequence";
CREATE PROCEDURE "Order by"."Close.day"("end" date)
    LANGUAGE sql AS 'UPDATE "Order by"."select" SET "position" = "end" WHERE "from" = ''ann''';
REVOKE EXECUTE ON PROCEDURE "Order by"."Close.day"(date) FROM PUBLIC;
"""

KINDS = {
    each.name: each
    for each in (
        DatabaseKind("ordinary"),
        DatabaseKind("an administrator without superuser", administrator=managed),
        DatabaseKind("SQL_ASCII", encoding="SQL_ASCII"),
        DatabaseKind("LATIN1", encoding="LATIN1"),
        DatabaseKind(
            "row security of its own",
            prepare="CREATE ROLE app_user",
            tables=TABLES + EXISTING_ROW_SECURITY,
            rows=[{"id": 1, "words": "first"}],
        ),
        DatabaseKind(
            "schemas that PUBLIC may not use",
            tables=SCHEMAS,
            read=READ.replace("select: note", "select: shop.note"),
            select="SELECT id, words FROM shop.note ORDER BY id",
            change=CHANGE.replace(": note", ": shop.note").replace("close_day", "jobs.close_day"),
            call=CALL.replace("close_day", "jobs.close_day"),
        ),
        DatabaseKind(
            "reserved and odd names",
            database='Group "by".1 ü',
            login="Vault's Login",
            administrator=managed,
            tables=WORDS,
            read="""[{ select: '"Order by"."select"', columns: [user, from, 'Über "all".x'],
        where: { from: "${{ inputs.owner }}" } }, { usage: '"Order by"."sequence"' }]""",
            select='SELECT "user" AS id, "Über ""all"".x" AS words FROM "Order by"."select" ORDER BY 1',
            change="""
  - execute: '"Order by"."Close.day"(date)'
  - { select: '"Order by"."select"', columns: [from] }
  - { update: '"Order by"."select"', columns: [position] }""",
            call="""CALL "Order by"."Close.day"('2026-11-28')""",
        ),
        DatabaseKind("a restored password", meanwhile=restored),
        DatabaseKind("a streaming replica", reach=by_a_standby, call=""),
        DatabaseKind("PgBouncer", reach=by_a_pooler),
        DatabaseKind("PgBouncer for steps alone, by transactions", reach=steps_by_a_pooler),
    )
}
"""By name. Each is provisioned, proven, run on and taken down by `test_database_matrix.py`."""

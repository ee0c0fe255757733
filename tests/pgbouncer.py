"""A real PgBouncer before a database of a test's server: logins are looked up in the server (`auth_query`)."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from orchestrator.devstack.ports import free_port
from orchestrator.devstack.postgres_user import reachable, server_user
from orchestrator.devstack.process import last_lines, start, stop
from orchestrator.errors import Unreachable

ROOT = Path(__file__).parents[1]
BINARY = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin")
_READY_SECONDS = 30.0


@dataclass
class PgBouncer:
    """One pooler on a free port of 127.0.0.1, with the settings that `docs/poolers.md` shows, and these beside them."""

    dsn: str
    """The database, as its superuser; the pooler has it under the same name."""
    directory: Path
    settings: Mapping[str, str] = field(default_factory=dict)
    entry: str = ""
    """More of the database's entry, as `user=... password=...`."""
    port: int = field(default_factory=free_port)
    _password: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    _process: subprocess.Popen[bytes] | None = None

    @property
    def database(self) -> str:
        return str(conninfo_to_dict(self.dsn)["dbname"])

    @property
    def endpoint(self) -> str:
        """The address of the database behind the pooler, without a login."""
        return f"postgresql://127.0.0.1:{self.port}/{self.database}"

    def through(self, dsn: str) -> str:
        """The same login, through the pooler."""
        return make_conninfo(dsn, host="127.0.0.1", port=self.port)

    def sql(self, statement: str) -> list[tuple[object, ...]]:
        """What the console of the pooler says to a SHOW."""
        console = make_conninfo("", host="127.0.0.1", port=self.port, dbname="pgbouncer")
        with psycopg.connect(console, user="pgbouncer", password=self._password, autocommit=True) as session:
            return session.execute(statement.encode()).fetchall()

    def start(self) -> None:
        """Start it and wait until its console answers. Raises Unreachable with the end of its log."""
        assert BINARY is not None, "PgBouncer is not installed: `apt-get install pgbouncer`, as .ci/run does"
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        user = server_user()
        with reachable(self.directory, user) as (folder, inherit):
            admin = conninfo_to_dict(self.dsn)
            lines = [f'"pgbouncer" "{self._password}"', f'"{admin["user"]}" "{admin["password"]}"', ""]
            self._write("userlist.txt", "\n".join(lines))
            self._write("pgbouncer.ini", self._configuration(folder))
            self._process = start(
                [BINARY, f"{folder}/pgbouncer.ini"],
                log=self.directory / "pgbouncer.log",
                environment={"PATH": os.defpath},
                user=user,
                inherit=inherit,
            )
        self._wait()

    def stop(self) -> None:
        if self._process is not None:
            stop(self._process)
            self._process = None

    def install(self) -> None:
        """What the documentation has a superuser run once in the database."""
        with psycopg.connect(self.dsn, autocommit=True) as session:
            statements = _documented("sql").replace("ON DATABASE support", f"ON DATABASE {self.database}")
            session.execute(statements.encode())
            password = sql.Literal(self._password)
            session.execute(sql.SQL("ALTER ROLE pgbouncer PASSWORD {}").format(password))

    def remove(self) -> None:
        """Take that away again."""
        with psycopg.connect(self.dsn, autocommit=True) as session:
            session.execute("DROP SCHEMA IF EXISTS pgbouncer CASCADE")
            session.execute("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = 'pgbouncer'")
            session.execute("DROP OWNED BY pgbouncer")
            session.execute("DROP ROLE pgbouncer")

    def _write(self, name: str, text: str) -> None:
        file = self.directory / name
        file.write_text(text)
        entry = self.directory.stat()
        os.chown(file, entry.st_uid, entry.st_gid)
        file.chmod(0o600)

    def _configuration(self, folder: str) -> str:
        server = conninfo_to_dict(self.dsn)
        lines = []
        for line in _documented("ini").splitlines():
            name = line.partition("=")[0].strip()
            if name == "support":
                line = f"{self.database} = host={server['host']} port={server['port']} {self.entry}"
            changed = {"listen_addr": "127.0.0.1", "listen_port": self.port, "auth_file": f"{folder}/userlist.txt"}
            if name in changed:
                line = f"{name} = {changed[name]}"
            if name not in self.settings:
                lines.append(line)
        lines += [f"{name} = {value}" for name, value in self.settings.items()]
        return "\n".join([*lines, "unix_socket_dir =", "admin_users = pgbouncer", ""])

    def _wait(self) -> None:
        until = time.monotonic() + _READY_SECONDS
        while time.monotonic() < until and self._process is not None and self._process.poll() is None:
            try:
                self.sql("SHOW VERSION")
            except psycopg.OperationalError:
                time.sleep(0.02)
            else:
                return
        raise Unreachable(f"PgBouncer did not become ready:\n{last_lines(self.directory / 'pgbouncer.log')}")


def _documented(language: str) -> str:
    """The configuration that our documentation gives."""
    text = (ROOT / "docs" / "poolers.md").read_text()
    return text.partition(f"```{language}\n")[2].partition("```")[0]


@contextmanager
def pgbouncer(
    dsn: str, directory: Path, settings: Mapping[str, str] | None = None, entry: str = ""
) -> Iterator[PgBouncer]:
    """A running pooler before this database, of which nothing is left in it at the end."""
    pooler = PgBouncer(dsn, directory, settings or {}, entry)
    pooler.install()
    try:
        pooler.start()
        yield pooler
    finally:
        pooler.stop()
        pooler.remove()

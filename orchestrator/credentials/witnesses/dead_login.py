"""One try to log in with a login that Vault says is revoked, which no database can answer wrongly by mistake.

The try is made where the truth is, over the protection of any other connection. What came of it is recorded; it
decides nothing: a login is gone when its database's catalog says so.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import re
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from orchestrator.clock import Clock
from orchestrator.credentials.arrival import unknown_login
from orchestrator.ledger.events import LeaseLoginTried
from orchestrator.network.postgres import protected, why, without_settings
from orchestrator.secret import Secret

if TYPE_CHECKING:
    from psycopg.pq.abc import PGconn

log = logging.getLogger(__name__)

TRY_SECONDS = 3.0
"""How long a server has to answer: the end of the run may be waiting for it."""

_VERBOSE = 2
"""`PQERRORS_VERBOSE` (PostgreSQL manual, 32.11): messages begin with their SQLSTATE, in whatever language they are."""

_SQLSTATE = re.compile(r":  ([0-9A-Z]{5}): ")
_PROTOCOL_VIOLATION = "08P01"
"""With which poolers say everything, so that only their words tell what it is."""


@dataclass(frozen=True, slots=True)
class DeadLogin:
    """A login of a step, kept until it is tried."""

    lease_id: str
    connection: str
    login: str
    password: Secret


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one try. `refused` is None where it tells nothing of the login, and `reason` says why."""

    refused: bool | None
    sqlstate: str | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class DeadLogins:
    """Tries logins of steps that Vault says are revoked. `addresses` are those of the databases, by connection."""

    addresses: Mapping[str, str]
    clock: Clock

    async def tried(self, dead: DeadLogin, *, deadline: float) -> LeaseLoginTried:
        """Try it once, until `deadline` (monotonic) and for `TRY_SECONDS` at most. Whatever comes of it is no error."""
        address = self.addresses.get(dead.connection)
        seconds = min(TRY_SECONDS, deadline - self.clock.monotonic())
        if address is None:
            outcome = Outcome(None, reason="no endpoint is configured for it")
        elif seconds <= 0:
            outcome = Outcome(None, reason="there was no time left for it")
        else:
            outcome = await _try(address, dead.login, dead.password, seconds)
        if outcome.refused is False:
            log.warning("the login of lease %s still works although Vault has revoked it", dead.lease_id)
        return self.event(dead, outcome)

    def event(self, dead: DeadLogin, outcome: Outcome) -> LeaseLoginTried:
        """What to record."""
        return LeaseLoginTried(
            lease_id=dead.lease_id,
            refused=outcome.refused,
            sqlstate=outcome.sqlstate,
            server=_place(self.addresses.get(dead.connection, "")),
            at=self.clock.now(),
            reason=outcome.reason,
        )


async def _try(address: str, login: str, password: Secret, seconds: float) -> Outcome:
    import psycopg
    from psycopg.conninfo import conninfo_to_dict, make_conninfo

    try:
        async with asyncio.timeout(seconds):
            given = {
                name: str(value)
                for name, value in conninfo_to_dict(protected(without_settings(address)[0], issued=True)).items()
            }
            own = {"user": login, "client_encoding": "UTF8", "application_name": "orchestrator tries a revoked login"}
            wanted = {**await _looked_up(given), **own}
            return await _connected(make_conninfo("", **wanted, password=password.reveal()), login)
    except TimeoutError:
        return Outcome(None, reason="the server did not answer in time")
    except (OSError, psycopg.Error) as error:
        return Outcome(None, reason=why(error, make_conninfo(password=password.reveal())))
    except Exception as error:  # noqa: BLE001 -- nothing depends on it but what is recorded of it
        return Outcome(None, reason=f"unexpected {type(error).__name__}")


async def _looked_up(given: Mapping[str, str]) -> Mapping[str, str]:
    """The same with numbers beside the names of hosts: libpq would look names up while everything else waits."""
    hosts = given.get("host", "").split(",")
    if "hostaddr" in given or any(not host or host.startswith(("/", "@")) for host in hosts):
        return given
    ports = given.get("port", "").split(",")
    ports = ports * len(hosts) if len(ports) == 1 else ports
    found = [
        (host, str(each[4][0]), port)
        for host, port in zip(hosts, ports, strict=False)
        for each in await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    ]
    names, numbers, places = (",".join(each) for each in zip(*dict.fromkeys(found), strict=True))
    return {**given, "host": names, "hostaddr": numbers, "port": places}


async def _connected(conninfo: str, login: str) -> Outcome:
    """Connect, and take leave at once where that succeeds.

    The driver's own way of connecting gives no room for telling libpq, before the server answers, to name SQLSTATEs.
    """
    from psycopg import pq

    connection = pq.PGconn.connect_start(conninfo.encode())
    try:
        verbose = _say_sqlstates(connection)
        while (status := connection.connect_poll()) not in (pq.PollingStatus.OK, pq.PollingStatus.FAILED):
            await _ready(connection.socket, to_write=status == pq.PollingStatus.WRITING)
        if status == pq.PollingStatus.OK:
            return Outcome(False)
        text = connection.error_message.decode(errors="replace")
        return read(text, login, conninfo, verbose=verbose, connection=connection)
    finally:
        connection.finish()


def read(text: str, login: str, conninfo: str, *, verbose: bool, connection: PGconn | None = None) -> Outcome:
    """What libpq's words for a connection that did not come about tell of the login; `verbose`: with SQLSTATEs."""
    from psycopg import OperationalError

    found = _SQLSTATE.search(text) if verbose else None
    state = found[1] if found else None
    error = OperationalError(_SQLSTATE.sub(":  ", text) if found else text, pgconn=connection)
    if state is not None and state != _PROTOCOL_VIOLATION:
        refused = state.startswith("28")  # invalid authorization specification
        return Outcome(True, state) if refused else Outcome(None, state, why(error, conninfo))
    if unknown_login(error, login):
        return Outcome(True, state, "" if state else "by the server's words: no SQLSTATE is to be had here")
    return Outcome(None, state, why(error, conninfo))


async def _ready(descriptor: int, *, to_write: bool) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    watch, leave = (loop.add_writer, loop.remove_writer) if to_write else (loop.add_reader, loop.remove_reader)
    watch(descriptor, _wake, ready)
    try:
        await ready
    finally:
        leave(descriptor)


def _wake(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


def _say_sqlstates(connection: PGconn) -> bool:
    """Have the messages of a connection begin with their SQLSTATE, before it is known what they are."""
    pointer: int | None = getattr(connection, "pgconn_ptr", None)
    if pointer is None or (tell := _set_error_verbosity()) is None:
        return False
    return tell(pointer, _VERBOSE) in range(4)


@cache
def _set_error_verbosity() -> Callable[[int, int], int] | None:
    """`PQsetErrorVerbosity` of the libpq that the driver itself has loaded; None where that cannot be had.

    The driver offers the pointer to its connection for such calls, and not this one. Any other copy of libpq might
    be of another version, and read the connection wrongly.
    """
    from psycopg import pq

    module = sys.modules[pq.PGconn.__module__]
    try:
        library = module.impl.pq if pq.__impl__ == "python" else ctypes.CDLL(str(module.__file__))
        function = library.PQsetErrorVerbosity
    except (OSError, AttributeError):
        return None
    function.argtypes, function.restype = [ctypes.c_void_p, ctypes.c_int], ctypes.c_int
    tell: Callable[[int, int], int] = function
    return tell


def _place(address: str) -> str:
    """Host and port, as they were asked for."""
    from psycopg import ProgrammingError
    from psycopg.conninfo import conninfo_to_dict

    try:
        given = conninfo_to_dict(address)
    except ProgrammingError:
        return ""
    host = str(given.get("host") or given.get("hostaddr") or "local socket")
    if host.startswith(("/", "@")) or host == "local socket":
        return host
    return f"[{host}]:{given.get('port', 5432)}" if ":" in host else f"{host}:{given.get('port', 5432)}"

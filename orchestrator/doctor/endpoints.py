"""Whether what the steps connect to is there and speaks as the address says. No credential is sent to anybody."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from urllib.parse import urlsplit

from orchestrator.doctor.findings import Finding, Mark, fault, fine, warning
from orchestrator.doctor.subject import Subject
from orchestrator.errors import ExitCode
from orchestrator.network.loopback import is_loopback
from orchestrator.network.postgres import SCHEMES, protection

AREA = "endpoints"

_SSL_REQUEST = b"\x00\x00\x00\x08\x04\xd2\x16\x2f"
"""Asks a PostgreSQL server for TLS; it answers one byte, `S` or `N` (PostgreSQL manual, 54.2.9)."""

_READABLE = frozenset({"disable", "allow", "prefer"})
_POSTGRESQL_PORT = 5432
_NOT_ACCEPTED = "its TLS certificate was not accepted"
_MACHINES = "system"
"""As a `sslrootcert`: the authorities of this machine, and the name is looked at (PostgreSQL manual, 32.1.2)."""


async def endpoints(subject: Subject) -> list[Finding]:
    """Every endpoint and every primary, at the same time."""
    named = [*subject.endpoints.items(), *((f"{name} (primary)", url) for name, url in subject.primaries.items())]
    found = await asyncio.gather(*(_bounded(name, url, subject.seconds) for name, url in named))
    return [_unless_a_step_trusts(each, subject) for each in found]


def _unless_a_step_trusts(found: Finding, subject: Subject) -> Finding:
    """A service whose certificate this machine does not accept may be trusted by a step that names its authority."""
    steps = (step for loaded in subject.workflows for step in loaded.workflow.parts.values())
    if _NOT_ACCEPTED in found.found and any(step.with_.get("ca") is not None for step in steps):
        return warning(AREA, found.found, f"where the step names its authority (`ca`) all is well; else {found.advice}")
    return found


async def _bounded(name: str, url: str, seconds: float) -> Finding:
    """One of them, which may take so many seconds."""
    what = f"{name} at {_shown(url)}"
    try:
        async with asyncio.timeout(seconds):
            return await _caught(what, _database if url.startswith(SCHEMES) else _service, url)
    except TimeoutError:
        return _away(what, f"did not answer within {seconds:.0f} s: is a firewall in between?")
    except ValueError:
        return fault(AREA, f"{name}: the address cannot be read", "write it as scheme://host:port", ExitCode.INVALID)


async def _caught(what: str, look: Callable[..., Awaitable[Finding]], *about: object) -> Finding:
    """A look at a server, with what went wrong in it as a finding."""
    try:
        return await look(what, *about)
    except TimeoutError:
        raise
    except ssl.SSLCertVerificationError as error:
        return fault(
            AREA,
            f"{what}: {_NOT_ACCEPTED}: {error.verify_message}",
            "use the name that the certificate holds, and name its authority: `?sslrootcert=/path/to/ca.pem` for a "
            "database; SSL_CERT_FILE or the machine's own authorities for a service",
            ExitCode.UNREACHABLE,
        )
    except ssl.SSLError as error:
        return _away(what, f"does not speak TLS as the address asks ({error.reason or 'no reason given'})")
    except OSError as error:
        return _away(what, f"cannot be connected to: {error.strerror or type(error).__name__}")
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        return _away(what, "closed the connection, or does not speak as the address says")


def _away(what: str, said: str) -> Finding:
    return fault(AREA, f"{what} {said}", "is the server up, and are host and port right?", ExitCode.UNREACHABLE)


def _shown(url: str) -> str:
    """The address without what may follow its path."""
    return url.partition("?")[0]


async def _service(what: str, url: str) -> Finding:
    """A request for nothing, to see that HTTP is spoken there."""
    parts = urlsplit(url)
    secured = parts.scheme == "https"
    if not parts.hostname or parts.scheme not in ("http", "https"):
        return warning(AREA, f"{what} is no http(s) or postgresql address", "it was not tried: is it meant so?")
    context = ssl.create_default_context() if secured else None  # whom `http.request` trusts, too
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port or (443 if secured else 80), ssl=context)
    try:
        writer.write(f"HEAD / HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n\r\n".encode())
        await writer.drain()
        spoken = (await reader.readexactly(5)) == b"HTTP/"
    finally:
        await _closed(writer)
    if not spoken:
        return _away(what, "answers, but not by HTTP")
    if not secured and not is_loopback(parts.hostname):
        return warning(AREA, f"{what} answers without TLS", "tokens sent there can be read on the way: use https")
    return fine(AREA, f"{what} answers")


async def _database(what: str, url: str) -> Finding:
    """The first server that an address names is enough, as it is for libpq; of none the first finding is told."""
    from psycopg import ProgrammingError
    from psycopg.conninfo import conninfo_to_dict

    try:
        given = {name: str(value) for name, value in conninfo_to_dict(url).items()}
    except ProgrammingError:
        raise ValueError from None  # its words may quote the address
    servers, made = _servers(given), protection(given, password=True)
    found = [_caught(f"{what} ({_place(each)})" if len(servers) > 1 else what, _server, each, made) for each in servers]
    told = await asyncio.gather(*found)
    return next((each for each in told if each.mark is not Mark.FAULT), told[0])


def _servers(given: Mapping[str, str]) -> list[dict[str, str]]:
    """The servers of a conninfo, each with its part of the lists (PostgreSQL manual, 32.1.1.3). Raises ValueError."""
    lists = {name: given.get(name, "").split(",") for name in ("host", "hostaddr", "port")}
    count = max(len(lists["host"]), len(lists["hostaddr"]))
    parts = {name: each * count if len(each) == 1 else each for name, each in lists.items()}
    servers = [dict(zip(parts, each, strict=True)) for each in zip(*parts.values(), strict=True)]
    for each in servers:
        each["port"] = str(int(each["port"] or _POSTGRESQL_PORT))
    return servers


def _place(server: Mapping[str, str]) -> str:
    return f"{server['host'] or server['hostaddr']}:{server['port']}"


async def _server(what: str, server: Mapping[str, str], made: Mapping[str, str]) -> Finding:
    """The server's own answer to the question for TLS, and TLS where the address or its place asks for it."""
    host, port = server["hostaddr"] or server["host"] or "localhost", int(server["port"])
    tls, socket = made.get("sslmode"), host.startswith("/")
    wanted = tls is not None and tls not in _READABLE and not socket
    try:
        context = _context(made) if wanted else None
    except OSError as error:
        return fault(
            AREA,
            f"{what}: the authorities of its `sslrootcert` cannot be read: {error.strerror or 'no certificates'}",
            "name a file with certificates in PEM in the address: `?sslrootcert=/path/to/ca.pem`",
            ExitCode.INVALID,
        )
    connected = (
        asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}") if socket else asyncio.open_connection(host, port)
    )
    reader, writer = await connected
    try:
        writer.write(_SSL_REQUEST)
        await writer.drain()
        answer = await reader.readexactly(1)
        if answer not in (b"S", b"N"):
            return _away(what, "answers, but is no PostgreSQL server")
        if wanted and answer == b"N":
            return fault(
                AREA,
                f"{what} offers no TLS",
                "switch it on there (`ssl = on`); where the network in between is trusted, say so by "
                "`?sslmode=disable` in the address",
                ExitCode.UNREACHABLE,
            )
        if context is not None:
            await writer.start_tls(context, server_hostname=server["host"] or host)
    finally:
        await _closed(writer)
    if tls in _READABLE and not socket and not is_loopback(host):
        return warning(AREA, f"{what} answers, and need not speak TLS", f"its address says sslmode={tls}")
    return fine(AREA, f"{what} answers{' with TLS' if wanted else ''}")


async def _closed(writer: asyncio.StreamWriter) -> None:
    """Close a connection; how the other side takes it says nothing more."""
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()


def _context(made: Mapping[str, str]) -> ssl.SSLContext:
    """As libpq verifies the server for this `sslmode` (PostgreSQL manual, 32.19.1). Raises OSError."""
    file = made.get("sslrootcert")
    context = ssl.create_default_context(cafile=None if file == _MACHINES else file)
    context.check_hostname = made["sslmode"] == "verify-full" or file == _MACHINES
    if made["sslmode"] == "require" and file is None:
        context.verify_mode = ssl.CERT_NONE
    return context

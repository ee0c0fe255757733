"""Whether what the steps connect to is there and speaks as the address says. No credential is sent to anybody."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from contextlib import suppress
from urllib.parse import urlsplit

from orchestrator.doctor.findings import Finding, fault, fine, warning
from orchestrator.doctor.subject import Subject
from orchestrator.errors import ExitCode
from orchestrator.network.loopback import is_loopback
from orchestrator.network.postgres import SCHEMES, protection

AREA = "endpoints"

_SSL_REQUEST = b"\x00\x00\x00\x08\x04\xd2\x16\x2f"
"""Asks a PostgreSQL server for TLS; it answers one byte, `S` or `N` (PostgreSQL manual, 54.2.9)."""

_READABLE = frozenset({"disable", "allow", "prefer"})
_POSTGRESQL_PORT = 5432


async def endpoints(subject: Subject) -> list[Finding]:
    """Every endpoint and every primary, at the same time."""
    named = [*subject.endpoints.items(), *((f"{name} (primary)", url) for name, url in subject.primaries.items())]
    return list(await asyncio.gather(*(_bounded(name, url, subject.seconds) for name, url in named)))


async def _bounded(name: str, url: str, seconds: float) -> Finding:
    """One of them, which may take so many seconds."""
    what = f"{name} at {_shown(url)}"
    try:
        async with asyncio.timeout(seconds):
            return await (_database(what, url) if url.startswith(SCHEMES) else _service(what, url))
    except TimeoutError:
        return _away(what, f"did not answer within {seconds:.0f} s: is a firewall in between?")
    except ssl.SSLCertVerificationError as error:
        return fault(
            AREA,
            f"{what}: its TLS certificate was not accepted: {error.verify_message}",
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
    except ValueError:
        return fault(AREA, f"{name}: the address cannot be read", "write it as scheme://host:port", ExitCode.INVALID)


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
    context = _authorities(None) if secured else None
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port or (443 if secured else 80), ssl=context)
    try:
        writer.write(f"HEAD / HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n\r\n".encode())
        await writer.drain()
        spoken = (await reader.readexactly(5)) == b"HTTP/"
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
    if not spoken:
        return _away(what, "answers, but not by HTTP")
    if not secured and not is_loopback(parts.hostname):
        return warning(AREA, f"{what} answers without TLS", "tokens sent there can be read on the way: use https")
    return fine(AREA, f"{what} answers")


async def _database(what: str, url: str) -> Finding:
    """The server's own answer to the question for TLS, and TLS where the address or its place asks for it."""
    from psycopg.conninfo import conninfo_to_dict

    given = {name: str(value) for name, value in conninfo_to_dict(url).items()}
    made = protection(given, password=True)
    tls = made.get("sslmode")
    host = (given.get("hostaddr") or given.get("host") or "localhost").split(",")[0]
    port = int((given.get("port") or str(_POSTGRESQL_PORT)).split(",")[0])
    if host.startswith("/"):
        reader, writer = await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
    else:
        reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(_SSL_REQUEST)
        await writer.drain()
        answer = await reader.readexactly(1)
        if answer not in (b"S", b"N"):
            return _away(what, "answers, but is no PostgreSQL server")
        wanted = tls is not None and tls not in _READABLE and not host.startswith("/")
        if wanted and answer == b"N":
            return fault(
                AREA,
                f"{what} offers no TLS",
                "switch it on there (`ssl = on`); where the network in between is trusted, say so by "
                "`?sslmode=disable` in the address",
                ExitCode.UNREACHABLE,
            )
        if wanted:
            name = given.get("host", host).split(",")[0]
            await writer.start_tls(_context(made), server_hostname=name)
    finally:
        writer.close()
        with suppress(OSError, ssl.SSLError):
            await writer.wait_closed()
    if tls in _READABLE and not host.startswith("/") and not is_loopback(host):
        return warning(AREA, f"{what} answers, and need not speak TLS", f"its address says sslmode={tls}")
    return fine(AREA, f"{what} answers{' with TLS' if wanted else ''}")


def _context(made: Mapping[str, str]) -> ssl.SSLContext:
    """As libpq verifies the server for this `sslmode` (PostgreSQL manual, 32.19.1)."""
    context = _authorities(made.get("sslrootcert"))
    context.check_hostname = made["sslmode"] == "verify-full"
    if made["sslmode"] == "require" and "sslrootcert" not in made:
        context.verify_mode = ssl.CERT_NONE
    return context


def _authorities(file: str | None) -> ssl.SSLContext:
    import certifi

    return ssl.create_default_context(cafile=file or certifi.where())

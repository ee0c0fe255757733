"""How a database is connected to with a password: only to the server that is meant, and never so that it is read.

libpq would by itself take any server for the right one, do without TLS where it is told that there is none, and send
the password in clear to whoever asks for it (PostgreSQL manual, 32.19.1 and 32.1.2, `require_auth`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from orchestrator.errors import UsageError
from orchestrator.network.loopback import is_loopback

SCHEMES = ("postgresql://", "postgres://")
"""How the URL of a database begins."""
_VERIFYING = ("verify-full", "verify-ca")
_PROOF_ONLY = "scram-sha-256"
"""The method by which a server learns no password that it does not know already (RFC 5802)."""
_NOTHING_READABLE = "!password,!md5"
"""Where no password is given here libpq may find one by itself, or prove who we are by a certificate."""
_VARIABLES = {
    "sslmode": "PGSSLMODE",
    "sslrootcert": "PGSSLROOTCERT",
    "require_auth": "PGREQUIREAUTH",
    "channel_binding": "PGCHANNELBINDING",
}
_OF_LIBPQ_ONLY = frozenset({"require_auth", "channel_binding", "sslrootcert", "client_encoding", "connect_timeout"})


def protected(address: str, *, issued: bool = False) -> str:
    """The address with what protects a password on the way; whatever it says itself stays.

    On another machine the certificate must be of a known authority and of the host's name. `issued`: the password
    comes from Vault and is not in the address. Raises psycopg.ProgrammingError for what is no address.
    """
    from psycopg.conninfo import conninfo_to_dict, make_conninfo

    # Without `options` of its own libpq would take those of the environment (PGOPTIONS).
    given = {"options": "", **{name: str(value) for name, value in conninfo_to_dict(address).items()}}
    return make_conninfo("", **{**given, **protection(given, password=issued or "password" in given)})


def protection(given: Mapping[str, str], *, password: bool) -> dict[str, str]:
    """The parameters of the protection: those that are given, and else the strict ones."""
    made = {name: given[name] for name in _VARIABLES if name in given}
    if not password:
        made.setdefault("require_auth", _NOTHING_READABLE)
    made.setdefault("require_auth", f"{_PROOF_ONLY},none" if all(map(_is_socket, _hosts(given))) else _PROOF_ONLY)
    if not _stays_here(given):
        made.setdefault("sslmode", "verify-full")
    if made.get("sslmode") in _VERIFYING:
        made.setdefault("sslrootcert", str(authorities()))
    return made


def environment(addresses: Iterable[str]) -> dict[str, str]:
    """The same for programs that connect by themselves, as variables of libpq (PostgreSQL manual, 32.15), and UTF-8.

    Of addresses that differ in it the strictest; a program says itself what another one takes.
    """
    from psycopg import Error
    from psycopg.conninfo import conninfo_to_dict

    found: dict[str, str] = {}
    for address in addresses:
        try:
            given = {name: str(value) for name, value in conninfo_to_dict(address).items()}
        except Error:
            continue  # no address of PostgreSQL
        made = protection(given, password=True)
        if not found or made.get("sslmode") == "verify-full":
            found = made
    encoding = {"PGCLIENTENCODING": "UTF8"} if found else {}
    return {**encoding, **{_VARIABLES[name]: value for name, value in found.items()}}


def for_vault(url: str) -> str:
    """The address as Vault's own driver takes it, which knows TLS but not the other words of libpq.

    The authorities are those of Vault's machine: a path of ours says nothing there. Settings are for the steps.
    Raises UsageError for what is no such address.
    """
    from psycopg import ProgrammingError
    from psycopg.conninfo import conninfo_to_dict

    if problem := problem_of(url) if url.startswith(SCHEMES) else "it does not begin with postgresql://":
        raise UsageError(f"Vault cannot connect to the address of a database: {problem}")
    try:
        given = {name: str(value) for name, value in conninfo_to_dict(url).items()}
    except ProgrammingError as error:
        raise UsageError(f"Vault cannot connect to the address of a database: {str(error).strip()}") from None
    parts = urlsplit(url)
    said = parse_qsl(parts.query)
    kept = [(name, _parted(value)[0] if name == "options" else value) for name, value in said]
    wanted = [(name, value) for name, value in kept if name not in _OF_LIBPQ_ONLY and (value or name != "options")]
    if "sslmode" not in given and not _stays_here(given):
        wanted.append(("sslmode", "verify-full"))
    return url if wanted == said else parts._replace(query=urlencode(wanted)).geturl()


_SETTING = re.compile(r"([A-Za-z_][A-Za-z0-9_$.]*)=(.*)", re.DOTALL)
_WORD = re.compile(r"(?:\\.|[^\s\\])+", re.DOTALL)
"""Spaces part the words of `options`, where there is no backslash before them (`pg_split_opts` of PostgreSQL)."""


def problem_of(address: str) -> str | None:
    """Why this cannot be the address of a database without a login; None for what can, and for no address of one.

    Vault is told the same address with its own login in it, so that it must be a URL and have none.
    """
    if re.match(r"\s*[a-z_]+\s*=", address):
        return "the address of a database is a URL: postgresql://host:port/database"
    if not address.startswith(SCHEMES):
        return None
    try:
        parts = urlsplit(address)
        said = dict(parse_qsl(parts.query, keep_blank_values=True))
        _parted(said.get("options", ""))
    except ValueError as error:
        return f"this address cannot be read: {error}"
    if parts.username is not None or "user" in said:
        return "this address contains a user; the login comes from Vault: leave it out"
    return None


def without_settings(address: str) -> tuple[str, dict[str, str]]:
    """The address as it can be connected to, and the settings (`-c name=value`) that its `options` had.

    Raises psycopg.ProgrammingError for what is no address.
    """
    from psycopg import ProgrammingError
    from psycopg.conninfo import conninfo_to_dict, make_conninfo

    given = {name: str(value) for name, value in conninfo_to_dict(address).items()}
    if "options" not in given:
        return address, {}
    try:
        rest, settings = _parted(given["options"])
    except ValueError as error:
        raise ProgrammingError(str(error)) from None
    return make_conninfo("", **{**given, "options": rest}), settings


def _parted(options: str) -> tuple[str, dict[str, str]]:
    """What is in `options` beside settings, by which some gateways find their database, and the settings.

    Raises ValueError.
    """
    settings: dict[str, str] = {}
    rest: list[str] = []
    words = iter(_WORD.findall(options))
    for word in words:
        text = _plain(word)
        if not text.startswith("-c"):
            rest.append(word)
            continue
        said = _SETTING.fullmatch(text.removeprefix("-c") or _plain(next(words, "")))
        if said is None:
            raise ValueError("its `options` have a `-c` without name=value")
        settings[said[1]] = said[2]
    return " ".join(rest), settings


def _plain(word: str) -> str:
    return re.sub(r"\\(.)", r"\1", word, flags=re.DOTALL)


STRINGS = "standard_conforming_strings"


def reads_as_parsed(status: bytes | str | None) -> bool:
    """Whether a session, by what it says of `STRINGS`, takes a backslash in `'...'` for what our parser takes it for.

    Where it does not, what looks like a text may hold further commands (PostgreSQL manual, 19.13.1).
    """
    return status in (b"on", "on")


def authorities() -> Path:
    """The certificate authorities of this machine, else those that come with this program."""
    import ssl

    import certifi

    known = ssl.get_default_verify_paths().cafile
    return Path(known) if known else Path(certifi.where())


def _stays_here(given: Mapping[str, str]) -> bool:
    """Whether every server that is named is this machine; for Unix sockets libpq ignores TLS by itself."""
    return all(_is_socket(host) or is_loopback(host) for host in _hosts(given))


def _hosts(given: Mapping[str, str]) -> list[str]:
    named = given.get("hostaddr") or given.get("host") or ""
    return [host.strip() for host in named.split(",")]


def _is_socket(host: str) -> bool:
    """Unix sockets: the folder says who may make one there, so that a server which asks for nothing will do."""
    return host.startswith(("/", "@"))


_FAILED = re.compile(r"^.*failed: (?:[A-Z]+:  )?")


def why(error: Exception, dsn: str) -> str:
    """Why a connection did not come about, in libpq's and the server's words, without the password of the DSN.

    Of what is no address only the kind of the error: its words may quote the password.
    """
    from psycopg import ProgrammingError
    from psycopg.conninfo import conninfo_to_dict

    try:
        password = str(conninfo_to_dict(dsn).get("password") or "")
    except ProgrammingError:
        return type(error).__name__
    lines = [_FAILED.sub("", line) for line in str(error).splitlines() if line.strip() and line[0] not in "\t "]
    text = "; ".join(dict.fromkeys(line.strip(" -") for line in lines)) or type(error).__name__
    for form in (password, quote(password), quote(password, safe="")):
        text = text.replace(form, "***") if form else text
    return text


def refusal_hint(error: BaseException) -> str | None:
    """What to do where a connection was refused for the sake of the password; None where it failed otherwise.

    libpq says it in words only.
    """
    text = str(error)
    for words, hint in _HINTS.items():
        if words in text:
            return hint
    return None


_HINTS = {
    "does not support SSL": "the server offers no TLS: switch it on there (`ssl = on`); where the network in between "
    "is trusted, say so by `?sslmode=disable` in the address",
    "does not match host name": "the certificate is of another name: use that name in the address, or is this another "
    "server?",
    "certificate verify failed": "name the authority of the server's certificate in the address: "
    "`?sslrootcert=/path/to/ca.pem`",
    "root certificate file": "the address names authorities in `sslrootcert` that cannot be read",
    "authentication method requirement": "the server does not ask for the password by SCRAM, so whoever answers there "
    "could read it: set `password_encryption = scram-sha-256` there; for an old server say `?require_auth=md5` in the "
    "address",
}

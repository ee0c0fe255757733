"""What an engine that asks a service is told: where it is, how it is recognised, who we are there.

The options are texts (`ORCHESTRATOR_POLICY_OPTIONS__NAME`, or the table `policy_options` of the settings file). What is
wrong with one is said by the variable's name and never by its value.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from orchestrator.environment import PREFIX
from orchestrator.errors import UsageError
from orchestrator.network.loopback import is_loopback

VARIABLE = f"{PREFIX}POLICY_OPTIONS__"

_SOCKET_URL = "http://localhost"
"""What the service is called where it is reached by a socket and nothing else was said."""


def origin_of(url: str) -> tuple[str, str, int]:
    """Scheme, host and port (RFC 6454, 4). Raises ValueError for what is no address, or can be read in two ways."""
    if any(character <= " " or character > "~" or character == "\\" for character in url):
        raise ValueError("an address is printable ASCII without blanks")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValueError("it is not an address") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise ValueError("an address begins with https:// or http:// and a host")
    if "@" in parts.netloc:
        raise ValueError("an address has no user and no password in it; `token_file` names a file with a token")
    return parts.scheme, parts.hostname.lower(), port or (443 if parts.scheme == "https" else 80)


def _address(value: str) -> str:
    origin_of(value)
    if "?" in value or "#" in value:
        raise ValueError("an address has no query and no fragment")
    return value.rstrip("/")


class ServiceOptions(BaseModel):
    """The options that every such engine has. Made by `options_from`."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    url: Annotated[str, AfterValidator(_address)] = ""
    """Base address; with `socket` it only says what the service is called there."""
    socket: Path | None = None
    """A Unix socket that it is reached by."""
    token_file: Path | None = None
    """A file with a bearer token, read anew for each question."""
    ca_file: Path | None = None
    """Certificates of the authorities that its own may be of (PEM); certifi's where none is named."""
    client_cert: Path | None = None
    """Our certificate, with its chain (PEM)."""
    client_key: Path | None = None
    """Its key (PEM, not encrypted); None: it is in the file of the certificate."""
    timeout: Annotated[float, Field(gt=0, le=300, allow_inf_nan=False)] = 5.0
    """Seconds that a question may take, everything included."""
    plain_http: bool = False
    """Whether another machine may be asked without TLS."""

    @property
    def uses_tls(self) -> bool:
        """Whether certificates have a part in it."""
        return self.url.startswith("https:")

    @model_validator(mode="before")
    @classmethod
    def _named(cls, given: Mapping[str, str]) -> dict[str, str]:
        options = {name: value for name, value in given.items() if value != ""}
        if "url" not in options:
            if "socket" not in options:
                raise ValueError("url: it is not known where the service is: set `url`, or `socket`")
            options["url"] = _SOCKET_URL
        return options

    @model_validator(mode="after")
    def _protected(self) -> ServiceOptions:
        if not is_confidential(self.url, self):
            raise ValueError(
                "url: another machine would be asked without TLS, and anybody on the way could answer; use https:// "
                "(`ca_file` names the authority's certificate), or, where the network in between is trusted, set "
                "`plain_http` to true"
            )
        if self.client_key is not None and self.client_cert is None:
            raise ValueError("client_key: a key is of no use without `client_cert`")
        return self


def is_confidential(url: str, options: ServiceOptions) -> bool:
    """Whether nobody on the way can read or answer, or that does not matter by what was said."""
    parts = urlsplit(url)
    return parts.scheme == "https" or options.plain_http or options.socket is not None or is_loopback(parts.hostname)


Options = TypeVar("Options", bound=ServiceOptions)


def options_from(model: type[Options], given: Mapping[str, str], *, engine: str) -> Options:
    """Check what was given. Raises UsageError, which names the variables and never shows a value.

    Certificates and keys are read once, so that a wrong file is found at the start.
    """
    try:
        options = model.model_validate(dict(given))
    except ValidationError as error:
        known = ", ".join(f"`{name}`" for name in model.model_fields)
        lines = [_said(problem["loc"], problem["msg"]) for problem in error.errors(include_url=False)]
        raise UsageError("\n".join(lines), hint=f"the policy engine `{engine}` has the options {known}") from None
    try:
        if options.uses_tls:
            tls_context(options)
    except OSError as error:
        raise UsageError(
            f"{VARIABLE}CA_FILE, {VARIABLE}CLIENT_CERT, {VARIABLE}CLIENT_KEY: {why_not_tls(error)}",
            hint="they name PEM files that this process can read, and the key is not encrypted",
        ) from None
    return options


def _said(place: tuple[int | str, ...], message: str) -> str:
    message = message.removeprefix("Value error, ")
    if place:
        name = str(place[0])
    else:
        name, _, message = message.partition(": ")
    return f"{VARIABLE}{name.upper()}: {_WORDS.get(message, message)}"


_WORDS = {
    "Extra inputs are not permitted": "there is no such option",
}


def tls_context(options: ServiceOptions) -> ssl.SSLContext:
    """Whom to trust and who we are, from the files as they are now. Raises OSError (ssl.SSLError is one).

    Neither the environment (`SSL_CERT_FILE`) nor a terminal (for the password of a key) has a say in it.
    """
    import certifi

    context = ssl.create_default_context(cafile=options.ca_file or certifi.where())
    if options.client_cert is not None:
        try:
            context.load_cert_chain(options.client_cert, options.client_key, password="")
        except ValueError as error:
            raise OSError(f"the certificate or its key cannot be used: {error}") from None
    return context


def why_not_tls(error: OSError) -> str:
    """What is wrong with the files of `tls_context`."""
    if isinstance(error, ssl.SSLError):
        return f"a file is not what it should be ({error.reason or 'not PEM'})"
    return f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error)

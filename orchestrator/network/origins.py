"""Origins of URLs (RFC 6454), and which of them a bearer token may be sent to (RFC 6750, 5.3)."""

from __future__ import annotations

from urllib.parse import SplitResult, urlsplit

from orchestrator.network.loopback import is_loopback

_PORTS = {"http": 80, "https": 443}


def parse(url: str) -> SplitResult:
    """The parts of an absolute http or https URL without user information. Raises ValueError."""
    if any(ord(char) <= 32 or char == "\\" for char in url):
        raise ValueError("the URL contains white space or a backslash")
    parts = urlsplit(url)
    if parts.scheme not in _PORTS or not parts.hostname:
        raise ValueError("the URL is not absolute, or neither http nor https")
    if parts.username is not None or parts.password is not None:
        raise ValueError("the URL contains a user or password; use `bearer`")
    if not parts.hostname.isascii():
        raise ValueError("the host is not ASCII; write it in punycode (xn--...)")
    if parts.port == 0:
        raise ValueError("port 0 is none")
    return parts


def origin(url: str) -> str:
    """`https://host:8443`, with the port only where it is not the scheme's own."""
    parts = parse(url)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    port = parts.port or _PORTS[parts.scheme]
    return f"{parts.scheme}://{host}" + ("" if port == _PORTS[parts.scheme] else f":{port}")


def is_confidential(url: str) -> bool:
    """Whether nobody on the way can read a token: TLS, or a connection that does not leave this machine."""
    parts = parse(url)
    return parts.scheme == "https" or is_loopback(parts.hostname)

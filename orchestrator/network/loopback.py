"""Which hosts are this machine itself: what is sent to them is on no network, so that nobody can listen."""

from __future__ import annotations

import ipaddress


def is_loopback(host: str | None) -> bool:
    """Whether a host name or an address is this machine (RFC 1122, 3.2.1.3; RFC 6761, 6.3). Asks no name server."""
    if not host:
        return False
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False

"""A `requests` session that sends each request as it is and keeps nothing of its answer.

No cookies, proxies, netrc, defaults or redirects are mixed in, so nothing of one step's request can
reach another's; looking for them is also a third of what a request costs this process.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from requests import PreparedRequest, Response, Session


class PlainSession(Session):
    """What hvac's adapters need of a session. Safe to use from several threads once its adapters are mounted."""

    def request(  # type: ignore[override]  # exactly what hvac passes: anything else is refused, not ignored
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        timeout: tuple[float, float],
        verify: bool | str,
        allow_redirects: bool,
        json: Any = None,
        cert: None = None,
        proxies: None = None,
    ) -> Response:
        """Send, and read the answer to its end; redirects are answers. Raises what `requests` raises."""
        assert not allow_redirects, "requests would carry the Vault token to the other host"
        prepared = PreparedRequest()
        prepared.prepare(method=method, url=url, headers=headers, json=json)
        response = self.get_adapter(url).send(prepared, timeout=timeout, verify=verify, cert=cert, proxies=proxies)
        _ = response.content  # what goes wrong while reading is raised here
        return response

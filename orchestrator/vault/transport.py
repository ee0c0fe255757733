"""One HTTP request to Vault through hvac, with its answer or silence turned into our errors.

Synchronous; the session runs it in threads. Redirects are not followed, since requests would carry
the Vault token to the other host, and the environment's proxies and netrc are not used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from orchestrator.errors import UsageError
from orchestrator.secret import Secret
from orchestrator.vault.config import VaultConfig
from orchestrator.vault.confirmations import Confirmation
from orchestrator.vault.faults import (
    Outcome,
    VaultRefused,
    VaultUnavailable,
    error_text,
    hint_for,
    outcome_of,
    retry_after_seconds,
)

_SHORTEST = 0.1
"""Seconds that a request is given in any case."""


class Transport:
    """A pool of connections to one Vault. Safe to use from several threads.

    `hear_date` is given the `Date` header of every answer, in the thread that got it.
    """

    def __init__(self, config: VaultConfig, *, hear_date: Callable[[str | None], None] = lambda date: None) -> None:
        from requests.adapters import HTTPAdapter

        from orchestrator.vault.plain_session import PlainSession

        self._config = config
        self._hear_date = hear_date
        self._session = PlainSession()
        self._session.verify = str(config.ca_cert) if config.ca_cert else True
        adapter = HTTPAdapter(pool_connections=1, pool_maxsize=config.connections, max_retries=0)
        self._session.mount("http://", adapter)
        self._session.mount("https://", adapter)

    def request(
        self,
        method: str,
        path: str,
        *,
        token: Secret | None,
        payload: Mapping[str, Any] | None = None,
        seconds: float | None = None,
        confirmed_by: Confirmation | None = None,
    ) -> dict[str, Any]:
        """Send one request and return the JSON body (`{}` for none). With `seconds` it is given up earlier.

        An answer 2xx that `confirmed_by` does not accept is of unknown outcome.
        Raises VaultRefused, or VaultUnavailable which says whether the request may have been done.
        """
        import requests
        from hvac.adapters import RawAdapter

        config = self._config
        longest = None if seconds is None else max(_SHORTEST, seconds)
        adapter = RawAdapter(
            base_uri=config.address,
            token=token.reveal() if token else None,
            namespace=config.namespace,
            session=self._session,
            allow_redirects=False,
            timeout=tuple(min(each, longest or each) for each in (config.connect_timeout, config.read_timeout)),
        )
        try:
            response = adapter.request(method, f"/v1/{path}", raise_exception=False, json=payload)
        except requests.exceptions.SSLError as error:
            raise UsageError(
                f"the TLS certificate of Vault at {config.address} was not accepted",
                hint="set ORCHESTRATOR_VAULT_CACERT to the certificate authority's file",
            ) from error
        except (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema) as error:
            raise UsageError(f"{config.address!r} is not an address of a Vault server") from error
        except requests.RequestException as error:
            raise self._no_answer(error, path) from None
        self._hear_date(response.headers.get("Date"))
        return self._read(response, path, confirmed_by)

    def _no_answer(self, error: Exception, path: str) -> VaultUnavailable:
        """`error`'s text may quote headers, so only its type goes into the message."""
        import requests
        from urllib3.exceptions import NewConnectionError

        reason = error.args[0] if error.args else None
        never_connected = isinstance(error, requests.ConnectTimeout) or isinstance(
            getattr(reason, "reason", None), NewConnectionError
        )
        return VaultUnavailable(
            f"Vault at {self._config.address} "
            + ("did not accept a connection" if never_connected else f"gave no answer ({type(error).__name__})"),
            outcome=Outcome.NOT_DONE if never_connected else Outcome.UNKNOWN,
            path=path,
            hint="is the address right (VAULT_ADDR), and is the server up?",
        )

    def _read(self, response: Any, path: str, confirmed_by: Confirmation | None) -> dict[str, Any]:
        status = response.status_code
        try:
            body = response.json() if response.content else {}
        except ValueError:
            body = None
        if 200 <= status < 300:
            if not isinstance(body, dict):
                raise VaultUnavailable(
                    f"Vault's answer to {path} is not JSON", outcome=Outcome.UNKNOWN, path=path, status=status
                )
            if confirmed_by is not None and not confirmed_by(status, body if response.content else None):
                raise VaultUnavailable(
                    f"the answer {status} to {path} does not say that Vault has done it",
                    outcome=Outcome.UNKNOWN,
                    path=path,
                    status=status,
                    hint="what answers for Vault at its address (VAULT_ADDR)? only its own 204 counts",
                )
            return body
        errors = error_text(body.get("errors")) if isinstance(body, dict) else ""
        outcome = outcome_of(status, errors)
        message = f"Vault answered {status} to {path}: {errors or response.reason or 'no reason given'}"
        hint = hint_for(status, errors, path)
        if outcome is Outcome.REFUSED:
            raise VaultRefused(message, status=status, path=path, hint=hint)
        raise VaultUnavailable(
            message,
            outcome=outcome,
            path=path,
            status=status,
            retry_after=retry_after_seconds(response.headers),
            hint=hint,
        )

    def close(self) -> None:
        """Close idle connections."""
        self._session.close()

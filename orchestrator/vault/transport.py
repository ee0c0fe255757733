"""One HTTP request to Vault through hvac, with its answer or silence turned into our errors.

Synchronous; the session runs it in threads. Redirects are not followed, since they would carry the Vault
token to the other host, and the environment's proxies and netrc are not used.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from orchestrator.secret import Secret
from orchestrator.vault.config import VaultConfig
from orchestrator.vault.faults import (
    Outcome,
    VaultRefused,
    VaultUnavailable,
    deleted_version,
    error_text,
    hint_for,
    outcome_of,
    retry_after_seconds,
)
from orchestrator.vault.fields import Confirmation

if TYPE_CHECKING:
    from orchestrator.vault.answer import Answer

_SPEAKS_TLS = b"Client sent an HTTP request to an HTTPS server"
"""What a TLS server written in Go answers to plain http, with 400 (`net/http`)."""

_SHORTEST = 0.1
"""Seconds that a request is given in any case."""


class Transport:
    """A pool of connections to one Vault. Safe to use from several threads.

    `hear_date` is given the `Date` header of every answer, in the thread that got it.
    """

    def __init__(self, config: VaultConfig, *, hear_date: Callable[[str | None], None] = lambda date: None) -> None:
        from orchestrator.vault.connections import Connections

        self._config = config
        self._hear_date = hear_date
        self._connections = Connections(config.address, ca=config.ca_cert, keep=config.connections)

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
        from http.client import HTTPException

        from hvac.adapters import RawAdapter

        from orchestrator.vault.connections import NotSent

        config = self._config
        longest = None if seconds is None else max(_SHORTEST, seconds)
        adapter = RawAdapter(
            base_uri=config.address,
            token=token.reveal() if token else None,
            namespace=config.namespace,
            session=self._connections,
            allow_redirects=False,
            timeout=tuple(min(each, longest or each) for each in (config.connect_timeout, config.read_timeout)),
        )
        try:
            answer = adapter.request(method, f"/v1/{path}", raise_exception=False, json=payload)
        except NotSent:
            raise self._no_answer("did not accept a connection", Outcome.NOT_DONE, path) from None
        except TimeoutError:
            raise self._no_answer("gave no answer (ReadTimeout)", Outcome.UNKNOWN, path) from None
        except (OSError, HTTPException) as error:  # its text may quote what was sent, so only its type is told
            raise self._no_answer(f"gave no answer ({type(error).__name__})", Outcome.UNKNOWN, path) from None
        self._hear_date(answer.headers.get("Date"))
        return self._read(answer, path, confirmed_by)

    def _no_answer(self, what: str, outcome: Outcome, path: str) -> VaultUnavailable:
        return VaultUnavailable(
            f"Vault at {self._config.address} {what}",
            outcome=outcome,
            path=path,
            hint="is the address right (VAULT_ADDR), and is the server up?",
        )

    def _read(self, answer: Answer, path: str, confirmed_by: Confirmation | None) -> dict[str, Any]:
        status = answer.status
        try:
            body = json.loads(answer.content) if answer.content else {}
        except (ValueError, RecursionError):
            body = None
        if 200 <= status < 300:
            if not isinstance(body, dict):
                raise VaultUnavailable(
                    f"Vault's answer to {path} is not JSON", outcome=Outcome.UNKNOWN, path=path, status=status
                )
            if confirmed_by is not None and not confirmed_by(status, body if answer.content else None):
                raise VaultUnavailable(
                    f"the answer {status} to {path} does not say that Vault has done it",
                    outcome=Outcome.UNKNOWN,
                    path=path,
                    status=status,
                    hint="what answers for Vault at its address (VAULT_ADDR)? only its own 204 counts",
                )
            return body
        if status == 400 and answer.content.startswith(_SPEAKS_TLS):
            raise VaultRefused(
                f"Vault at {self._config.address} speaks TLS, and the address says http",
                status=status,
                path=path,
                hint="begin VAULT_ADDR with https://, and name the authority of its certificate in VAULT_CACERT",
            )
        errors = error_text(body.get("errors")) if isinstance(body, dict) else ""
        outcome = outcome_of(status, errors)
        message = f"Vault answered {status} to {path}: {errors or answer.reason or 'no reason given'}"
        hint = hint_for(status, errors, path)
        if status == 404 and (gone := deleted_version(body, path)) is not None:
            message, hint = gone
        if outcome is Outcome.REFUSED:
            raise VaultRefused(message, status=status, path=path, hint=hint)
        raise VaultUnavailable(
            message,
            outcome=outcome,
            path=path,
            status=status,
            retry_after=retry_after_seconds(answer.headers),
            hint=hint,
        )

    def close(self) -> None:
        """Close idle connections, and those in use once their answer is there."""
        self._connections.close()

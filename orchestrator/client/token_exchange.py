"""A token by the endpoint of the standard (RFC 8693): for fewer scopes, or bound to a key; given back by RFC 7009."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import partial
from typing import Self

from orchestrator.client import documents, flows
from orchestrator.client.documents import Credential, understood
from orchestrator.client.errors import ApprovalPending, BrokerError, InvalidRequest, Unavailable, Unconfirmed
from orchestrator.client.exchange import Ask, Flow, Patience, Pause, answered
from orchestrator.client.possession import Prover

GRANT_TYPE = "urn:ietf:params:oauth:grant-type:token-exchange"
_JWT = "urn:ietf:params:oauth:token-type:jwt"


@dataclass(slots=True)
class Exchange(flows.Call):
    """A call of a tool that hands over a token. `scope` and `audience` empty: whatever its grant says."""

    scope: str = ""
    audience: str = ""
    prover: Prover | None = None

    def ask(self) -> Ask:
        """As it is sent, each time with another proof."""
        details = {"type": "tool_call", "task": self.task_id, "tool": self.tool, "arguments": dict(self.arguments)}
        form = {
            "grant_type": GRANT_TYPE,
            "subject_token_type": _JWT,
            "authorization_details": json.dumps([details]),
            **({"scope": self.scope} if self.scope else {}),
            **({"audience": self.audience} if self.audience else {}),
        }
        return Ask("POST", "/oauth/token", key=self.key, form=form, is_exchange=True, prover=self.prover)

    def taking(self, patience: Patience, approval_seconds: float = 0.0) -> Flow[Credential]:
        """The token. One whose answer was lost is not told again: it is given back, and another one asked for."""
        for _ in range(flows.MOST_LOST):
            found = yield from self._outcome(patience, approval_seconds)
            if isinstance(found, Credential):
                if self.prover is not None and found.token_type != "DPoP":  # noqa: S105 -- RFC 9449, 5
                    yield from self.returning(found, patience)
                    raise InvalidRequest("the broker has not bound the token to the key")
                return found
            yield from flows.giving_back(found, patience)
            self.renew()
        raise Unavailable(f"the token of `{self.tool}` was lost on the way {flows.MOST_LOST} times")

    def returning(self, held: Credential, patience: Patience) -> Flow[Unconfirmed | None]:
        """Give it back."""
        ask = Ask("POST", "/oauth/revoke", form={"token": held.token, "token_type_hint": "access_token"})
        return (yield from flows.ending(ask, f"the token of `{self.tool}`", patience))

    def abandoning(self, patience: Patience) -> Flow[None]:
        """Give back what is handed over to nobody: the caller was interrupted."""
        within = replace(patience, answer=patience.closing, away=patience.closing)
        try:
            found = yield from self._outcome(within, 0.0, until=patience.now() + patience.closing)
            if isinstance(found, Credential):
                yield from self.returning(found, patience)
            else:
                yield from flows.giving_back(found, patience)
        except ApprovalPending:
            return  # nothing is held
        except BrokerError as error:
            flows.log.warning("it is not known whether `%s` has handed anything over: %s", self.tool, error.detail)

    def _outcome(
        self, patience: Patience, approval_seconds: float, until: float | None = None
    ) -> Flow[Credential | str]:
        """The token, or the lease of one that was told before."""
        approved_until = patience.now() + approval_seconds
        latest = self.until + patience.away if until is None else until
        pauses = patience.pauses()
        while True:
            try:
                response = yield from answered(self.ask(), patience, until=until, slow_until=self.until)
            except BrokerError as error:
                if "lease" in error.more:
                    return str(error.more["lease"])
                if error.more.get("error") != "authorization_pending" or patience.now() >= latest:
                    raise
                now, waits = patience.now(), "approval" in error.more
                if waits and now >= approved_until:
                    raise self._pending(str(error.more["approval"])) from None
                pause = next(pauses)
                yield Pause(min(pause, approved_until - now) if waits else pause)
            else:
                at = patience.clock.now()
                return understood(response, partial(documents.exchanged, at=at))

    def _pending(self, approval: str) -> ApprovalPending:
        return ApprovalPending(f"`{self.tool}` waits until somebody agrees to it", approval=approval, call=self)


class ExchangeOfEither:
    """What is said of the token that is wanted, before it is taken."""

    _wanted: Exchange

    def for_scope(self, scope: str) -> Self:
        """Only these of the scopes of the tool's grant, with a blank between."""
        self._wanted.scope = scope
        return self

    def for_audience(self, audience: str) -> Self:
        """Only where the tool's grant is for this service."""
        self._wanted.audience = audience
        return self

    def bound_to(self, key: Prover) -> Self:
        """Of use only with a proof that whoever sends it has this key (RFC 9449)."""
        self._wanted.prover = key
        return self

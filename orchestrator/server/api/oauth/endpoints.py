"""The token endpoint, and giving a token back: the tools of tasks for whoever speaks OAuth (RFC 8693, RFC 7009)."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import wraps

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from orchestrator.agents.authentication import Caller, CallerRefused
from orchestrator.errors import LedgerError, UnknownRun, Unreachable
from orchestrator.grants.scope import Scope
from orchestrator.grants.wish import Wish
from orchestrator.jsontypes import JsonObject, JsonValue
from orchestrator.pep.errors import TokenRefused
from orchestrator.server.api.callers import LONGEST_TOKEN
from orchestrator.server.api.inquiries import Inquiries
from orchestrator.server.api.oauth.errors import NO_STORE, Code, OAuthError, oauth_error_of, of_kind, of_problem
from orchestrator.server.api.oauth.exchange import ACCESS_TOKEN, SEVERAL, Exchange, agreed, exchange_of, token_scope
from orchestrator.server.api.oauth.forms import received_form
from orchestrator.server.api.oauth.possession import Proofs
from orchestrator.server.api.operations import KEY, Operations, address_of, refused
from orchestrator.server.api.problems import Kind, Problem
from orchestrator.tasks.inquiry import Inquiry
from orchestrator.tasks.results import CallResult, CallState

AGAIN_SECONDS = 5
"""After how long to ask again what waits for people (RFC 8628, 3.2), and ..."""

SOON_SECONDS = 1
"""... what is being carried out."""

Handler = Callable[["OAuth", Request], Awaitable[Response]]


def _in_oauth(handler: Handler) -> Handler:
    """Whatever goes wrong is said as OAuth says it."""

    @wraps(handler)
    async def answering(door: OAuth, request: Request) -> Response:
        try:
            return await handler(door, request)
        except Exception as error:  # noqa: BLE001 -- whatever it is, the caller gets an error and no text of it
            return oauth_error_of(error).response()

    return answering


@dataclass(frozen=True, slots=True)
class OAuth:
    """The same desk as that of the other operations, behind the endpoints of the standards."""

    operations: Operations
    inquiries: Inquiries
    inquiry: Inquiry
    proofs: Proofs

    @_in_oauth
    async def token(self, request: Request) -> Response:
        """`POST /oauth/token`."""
        wanted = exchange_of(await received_form(request, several=SEVERAL))
        key = _key(request)
        caller = await self._agent(request, wanted)
        self.operations.not_draining()
        opened = await self.operations.desk.task(caller, wanted.task)
        scope = token_scope(opened.workflow, wanted.tool)
        proof = self.proofs.shown(request)
        wish = agreed(scope, wanted, "" if proof is None else proof.thumbprint)
        if proof is not None:
            await self.proofs.use(proof)
        result = await self._called(caller, wanted, wish, key, address_of(request))
        return JSONResponse(_issued(result, wish.applied(scope)), headers=NO_STORE)

    @_in_oauth
    async def revoke(self, request: Request) -> Response:
        """`POST /oauth/revoke`. What is no token of ours, or none any more, is as good as revoked (RFC 7009, 2.2)."""
        caller = await self.operations.callers.caller(request)
        form = await received_form(request)
        token = form.needed("token")
        found = await self.inquiry.ours(token) if len(token) <= LONGEST_TOKEN else None
        if found is None:
            return _revoked()
        try:
            confirmed = await self.operations.desk.give_back(caller, found.token_id)
        except UnknownRun as error:  # it was not issued to this client (RFC 7009, 2.1)
            message = "the token was handed over to another agent, or to none"
            raise OAuthError(Code.UNAUTHORIZED_CLIENT, message, more=of_kind(Kind.NOT_FOUND)) from error
        if not confirmed:  # RFC 7009, 2.2.1
            raise of_problem(
                Problem(Kind.UNAVAILABLE, "its end is not confirmed yet: ask again", headers={"Retry-After": "1"})
            )
        return _revoked()

    @_in_oauth
    async def introspect(self, request: Request) -> Response:
        """`POST /oauth/introspect`, as at `/v1/introspect`."""
        try:
            return await self.inquiries.introspect(request)
        except Problem as problem:
            if problem.kind is not Kind.NOT_ALLOWED:
                raise
            challenge = {"WWW-Authenticate": 'Bearer realm="orchestrator", error="insufficient_scope"'}
            raise OAuthError(
                Code.INSUFFICIENT_SCOPE, problem.detail, 403, of_kind(problem.kind), challenge
            ) from problem

    async def _agent(self, request: Request, wanted: Exchange) -> Caller:
        """Who the subject token says that calls. Whoever shows themselves in another way as well is to be the same."""
        callers = self.operations.callers
        shown = await callers.shown(request)
        try:
            caller = await callers.authentication.by_token(wanted.subject_token)
        except (TokenRefused, CallerRefused) as error:  # RFC 8693, 2.2.2
            message = f"the subject_token is refused: {error.message}"
            raise OAuthError(Code.INVALID_REQUEST, message, more=of_kind(Kind.UNAUTHENTICATED)) from error
        if shown is not None and shown.agent != caller.agent:
            raise _another("the subject_token is of another agent than the one that connects")
        if wanted.client_id not in (None, caller.agent):
            raise _another("the client_id is not the agent of the subject_token")
        callers.rates.take(caller.agent)
        if caller.agent not in callers.authentication.agents.agents:
            raise OAuthError(Code.UNAUTHORIZED_CLIENT, "only agents have tools", more=of_kind(Kind.NOT_ALLOWED))
        return caller

    async def _called(self, caller: Caller, wanted: Exchange, wish: Wish, key: str, address: str) -> CallResult:
        """The call with this key. Without one it is a new call, or the oldest of the same that waits for people."""
        desk = self.operations.desk
        if not key:
            waiting = await desk.ask_again(
                caller, wanted.task, wanted.tool, wanted.arguments, address=address, wish=wish
            )
            if waiting is not None:
                return waiting
        name = key or str(uuid.uuid4())
        return await desk.call(caller, wanted.task, wanted.tool, wanted.arguments, name, address=address, wish=wish)


def _key(request: Request) -> str:
    keys = request.headers.getlist("idempotency-key")
    if len(keys) > 1 or (keys and not KEY.fullmatch(keys[0])):
        raise OAuthError(Code.INVALID_REQUEST, "an Idempotency-Key has 1 to 128 printable ASCII characters, and is one")
    return keys[0] if keys else ""


def _another(description: str) -> OAuthError:
    challenge = {"WWW-Authenticate": 'Bearer realm="orchestrator"'}
    return OAuthError(Code.INVALID_CLIENT, description, 401, of_kind(Kind.UNAUTHENTICATED), challenge)


def _revoked() -> Response:
    return JSONResponse({}, headers=NO_STORE)


def _issued(result: CallResult, scope: Scope) -> JsonObject:
    """The answer with a token (RFC 8693, 2.2.1). Raises OAuthError where the call has none for whoever asks."""
    if result.state is CallState.REFUSED:
        raise of_problem(refused(result.error, result.reason, result.call_id))
    if result.handed is None:
        raise _none(result)
    details = result.handed.lease.scope.get("details", ())
    return {
        "access_token": result.handed.credential.fields["token"].reveal(),
        "issued_token_type": ACCESS_TOKEN,
        "token_type": "DPoP" if scope.thumbprint else "Bearer",
        "expires_in": result.handed.credential.ttl,
        "scope": " ".join(scope.scopes),
        "authorization_details": list(details) if isinstance(details, Sequence) else [],
    }


def _none(result: CallResult) -> OAuthError:
    """Why there is no token. `call` is the call, `lease` what it holds, so that it can be given back."""
    more: dict[str, JsonValue] = {"call": result.call_id}
    match result.state:
        case CallState.WAITING:
            more |= {"approval": result.approval, "interval": AGAIN_SECONDS}
            return OAuthError(Code.PENDING, "somebody has to agree first: ask again", more=more)
        case CallState.RUNNING if result.held is None:
            more |= {"interval": SOON_SECONDS}
            return OAuthError(Code.PENDING, "it is being carried out: ask again", more=more)
        case CallState.RUNNING:
            assert result.held is not None
            more |= {**of_kind(Kind.KEY_USED), "lease": result.held.lease_id}
            detail = "the token of this key was told once: give it back, and ask with another key"
            return OAuthError(Code.INVALID_REQUEST, detail, more=more)
        case CallState.DONE:
            more |= of_kind(Kind.KEY_USED)
            return OAuthError(Code.INVALID_REQUEST, "the token of this key has ended: ask with another key", more=more)
        case CallState.CANCELLED:
            more |= of_kind(Kind.TASK_ENDED)
            return OAuthError(Code.INVALID_GRANT, f"the call was ended: {result.reason}", more=more)
    if isinstance(result.error, Unreachable | LedgerError):
        return oauth_error_of(result.error)
    return OAuthError(Code.SERVER_ERROR, f"the call has failed: {result.reason}", 500, more)

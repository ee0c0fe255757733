"""The answers of RFC 6750: by the function, and by the middleware before an ASGI application. No network."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from pep_tokens import NOW, FixedClock, jwk, jwks, token, wanted

from orchestrator.pep.challenges import AccessRefused, Code, answer, challenge, checked_scope, quoted
from orchestrator.pep.details import Operation
from orchestrator.pep.errors import IssuerUnreachable, Reason
from orchestrator.pep.jwt.keys import Keys
from orchestrator.pep.middleware import BearerAuthentication, token_of
from orchestrator.pep.protection import Protection
from orchestrator.pep.sources import GivenKeys

PROTECTION = Protection(wanted(), GivenKeys.of(jwks(jwk("p256"))), realm="crm", clock=FixedClock())
GOOD = token()
INVALID = 'Bearer realm="crm", error="invalid_token", error_description='


class Away:
    """An issuer that cannot be asked."""

    async def keys_for(self, kid: str | None) -> Keys:
        raise IssuerUnreachable("it is away", retry_after=7)


def authenticate(*values: str | bytes, query: str | bytes = "", protection: Protection = PROTECTION) -> Any:
    return asyncio.run(protection.authenticate(values, query))


def refused(*values: str | bytes, query: str | bytes = "", protection: Protection = PROTECTION) -> AccessRefused:
    with pytest.raises(AccessRefused) as caught:
        authenticate(*values, query=query, protection=protection)
    return caught.value


def headers(refusal: AccessRefused) -> dict[str, str]:
    return dict(refusal.answer.headers)


@pytest.mark.parametrize("value", [f"Bearer {GOOD}", f"bearer {GOOD}", f"BEARER  {GOOD}".encode()])
def test_a_good_token_is_taken_whatever_the_case_of_the_scheme(value: str | bytes) -> None:
    assert authenticate(value, query="access=1&token=2").subject == "feedback-assistant"


@pytest.mark.parametrize("values", [(), ("",), ("Basic YTpi",), (GOOD,), (f"Bearer\t{GOOD}",), (f" Bearer {GOOD}",)])
def test_who_sends_no_token_is_challenged_without_an_error_code(values: tuple[str, ...]) -> None:
    refusal = refused(*values)
    assert (refusal.status, refusal.code) == (401, Code.UNAUTHORIZED)
    assert headers(refusal)["www-authenticate"] == 'Bearer realm="crm"'


@pytest.mark.parametrize(
    ("values", "query"),
    [
        ((f"Bearer {GOOD}", f"Bearer {GOOD}"), ""),
        ((f"Bearer {GOOD}", "Basic YTpi"), ""),
        ((f"Bearer {GOOD}",), "access_token="),
        ((f"Bearer {GOOD}",), b"a=b&access_token=x"),
        ((), f"access_token={GOOD}"),
        ((), "access%5Ftoken=x"),
        (("Bearer",), ""),
        (("Bearer   ",), ""),
    ],
)
def test_a_request_that_sends_tokens_in_a_wrong_way_is_a_bad_request(values: tuple[str, ...], query: Any) -> None:
    refusal = refused(*values, query=query)
    assert (refusal.status, refusal.code) == (400, Code.INVALID_REQUEST)
    assert headers(refusal)["www-authenticate"].startswith('Bearer realm="crm", error="invalid_request", error_desc')


@pytest.mark.parametrize(
    ("value", "told", "reason"),
    [
        ("Bearer é", "the signature cannot be verified", Reason.NOT_COMPACT),
        (f"Bearer {GOOD}, Bearer {GOOD}", "the signature cannot be verified", Reason.NOT_COMPACT),
        (f"Bearer {GOOD} x", "the signature cannot be verified", Reason.NOT_COMPACT),
        (f"Bearer {GOOD}\n", "the signature cannot be verified", Reason.NOT_COMPACT),
        (f"Bearer =={GOOD}", "the signature cannot be verified", Reason.NOT_COMPACT),
        (f"Bearer {token(key='p256-other')}", "the signature cannot be verified", Reason.SIGNATURE),
        (f"Bearer {token(aud='x')}", "the token is for another audience", Reason.AUDIENCE),
        (f"Bearer {token(exp=NOW - 9, iat=1)}", "the token has expired", Reason.EXPIRED),
        (f"Bearer {token(client_id=7)}", "the token's claims are not valid", Reason.CLAIM_TYPE),
        (f"Bearer {token(act=7)}", "the token's claims are not valid", Reason.CLAIM_TYPE),
        (f"Bearer {token(sub=None)}", "the token lacks a required claim", Reason.MISSING_CLAIM),
    ],
)
def test_a_token_that_is_not_believed_is_invalid_and_the_reason_is_for_the_log(
    value: str, told: str, reason: Reason
) -> None:
    refusal = refused(value)
    assert (refusal.status, refusal.reason) == (401, reason)
    assert headers(refusal)["www-authenticate"] == f'{INVALID}"{told}"'
    assert json.loads(refusal.answer.body) == {"error": "invalid_token", "error_description": told}


def test_an_issuer_that_is_away_is_no_fault_of_the_sender() -> None:
    refusal = refused(f"Bearer {GOOD}", protection=replace(PROTECTION, keys=Away()))
    assert (refusal.status, headers(refusal)["retry-after"]) == (503, "7")
    assert "www-authenticate" not in headers(refusal)
    assert refused("Bearer x", protection=replace(PROTECTION, keys=Away())).status == 401


def test_no_answer_is_kept_by_a_cache() -> None:
    for code in Code:
        sent = dict(answer(code, "words", realm="crm").headers)
        assert sent["cache-control"] == "no-store"
        assert sent["content-length"] == str(len(answer(code, "words", realm="crm").body))


def test_what_is_demanded_is_told_in_the_challenge() -> None:
    access = authenticate(f"Bearer {GOOD}")
    PROTECTION.require(access, scope="crm:read crm:write")
    demands: list[dict[str, Any]] = [
        {"scope": "crm:read crm:admin"},
        {"scope": "crm:read", "operation": Operation("t", "a")},
    ]
    for demand in demands:
        with pytest.raises(AccessRefused) as caught:
            PROTECTION.require(access, **demand)
        assert caught.value.status == 403
        said = headers(caught.value)["www-authenticate"]
        assert said.startswith('Bearer realm="crm", error="insufficient_scope", error_description="')
        assert said.endswith(f'scope="{demand["scope"]}"')
    with pytest.raises(ValueError):
        PROTECTION.require(access)


@pytest.mark.parametrize("scope", ["", " ", "a  b", "a ", 'a"', "a\\", "é", "a\r\nX: y"])
def test_a_scope_that_cannot_be_one_is_a_mistake(scope: str) -> None:
    assert checked_scope("a b:c") == "a b:c"
    with pytest.raises(ValueError):
        checked_scope(scope)


def test_a_challenge_cannot_be_broken_out_of() -> None:
    assert challenge(Code.UNAUTHORIZED, "", realm='a"b\\c', scope=None) == r'Bearer realm="a\"b\\c"'
    for realm in ("", "é", "a\r\nset-cookie: x"):
        with pytest.raises(ValueError):
            quoted(realm)
        with pytest.raises(ValueError):
            replace(PROTECTION, realm=realm)


@dataclass
class Sent:
    messages: list[dict[str, Any]] = field(default_factory=list)

    @property
    def status(self) -> int:
        return int(self.messages[0]["status"])

    async def send(self, message: Any) -> None:
        self.messages.append(dict(message))


async def receive() -> dict[str, Any]:
    return {"type": "http.request", "body": b""}


def call(app: Any, kind: str = "http", authorization: str | None = f"Bearer {GOOD}", **scope: Any) -> Sent:
    sent = Sent()
    raw = [] if authorization is None else [(b"Authorization", authorization.encode())]
    asyncio.run(BearerAuthentication(app, PROTECTION)({"type": kind, "headers": raw, **scope}, receive, sent.send))
    return sent


def application(needs: str, *, late: bool = False) -> tuple[Any, list[Any]]:
    """One that demands a scope, after it has begun to answer if `late`; and what it was called with."""
    seen: list[Any] = []

    async def app(scope: Any, receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        seen.append(scope)
        if scope["type"] == "http":
            if late:
                await send({"type": "http.response.start", "status": 200, "headers": []})
            PROTECTION.require(token_of(scope), scope=needs)
            await send({"type": "http.response.start", "status": 204, "headers": []})
            await send({"type": "http.response.body", "body": b""})

    return app, seen


def test_the_application_gets_the_token_and_keeps_its_state() -> None:
    app, seen = application("crm:read")
    state = {"pool": 1, "access_token": "forged"}
    assert call(app, state=state).status == 204
    assert seen[0]["state"]["pool"] == 1
    assert seen[0]["state"]["access_token"].client_id == "customer_feedback"
    assert state["access_token"] == "forged"


def test_the_application_is_not_called_without_a_good_token() -> None:
    app, seen = application("crm:read")
    assert call(app, authorization=None).status == 401
    assert call(app, authorization="Bearer x").status == 401
    assert call(app, query_string=b"access_token=x").status == 400
    assert seen == []


def test_what_the_application_demands_becomes_the_answer() -> None:
    app, _ = application("crm:admin")
    sent = call(app)
    assert sent.status == 403
    assert dict(sent.messages[0]["headers"])[b"cache-control"] == b"no-store"


def test_what_is_demanded_after_the_answer_has_begun_ends_it() -> None:
    app, _ = application("crm:admin", late=True)
    with pytest.raises(AccessRefused):
        call(app)


def test_lifespan_passes_a_websocket_is_closed_and_all_else_is_refused() -> None:
    app, seen = application("crm:read")
    call(app, "lifespan")
    assert [scope["type"] for scope in seen] == ["lifespan"]
    assert [message["type"] for message in call(app, "websocket").messages] == ["websocket.close"]
    with pytest.raises(RuntimeError):
        call(app, "webtransport")
    assert len(seen) == 1


def test_an_application_without_the_middleware_finds_no_token() -> None:
    scopes: list[dict[str, Any]] = [{}, {"state": {}}, {"state": {"access_token": {"sub": "me"}}}]
    for scope in scopes:
        with pytest.raises(LookupError):
            token_of(scope)


def test_a_service_loads_nothing_else_of_this_package() -> None:
    program = """
import pkgutil, sys, importlib, orchestrator.pep
for module in pkgutil.walk_packages(orchestrator.pep.__path__, "orchestrator.pep."):
    importlib.import_module(module.name)
print(*sorted(sys.modules))
"""
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    ours = {name for name in loaded if name.startswith("orchestrator.") and not name.startswith("orchestrator.pep")}
    pure = {
        "clock",
        "errors",
        "jsontypes",
        "secret",
        "network",
        "network.http_client",
        "network.loopback",
        "network.origins",
        "version",
    }
    assert ours == {f"orchestrator.{name}" for name in pure}
    heavy = {"pydantic", "sqlalchemy", "hvac", "psycopg", "starlette", "uvicorn", "requests", "aiohttp"}
    assert {name.partition(".")[0] for name in loaded} & heavy == set()
    assert {"httpx", "joserfc"} <= set(loaded)

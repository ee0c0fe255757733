"""The way in: a Vault token or an OpenID provider, a session, and out again.

A cookie alone changes nothing: whatever is posted comes from a page of ours, by its `Origin` and by the token that the
session's forms hold.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, urlencode, urlsplit

from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from orchestrator.approvals.people import Person, Unproven, bearer_of
from orchestrator.errors import OrchestratorError, Refused
from orchestrator.network.loopback import is_loopback
from orchestrator.secret import Secret
from orchestrator.server.pages.answers import ROOT, Page
from orchestrator.server.pages.login.openid import PENDING_SECONDS, OpenId
from orchestrator.server.pages.login.roles import Roles
from orchestrator.server.pages.rendering import rendered
from orchestrator.server.pages.sessions import LONGEST_SECONDS, Session, Sessions
from orchestrator.vault.faults import VaultRefused
from orchestrator.vault.session import VaultSession

log = logging.getLogger(__name__)

SECONDS = 20.0
MOST_BYTES = 1 << 14

_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[\w.-]+)(:\d+)?", re.ASCII | re.IGNORECASE)
_OURS = re.compile(rf"{ROOT}/[A-Za-z0-9_.~:%/?&=+-]*")


class Unmeant(Refused):
    """What was posted does not come from a page of ours."""

    def __init__(self) -> None:
        super().__init__(
            "this was not sent by a page of ours", by="orchestrator", hint="go back, and load the page anew"
        )


@dataclass(frozen=True, slots=True)
class Door:
    """`url`: how browsers reach the pages, scheme and host. `remember`: what no log may ever hold."""

    url: str
    roles: Roles
    sessions: Sessions
    vault: VaultSession
    remember: Callable[[Secret], None]
    openid: OpenId | None = None

    @property
    def host(self) -> str:
        """The name under which the pages answer."""
        return urlsplit(self.url).hostname or ""

    @property
    def _secure(self) -> bool:
        return self.url.startswith("https://")

    @property
    def cookie(self) -> str:
        """The name of the session's cookie: over TLS one that no other host can set (RFC 6265bis, 4.1.3.2)."""
        return "__Host-orchestrator" if self._secure else "orchestrator"

    @property
    def _begun_cookie(self) -> str:
        return f"{self.cookie}-login"

    def session_of(self, cookies: str) -> Session | None:
        """The session of a request with these cookies."""
        return self.sessions.of(_cookie(cookies, self.cookie))

    def routes(self) -> list[Route]:
        """Under `/ui`: the only ones that are answered without a session."""
        return [
            Route("/login", self._shown, methods=["GET"]),
            Route("/login", self._by_token, methods=["POST"]),
            Route("/login/openid", self._sent_away, methods=["GET"]),
            Route("/login/openid/back", self._come_back, methods=["GET"]),
            Route("/logout", self._out, methods=["POST"]),
        ]

    async def form(self, request: Request, session: Session | None) -> Mapping[str, str]:
        """What a page of ours has posted. Raises Unmeant for anything else; without a session by its origin alone."""
        if request.headers.get("origin") not in (self.url, _here(request)):
            raise Unmeant
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > MOST_BYTES:
                raise Unmeant
        try:
            said = parse_qs(bytes(body).decode("ascii"), keep_blank_values=True, max_num_fields=20, errors="strict")
        except (UnicodeDecodeError, ValueError):
            raise Unmeant from None
        given = {name: values[-1] for name, values in said.items()}
        if session is not None and not session.sent(given.get("form_token", "")):
            raise Unmeant
        return given

    async def _shown(self, request: Request) -> Response:
        return self._page(request.query_params.get("then", ""))

    def _page(self, then: str, problem: str = "", hint: str = "", status: int = 200) -> Response:
        values = {"then": ours(then), "openid": self.openid is not None, "problem": problem, "hint": hint}
        return HTMLResponse(rendered(Page("login.html", values)), status)

    def _trouble(self, error: OrchestratorError, then: str = "") -> Response:
        if isinstance(error, Refused):
            return self._page(then, error.message, error.hint or "", 403 if isinstance(error, Unmeant) else 401)
        log.warning("nobody can log in: %s", error.message)
        return self._page(then, error.message, error.hint or "", 503)

    async def _by_token(self, request: Request) -> Response:
        then = ""
        try:
            given = await self.form(request, None)
            then = given.get("then", "")
            text = given.get("token", "").strip()
            if not text or not text.isascii() or not text.isprintable():
                raise Unproven("this is no Vault token")
            token = Secret(text)
            self.remember(token)
            try:
                bearer = await bearer_of(self.vault, token, deadline=self.sessions.clock.monotonic() + SECONDS)
            except VaultRefused:
                raise Unproven("Vault does not know this token") from None
            seconds = LONGEST_SECONDS if bearer.seconds is None else bearer.seconds
            return self._let_in(bearer.person, bearer.person.name.partition(":")[2], then, seconds=seconds)
        except OrchestratorError as error:
            return self._trouble(error, then)

    async def _sent_away(self, request: Request) -> Response:
        then = request.query_params.get("then", "")
        if self.openid is None:
            return self._page(then, "there is no OpenID provider here", "", 404)
        if _here(request) not in ("", self.url) and "moved" not in request.query_params:
            # The provider sends them back to one name, and cookies are of one. Once: a proxy may say another to us.
            query = urlencode({"then": ours(then), "moved": "1"})
            return RedirectResponse(f"{self.url}{ROOT}/login/openid?{query}", 303)
        try:
            begun = await self.openid.begin(ours(then))
        except OrchestratorError as error:
            return self._trouble(error, then)
        answer = RedirectResponse(begun.url, 303)
        self._set(answer, self._begun_cookie, begun.cookie, seconds=PENDING_SECONDS)
        return answer

    async def _come_back(self, request: Request) -> Response:
        if self.openid is None:
            return self._page("", "there is no OpenID provider here", "", 404)
        cookie = _cookie(request.headers.get("cookie", ""), self._begun_cookie)
        try:
            known = await self.openid.finish(cookie, dict(request.query_params))
            answer = self._let_in(known.person, known.shown, known.then)
        except OrchestratorError as error:
            answer = self._trouble(error)
        self._unset(answer, self._begun_cookie)
        return answer

    def _let_in(self, person: Person, shown: str, then: str, *, seconds: float = LONGEST_SECONDS) -> Response:
        roles = self.roles.of(person)
        if not roles:
            log.warning("%s may not read the pages", person.name)
            raise Refused(
                f"{person.name} may not read these pages",
                by="orchestrator",
                hint="whoever runs this service says who may: ORCHESTRATOR_UI_READERS",
            )
        log.info("%s reads the pages, as %s", person.name, ", ".join(sorted(roles)))
        answer = RedirectResponse(ours(then), 303)
        cookie = self.sessions.begin(person, shown, roles, seconds=seconds)
        self._set(answer, self.cookie, cookie, seconds=int(min(seconds, LONGEST_SECONDS)))
        return answer

    async def _out(self, request: Request) -> Response:
        cookies = request.headers.get("cookie", "")
        session = self.session_of(cookies)
        try:
            await self.form(request, session)
        except Unmeant as error:
            return self._trouble(error)
        self.sessions.end(_cookie(cookies, self.cookie))
        answer = RedirectResponse(f"{ROOT}/login", 303)
        self._unset(answer, self.cookie)
        return answer

    def _set(self, answer: Response, name: str, value: str, *, seconds: int) -> None:
        answer.set_cookie(name, value, max_age=seconds, path="/", secure=self._secure, httponly=True, samesite="lax")

    def _unset(self, answer: Response, name: str) -> None:
        answer.delete_cookie(name, path="/", secure=self._secure, httponly=True, samesite="lax")


def ours(address: str) -> str:
    """An address of a page of ours, and nothing else: whoever logs in is not sent elsewhere."""
    known = _OURS.fullmatch(address) and "//" not in address and "/../" not in address
    return address if known and not address.startswith(f"{ROOT}/log") else f"{ROOT}/"


def _here(request: Request) -> str:
    """The origin of a request under a name of this machine, which no other site can have; empty for others.

    People reach a listener of 127.0.0.1 as `localhost`, or at the port of a tunnel.
    """
    host = request.headers.get("host", "")
    said = _HOST.fullmatch(host)
    return f"http://{host}" if said is not None and is_loopback(said[1]) else ""


def _cookie(header: str, name: str) -> str:
    try:
        found = SimpleCookie(header).get(name)
    except CookieError:
        return ""
    return "" if found is None else found.value

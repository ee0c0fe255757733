"""The Gmail API's paths: who calls, which scope the method needs, whose mailbox it is; then the method."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from orchestrator.clock import Clock, SystemClock
from orchestrator.devstack.services.admin import Backdoor
from orchestrator.devstack.services.mail.errors import (
    ApiError,
    delegation_denied,
    invalid,
    metadata_only,
    no_mailbox,
    scope_insufficient,
    unavailable,
)
from orchestrator.devstack.services.mail.mailboxes import Mailbox, MailSystem
from orchestrator.devstack.services.mail.messages import Format, decoded, parse
from orchestrator.devstack.services.mail.scopes import FULL, MODIFY, NEEDS, READONLY
from orchestrator.devstack.services.mail.tokens import Tokens
from orchestrator.pep.access import AccessToken

_MOST, _USUAL = 500, 100
"""`maxResults`."""


class Outgoing(BaseModel):
    """The body of `messages/send`."""

    model_config = ConfigDict(extra="ignore")

    raw: str = ""
    threadId: str | None = None  # noqa: N815 - the API's own name


class Relabelling(BaseModel):
    """The body of `modify`."""

    model_config = ConfigDict(extra="ignore")

    addLabelIds: list[str] = []  # noqa: N815 - the API's own names
    removeLabelIds: list[str] = []  # noqa: N815


@dataclass(frozen=True, slots=True)
class Call:
    """A request that may be carried out."""

    request: Request
    token: AccessToken
    box: Mailbox

    @property
    def metadata_only(self) -> bool:
        """Whether nothing but `gmail.metadata` permits it."""
        return not self.token.scope & {FULL, MODIFY, READONLY}


Method = Callable[[Call], Awaitable[dict[str, Any]]]


@dataclass
class MailApi:
    """The methods, and the log of what was asked and what was decided."""

    system: MailSystem
    tokens: Tokens
    backdoor: Backdoor
    clock: Clock = field(default_factory=SystemClock)
    decisions: list[dict[str, Any]] = field(default_factory=list)

    def routes(self) -> list[Route]:
        """Those of the API, and the back door."""
        user = "/gmail/v1/users/{user}"
        paths: list[tuple[str, str, str, Method]] = [
            ("GET", f"{user}/messages", "ListMessages", self.list_messages),
            ("POST", f"{user}/messages/send", "SendMessage", self.send_message),
            ("GET", f"{user}/messages/{{id}}", "GetMessage", self.get_message),
            ("POST", f"{user}/messages/{{id}}/modify", "ModifyMessage", self.modify_message),
            ("GET", f"{user}/labels", "ListLabels", self.list_labels),
        ]
        served = [Route(path, self._served(name, call), methods=[verb]) for verb, path, name, call in paths]
        return [*served, *self.backdoor.routes(self.state)]

    async def list_messages(self, call: Call) -> dict[str, Any]:
        """`users.messages.list`."""
        asked = call.request.query_params
        query = asked.get("q", "")
        if query and call.metadata_only:
            raise metadata_only("Metadata scope does not support 'q' parameter")
        most = _count(asked.get("maxResults"))
        begin = _page(asked.get("pageToken"))
        hidden = asked.get("includeSpamTrash") == "true"
        found = call.box.found(query, asked.getlist("labelIds"), hidden=hidden)
        page = found[begin : begin + most]
        answer: dict[str, Any] = {"messages": [mail.named() for mail in page]} if page else {}
        if begin + most < len(found):
            answer["nextPageToken"] = f"{begin + most:020d}"
        return {**answer, "resultSizeEstimate": len(found)}

    async def get_message(self, call: Call) -> dict[str, Any]:
        """`users.messages.get`."""
        asked = call.request.query_params
        wanted = asked.get("format", Format.FULL).lower()
        if wanted not in list(Format):
            raise invalid(f"Invalid value at 'format' ({wanted})")
        form = Format(wanted)
        if call.metadata_only and form in (Format.FULL, Format.RAW):
            raise metadata_only(f"Metadata scope doesn't allow format {form.upper()}")
        mail = call.box.mail(call.request.path_params["id"])
        return mail.shown(form, asked.getlist("metadataHeaders"))

    async def send_message(self, call: Call) -> dict[str, Any]:
        """`users.messages.send`."""
        wish = Outgoing.model_validate_json(await call.request.body())
        try:
            raw = decoded(wish.raw)
        except ValueError:
            raise invalid("Invalid value at 'message.raw' (TYPE_BYTES)") from None
        if not raw:
            raise invalid("'raw' RFC822 payload message string or uploading message via /upload/* URL required")
        now = int(self.clock.now().timestamp() * 1000)
        kept = self.system.send(call.box, parse(raw), wish.threadId, client_id=call.token.client_id, now=now)
        return {**kept.named(), "labelIds": list(kept.labels)}

    async def modify_message(self, call: Call) -> dict[str, Any]:
        """`users.messages.modify`."""
        wish = Relabelling.model_validate_json(await call.request.body())
        if not wish.addLabelIds and not wish.removeLabelIds:
            raise invalid("No label add or removes specified")
        history = self.system.next_history()
        mail = call.box.relabel(call.request.path_params["id"], wish.addLabelIds, wish.removeLabelIds, history)
        return {**mail.named(), "labelIds": list(mail.labels)}

    async def list_labels(self, call: Call) -> dict[str, Any]:
        """`users.labels.list`."""
        return {"labels": call.box.label_resources()}

    def state(self) -> dict[str, Any]:
        """For the back door: the mails' labels by mailbox, what was sent, what was asked and decided."""
        boxes = {
            address: {mail.id: list(mail.labels) for mail in box.mails.values()}
            for address, box in self.system.boxes.items()
        }
        return {"mailboxes": boxes, "sent": self.system.sent, "decisions": self.decisions}

    def _served(self, name: str, method: Method) -> Callable[[Request], Awaitable[Response]]:
        """The method behind everything that must hold before it; what was decided goes into the log."""

        async def serve(request: Request) -> Response:
            entry: dict[str, Any] = {"method": name, "user": request.path_params["user"], "path": request.url.path}
            entry |= {"query": request.url.query, "subject": None, "client_id": None, "scope": [], "actor": None}
            self.decisions.append(entry)
            try:
                call = await self._permitted(request, name, entry)
                if (failure := self.backdoor.planned_failure()) is not None:
                    raise unavailable(failure.status, failure.retry_after)
                answer: Response = JSONResponse(await method(call))
            except ApiError as error:
                entry["reason"] = error.reason
                answer = error.response()
            except ValidationError:
                entry["reason"] = "parseError"
                answer = ApiError(400, "Invalid JSON payload received.", reason="parseError").response()
            entry["status"] = answer.status_code
            return answer

        return serve

    async def _permitted(self, request: Request, name: str, entry: dict[str, Any]) -> Call:
        """Raises ApiError unless the token is for this method, on the mailbox of its subject."""
        token = await self.tokens.authenticate(request.headers.getlist("Authorization"), request.url.query, name)
        entry |= {"subject": token.subject, "client_id": token.client_id, "scope": sorted(token.scope)}
        entry |= {"actor": token.actor, "token_id": token.token_id}
        if not token.scope & set(NEEDS[name]):
            raise scope_insufficient(name, NEEDS[name])
        subject = token.subject.lower()
        if subject not in self.system.boxes:
            raise no_mailbox()
        if request.path_params["user"].lower() not in ("me", subject):
            raise delegation_denied(subject)
        return Call(request, token, self.system.boxes[subject])


def mail_app(system: MailSystem, tokens: Tokens, backdoor: Backdoor) -> Starlette:
    """The service. Only the mailbox of a token's subject is there for it."""
    api = MailApi(system, tokens, backdoor)

    async def health(request: Request) -> Response:
        return JSONResponse({"ok": True})

    return Starlette(routes=[Route("/health", health), *api.routes()])


def _count(text: str | None) -> int:
    if text is None:
        return _USUAL
    if not text.isascii() or not text.isdecimal():
        raise invalid(f"Invalid value at 'max_results' (TYPE_UINT32), \"{text}\"")
    return min(int(text), _MOST) or _USUAL


def _page(text: str | None) -> int:
    if text is None:
        return 0
    if not text.isascii() or not text.isdecimal() or len(text) > 20:
        raise invalid("Invalid pageToken")
    return int(text)

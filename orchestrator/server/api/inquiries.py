"""What services may ask: whether a token is active (RFC 7662), and whether it permits an operation (AuthZEN 1.0)."""

from __future__ import annotations

from typing import Any, Literal, TypeVar
from urllib.parse import parse_qs

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from orchestrator.jsontypes import JsonObject
from orchestrator.pep.access import AccessToken
from orchestrator.pep.details import Operation
from orchestrator.pep.errors import TokenRefused
from orchestrator.pep.jwt.strict import json_object
from orchestrator.server.api.bodies import received
from orchestrator.server.api.callers import LONGEST_TOKEN, Callers
from orchestrator.server.api.problems import Kind, Problem, problem_of
from orchestrator.tasks.inquiry import Inquiry, Judgement

MOST_EVALUATIONS = 100

Model = TypeVar("Model", bound=BaseModel)

_OPEN = ConfigDict(extra="ignore", hide_input_in_errors=True)


class Subject(BaseModel):
    """Who asks for access: whoever has the token in `properties.token`."""

    model_config = _OPEN

    type: Literal["access_token"]
    id: str = ""
    properties: dict[str, Any]


class Action(BaseModel):
    """What is about to be done, as `actions` of `authorization_details` name it."""

    model_config = _OPEN

    name: str


class Resource(BaseModel):
    """To what: `type` and `identifier` of `authorization_details`."""

    model_config = _OPEN

    type: str
    id: str
    properties: dict[str, Any] = Field(default_factory=dict)


class Evaluation(BaseModel):
    """One question. In a batch what it lacks is taken from the whole."""

    model_config = _OPEN

    subject: Subject | None = None
    action: Action | None = None
    resource: Resource | None = None


class Options(BaseModel):
    """How a batch is answered."""

    model_config = _OPEN

    evaluations_semantic: Literal["execute_all", "deny_on_first_deny", "permit_on_first_permit"] = "execute_all"


class Batch(Evaluation):
    """Several questions."""

    evaluations: list[Evaluation] = Field(default_factory=list, max_length=MOST_EVALUATIONS)
    options: Options = Field(default_factory=Options)


class Inquiries:
    """The doors for services."""

    def __init__(self, inquiry: Inquiry, callers: Callers) -> None:
        self._inquiry = inquiry
        self._callers = callers

    def routes(self) -> list[Route]:
        """Where they are."""
        return [
            Route("/v1/introspect", _told(self.introspect), methods=["POST"]),
            Route("/access/v1/evaluation", _told(self.evaluation), methods=["POST"]),
            Route("/access/v1/evaluations", _told(self.evaluations), methods=["POST"]),
            Route("/.well-known/authzen-configuration", self.metadata, methods=["GET"]),
        ]

    async def introspect(self, request: Request) -> Response:
        """RFC 7662, 2. Of what is not active nothing is told but that."""
        audience = await self._audience(request)
        body = await received(request)
        form = parse_qs(body.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=20)
        tokens = form.get("token", [])
        if len(tokens) != 1 or not tokens[0] or len(tokens[0]) > LONGEST_TOKEN:
            raise Problem(Kind.MALFORMED, "send one `token` as application/x-www-form-urlencoded")
        found = await self._inquiry.active(tokens[0], audience)
        return _answer({"active": False} if found is None else _introspected(found[0]))

    async def evaluation(self, request: Request) -> Response:
        """Authorization API 1.0, 6."""
        audience = await self._audience(request)
        return _answer(_decision(await self._judged(await _sent(request, Evaluation), audience)))

    async def evaluations(self, request: Request) -> Response:
        """Authorization API 1.0, 7."""
        audience = await self._audience(request)
        batch = await _sent(request, Batch)
        if not batch.evaluations:
            return _answer(_decision(await self._judged(batch, audience)))
        answers: list[JsonObject] = []
        for each in batch.evaluations:
            whole = Evaluation(
                subject=each.subject or batch.subject,
                action=each.action or batch.action,
                resource=each.resource or batch.resource,
            )
            judgement = await self._judged(whole, audience)
            answers.append(_decision(judgement))
            semantic = batch.options.evaluations_semantic
            if semantic == ("permit_on_first_permit" if judgement.permitted else "deny_on_first_deny"):
                break
        return _answer({"evaluations": answers})

    async def metadata(self, request: Request) -> Response:
        """Authorization API 1.0, 9."""
        here = str(request.base_url).rstrip("/")
        return JSONResponse(
            {
                "policy_decision_point": here,
                "access_evaluation_endpoint": f"{here}/access/v1/evaluation",
                "access_evaluations_endpoint": f"{here}/access/v1/evaluations",
            }
        )

    async def _audience(self, request: Request) -> str:
        caller = await self._callers.caller(request)
        audience = self._callers.authentication.audience_of(caller)
        if audience is None:
            raise Problem(Kind.NOT_ALLOWED, "only services that are declared may ask about tokens")
        return audience

    async def _judged(self, asked: Evaluation, audience: str) -> Judgement:
        if asked.subject is None or asked.action is None or asked.resource is None:
            raise Problem(Kind.MALFORMED, "an evaluation has a subject, an action and a resource")
        token = asked.subject.properties.get("token")
        if not isinstance(token, str) or not token or len(token) > LONGEST_TOKEN:
            raise Problem(Kind.MALFORMED, "the subject's `properties.token` is the token")
        operation = Operation(asked.resource.type, asked.action.name, asked.resource.id)
        return await self._inquiry.permitted(token, audience, operation)


def _introspected(token: AccessToken) -> JsonObject:
    kept = ("iss", "sub", "aud", "client_id", "scope", "exp", "iat", "nbf", "jti", "authorization_details", "act")
    told = {name: token.claims[name] for name in kept if name in token.claims}
    return {"active": True, "token_type": "Bearer", **told}


def _decision(judgement: Judgement) -> JsonObject:
    return {"decision": judgement.permitted, **({"context": {"reason": judgement.reason}} if judgement.reason else {})}


async def _sent(request: Request, model: type[Model]) -> Model:
    try:
        return model.model_validate(json_object(await received(request)))
    except TokenRefused:
        raise Problem(Kind.MALFORMED, "the body is not one JSON object in UTF-8, with each member once") from None
    except ValidationError as error:
        found = error.errors(include_input=False, include_context=False, include_url=False)[0]
        where = ".".join(str(part)[:40] for part in found["loc"])
        raise Problem(Kind.MALFORMED, f"`{where}`: {found['msg']}") from None


def _answer(document: JsonObject) -> Response:
    return JSONResponse(document, headers={"Cache-Control": "no-store"})


def _told(answer: Any) -> Any:
    async def handler(request: Request) -> Response:
        try:
            found: Response = await answer(request)
        except Exception as error:  # noqa: BLE001 -- whatever it is, the caller gets a problem and no text of it
            found = problem_of(error).response()
        if (identifier := request.headers.get("x-request-id")) and len(identifier) <= 200:
            found.headers["X-Request-ID"] = identifier
        return found

    return handler

"""What services may ask: whether a token is active (RFC 7662), and whether it permits an operation (AuthZEN 1.0)."""

from __future__ import annotations

from typing import TypeVar
from urllib.parse import parse_qs

from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from orchestrator.jsontypes import JsonObject
from orchestrator.pep import details
from orchestrator.pep.access import AccessToken
from orchestrator.pep.errors import TokenRefused
from orchestrator.pep.jwt.strict import json_object
from orchestrator.server.api.bodies import received
from orchestrator.server.api.callers import Callers
from orchestrator.server.api.operations import Operation
from orchestrator.server.api.problems import Kind, Problem
from orchestrator.server.api.questions import (
    Batch,
    BatchDocument,
    DecisionContext,
    DecisionDocument,
    DecisionsDocument,
    Evaluation,
    IntrospectionDocument,
    IntrospectionRequest,
    Part,
)
from orchestrator.tasks.inquiry import Inquiry

MOST_FIELDS = 20

_PROBLEMS = (Kind.MALFORMED, Kind.NOT_ALLOWED, Kind.TOO_LARGE)

Model = TypeVar("Model", bound=BaseModel)


class Inquiries:
    """The doors for services."""

    def __init__(self, inquiry: Inquiry, callers: Callers) -> None:
        self._inquiry = inquiry
        self._callers = callers

    async def introspect(self, request: Request) -> Response:
        """RFC 7662, 2. Of what is not active nothing is told but that."""
        audience = await self._audience(request)
        asked = await _form(request)
        found = await self._inquiry.active(asked.token, audience)
        return _answer({"active": False} if found is None else _introspected(found[0]))

    async def evaluation(self, request: Request) -> Response:
        """Authorization API 1.0, 6."""
        audience = await self._audience(request)
        return _decided(await self._decision(await _sent(request, Evaluation), audience))

    async def evaluations(self, request: Request) -> Response:
        """Authorization API 1.0, 7."""
        audience = await self._audience(request)
        batch = await _sent(request, Batch)
        if not batch.evaluations:
            return _decided(await self._decision(_whole(batch, batch), audience))
        answers: list[DecisionDocument] = []
        for each in batch.evaluations:
            answers.append(await self._decision(_whole(each, batch), audience))
            semantic = batch.options.evaluations_semantic
            if semantic == ("permit_on_first_permit" if answers[-1].decision else "deny_on_first_deny"):
                break
        return _decided(DecisionsDocument(evaluations=answers))

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

    async def _decision(self, asked: Evaluation, audience: str) -> DecisionDocument:
        operation = details.Operation(asked.resource.type, asked.action.name, asked.resource.id)
        judgement = await self._inquiry.permitted(asked.subject.properties.token, audience, operation)
        context = DecisionContext(reason=judgement.reason) if judgement.reason else None
        return DecisionDocument(decision=judgement.permitted, context=context)


def _whole(part: Part, batch: Batch) -> Evaluation:
    subject, action, resource = (
        part.subject or batch.subject,
        part.action or batch.action,
        part.resource or batch.resource,
    )
    if subject is None or action is None or resource is None:
        raise Problem(Kind.MALFORMED, "an evaluation has a subject, an action and a resource")
    return Evaluation(subject=subject, action=action, resource=resource)


def _introspected(token: AccessToken) -> JsonObject:
    kept = (
        "iss",
        "sub",
        "aud",
        "client_id",
        "scope",
        "exp",
        "iat",
        "nbf",
        "jti",
        "cnf",
        "authorization_details",
        "act",
    )
    told = {name: token.claims[name] for name in kept if name in token.claims}
    return {"active": True, "token_type": "DPoP" if "cnf" in token.claims else "Bearer", **told}


async def _form(request: Request) -> IntrospectionRequest:
    body = await received(request)
    try:
        form = parse_qs(body.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=MOST_FIELDS)
        once = {name: given[0] if len(given) == 1 else given for name, given in form.items()}
        return IntrospectionRequest.model_validate(once)
    except ValueError:  # of too many fields, or of one that is not as it should be, or there twice
        raise Problem(Kind.MALFORMED, "send one `token` as application/x-www-form-urlencoded") from None


async def _sent(request: Request, model: type[Model]) -> Model:
    try:
        return model.model_validate(json_object(await received(request)))
    except TokenRefused:
        raise Problem(Kind.MALFORMED, "the body is not one JSON object in UTF-8, with each member once") from None
    except ValidationError as error:
        found = error.errors(include_input=False, include_context=False, include_url=False)[0]
        where = ".".join(str(part)[:40] for part in found["loc"])
        raise Problem(Kind.MALFORMED, f"`{where}`: {found['msg']}") from None


def _decided(document: BaseModel) -> Response:
    return _answer(document.model_dump(mode="json", exclude_none=True))


def _answer(document: JsonObject) -> Response:
    return JSONResponse(document, headers={"Cache-Control": "no-store"})


INQUIRIES = (
    Operation(
        "POST",
        "/v1/introspect",
        "introspect",
        "Whether a token is active",
        "For services that are declared: of tokens for their own audience (RFC 7662).",
        Inquiries.introspect,
        {200: ("What it is, or that it is not active", IntrospectionDocument)},
        body=IntrospectionRequest,
        body_required=True,
        body_type="application/x-www-form-urlencoded",
        echoes_request_id=True,
        problems=_PROBLEMS,
    ),
    Operation(
        "POST",
        "/access/v1/evaluation",
        "evaluate",
        "Whether a token permits an operation now",
        "For services that are declared: of tokens for their own audience (AuthZEN 1.0, 6).",
        Inquiries.evaluation,
        {200: ("Whether it does", DecisionDocument)},
        body=Evaluation,
        body_required=True,
        echoes_request_id=True,
        problems=_PROBLEMS,
    ),
    Operation(
        "POST",
        "/access/v1/evaluations",
        "evaluateSeveral",
        "Whether tokens permit several operations now",
        "For services that are declared: of tokens for their own audience (AuthZEN 1.0, 7).",
        Inquiries.evaluations,
        {200: ("Whether they do", BatchDocument)},
        body=Batch,
        body_required=True,
        echoes_request_id=True,
        problems=_PROBLEMS,
    ),
)

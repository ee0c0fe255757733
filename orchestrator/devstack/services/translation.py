"""A translation API. It checks tokens as strictly as a real one; its translations are only a small glossary's."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AliasChoices, BaseModel, Field, ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from orchestrator.devstack.services.admin import Backdoor
from orchestrator.pep.challenges import AccessRefused
from orchestrator.pep.protection import Protection

_GLOSSARY = {
    "สวัสดี": "hello",
    "ขอบคุณ": "thank you",
    "อร่อย": "delicious",
    "ชอบ": "like",
    "ไม่": "not",
    "ดี": "good",
    "มาก": "very",
    "แพง": "expensive",
    "ถูก": "cheap",
    "ราคา": "price",
    "เท่าไหร่": "how much",
    "รถ": "car",
    "กิน": "eat",
    "ซื้อ": "buy",
    "ร้าน": "shop",
    "สาขา": "branch",
    "โทรศัพท์": "telephone",
    "น้ำ": "water",
    "ครับ": "(polite)",
    "ค่ะ": "(polite)",
    "คะ": "(polite)",
}


class Message(BaseModel):
    """One text to translate, with the caller's own id for it."""

    id: int | str
    text: Annotated[str, Field(validation_alias=AliasChoices("text", "comment"))]


class Wish(BaseModel):
    """The body of `POST /v1/translate`."""

    target: str = "en"
    messages: list[Message]


class Meaning(BaseModel):
    """The body of `PUT /v1/glossary/WORD`."""

    meaning: Annotated[str, Field(min_length=1)]


def gloss(text: str, glossary: dict[str, str]) -> str:
    """Known words replaced, longest first, and marked as what it is: no translation by a person or a model."""
    pattern = "|".join(re.escape(word) for word in sorted(glossary, key=len, reverse=True))
    glossed = re.sub(pattern, lambda match: f" {glossary[match.group()]} ", text)
    return "[glossed] " + re.sub(r"\s+", " ", glossed).strip()


def translation_app(protection: Protection, backdoor: Backdoor) -> Starlette:
    """`POST /v1/translate` needs the scope `translate`, `PUT /v1/glossary/WORD` the scope `glossary:write`."""
    glossary = dict(_GLOSSARY)
    calls: list[dict[str, Any]] = []

    async def translate(request: Request) -> Response:
        if (failure := backdoor.planned_failure()) is not None:
            return failure.response()
        token = await protection.authenticate(request.headers.getlist("Authorization"), request.url.query)
        protection.require(token, scope="translate")
        wish = Wish.model_validate_json(await request.body())
        calls.append({"sub": token.subject, "jti": token.token_id, "messages": len(wish.messages)})
        translations = [
            {"id": message.id, "language": wish.target, "text": gloss(message.text, glossary)}
            for message in wish.messages
        ]
        return JSONResponse({"translations": translations})

    async def define(request: Request) -> Response:
        token = await protection.authenticate(request.headers.getlist("Authorization"), request.url.query)
        protection.require(token, scope="glossary:write")
        glossary[request.path_params["word"]] = Meaning.model_validate_json(await request.body()).meaning
        return Response(status_code=204)

    routes = [
        Route("/v1/translate", translate, methods=["POST"]),
        Route("/v1/glossary/{word}", define, methods=["PUT"]),
        *backdoor.routes(lambda: {"calls": calls}),
    ]
    return Starlette(
        routes=routes,
        exception_handlers={AccessRefused: _refused, ValidationError: _malformed},
    )


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, AccessRefused)
    return Response(error.answer.body, error.answer.status, headers=dict(error.answer.headers))


async def _malformed(request: Request, error: Exception) -> Response:
    assert isinstance(error, ValidationError)
    problems = [{"where": list(problem["loc"]), "what": problem["msg"]} for problem in error.errors()]
    return JSONResponse({"error": "invalid_body", "problems": problems}, 400)

"""A translation API. It checks tokens as strictly as a real one; its translations are only a small glossary's."""

from __future__ import annotations

import re
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from orchestrator.devstack.services.admin import Backdoor
from orchestrator.devstack.services.bearer import BearerVerifier, Rejected

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


def gloss(text: str, glossary: dict[str, str]) -> str:
    """Known words replaced, longest first, and marked as what it is: no translation by a person or a model."""
    pattern = "|".join(re.escape(word) for word in sorted(glossary, key=len, reverse=True))
    glossed = re.sub(pattern, lambda match: f" {glossary[match.group()]} ", text)
    return "[glossed] " + re.sub(r"\s+", " ", glossed).strip()


def translation_app(verifier: BearerVerifier, backdoor: Backdoor) -> Starlette:
    """`POST /v1/translate` needs the scope `translate`, `PUT /v1/glossary/WORD` the scope `glossary:write`."""
    glossary = dict(_GLOSSARY)
    calls: list[dict[str, Any]] = []

    async def translate(request: Request) -> Response:
        if (failure := backdoor.planned_failure()) is not None:
            return failure
        claims = await verifier.verify(request, "translate")
        body = await request.json()
        calls.append({"sub": claims["sub"], "jti": claims["jti"], "messages": len(body["messages"])})
        return JSONResponse(
            {
                "translations": [
                    {
                        "id": message["id"],
                        "language": body.get("target", "en"),
                        "text": gloss(message.get("text") or message["comment"], glossary),
                    }
                    for message in body["messages"]
                ]
            }
        )

    async def define(request: Request) -> Response:
        await verifier.verify(request, "glossary:write")
        glossary[request.path_params["word"]] = (await request.json())["meaning"]
        return Response(status_code=204)

    async def reject(request: Request, error: Exception) -> Response:
        assert isinstance(error, Rejected)
        return error.response

    routes = [
        Route("/v1/translate", translate, methods=["POST"]),
        Route("/v1/glossary/{word}", define, methods=["PUT"]),
        *backdoor.routes(lambda: {"calls": calls}),
    ]
    return Starlette(routes=routes, exception_handlers={Rejected: reject})

"""The OpenAPI 3.1 document, made from the table of operations."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import version
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from orchestrator.server.api.documents import ProblemDocument
from orchestrator.server.api.inquiries import INQUIRIES
from orchestrator.server.api.oauth.operations import OAUTH
from orchestrator.server.api.operations import KEY, LONGEST_REQUEST_ID, OPERATIONS, REQUEST_ID, Operation
from orchestrator.server.api.problems import PREFIX, STATUS, Kind

_ALL: tuple[Operation[Any], ...] = (*OPERATIONS, *INQUIRIES, *OAUTH)
_REF = "#/components/schemas/{model}"


def openapi() -> dict[str, Any]:
    """The document."""
    paths: dict[str, dict[str, Any]] = {}
    for each in _ALL:
        paths.setdefault(each.path, {})[each.method.lower()] = _operation(each)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Credential orchestrator",
            "summary": "Tasks, tools and short-lived credentials for agents",
            "version": version("credential-orchestrator"),
        },
        "paths": paths,
        "security": [{"bearer": []}, {"certificate": []}],
        "components": {
            "schemas": _schemas(),
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"},
                "certificate": {"type": "mutualTLS", "description": "An X.509-SVID: its SPIFFE id is the agent's."},
            },
        },
    }


def _operation(operation: Operation[Any]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "description": operation.description,
        "parameters": [
            *_path_parameters(operation.path),
            *([_KEY] if operation.needs_key else []),
            *([{**_KEY, "required": False}] if operation.may_have_key else []),
            *({"name": name, "in": "header", "schema": {"type": "string"}} for name in operation.headers),
            *([_REQUEST_ID] if operation.echoes_request_id else []),
        ],
        "responses": {
            **{
                str(status): {"description": words, "content": _content(model), **_links(operation)}
                for status, (words, model) in {**operation.answers, **operation.errors}.items()
            },
            **_problems(operation.all_problems),
        },
    }
    if operation.known_by_body:
        found["security"] = [{}, {"certificate": []}]
    if operation.body is not None:
        content = {operation.body_type: {"schema": _reference(operation.body)}}
        found["requestBody"] = {"required": operation.body_required, "content": content}
    return found


_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": True,
    "description": "The caller's own name for the call, such as a UUID.",
    "schema": {"type": "string", "pattern": f"^{KEY.pattern}$"},
}

_REQUEST_ID = {
    "name": REQUEST_ID,
    "in": "header",
    "description": f"The answer has the same, where it is not longer than {LONGEST_REQUEST_ID} characters.",
    "schema": {"type": "string"},
}


def _links(operation: Operation[Any]) -> dict[str, Any]:
    links = {name: {"operationId": name, "parameters": dict(given)} for name, given in operation.links.items()}
    return {"links": links} if links else {}


def _path_parameters(path: str) -> list[dict[str, Any]]:
    names = [part[1:-1] for part in path.split("/") if part.startswith("{")]
    return [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names]


def _problems(kinds: Iterable[Kind]) -> dict[str, Any]:
    by_status: dict[int, list[Kind]] = {}
    for kind in kinds:
        by_status.setdefault(STATUS[kind], []).append(kind)
    return {
        str(status): {
            "description": " or ".join(f"`{PREFIX}{kind.value}`" for kind in found),
            "content": {"application/problem+json": {"schema": _reference(ProblemDocument)}},
        }
        for status, found in sorted(by_status.items())
    }


def _content(model: type[BaseModel]) -> dict[str, Any]:
    return {"application/json": {"schema": _reference(model)}}


def _reference(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": _REF.format(model=model.__name__)}


def _schemas() -> dict[str, Any]:
    answered = {model for each in _ALL for _, model in (*each.answers.values(), *each.errors.values())}
    answered |= {ProblemDocument}
    sent = {each.body for each in _ALL if each.body is not None}
    wanted = [(model, "serialization") for model in sorted(answered, key=lambda each: each.__name__)]
    wanted += [(model, "validation") for model in sorted(sent, key=lambda each: each.__name__)]
    _, definitions = models_json_schema(wanted, ref_template=_REF)  # type: ignore[arg-type]
    return dict(definitions["$defs"])

"""A policy decision point with the OpenID Authorization API 1.0 (AuthZEN), over folders of Rego.

It makes the document that our policies know of subject, action, resource and context, so that the same policies give
the same answers. Every request and every single answer is held against the JSON Schemas of the specification. The first
part of a path chooses the folder, as of a service with tenants; `certification` is the fixture of the certification
scenario (`certification/authorization-api-1_0-scenario.md`, 4.4), decided here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator, ValidationError
from policy_folder import Failed, PolicyFolder, Undefined
from policy_process import TESTS, arguments, authenticated, serve
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

SINGLE_ONLY = "single-"
"""A folder of this prefix has no Access Evaluations API."""


def schema(name: str) -> Draft202012Validator:
    text = (TESTS / "data" / "authzen" / f"evaluation-{name}.schema.json").read_text()
    return Draft202012Validator(json.loads(text))


REQUEST, RESPONSE = schema("request"), schema("response")


def certified(asked: Mapping[str, Any]) -> bool:
    """The policy that the certification scenario demands (4.4, rules 1 to 8)."""
    subject, action, resource = asked["subject"], asked["action"], asked["resource"]
    archived = resource.get("properties", {}).get("status") == "archived"
    admin = subject.get("properties", {}).get("role") == "admin"
    match action["name"]:
        case "read":
            return subject["id"] in ("alice", "bob")
        case "write":
            return admin if archived else subject["id"] == "alice"
        case "delete":
            return subject["id"] == "alice" and action.get("properties", {}).get("soft") is True
    return False


def document(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Our `input` document."""
    context = dict(asked["context"])
    for name in ("question", "supported_obligations"):
        context.pop(name)
    return {
        **context,
        "supported_obligations": context.pop("custom_obligations"),
        "time": context.get("time"),
        "agent": asked["subject"]["id"],
        "action": {**asked["action"]["properties"], "name": asked["action"]["name"]},
    }


def obligations(given: Any) -> Any:
    """Ours in the words of the Obligations Profile."""
    if not isinstance(given, Mapping):
        return given
    found: list[dict[str, Any]] = []
    for name, value in given.items():
        if name == "notify" and isinstance(value, list):
            found += [{"type": "notification", "properties": {"to": n["to"], "body": n["text"]}} for n in value]
        elif name in ("max_ttl", "columns", "max_rows", "reason_required"):
            found.append({"type": "custom", "properties": {"name": name, "value": value}})
        else:
            found.append({"type": name, "properties": {}})
    return [{"id": f"obl-{number}", **each} for number, each in enumerate(found, 1)]


def decided(folder: PolicyFolder, asked: Mapping[str, Any]) -> dict[str, Any]:
    """One Decision. Raises Failed."""
    rule = {"decision": "orchestrator/decision", "admit": "orchestrator/admit"}[asked["context"]["question"]]
    try:
        answer = folder.evaluate(rule, document(asked))
    except Undefined:
        return {"decision": False}
    context = {name: answer[name] for name in ("reasons",) if name in answer}
    if "obligations" in answer:
        context["obligations"] = obligations(answer["obligations"])
    return {"decision": answer.get("allow"), "context": context}


def app(root: Path, token_file: Path | None) -> Starlette:
    """The API for each folder below `root`."""
    folders: dict[str, PolicyFolder] = {}

    def answer(name: str, asked: Mapping[str, Any]) -> dict[str, Any]:
        REQUEST.validate(asked)
        if name == "certification":
            return {"decision": certified(asked)}
        made = decided(folders.setdefault(name, PolicyFolder(root / name)), asked)
        if isinstance(made["decision"], bool):  # what a policy says wrongly is handed on as it is
            RESPONSE.validate(made)
        return made

    async def evaluate(request: Request) -> Response:
        if not authenticated(request, token_file):
            return PlainTextResponse("who are you?", 401)
        name, body = request.path_params["name"], await request.json()
        headers = {"x-request-id": request.headers["x-request-id"]} if "x-request-id" in request.headers else {}
        try:
            if request.url.path.endswith("/evaluations") and body.get("evaluations"):
                if body.get("options", {}).get("evaluations_semantic", "execute_all") != "execute_all":
                    return PlainTextResponse("this semantic is not known here", 400)
                defaults = {key: body[key] for key in ("subject", "action", "resource", "context") if key in body}
                each = [answer(name, {**defaults, **evaluation}) for evaluation in body["evaluations"]]
                return JSONResponse({"evaluations": each, "unknown_member": 1}, headers=headers)
            return JSONResponse({**answer(name, body), "unknown_member": 1}, headers=headers)
        except ValidationError as error:
            return PlainTextResponse(f"bad request: {error.message}", 400)
        except Failed as error:
            return PlainTextResponse(str(error), 500)

    async def metadata(request: Request) -> Response:
        name = request.path_params["name"]
        here = f"{request.url.scheme}://{request.headers['host']}/{name}"
        found: dict[str, Any] = {
            "policy_decision_point": here,
            "access_evaluation_endpoint": f"{here}/access/v1/evaluation",
            "supported_obligations": ["notification", "custom", "step-up"],
            "unknown_member": {},
        }
        if not name.startswith(SINGLE_ONLY):
            found["access_evaluations_endpoint"] = f"{here}/access/v1/evaluations"
        return JSONResponse(found)

    return Starlette(
        routes=[
            Route("/.well-known/authzen-configuration/{name}", metadata, methods=["GET"]),
            Route("/{name}/access/v1/evaluation", evaluate, methods=["POST"]),
            Route("/{name}/access/v1/evaluations", evaluate, methods=["POST"]),
        ]
    )


if __name__ == "__main__":
    given = arguments()
    serve(app(given.root, given.token_file), given.socket)

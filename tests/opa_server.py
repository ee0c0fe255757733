"""A server with the Data API that OPA documents (REST API, "Get a Document (with Input)"), over folders of Rego.

No package registry has the OPA binary, so regorus evaluates here. Where an `opa` is on the PATH the same suite
(`tests/integration/test_policy_engines.py`) asks it, too. The first part of a path chooses the folder: a server of this
kind stands behind a gateway at `https://gateway/NAME/v1/data/...`.
"""

from __future__ import annotations

import uuid
from pathlib import Path

from policy_folder import Failed, PolicyFolder, Undefined
from policy_process import arguments, authenticated, serve
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route


def app(root: Path, token_file: Path | None) -> Starlette:
    """The API for each folder below `root`."""
    folders: dict[str, PolicyFolder] = {}

    async def data(request: Request) -> Response:
        if not authenticated(request, token_file):
            return JSONResponse({"code": "unauthorized", "message": "request rejected by administrative policy"}, 401)
        name = request.path_params["name"]
        folder = folders.setdefault(name, PolicyFolder(root / name))
        answer: dict[str, object] = {"decision_id": str(uuid.uuid4())}
        if request.query_params.get("provenance") == "true":
            answer["provenance"] = {
                "version": "1.9.0",
                "build_commit": "",
                "build_timestamp": "",
                "build_host": "",
                "bundles": {name: {"revision": "r1"}},
            }
        try:
            answer["result"] = folder.evaluate(request.path_params["path"], (await request.json())["input"])
        except Undefined:
            pass
        except Failed as error:
            if request.query_params.get("strict-builtin-errors") != "true" and "conflict" not in str(error):
                return JSONResponse(answer)
            message = "error(s) occurred while evaluating query"
            errors = [{"code": "eval_conflict_error", "message": str(error)}]
            return JSONResponse({"code": "internal_error", "message": message, "errors": errors}, 500)
        return JSONResponse(answer)

    return Starlette(routes=[Route("/{name}/v1/data/{path:path}", data, methods=["POST"])])


if __name__ == "__main__":
    given = arguments()
    serve(app(given.root, given.token_file), given.socket)

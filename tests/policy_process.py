"""Policy services as processes of their own: what a script needs to be one, and how a test starts it."""

from __future__ import annotations

import argparse
import asyncio
import json
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request

TESTS = Path(__file__).parent


def arguments() -> argparse.Namespace:
    """`--root`, a folder with a folder of policies for each first part of a path; `--socket`; `--token-file`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--socket", type=Path)
    parser.add_argument("--token-file", type=Path)
    return parser.parse_args()


def authenticated(request: Request, token_file: Path | None) -> bool:
    """Whether the request has the token that the file holds now."""
    if token_file is None:
        return True
    given = request.headers.get("authorization", "")
    return secrets.compare_digest(given, f"Bearer {token_file.read_text().strip()}")


def serve(app: Starlette, path: Path | None) -> None:
    """Print where it listens, as JSON, and serve until a signal comes."""
    listener = socket.socket(socket.AF_UNIX if path else socket.AF_INET)
    listener.bind(str(path) if path else ("127.0.0.1", 0))
    listener.listen()
    print(json.dumps(str(path) if path else listener.getsockname()[1]), flush=True)
    settings = uvicorn.Config(app, log_level="warning", lifespan="off", access_log=False, timeout_graceful_shutdown=1)
    asyncio.run(uvicorn.Server(settings).serve(sockets=[listener]))


@contextmanager
def policy_service(script: str, root: Path, *more: str) -> Iterator[str]:
    """Start a script of this folder; its address, or the path of its socket."""
    command = [sys.executable, str(TESTS / script), "--root", str(root), *more]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            where = json.loads(process.stdout.readline())
            yield where if isinstance(where, str) else f"http://127.0.0.1:{where}"
        finally:
            process.terminate()

"""`python -m orchestrator.devstack.services`: all sample services in one process, each on its own port.

What it needs comes as one JSON object on standard input, so that no token is among its arguments.
It prints `ready` when all ports answer.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from typing import Any

import uvicorn
from starlette.applications import Starlette

from orchestrator.devstack.services.admin import Backdoor
from orchestrator.devstack.services.bearer import BearerVerifier
from orchestrator.devstack.services.issuer import issuer_app
from orchestrator.devstack.services.slack import Bot, slack_app
from orchestrator.devstack.services.translation import translation_app


def apps(config: dict[str, Any]) -> dict[int, Starlette]:
    """The applications by port."""
    issuer = config["issuer_url"]
    verifier = BearerVerifier(issuer, config["audience"], f"{issuer}/.well-known/jwks.json")
    bots = {
        token: Bot(bot["name"], frozenset(bot["scopes"]), frozenset(bot["channels"]))
        for token, bot in config["slack_bots"].items()
    }
    return {
        config["issuer_port"]: issuer_app(issuer, config["vault_address"], config["vault_token"], config["key"]),
        config["translation_port"]: translation_app(verifier, Backdoor(config["admin_token"])),
        config["slack_port"]: slack_app(bots, Backdoor(config["admin_token"])),
    }


async def serve(config: dict[str, Any]) -> None:
    servers = []
    for port, app in apps(config).items():
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        settings = uvicorn.Config(app, log_level="warning", lifespan="off", access_log=False)
        servers.append(asyncio.ensure_future(uvicorn.Server(settings).serve(sockets=[listener])))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await asyncio.gather(*servers)


if __name__ == "__main__":
    asyncio.run(serve(json.loads(sys.stdin.readline())))

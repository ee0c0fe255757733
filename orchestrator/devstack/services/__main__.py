"""`python -m orchestrator.devstack.services`: the sample services, or the mail service, each on a port of its own.

What it needs comes as one JSON object on standard input, so that no token is among its arguments.
Once all of them can be connected to it prints their ports, by name, as one JSON object.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from typing import Any

import uvicorn
from starlette.applications import Starlette

from orchestrator.devstack.services import crm
from orchestrator.devstack.services.admin import Backdoor
from orchestrator.devstack.services.issuer import issuer_app
from orchestrator.devstack.services.mail.api import mail_app
from orchestrator.devstack.services.mail.samples import sample_system
from orchestrator.devstack.services.mail.tokens import Tokens
from orchestrator.devstack.services.slack import Bot, slack_app
from orchestrator.devstack.services.translation import translation_app
from orchestrator.pep.access import access_tokens
from orchestrator.pep.introspection import Basic, Introspection
from orchestrator.pep.protection import Protection
from orchestrator.pep.sources import IssuerKeys, Upkeep
from orchestrator.secret import Secret

SERVICES = ("issuer", "translation", "crm", "slack")
_LEEWAY = 2
"""Seconds that the clocks of issuer and service may differ: they are of one machine."""
_UPKEEP = Upkeep(again_after=0)
"""An unknown key is asked for at once: the keys of the stack are rotated at any moment, and there are no strangers."""


def apps(config: dict[str, Any], issuer: str) -> dict[str, Starlette]:
    """The applications by name. `issuer` is the address that the issuer is reached at."""
    keys = IssuerKeys.discovered(issuer, upkeep=_UPKEEP)

    def protection(audience: str, realm: str) -> Protection:
        return Protection(access_tokens(issuer, audience, leeway=_LEEWAY), keys, realm=realm)

    admin_token = config["admin_token"]
    bots = {
        token: Bot(bot["name"], frozenset(bot["scopes"]), frozenset(bot["channels"]))
        for token, bot in config["slack_bots"].items()
    }
    return {
        "issuer": issuer_app(issuer, config["vault_address"], config["vault_token"], config["key"]),
        "translation": translation_app(protection(config["audience"], "translation"), Backdoor(admin_token)),
        "crm": crm.crm_app(protection(crm.AUDIENCE, "crm"), Backdoor(admin_token)),
        "slack": slack_app(bots, Backdoor(admin_token)),
    }


def listen() -> socket.socket:
    """A free port that already takes connections: whoever is early waits, and is not refused."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    return listener


def mail_service(config: dict[str, Any]) -> Starlette:
    """Takes the tokens of one authorization server: signed ones by its keys, opaque ones by asking it."""
    issuer = config["issuer"]
    expected = access_tokens(issuer, config["audience"], algorithms=frozenset({"ES256", "RS256"}), leeway=_LEEWAY)
    protection = Protection(expected, IssuerKeys.discovered(issuer, upkeep=_UPKEEP), realm="mail")
    introspection = None
    if (asked := config["introspection"]) is not None:
        introspection = Introspection(asked["url"], Basic(asked["client_id"], Secret(asked["secret"])))
    return mail_app(sample_system(), Tokens(protection, introspection), Backdoor(config["admin_token"]))


async def serve(config: dict[str, Any]) -> None:
    """Serve until a signal comes."""
    mail = config.get("mail")
    listeners = {name: listen() for name in (SERVICES if mail is None else ("mail",))}
    ports = {name: listener.getsockname()[1] for name, listener in listeners.items()}
    served = apps(config, f"http://127.0.0.1:{ports['issuer']}") if mail is None else {"mail": mail_service(mail)}
    servers = []
    for name, app in served.items():
        settings = uvicorn.Config(
            app, log_level="warning", lifespan="off", access_log=False, timeout_graceful_shutdown=2
        )
        servers.append(uvicorn.Server(settings).serve(sockets=[listeners[name]]))
    sys.stdout.write(json.dumps(ports) + "\n")
    sys.stdout.flush()
    await asyncio.gather(*servers)


if __name__ == "__main__":
    asyncio.run(serve(json.loads(sys.stdin.readline())))

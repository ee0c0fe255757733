"""The history of a stack as pages: `serve --ui` on its ledger, in a process of its own, which schedules nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from orchestrator.devstack.ports import free_port
from orchestrator.devstack.process import start, stop
from orchestrator.devstack.provisioned import Provisioned
from orchestrator.devstack.session import runtime_environment, without_settings
from orchestrator.errors import Unreachable

_SECONDS = 30.0
"""How long its start may take."""


@contextmanager
def history_pages(provisioned: Provisioned) -> Iterator[str]:
    """Their address, until the end. Raises Unreachable where they do not answer in time."""
    directory = provisioned.info.directory
    folder, log = directory / "nothing-scheduled", directory / "pages.log"
    folder.mkdir(exist_ok=True)
    listen = f"127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "orchestrator.cli", "serve", str(folder), "--listen", listen]
    process = start(
        [*command, "--ui", "--ui-without-login"],
        log=log,
        environment={**without_settings(), **runtime_environment(provisioned, directory)},
    )
    try:
        _wait(f"http://{listen}/healthz", lambda: process.poll() is None)
        yield f"http://{listen}/ui/"
    finally:
        stop(process)


def _wait(url: str, is_alive: Callable[[], bool]) -> None:
    import httpx

    until = time.monotonic() + _SECONDS
    while time.monotonic() < until and is_alive():
        try:
            if httpx.get(url, trust_env=False, timeout=2).is_success:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    raise Unreachable("the pages of the history do not answer", hint="pages.log in the folder of the servers says why")

"""A webhook that takes messages, for tests of who is told what."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from bench import Bench

Answer = Callable[[int], int | None]
"""The status for the n-th request, from 1; None: none ever."""


class Webhook:
    """A real HTTP server that takes messages, and looks at the database when one comes."""

    def __init__(self, bench: Bench, answer: Answer) -> None:
        self.messages: list[Any] = []
        self.logins: list[str] = []
        self.over = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                outer.logins += bench.logins()
                outer.messages.append(json.loads(body))
                status = answer(len(outer.messages))
                if status is None:
                    outer.over.wait(60)
                    return
                self.send_response(status)
                self.send_header("location", "/elsewhere")
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.secret = "".join("QXZJ"[(number * 7 + number // 3) % 4] for number in range(24))
        self.url = f"http://127.0.0.1:{self.server.server_port}/hooks/{self.secret}"


@contextmanager
def webhook(bench: Bench, answer: Answer = lambda number: 200) -> Iterator[Webhook]:
    made = Webhook(bench, answer)
    thread = threading.Thread(target=made.server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield made
    finally:
        made.over.set()
        made.server.shutdown()
        thread.join()
        made.server.server_close()

"""What a service or a database sends is bounded while it arrives: a few bytes that stand for gigabytes cost no more."""

from __future__ import annotations

import gzip
import json
import socket
import subprocess
import sys
import zlib
from collections.abc import Mapping
from functools import cache
from itertools import repeat
from typing import Any

import pytest
from database_servers import listening

from orchestrator.network.decoding import Decoder, Undecodable

MIB = 1 << 20
CHILD = """
import asyncio, json, resource, sys, time
from orchestrator.actions.base import StepContext
from orchestrator.actions.catalog import action
from orchestrator.errors import StepFailed
from orchestrator.grants.credential import Credential
from orchestrator.secret import Secret
action_name, asked, endpoints, warm = json.loads(sys.argv[1])
held = {"db": Credential("db", "database", 60, connection="support", fields={"username": Secret("postgres"),
        "password": Secret(sys.stdin.readline().strip())}),
        "bot": Credential("bot", "secret", 60, fields={"token": Secret("xoxb-nobodys")})}
async def once(given):
    context = StepContext("r", "w", "s", 1, "a", "k", time.monotonic() + 100, credentials=held, endpoints=endpoints)
    made = action(action_name)
    try:
        await made.run(made.params.model_validate(given), context)
    except StepFailed as error:
        return f"{error.kind}: {error.message}"
    return "done"
asyncio.run(once(warm))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
told = {name: asyncio.run(once(params)) for name, params in asked.items()}
print(json.dumps([told, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024]))
"""
"""Carries out an action in a process of its own, once small and then with all that is asked; what was told of each, by
its name, and the growth in MiB."""


def in_a_child(
    action: str,
    asked: Mapping[str, dict[str, Any]],
    warm: dict[str, Any],
    endpoints: dict[str, str] | None = None,
    password: str = "",
) -> tuple[dict[str, str], int]:
    ended = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps([action, asked, endpoints or {}, warm])],
        input=f"{password}\n",
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert ended.returncode == 0, ended.stderr
    told, grown = json.loads(ended.stdout)
    return told, grown


def kinds(told: Mapping[str, str]) -> set[str]:
    """Of the failures that were told."""
    return {said.partition(": ")[0] for said in told.values()}


@cache
def bomb(window: int, layers: int = 1, size: int = 128) -> bytes:
    """So many MiB of zeros, in a few hundred KiB or less."""
    packer = zlib.compressobj(9, zlib.DEFLATED, window)
    data = b"".join(map(packer.compress, repeat(bytes(MIB), size))) + packer.flush()
    for _ in range(layers - 1):
        data = gzip.compress(data, 9)
    return data


class Service:
    """Answers each path with bytes as they are."""

    def __init__(self, **answers: bytes) -> None:
        self.answers = answers

    def __call__(self, connection: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            if not (more := connection.recv(65536)):
                return
            head += more
        path = head.split(b" ")[1].rpartition(b"/")[2].decode()
        connection.sendall(self.answers[path.partition("?")[0]])


def answer(body: bytes, *, encoding: str = "", kind: str = "text/plain", headers: str = "") -> bytes:
    encoded = f"Content-Encoding: {encoding}\r\n" if encoding else ""
    head = (
        f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\n{encoded}{headers}Content-Length: {len(body)}\r\nConnection: close"
    )
    return f"{head}\r\n\r\n".encode() + body


SMALL = answer(b"{}", kind="application/json")

BOMBS = {
    "gzip": (31, 1, "gzip"),
    "zlib": (15, 1, "deflate"),
    "bare": (-15, 1, "deflate"),
    "twice": (31, 2, "gzip, gzip"),
    "old": (31, 1, "x-gzip"),
}


def test_a_compressed_answer_costs_no_more_than_its_bound() -> None:
    bombs = {name: answer(bomb(window, layers), encoding=kind) for name, (window, layers, kind) in BOMBS.items()}
    accepting = {"accept-encoding": "gzip, deflate"}
    with listening(Service(**bombs, small=SMALL)) as port:
        url = f"http://127.0.0.1:{port}"
        asked = {
            f"{name}, {how}": {"url": f"{url}/{name}", "max_bytes": 1000, "headers": headers}
            for name in BOMBS
            for how, headers in (("not asked", {}), ("asked", accepting))
        }
        told, grown = in_a_child("http.request", asked, {"url": f"{url}/small"})
    assert kinds(told) == {"output"}
    unpacked = {each for each, said in told.items() if "more than 1000 bytes" in said}
    assert unpacked == {f"{name}, asked" for name, (_, layers, _) in BOMBS.items() if layers == 1}
    assert all("cannot be read" in said for each, said in told.items() if each not in unpacked)
    assert grown < 24


def test_an_answer_of_slack_is_bounded_and_not_unpacked() -> None:
    service = Service(**{"chat.postMessage": answer(bomb(31), encoding="gzip", kind="application/json")})
    plain = Service(**{"chat.postMessage": answer(b'{"ok": true, "x": "' + b"x" * (64 * MIB), kind="application/json")})
    small = Service(**{"chat.postMessage": SMALL})
    params = {"token": "bot.token", "channel": "#x", "text": "t"}
    for large in (service, plain):
        with listening(large) as port:
            endpoints = {"slack": f"http://127.0.0.1:{port}/api/"}
            told, grown = in_a_child("slack.post_message", {"large": params}, params, endpoints)
        assert kinds(told) == {"connection"}
        assert grown < 24
    with listening(small) as port:
        endpoints = {"slack": f"http://127.0.0.1:{port}/api/"}
        told, _ = in_a_child("slack.post_message", {"small": params}, params, endpoints)
    assert told["small"].startswith("error: Slack answered")


def test_headers_are_bounded() -> None:
    many = "".join(f"X-{number}: {'x' * 1000}\r\n" for number in range(2000))
    service = Service(many=answer(b"x", headers=many), long=answer(b"x", headers=f"X: {'x' * MIB}\r\n"), small=SMALL)
    with listening(service) as port:
        url = f"http://127.0.0.1:{port}"
        asked = {path: {"url": f"{url}/{path}"} for path in ("many", "long")}
        told, grown = in_a_child("http.request", asked, {"url": f"{url}/small"})
    assert kinds(told) == {"connection"}
    assert grown < 24


@pytest.mark.parametrize("window", [31, 15, -15])
@pytest.mark.parametrize("size", [0, 1, 1000, (1 << 18) - 1, 1 << 18, (1 << 18) + 1, 3 << 18])
def test_what_is_within_the_bound_is_decoded_whole_however_it_arrives(window: int, size: int) -> None:
    data = bytes(number * 7 % 251 for number in range(size))
    packer = zlib.compressobj(9, zlib.DEFLATED, window)
    packed = packer.compress(data) + packer.flush()
    encoding = "gzip" if window == 31 else "deflate"
    for step in (1, 7, 1000, len(packed)) if len(packed) < 5000 else (1000, len(packed)):
        decoder = Decoder(encoding, accepted="gzip;q=0.5, deflate")
        chunks = [packed[start : start + step] for start in range(0, len(packed), step)]
        assert b"".join(piece for chunk in chunks for piece in decoder.pieces(chunk)) == data
        decoder.end()


@pytest.mark.parametrize("window", [31, 15, -15])
def test_what_is_left_of_a_repetition_is_not_lost_where_a_piece_is_full(window: int) -> None:
    """The last input is taken already, and what it stands for does not fit into the piece."""
    for size in range((1 << 18) - 20, (1 << 18) + 300):
        packer = zlib.compressobj(9, zlib.DEFLATED, window)
        packed = packer.compress(bytes(size)) + packer.flush()
        decoder = Decoder("gzip" if window == 31 else "deflate", accepted="*")
        assert b"".join(decoder.pieces(packed)) == bytes(size)
        decoder.end()


@pytest.mark.parametrize(
    ("encoding", "accepted", "body"),
    [
        ("br", "br", b"x"),
        ("gzip", "identity", gzip.compress(b"x", mtime=0)),
        ("gzip", "gzip;q=0, deflate", gzip.compress(b"x", mtime=0)),
        ("gzip, deflate", "*", gzip.compress(b"x", mtime=0)),
        ("gzip", "*", b"this is not gzip"),
        ("gzip", "*", gzip.compress(b"x" * 100, mtime=0)[:-9]),
        ("gzip", "*", gzip.compress(b"x", mtime=0) + gzip.compress(b"y", mtime=0)),
        ("gzip", "*", gzip.compress(b"x", mtime=0) + b"junk"),
        ("deflate", "*", b"\xff\xff\xff\xff"),
    ],
)
def test_what_is_not_what_it_claims_or_was_not_asked_for_is_refused(encoding: str, accepted: str, body: bytes) -> None:
    def decode() -> None:
        decoder = Decoder(encoding, accepted=accepted)
        b"".join(decoder.pieces(body))
        decoder.end()

    with pytest.raises(Undecodable):
        decode()


def in_a_session(stack: Any, action: str, asked: Mapping[str, dict[str, Any]]) -> tuple[dict[str, str], int]:
    """Of an administrator, so that nothing but the bound stands in the way."""
    endpoints = {"support": f"postgresql://{stack.postgres_host}:{stack.postgres_port}/postgres"}
    password = stack.admin_dsn.reveal().partition("postgres:")[2].partition("@")[0]
    return in_a_child(action, asked, {"sql": "SELECT 1 AS a"}, endpoints, password)


LARGE = {
    "one value": "SELECT repeat('x', 300000000) AS a",
    "wide rows": "SELECT " + ", ".join(f"repeat('x', 2000000) AS c{n}" for n in range(100)),
    "many rows": "SELECT repeat('x', 100) AS a FROM generate_series(1, 20000000)",
    "rows that grow": "SELECT repeat('x', (10 ^ n)::int) AS a FROM generate_series(1, 8) AS n",
    "an array": "SELECT array_agg(repeat('x', 1000)) AS a FROM generate_series(1, 200000)",
    "bytes": "SELECT convert_to(repeat('x', 100000000), 'UTF8') AS a",
}


def test_what_a_query_returns_is_bounded_while_it_arrives(stack: Any) -> None:
    asked = {name: {"sql": sql, "max_bytes": 1_000_000, "max_rows": 10**8} for name, sql in LARGE.items()}
    told, grown = in_a_session(stack, "postgres.query", asked)
    assert kinds(told) == {"output"}
    assert grown < 40


SAID = {
    "a row": "SELECT repeat('x', 300000000)",
    "an error": "DO $$ BEGIN RAISE EXCEPTION '%', repeat('x', 300000000); END $$",
    "notices": "DO $$ BEGIN FOR n IN 1..100 LOOP RAISE NOTICE '%', repeat('x', 3000000); END LOOP; END $$",
}


def test_what_an_execution_makes_the_server_say_is_bounded_too(stack: Any) -> None:
    told, grown = in_a_session(stack, "postgres.execute", {name: {"sql": sql} for name, sql in SAID.items()})
    assert kinds(told) == {"output"}
    assert grown < 100


def test_what_is_within_the_bound_arrives_whole(stack: Any) -> None:
    sql = "SELECT n, repeat('x', 1000) AS a FROM generate_series(1, 900) AS n"
    told, _ = in_a_session(stack, "postgres.query", {"whole": {"sql": sql, "max_bytes": 1_000_000}})
    assert told == {"whole": "done"}

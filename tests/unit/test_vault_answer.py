"""What is taken for an answer of Vault's and what is not, byte by byte over a real socket."""

from __future__ import annotations

import socket
import threading
from http.client import HTTPException
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.vault.answer import LARGEST_BODY, Answer, LeanResponse


def read(*pieces: bytes, method: str = "GET", close: bool = True) -> Answer:
    """What is read when a peer sends these pieces, one after another."""
    ours, peers = socket.socketpair()

    def send() -> None:
        with peers:
            try:
                for piece in pieces:
                    peers.sendall(piece)
                if not close:
                    peers.recv(1)
            except OSError:
                pass  # it was not read to its end

    sender = threading.Thread(target=send)
    sender.start()
    ours.settimeout(10)
    try:
        return LeanResponse(ours, method=method).answer()
    finally:
        ours.close()
        sender.join()


WITH_LENGTH = (
    b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nretry-after:  7 \r\nContent-Length: 8\r\n\r\n{"a": 1}'
)
CHUNKED = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    b'3;of=something\r\n{"a\r\n5\r\n": 1}\r\n0\r\nTrailer: x\r\n\r\n'
)


@pytest.mark.parametrize("text", [WITH_LENGTH, CHUNKED], ids=["by length", "in chunks"])
def test_an_answer_ends_where_it_says_and_the_connection_goes_on(text: bytes) -> None:
    answer = read(text, close=False)
    assert (answer.status, answer.reason, answer.content, answer.reusable) == (200, "OK", b'{"a": 1}', True)


def test_names_of_fields_are_found_however_they_are_spelled() -> None:
    assert read(WITH_LENGTH).headers["Retry-After"] == "7"


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([WITH_LENGTH, CHUNKED]), st.lists(st.integers(0, 200), max_size=12))
def test_in_whatever_pieces_it_arrives_it_is_the_same(text: bytes, cuts: list[int]) -> None:
    ends = sorted({min(cut, len(text)) for cut in cuts} | {0, len(text)})
    pieces = [text[begin:end] for begin, end in pairwise(ends)]
    assert read(*pieces, close=False) == read(text, close=False)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([WITH_LENGTH, CHUNKED]), st.data())
def test_an_answer_that_breaks_off_anywhere_is_none(text: bytes, data: st.DataObject) -> None:
    whole = text.index(b"0\r\nTrailer") if text is CHUNKED else len(text)  # after the last chunk nothing is missing
    end = data.draw(st.integers(0, whole - 1))
    with pytest.raises((HTTPException, OSError)):
        read(text[:end])


@pytest.mark.parametrize(
    ("text", "method"),
    [
        pytest.param(b"HTTP/1.1 204 No Content\r\nDate: x\r\n\r\n", "PUT", id="204"),
        pytest.param(b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", "PUT", id="204-that-says-it-is-empty"),
        pytest.param(b"HTTP/1.1 200 \r\nContent-Length: 0\r\n\r\n", "GET", id="no-reason"),
        pytest.param(b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", "GET", id="no-reason-and-no-space"),
        pytest.param(
            b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 N\r\n\r\n",
            "PUT",
            id="after-interim-answers",
        ),
    ],
)
def test_an_answer_without_a_body_does_not_wait_for_one(text: bytes, method: str) -> None:
    answer = read(text, method=method, close=False)
    assert (answer.status in (200, 204), answer.content, answer.reusable) == (True, b"", True)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(b"HTTP/1.1 200 OK\r\n\r\n{}", id="until-it-closes"),
        pytest.param(b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n{}", id="of-1.0"),
        pytest.param(b"HTTP/1.1 200 OK\r\nConnection: Close\r\nContent-Length: 2\r\n\r\n{}", id="that-says-so"),
    ],
)
def test_a_connection_that_does_not_go_on_is_not_used_again(text: bytes) -> None:
    answer = read(text)
    assert (answer.content, answer.reusable) == (b"{}", False)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(b"\x00\xffthis is not HTTP\r\n\r\n", id="garbage"),
        pytest.param(b"", id="nothing"),
        pytest.param(b"HTTP/2 200 OK\r\n\r\n", id="another-version"),
        pytest.param(b"HTTP/1.1 99 Low\r\n\r\n", id="a-status-of-two-digits"),
        pytest.param(b"HTTP/1.1 2000 High\r\n\r\n", id="a-status-of-four-digits"),
        pytest.param(b"HTTP/1.1 100 Continue\r\n\r\n" * 50, id="interim-answers-without-end"),
        pytest.param(b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n", id="a-field-without-a-colon"),
        pytest.param(b"HTTP/1.1 200 OK\r\nA: b\r\n folded\r\n\r\n", id="a-folded-field"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\n{}", id="a-space-in-a-name"),
        pytest.param(b"HTTP/1.1 200 OK\r\nA: " + b"x" * 70_000 + b"\r\n\r\n", id="a-field-without-end"),
        pytest.param(b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 300, id="fields-without-end"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{} ", id="two-lengths"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 2, 3\r\n\r\n{} ", id="two-lengths-in-one"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\n{}", id="a-negative-length"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\n{}", id="a-signed-length"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 1_0\r\n\r\n{}", id="a-length-of-python"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 400 + b"\r\n\r\n{}", id="a-length-of-400-digits"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
            id="a-length-and-chunks",
        ),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n{}", id="another-coding"),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n", id="a-chunk-without-size"),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\n{}\r\n", id="a-negative-chunk"),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffff\r\n{}", id="a-huge-chunk"),
        pytest.param(b"HTTP/1.1 204 No Content\r\nContent-Length: 2\r\n\r\n{}", id="204-with-a-body"),
        pytest.param(
            b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", id="204-with-chunks"
        ),
    ],
)
def test_what_is_no_answer_is_taken_for_none(text: bytes) -> None:
    with pytest.raises((HTTPException, OSError)):
        read(text)


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n"])
def test_a_body_that_does_not_say_its_length_is_read_up_to_the_same_limit(head: bytes) -> None:
    size = 1024 * 1024
    piece = b"x" * size if b"chunked" not in head else b"%x\r\n%s\r\n" % (size, b"x" * size)
    with pytest.raises(HTTPException, match="too large"):
        read(head, *[piece] * 20)


def test_a_body_that_says_that_it_is_too_long_is_not_even_begun() -> None:
    with pytest.raises(HTTPException, match="too large"):
        read(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n{}" % (LARGEST_BODY + 1), close=False)


def test_what_an_answer_holds_is_not_shown() -> None:
    assert repr(read(WITH_LENGTH)) == "Answer(status=200, reason='OK', reusable=True)"

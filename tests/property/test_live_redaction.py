"""What steps print while they run: in whatever pieces it comes, no secret is told, and the same lines are."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_redaction_by_accident import b64, folded, hexdump, xxd

from orchestrator.redaction.live_lines import LONGEST_LINE, LiveLines
from orchestrator.redaction.redactor import Redactor
from orchestrator.secret import Secret

SECRETS = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=16, max_size=40).filter(
    lambda text: len(set(text)) > 8
)
ARMOUR = ["-----BEGIN PRIVATE KEY-----", "-----END PRIVATE KEY-----"]
PEM = f"{ARMOUR[0]}\nMIIEvQIBADANBgkqhkiG9w0B\nAQEFAASCBKcwggSjAgEAAoIB\nAQC7VJTUt9Us8cKj\n{ARMOUR[1]}"
FORMS: dict[str, Callable[[str], str]] = {
    "plain": str,
    "base64": lambda text: b64(text.encode()),
    "base64 of more": lambda text: b64(f"user:{text}\n".encode()),
    "base64url": lambda text: base64.urlsafe_b64encode(text.encode()).decode(),
    "base64 of base64": lambda text: b64(b64(f"user:{text}".encode()).encode()),
    "hex": lambda text: text.encode().hex(),
    "percent": lambda text: "".join(f"%{ord(char):02X}" for char in text),
    "URL": lambda text: f"https://u:{quote(text, safe='')}@host/x",
    "JSON": lambda text: json.dumps({"password": text}),
    "JSON escapes": lambda text: "".join(f"\\u{ord(char):04x}" for char in text),
    "repr": lambda text: repr({"password": text}),
    "numbers": lambda text: " ".join(map(str, text.encode())),
    "in lines": lambda text: folded(text, 5),
    "in indented lines": lambda text: folded(text, 7).replace("\n", "\r\n    "),
    "in continued lines": lambda text: folded(text, 6).replace("\n", "\\\n  "),
    "a character a line": lambda text: folded(text, 1),
    "base64 in lines": lambda text: folded(b64(f"the password is {text}".encode()), 20),
    "base64 of base64 in lines": lambda text: folded(b64(b64(f"user:{text}".encode()).encode()), 24),
    "hex in lines": lambda text: folded(text.encode().hex(), 16),
    "xxd": lambda text: xxd(text.encode()),
    "hexdump": lambda text: hexdump(text.encode()),
}
WORDS = """the customer said that 42 parcels of 2026-11-26 are in /var/lib/postgresql/18/main Größe 日本 deadbeef
internationalization eu-central-1 100% ---------- [12/80] 3f8a1c postgresql://"""
ORDINARY = st.lists(st.sampled_from([*WORDS.split(), "\n", "\r\n", "\t"]), max_size=14).map(" ".join)


def told(redactor: Redactor, pieces: Sequence[bytes], *, pauses: Sequence[int] = ()) -> list[str]:
    stream, lines = LiveLines(redactor), []
    for number, piece in enumerate(pieces):
        lines += stream.feed(piece)
        if number in pauses:
            lines += stream.pause()
    return [*lines, *stream.end()]


def cut(data: bytes, places: Sequence[int]) -> list[bytes]:
    at = sorted({place % (len(data) + 1) for place in places})
    return [data[start:end] for start, end in zip([0, *at], [*at, len(data)], strict=True)]


def parts_of(secret: str, text: str, length: int) -> list[str]:
    """Pieces of so many characters that a text has of a secret."""
    return [secret[at : at + length] for at in range(len(secret) - length + 1) if secret[at : at + length] in text]


PLACES = st.lists(st.integers(0, 4000), max_size=25)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@settings(max_examples=20)
@given(st.lists(SECRETS, min_size=1, max_size=2), ORDINARY, ORDINARY, PLACES)
def test_in_any_pieces_the_same_lines_are_told_and_none_has_a_secret(
    form: Callable[[str], str], secrets: list[str], before: str, after: str, places: list[int]
) -> None:
    redactor = Redactor(map(Secret, secrets))
    data = f"{before} {form(secrets[0])} {after}\n{form(secrets[-1])}\n{after}".encode()
    whole = told(redactor, [data])
    assert told(redactor, cut(data, places)) == whole
    assert told(redactor, [bytes([byte]) for byte in data]) == whole
    assert not redactor.find("\n".join(whole))
    assert not any(secret in "".join(whole).replace(" ", "") for secret in secrets)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@settings(max_examples=20)
@given(SECRETS, ORDINARY, PLACES, st.sets(st.integers(0, 25)))
def test_pauses_give_nothing_away_either(
    form: Callable[[str], str], secret: str, before: str, places: list[int], pauses: set[int]
) -> None:
    redactor = Redactor([Secret(secret)])
    made = form(secret)
    lines = told(redactor, cut(f"{before}\n{made}\nthat was it\n".encode(), places), pauses=sorted(pauses))
    assert not redactor.find("\n".join(lines))
    assert "that was it".endswith(lines[-1])


@given(SECRETS, st.data())
def test_of_a_secret_in_two_halves_with_a_pause_in_between_no_half_is_told(secret: str, data: st.DataObject) -> None:
    form = data.draw(st.sampled_from([str, FORMS["base64"], FORMS["hex"], FORMS["base64url"]]))(secret)
    place = data.draw(st.integers(4, len(form) - 1))
    for between in ("", "\n", "\n   ", "\\\n"):
        stream = LiveLines(Redactor([Secret(secret)]))
        first = stream.feed(f"begin\nx {form[:place]}{between}".encode()) + stream.pause() + stream.pause()
        assert first[:1] == ["begin"]
        rest = [*stream.feed(f"{form[place:]}\nafter\n".encode()), *stream.end()]
        said = "".join([*first, *rest])
        assert form[:place] not in said
        assert form[place:] not in said or len(form) - place < 4
        assert rest[-1] == "after"


@given(SECRETS, st.integers(6, 15), st.sampled_from(["", "\n"]))
def test_what_was_cut_off_in_the_middle_of_a_secret_is_masked(secret: str, length: int, end: str) -> None:
    lines = told(Redactor([Secret(secret)]), [f"it is {secret[:length]}{end}".encode()])
    assert not parts_of(secret[:length], "".join(lines), 4)
    assert lines == ["it is ***"] or lines == ["***"] or "***" in lines[0]


@given(SECRETS, st.integers(1, 15))
def test_what_follows_a_gap_is_no_rest_of_a_secret(secret: str, place: int) -> None:
    redactor = Redactor([Secret(secret)])
    stream = LiveLines(redactor)
    lines = [*stream.feed(f"it is {secret[:place]}".encode()), *stream.gap()]
    lines += stream.feed(f"{secret[place:]} and more\n".encode())
    lines += stream.feed(b"x" * redactor.reach + b"\nclear again\n")
    lines += stream.end()
    assert lines.pop() == "clear again"
    for half in (secret[:place], secret[place:]):
        assert half not in "".join(lines) or len(half) < 4


@given(SECRETS, st.integers(LONGEST_LINE - 60, LONGEST_LINE + 20), st.lists(st.integers(0, 20000), max_size=6))
def test_a_line_without_an_end_is_broken_and_no_secret_with_it(secret: str, before: int, places: list[int]) -> None:
    redactor = Redactor([Secret(secret)])
    data = f"{'word ' * 5000}"[:before].encode() + secret.encode() + b" and so on"
    whole = told(redactor, [data])
    assert told(redactor, cut(data, places)) == whole
    assert not redactor.find("\n".join(whole))
    assert not parts_of(secret, "".join(whole), 6)
    assert all(len(line) <= LONGEST_LINE for line in whole)


def test_each_line_of_a_secret_of_several_lines_is_masked_however_it_comes() -> None:
    redactor = Redactor([Secret(PEM)])
    data = f"key:\n{PEM}\nthat was it\n".encode()
    whole = told(redactor, [data])
    assert told(redactor, [bytes([byte]) for byte in data]) == whole
    assert whole == ["key:", ARMOUR[0], "***", "***", "***", ARMOUR[1], "that was it"]


def test_ordinary_lines_are_told_at_once() -> None:
    stream = LiveLines(Redactor([Secret("q7w3-canary-of-a-step")]))
    for line in ("starting", "12 of 80 rows", "Größe: 日本", "", "\tdone."):
        assert stream.feed(f"{line}\n".encode()) == [line]
    assert not stream.waits


def test_a_path_at_the_end_of_a_line_waits_for_a_pause_at_most() -> None:
    stream = LiveLines(Redactor([Secret("q7w3-canary-of-a-step")]))
    assert stream.feed(b"reading /var/lib/postgresql/18/main\n") == []
    assert stream.waits
    assert stream.pause() == ["reading /var/lib/postgresql/18/main"]
    assert stream.pause() == []
    assert not stream.waits
    assert stream.feed(b"done\n") == ["done"]


def test_of_a_line_without_an_end_whole_words_are_told_after_a_pause_and_the_rest_later() -> None:
    stream = LiveLines(Redactor([Secret("q7w3-canary-of-a-step")]))
    assert stream.feed(b"counting rows: q7w") == []
    assert stream.pause() == ["counting rows:"]
    assert stream.pause() == []
    assert stream.feed(b"!\n") == ["q7w!"]
    assert stream.feed(b"last words") + stream.pause() + stream.end() == ["last", "words"]


def test_characters_that_come_in_halves_are_whole_and_those_that_are_none_are_marked() -> None:
    redactor = Redactor([Secret("grün-日本-canary-of-a-step")])
    data = "grün-日本-canary-of-a-step\n日本\n".encode() + b"\xff\xfe\n"
    assert told(redactor, [bytes([byte]) for byte in data]) == ["***", "日本", "\ufffd\ufffd"]


def test_memory_is_bounded_whatever_is_written() -> None:
    stream = LiveLines(Redactor([Secret("q7w3-canary-of-a-step")]))
    stream.feed(b"q7w3-canary-\n" + b"\n" * 2000)
    assert len(stream._held) <= 512
    stream.feed(b"x" * 1_000_000)
    assert sum(len(line.text) + 1 for line in stream._held) <= 2 * LONGEST_LINE
    assert len(stream._partial) <= LONGEST_LINE

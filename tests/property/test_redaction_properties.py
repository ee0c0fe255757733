"""Whatever the secret, its surroundings and its encoding: it is found, and it is gone afterwards."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from urllib.parse import quote, quote_plus

from hypothesis import assume, given
from hypothesis import strategies as st

from orchestrator.redaction.redactor import MASK, SHORTEST, Redactor
from orchestrator.secret import Secret

LINES = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=8, max_size=30)
ANY = st.characters(exclude_categories=["Cs"])
SECRETS = st.text(ANY, min_size=SHORTEST, max_size=60)
TEXTS = st.text(ANY, max_size=80)
PRINTABLE_SECRETS = st.text(
    st.characters(min_codepoint=33, max_codepoint=0x2FFF, exclude_categories=["Cs", "Cc"]),
    min_size=SHORTEST,
    max_size=40,
)


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _url_safe(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _mime(text: str) -> str:
    return base64.encodebytes(text.encode()).decode()


def _hex(text: str) -> str:
    return text.encode().hex()


def _json(text: str) -> str:
    return json.dumps(text)


def _json_utf8(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _percent(text: str) -> str:
    return quote(text, safe="")


def _percent_every(text: str) -> str:
    return "".join(f"%{byte:02x}" for byte in text.encode())


def _plain(text: str) -> str:
    return text


ENCODERS = st.sampled_from(
    [_plain, _base64, _url_safe, _mime, _hex, _json, _json_utf8, _percent, quote_plus, _percent_every, repr]
)


@given(SECRETS, TEXTS, TEXTS, TEXTS, TEXTS, ENCODERS)
def test_a_secret_anywhere_inside_an_encoded_text_is_found_and_removed(
    secret: str, before: str, after: str, left: str, right: str, encode: Callable[[str], str]
) -> None:
    redactor = Redactor([Secret(secret)])
    encoded = encode(before + secret + after)
    text = f"{left} {encoded} {right}"
    assert redactor.find(text)
    clean = redactor.redact(text)
    assert not redactor.find(clean)
    assert secret not in clean


@given(SECRETS, TEXTS, ENCODERS, ENCODERS)
def test_redaction_is_idempotent(
    secret: str, text: str, encode: Callable[[str], str], also: Callable[[str], str]
) -> None:
    redactor = Redactor([Secret(secret)])
    once = redactor.redact(encode(text + secret) + also(secret))
    assert redactor.redact(once) == once


@given(PRINTABLE_SECRETS, st.text(st.sampled_from("xyz \n"), max_size=30))
def test_the_surroundings_of_a_plain_secret_stay(secret: str, around: str) -> None:
    redactor = Redactor([Secret(secret)])
    assume(not redactor.find(around + MASK + around))
    assert redactor.redact(f"{around} {secret} {around}") == f"{around} {MASK} {around}"


@given(st.lists(SECRETS, min_size=1, max_size=4), TEXTS, ENCODERS)
def test_no_secret_of_several_survives(secrets: list[str], text: str, encode: Callable[[str], str]) -> None:
    redactor = Redactor(map(Secret, secrets))
    clean = redactor.redact(text.join(map(encode, secrets)))
    assert not any(secret in clean for secret in secrets)
    assert not redactor.find(clean)


@given(st.lists(LINES, min_size=2, max_size=5), ENCODERS)
def test_each_line_of_a_secret_of_several_lines_is_found_alone(lines: list[str], encode: Callable[[str], str]) -> None:
    redactor = Redactor([Secret("\n".join(lines))])
    assert all(redactor.find(f"x {encode(line)} y") for line in lines)


@given(SECRETS, TEXTS)
def test_a_secret_is_found_as_a_key_as_a_value_and_in_depth(secret: str, text: str) -> None:
    redactor = Redactor([Secret(secret)])
    assert redactor.contains({text: [1, {"deep": [None, text + secret]}]})
    assert redactor.contains([{_base64(secret): True}])


@given(SECRETS, st.text(st.sampled_from("ab "), max_size=200))
def test_a_text_without_the_secret_is_returned_as_it_is(secret: str, text: str) -> None:
    if secret not in text:
        assert Redactor([Secret(secret)]).redact(text) == text

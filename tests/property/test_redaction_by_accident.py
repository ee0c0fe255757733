"""Forms that tools give a secret by accident are found, in whatever surroundings; ordinary data is taken for none."""

from __future__ import annotations

import base64
import gzip
import html
import json
import zlib
from collections.abc import Callable
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.actions.output import check_output
from orchestrator.errors import OutputRefused
from orchestrator.jsontypes import JsonValue
from orchestrator.redaction.forms import recognisable
from orchestrator.redaction.layers import BETWEEN, decoded
from orchestrator.redaction.redactor import Redactor
from orchestrator.secret import Secret

SECRETS = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=16, max_size=48).filter(
    lambda text: len(set(text)) > 8
)
AROUND = st.text(st.sampled_from("abc XYZ 019 ,.:;_()"), max_size=40)
COLUMNS = st.integers(5, 76)


def b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def folded(text: str, columns: int) -> str:
    return "\n".join(text[start : start + columns] for start in range(0, len(text), columns))


def xxd(raw: bytes) -> str:
    lines = []
    for start in range(0, len(raw), 16):
        row = raw[start : start + 16]
        pairs = " ".join(row[at : at + 2].hex() for at in range(0, len(row), 2))
        shown = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
        lines.append(f"{start:08x}: {pairs:<39}  {shown}")
    return "\n".join(lines)


def hexdump(raw: bytes) -> str:
    return "\n".join(f"{at:08x}  {raw[at : at + 16].hex(' ')}  |...|" for at in range(0, len(raw), 16))


def mixed(text: str) -> str:
    return "".join(char.upper() if place % 3 else char for place, char in enumerate(text))


FORMS: dict[str, Callable[[str], JsonValue]] = {
    "Node's Buffer": lambda text: {"type": "Buffer", "data": list(text.encode())},
    "Buffer in a string": lambda text: json.dumps({"type": "Buffer", "data": list(text.encode())}, indent=2),
    "list of Python": lambda text: str(list(text.encode())),
    "bytes of Go": lambda text: f"[{' '.join(map(str, text.encode()))}]",
    "hex with colons": lambda text: text.encode().hex(":"),
    "hex with dashes": lambda text: text.encode().hex("-").upper(),
    "hex with spaces": lambda text: text.encode().hex(" "),
    "hex of mixed case": lambda text: mixed(text.encode().hex()),
    "hex after a digit": lambda text: "0" + mixed(text.encode().hex()),
    "array of C": lambda text: ", ".join(f"0x{byte:02x}" for byte in text.encode()),
    "xxd": lambda text: xxd(text.encode()),
    "hexdump": lambda text: hexdump(text.encode()),
    "base64 twice": lambda text: b64(b64(f"user:{text}".encode()).encode()),
    "docker in Kubernetes": lambda text: b64(
        json.dumps({"auths": {"h": {"auth": b64(b"u:" + text.encode())}}}).encode()
    ),
    "PowerShell": lambda text: b64(f"echo {text}".encode("utf-16-le")),
    "UTF-16 as bytes": lambda text: text.encode("utf-16-le").decode("latin-1"),
    "gzip in base64": lambda text: b64(gzip.compress(f"password={text}\n".encode())),
    "zlib in base64": lambda text: b64(zlib.compress(f"password={text}\n".encode())),
    "gzip in a data URL": lambda text: "data:application/gzip;base64," + b64(gzip.compress(text.encode())),
    "gzip in base64 in a Kubernetes secret": lambda text: b64(
        json.dumps({"config": b64(gzip.compress(f"password={text}\n".encode()))}).encode()
    ),
    "base32": lambda text: base64.b32encode(f"x{text}".encode()).decode(),
    "octal": lambda text: "".join(f"\\{byte:03o}" for byte in text.encode()),
    "octal here and there": lambda text: "".join(c if c.isalnum() else f"\\{ord(c):03o}" for c in text),
    "entities": lambda text: "".join(f"&#{ord(char)};" for char in text),
    "entities in hex": lambda text: "".join(f"&#x{ord(char):X};" for char in text),
    "escaped for HTML": lambda text: f'<b title="{html.escape(text)}">',
    "URL twice": lambda text: quote(quote(text, safe=""), safe=""),
    "quoted-printable": lambda text: "".join(f"={byte:02X}" for byte in text.encode()),
    "colours": lambda text: f"{text[:5]}\x1b[01;31m\x1b[K{text[5:9]}\x1b[m\x1b[K{text[9:]}",
    "a link of a terminal": lambda text: f"{text[:7]}\x1b]8;;http://x\x1b\\{text[7:]}\x1b]8;;\x07",
    "a space that is not seen": lambda text: f"{text[:6]}\u200b{text[6:]}",
    "a soft hyphen": lambda text: f"{text[:6]}\u00ad{text[6:]}",
    "a continued line": lambda text: f"{text[:8]}\\\n    {text[8:]}",
}


def refused(value: JsonValue, secret: str) -> bool:
    try:
        check_output({"v": value}, redactor=Redactor([Secret(secret)], only=recognisable), limit_bytes=1 << 20)
    except OutputRefused as error:
        assert secret not in str(error)
        return True
    return False


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@settings(max_examples=25)
@given(SECRETS, AROUND, AROUND)
def test_an_output_with_a_secret_in_this_form_is_refused(
    form: Callable[[str], JsonValue], secret: str, before: str, after: str
) -> None:
    made = form(secret)
    assert refused(made, secret)
    if isinstance(made, str) and "\n" not in made:
        assert refused([1, f"{before} {made} {after}"], secret)
        redacted = Redactor([Secret(secret)]).redact(f"{before} {made} {after}")
        assert not Redactor([Secret(secret)]).find(redacted)


@given(SECRETS, COLUMNS, st.sampled_from(["\n", "\r\n", "\n  "]), AROUND)
def test_a_secret_that_was_broken_into_lines_is_found(secret: str, columns: int, brk: str, before: str) -> None:
    for text in (secret, b64(secret.encode()), b64(gzip.compress(secret.encode())), secret.encode().hex()):
        assert refused(f"{before}:\n{folded(text, columns)}".replace("\n", brk), secret)


ORDINARY_WORDS = (
    "the customer said that delivery was late and parcel broken please send another Passwort Größe naïve 2026 42 "
    "application/json internationalization counterrevolutionaries https://example.com/a/b?c=d e-mail user@example.com "
    "eu-central-1 v10.12.3 10.0.12.34 2026-11-26T12:00:00+00:00 &amp; <b> 100% C:\\temp\\new -----"
)
WORDS = st.sampled_from(ORDINARY_WORDS.split())
PROSE = st.lists(WORDS, max_size=60).map(" ".join)
ORDINARY = st.one_of(
    PROSE,
    PROSE.map(lambda text: text.replace(" ", "\n")),
    st.uuids().map(str),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.booleans(),
    st.none(),
    st.datetimes().map(str),
    st.binary(max_size=60).map(b64),
    st.binary(max_size=60).map(bytes.hex),
    st.binary(max_size=60).map(lambda raw: raw.hex(":")),
    st.lists(st.integers(0, 255), max_size=60),
    st.binary(min_size=1, max_size=200).map(lambda raw: b64(gzip.compress(raw))),
)
ROWS = st.lists(st.dictionaries(st.sampled_from(["id", "kind", "comment", "ref"]), ORDINARY), max_size=12)


@given(st.lists(SECRETS.filter(recognisable), min_size=1, max_size=8), ROWS)
def test_ordinary_rows_are_never_refused(secrets: list[str], rows: JsonValue) -> None:
    redactor = Redactor(map(Secret, secrets), only=recognisable)
    plain = json.dumps(rows, ensure_ascii=False)
    if not any(secret in plain for secret in secrets):
        check_output(rows, redactor=redactor, limit_bytes=1 << 20)


@pytest.mark.parametrize("secret", ["hunter22", "sommer2024", "McDonald"])
def test_one_word_after_another_is_no_broken_secret(secret: str) -> None:
    middle = len(secret) - 4
    for gap in (" ", "\n", "\n  ", "\x1b[0m \x1b[1m"):
        assert not refused(f"in {secret[:middle]}{gap}{secret[middle:]} we", secret)


def test_bombs_among_what_is_looked_into_cost_no_more_than_one_bound() -> None:
    bombs = [b64(gzip.compress(bytes([number]) * (50 << 20), 9)) for number in range(3)]
    assert len(decoded(BETWEEN.join(bombs))) < 2 << 20
    assert not refused(list(bombs), "k3v9w2m7q4xa-passing")


@given(st.text(max_size=300))
def test_no_text_breaks_the_search(text: str) -> None:
    Redactor([Secret("k3v9w2m7q4xa-passing")]).find(text)


@given(st.text(st.sampled_from("0123456789abcdefABCDEF:,- \n\\x=%&;#[]\x1b\x00H4sI+/_"), max_size=300))
def test_no_text_of_encodings_breaks_the_search(text: str) -> None:
    Redactor([Secret("k3v9w2m7q4xa-passing")]).find(text)

"""The search that every session ends with finds what it is there for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from escaped import PASSWORD_LETTERS, escaped_secrets, holds_secret

SECRETS = {
    "password": (PASSWORD_LETTERS * 5).encode(),
    "token": b"s." + b"a1B2" * 6,
    "token of HashiCorp's Vault": b"hvs.CAESI" + b"a1B2" * 6,
    "jwt": b"eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJub2JvZHkifQ." + b"c2ln" * 6,
    "slack": b"xoxb-0123456789",
}
HARMLESS = {
    "a shorter password": PASSWORD_LETTERS.encode() * 4 + b"QXZ",
    "a name that ends in s": b"columns." + b"a1B2" * 6,
    "an id in a namespace, and the next column": b"a1B2" * 5 + b"ahvs.W5aZZhread-nji4brhuqnsp2026",
    "a longer word": b"s." + b"a1B2" * 6 + b"x",
    "two parts": b"eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJub2JvZHkifQ",
}


@pytest.mark.parametrize("secret", SECRETS.values(), ids=SECRETS)
@pytest.mark.parametrize("around", [b"%s", b'{"a": "%s"}', b"\0%s\xff", b"x s. %s", b"Q %s"])
def test_every_kind_of_secret_is_found(secret: bytes, around: bytes) -> None:
    assert holds_secret(around.replace(b"%s", secret))


@pytest.mark.parametrize("text", HARMLESS.values(), ids=HARMLESS)
def test_what_is_no_secret_is_not(text: bytes) -> None:
    assert not holds_secret(b" %b " % text)


@pytest.mark.parametrize("secret", SECRETS.values(), ids=SECRETS)
@pytest.mark.parametrize("offset", [0, 100, (1 << 20) - 30, (1 << 20) - 3, (1 << 20), 3 << 20])
def test_it_is_found_anywhere_in_a_file_and_in_every_folder(secret: bytes, offset: int, tmp_path: Path) -> None:
    (tmp_path / "clean").write_bytes(b" " * (4 << 20))
    (tmp_path / "a" / "b").mkdir(parents=True)
    written = tmp_path / "a" / "b" / "sparse"
    written.touch()
    os.truncate(written, 1 << 40)
    with written.open("r+b") as file:
        file.write(b" " * offset + secret)
    assert escaped_secrets([tmp_path]) == [str(written)]
    written.unlink()

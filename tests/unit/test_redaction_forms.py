from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.redaction.forms import recognisable
from orchestrator.redaction.redactor import Redactor
from orchestrator.secret import Secret

BY_CHANCE = [
    "", "1", "true", "null", "prod", "hunter2", "production", "Production", "PRODUCTION", "eu-central-1",
    "us-east-1a", "support-desk", "2026-11-26", "20261126", "10.0.12.34", "192.168.178.200", "localhost:5432",
    "v10.12.3", "ubuntu-22.04", "1234567890", "--------", "........................", "000000000000000000",
    "häufigkeit", "notifications", "one two three",
]  # fmt: skip

SECRETS = [
    "hunter22", "Passw0rd!", "k3v9w2m7", "abcdefgh-1234-token", "correct-horse-battery-staple", "qwertzuiopasdfgh",
    "4929123412341234", "QXZJQXZJQXZJQXZJQXZJQXZJ", "xoxb-123456789012-abcdef", "s.AbCdEfGhIjKlMnOpQrStUvWx",
    "McDonald", "sommer2024", "8f14e45f-ceea-467f-9575-6d1a1a2d7b3e", "pa$$word", "correct!horse",
]  # fmt: skip


@pytest.mark.parametrize("value", BY_CHANCE)
def test_what_is_met_by_chance_is_no_reason_to_refuse(value: str) -> None:
    assert not recognisable(value)


@pytest.mark.parametrize("value", SECRETS)
def test_what_a_text_can_only_have_from_the_secret_is_one(value: str) -> None:
    assert recognisable(value)


@given(st.binary(min_size=12, max_size=40).map(lambda raw: base64.urlsafe_b64encode(raw).decode()))
def test_what_a_machine_drew_from_twelve_bytes_on_is_recognisable(value: str) -> None:
    assert recognisable(value) or len(set(value)) < 3


@given(st.text(max_size=30))
def test_a_row_of_one_character_is_never_recognisable(text: str) -> None:
    assert not recognisable(text[:1] * len(text))


def test_a_redactor_of_recognisable_values_keeps_no_other_not_even_as_a_line() -> None:
    redactor = Redactor([Secret("production"), Secret("1"), Secret("user: k3v9w2m7\nstaging-eu\n")], only=recognisable)
    for text in ("production", "in production", "1", "staging-eu", "cHJvZHVjdGlvbg=="):
        assert not redactor.find(text)
    assert redactor.find("the line user: k3v9w2m7 of it")
    redactor.forget(until=0, keep=0)
    assert redactor.find("the line user: k3v9w2m7 of it")
    redactor.add(Secret("another-K3v9w2m7"))
    redactor.forget(until=redactor.position, keep=1)
    assert not redactor.find("the line user: k3v9w2m7 of it")
    assert redactor.find("x another-K3v9w2m7 y")

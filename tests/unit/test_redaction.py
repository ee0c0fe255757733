from __future__ import annotations

import base64
import logging
import sys
import threading

import pytest

from orchestrator.redaction.redactor import MASK, RedactingFilter, Redactor, _forms_of, redact_exception
from orchestrator.secret import Secret

CANARY = "canary-7f3a9/+!x"


@pytest.fixture
def redactor() -> Redactor:
    return Redactor([Secret(CANARY)])


def logged(record: logging.LogRecord, redactor: Redactor) -> str:
    assert RedactingFilter(redactor).filter(record)
    return logging.Formatter("%(message)s %(extra)s").format(record)


def test_a_short_secret_is_recognised_only_as_the_whole_text() -> None:
    redactor = Redactor([Secret("ab1")])
    assert redactor.redact("ab1") == "***"
    assert redactor.redact("YWIx") == "***"
    assert redactor.redact("cab1n") == "cab1n"
    assert redactor.contains({"pin": "ab1"})
    assert not redactor.contains({"pin": "cab1n"})


def test_an_empty_secret_matches_nothing() -> None:
    redactor = Redactor([Secret("")])
    assert not redactor.find("")
    assert redactor.redact("text") == "text"


def test_the_armour_of_a_pem_file_is_not_a_secret() -> None:
    pem = "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0B\nAQEFAASCBKcwggSj\n-----END PRIVATE KEY-----\n"
    redactor = Redactor([Secret(pem)])
    assert redactor.find("x MIIEvQIBADANBgkqhkiG9w0B")
    assert not redactor.find("-----BEGIN PRIVATE KEY-----")


def test_a_secret_that_is_a_number_is_found_in_a_json_number() -> None:
    assert Redactor([Secret("90210777")]).contains({"pin": 90210777})


def test_a_secret_encoded_twice_masks_the_whole_text(redactor: Redactor) -> None:
    from urllib.parse import quote

    twice = quote(quote(CANARY))
    assert redactor.redact(f"before {twice} after") == "***"


def test_secrets_split_over_two_strings_are_not_confused(redactor: Redactor) -> None:
    assert not redactor.contains([CANARY[:8], CANARY[8:]])


def test_a_secret_added_later_is_found_from_then_on(redactor: Redactor) -> None:
    assert not redactor.find("another-secret")
    redactor.add(Secret("another-secret"))
    assert redactor.find("another-secret")
    assert redactor.find(CANARY)


def test_a_log_record_keeps_its_message_and_loses_the_secret(redactor: Redactor) -> None:
    record = logging.makeLogRecord({"msg": "login %s as %s", "args": (CANARY, "bob"), "extra": {"token": CANARY}})
    text = logged(record, redactor)
    assert "login *** as bob" in text
    assert CANARY not in text
    assert record.args == ()


def test_a_traceback_in_a_log_record_is_redacted_for_every_formatter(redactor: Redactor) -> None:
    try:
        raise ValueError(f"cannot use {CANARY}")
    except ValueError as error:
        record = logging.makeLogRecord(
            {"msg": "failed", "exc_info": (ValueError, error, error.__traceback__), "extra": ""}
        )
    text = logged(record, redactor)
    assert "ValueError: cannot use ***" in text
    assert record.exc_info is None
    assert CANARY not in str(vars(record))


def test_a_log_record_whose_arguments_do_not_fit_is_still_logged(redactor: Redactor) -> None:
    record = logging.makeLogRecord({"msg": f"{CANARY} %d", "args": ("x",), "extra": ""})
    text = logged(record, redactor)
    assert "do not fit" in text
    assert CANARY not in text


def test_an_exception_becomes_one_safe_line(redactor: Redactor) -> None:
    line = redact_exception(RuntimeError(f"first {CANARY}\nsecond"), redactor)
    assert line == "RuntimeError: first *** second"
    assert redact_exception(KeyboardInterrupt(), redactor) == "KeyboardInterrupt"


def test_old_secrets_can_be_forgotten_but_not_those_added_again_or_among_the_newest() -> None:
    redactor = Redactor([Secret("first-secret"), Secret("tiny"), Secret("second-secret"), Secret("third-secret")])
    redactor.add(Secret("first-secret"))
    before = redactor.position
    redactor.add(Secret("fourth-secret"))
    redactor.forget(until=before, keep=2)
    assert redactor.redact("first-secret second-secret third-secret fourth-secret") == (
        "*** second-secret third-secret ***"
    )
    assert not redactor.find("tiny")
    redactor.forget(until=before - 1, keep=0)
    assert redactor.find("first-secret")


def test_what_is_forgotten_is_in_no_cache_either() -> None:
    value = "k3v9w2m7q4xa-passing"
    redactor = Redactor([Secret(value)])
    redactor.forget(until=redactor.position, keep=0)
    assert _forms_of.cache_info().currsize == 0
    assert not redactor.find(value)


def test_a_long_secret_is_found_in_base64_that_was_broken_into_lines() -> None:
    value = "k3v9w2m7q4xa-" * 8
    wrapped = base64.encodebytes(f"before {value} after".encode()).decode()
    assert wrapped.count("\n") > 1
    redactor = Redactor([Secret(value)])
    assert redactor.find(wrapped)
    assert redactor.find(wrapped.replace("\n", "\r\n"))
    assert not redactor.find(redactor.redact(wrapped))


def test_a_secret_that_comes_after_a_search_is_searched_for_in_every_form() -> None:
    first, second = "k3v9w2m7q4xa-first", "k3v9w2m7q4xa-second"
    redactor = Redactor([Secret(first)])
    spelled = "".join(f"\\u{ord(char):04x}" if place % 2 else char for place, char in enumerate(first))
    assert redactor.redact(f"see {spelled}!") == f"see {MASK}!"
    redactor.add(Secret(second))
    spelled = "".join(f"\\u{ord(char):04x}" if place % 2 else char for place, char in enumerate(second))
    assert redactor.redact(f"see {spelled}!") == f"see {MASK}!"


def test_a_search_in_another_thread_misses_nothing_that_is_kept_while_old_secrets_are_forgotten() -> None:
    redactor = Redactor()
    kept = [f"k3v9w2m7q4xa-kept-{number}" for number in range(200)]
    for value in kept:
        redactor.add(Secret(value))
    over, missed = threading.Event(), []

    def search() -> None:
        while not over.is_set():
            missed.extend(value for value in kept[::20] if not redactor.find(f"it is {value}!"))

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    searching = threading.Thread(target=search)
    searching.start()
    try:
        for number in range(100):
            redactor.add(Secret(f"k3v9w2m7q4xa-passing-{number}"))
            for value in kept:
                redactor.add(Secret(value))
            redactor.forget(until=redactor.position, keep=len(kept))
    finally:
        over.set()
        searching.join()
        sys.setswitchinterval(before)
    assert missed == []
    assert not redactor.find("k3v9w2m7q4xa-passing-50")

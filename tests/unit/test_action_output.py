from __future__ import annotations

import base64
import math
from typing import Any

import pytest

from orchestrator.actions.output import check_output, keep
from orchestrator.errors import OutputRefused
from orchestrator.redaction.redactor import Redactor
from orchestrator.secret import Secret

CANARY = "canary-7f3a9/+!x"


def refused(value: object, limit: int = 1000) -> OutputRefused:
    with pytest.raises(OutputRefused) as caught:
        check_output(value, redactor=Redactor([Secret(CANARY)]), limit_bytes=limit)
    assert CANARY not in str(caught.value)
    assert caught.value.kind == "output"
    return caught.value


def test_json_passes_and_tuples_become_lists() -> None:
    value = {"a": [1, 2.5, None, True, "ü"], "b": (1, {"c": ()})}
    expected = {"a": [1, 2.5, None, True, "ü"], "b": [1, {"c": []}]}
    assert check_output(value, redactor=Redactor(), limit_bytes=1000) == expected


@pytest.mark.parametrize(
    ("value", "where"),
    [
        ({"a": math.nan}, "output.a is not a finite number"),
        ({"a": [0, -math.inf]}, "output.a[1] is not a finite number"),
        ({"a": b"x"}, "output.a is a bytes"),
        ({1: "x"}, "a key of output is a int"),
        ({"a": Secret(CANARY)}, "output.a is a Secret"),
        ({"odd key": object()}, "output[...] is a object"),
        ("\ud800", "output is not valid Unicode"),
    ],
)
def test_what_json_cannot_hold_is_refused_with_its_place(value: object, where: str) -> None:
    assert refused(value).message.startswith(where)


def test_an_output_that_contains_itself_is_refused() -> None:
    endless: list[object] = []
    endless.append(endless)
    assert "nested deeper" in refused(endless).message


def test_the_limit_counts_bytes_of_json() -> None:
    assert check_output("ü" * 4, redactor=Redactor(), limit_bytes=10) == "üüüü"
    assert "11 bytes" in refused("ü" * 4 + "x", limit=10).message


@pytest.mark.parametrize(
    "form", [CANARY, base64.b64encode(f"user:{CANARY}".encode()).decode(), CANARY.encode().hex(), f"x {CANARY} y"]
)
def test_an_issued_secret_is_refused_and_its_place_named(form: str) -> None:
    assert refused({"ok": 1, "body": {"token": form}}).message.startswith("output.body.token contains a secret")
    assert refused({"rows": [{}, {"name": form}]}).message.startswith("output.rows[1].name contains a secret")


def test_a_key_that_is_a_secret_is_refused_without_naming_it() -> None:
    assert refused({"body": {CANARY: 1}}).message.startswith("a key of output.body contains a secret")


def test_only_declared_outputs_are_kept() -> None:
    assert keep({"rows": [1], "secret": 2}, ["rows"]) == {"rows": [1]}
    assert keep("text", []) == {}


def test_a_declared_output_that_is_missing_is_refused_with_what_exists() -> None:
    with pytest.raises(OutputRefused, match="no colour") as caught:
        keep({"size": 1, "rows": []}, ["rows", "colour"])
    assert caught.value.hint == "there is: rows, size"
    with pytest.raises(OutputRefused, match="is a list, which has no keys"):
        keep([1], ["rows"])


@pytest.mark.parametrize(
    ("value", "kind"),
    [(["a"], "a list"), ("a", "a text"), (1, "a number"), (0.5, "a number"), (True, "a truth value"), (None, "null")],
)
def test_what_has_no_keys_is_told_by_its_kind_and_how_it_would_have_some(value: Any, kind: str) -> None:
    with pytest.raises(OutputRefused) as caught:
        keep(value, ["result"])
    assert caught.value.message == f"`outputs` names result, and the output is {kind}, which has no keys"
    assert caught.value.hint == 'return an object with what is to be kept, such as `{"result": ...}`'

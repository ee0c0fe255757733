"""A secret that refuses every way of becoming text by accident."""

import copy
import json
import pickle

import pytest

from orchestrator.secret import Secret

VALUE = "hunter2-canary"


@pytest.mark.parametrize("show", [repr, str, format, lambda secret: f"{secret}", lambda secret: f"{[secret]!r:>40}"])
def test_a_secret_is_never_shown(show) -> None:
    assert VALUE not in show(Secret(VALUE))


@pytest.mark.parametrize("leak", [pickle.dumps, json.dumps])
def test_a_secret_is_neither_pickled_nor_turned_into_json(leak) -> None:
    with pytest.raises(TypeError):
        leak(Secret(VALUE))


def test_a_secret_has_no_dict_to_be_dumped() -> None:
    with pytest.raises(TypeError):
        vars(Secret(VALUE))


def test_only_reveal_gives_the_value() -> None:
    secret = Secret(VALUE)
    assert secret.reveal() == VALUE
    assert copy.deepcopy(secret) is secret
    assert secret == Secret(VALUE)
    assert secret != VALUE
    assert len({secret, Secret(VALUE)}) == 1

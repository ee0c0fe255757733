"""A secret that Vault has, or had, and that cannot be handed over: what is said of it, by a real Vault."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from bench import Bench

from orchestrator.errors import ExitCode, GrantRefused

PATH = "test/changing"
KEPT = "kept-words-of-the-secret"


def text(*keys: str) -> str:
    grant = {"kind": "secret", "path": PATH, "keys": list(keys)}
    step = {"action": "exec", "grants": {"s": grant}, "with": {"command": ["/bin/true"]}}
    return json.dumps({"version": 1, "name": "secrets_gone", "agent": "tester", "steps": {"work": step}})


@pytest.fixture
def kv(bench: Bench) -> Iterator[Any]:
    engine = bench.vault.secrets.kv.v2
    yield engine
    engine.delete_metadata_and_all_versions(PATH)


def refusal(bench: Bench, *keys: str) -> GrantRefused:
    outcome = bench.run(text(*keys))
    error = outcome.errors["work"]
    assert outcome.exit_code is ExitCode.REFUSED
    assert isinstance(error, GrantRefused)
    assert (error.grant, error.by) == ("s", error.by)
    assert KEPT not in str(error)
    return error


def test_a_deleted_version_is_told_with_its_time_and_how_it_comes_back(bench: Bench, kv: Any) -> None:
    for _ in range(2):
        kv.create_or_update_secret(PATH, {"token": KEPT})
    kv.delete_latest_version_of_secret(PATH)
    deleted = kv.read_secret_metadata(PATH)["data"]["versions"]["2"]["deletion_time"]
    error = refusal(bench, "token")
    assert f"version 2 of the secret `secret/data/{PATH}` was deleted at {deleted}" in error.message
    assert error.hint == f"undelete it (`secret/undelete/{PATH}`), or write a new version of `secret/{PATH}`"
    bench.vault.write_data(f"secret/undelete/{PATH}", data={"versions": [2]})
    assert bench.run(text("token")).exit_code is ExitCode.DONE


def test_a_destroyed_version_does_not_come_back(bench: Bench, kv: Any) -> None:
    kv.create_or_update_secret(PATH, {"token": KEPT})
    kv.destroy_secret_versions(PATH, [1])
    error = refusal(bench, "token")
    assert f"version 1 of the secret `secret/data/{PATH}` is destroyed" in error.message
    assert error.hint == f"write a new version of `secret/{PATH}`: nobody has this one any more"


def test_what_never_was_there_is_said_to_be_nowhere(bench: Bench) -> None:
    error = refusal(bench, "token")
    assert error.hint == f"nothing is mounted or stored at `secret/data/{PATH}`"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("", "an empty text under `token`"),
        (5432, "a number under `token`"),
        (1.5, "a number under `token`"),
        (True, "a truth value under `token`"),
        (None, "nothing under `token`"),
        ([KEPT], "a list under `token`"),
        ({"a": KEPT}, "a map under `token`"),
    ],
)
def test_what_is_no_text_is_refused_by_its_kind(value: Any, said: str, bench: Bench, kv: Any) -> None:
    kv.create_or_update_secret(PATH, {"token": value, "other": KEPT})
    error = refusal(bench, "token")
    assert error.message.endswith(f"the secret `secret/data/{PATH}` has {said}")
    assert "in quotes" in str(error.hint)


def test_all_keys_that_are_wrong_are_told(bench: Bench, kv: Any) -> None:
    kv.create_or_update_secret(PATH, {"token": "", "port": 1, "other": KEPT})
    error = refusal(bench, "token", "port", "name", "other")
    assert "has nothing under `name` and a number under `port` and an empty text under `token`" in error.message


def test_only_the_declared_keys_are_looked_at(bench: Bench, kv: Any) -> None:
    kv.create_or_update_secret(PATH, {"token": KEPT, "port": 5432, "nothing": ""})
    assert bench.run(text("token")).exit_code is ExitCode.DONE

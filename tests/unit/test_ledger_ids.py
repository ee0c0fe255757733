"""Ids sort, are typed by people, and end up in role names."""

from __future__ import annotations

import re

import pytest

from orchestrator.ledger.ids import CROCKFORD, carries, new_lease_id, new_run_id, new_step_key


def test_run_ids_sort_by_the_time_they_were_made() -> None:
    def made_at(milliseconds: int) -> str:
        return new_run_id(now_ms=lambda: milliseconds, entropy=lambda size: bytes([255 - milliseconds % 256]) * size)

    ids = [made_at(milliseconds) for milliseconds in range(500)]
    assert ids == sorted(ids)
    assert len(set(ids)) == len(ids)


def test_a_run_id_is_the_ulid_of_its_time_and_randomness() -> None:
    # The time of the ULID specification's own example, 01ARYZ6S41...: 1469918176385 ms.
    assert new_run_id(now_ms=lambda: 1469918176385, entropy=lambda size: b"\0" * size) == "run_01ARYZ6S41" + "0" * 16


def test_a_run_id_has_twenty_six_crockford_characters() -> None:
    assert re.fullmatch(f"run_[{CROCKFORD}]{{26}}", new_run_id())


def test_lease_ids_differ_from_their_first_characters_on() -> None:
    ids = {new_lease_id() for _ in range(1000)}
    assert len({lease[: len("lease_") + 6] for lease in ids}) == 1000
    assert all(re.fullmatch(r"lease_[a-z2-7]{20}", lease) for lease in ids)


@pytest.mark.parametrize("step", ["s", "translate", "read_all_customer_feedback_of_the_year", "a" * 40, "a_" * 20])
def test_a_step_key_fits_into_a_role_name(step: str) -> None:
    key = new_step_key(step)
    assert re.fullmatch(r"[a-z][a-z0-9-]{1,40}", key)
    assert key.startswith(step[:20].replace("_", "-") + "-")
    assert new_step_key(step) != key


@pytest.mark.parametrize(
    ("login", "found"),
    [
        ("orc_read-k3v9w2m7q4xa_Ab3dE6gH", True),
        ("orc_read-k3v9w2m7q4xa_Ab3dE6g", False),
        ("orc_read-k3v9w2m7q4xa_Ab3dE6gHi", False),
        ("orc_read-k3v9w2m7q4xa_Ab3dE6g!", False),
        ("orc_read-k3v9w2m7q4xa_Ab3dE6gH\n", False),
        ("orc_read-k3v9w2m7q4xa", False),
        ("xorc_read-k3v9w2m7q4xa_Ab3dE6gH", False),
        ("orc_read.k3v9w2m7q4xa_Ab3dE6gH", False),
    ],
)
def test_a_login_carries_a_step_key_only_in_the_form_that_a_sweep_looks_for(login: str, found: bool) -> None:
    assert carries(login, "read-k3v9w2m7q4xa") is found

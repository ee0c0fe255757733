"""The mapping that a `python` step's function reads its credentials from."""

from __future__ import annotations

import json
import threading

from orchestrator.actions.process.python_credentials import Credentials

FIRST = {"db": {"username": "u1", "password": "p1"}}


def test_it_is_the_plain_mapping_of_what_was_issued() -> None:
    credentials = Credentials(FIRST)
    assert json.loads(json.dumps(credentials)) == FIRST
    assert credentials.version("db") == 1


def test_what_was_read_before_keeps_what_belongs_together() -> None:
    credentials = Credentials(FIRST)
    before = credentials["db"]
    credentials.take("db", 2, {"username": "u2", "password": "p2"})
    assert before == FIRST["db"]
    assert (credentials["db"], credentials.version("db")) == ({"username": "u2", "password": "p2"}, 2)


def test_waiting_ends_with_the_next_version_or_with_the_time() -> None:
    credentials = Credentials(FIRST)
    assert not credentials.wait("db", after=1, timeout=0.0)
    later = threading.Thread(target=credentials.take, args=("db", 2, {}))
    later.start()
    assert credentials.wait("db", after=1)
    later.join()
    assert credentials.wait("db", after=1, timeout=0.0), "it is there already"

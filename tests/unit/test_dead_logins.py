"""What is made of libpq's words for a login that was tried, and what people are told of it."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from psycopg import conninfo, pq

from orchestrator.credentials.witnesses import dead_login
from orchestrator.credentials.witnesses.database import Witness
from orchestrator.credentials.witnesses.dead_login import Outcome, read
from orchestrator.jsontypes import JsonObject
from orchestrator.ledger.types import EventRecord
from orchestrator.presentation.events import gone, words

LOGIN = "orc_read-0123456789ab_ABCDEFGH"
GIVEN = conninfo.make_conninfo(host="db.example", user=LOGIN, password="hunter2hunter2")
AT = 'connection to server at "db.example" (192.0.2.7), port 5432 failed: '


@pytest.mark.parametrize(
    ("said", "outcome"),
    [
        ('FATAL:  28P01: password authentication failed for user "x"\nLOCATION:  auth.c:1', Outcome(True, "28P01")),
        ('FATAL:  28000: role "x" is not permitted to log in', Outcome(True, "28000")),
        ("VIERNES:  28P01: Passwort-Authentifizierung", Outcome(True, "28P01")),
        ("FATAL:  08P01: SASL authentication failed", Outcome(True, "08P01")),
        ("FATAL:  08P01: no such user", Outcome(True, "08P01")),
        (
            "FATAL:  08P01: no more connections allowed",
            Outcome(None, "08P01", "no more connections allowed"),
        ),
        (
            f'FATAL:  53300: too many connections for role "{LOGIN}"',
            Outcome(None, "53300", f'too many connections for role "{LOGIN}"'),
        ),
        ("Connection refused\n\tIs the server running?", Outcome(None, None, "Connection refused")),
        ("server sent hunter2hunter2", Outcome(None, None, "server sent ***")),
        ("FATAL:  57P03: the database system is starting up; hunter2hunter2", None),
    ],
)
def test_only_a_refusal_of_the_login_counts_as_one(said: str, outcome: Outcome | None) -> None:
    found = read(AT + said, LOGIN, GIVEN, verbose=True)
    if outcome is not None:
        assert found == outcome
    assert "hunter2" not in repr(found)


def test_without_codes_what_looks_like_one_is_none() -> None:
    found = read(f"{AT}FATAL:  ERROR: something", LOGIN, GIVEN, verbose=False)
    assert (found.refused, found.sqlstate) == (None, None)
    assert read(f"{AT}FATAL:  no such user", LOGIN, GIVEN, verbose=False).refused is True


def test_the_libpq_of_the_driver_names_sqlstates() -> None:
    assert dead_login._say_sqlstates(pq.PGconn.connect_start(b"host=127.0.0.1 port=1"))


@pytest.mark.parametrize(
    ("address", "place"),
    [
        ("postgresql://db.example:6432/support", "db.example:6432"),
        ("postgresql://db.example/support?sslmode=require", "db.example:5432"),
        ("postgresql://[2001:db8::1]/support", "[2001:db8::1]:5432"),
        ("host=/var/run/postgresql dbname=support", "/var/run/postgresql"),
        ("postgresql://support?nonsense", ""),
    ],
)
def test_the_server_is_told_as_it_was_asked_for(address: str, place: str) -> None:
    assert dead_login._place(address) == place


async def test_names_are_looked_up_before_libpq_would() -> None:
    found = await dead_login._looked_up({"host": "localhost,127.0.0.1", "port": "1,2", "dbname": "x"})
    pairs = set(zip(found["host"].split(","), found["hostaddr"].split(","), found["port"].split(","), strict=True))
    assert ("127.0.0.1", "127.0.0.1", "2") in pairs
    assert {(name, port) for name, _, port in pairs} == {("localhost", "1"), ("127.0.0.1", "2")}
    assert found["dbname"] == "x"
    for left_alone in ({"host": "/tmp"}, {"host": ""}, {}, {"host": "a", "hostaddr": "127.0.0.1"}):
        assert await dead_login._looked_up(left_alone) == left_alone


WITNESS = Witness("2026-01-31T12:00:00.000000Z", "orc_sweep", "support", "[::1]:5432", "7423", 0)


def record(kind: str, **data: object) -> EventRecord:
    moment = datetime(2026, 1, 31, 12, 0, 4, tzinfo=UTC).astimezone()
    given: JsonObject = data  # type: ignore[assignment]  # of a test
    return EventRecord(run_id="run_1", seq=1, time=moment, kind=kind, data=given, digest="")


def test_sessions_of_dropped_roles_are_told_as_nobodys() -> None:
    some = Witness(WITNESS.at, "orc_sweep", "support", "[::1]:5432", "7423", 2, {"sessions": "nothing tells whose"})
    assert (some.as_json()["sessions"], some.as_json()["sessions_of_dropped_roles"]) == (None, 2)
    said = words("lease.revoked", {"confirmed_by": "database", "witness": some.as_json()})
    assert "role absent, sessions not known (2 of dropped roles, whose ones nothing tells)" in said
    assert "0 sessions" not in said


def test_what_a_server_does_not_tell_is_said_with_the_reason() -> None:
    mute = Witness(None, "orc_sweep", unknown={"server": "the server refuses to say (42501)"})
    said = words("lease.revoked", {"confirmed_by": "database", "witness": mute.as_json()})
    assert said == (
        "confirmed by database: role absent, server not known (the server refuses to say (42501)), asked by orc_sweep"
    )


def test_an_older_record_says_what_it_said() -> None:
    assert words("lease.revoked", {"confirmed_by": "database"}) == "confirmed by database"
    revoked = record("lease.revoked", confirmed_by="database")
    assert gone([revoked]) == [f"its database {revoked.time:%H:%M:%S}"]
    assert gone([record("lease.issued")]) == []
    assert gone([record("lease.revoked", confirmed_by="issuer")])[0].startswith("its issuer ")


def test_who_was_not_asked_to_try_is_told_as_that() -> None:
    not_tried = record("lease.revoked", confirmed_by="database", witness=WITNESS.as_json())
    assert gone([not_tried])[-1] == "its password was not tried"
    tried = record("lease.login_tried", refused=None, reason="the server did not answer in time", server="db:1")
    assert gone([tried, not_tried])[-1] == (
        "whether its password works at db:1 is not known: the server did not answer in time"
    )

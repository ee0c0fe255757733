"""What is on record of a login that is gone: which server said so, when and to whom; and that its password is dead."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from bench import Bench
from psycopg.conninfo import conninfo_to_dict
from test_confirmed_by_database import THREE, Lying, lying, made_to_look, nobody_may_look, recover, steps_logins

from orchestrator.cli.main import main
from orchestrator.clock import SystemClock
from orchestrator.credentials import run_leases
from orchestrator.credentials.types import Confirm
from orchestrator.credentials.witnesses import database, dead_login
from orchestrator.errors import ExitCode
from orchestrator.ledger.lease import LeaseState
from orchestrator.ledger.opening import open_ledger
from orchestrator.runs.types import RunOutcome

__all__ = ["lying"]

ONE = THREE.split("  two:")[0]


def life(bench: Bench, run_id: str, lease_id: str) -> list[tuple[str, Mapping[str, Any]]]:
    """The events of a lease as the ledger has them."""
    with open_ledger(bench.config().ledger_url, clock=SystemClock()) as ledger:
        return [(event.kind, event.data) for event in ledger.events(run_id, lease_id=lease_id)]


def of_kind(bench: Bench, outcome: RunOutcome, kind: str) -> list[Mapping[str, Any]]:
    """What the events of this kind say of the logins of a run's steps."""
    leases = steps_logins(bench, outcome.run_id)
    return [data for lease in leases for each, data in life(bench, outcome.run_id, lease.lease_id) if each == kind]


def witness(bench: Bench, outcome: RunOutcome) -> Mapping[str, Any]:
    (revoked,) = of_kind(bench, outcome, "lease.revoked")
    assert revoked["confirmed_by"] == "database"
    return revoked["witness"]  # type: ignore[no-any-return]


def tried(bench: Bench, outcome: RunOutcome) -> Mapping[str, Any]:
    (data,) = of_kind(bench, outcome, "lease.login_tried")
    return data


def place(bench: Bench) -> str:
    """The server's address, as its admin finds it."""
    given = conninfo_to_dict(bench.info.support_dsn.reveal())
    return f"{given['host']}:{given['port']}"


def system(bench: Bench) -> str:
    (found,) = bench.sql("SELECT system_identifier::text FROM pg_control_system()")
    return str(found)


def test_each_login_is_on_record_with_who_said_that_it_is_gone(bench: Bench) -> None:
    (before,) = bench.sql("SELECT clock_timestamp()")
    outcome = bench.run(THREE)
    (after,) = bench.sql("SELECT clock_timestamp()")
    (sweeper,) = made_to_look(bench, outcome.run_id)
    found = [each["witness"] for each in of_kind(bench, outcome, "lease.revoked")]
    assert len(found) == 3
    for each in found:
        at = datetime.fromisoformat(each["at"])
        assert before < at < after
        assert at.utcoffset() == timedelta(0)
        assert {**each, "at": ""} == {
            "role": "absent",
            "sessions": 0,
            "server": {"system": system(bench), "address": place(bench), "database": "support"},
            "at": "",
            "asked_by": sweeper.subject,
        }


def test_the_password_of_each_login_is_refused_with_the_servers_own_code(bench: Bench) -> None:
    begin = datetime.now(UTC)
    outcome = bench.run(THREE)
    found = of_kind(bench, outcome, "lease.login_tried")
    assert len(found) == 3
    for each in found:
        assert (each["refused"], each["sqlstate"], each["server"]) == (True, "28P01", place(bench))
        assert each["reason"] == ""
        assert begin <= datetime.fromisoformat(str(each["at"])) <= datetime.now(UTC)
    for lease in bench.history(outcome.run_id):
        if lease.grant_kind == "database" and lease.grant != "db":
            assert "lease.login_tried" not in dict(life(bench, outcome.run_id, lease.lease_id)), "it is our own"


def test_a_password_that_still_works_is_told_and_the_login_dropped_before_it_is_called_revoked(
    lying: Lying, caplog: pytest.LogCaptureFixture
) -> None:
    lying.say_of_leases_alone()
    outcome = lying.run(ONE)
    assert outcome.exit_code is ExitCode.DONE
    (lease,) = steps_logins(lying.bench, outcome.run_id)
    kinds = [kind for kind, _ in life(lying.bench, outcome.run_id, lease.lease_id)]
    assert kinds[-3:] == ["lease.vault_revoked", "lease.login_tried", "lease.revoked"]
    found = tried(lying.bench, outcome)
    assert (found["refused"], found["sqlstate"], found["server"]) == (False, None, place(lying.bench))
    assert f"the login of lease {lease.lease_id} still works although Vault has revoked it" in caplog.text
    assert witness(lying.bench, outcome)["sessions"] == 0
    assert lying.bench.logins() == []
    assert lying.bench.sessions() == []


def test_a_login_that_still_works_and_cannot_be_looked_for_is_not_called_revoked(lying: Lying) -> None:
    lying.say_of_leases_alone()
    with nobody_may_look(lying.bench):
        outcome = lying.run(ONE)
    assert outcome.exit_code is ExitCode.UNCONFIRMED
    (lease,) = steps_logins(lying.bench, outcome.run_id)
    assert lease.state is LeaseState.REVOKING
    assert tried(lying.bench, outcome)["refused"] is False
    recover(lying.bench)
    (lease,) = steps_logins(lying.bench, outcome.run_id)
    assert lease.state is LeaseState.REVOKED
    assert lying.bench.logins() == []


@contextmanager
def session_of_a_dropped_role(bench: Bench, name: str = "somebody_else") -> Iterator[psycopg.Connection]:
    """One that is none of ours, in the same cluster."""
    bench.sql(f"CREATE ROLE {name} LOGIN PASSWORD 'pw'")
    bench.sql(f"GRANT CONNECT ON DATABASE support TO {name}")
    with psycopg.connect(bench.info.support_endpoint, user=name, password="pw") as session:
        bench.sql(f"DROP OWNED BY {name}")
        bench.sql(f"DROP ROLE {name}")
        yield session
    until = time.monotonic() + 30
    while bench.sessions() and time.monotonic() < until:
        time.sleep(0.01)


def test_a_session_of_a_dropped_role_makes_the_sessions_unknown_and_holds_up_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.credentials.duties.LINGER_SECONDS", 0.1)
    with session_of_a_dropped_role(bench):
        outcome = bench.run(ONE)
        assert bench.logins() == []
    assert outcome.exit_code is ExitCode.DONE
    found = witness(bench, outcome)
    assert (found["role"], found["sessions"], found["sessions_of_dropped_roles"]) == ("absent", None, 1)
    assert set(found["unknown"]) == {"sessions"}
    assert found["server"]["system"] == system(bench)


def test_a_session_that_takes_a_moment_to_end_is_waited_for(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends when it was seen once; the answer after that counts."""
    seen: list[object] = []
    pause = asyncio.sleep

    with session_of_a_dropped_role(bench) as session:

        async def end_it(seconds: float) -> None:
            seen.append(seconds)
            session.close()
            while bench.sql("SELECT 1 FROM pg_stat_activity WHERE usesysid <> 0 AND usename IS NULL"):
                await pause(0.01)

        class Pausing:
            """`asyncio` as the module that asks has it."""

            sleep = staticmethod(end_it)
            get_running_loop = staticmethod(asyncio.get_running_loop)

        monkeypatch.setattr(database, "asyncio", Pausing)
        outcome = bench.run(ONE)
    assert seen
    assert witness(bench, outcome)["sessions"] == 0


def test_a_session_that_outlasts_it_is_waited_for_once_in_a_session_that_asks(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []

    async def counted(seconds: float, pause: Callable[[float], Coroutine[Any, Any, None]] = asyncio.sleep) -> None:
        pauses.append(seconds)
        await pause(seconds)

    async def go() -> tuple[list[int], list[database.Witness]]:
        async with await psycopg.AsyncConnection.connect(bench.info.support_dsn.reveal(), autocommit=True) as session:
            looking = database.Looking(session, patience=0.3)
            times, found = [], []
            for _ in range(2):
                before = len(pauses)
                found.append((await looking.left(["nothing-0123456789ab"], True))[1])
                times.append(len(pauses) - before)
            return times, found

    monkeypatch.setattr(database.asyncio, "sleep", counted)
    with session_of_a_dropped_role(bench):
        (first, second), found = asyncio.run(go())
    assert [each.of_dropped for each in found] == [1, 1]
    assert first > 0
    assert second == 0


@contextmanager
def without_right_to(bench: Bench, function: str) -> Iterator[None]:
    bench.sql(f"REVOKE EXECUTE ON FUNCTION {function} FROM PUBLIC")
    try:
        yield
    finally:
        bench.sql(f"GRANT EXECUTE ON FUNCTION {function} TO PUBLIC")


def test_a_server_that_does_not_name_its_system_still_confirms(bench: Bench) -> None:
    with without_right_to(bench, "pg_control_system()"):
        outcome = bench.run(ONE)
    assert outcome.exit_code is ExitCode.DONE
    found = witness(bench, outcome)
    assert found["server"] == {"system": None, "address": place(bench), "database": "support"}
    assert found["unknown"] == {"system": "no right to pg_control_system()"}
    assert found["sessions"] == 0


def test_a_server_that_says_nothing_of_itself_still_confirms_and_drops(lying: Lying) -> None:
    """What it refuses spoils the transaction in which the login was dropped: it is dropped all the same."""
    lying.say_of_leases_alone()
    with without_right_to(lying.bench, "inet_server_addr()"):
        outcome = lying.run(ONE)
    assert outcome.exit_code is ExitCode.DONE
    assert lying.bench.logins() == []
    found = witness(lying.bench, outcome)
    assert (found["role"], found["sessions"], found["at"]) == ("absent", None, None)
    assert found["server"] == {"system": None, "address": None, "database": None}
    assert set(found["unknown"].values()) == {"the server refuses to say (42501)"}
    (sweeper,) = made_to_look(lying.bench, outcome.run_id)
    assert found["asked_by"] == sweeper.subject


@pytest.fixture
def tries(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The logins that are tried."""
    made: list[str] = []
    really = dead_login._try

    async def noted(address: str, login: str, password: Any, seconds: float) -> dead_login.Outcome:
        made.append(login)
        return await really(address, login, password, seconds)

    monkeypatch.setattr(dead_login, "_try", noted)
    return made


def test_each_login_is_tried_once(bench: Bench, tries: list[str]) -> None:
    outcome = bench.run(THREE)
    assert sorted(tries) == sorted(lease.subject for lease in steps_logins(bench, outcome.run_id))


def test_nothing_is_tried_where_the_settings_say_so(bench: Bench, tries: list[str]) -> None:
    outcome = bench.run(ONE, try_dead_logins=False)
    assert outcome.exit_code is ExitCode.DONE
    assert of_kind(bench, outcome, "lease.login_tried") == []
    assert tries == []
    assert witness(bench, outcome)["sessions"] == 0


def test_nothing_is_tried_where_the_database_is_not_asked(bench: Bench, tries: list[str]) -> None:
    outcome = bench.run(ONE, confirm={"support": Confirm.VAULT})
    assert of_kind(bench, outcome, "lease.login_tried") == []
    assert tries == []
    (revoked,) = of_kind(bench, outcome, "lease.revoked")
    assert (revoked["confirmed_by"], revoked["witness"]) == ("vault", {})


def test_what_cannot_be_tried_is_told_and_holds_up_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = "postgresql://127.0.0.1:1/support"
    monkeypatch.setattr(dead_login, "protected", lambda address, issued: nowhere)
    outcome = bench.run(ONE)
    assert outcome.exit_code is ExitCode.DONE
    found = tried(bench, outcome)
    assert (found["refused"], found["sqlstate"]) == (None, None)
    assert "Connection refused" in str(found["reason"])


def test_a_server_that_does_not_answer_is_waited_for_no_longer_than_the_time_for_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dead_login, "TRY_SECONDS", 0.2)

    async def never(descriptor: int, *, to_write: bool) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(dead_login, "_ready", never)
    outcome = bench.run(ONE)
    assert outcome.exit_code is ExitCode.DONE
    found = tried(bench, outcome)
    assert (found["refused"], found["reason"]) == (None, "the server did not answer in time")


def test_without_libpqs_codes_the_servers_words_tell(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dead_login, "_set_error_verbosity", lambda: None)
    found = tried(bench, bench.run(ONE))
    assert (found["refused"], found["sqlstate"]) == (True, None)
    assert "no SQLSTATE" in str(found["reason"])


def test_it_is_tried_before_a_run_that_goes_on_has_asked_the_database(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database is asked at once and the try is slow: its event comes before the last one of the lease."""
    monkeypatch.setattr(run_leases, "CONFIRM_SECONDS", 0.0)
    really = dead_login._try

    async def slowly(*what: Any) -> dead_login.Outcome:
        await asyncio.sleep(0.5)
        return await really(*what)

    monkeypatch.setattr(dead_login, "_try", slowly)
    outcome = bench.run(THREE)
    assert outcome.exit_code is ExitCode.DONE
    for lease in steps_logins(bench, outcome.run_id):
        kinds = [kind for kind, _ in life(bench, outcome.run_id, lease.lease_id)]
        assert kinds[-3:] == ["lease.vault_revoked", "lease.login_tried", "lease.revoked"]


def test_recovery_records_the_same_witness_and_that_nobody_had_the_password(bench: Bench) -> None:
    with nobody_may_look(bench):
        outcome = bench.run(ONE, try_dead_logins=False)
    assert outcome.exit_code is ExitCode.UNCONFIRMED
    recover(bench)
    found = witness(bench, outcome)
    assert (found["role"], found["sessions"], found["password"]) == ("absent", 0, "nobody holds it any more")
    assert found["server"] == {"system": system(bench), "address": place(bench), "database": "support"}
    assert of_kind(bench, outcome, "lease.login_tried") == []


Shown = Callable[[Bench, str], tuple[str, list[str]]]


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shown:
    """What `leases show` tells of who said that a lease is gone: for people, and for programs."""

    def show(bench: Bench, lease_id: str) -> tuple[str, list[str]]:
        for name, value in bench.environment().items():
            monkeypatch.setenv(name, value)
        capsys.readouterr()
        assert main(["leases", "show", lease_id]) == 0
        text = " ".join(capsys.readouterr().out.split())
        assert main(["leases", "show", lease_id, "--json"]) == 0
        return text, json.loads(capsys.readouterr().out)["gone"]

    return show


def test_leases_show_says_who_said_that_it_is_gone(bench: Bench, shown: Shown) -> None:
    outcome = bench.run(ONE)
    (lease,) = steps_logins(bench, outcome.run_id)
    (sweeper,) = made_to_look(bench, outcome.run_id)
    text, (vault, of_database, password) = shown(bench, lease.lease_id)
    assert vault.startswith("Vault ")
    begin = f"database support at {place(bench)} (system {system(bench)}): role absent, 0 sessions, asked by "
    assert of_database.startswith(begin + sweeper.subject)
    assert password == f"its password is refused at {place(bench)} (28P01)"
    assert f"gone {vault}; database support at {place(bench)}" in text


def test_leases_show_says_what_vault_alone_has_confirmed(bench: Bench, shown: Shown) -> None:
    outcome = bench.run(ONE, confirm={"support": Confirm.VAULT})
    (lease,) = steps_logins(bench, outcome.run_id)
    text, (alone,) = shown(bench, lease.lease_id)
    assert alone.startswith("Vault alone ")
    assert f"gone {alone}" in text


def test_leases_show_says_that_a_password_works_while_its_login_is_there(lying: Lying, shown: Shown) -> None:
    lying.say_of_leases_alone()
    with nobody_may_look(lying.bench):
        outcome = lying.run(ONE)
    (lease,) = steps_logins(lying.bench, outcome.run_id)
    text, (_, password) = shown(lying.bench, lease.lease_id)
    assert password == f"its password STILL WORKS at {place(lying.bench)}"
    assert "so far Vault" in text
    recover(lying.bench)
    text, (_, of_database, password) = shown(lying.bench, lease.lease_id)
    assert "role absent" in of_database
    assert "STILL WORKS" in password, "that is what it did when it was tried"


def test_leases_show_says_that_recovery_could_not_try(bench: Bench, shown: Shown) -> None:
    with nobody_may_look(bench):
        outcome = bench.run(ONE, try_dead_logins=False)
    recover(bench)
    (lease,) = steps_logins(bench, outcome.run_id)
    _, (*_, password) = shown(bench, lease.lease_id)
    assert password == "its password was not tried: nobody holds it any more"

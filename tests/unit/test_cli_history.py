"""`runs` and `leases` over a real ledger, as a person and as a program sees them."""

import asyncio
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from cli_samples import BOT, DB, REFUSED, RUN, START, SUCCEEDED, TOKEN, UNCONFIRMED, Ticking, asks, gets

from orchestrator.cli.display.terminal import LEASE_MARKS
from orchestrator.cli.main import main
from orchestrator.ledger.events import Event, LeaseRevoked, LeaseRevoking
from orchestrator.ledger.lease import LeaseState
from orchestrator.ledger.opening import open_ledger
from orchestrator.runs.processes import describe_self

SECOND = RUN[:-1] + "T"
THIRD = RUN[:-1] + "V"


async def record(path: Path, runs: dict[str, tuple[str, list[Event]]]) -> None:
    """Write runs; `mark` keeps the lease ids of one run apart from those of the next."""
    clock = Ticking()
    async with open_ledger(str(path), clock=clock) as ledger:
        for run_id, (mark, (started, *events)) in runs.items():
            fence = await ledger.begin_run(run_id, started)
            for event in events:
                if lease := getattr(event, "lease_id", None):
                    event = replace(event, lease_id=lease[:-1] + mark)
                await ledger.append(run_id, fence, [event])


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ledger") / "ledger.db"
    runs = {RUN: ("a", SUCCEEDED), SECOND: ("b", REFUSED), THIRD: ("c", UNCONFIRMED)}
    asyncio.run(record(path, runs))
    return path


@pytest.fixture(autouse=True)
def _environment(ledger: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("ORCHESTRATOR_LEDGER_URL", str(ledger))
    monkeypatch.setenv("TZ", "Asia/Bangkok")
    monkeypatch.chdir(tmp_path)
    import time

    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


class Answer:
    """What one command wrote and answered. Lines come without the spaces that pad them."""

    def __init__(self, capsys: pytest.CaptureFixture[str], *arguments: str) -> None:
        self.code = main(list(arguments))
        captured = capsys.readouterr()
        self.lines = [line.rstrip() for line in captured.out.splitlines()]
        self.out, self.err = captured.out, captured.err

    def json(self) -> object:
        return json.loads(self.out)


def lease_of(lease: str, mark: str) -> str:
    return lease[:-1] + mark


def test_runs_are_listed_newest_first_in_local_time_with_its_offset(capsys: pytest.CaptureFixture[str]) -> None:
    answer = Answer(capsys, "runs", "list")
    assert [re.split(r"  +", line) for line in answer.lines] == [
        ["RUN", "WORKFLOW", "STATE", "TRIGGER", "STARTED", "TOOK"],
        [THIRD, "customer_feedback", "succeeded", "manual", "2026-03-02 12:00:08+07", "2.10s"],
        [SECOND, "customer_feedback", "refused", "manual", "2026-03-02 12:00:07+07", "0.80s"],
        [RUN, "customer_feedback", "succeeded", "manual", "2026-03-02 12:00:05+07", "2.10s"],
    ]


def test_runs_can_be_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    chosen = Answer(capsys, "runs", "list", "--state", "refused", "--json").json()
    assert [run["run_id"] for run in chosen] == [SECOND]
    assert chosen[0]["started_at"] == "2026-03-02T05:00:07.200000Z"
    assert Answer(capsys, "runs", "list", "--workflow", "another").lines == ["no runs"]
    assert len(Answer(capsys, "runs", "list", "--limit", "1", "--json").json()) == 1


def test_a_run_is_shown_with_its_steps_leases_and_events(capsys: pytest.CaptureFixture[str]) -> None:
    answer = Answer(capsys, "runs", "show", RUN)
    for line in (
        "inputs    channel=\"#support\"  key=\"***\"  limit=5",
        "state     succeeded, exit code 0",
        "history   22 events, hash chain whole",
        "read    postgres.query      succeeded  1      0.70s",
        f"{lease_of(DB, 'a')}  read.db  ✓ revoked, held 0.40s",
        "                            database support as feedback-read, 2m",
        f"{lease_of(BOT, 'a')}  notify.bot  ○ ended (secret still valid), held 0.40s",
        "3    +0.20s  decision          read allowed by rego: permitted",
        "11   +1.00s  lease.revoked     read.db: confirmed by vault",
        "22   +2.10s  run.finished      succeeded, exit code 0",
    ):  # fmt: skip
        assert line in answer.lines


def test_the_orchestrators_own_logins_are_one_line_unless_all_are_wanted(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "swept.db"
    key, ids = "sweep-k3v9w2m7q4xa", [f"lease_{letter * 20}" for letter in "defg"]
    own: list[Event] = []
    for number, duty in enumerate(("sweep", "bind")):
        token, login = ids[2 * number : 2 * number + 2]
        scope = {"name": f"({duty})", "kind": "database", "resource": f"database/creds/{duty}", "ttl": 30}
        for lease, grant, kind in ((token, "(step token)", "step-token"), (login, f"({duty})", "database")):
            asked = replace(asks(lease, "read", grant, kind, scope), step_key=f"{number}{key}")
            own += [asked, gets(lease), LeaseRevoking(lease_id=lease, reason="step ended")]
        own.append(LeaseRevoked(lease_id=login, confirmed_by="vault"))
    monkeypatch.setenv("ORCHESTRATOR_LEDGER_URL", str(path))
    asyncio.run(record(path, {RUN: ("", [*SUCCEEDED[:-1], *own, SUCCEEDED[-1]])}))
    folded = Answer(capsys, "runs", "show", RUN)
    line = "+ 4 of the orchestrator's own (bind, sweep; --all): 2 … revoking, 2 ✓ revoked"
    assert line.replace("…", LEASE_MARKS[LeaseState.REVOKING]) in folded.lines
    assert not [shown for shown in folded.lines if "(sweep)" in shown or "(bind)" in shown or ids[0] in shown]
    assert len([shown for shown in folded.lines if "lease.requested" in shown]) == 3
    whole = Answer(capsys, "runs", "show", RUN, "--all")
    assert all([shown for shown in whole.lines if lease in shown] for lease in (each[:-1] for each in ids))
    assert len([shown for shown in whole.lines if "lease.requested" in shown]) == 7
    story = Answer(capsys, "runs", "show", RUN, "--json").json()
    assert len(story["leases"]) == 7


def test_a_run_is_shown_to_programs_whole(capsys: pytest.CaptureFixture[str]) -> None:
    story = Answer(capsys, "runs", "show", RUN, "--json").json()
    assert story["run"]["run_id"] == RUN
    assert [step["step"] for step in story["steps"]] == ["read", "notify"]
    assert [lease["grant"] for lease in story["leases"]] == ["step", "db", "bot"]
    assert [event["seq"] for event in story["events"]] == list(range(1, 23))
    assert story["broken"] is None


def test_a_history_that_was_changed_is_called_broken(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import sqlite3

    path = tmp_path / "changed.db"
    asyncio.run(record(path, {RUN: ("a", SUCCEEDED)}))
    with sqlite3.connect(path) as connection:
        for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            connection.execute(f"DROP TRIGGER {name}")
        connection.execute("UPDATE event SET data = replace(data, 'permitted', 'permittee') WHERE seq = 3")
    connection.close()
    monkeypatch.setenv("ORCHESTRATOR_LEDGER_URL", str(path))
    assert "history   BROKEN from event 3 on" in Answer(capsys, "runs", "show", RUN).lines
    answer = Answer(capsys, "runs", "verify", RUN)
    assert answer.code == 4
    assert answer.lines == [f"{RUN}: the history is broken from event 3 on"]


def test_a_whole_history_is_called_whole(capsys: pytest.CaptureFixture[str]) -> None:
    answer = Answer(capsys, "runs", "verify", RUN, "--json")
    assert answer.code == 0
    assert answer.json() == {"run": RUN, "whole": True, "first_broken_event": None, "differences": []}


def test_what_the_tables_say_otherwise_than_the_history_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import sqlite3

    path = tmp_path / "changed.db"
    asyncio.run(record(path, {RUN: ("a", SUCCEEDED), "run_zz": ("b", SUCCEEDED)}))
    monkeypatch.setenv("ORCHESTRATOR_LEDGER_URL", str(path))
    all_whole = Answer(capsys, "runs", "verify")
    assert all_whole.code == 0
    assert all_whole.lines == ["2 runs: all histories are whole, and the tables say the same"]
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE step SET state = 'failed', reason = '' WHERE run_id = ? AND step = 'read'", (RUN,))
        connection.execute("UPDATE lease SET agent = 'somebody else' WHERE run_id = ? AND \"grant\" = 'db'", (RUN,))
    connection.close()
    answer = Answer(capsys, "runs", "verify", RUN)
    assert answer.code == 4
    assert f"{RUN}: step read: changed: state" in answer.lines
    assert any(line.endswith(": changed: agent") for line in answer.lines)
    both = Answer(capsys, "runs", "verify", "--json").json()
    assert (both["runs"], both["whole"]) == (2, False)
    assert {each["run"] for each in both["not_whole"]} >= {RUN}
    assert "run_zz" not in {each["run"] for each in both["not_whole"]}


@pytest.mark.parametrize("command", [["runs", "show"], ["runs", "verify"], ["leases", "show"]])
def test_what_is_not_in_the_ledger_is_an_error_with_a_hint(
    capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    answer = Answer(capsys, *command, "nowhere")
    assert answer.code == 2
    assert re.match(r"error: no (run|lease) nowhere is in (the|this) ledger\nhint: ", answer.err)


def chosen(capsys: pytest.CaptureFixture[str], *options: str) -> set[str]:
    return {lease["lease_id"] for lease in Answer(capsys, "leases", "list", "--json", *options).json()}


def test_leases_can_be_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    assert chosen(capsys, "--state", "revoking") == {lease_of(DB, "c")}
    assert chosen(capsys, "--state", "revoking", "--state", "denied") == {lease_of(DB, "c"), lease_of(DB, "b")}
    assert chosen(capsys, "--run", RUN) == {lease_of(lease, "a") for lease in (DB, TOKEN, BOT)}
    assert chosen(capsys, "--kind", "secret") == {lease_of(BOT, "a"), lease_of(BOT, "c")}
    assert chosen(capsys, "--resource", "database/creds/", "--run", RUN) == {lease_of(DB, "a")}
    assert chosen(capsys, "--step", "notify", "--run", RUN) == {lease_of(BOT, "a")}
    assert chosen(capsys, "--agent", "mallory") == set()
    assert chosen(capsys, "--until", START.isoformat()) == set()
    assert chosen(capsys, "--since", START.isoformat(), "--limit", "2") == {lease_of(BOT, "c"), lease_of(DB, "c")}
    assert chosen(capsys, "--until", "100000h ago") == set()


def test_leases_are_listed_with_their_ids_whole(capsys: pytest.CaptureFixture[str]) -> None:
    answer = Answer(capsys, "leases", "list", "--run", THIRD)
    assert [re.split(r"  +", line)[:4] for line in answer.lines] == [
        ["LEASE", "STATE", "STEP.GRANT", "REQUESTED"],
        [lease_of(BOT, "c"), "○ ended", "notify.bot", "2026-03-02 12:00:09+07"],
        [lease_of(DB, "c"), "◐ revoking", "read.db", "2026-03-02 12:00:08+07"],
        [lease_of(TOKEN, "c"), "✓ revoked", "read.step", "2026-03-02 12:00:08+07"],
    ]


def test_leases_that_are_being_revoked_say_since_when_how_often_and_why(capsys: pytest.CaptureFixture[str]) -> None:
    answer = Answer(capsys, "leases", "list", "--state", "revoking")
    assert [re.split(r"  +", line) for line in answer.lines] == [
        ["LEASE", "SINCE", "TRIES", "LAST ERROR", "STEP.GRANT", "LAST TRY", "RUN"],
        [
            lease_of(DB, "c"),
            "2026-03-02 12:00:09+07",
            "1",
            "the database did not answer",
            "read.db",
            "2026-03-02 12:00:09+07",
            THIRD,
        ],
    ]
    (lease,) = Answer(capsys, "leases", "list", "--state", "revoking", "--json").json()
    assert (lease["failed_tries"], lease["reason"]) == (1, "the database did not answer")
    assert lease["revoking_since"] < lease["last_try_at"]
    shown = Answer(capsys, "leases", "show", lease_of(DB, "c")).lines
    assert "tries     1 in vain since 2026-03-02 12:00:09+07, the last at 2026-03-02 12:00:09+07" in shown


def test_at_eighty_columns_ids_and_times_stay_whole(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.cli.display.terminal.PIPED_WIDTH", 80)
    for command in (["runs", "list"], ["runs", "show", RUN], ["leases", "list"], ["leases", "show", lease_of(DB, "a")]):
        answer = Answer(capsys, *command)
        assert max(map(len, answer.lines)) <= 80
        assert any(RUN in line or lease_of(DB, "a") in line for line in answer.lines)
        assert "…" not in answer.out


def test_a_lease_is_shown_with_its_life(capsys: pytest.CaptureFixture[str]) -> None:
    answer = Answer(capsys, "leases", "show", lease_of(DB, "a"))
    assert f"lease     {lease_of(DB, 'a')}" in answer.lines
    assert "scope     database support as feedback-read, 2m" in answer.lines
    assert "held for  0.40s" in answer.lines
    life = answer.lines[answer.lines.index("") + 1 :]
    assert [re.split(r"  +", line)[1:] for line in life] == [
        ["✓ LIFE", "WHAT"],
        ["lease.requested", "read db: database support as feedback-read, 2m"],
        ["lease.issued", "orc_read-k3v9w2m7q4xa_Xy12 for 60s"],
        ["lease.revoking", "step ended"],
        ["lease.revoked", "confirmed by vault"],
    ]


def test_a_lease_may_be_named_by_the_beginning_of_its_id(capsys: pytest.CaptureFixture[str]) -> None:
    answer = Answer(capsys, "leases", "show", "lease_aaaaaaaaaaaaaaaaaaaa"[6:], "--json").json()
    assert answer["lease"]["state"] == "revoked"
    assert [event["kind"] for event in answer["events"]][-1] == "lease.revoked"


def test_in_json_mode_an_error_is_an_object_too(capsys: pytest.CaptureFixture[str]) -> None:
    answer = Answer(capsys, "runs", "show", "nowhere", "--json")
    assert answer.code == 2
    assert answer.json()["error"]["kind"] == "UnknownRun"
    assert answer.err.startswith("error: ")


def test_a_time_that_is_none_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    answer = Answer(capsys, "leases", "list", "--since", "yesterday")
    assert answer.code == 2
    assert "'yesterday' is not a time" in answer.err


@pytest.mark.parametrize(
    ("alive", "said"),
    [
        (True, "asked its process to cancel it; `orchestrator runs show run_1` tells when it has ended"),
        (False, "its process has ended; `orchestrator leases sweep` cancels it and closes what it left"),
    ],
)
def test_who_cancels_a_run_is_told_whether_its_process_can_hear_it(
    alive: bool, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = describe_self()
    driver = own if alive else json.dumps({**json.loads(own), "start": "1"})  # another process had this id once

    async def begun() -> None:
        async with open_ledger(str(tmp_path / "running.db"), clock=Ticking()) as ledger:
            ledger.runners.register("driver", driver)
            assert ledger.runners.own("run_1", "driver", digest="d", text="")
            await ledger.begin_run("run_1", SUCCEEDED[0])

    asyncio.run(begun())
    monkeypatch.setenv("ORCHESTRATOR_LEDGER_URL", str(tmp_path / "running.db"))
    answer = Answer(capsys, "runs", "cancel", "run_1")
    assert (answer.code, " ".join(answer.lines)) == (0, f"run_1: {said}")

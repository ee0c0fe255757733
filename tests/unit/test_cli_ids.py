"""Ids by their beginning, lists of runs that fit a terminal, and what the shell is offered."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from bench import ROOT
from cli_samples import DB, RUN, STARTED, SUCCEEDED, Ticking
from test_cli_history import Answer, record

from orchestrator.cli.display.runs.listing import age
from orchestrator.cli.lookup import completion
from orchestrator.errors import UnknownRun, UnknownTask
from orchestrator.ledger.events import StepFinished
from orchestrator.ledger.ids import call_id, new_approval_id, new_lease_id, new_run_id, new_task_id
from orchestrator.ledger.opening import open_ledger
from orchestrator.ledger.reading.id_lookup import beginnings, id_among
from orchestrator.ledger.states import IdKind, StepState

SIBLING = RUN[:-1] + "T"
OWN = "nightly-2026-03-02"


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ledger") / "ledger.db"
    asyncio.run(record(path, {RUN: ("a", SUCCEEDED), SIBLING: ("b", SUCCEEDED), OWN: ("c", SUCCEEDED)}))
    return path


@pytest.fixture(autouse=True)
def _environment(ledger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHESTRATOR_LEDGER_URL", str(ledger))


def among(*ids: str, kind: IdKind = IdKind.RUN, text: str) -> str:
    return id_among(
        lambda starts, most: [each for each in sorted(ids) if each.startswith(tuple(starts))][:most], kind, text
    )


@pytest.mark.parametrize(
    ("kind", "make"),
    [
        (IdKind.RUN, new_run_id),
        (IdKind.RUN, lambda: call_id("task_1", "key")),
        (IdKind.TASK, new_task_id),
        (IdKind.LEASE, new_lease_id),
        (IdKind.APPROVAL, new_approval_id),
    ],
    ids=["run", "call", "task", "lease", "approval"],
)
def test_an_id_is_found_by_any_beginning_in_any_case_with_or_without_its_word(
    kind: IdKind, make: Callable[[], str]
) -> None:
    made = make()
    word, _, rest = made.partition("_")
    for text in (made, made[:-1], f"{word}_{rest[:4]}", rest, rest[:4], rest[:9]):
        for spelled in (text, text.upper(), text.lower()):
            assert among(made, "another_id", kind=kind, text=spelled) == made, spelled
    assert among(made, kind=kind, text=rest[:3]) == rest[:3], "too short to stand for anything"
    assert among(made, kind=kind, text=f"{word}_") == f"{word}_"


def test_ids_that_people_chose_are_taken_as_they_are_written() -> None:
    assert among("nightly-7", "Nightly-8", text="nigh") == "nightly-7"
    assert among("nightly-7", "Nightly-8", text="Nigh") == "Nightly-8"
    assert among("a", "ab", "abcde", text="a") == "a", "a whole id may be short"
    assert among("abcd", "abcde", text="abcd") == "abcd", "and the beginning of another one"


def test_several_ids_that_begin_so_are_listed() -> None:
    ids = [f"run_01AB{number:02}" for number in range(12)]
    with pytest.raises(UnknownRun, match="more than one run begins with 01ab") as told:
        among(*ids, text="01ab")
    assert told.value.hint == f"give more characters: {', '.join(ids[:8])}, ..."
    with pytest.raises(UnknownTask, match="more than one task begins with task_01AB"):
        among("task_01AB1", "task_01AB2", kind=IdKind.TASK, text="task_01AB")


def test_a_beginning_stands_for_nothing_that_cannot_be_an_id() -> None:
    assert beginnings(IdKind.LEASE, "lease_%%%%") == ()
    assert beginnings(IdKind.LEASE, "0189") == (), "no lease has these digits"
    assert beginnings(IdKind.RUN, "01k8") == ("01k8", "run_01K8")
    assert beginnings(IdKind.RUN, "abcd") == ("abcd", "run_ABCD", "call_abcd")


@pytest.mark.parametrize("spelled", [SIBLING[:-1] + "t", SIBLING[4:].lower(), SIBLING])
def test_commands_take_the_beginning_of_an_id(capsys: pytest.CaptureFixture[str], spelled: str) -> None:
    assert Answer(capsys, "runs", "show", spelled, "--json").json()["run"]["run_id"] == SIBLING
    assert Answer(capsys, "runs", "verify", spelled, "--json").json()["run"] == SIBLING
    assert {each["run_id"] for each in Answer(capsys, "leases", "list", "--run", spelled, "--json").json()} == {SIBLING}
    assert Answer(capsys, "policy", "explain", "night").code == 2


def test_a_beginning_of_several_runs_is_refused_with_the_candidates(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["runs", "show"], ["runs", "verify"], ["runs", "cancel"], ["runs", "retry"], ["runs", "resume"]):
        answer = Answer(capsys, *words, RUN[:-1].lower())
        assert answer.code == 2
        assert answer.err == (
            f"error: more than one run begins with {RUN[:-1].lower()}\nhint: give more characters: {RUN}, {SIBLING}\n"
        )


def test_a_lease_is_found_by_four_characters_if_they_are_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    several = Answer(capsys, "leases", "show", "AAAA")
    assert (several.code, "more than one lease begins with AAAA" in several.err) == (2, True)
    one = Answer(capsys, "leases", "show", f"LEASE_{DB[6:-1]}b", "--json")
    assert one.json()["lease"]["lease_id"] == f"{DB[:-1]}b"


def test_a_list_of_runs_fits_a_narrow_terminal(ledger: Path) -> None:
    shown = at_a_terminal("runs", "list", columns=80, ledger=ledger)
    assert shown[0].split() == ["RUN", "WORKFLOW", "STATE", "TRIGGER", "AGE"]
    assert re.fullmatch(rf"{SIBLING} +customer_feedback +succeeded +manual +\d+\w", shown[2]), shown
    assert max(map(len, shown)) <= 80
    wide = at_a_terminal("runs", "list", columns=140, ledger=ledger)
    assert wide[0].split() == ["RUN", "WORKFLOW", "STATE", "TRIGGER", "STARTED", "TOOK"]


def at_a_terminal(*words: str, columns: int, ledger: Path) -> list[str]:
    """What a terminal of so many columns is shown."""
    import pty

    leader, follower = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(columns), "NO_COLOR": "1", "TERM": "dumb", "PYTHONPATH": str(ROOT)}
    environment["ORCHESTRATOR_LEDGER_URL"] = str(ledger)
    with subprocess.Popen(
        [sys.executable, "-m", "orchestrator.cli", *words], stdout=follower, stderr=follower, env=environment
    ) as process:
        os.close(follower)
        said = b""
        try:
            while part := os.read(leader, 65536):
                said += part
        except OSError:  # what a terminal says whose last program has gone
            pass
        assert process.wait() == 0
    os.close(leader)
    return [line.rstrip() for line in said.decode().splitlines()]


def test_a_page_says_how_the_next_one_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    first = Answer(capsys, "runs", "list", "--limit", "2")
    assert first.lines[-1] == f"the newest 2; older ones: --before {SIBLING}"
    second = Answer(capsys, "runs", "list", "--limit", "2", "--before", SIBLING[:-1] + "t")
    assert [line.split()[0] for line in second.lines] == ["RUN", RUN]
    unknown = Answer(capsys, "runs", "list", "--before", "nobody")
    assert (unknown.code, "no run nobody is in the ledger" in unknown.err) == (2, True)


def test_proofs_are_apart(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    proof = [replace(STARTED, trigger="prove"), *SUCCEEDED[1:]]
    path = tmp_path / "proof.db"
    asyncio.run(record(path, {RUN: ("a", SUCCEEDED), SIBLING: ("b", proof)}))
    monkeypatch.setenv("ORCHESTRATOR_LEDGER_URL", str(path))
    assert [line.split()[0] for line in Answer(capsys, "runs", "list").lines] == ["RUN", RUN]
    of_workflow = Answer(capsys, "runs", "list", "--workflow", "customer_feedback", "--json").json()
    assert [each["run_id"] for each in of_workflow] == [RUN]
    every = Answer(capsys, "runs", "list", "--all")
    assert [(line.split()[0], line.split()[3]) for line in every.lines] == [
        ("RUN", "KIND"),
        (SIBLING, "proof"),
        (RUN, "run"),
    ]
    proofs = Answer(capsys, "runs", "list", "--trigger", "prove", "--json").json()
    assert [(each["run_id"], each["kind"]) for each in proofs] == [(SIBLING, "proof")]


def test_runs_are_chosen_by_time(capsys: pytest.CaptureFixture[str]) -> None:
    every = Answer(capsys, "runs", "list", "--json").json()
    newest = every[0]["started_at"]
    assert [each["run_id"] for each in Answer(capsys, "runs", "list", "--since", newest, "--json").json()] == [OWN]
    until = Answer(capsys, "runs", "list", "--until", newest, "--json").json()
    assert [each["run_id"] for each in until] == [SIBLING, RUN]
    assert Answer(capsys, "runs", "list", "--since", "1h").lines == ["no runs"]
    wrong = Answer(capsys, "runs", "list", "--since", "yesterday")
    assert (wrong.code, "'yesterday' is not a time" in wrong.err) == (2, True)


def test_how_long_ago_is_said_in_one_unit() -> None:
    now = datetime(2026, 3, 2, tzinfo=UTC)
    spans = [(0, "0s"), (119, "119s"), (120, "2m"), (7199, "119m"), (7200, "2h"), (172_800, "2d"), (1_209_600, "2w")]
    assert [age(now, now - timedelta(seconds=seconds)) for seconds, _ in spans] == [said for _, said in spans]
    assert age(now, now + timedelta(seconds=5)) == "0s", "clocks of other machines may be ahead"


# --- what steps gave


@pytest.fixture
def with_outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "outputs.db"
    evil = "\x1b]0;title\x07\u202eabc\r\n run_FAKE succeeded"
    given = {"rows": [{"id": 7}], "text": evil, "long": "x" * 500}

    async def write() -> None:
        async with open_ledger(str(path), clock=Ticking()) as ledger:
            fence = await ledger.begin_run(RUN, replace(STARTED, reason="the\x1b[31m disk was full"))
            end = StepFinished(step="read", state=StepState.SUCCEEDED, outputs=given, reason=evil)
            await ledger.append(RUN, fence, [end])

    asyncio.run(write())
    monkeypatch.setenv("ORCHESTRATOR_LEDGER_URL", str(path))


@pytest.mark.usefixtures("with_outputs")
def test_what_steps_gave_is_shown_and_only_the_beginning_of_what_is_long(capsys: pytest.CaptureFixture[str]) -> None:
    shown = Answer(capsys, "runs", "show", RUN)
    assert 'read.rows  [{"id": 7}]' in shown.lines
    (long,) = [line for line in shown.lines if line.startswith("read.long")]
    assert long.endswith("... 302 more characters (--outputs)")
    assert long.count("x") == 199
    whole = Answer(capsys, "runs", "show", RUN, "--outputs")
    assert whole.out.count("x" * 300) == 1
    assert "more characters" not in whole.out


@pytest.mark.usefixtures("with_outputs")
@pytest.mark.parametrize("more", [(), ("--outputs",), ("--all",)])
def test_what_steps_gave_does_nothing_to_a_terminal(capsys: pytest.CaptureFixture[str], more: tuple[str, ...]) -> None:
    shown = Answer(capsys, "runs", "show", RUN, *more)
    assert not set(re.sub(r"[\n]", "", shown.out)) & set("\x1b\x07\r\u202e")
    assert not [line for line in shown.lines if line.startswith("run_FAKE")]
    assert [line for line in shown.lines if line.startswith("why") and "disk was full" in line]


def test_nothing_is_said_of_outputs_where_none_are_kept(capsys: pytest.CaptureFixture[str]) -> None:
    shown = Answer(capsys, "runs", "show", OWN)
    kept = [
        each["outputs"] for each in Answer(capsys, "runs", "show", OWN, "--json").json()["steps"] if each["outputs"]
    ]
    assert ("OUTPUTS" in shown.lines) == bool(kept)


def test_no_line_ends_in_spaces_where_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["runs", "show", OWN], ["runs", "list"], ["leases", "list"], ["leases", "show", f"{DB[:-1]}b"]):
        out = Answer(capsys, *words).out
        assert out
        assert not [line for line in out.splitlines() if line != line.rstrip()]


# --- completion


def test_the_shell_is_offered_ids_and_names_from_the_ledger() -> None:
    assert completion.run_ids("") == [OWN, SIBLING, RUN]
    assert completion.run_ids("night") == [OWN]
    assert completion.run_ids(RUN[:-1]) == [SIBLING, RUN]
    assert completion.run_ids("01kj") == [SIBLING, RUN], "in the case of the ids"
    assert completion.run_ids("nothing") == []
    assert set(completion.lease_ids("lease_aaaa")) == {f"{DB[:-1]}{mark}" for mark in "abc"}
    assert completion.workflow_names("cust") == ["customer_feedback"]
    assert completion.workflow_names("x") == []
    assert completion.task_ids("") == []


@pytest.mark.parametrize("what", ["nothing", "a folder", "no ledger", "no such server", "no url"])
def test_the_shell_is_offered_nothing_where_there_is_no_ledger(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    places = {
        "nothing": str(tmp_path / "none.db"),
        "a folder": str(tmp_path),
        "no ledger": str(tmp_path / "text"),
        "no such server": "postgresql://nobody@127.0.0.1:1/none",
        "no url": "nonsense://x",
    }
    (tmp_path / "text").write_text("this is no database, whatever it is called")
    monkeypatch.setenv("ORCHESTRATOR_LEDGER_URL", places[what])
    offers = (completion.run_ids, completion.lease_ids, completion.task_ids, completion.workflow_names)
    assert [offer("") for offer in offers] == [[], [], [], []]
    assert not (tmp_path / "none.db").exists(), "to complete makes no ledger"
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("orchestrator runs show ni", OWN),
        ("orchestrator runs list --workflow cus", "customer_feedback"),
        ("orchestrator leases show lease_zz", None),
        (f"orchestrator leases list --run {RUN[:-1]}", RUN),
        ("orchestrator runs list --before ni", OWN),
    ],
)
def test_a_shell_completes_them(words: str, offered: str | None, ledger: Path) -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "ORCHESTRATOR_LEDGER_URL": str(ledger),
        "_ORCHESTRATOR_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }
    command = [sys.executable, "-c", "from orchestrator.cli.entry import run; run()"]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert answer.stderr == ""
    assert (offered in answer.stdout.split()) if offered else answer.stdout.split() == []


def test_what_is_printed_as_json_is_what_was_recorded(capsys: pytest.CaptureFixture[str]) -> None:
    (first, *_) = json.loads(Answer(capsys, "runs", "list", "--json").out)
    assert (first["run_id"], first["retry_of"], first["retried_by"], first["kind"]) == (OWN, None, None, "run")

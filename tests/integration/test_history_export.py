"""The history, given out: whole, in one order, with a mark at its end that is there only where all was said."""

from __future__ import annotations

import json
import secrets
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from bench import Bench
from escaped import escaped_secrets
from exported import LIFE, Export, exporter, ledger_of, lines, rows, stored, with_tasks
from ocsf_schema import problems

from orchestrator.evidence.export.jsonl import jsonl
from orchestrator.evidence.export.spreadsheet import spreadsheet
from orchestrator.evidence.export.stream import Tally
from orchestrator.ledger.opening import open_reader
from orchestrator.ledger.reading import history
from orchestrator.ledger.reading.history import HistoryFilter

WORKFLOW = """
version: 1
name: exported
agent: feedback-assistant
inputs: { who: { type: string } }
steps:
  read:
    action: postgres.query
    grants:
      db: { kind: database, connection: support, role: feedback-read }
    with:
      sql: SELECT current_user AS login, %(who)s::text AS who
      parameters: { who: "${{ inputs.who }}" }
    outputs: [rows]
  refused:
    needs: [read]
    action: postgres.query
    grants:
      db: { kind: database, connection: support, role: no-such-role }
    with: { sql: SELECT 1 }
"""
PERSON = "Ada Lovelace of Nowhere"


@pytest.fixture
def export(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Export:
    return exporter(monkeypatch, capsys)


class TestRealRuns:
    @pytest.fixture
    def url(self, bench: Bench) -> str:
        for _ in range(2):
            bench.run(WORKFLOW, inputs={"who": PERSON})
        return bench.config().ledger_url

    def test_every_event_is_there_in_order_with_its_run(self, url: str, bench: Bench, export: Export) -> None:
        found, mark = lines(export(url))
        path = Path(url.removeprefix("sqlite:///"))
        assert Counter((line["run_id"], line["seq"], line["kind"], line["digest"]) for line in found) == Counter(
            stored(path, "run_id, seq, kind, digest", "event")
        )
        assert mark["events"] == mark["ledger_events"] == len(found) > 20
        assert (mark["missing_events"], mark["unfinished_runs"]) == (0, 0)
        assert (mark["last_run"], mark["last_seq"]) == (found[-1]["run_id"], found[-1]["seq"])
        assert (mark["first_time"], mark["last_time"]) == stored(path, "min(time), max(time)", "event")[0]
        started = stored(path, "run_id", "run ORDER BY started_at, run_id")
        assert list(dict.fromkeys(line["run_id"] for line in found)) == [run for (run,) in started]
        assert mark["runs"] == len(started)
        for (run,) in started:
            assert [line["seq"] for line in found if line["run_id"] == run] == list(
                range(1, 1 + sum(line["run_id"] == run for line in found))
            )
        of_workflow = [line for line in found if line["workflow"] == "exported"]
        assert {line["agent"] for line in of_workflow} == {"feedback-assistant"}

    def test_what_may_be_personal_is_left_out_unless_it_is_asked_for(self, url: str, export: Export) -> None:
        for form in ("jsonl", "csv", "ocsf"):
            assert PERSON not in export(url, "--format", form)
        found, _ = lines(export(url))
        left_out = {(line["kind"], *line["left_out"]) for line in found if "left_out" in line}
        assert {("run.started", "inputs"), ("step.finished", "outputs")} <= left_out
        whole, _ = lines(export(url, "--with-values"))
        assert {line["kind"] for line in whole if PERSON in json.dumps(line)} >= {"run.started", "step.finished"}
        assert not any("left_out" in line for line in whole)
        assert PERSON in export(url, "--format", "ocsf", "--with-values")

    def test_no_secret_is_in_it(self, url: str, export: Export, tmp_path: Path) -> None:
        (tmp_path / "exported").mkdir()
        for form in (["csv"], ["jsonl", "--with-values"], ["ocsf", "--with-values"]):
            export(url, "--format", *form, "--output", str(tmp_path / "exported" / form[0]))
        assert len(list((tmp_path / "exported").iterdir())) == 3
        assert escaped_secrets([tmp_path / "exported"]) == []

    def test_the_table_says_who_held_what_and_when(self, url: str, export: Export) -> None:
        found, mark = rows(export(url, "--format", "csv"))
        path = Path(url.removeprefix("sqlite:///"))
        columns = (
            "lease_id, run_id, workflow, step, attempt, agent, resource, grant_kind, state, requested_at, "
            "coalesce(issued_at, ''), coalesce(expires_at, ''), coalesce(closed_at, ''), subject"
        )
        names = [name.strip("()',").removeprefix("coalesce(") for name in columns.split(", ") if name != "'')"]
        assert sorted(tuple(row[name] for name in names) for row in found) == sorted(
            tuple(map(str, row)) for row in stored(path, columns, "lease")
        )
        assert int(mark["leases"]) == len(found) > 0
        kinds = {row["grant_kind"]: row for row in found if row["state"] == "revoked"}
        assert kinds["database"]["confirmed_by"] == "database"
        assert kinds["step-token"]["confirmed_by"] == "vault"
        assert "database support as feedback-read" in {row["scope"].partition(",")[0] for row in found}
        assert {row["state"] for row in found} == {"revoked", "denied"}

    def test_it_can_be_limited_as_other_lists(self, url: str, export: Export) -> None:
        everything, _ = lines(export(url))
        first, second = list(dict.fromkeys(each["run_id"] for each in everything if each["workflow"] == "exported"))
        begun = next(each["time"] for each in everything if each["run_id"] == second)
        of = lambda *words: lines(export(url, *words))[0]  # noqa: E731
        assert of("--run", first) == [each for each in everything if each["run_id"] == first]
        assert of("--workflow", "exported") == [each for each in everything if each["workflow"] == "exported"]
        assert of("--agent", "orchestrator") == [each for each in everything if each["agent"] == "orchestrator"]
        assert of("--agent", "nobody") == []
        assert {each["run_id"] for each in of("--since", begun)} >= {second}
        assert first not in {each["run_id"] for each in of("--since", begun)}
        assert {each["run_id"] for each in of("--until", begun)} >= {first}
        assert second not in {each["run_id"] for each in of("--until", begun)}
        leases = of("--resource", "database/creds/feedback-read")
        assert {each["kind"].partition(".")[0] for each in leases} == {"lease"}
        assert [each for each in leases if each["kind"] == "lease.requested"] == [
            each
            for each in everything
            if each["kind"] == "lease.requested" and each["data"]["resource"] == "database/creds/feedback-read"
        ]
        assert len([each for each in leases if each["kind"] == "lease.revoked"]) == 2
        assert {
            row["resource"] for row in rows(export(url, "--format", "csv", "--resource", "database/creds/fe"))[0]
        } == {"database/creds/feedback-read"}

    def test_events_of_ocsf_are_valid_by_its_schema(self, url: str, export: Export) -> None:
        found, mark = lines(export(url, "--format", "ocsf"))
        assert mark["events"] == len(found) > 10
        assert "class_uid" not in mark
        everything, _ = lines(export(url))
        by_uid = {f"{line['run_id']}/{line['seq']}": line for line in everything}
        assert len({event["metadata"]["uid"] for event in found}) == len(found)
        for event in found:
            assert problems(event) == []
            line = by_uid[event["metadata"]["uid"]]
            assert event["metadata"]["version"] == "1.5.0"
            assert event["metadata"]["event_code"] == line["kind"]
            assert event["type_uid"] == event["class_uid"] * 100 + event["activity_id"]
            assert event["category_uid"] == event["class_uid"] // 1000
            assert event["unmapped"]["digest"] == line["digest"]
            assert event["unmapped"]["data"] == line["data"]
            assert event["time"] == pytest.approx(_milliseconds(line["time"]), abs=1)
        told = Counter((event["metadata"]["event_code"], event["type_uid"], event["status"]) for event in found)
        assert told[("lease.denied", 300501, "Failure")] == 2
        assert told[("run.finished", 600204, "Failure")] == 2
        assert told[("decision", 300301, "Success")] == 4
        kinds = Counter(line["kind"] for line in everything)
        assert told[("lease.issued", 300501, "Success")] == kinds["lease.issued"] > 0
        assert told[("lease.revoked", 300502, "Success")] == kinds["lease.revoked"] > 0
        given = next(event for event in found if event.get("user", {}).get("name", "").startswith("orc_"))
        assert given["privileges"][0].startswith("database support as ")
        assert given["actor"]["user"]["name"] in ("feedback-assistant", "orchestrator")


def _milliseconds(text: str) -> float:
    from datetime import datetime

    return datetime.fromisoformat(text).timestamp() * 1000


class TestBatches:
    async def test_the_order_and_the_whole_do_not_depend_on_the_batches(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, export: Export
    ) -> None:
        url = await ledger_of(f"sqlite:///{tmp_path / 'ledger.db'}", 11, 3, open_one=True)
        usual = {form: export(url, "--format", form) for form in ("jsonl", "csv")}
        found, mark = lines(usual["jsonl"])
        assert [(each["run_id"], each["seq"]) for each in found] == stored(
            tmp_path / "ledger.db", "run_id, seq", "event ORDER BY run_id, seq"
        )
        assert (mark["runs"], mark["unfinished_runs"]) == (11, 1)
        assert [row["state"] for row in rows(usual["csv"])[0]].count("issued") == 1
        for runs, events in ((1, 1), (2, 5), (3, 14), (4, 29), (11, 1000)):
            monkeypatch.setattr(history, "RUNS_AT_ONCE", runs)
            monkeypatch.setattr(history, "EVENTS_AT_ONCE", events)
            assert {form: export(url, "--format", form) for form in usual} == usual, (runs, events)

    @pytest.mark.parametrize(("runs", "leases"), [(1, 5_000), (200, 25)])
    async def test_memory_does_not_grow_with_the_history(self, tmp_path: Path, runs: int, leases: int) -> None:
        url = await ledger_of(f"sqlite:///{tmp_path / 'ledger.db'}", runs, leases)
        for form in (jsonl, spreadsheet):
            tally, largest, size = Tally(), 0, 0
            with open_reader(url) as reader:
                chapters = reader.history(HistoryFilter())

                def seen(chapters: Any = chapters) -> Any:
                    nonlocal largest
                    for chapter in chapters:
                        largest = max(largest, len(chapter.events))
                        yield chapter

                tracemalloc.start()
                try:
                    for line in form(seen(), tally):
                        size += len(line)
                    _, most = tracemalloc.get_traced_memory()
                finally:
                    tracemalloc.stop()
            assert tally.read == runs * (leases * LIFE + 2) >= 20_000
            assert tally.written == (tally.read if form is jsonl else runs * leases)
            assert largest <= history.EVENTS_AT_ONCE
            assert most < 8_000_000, f"{most} bytes for an export of {size}"

    async def test_tasks_calls_and_sweeps_are_in_it_as_they_began(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, export: Export
    ) -> None:
        url = await with_tasks(f"sqlite:///{tmp_path / 'ledger.db'}")
        everything = [
            ("run_a", 1),
            ("run_a", 2),
            ("task_b", 1),
            ("task_b", 2),
            ("run_c", 1),
            ("run_d", 1),
            ("run_d", 2),
            ("run_e", 1),
        ]
        for at_once in (200, 1, 2):
            monkeypatch.setattr(history, "RUNS_AT_ONCE", at_once)
            found, mark = lines(export(url))
            assert [(each["run_id"], each["seq"]) for each in found] == everything
            assert (mark["runs"], mark["unfinished_runs"]) == (5, 3)
            assert (mark["first_time"], mark["last_time"]) == (found[0]["time"], found[1]["time"])
            assert (mark["last_run"], mark["last_seq"]) == ("run_e", 1)
        of = lambda *words: {each["run_id"] for each in lines(export(url, *words))[0]}  # noqa: E731
        assert of("--agent", "desk") == {"task_b", "run_c"}
        assert of("--workflow", "(sweep)") == {"run_d"}
        assert of("--workflow", "inbox") == {"task_b", "run_c"}
        assert of("--run", "task_b") == {"task_b"}

    async def test_a_postgresql_ledger_is_read_the_same_way(
        self, tmp_path: Path, new_ledger: str, export: Export, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(history, "RUNS_AT_ONCE", 3)
        monkeypatch.setattr(history, "EVENTS_AT_ONCE", 10)
        monkeypatch.setattr(secrets, "token_hex", "0".__mul__)  # the salts of what lies beside the events
        await ledger_of(f"sqlite:///{tmp_path / 'ledger.db'}", 7, 2)
        await ledger_of(new_ledger, 7, 2)
        for words in ([], ["--format", "csv"], ["--resource", "kv/"], ["--agent", "agent-1"], ["--workflow", "odd"]):
            assert export(new_ledger, *words) == export(f"sqlite:///{tmp_path / 'ledger.db'}", *words), words


@pytest.mark.parametrize(
    ("words", "runs", "leases", "selection"),
    [
        ([], 20, 20 * 24, {}),
        (["--run", "run_000007"], 1, 24, {"run": "run_000007"}),
        (["--workflow", "odd"], 10, 10 * 24, {"workflow": "odd"}),
        (["--agent", "agent-1"], 7, 7 * 24, {"agent": "agent-1"}),
        (["--resource", "kv/"], 20, 20 * 12, {"resource": "kv/"}),
        (["--agent", "agent-1", "--resource", "kv/", "--workflow", "odd"], 4, 4 * 12, None),
        (["--until", "2020-01-01"], 0, 0, {"until": "2020-01-01T00:00:00.000000Z"}),
    ],
)
async def test_the_end_says_how_much_there_is_in_every_form(
    tmp_path: Path, export: Export, words: list[str], runs: int, leases: int, selection: dict[str, str] | None
) -> None:
    url = await ledger_of(f"sqlite:///{tmp_path / 'ledger.db'}", 20, 24)
    for form in ("jsonl", "ocsf"):
        found, mark = lines(export(url, "--format", form, *words))
        kinds = Counter(line.get("kind") or line["metadata"]["event_code"] for line in found)
        assert mark["events"] == len(found)
        assert kinds["lease.issued"] == kinds["lease.revoked"] == leases
        of_runs = 0 if "--resource" in words else runs
        assert kinds["run.started"] == kinds["run.finished"] == of_runs
        assert kinds["lease.revoking"] == (leases if form == "jsonl" else 0)
        assert mark["runs"] == runs
        assert mark["ledger_events"] == runs * (24 * LIFE + 2)
        assert selection is None or mark["selection"] == selection
        assert (mark["last_run"] is None) is (runs == 0)
    table, end = rows(export(url, "--format", "csv", *words))
    assert int(end["leases"]) == len(table) == leases
    assert int(end["ledger_events"]) == runs * (24 * LIFE + 2)
    assert {name: end[name] for name in selection or {}} == (selection or {})

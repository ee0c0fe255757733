"""Proofs on the real servers: an exact grant is proven, and every planted excess is found."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from bench import ROOT, Bench
from fork_server import ForkServer
from rich.console import Console

from orchestrator.actions.catalog import catalog
from orchestrator.assembly import open_services
from orchestrator.cli.commands.prove import show
from orchestrator.cli.main import main
from orchestrator.ledger.ids import new_run_id
from orchestrator.ledger.lease import LeaseState
from orchestrator.ledger.states import RunState
from orchestrator.proof.examine import Examination
from orchestrator.proof.forbidden import Verdict
from orchestrator.proof.page import page
from orchestrator.proof.report import GrantProof, Proof
from orchestrator.proof.service import Prover
from orchestrator.redaction.redactor import Redactor
from orchestrator.runs.types import RunRequest
from orchestrator.workflow.inputs import bind_inputs
from orchestrator.workflow.loader import load_text

SAMPLE = (ROOT / "workflows" / "customer_feedback.yaml").read_text()


def prove(bench: Bench, *steps: str, text: str = SAMPLE, inputs: dict[str, Any] | None = None, **wish: Any) -> Proof:
    loaded = load_text(text, filename="proven.yaml", actions=catalog)
    bound = bind_inputs(loaded.workflow, inputs or {}, partial=True)
    request = RunRequest(run_id=new_run_id(), loaded=loaded, inputs=bound, trigger="prove")

    async def go() -> Proof:
        async with open_services(bench.config(), redactor=Redactor()) as services:
            return await Prover(services=services, wish=Examination(**wish)).prove(request, steps)

    return asyncio.run(go())


def of(proof: Proof, grant: str = "db") -> GrantProof:
    return next(each for each in proof.grants if each.grant == grant)


def excess(proof: Proof) -> list[str]:
    comparison = of(proof).comparison
    assert comparison is not None
    return [f"{each.holding} through {each.via}" for each in comparison.excess if not each.tolerated]


class Held:
    """A ledger whose answer to one of its methods is held back; what was asked for is done by then."""

    def __init__(self, ledger: Any, method: str) -> None:
        self._ledger = ledger
        self._method = method
        self.done, self.go_on = asyncio.Event(), asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._ledger, name)
        if name != self._method:
            return found

        async def held(*arguments: Any) -> Any:
            answer = await found(*arguments)
            self.done.set()
            await self.go_on.wait()
            return answer

        return held


def test_one_that_is_cancelled_as_its_beginning_is_recorded_has_an_end(bench: Bench) -> None:
    loaded = load_text(SAMPLE, filename="proven.yaml", actions=catalog)
    request = RunRequest(run_id=new_run_id(), loaded=loaded, inputs={}, trigger="prove")

    async def go() -> None:
        async with open_services(bench.config(), redactor=Redactor()) as services:
            held = Held(services.ledger, "begin_run")
            prover = Prover(services=replace(services, ledger=held), wish=Examination())
            proving = asyncio.create_task(prover.prove(request, ["notify"]))
            await held.done.wait()
            for _ in range(2):
                proving.cancel()
                await asyncio.sleep(0)
            held.go_on.set()
            with pytest.raises(asyncio.CancelledError):
                await proving
            record = services.reader.run(request.run_id)
            assert record is not None
            assert record.state is not RunState.RUNNING

    asyncio.run(go())


def test_every_grant_of_the_sample_is_proven_and_revoked(bench: Bench) -> None:
    proof = prove(bench, before="support_owner")
    assert [each.as_json() for each in proof.grants if not each.holds] == []
    assert {each.step for each in proof.grants} == {"read", "translate", "notify", "record"}
    reading = of(proof)
    assert reading.comparison is not None
    assert [str(each) for each in reading.comparison.held if each.kind == "column"] == [
        "SELECT on column public.customer_feedback.comment",
        "SELECT on column public.customer_feedback.id",
        "SELECT on column public.customer_feedback.kind",
    ]
    assert reading.before is not None
    assert reading.after is not None
    assert reading.before.percent > 90
    assert reading.after.percent < 5
    assert {trial.verdict for trial in reading.trials} == {Verdict.REFUSED}
    assert len(reading.trials) >= 20
    assert {lease.state for lease in bench.history(proof.run_id)} <= {LeaseState.REVOKED, LeaseState.ENDED}
    assert proof.unconfirmed == 0


def test_the_step_token_opens_no_other_path(bench: Bench) -> None:
    proof = prove(bench, "read")
    trials = of(proof, "(step token)").trials
    assert {trial.verdict for trial in trials} == {Verdict.REFUSED}
    tried = {trial.what for trial in trials}
    assert f"read database/creds/{bench.sample_grant('record').vault_role}" in tried
    assert "read secret/data/slack/support-bot" in tried
    assert "write transit/sign/orchestrator-token" in tried
    assert "write auth/token/create" in tried


PLANTED = {
    "a table open to everybody": (
        "GRANT SELECT ON employee TO PUBLIC",
        "REVOKE SELECT ON employee FROM PUBLIC",
        "SELECT on table public.employee through PUBLIC",
    ),
    "a column open to everybody": (
        "GRANT UPDATE (number) ON payment_card TO PUBLIC",
        "REVOKE UPDATE (number) ON payment_card FROM PUBLIC",
        "UPDATE on column public.payment_card.number through PUBLIC",
    ),
    "a schema in which everybody may create": (
        "GRANT CREATE ON SCHEMA public TO PUBLIC",
        "REVOKE CREATE ON SCHEMA public FROM PUBLIC",
        "CREATE on schema public through PUBLIC",
    ),
    "temporary tables": (
        "GRANT TEMPORARY ON DATABASE support TO PUBLIC",
        "REVOKE TEMPORARY ON DATABASE support FROM PUBLIC",
        "TEMPORARY on database support through PUBLIC",
    ),
    "another database": (
        "GRANT CONNECT ON DATABASE postgres TO PUBLIC",
        "REVOKE CONNECT ON DATABASE postgres FROM PUBLIC",
        "CONNECT on database postgres through PUBLIC",
    ),
    "a function that everybody may call": (
        "CREATE FUNCTION public.helpful() RETURNS int LANGUAGE sql SECURITY DEFINER AS 'SELECT 1'",
        "DROP FUNCTION public.helpful()",
        "EXECUTE on function public.helpful() through PUBLIC",
    ),
    "a sequence": (
        "CREATE SEQUENCE public.numbers; GRANT USAGE ON SEQUENCE public.numbers TO PUBLIC",
        "DROP SEQUENCE public.numbers",
        "USAGE on sequence public.numbers through PUBLIC",
    ),
    "a system function": (
        "GRANT EXECUTE ON FUNCTION pg_catalog.pg_read_file(text) TO PUBLIC",
        "REVOKE EXECUTE ON FUNCTION pg_catalog.pg_read_file(text) FROM PUBLIC",
        "EXECUTE on function pg_catalog.pg_read_file(text) through PUBLIC",
    ),
    "a system table": (
        "GRANT SELECT ON pg_catalog.pg_authid TO PUBLIC",
        "REVOKE SELECT ON pg_catalog.pg_authid FROM PUBLIC",
        "SELECT on table pg_catalog.pg_authid through PUBLIC",
    ),
    "a large object": (
        "SELECT lo_create(4712); GRANT SELECT ON LARGE OBJECT 4712 TO PUBLIC",
        "SELECT lo_unlink(4712)",
        "SELECT on large object 4712 through PUBLIC",
    ),
    "a parameter": (
        "GRANT SET ON PARAMETER log_statement TO PUBLIC",
        "REVOKE SET ON PARAMETER log_statement FROM PUBLIC",
        "SET on parameter log_statement through PUBLIC",
    ),
    "a predefined role": (
        "GRANT pg_read_all_data TO {scope}",
        "REVOKE pg_read_all_data FROM {scope}",
        "INHERIT on role pg_read_all_data through membership",
    ),
    "a role that it may give to others": (
        "GRANT support_owner TO {scope} WITH ADMIN TRUE, INHERIT FALSE, SET FALSE",
        "REVOKE support_owner FROM {scope}",
        "ADMIN on role support_owner through membership",
    ),
    "a privilege of the scope role": (
        "GRANT SELECT ON payment_card TO {scope}",
        "REVOKE SELECT ON payment_card FROM {scope}",
        "SELECT on table public.payment_card through {scope}",
    ),
    "a privilege to pass on": (
        "GRANT SELECT (id) ON customer_feedback TO {scope} WITH GRANT OPTION",
        "REVOKE GRANT OPTION FOR SELECT (id) ON customer_feedback FROM {scope} CASCADE",
        "SELECT WITH GRANT OPTION on column public.customer_feedback.id through {scope}",
    ),
    "an object that the scope role owns": (
        "CREATE TABLE public.owned (a int); ALTER TABLE public.owned OWNER TO {scope}",
        "DROP TABLE public.owned",
        "OWNER on object table public.owned through {scope}",
    ),
}


@pytest.fixture
def planted(bench: Bench, request: pytest.FixtureRequest) -> Iterator[tuple[Bench, str]]:
    names = {"scope": bench.sample_grant("read").scope_role}
    plant, remove, found = (text.format(**names) for text in PLANTED[request.param])
    for statement in plant.split("; "):
        bench.sql(statement)
    yield bench, found
    for statement in remove.split("; "):
        bench.sql(statement)


@pytest.mark.parametrize("planted", PLANTED, indirect=True)
def test_every_planted_excess_is_found(planted: tuple[Bench, str]) -> None:
    bench, found = planted
    proof = prove(bench, "read")
    assert not proof.holds
    assert found in excess(proof)


@pytest.mark.parametrize("planted", ["a function that everybody may call"], indirect=True)
def test_what_everybody_holds_is_tolerated_only_where_it_is_named(planted: tuple[Bench, str]) -> None:
    bench, _ = planted
    assert prove(bench, "read", tolerate=("EXECUTE on function public.helpful()",)).holds
    assert not prove(bench, "read", tolerate=("EXECUTE on function public.other*",)).holds


@pytest.mark.parametrize("planted", ["a privilege of the scope role"], indirect=True)
def test_what_is_held_through_a_role_is_never_tolerated(planted: tuple[Bench, str]) -> None:
    bench, _ = planted
    assert not prove(bench, "read", tolerate=("*",)).holds


@pytest.mark.parametrize("planted", ["a table open to everybody"], indirect=True)
def test_a_forbidden_operation_that_works_is_said_so_on_the_page(planted: tuple[Bench, str]) -> None:
    bench, _ = planted
    proof = prove(bench, "read")
    tried = {trial.what: trial.verdict for trial in of(proof).trials}
    assert tried["select on public.employee"] is Verdict.ALLOWED
    text = page(proof)
    assert re.search(r'<tr class="bad"><td[^>]*>select on public.employee</td><td[^>]*>allowed</td>', text)
    assert "not proven" in text
    assert "<script" not in text


def test_a_privilege_that_is_missing_is_no_proof(bench: Bench) -> None:
    scope = bench.sample_grant("read").scope_role
    bench.sql(f"REVOKE SELECT (comment) ON customer_feedback FROM {scope}")
    try:
        proof = prove(bench, "read")
    finally:
        bench.sql(f"GRANT SELECT (comment) ON customer_feedback TO {scope}")
    comparison = of(proof).comparison
    assert comparison is not None
    assert [str(each) for each in comparison.missing] == ["SELECT on column public.customer_feedback.comment"]
    assert not proof.holds


def test_a_step_token_whose_policy_was_widened_is_no_proof(bench: Bench) -> None:
    bench.vault.sys.create_or_update_policy(
        "step/customer_feedback/read", 'path "database/creds/*" { capabilities = ["read"] }'
    )
    try:
        proof = prove(bench, "read")
    finally:
        with bench.provisioning() as work:
            work.apply(work.plan())
    allowed = [trial.what for trial in of(proof, "(step token)").trials if trial.verdict is Verdict.ALLOWED]
    assert f"read database/creds/{bench.sample_grant('record').vault_role}" in allowed
    assert not proof.holds
    for lease in bench.vault_leases():
        bench.vault.sys.revoke_lease(lease, sync=True)  # what the widened token took


def test_a_grant_that_is_refused_is_no_proof_and_the_others_are_made(bench: Bench) -> None:
    text = SAMPLE.replace("keys: [token]", "keys: [token, nothing]")
    proof = prove(bench, text=text)
    assert not proof.holds
    assert {each.step for each in proof.grants if not each.holds} == {"notify"}
    assert "nothing" in next(each.refused for each in proof.grants if each.refused)


def shown(proof: Proof) -> list[str]:
    """The report for people, line by line."""
    text = StringIO()
    show(proof, Console(file=text, width=200))
    return [line.rstrip() for line in text.getvalue().splitlines()]


def test_a_read_only_grant_is_proven_by_its_privileges_not_by_a_default_that_it_may_change(bench: Bench) -> None:
    proof = prove(bench, "enrich", text=(ROOT / "workflows" / "enrich_feedback.yaml").read_text())
    tried = {trial.what: trial for trial in of(proof).trials}
    assert {trial.verdict for trial in tried.values()} == {Verdict.REFUSED}
    assert tried["insert on public.customer_feedback"].answer == "permission denied for table customer_feedback"


@pytest.mark.parametrize("inputs", [{"customer_id": 1234}, {}], ids=["bound", "not bound"])
def test_row_limits_are_proven_with_and_without_the_value_of_a_run(bench: Bench, inputs: dict[str, Any]) -> None:
    proof = prove(bench, text=(ROOT / "workflows" / "support_ticket.yaml").read_text(), inputs=inputs)
    assert [each.as_json() for each in proof.grants if not each.holds] == []
    comparison = of(proof).comparison
    assert comparison is not None
    assert "EXECUTE on function orchestrator.bound(wanted integer)" in map(str, comparison.held)


def test_a_secret_is_held_to_its_declared_keys(bench: Bench) -> None:
    proof = prove(bench, "notify")
    (trial,) = of(proof, "bot").trials
    assert (trial.what, trial.verdict) == ("see a key that was not declared", Verdict.REFUSED)
    assert trial.answer == "it is handed token only"


def test_the_report_names_the_former_login_and_puts_its_labels_in_one_column(bench: Bench) -> None:
    proof = prove(bench, "read", before="feedback_app")
    lines = shown(proof)
    assert lines[0] == "read / db: proven"
    assert lines[3].startswith("  before, as feedback_app  ")
    assert lines[4].startswith("  now, as this login       ")
    assert {(line[25:27], line[27:28] == " ") for line in lines[2:8]} == {("  ", False)}
    assert lines[-1] == f"2 of 2 proven; recorded as {proof.run_id}, everything issued was revoked"
    assert "Before, as feedback_app: " in page(proof)


def test_what_is_not_revoked_yet_and_what_was_only_issued_is_never_called_more(bench: Bench) -> None:
    proof = prove(bench, "read")
    foreign = GrantProof(step="read", grant="queue", declared="dynamic rabbitmq/creds/x, 1m")
    left = replace(proof, grants=(*proof.grants, foreign), unconfirmed=2)
    assert "read / queue: issued; there is nothing to hold it to" in shown(left)
    assert shown(left)[-1] == f"2 of 2 proven; recorded as {proof.run_id}, 2 revocations are not confirmed yet"
    text = page(left)
    assert "Every credential that was examined can do" in text
    assert "2 revocations are not confirmed yet" in text
    assert "was revoked" not in text


@pytest.mark.parametrize("place", ["nowhere/page.html", "."])
def test_a_page_that_cannot_be_written_is_said_before_anything_is_issued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], place: str
) -> None:
    monkeypatch.chdir(tmp_path)
    sample = ROOT / "workflows" / "customer_feedback.yaml"
    assert main(["prove", str(sample), "--html", place]) == 2
    said = capfd.readouterr().err
    assert said == f"error: {place} cannot be written\nhint: name a file in a folder that is there\n"


def test_where_the_page_is_is_said_beside_the_report(bench: Bench, children: ForkServer, tmp_path: Path) -> None:
    file = tmp_path / "proof.html"
    words = ["prove", str(ROOT / "workflows" / "customer_feedback.yaml"), "--step", "read", "--html", str(file)]
    ended = children.command(*words, "--json", environment=bench.environment(ORCHESTRATOR_POLICY="allow-all"))
    assert (ended.returncode, ended.stderr) == (0, f"the report is in {file}\n")
    told = json.loads(ended.stdout)
    assert f'<time datetime="{told["made"]}">' in file.read_text()
    assert told["agent"] == "feedback-assistant"
    assert told["run"] in file.read_text()

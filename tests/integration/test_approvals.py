"""A step under approval waits without any credential until people have agreed: on real servers."""

from __future__ import annotations

import asyncio
import html
import json
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from bench import SETUPS, Bench
from page_server import pages_on
from signed_ledger import public_keys
from waiting import wait_for

from orchestrator.approvals.desk import Standing
from orchestrator.approvals.people import Person, owner_of
from orchestrator.approvals.votes import Verdict
from orchestrator.assembly import open_services
from orchestrator.clock import SystemClock
from orchestrator.errors import ExitCode, OrchestratorError, PolicyDenied, Refused, UsageError
from orchestrator.evidence.receipts import verified_receipt
from orchestrator.ledger.coordination.approvals import ApprovalRecord
from orchestrator.ledger.events import (
    ApprovalEnded,
    ApprovalRequested,
    ApprovalVoted,
    AttemptStarted,
    Decided,
    LeaseRequested,
    StepFinished,
)
from orchestrator.ledger.opening import open_ledger
from orchestrator.ledger.states import ApprovalState, RunState, StepState
from orchestrator.policy.engines.rego.engine import PolicySource, RegoEngine
from orchestrator.recovery.resumption import resume
from orchestrator.recovery.waiting import decided_runs
from orchestrator.redaction.redactor import Redactor
from orchestrator.runs.types import Interruption, RunOutcome
from orchestrator.secret import Secret


def workflow(name: str, *, more: str = "", top: str = "", sql: str = "SELECT 1 AS one") -> str:
    return f"""
version: 1
name: {name}
agent: tester
{top}
steps:
  work:
    action: postgres.query
    grants: {{ db: {{ kind: database, connection: support, role: feedback-read }} }}
    with: {{ sql: {sql} }}
    timeout: 20s
{more}
"""


def policy(*approvers: str, rules: str = "", **demand: Any) -> RegoEngine:
    """Allows every step; `work` under approval, whatever was approved: enforcing that is not the policy's part."""
    demanded = json.dumps({"approvers": approvers or ("vault:userpass-alice",), **demand})
    text = f"""
package orchestrator
import rego.v1
default decision := {{"allow": true}}
decision := {{"allow": true, "obligations": {{"approval": {demanded}}}}} if input.step.id == "work"
{rules}
"""
    return RegoEngine.from_sources([PolicySource("test.rego", text)])


@dataclass
class People:
    """Persons with logins of their own in Vault."""

    bench: Bench
    tokens: dict[str, Secret] = field(default_factory=dict)

    def token(self, name: str) -> Secret:
        if name not in self.tokens:
            vault = self.bench.vault
            vault.write_data(f"auth/userpass/users/{name}", data={"password": "x" * 12, "policies": f"{name}s,people"})
            answer = vault.write_data(f"auth/userpass/login/{name}", data={"password": "x" * 12})
            self.tokens[name] = Secret(answer["auth"]["client_token"])
        return self.tokens[name]


@pytest.fixture
def people(bench: Bench) -> Iterator[People]:
    vault = bench.vault
    vault.sys.enable_auth_method("userpass")
    vault.sys.create_or_update_policy("people", 'path "auth/token/create" { capabilities = ["update"] }')
    try:
        yield People(bench)
    finally:
        vault.sys.disable_auth_method("userpass")


def requests(bench: Bench) -> list[ApprovalRecord]:
    with open_ledger(bench.config().ledger_url, clock=SystemClock()) as ledger:
        return list(ledger.approvals.all())


def says(people: People, name: str, verdict: Verdict, approval_id: str = "", comment: str = "") -> Standing:
    """What somebody says through the door of the command line: their token is looked up with itself."""
    bench = people.bench
    approval_id = approval_id or requests(bench)[0].approval_id

    async def go() -> Standing:
        async with open_services(bench.config(), redactor=Redactor()) as services:
            deadline = services.clock.monotonic() + 20
            person = await owner_of(services.broker.vault, people.token(name), deadline=deadline)
            return await services.approvals.vote(approval_id, person, verdict, comment)

    return asyncio.run(go())


def of_kind(bench: Bench, kind: type) -> list[Any]:
    return [event for event in bench.events if isinstance(event, kind)]


@contextmanager
def waiting_run(bench: Bench, text: str, **how: Any) -> Iterator[Future[RunOutcome]]:
    """A run in the foreground, which waits for people by now."""
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(bench.run, text, **how)
        try:
            wait_for(lambda: of_kind(bench, ApprovalRequested) or running.done(), "the request for approval")
            yield running
        finally:  # a test that fails must not wait for ever, nor one whose request was made anew
            while not running.done():
                with open_ledger(bench.config().ledger_url, clock=SystemClock()) as ledger:
                    for record in ledger.approvals.all(state=ApprovalState.OPEN):
                        ledger.approvals.end(record.approval_id, ApprovalState.WITHDRAWN, now=SystemClock().now())
                time.sleep(0.5)


class TestWaiting:
    def test_nothing_is_issued_before_somebody_has_agreed(self, bench: Bench, people: People) -> None:
        with waiting_run(bench, workflow("approved"), policy=policy()) as running:
            for _ in range(3):
                time.sleep(0.5)
                assert bench.logins() == []
                assert bench.vault_leases() == []
            assert of_kind(bench, LeaseRequested) == of_kind(bench, AttemptStarted) == []
            found = says(people, "alice", Verdict.APPROVE, comment="for ticket 4711")
            assert found.state is ApprovalState.APPROVED
            assert running.result(60).exit_code is ExitCode.DONE
        asked, voted, ended = (of_kind(bench, kind) for kind in (ApprovalRequested, ApprovalVoted, ApprovalEnded))
        assert (asked[0].approvers, asked[0].count) == (("vault:userpass-alice",), 1)
        assert (voted[0].by, voted[0].verdict, voted[0].comment) == (
            "vault:userpass-alice",
            "approve",
            "for ticket 4711",
        )
        assert [each.outcome for each in ended] == ["approved"]
        first, second = of_kind(bench, Decided)
        assert list(first.input["approvals"]) == []
        assert [each["by"] for each in second.input["approvals"]] == ["vault:userpass-alice"]
        order = [type(event) for event in bench.events]
        assert order.index(ApprovalVoted) < order.index(AttemptStarted) < order.index(LeaseRequested)
        bench.assert_nothing_left()

    def test_the_receipt_of_what_was_agreed_to_says_who_has(self, bench: Bench, people: People) -> None:
        comment = "for <b>ticket</b> 4711"
        with waiting_run(bench, workflow("agreed"), policy=policy()) as running:
            says(people, "alice", Verdict.APPROVE, comment=comment)
            run = running.result(60).run_id
        (lease,) = [each.lease_id for each in bench.history(run) if each.grant == "db"]
        with pages_on(bench.config().ledger_url) as base:
            page = httpx.get(f"{base}/ui/leases/{lease}/receipt", trust_env=False).text
            document = httpx.get(f"{base}/ui/leases/{lease}/receipt.json", trust_env=False).text
        with open_ledger(bench.config().ledger_url, clock=SystemClock()) as ledger:
            proven = verified_receipt(document, public_keys(bench, ledger.log.origin()))
        (voted,) = of_kind(bench, ApprovalVoted)
        (vote,) = proven.said["approvals"]
        assert (vote["by"], vote["verdict"], vote["comment"]) == ("vault:userpass-alice", "approve", comment)
        approvals = page.split('aria-labelledby="approvals"')[1].split("</section>")[0]
        for text in ("1 of vault:userpass-alice", "<strong>approve</strong>", html.escape(comment), voted.signature):
            assert text in approvals, text
        bench.assert_nothing_left()

    def test_each_item_of_a_list_waits_for_itself(self, bench: Bench, people: People) -> None:
        text = workflow("of_items").replace("  work:\n", "  work:\n    for_each: [1, 2]\n    max_parallel: 2\n")
        with waiting_run(bench, text, policy=policy()) as running:
            wait_for(lambda: len(of_kind(bench, ApprovalRequested)) == 2, "both items to ask")
            assert bench.logins() == []
            asked = {each.step: each.approval_id for each in of_kind(bench, ApprovalRequested)}
            assert set(asked) == {"work[0]", "work[1]"}
            says(people, "alice", Verdict.APPROVE, asked["work[1]"])
            done = [("work[1]", StepState.SUCCEEDED)]
            wait_for(lambda: [(e.step, e.state) for e in of_kind(bench, StepFinished)] == done, "one item to end")
            assert [event.step for event in of_kind(bench, AttemptStarted)] == ["work[1]"]
            says(people, "alice", Verdict.DENY, asked["work[0]"])
            outcome = running.result(60)
        assert outcome.exit_code is ExitCode.REFUSED
        assert "1 of 2 items of step `work` failed; `work[0]`: " in outcome.errors["work"].message
        bench.assert_nothing_left()

    def test_a_denial_ends_the_step(self, bench: Bench, people: People) -> None:
        with waiting_run(bench, workflow("refused"), policy=policy()) as running:
            says(people, "alice", Verdict.DENY, comment="not today")
            outcome = running.result(60)
        assert outcome.exit_code is ExitCode.REFUSED
        assert isinstance(outcome.errors["work"], PolicyDenied)
        assert "vault:userpass-alice has refused it: not today" in outcome.errors["work"].message
        assert of_kind(bench, LeaseRequested) == []
        bench.assert_nothing_left()

    def test_who_has_agreed_twice_has_agreed_once(self, bench: Bench, people: People) -> None:
        two = policy("vault:userpass-alice", "vault-policy:bobs", count=2)
        with waiting_run(bench, workflow("twice"), policy=two) as running:
            assert says(people, "alice", Verdict.APPROVE).state is ApprovalState.OPEN
            assert says(people, "alice", Verdict.APPROVE).state is ApprovalState.OPEN
            time.sleep(2.5)
            assert not running.done()
            assert bench.logins() == []
            assert says(people, "bob", Verdict.APPROVE).state is ApprovalState.APPROVED
            assert running.result(60).exit_code is ExitCode.DONE
        assert {each.by for each in of_kind(bench, ApprovalVoted)} == {"vault:userpass-alice", "vault:userpass-bob"}

    def test_another_token_of_the_same_person_is_the_same_person(self, bench: Bench, people: People) -> None:
        two = policy("vault-policy:alices", count=2)
        with waiting_run(bench, workflow("same_person"), policy=two) as running:
            says(people, "alice", Verdict.APPROVE)
            child = bench.vault.__class__(bench.info.vault_address, token=people.token("alice").reveal())
            people.tokens["alice"] = Secret(child.auth.token.create(display_name="bob")["auth"]["client_token"])
            assert says(people, "alice", Verdict.APPROVE).state is ApprovalState.OPEN
            says(people, "alice", Verdict.DENY)
            assert running.result(60).exit_code is ExitCode.REFUSED

    def test_a_stranger_is_refused(self, bench: Bench, people: People) -> None:
        with waiting_run(bench, workflow("stranger"), policy=policy()) as running:
            for name in ("mallory", "alice2"):
                with pytest.raises(Refused, match="not among those"):
                    says(people, name, Verdict.APPROVE)
                with pytest.raises(Refused, match="not among those"):
                    says(people, name, Verdict.DENY)
            people.tokens["root"] = Secret(bench.info.root_token.reveal())
            with pytest.raises(Refused, match="root token"):
                says(people, "root", Verdict.APPROVE)
            people.tokens["nobody"] = Secret("s.aaaaaaaaaaaaaaaaaaaaaaaa"[:10])
            with pytest.raises(OrchestratorError):
                says(people, "nobody", Verdict.APPROVE)
            time.sleep(1.5)
            assert not running.done()
            assert bench.logins() == []
            says(people, "alice", Verdict.DENY)
            running.result(60)

    def test_a_child_token_is_not_who_its_name_says(self, bench: Bench, people: People) -> None:
        """Whoever may make child tokens chooses their names."""
        with waiting_run(bench, workflow("child"), policy=policy("vault:userpass-alice", "vault:token-x")) as running:
            mallory = bench.vault.__class__(bench.info.vault_address, token=people.token("mallory").reveal())
            for name in ("userpass-alice", "x"):
                made = mallory.auth.token.create(display_name=name)["auth"]["client_token"]
                people.tokens["made"] = Secret(made)
                with pytest.raises(Refused, match="not among those"):
                    says(people, "made", Verdict.APPROVE)
            says(people, "alice", Verdict.DENY)
            running.result(60)

    def test_nobody_approves_what_they_asked_for(self, bench: Bench, people: People) -> None:
        """The run is driven with alice's own token here; her other tokens are hers, too."""
        bench.vault.sys.create_or_update_policy(
            "alices",
            """path "auth/token/create/step.*" { capabilities = ["update"] }
            path "transit/*" { capabilities = ["update"] }
            path "auth/token/lookup-self" { capabilities = ["read"] }""",
        )
        from dataclasses import replace as changed

        from orchestrator.vault.config import TokenAuth

        ours = changed(bench.provisioned.vault_config(), auth=TokenAuth(people.token("alice")))
        both = policy("vault:userpass-alice", "vault:userpass-bob")
        text = workflow("own")
        with waiting_run(bench, text, policy=both, vault=ours) as running:
            assert of_kind(bench, ApprovalRequested)[0].asked_by == "vault:userpass-alice"
            with pytest.raises(Refused, match="nobody approves what they asked for"):
                says(people, "alice", Verdict.APPROVE)
            answer = bench.vault.write_data("auth/userpass/login/alice", data={"password": "x" * 12})
            people.tokens["again"] = Secret(answer["auth"]["client_token"])
            with pytest.raises(Refused, match="nobody approves what they asked for"):
                says(people, "again", Verdict.APPROVE)
            says(people, "bob", Verdict.DENY)
            running.result(60)

    def test_an_agent_does_not_approve_its_own_steps(self, bench: Bench, people: People) -> None:
        text = workflow("agents_own").replace("agent: tester", "agent: userpass-alice")
        with waiting_run(bench, text, policy=policy("vault:userpass-alice", "vault:userpass-bob")) as running:
            with pytest.raises(Refused, match="nobody approves what they asked for"):
                says(people, "alice", Verdict.APPROVE)
            says(people, "bob", Verdict.APPROVE)
            assert running.result(60).exit_code is ExitCode.DONE

    def test_what_nobody_approves_in_time_is_denied(self, bench: Bench, people: People) -> None:
        outcome = bench.run(workflow("expired"), policy=policy(expires_in=2))
        assert outcome.exit_code is ExitCode.REFUSED
        assert "in time" in outcome.errors["work"].message
        (record,) = requests(bench)
        assert record.state is ApprovalState.EXPIRED
        with pytest.raises(UsageError, match="expired"):
            says(people, "alice", Verdict.APPROVE)
        assert of_kind(bench, ApprovalEnded)[0].outcome == "expired"
        assert of_kind(bench, LeaseRequested) == []

    def test_other_steps_go_on_meanwhile(self, bench: Bench, people: People) -> None:
        more = """
  beside:
    action: postgres.query
    grants: { db: { kind: database, connection: support, role: feedback-read } }
    with: { sql: SELECT 1 AS one }
  after:
    action: postgres.query
    needs: [work]
    grants: { db: { kind: database, connection: support, role: feedback-read } }
    with: { sql: SELECT 1 AS one }
"""
        with waiting_run(bench, workflow("beside", more=more), policy=policy()) as running:
            wait_for(lambda: any(each.step == "beside" for each in of_kind(bench, AttemptStarted)), "the other step")
            says(people, "alice", Verdict.APPROVE)
            outcome = running.result(60)
        assert set(outcome.steps.values()) == {StepState.SUCCEEDED}

    def test_nobody_is_bothered_with_what_cannot_be_anyway(self, bench: Bench) -> None:
        engine = RegoEngine.from_sources(
            [
                PolicySource(
                    "test.rego",
                    'package orchestrator\ndecision := {"allow": true, "obligations": {"reason_required": true,'
                    '"approval": {"approvers": ["vault:userpass-alice"]}}}',
                )
            ]
        )
        outcome = bench.run(workflow("unreasoned"), policy=engine)
        assert "wants to know why" in outcome.errors["work"].message
        assert requests(bench) == []

    def test_the_policy_has_the_last_word(self, bench: Bench, people: People) -> None:
        """It is asked again with who has agreed, and may still say no."""
        text = """
package orchestrator
import rego.v1
ask := {"approval": {"approvers": ["vault:userpass-alice"]}}
decision := {"allow": true, "obligations": ask} if input.approvals == []
decision := {"allow": false, "reasons": ["by the wrong one"]} if input.approvals[0].by == "vault:userpass-alice"
"""
        engine = RegoEngine.from_sources([PolicySource("test.rego", text)])
        with waiting_run(bench, workflow("last_word"), policy=engine) as running:
            says(people, "alice", Verdict.APPROVE)
            assert "by the wrong one" in running.result(60).errors["work"].message
        assert of_kind(bench, LeaseRequested) == []


@pytest.mark.parametrize("name", SETUPS)
def test_it_is_the_same_with_each_ledger(bench: Bench, people: People, name: str) -> None:
    with bench.setup(name) as setup:
        how = {"ledger_url": setup.ledger_url, "policy": policy()}
        outcome = bench.run(workflow("each"), parks=True, run_id="each", **how)
        assert (outcome.state, outcome.exit_code) == (RunState.WAITING, ExitCode.WAITING)
        bench.assert_nothing_left()
        with open_ledger(setup.ledger_url, clock=SystemClock()) as ledger:
            (record,) = ledger.approvals.all(state=ApprovalState.OPEN)

        async def go_on() -> RunOutcome:
            async with open_services(bench.config(parks=True, **how), redactor=Redactor()) as services:
                assert await decided_runs(services) == []
                deadline = services.clock.monotonic() + 20
                person = await owner_of(services.broker.vault, people.token("alice"), deadline=deadline)
                given = await services.approvals.vote(record.approval_id[:8], person, Verdict.APPROVE)
                assert given.state is ApprovalState.APPROVED
                assert services.approvals.store.decided_runs(services.clock.now()) == ["each"]
                return await resume(services, "each", {}, Interruption())

        assert asyncio.run(go_on()).exit_code is ExitCode.DONE
        with open_ledger(setup.ledger_url, clock=SystemClock()) as ledger:
            assert ledger.examine("each").whole
    bench.assert_nothing_left()


class TestForgery:
    """Who can write into the ledger's tables alone approves nothing."""

    @pytest.mark.parametrize("what", ["asked_by", "demand", "expires_at", "question"])
    def test_a_request_that_somebody_has_changed_is_not_voted_on(self, bench: Bench, people: People, what: str) -> None:
        """So that it seems to be somebody else's, to need others, to be open for longer, or about something else."""
        import sqlite3

        with waiting_run(bench, workflow("changed"), policy=policy()) as running:
            record = requests(bench)[0]
            value = {
                "asked_by": '{"claims":[],"entity":"","name":"vault:somebody"}',
                "demand": '{"approvers":["vault:userpass-mallory"],"count":1,"expires_in":86400,"valid_for":3600}',
                "expires_at": "2099-01-01T00:00:00.000000Z",
                "question": json.dumps({**record.question, "agent": "somebody harmless"}),
            }[what]
            with sqlite3.connect(bench.directory / "ledger.db", timeout=20) as rows:
                rows.execute(f"UPDATE approval SET {what} = ?", (value,))
            for name in ("alice", "mallory"):
                with pytest.raises(Refused, match="not what was asked"):
                    says(people, name, Verdict.APPROVE, record.approval_id)
            time.sleep(1.5)
            assert not running.done()
            assert bench.logins() == []

    @pytest.mark.parametrize("how", ["state", "vote", "vote with a signature", "vote of another request"])
    def test_rows_that_somebody_wrote_are_not_believed(self, bench: Bench, people: People, how: str) -> None:
        import sqlite3

        with waiting_run(bench, workflow("forged"), policy=policy(expires_in=8)) as running:
            record = requests(bench)[0]
            statement, signature = "", "vault:v1:" + "A" * 86 + "=="
            if how != "state":
                by = Person("vault:userpass-alice", (), "")
                from orchestrator.approvals.votes import Vote

                statement = Vote(record.approval_id, record.subject, Verdict.APPROVE, by, record.asked_at).statement()
            if how == "vote of another request":
                other = bench.run(workflow("other"), policy=policy(expires_in=1))
                assert other.exit_code is ExitCode.REFUSED
                statement, signature = _signed_for(bench, people, record)
            with sqlite3.connect(bench.directory / "ledger.db", timeout=20) as rows:
                rows.execute("PRAGMA busy_timeout = 20000")
                if how != "state":
                    rows.execute(
                        "INSERT INTO approval_vote VALUES (?, ?, 'approve', ?, ?, ?)",
                        (
                            record.approval_id,
                            "vault:userpass-alice",
                            "2026-11-27T00:00:00.000000Z",
                            statement,
                            "nonsense" if how == "vote" else signature,
                        ),
                    )
                rows.execute("UPDATE approval SET state = 'approved' WHERE approval_id = ?", (record.approval_id,))
            outcome = running.result(90)
        assert outcome.exit_code is ExitCode.REFUSED
        assert of_kind(bench, LeaseRequested) == []
        assert of_kind(bench, ApprovalVoted) == []
        bench.assert_nothing_left()


def _signed_for(bench: Bench, people: People, record: ApprovalRecord) -> tuple[str, str]:
    """A vote that Vault has really signed, for another request."""
    from orchestrator.approvals.votes import Vote, signed

    async def go() -> tuple[str, str]:
        async with open_services(bench.config(), redactor=Redactor()) as services:
            deadline = services.clock.monotonic() + 20
            person = await owner_of(services.broker.vault, people.token("alice"), deadline=deadline)
            vote = Vote("appr_another", record.subject, Verdict.APPROVE, person, services.clock.now())
            entered = await signed(services.broker.vault, vote, deadline=deadline)
            return entered.statement, entered.signature

    return asyncio.run(go())

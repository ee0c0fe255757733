"""What a decision demands beside its yes is done, or the step gets nothing: each obligation on real servers."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from bench import Bench
from waiting import wait_for
from webhooks import Webhook, webhook

from orchestrator.actions.catalog import catalog
from orchestrator.clock import SystemClock
from orchestrator.errors import ExitCode, GrantRefused, PolicyDenied, StepFailed
from orchestrator.ledger.events import Decided, LeaseIssued, LeaseRequested, Notified, RunStarted
from orchestrator.ledger.opening import open_ledger
from orchestrator.ledger.states import StepState
from orchestrator.ledger.types import LeaseRecord
from orchestrator.policy.engines.rego.engine import PolicySource, RegoEngine
from orchestrator.policy.obligations import SUPPORTED
from orchestrator.policy.types import input_digest
from orchestrator.runs.types import RunOutcome
from orchestrator.secret import Secret
from orchestrator.workflow.loader import load_text

MAY_READ = """
SELECT attname FROM pg_attribute
WHERE attrelid = 'public.customer_feedback'::regclass AND attnum > 0
AND has_column_privilege(attrelid, attnum, 'select') ORDER BY 1
"""


def workflow(
    name: str, *, sql: str = MAY_READ, narrower: str = "", timeout: str = "20s", action: str = "postgres.query"
) -> str:
    given = {"sql": sql, "grant": "db"} if action.startswith("postgres") else {"command": ["/bin/true"]}
    return f"""
version: 1
name: {name}
agent: tester
steps:
  work:
    action: {action}
    grants:
      db:
        kind: database
        connection: support
        privileges:
          - select: customer_feedback
            columns: [id, kind, comment, city]
{narrower}
    with: {json.dumps(given)}
    timeout: {timeout}
    outputs: [rows]
"""


NARROWER = """
        narrower:
          without_city: { customer_feedback: { select: [id, kind, comment] } }
          ids: { public.customer_feedback: { select: [id] } }
"""


def policy(obligations: object = None, *, allow: bool = True, reasons: tuple[str, ...] = ()) -> RegoEngine:
    answer = {"allow": allow, "reasons": list(reasons), "obligations": obligations or {}}
    return RegoEngine.from_sources(
        [PolicySource("test.rego", f"package orchestrator\ndecision := {json.dumps(answer)}")]
    )


def columns(*names: str, table: str = "public.customer_feedback", verb: str = "select", grant: str = "db") -> Any:
    return {"columns": {grant: {table: {verb: list(names)}}}}


def rows(bench: Bench, outcome: RunOutcome) -> list[Any]:
    """The values that the step has read, from the ledger."""
    with open_ledger(bench.config().ledger_url, clock=SystemClock()) as ledger:
        (step,) = ledger.steps(outcome.run_id)
    assert isinstance(step.outputs, dict), outcome.errors
    return [next(iter(row.values())) for row in step.outputs["rows"]]


def of_kind(bench: Bench, kind: type) -> list[Any]:
    return [event for event in bench.events if isinstance(event, kind)]


def refused(bench: Bench, outcome: RunOutcome, *words: str) -> None:
    """Denied by policy, with these words, and nothing was asked of Vault."""
    assert outcome.exit_code is ExitCode.REFUSED
    error = outcome.errors["work"]
    assert isinstance(error, PolicyDenied)
    for word in words:
        assert word in f"{error.message} {error.hint}"
    assert of_kind(bench, LeaseRequested) == []
    bench.assert_nothing_left()


class TestColumns:
    def test_a_narrowed_grant_shows_fewer_columns_on_the_server(self, bench: Bench) -> None:
        text = workflow("narrowed", narrower=NARROWER)
        whole = bench.run(text, policy=policy())
        assert rows(bench, whole) == ["city", "comment", "id", "kind"]
        assert all("narrower" not in lease.scope for lease in bench.history(whole.run_id))
        narrow = bench.run(text, policy=policy(columns("id", "kind", "comment")), install=False)
        assert rows(bench, narrow) == ["comment", "id", "kind"]
        narrowest = bench.run(text, policy=policy(columns("id")), install=False)
        assert rows(bench, narrowest) == ["id"]
        (lease,) = [lease for lease in bench.history(narrowest.run_id) if lease.grant == "db"]
        assert lease.scope["privileges"] == [
            {"verb": "select", "object": "public.customer_feedback", "columns": ["id"]}
        ]
        assert "narrower" not in lease.scope
        bench.assert_nothing_left()

    def test_the_server_refuses_a_column_that_was_taken_away(self, bench: Bench) -> None:
        text = workflow("taken", narrower=NARROWER, sql="SELECT city FROM customer_feedback LIMIT 1")
        assert bench.run(text, policy=policy()).exit_code is ExitCode.DONE
        outcome = bench.run(text, policy=policy(columns("id", "kind", "comment")), install=False)
        error = outcome.errors["work"]
        assert isinstance(error, StepFailed)
        assert error.kind == "permission"
        bench.assert_nothing_left()

    def test_a_column_that_is_not_declared_does_not_come_in(self, bench: Bench) -> None:
        outcome = bench.run(workflow("beyond", narrower=NARROWER), policy=policy(columns("id", "email")))
        assert rows(bench, outcome) == ["id"]

    def test_what_leaves_everything_is_the_whole_grant(self, bench: Bench) -> None:
        demanded = columns("id", "kind", "comment", "city", "email")
        assert len(rows(bench, bench.run(workflow("all_of_it"), policy=policy(demanded)))) == 4

    def test_a_form_that_is_not_declared_is_a_denial_that_says_what_to_declare(self, bench: Bench) -> None:
        outcome = bench.run(workflow("undeclared", narrower=NARROWER), policy=policy(columns("kind")))
        refused(bench, outcome, "`select (kind) on public.customer_feedback`", "no such form", "`narrower`")

    def test_a_form_that_is_not_provisioned_is_refused_by_vault(self, bench: Bench) -> None:
        bench.run(workflow("late"), policy=policy())
        text = workflow("late", narrower=NARROWER)
        outcome = bench.run(text, policy=policy(columns("id")), install=False)
        assert outcome.exit_code is ExitCode.REFUSED
        assert isinstance(outcome.errors["work"], GrantRefused)
        bench.assert_nothing_left()

    @pytest.mark.parametrize(
        ("demanded", "word"),
        [
            (columns("id", grant="dd"), "the grant `dd`, which the step does not have"),
            (columns("id", table="public.customer_feedbak"), "customer_feedbak is not declared"),
            (columns("id", table="customer.feedback.x"), "is not a name"),
            (columns("id", verb="update"), "`update` of columns on public.customer_feedback is not declared"),
            (columns("email"), "none of the declared columns"),
        ],
    )
    def test_what_does_not_fit_the_grant_is_a_denial_and_not_ignored(
        self, bench: Bench, demanded: Any, word: str
    ) -> None:
        refused(bench, bench.run(workflow("unfit", narrower=NARROWER), policy=policy(demanded)), word)

    def test_a_role_that_is_maintained_by_hand_cannot_be_narrowed(self, bench: Bench) -> None:
        text = """
version: 1
name: by_hand
agent: tester
steps:
  work:
    action: postgres.query
    grants: { db: { kind: database, connection: support, role: feedback-read } }
    with: { sql: SELECT 1 AS one }
"""
        refused(bench, bench.run(text, policy=policy(columns("id"))), "is not declared")

    def test_row_limits_hold_in_a_narrower_form(self, bench: Bench) -> None:
        bench.sql("CREATE TABLE IF NOT EXISTS public.narrow_desk (id integer, customer integer, note text)")
        try:
            bench.sql("INSERT INTO public.narrow_desk VALUES (1, 7, 'mine'), (2, 8, 'not mine')")
            text = """
version: 1
name: limited
agent: tester
inputs: { customer: { type: integer } }
steps:
  work:
    action: postgres.query
    grants:
      db:
        kind: database
        connection: support
        privileges:
          - select: narrow_desk
            columns: [id, customer, note]
            where: { customer: "${{ inputs.customer }}" }
        narrower: { ids: { narrow_desk: { select: [id, customer] } } }
    with: { sql: SELECT id FROM narrow_desk }
    outputs: [rows]
"""
            demanded = columns("id", "customer", table="public.narrow_desk")
            outcome = bench.run(text, policy=policy(demanded), inputs={"customer": 7})
            assert rows(bench, outcome) == [1]
            (decided,) = of_kind(bench, Decided)
            form = decided.input["grants"][0]["narrower"][0]["privileges"][0]
            assert (form["columns"], form["where"]) == (["customer", "id"], {"customer": "7"})
        finally:
            bench.sql("DROP TABLE public.narrow_desk CASCADE")
            with bench.provisioning(prune=True) as work:
                work.apply(work.plan())
        bench.assert_nothing_left()


class TestRows:
    FIVE = "SELECT generate_series(1, 5) AS n"

    @pytest.mark.parametrize(("most", "state"), [(5, StepState.SUCCEEDED), (4, StepState.FAILED)])
    def test_more_rows_than_the_policy_allows_are_an_error(self, bench: Bench, most: int, state: StepState) -> None:
        outcome = bench.run(workflow("rows", sql=self.FIVE), policy=policy({"max_rows": most}))
        assert outcome.steps["work"] is state
        if state is StepState.FAILED:
            assert f"more than {most} rows" in outcome.errors["work"].message

    def test_the_policy_does_not_raise_what_the_step_says_itself(self, bench: Bench) -> None:
        text = workflow("own_limit", sql=self.FIVE).replace('"grant": "db"', '"grant": "db", "max_rows": 2')
        assert bench.run(text, policy=policy({"max_rows": 4})).steps["work"] is StepState.FAILED

    @pytest.mark.parametrize(("most", "state"), [(5, StepState.SUCCEEDED), (4, StepState.FAILED)])
    def test_what_a_statement_that_may_write_gives_back_is_held_to_it_too(
        self, bench: Bench, most: int, state: StepState
    ) -> None:
        text = workflow("given_back", sql=self.FIVE, action="postgres.execute")
        outcome = bench.run(text, policy=policy({"max_rows": most}))
        assert outcome.steps["work"] is state

    def test_an_action_that_cannot_be_held_to_it_is_denied(self, bench: Bench) -> None:
        text = workflow("not_held", action="exec").replace("outputs: [rows]", "outputs: [stdout]")
        outcome = bench.run(text, policy=policy({"max_rows": 4}))
        refused(bench, outcome, "the action `exec` cannot be held to that")


def held(bench: Bench, outcome: RunOutcome) -> list[LeaseRecord]:
    """What was issued to the step itself: its token and its login."""
    return [lease for lease in bench.history(outcome.run_id) if lease.step == "work"]


class TestLife:
    def test_the_servers_end_what_is_issued_when_the_policy_says(self, bench: Bench) -> None:
        """Vault's role gives logins of 50 s here, and the step would have a token of 50 s."""
        text = workflow("capped", sql="SELECT pg_sleep(4)", timeout="20s")
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(bench.run, text, policy=policy({"max_ttl": 25}))
            (lease,) = wait_for(bench.vault_leases, "a lease")
            issued = wait_for(lambda: [each for each in of_kind(bench, LeaseIssued) if each.accessor], "the token")
            token = bench.vault.auth.token.lookup_accessor(issued[0].accessor)["data"]
            assert 0 < token["ttl"] <= 25
            assert token["creation_ttl"] <= 25
            assert token["explicit_max_ttl"] <= 25 or token["renewable"] is False
            assert lease
            assert running.result(60).exit_code is ExitCode.DONE
        assert [lease.ttl <= 25 for lease in held(bench, running.result())] == [True, True]
        bench.assert_nothing_left()

    def test_without_it_they_live_longer(self, bench: Bench) -> None:
        """The test above can fail."""
        outcome = bench.run(workflow("uncapped", sql="SELECT 1"), policy=policy())
        assert [lease.ttl > 25 for lease in held(bench, outcome)] == [True, True]

    def test_a_token_that_is_signed_for_longer_is_taken_for_none(self, bench: Bench) -> None:
        """How long tokens of the profile `identity` live is installed in Vault, and no request shortens it."""
        text = """
version: 1
name: identity_capped
agent: tester
steps:
  work:
    action: exec
    grants: { api: { kind: token, audience: crm, scope: [read], profile: identity, ttl: 300s } }
    with: { command: [/bin/true] }
    timeout: 20s
"""
        loaded = load_text(text, filename="test.yaml", actions=catalog)
        with bench.provisioning([loaded.workflow]) as work:
            work.apply(work.plan())
        assert bench.run(text, policy=policy({"max_ttl": 320}), install=False).exit_code is ExitCode.DONE
        outcome = bench.run(text, policy=policy({"max_ttl": 60}), install=False)
        assert outcome.exit_code is ExitCode.REFUSED
        assert "valid for longer than the 60s" in outcome.errors["work"].message
        bench.assert_nothing_left()


class TestReason:
    def test_who_does_not_say_why_is_refused(self, bench: Bench) -> None:
        demanded = policy({"reason_required": True})
        refused(bench, bench.run(workflow("why"), policy=demanded), "wants to know why", "--reason")
        refused(bench, bench.run(workflow("why"), policy=demanded, reason=" \t"), "wants to know why")
        outcome = bench.run(workflow("why"), policy=demanded, reason="ticket 4711")
        assert outcome.exit_code is ExitCode.DONE
        started, decided = of_kind(bench, RunStarted)[-1], of_kind(bench, Decided)[-1]
        assert started.reason == "ticket 4711"
        assert decided.input["run"]["reason"] == "ticket 4711"


def notice(to: str = "security", text: str = "tester reads feedback") -> Any:
    return {"notify": [{"to": to, "text": text}]}


def nobody_knows_the_url(bench: Bench, hook: Webhook, outcome: RunOutcome) -> None:
    everything = b"".join(path.read_bytes() for path in bench.directory.rglob("*") if path.is_file())
    assert hook.secret.encode() not in everything
    assert hook.secret not in repr(outcome)
    assert hook.secret not in "".join(error.message + (error.hint or "") for error in outcome.errors.values())


class TestNotices:
    def test_others_are_told_before_there_is_a_credential(self, bench: Bench) -> None:
        with webhook(bench) as hook:
            outcome = bench.run(workflow("told"), policy=policy(notice()), notify={"security": Secret(hook.url)})
            assert outcome.exit_code is ExitCode.DONE
            (message,) = hook.messages
            assert message["text"] == "tester reads feedback"
            assert (message["run"], message["step"], message["allow"]) == (outcome.run_id, "work", True)
            assert message["id"] == f"{outcome.run_id}/work/1/1"
            assert hook.logins == []
            (told,) = of_kind(bench, Notified)
            assert (told.to, told.error) == ("security", "")
            order = [type(event) for event in bench.events]
            assert order.index(Decided) < order.index(Notified) < order.index(LeaseRequested)
            nobody_knows_the_url(bench, hook, outcome)

    def test_a_denial_is_told_as_well(self, bench: Bench) -> None:
        with webhook(bench) as hook:
            outcome = bench.run(
                workflow("denied"), policy=policy(notice(), allow=False), notify={"security": Secret(hook.url)}
            )
            refused(bench, outcome, "was denied by policy")
            assert [message["allow"] for message in hook.messages] == [False]
            assert [told.error for told in of_kind(bench, Notified)] == [""]

    def test_a_demand_that_cannot_be_met_keeps_nobody_from_being_told(self, bench: Bench) -> None:
        with webhook(bench) as hook:
            demanded = {**notice(), "delete_everything": True}
            outcome = bench.run(workflow("unknown"), policy=policy(demanded), notify={"security": Secret(hook.url)})
            refused(bench, outcome, "what this version cannot do: delete_everything")
            assert len(hook.messages) == 1

    def test_it_is_tried_again_where_that_may_help(self, bench: Bench) -> None:
        with webhook(bench, lambda number: 503 if number == 1 else 204) as hook:
            outcome = bench.run(workflow("again"), policy=policy(notice()), notify={"security": Secret(hook.url)})
            assert outcome.exit_code is ExitCode.DONE
            assert len(hook.messages) == 2
            assert hook.messages[0] == hook.messages[1]

    @pytest.mark.parametrize(
        ("status", "tries", "word"),
        [(500, 4, "it answered 500"), (404, 1, "404"), (302, 1, "302"), (None, 1, "in time")],
    )
    def test_who_cannot_be_told_keeps_the_step_from_its_credentials(
        self, bench: Bench, status: int | None, tries: int, word: str
    ) -> None:
        with webhook(bench, lambda number: status) as hook:
            outcome = bench.run(
                workflow("untold", timeout="60s"), policy=policy(notice()), notify={"security": Secret(hook.url)}
            )
            refused(bench, outcome, "demands that `security` is told first", word)
            assert len(hook.messages) == tries
            assert word in of_kind(bench, Notified)[0].error
            nobody_knows_the_url(bench, hook, outcome)

    def test_an_address_where_nobody_is_and_a_name_that_nobody_knows(self, bench: Bench) -> None:
        with webhook(bench) as hook:
            pass
        gone = bench.run(workflow("gone"), policy=policy(notice()), notify={"security": Secret(hook.url)})
        refused(bench, gone, "`security` could not be told", "ConnectError")
        nobody_knows_the_url(bench, hook, gone)
        unknown = bench.run(workflow("unknown_name"), policy=policy(notice("nobody")))
        refused(bench, unknown, "know no destination `nobody`", "ORCHESTRATOR_NOTIFY__NOBODY")

    def test_all_are_told_even_if_one_cannot_be(self, bench: Bench) -> None:
        with webhook(bench) as hook:
            demanded = {"notify": [*notice("nobody")["notify"], *notice()["notify"]]}
            outcome = bench.run(workflow("both"), policy=policy(demanded), notify={"security": Secret(hook.url)})
            refused(bench, outcome, "nobody")
            assert len(hook.messages) == 1


class TestOnRecord:
    def test_the_question_and_the_answer_are_recorded_whole(self, bench: Bench) -> None:
        demanded = {"max_ttl": 40, "max_rows": 9}
        outcome = bench.run(workflow("recorded"), policy=policy(demanded, reasons=("because",)))
        assert outcome.exit_code is ExitCode.DONE
        with open_ledger(bench.config().ledger_url, clock=SystemClock()) as ledger:
            (event,) = ledger.events(outcome.run_id, kind=Decided.kind)
        data = event.data
        assert data["question"] == "decision"
        assert data["answer"] == {"allow": True, "reasons": ["because"], "obligations": demanded}
        assert data["obligations"] == demanded
        asked = data["input"]
        assert isinstance(asked, dict)
        assert data["input_digest"] == input_digest(asked)
        assert asked["version"] == 1
        assert asked["step"] == {"id": "work", "attempt": 1, "timeout": 20}
        assert asked["supported_obligations"] == list(SUPPORTED)
        assert asked["grants"][0]["privileges"][0]["columns"] == ["city", "comment", "id", "kind"]

    def test_an_agent_that_is_not_admitted_leaves_the_whole_question_too(self, bench: Bench) -> None:
        engine = RegoEngine.from_sources(
            [
                PolicySource(
                    "test.rego",
                    'package orchestrator\ndecision := {"allow": true}\n'
                    'admit := {"allow": false, "reasons": ["a stranger"]}',
                )
            ]
        )
        refused(bench, bench.run(workflow("stranger"), policy=engine), "a stranger")
        (decided,) = of_kind(bench, Decided)
        assert (decided.question, decided.allow) == ("admit", False)
        assert decided.input["agent"] == "tester"
        assert decided.answer == {"allow": False, "reasons": ["a stranger"]}

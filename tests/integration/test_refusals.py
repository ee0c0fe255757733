"""Every way in which a credential is not to be had: the step does not run, and nothing stays behind."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from bench import Bench

from orchestrator.actions.catalog import catalog
from orchestrator.devstack.stack import DevStack
from orchestrator.errors import ExitCode, GrantRefused, PolicyDenied, VaultUnreachable
from orchestrator.ledger.events import AttemptStarted, LeaseIssued, LeaseRequested, RunStarted
from orchestrator.ledger.lease import LeaseState
from orchestrator.ledger.states import StepState
from orchestrator.policy.engines.rego.engine import PolicySource, RegoEngine
from orchestrator.workflow.loader import load_text

READ = "{ kind: database, connection: support, role: feedback-read }"


def workflow(name: str, *, grants: str = f"db: {READ}", timeout: str = "20s", more: str = "", top: str = "") -> str:
    return f"""
version: 1
name: {name}
agent: tester
{top}
steps:
  work:
    action: postgres.query
    grants:
      {grants}
    with: {{ sql: SELECT 1 AS one, grant: db }}
    timeout: {timeout}
{more}
"""


AFTER = """
  after:
    action: postgres.query
    needs: [work]
    grants:
      db: { kind: database, connection: support, role: feedback-read }
    with: { sql: SELECT 1 AS one }
"""


def rego(rules: str) -> RegoEngine:
    return RegoEngine.from_sources([PolicySource("test.rego", f"package orchestrator\n{rules}")])


@pytest.fixture
def role(bench: Bench) -> Iterator[str]:
    """A database role of the test's own in Vault, like `feedback-read`."""
    vault = bench.vault
    like = vault.read("database/roles/feedback-read")["data"]
    allowed = vault.read("database/config/support")["data"]["allowed_roles"]
    vault.write("database/config/support", allowed_roles=[*allowed, "test-role"])
    vault.write_data("database/roles/test-role", data=like)
    yield "test-role"
    vault.delete("database/roles/test-role")
    vault.write("database/config/support", allowed_roles=allowed)


def test_a_path_that_the_steps_policy_does_not_allow_is_refused_by_vault(bench: Bench) -> None:
    text = workflow("forbidden_path", more=AFTER)
    bench.install(load_text(text, filename="test.yaml", actions=catalog).workflow)
    bench.vault.sys.create_or_update_policy("step/forbidden_path/work", 'path "database/creds/other" {}')
    bench.vault.sys.create_or_update_policy("step/forbidden_path/after", 'path "database/creds/other" {}')
    outcome = bench.run(text, install=False)
    assert outcome.exit_code is ExitCode.REFUSED
    assert outcome.steps == {"work": StepState.REFUSED, "after": StepState.SKIPPED}
    error = outcome.errors["work"]
    assert isinstance(error, GrantRefused)
    assert (error.by, error.grant, error.path) == ("vault", "db", "database/creds/feedback-read")
    assert "403" in error.message
    assert "permission denied" in error.message
    states = {lease.grant_kind: lease.state for lease in bench.history(outcome.run_id)}
    assert states == {"step-token": LeaseState.REVOKED, "database": LeaseState.DENIED}


def test_an_unknown_role_is_refused(bench: Bench) -> None:
    outcome = bench.run(workflow("unknown_role", grants="db: { kind: database, connection: support, role: ghost }"))
    assert outcome.exit_code is ExitCode.REFUSED
    assert "unknown role" in outcome.reason
    assert "provision" in str(outcome.errors["work"].hint)


def test_a_step_without_a_provisioned_policy_gets_nothing(bench: Bench) -> None:
    outcome = bench.run(workflow("not_provisioned"), install=False)
    assert outcome.exit_code is ExitCode.REFUSED
    assert [event for event in bench.events if isinstance(event, LeaseIssued) and event.vault_lease_id] == []


def test_a_role_whose_ttl_is_too_small_is_refused_and_what_was_issued_is_revoked(bench: Bench, role: str) -> None:
    bench.vault.write_data("database/roles/test-role", data={"default_ttl": 3, "max_ttl": 5})
    outcome = bench.run(workflow("small_ttl", grants=f"db: {{ kind: database, connection: support, role: {role} }}"))
    assert outcome.exit_code is ExitCode.REFUSED
    assert "it was issued for 3s" in outcome.reason
    states = {lease.grant_kind: lease.state for lease in bench.history(outcome.run_id)}
    assert states["database"] is LeaseState.REVOKED


def test_an_exhausted_quota_is_a_refusal_once_the_deadline_is_reached(bench: Bench, role: str) -> None:
    quota = {"path": "database/creds/test-role", "rate": 0.02, "interval": "600s"}
    bench.vault.write_data("sys/quotas/rate-limit/test", data=quota)
    grants = f"db: {{ kind: database, connection: support, role: {role} }}"
    try:
        assert bench.run(workflow("quota_first", grants=grants)).exit_code in (ExitCode.DONE, ExitCode.REFUSED)
        outcome = None
        for _ in range(15):
            outcome = bench.run(workflow("quota", grants=grants, timeout="2s"))
            if outcome.exit_code is not ExitCode.DONE:
                break
    finally:
        bench.vault.delete("sys/quotas/rate-limit/test")
    assert outcome is not None
    assert outcome.exit_code is ExitCode.REFUSED
    assert "quota" in str(outcome.errors["work"].hint)


def test_a_login_whose_name_does_not_carry_the_step_key_is_refused_and_revoked(bench: Bench) -> None:
    """No sweep would find it by its step if Vault lost its lease."""
    template = bench.vault.read("database/config/support")["data"]["connection_details"]["username_template"]
    other = '{{ printf "orc_other-aaaaaa_%s" (random 8) }}'
    bench.vault.write("database/config/support", username_template=other)
    try:
        outcome = bench.run(workflow("nameless"))
    finally:
        bench.vault.write("database/config/support", username_template=template)
    assert outcome.exit_code is ExitCode.REFUSED
    assert "does not carry the step key" in outcome.errors["work"].message
    assert {lease.state for lease in bench.history(outcome.run_id)} == {LeaseState.REVOKED}
    bench.assert_nothing_left()


def test_what_a_step_already_held_is_closed_when_its_next_grant_is_refused(bench: Bench) -> None:
    grants = f"db: {READ}\n      other: {{ kind: secret, path: nowhere/at-all, keys: [token] }}"
    outcome = bench.run(workflow("second_refused", grants=grants))
    assert outcome.exit_code is ExitCode.REFUSED
    assert outcome.errors["work"].grant == "other"  # type: ignore[attr-defined]
    states = {lease.grant: lease.state for lease in bench.history(outcome.run_id)}
    assert states["db"] is LeaseState.REVOKED
    assert states["other"] is LeaseState.DENIED
    bench.assert_nothing_left()


def test_a_denial_by_policy_asks_nothing_of_vault(bench: Bench) -> None:
    policy = rego('decision := {"allow": false, "reasons": ["no"]}')
    outcome = bench.run(workflow("denied", more=AFTER), policy=policy)
    assert outcome.exit_code is ExitCode.REFUSED
    assert isinstance(outcome.errors["work"], PolicyDenied)
    assert outcome.steps["after"] is StepState.SKIPPED
    assert [event for event in bench.events if isinstance(event, LeaseRequested)] == []


def test_a_policy_that_answers_nothing_is_a_denial(bench: Bench) -> None:
    policy = rego('decision := {"allow": true} if input.agent == "somebody else"')
    assert bench.run(workflow("undefined"), policy=policy).exit_code is ExitCode.REFUSED


def test_a_cap_by_policy_below_the_time_out_is_a_refusal(bench: Bench) -> None:
    answer = '{"allow": true, "reasons": [], "obligations": {"max_ttl": 5}}'
    policy = rego(f"decision := {answer}")
    outcome = bench.run(workflow("capped"), policy=policy)
    assert outcome.exit_code is ExitCode.REFUSED
    assert outcome.steps == {"work": StepState.REFUSED}


def test_siblings_go_on_or_are_cancelled_as_the_workflow_says(bench: Bench) -> None:
    sibling = """
  sibling:
    action: postgres.query
    grants:
      db: { kind: database, connection: support, role: feedback-read }
    with: { sql: SELECT pg_sleep(1) }
    timeout: 20s
"""
    ghost = "db: { kind: database, connection: support, role: ghost }"
    goes_on = bench.run(workflow("goes_on", grants=ghost, more=sibling))
    assert goes_on.steps == {"work": StepState.REFUSED, "sibling": StepState.SUCCEEDED}
    stops = bench.run(workflow("stops", grants=ghost, more=sibling, top="on_failure: cancel"))
    assert stops.steps == {"work": StepState.REFUSED, "sibling": StepState.CANCELLED}
    bench.assert_nothing_left()


def test_a_sealed_vault_ends_the_run_as_unreachable_before_anything_is_issued(
    own_bench: tuple[DevStack, Bench],
) -> None:
    servers, bench = own_bench
    text = workflow("sealed", timeout="3s")
    assert bench.run(text).exit_code is ExitCode.DONE
    servers.openbao.seal()
    outcome = bench.run(text, install=False)
    assert outcome.exit_code is ExitCode.UNREACHABLE
    assert isinstance(outcome.errors["work"], VaultUnreachable)
    assert bench.logins() == []
    assert {lease.state for lease in bench.history(outcome.run_id)} == {LeaseState.FAILED}


@pytest.mark.parametrize("own_bench", ["persistent"], indirect=True)
def test_a_run_waits_within_its_deadline_for_a_vault_that_comes_back(own_bench: tuple[DevStack, Bench]) -> None:
    servers, bench = own_bench
    text = workflow("waits", timeout="60s")
    assert bench.run(text).exit_code is ExitCode.DONE
    bench.events.clear()

    def start_again_once_the_run_has_begun() -> None:
        while not any(isinstance(event, RunStarted) for event in bench.events):
            time.sleep(0.01)
        servers.openbao.start()

    with ThreadPoolExecutor(1) as keeper:  # the server dies with the thread that starts it
        servers.openbao.stop()
        started = keeper.submit(start_again_once_the_run_has_begun)
        outcome = bench.run(text, install=False)
        started.result()
        assert outcome.exit_code is ExitCode.DONE, [error.message for error in outcome.errors.values()]
        bench.assert_nothing_left()


def test_a_database_that_is_down_during_issuance_ends_the_run_as_unreachable(
    own_bench: tuple[DevStack, Bench],
) -> None:
    servers, bench = own_bench
    text = workflow("database_down", timeout="3s")
    assert bench.run(text).exit_code is ExitCode.DONE
    servers.postgres.stop()
    outcome = bench.run(text, install=False)
    assert outcome.exit_code is ExitCode.UNREACHABLE
    servers.postgres.start()
    bench.assert_nothing_left()
    assert [event for event in bench.events if isinstance(event, AttemptStarted)]

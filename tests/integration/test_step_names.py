"""Whatever a step is called, its logins carry the step key: only so the sweep finds one that Vault has lost."""

from __future__ import annotations

import pytest
from bench import Bench
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from orchestrator.errors import ExitCode
from orchestrator.ledger.ids import carries, new_step_key
from orchestrator.ledger.lease import LeaseState

FORMER_TEMPLATE = '{{ printf "orc_%s_%s" (.DisplayName | replace "token-" "") (random 8) | truncate 63 }}'
"""It took every `token-` out of the step key."""

NAMES = ["refresh_token", "token_use", "get_token", "token", "token_token", "token_", "a_token_b", "orc_token_a", "x"]


def workflow(name: str, steps: list[str]) -> str:
    body = "".join(
        f"""
  {step}:
    action: postgres.query
    grants:
      db: {{ kind: database, connection: support, privileges: [ {{ select: customer_feedback, columns: [id] }} ] }}
    with: {{ sql: SELECT session_user::text AS login FROM customer_feedback LIMIT 1 }}
    outputs: [rows]"""
        for step in steps
    )
    return f"version: 1\nname: {name}\nagent: tester\nsteps:{body}\n"


def test_a_step_may_have_the_word_token_anywhere_in_its_name(bench: Bench) -> None:
    outcome = bench.run(workflow("named_token", NAMES))
    assert outcome.exit_code is ExitCode.DONE, {name: error.message for name, error in outcome.errors.items()}
    held = {lease.step: lease for lease in bench.history(outcome.run_id) if lease.grant == "db"}
    assert set(held) == set(NAMES)
    assert all(carries(lease.subject, lease.step_key) for lease in held.values())
    bench.assert_nothing_left()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(step=st.from_regex(r"(?:[a-z][a-z0-9_]{0,10}_?)?token[a-z0-9_]{0,20}", fullmatch=True).map(lambda s: s[:40]))
@example(step="token")
@example(step="token_token_token_token_token_token_toke")
@example(step="a" * 40)
def test_the_sweep_by_step_key_sees_the_login_of_any_step(bench: Bench, step: str) -> None:
    key, vault = new_step_key(step), bench.vault
    made = vault.write_data("auth/token/create/step.customer_feedback.read", data={"display_name": key})["auth"]
    try:
        vault.token = made["client_token"]
        vault.read(f"database/creds/{bench.sample_grant('read').vault_role}")
        (login,) = bench.logins()
        assert carries(login, key)
        assert bench.sql("SELECT orchestrator.ephemeral_roles(%s)", [key]) == [login]
    finally:  # the leases first: those of a token that ends are revoked some time after the answer
        bench.vault.write_data("sys/leases/revoke-prefix/database/creds", data={"sync": True})
        bench.vault.auth.token.revoke_accessor(made["accessor"])
    bench.assert_nothing_left()


def test_a_connection_that_was_provisioned_with_the_former_template_is_drift_and_mended(bench: Bench) -> None:
    text = workflow("former_template", ["refresh_token"])
    bench.vault.write_data("database/config/support", data={"username_template": FORMER_TEMPLATE})
    try:
        with bench.provisioning() as work:
            changes = [change for change in work.plan() if change.resource == "vault database/config/support"]
        assert "replace" in changes[0].before
    finally:
        with bench.provisioning() as work:
            work.apply(work.plan())
    with bench.provisioning() as work:
        assert work.plan() == []
    assert bench.run(text).exit_code is ExitCode.DONE


@pytest.mark.parametrize(
    "template",
    [
        FORMER_TEMPLATE,
        '{{ printf "orc_x-%s_%s" .DisplayName (random 8) | replace "orc_x-token-" "orc_x-" | truncate 63 }}',
    ],
    ids=["key cut", "something before the key"],
)
def test_a_login_that_the_sweep_would_not_find_is_refused_and_taken_back(bench: Bench, template: str) -> None:
    text = workflow("not_found", ["use_token_now"])
    assert bench.run(text).exit_code is ExitCode.DONE
    ours = bench.vault.read("database/config/support")["data"]["connection_details"]["username_template"]
    bench.vault.write_data("database/config/support", data={"username_template": template})
    try:
        outcome = bench.run(text, install=False)
    finally:
        bench.vault.write_data("database/config/support", data={"username_template": ours})
    assert outcome.exit_code is ExitCode.REFUSED
    assert "does not carry the step key" in outcome.errors["use_token_now"].message
    assert LeaseState.REVOKED in {lease.state for lease in bench.history(outcome.run_id)}

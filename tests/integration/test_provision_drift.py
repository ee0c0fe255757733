"""Provisioning on real servers: twice is once, drift is found, and the runtime can do none of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hvac
import hvac.exceptions
import pytest
from bench import ROOT, Bench, samples

from orchestrator.actions.catalog import catalog
from orchestrator.devstack.stack import DevStack
from orchestrator.grants.compiled import CompiledGrant
from orchestrator.grants.models import DatabaseGrant
from orchestrator.grants.scope import compiled_forms
from orchestrator.provision.service import Provisioning, load_workflows, open_provisioning
from orchestrator.workflow.loader import load_text
from orchestrator.workflow.models.workflow import Workflow

Act = Callable[[Bench], Any]


@contextmanager
def provisioning(bench: Bench, *, prune: bool = False, workflows: Path | None = None) -> Iterator[Provisioning]:
    with bench.provisioning(None if workflows is None else load_workflows(workflows), prune=prune) as work:
        yield work


def planned(bench: Bench, **how: Any) -> list[str]:
    with provisioning(bench, **how) as work:
        return [change.resource for change in work.plan()]


def repair(bench: Bench, **how: Any) -> None:
    with provisioning(bench, **how) as work:
        work.apply(work.plan())


def scope(bench: Bench) -> str:
    """The scope role of the sample's reading step."""
    return bench.sample_grant("read").scope_role


def vault_role(bench: Bench) -> str:
    return bench.sample_grant("read").vault_role


def test_what_was_applied_needs_nothing_more(bench: Bench) -> None:
    assert planned(bench) == []


DRIFT: list[tuple[str, Act, str]] = [
    (
        "a privilege granted by hand",
        lambda b: b.sql(f"GRANT DELETE ON customer_feedback TO {scope(b)}"),
        "database support privileges of SCOPE",
    ),
    (
        "a column privilege granted by hand",
        lambda b: b.sql(f"GRANT UPDATE (comment) ON customer_feedback TO {scope(b)}"),
        "database support privileges of SCOPE",
    ),
    (
        "a privilege on another table",
        lambda b: b.sql(f"GRANT SELECT ON payment_card TO {scope(b)}"),
        "database support privileges of SCOPE",
    ),
    (
        "a privilege taken away",
        lambda b: b.sql(f"REVOKE SELECT (comment) ON customer_feedback FROM {scope(b)}"),
        "database support privileges of SCOPE",
    ),
    (
        "a membership given to a scope role",
        lambda b: b.sql(f"GRANT pg_read_all_data TO {scope(b)}"),
        "database support memberships of SCOPE",
    ),
    (
        "a scope role that may log in",
        lambda b: b.sql(f"ALTER ROLE {scope(b)} LOGIN"),
        "database support role SCOPE",
    ),
    (
        "a privilege that may be passed on",
        lambda b: b.sql(f"GRANT SELECT (comment) ON customer_feedback TO {scope(b)} WITH GRANT OPTION"),
        "database support privileges of SCOPE",
    ),
    (
        "default privileges for tables to come",
        lambda b: b.sql(f"ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT ON TABLES TO {scope(b)}"),
        "database support privileges of SCOPE",
    ),
    (
        "a large object",
        lambda b: b.sql(
            f"DO $$ BEGIN PERFORM lo_create(4711); EXECUTE 'GRANT SELECT ON LARGE OBJECT 4711 TO {scope(b)}'; END $$"
        ),
        "database support privileges of SCOPE",
    ),
    (
        "the values of row limits opened",
        lambda b: b.sql(f"GRANT SELECT ON orchestrator.binding TO {scope(b)}"),
        "database support privileges of SCOPE",
    ),
    (
        "a superuser of Vault's login",
        lambda b: b.sql("ALTER ROLE orchestrator_vault SUPERUSER"),
        "database support role orchestrator_vault",
    ),
    (
        "a function replaced",
        lambda b: b.sql(
            "CREATE OR REPLACE FUNCTION orchestrator.ephemeral_roles(step_key text) RETURNS SETOF text LANGUAGE sql"
            " SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS 'SELECT NULL::text WHERE false'"
        ),
        "database support function orchestrator.ephemeral_roles(text)",
    ),
    (
        "a function of an earlier version that returns something else",
        lambda b: b.sql(
            "DROP FUNCTION orchestrator.sweep(text); CREATE FUNCTION orchestrator.sweep(step_key text)"
            " RETURNS SETOF text LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp"
            " AS 'SELECT NULL::text WHERE false'"
        ),
        "database support function orchestrator.sweep(text)",
    ),
    (
        "the sweep of expired logins taken away",
        lambda b: b.sql("DROP FUNCTION orchestrator.sweep_expired()"),
        "database support function orchestrator.sweep_expired()",
    ),
    (
        "the sweep of expired logins opened to a scope role",
        lambda b: b.sql(f"GRANT EXECUTE ON FUNCTION orchestrator.sweep_expired() TO {scope(b)}"),
        "database support privileges of SCOPE",
    ),
    (
        "a function that everybody may call",
        lambda b: b.sql("GRANT EXECUTE ON FUNCTION orchestrator.revoke(name) TO PUBLIC"),
        "database support privileges of others in orchestrator",
    ),
    (
        "a role edited in Vault",
        lambda b: b.vault.write_data(f"database/roles/{vault_role(b)}", data={"max_ttl": 99999}),
        "vault database/roles/ROLE",
    ),
    (
        "statements edited in Vault",
        lambda b: b.vault.write_data(f"database/roles/{vault_role(b)}", data={"revocation_statements": ["SELECT 1"]}),
        "vault database/roles/ROLE",
    ),
    (
        "a step's policy widened",
        lambda b: b.vault.sys.create_or_update_policy(
            "step/customer_feedback/read", 'path "database/*" { capabilities = ["read"] }'
        ),
        "vault sys/policies/acl/step/customer_feedback/read",
    ),
    (
        "the runtime's policy widened",
        lambda b: b.vault.sys.create_or_update_policy(
            "orchestrator-runtime", 'path "*" { capabilities = ["create", "update", "sudo"] }'
        ),
        "vault sys/policies/acl/orchestrator-runtime",
    ),
    (
        "a token role widened",
        lambda b: b.vault.write_data(
            "auth/token/roles/step.customer_feedback.read", data={"allowed_policies_glob": ["*"]}
        ),
        "vault auth/token/roles/step.customer_feedback.read",
    ),
    (
        "the runtime's login widened",
        lambda b: b.vault.write_data(
            "auth/approle/role/orchestrator-runtime", data={"token_policies": ["orchestrator-runtime", "admin"]}
        ),
        "vault auth/approle/role/orchestrator-runtime",
    ),
]


@pytest.mark.parametrize(
    ("act", "resource"), [(act, where) for _, act, where in DRIFT], ids=[name for name, *_ in DRIFT]
)
def test_drift_is_found_and_repaired(bench: Bench, act: Act, resource: str) -> None:
    act(bench)
    try:
        where = resource.replace("SCOPE", scope(bench)).replace("ROLE", vault_role(bench))
        assert where in planned(bench)
    finally:
        repair(bench)
        bench.sql("SELECT lo_unlink(oid) FROM pg_largeobject_metadata")  # it is the superuser's, whom nobody repairs
    assert planned(bench) == []


def test_a_policy_that_no_workflow_needs_goes_only_with_prune(bench: Bench, tmp_path: Path) -> None:
    folder = tmp_path / "more"
    shutil.copytree(ROOT / "workflows", folder)
    text = (folder / "customer_feedback.yaml").read_text()
    (folder / "other.yaml").write_text(text.replace("name: customer_feedback", "name: other_flow", 1))
    repair(bench, workflows=folder)
    mine = "vault sys/policies/acl/step/other_flow/read"
    assert mine not in planned(bench)
    assert mine in planned(bench, prune=True)
    repair(bench, prune=True)
    assert planned(bench, prune=True) == []


def test_an_interrupted_apply_converges_when_it_is_done_again(tmp_path: Path) -> None:
    class Interrupted(Exception):
        pass

    from orchestrator.vault.config import TokenAuth, VaultConfig

    with DevStack(tmp_path / "stack") as info:
        config = VaultConfig(info.vault_address, TokenAuth(info.root_token))

        def attempt(stop_after: int) -> int:
            done = 0

            def progress(what: str) -> None:
                nonlocal done
                done += 1
                if done == stop_after:
                    raise Interrupted(what)

            with open_provisioning(
                config,
                {"support": info.support_dsn},
                workflows=samples(),
                declarations=ROOT / "vault",
                endpoints=info.endpoints,
            ) as work:
                work.apply(work.plan(), progress)
                return len(work.plan())

        while True:
            try:
                left = attempt(2)
            except Interrupted:
                continue
            break
        assert left == 0


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("put", "sys/policies/acl/step/customer_feedback/read"),
        ("put", "sys/policies/acl/orchestrator-runtime"),
        ("post", "auth/token/roles/step.customer_feedback.read"),
        ("post", "auth/token/roles/step.mine"),
        ("post", "auth/token/create"),
        ("post", "auth/token/create-orphan"),
        ("post", "auth/approle/role/orchestrator-runtime"),
        ("post", "auth/approle/role/orchestrator-runtime/secret-id"),
        ("post", "database/config/support"),
        ("post", "database/roles/feedback-read"),
        ("get", "database/creds/feedback-read"),
        ("get", "database/creds/orchestrator-sweep-support"),
        ("get", "database/creds/orchestrator-bind-support"),
        ("get", "secret/data/slack/support-bot"),
        ("post", "transit/keys/orchestrator-token/config"),
        ("post", "transit/sign/orchestrator-token"),
        ("get", "transit/export/signing-key/orchestrator-token"),
        ("post", "sys/leases/revoke-prefix/database"),
        ("post", "sys/mounts/other"),
        ("get", "sys/raw/x"),
    ],
)
def test_the_runtime_can_neither_read_a_credential_nor_widen_itself(bench: Bench, method: str, path: str) -> None:
    client = runtime(bench)
    with pytest.raises(hvac.exceptions.Forbidden):
        client.adapter.request(method, f"/v1/{path}", json={} if method != "get" else None)


ROLE = "auth/token/create/step.customer_feedback.read"


@pytest.mark.parametrize(
    "wish",
    [
        {"policies": ["root"]},
        {"policies": ["step/customer_feedback/read"]},
        {"policies": "orchestrator-runtime"},
        {"POLICIES": ["root"]},
        {"no_parent": True},
        {"period": "720h"},
        {"explicit_max_ttl": "720h"},
        {"type": "batch"},
        {"num_uses": 100},
        {"renewable": True},
        {"entity_alias": "somebody"},
        {"id": "s.chosen"},
        {"no_default_policy": False},
    ],
    ids=lambda wish: next(iter(wish)),
)
def test_the_runtime_may_ask_for_nothing_but_a_name_a_life_and_notes(bench: Bench, wish: dict[str, Any]) -> None:
    with pytest.raises(hvac.exceptions.Forbidden):
        runtime(bench).adapter.post(f"/v1/{ROLE}", json={"ttl": "30s", **wish})


@pytest.mark.parametrize("role", ["orchestrator-step", "step", "xstep.customer_feedback.read", "admin", ""])
def test_the_runtime_reaches_no_other_token_role(bench: Bench, role: str) -> None:
    with pytest.raises(hvac.exceptions.Forbidden):
        runtime(bench).adapter.post(f"/v1/auth/token/create/{role}".rstrip("/"), json={"ttl": "30s"})


@pytest.mark.parametrize("wish", [{}, {"ttl": "768h"}, {"ttl": "10s"}], ids=["none", "long", "short"])
def test_a_step_token_has_one_policy_and_ends_with_the_longest_attempt(bench: Bench, wish: dict[str, Any]) -> None:
    client = runtime(bench)
    made = client.adapter.post(f"/v1/{ROLE}", json=wish)["auth"]
    try:
        assert made["token_policies"] == ["step/customer_feedback/read"]
        assert (made["lease_duration"], made["renewable"]) == (10 if wish.get("ttl") == "10s" else 60, False)
        with pytest.raises(hvac.exceptions.Forbidden):
            hvac.Client(bench.info.vault_address, token=made["client_token"]).auth.token.renew_self("768h")
    finally:
        bench.vault.auth.token.revoke_accessor(made["accessor"])


def runtime(bench: Bench) -> hvac.Client:
    client = hvac.Client(bench.info.vault_address)
    client.auth.approle.login(bench.provisioned.role_id, bench.provisioned.secret_id.reveal())
    return client


NARROWED = """
version: 1
name: narrowed_flow
agent: tester
steps:
  work:
    action: postgres.query
    grants:
      db:
        kind: database
        connection: support
        privileges:
          - { select: customer_feedback, columns: [id, kind, comment] }
NARROWER
    with: { sql: SELECT 1 AS one }
    timeout: 37s
"""


def test_narrower_forms_come_and_go_without_touching_the_whole(bench: Bench) -> None:
    def flow(narrower: str = "") -> list[Workflow]:
        text = NARROWED.replace("NARROWER", narrower)
        return [*samples(), load_text(text, filename="flow.yaml", actions=catalog).workflow]

    def forms(workflows: Sequence[Workflow]) -> dict[str | None, CompiledGrant]:
        grant = workflows[-1].steps["work"].grants["db"]
        assert isinstance(grant, DatabaseGrant)
        return compiled_forms(grant, step_timeout=37)

    def changes(workflows: Sequence[Workflow], *, prune: bool = False, apply: bool = False) -> list[tuple[str, str]]:
        with bench.provisioning(workflows, prune=prune) as work:
            found = work.plan()
            if apply:
                work.apply(found)
        return [(change.kind, change.resource) for change in found]

    def drift(workflows: Sequence[Workflow]) -> list[str]:
        with bench.provisioning(workflows) as work:
            return [change.resource for change in work.check().changes]

    plain = flow()
    more = flow(
        "        narrower: { ids: { customer_feedback: { select: [id] } },\n"
        "                    no_comment: { public.customer_feedback: { select: [id, kind] } } }"
    )
    added = [form for name, form in forms(more).items() if name is not None]
    whole = forms(plain)[None]
    assert forms(more)[None] == whole
    try:
        changes(plain, prune=True, apply=True)  # of other tests, too
        assert changes(plain) == []
        strangers = drift(plain)  # that no provisioning takes away
        expected = {("create", f"vault database/roles/{form.vault_role}") for form in added} | {
            ("create", f"database support role {form.scope_role}") for form in added
        }
        planned_now = changes(more)
        in_vault = {each for each in planned_now if each[1].startswith("vault ")}
        assert in_vault - expected == {("change", "vault sys/policies/acl/step/narrowed_flow/work")}
        assert expected <= set(planned_now)
        named = [resource for _, resource in planned_now if "orchestrator_scope_" in resource or "/roles/" in resource]
        assert all(any(form.scope_role in each or form.vault_role in each for form in added) for each in named)
        changes(more, apply=True)
        assert changes(more) == []
        assert drift(more) == strangers
        policy = bench.vault.sys.read_policy("step/narrowed_flow/work")["data"]["rules"]
        assert all(f'path "database/creds/{form.vault_role}"' in policy for form in (whole, *added))

        assert sorted(changes(plain)) == [("change", "vault sys/policies/acl/step/narrowed_flow/work")]
        gone = drift(plain)
        assert {f"vault database/roles/{form.vault_role}" for form in added} <= set(gone)
        assert all(any(form.scope_role in resource for resource in gone) for form in added)
        assert not any(whole.scope_role in resource or whole.vault_role in resource for resource in gone)
        changes(plain, prune=True, apply=True)
        assert changes(plain, prune=True) == []
        assert drift(plain) == strangers
        roles = bench.sql("SELECT rolname FROM pg_roles WHERE rolname LIKE 'orchestrator_scope_%'")
        assert {form.scope_role for form in added}.isdisjoint(roles)
        assert whole.scope_role in roles
        assert {form.vault_role for form in added}.isdisjoint(bench.vault.list("database/roles")["data"]["keys"])
    finally:
        repair(bench, prune=True)

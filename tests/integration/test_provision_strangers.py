"""`provision check` looks both ways: also for what is there of ours although nobody declared it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import hvac
import pytest
from bench import Bench
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.provision.change import Change
from orchestrator.provision.database.side import DatabaseSide
from orchestrator.provision.database.statements import FOR_EVERYBODY, FUNCTIONS
from orchestrator.provision.declarations import Connection
from orchestrator.provision.service import compiled_grants, load_workflows

from bench import ROOT  # isort: skip

GUEST = "provision_guest"


@pytest.fixture
def guest(bench: Bench) -> Iterator[str]:
    """A role of somebody else's, in the database."""
    bench.sql(f"CREATE ROLE {GUEST}")
    yield GUEST
    bench.sql(f"DROP OWNED BY {GUEST}; DROP ROLE {GUEST}")


@dataclass
class Looking:
    """The sample's database as its administrator sees it, and what was there before the test."""

    side: DatabaseSide
    before: list[Change] = field(default_factory=list)

    def drift(self) -> dict[str, Change]:
        """What is found now and was not before, by resource."""
        found = [*self.side.changes(), *self.side.undeclared()]
        return {change.resource: change for change in found if change not in self.before}


@pytest.fixture
def looking(bench: Bench) -> Iterator[Looking]:
    """Where no role is maintained by hand."""
    grants = compiled_grants(load_workflows(ROOT / "workflows"), {"support"})
    side = DatabaseSide("support", Connection(), bench.info.support_dsn, grants, prune=False)
    assert side.changes() == []
    yield Looking(side, side.undeclared())
    side.close()


def scope(bench: Bench) -> str:
    return bench.sample_grant("read").scope_role


def planted() -> list[tuple[str, str, str]]:
    """What somebody may do to our objects by hand, how it is taken back, and where it shows."""
    found = []
    roles = ["SCOPE", "orchestrator_binder", "orchestrator_sweeper", "orchestrator_vault"]
    for role in roles:
        for options in ("", " WITH ADMIN OPTION", " WITH INHERIT FALSE, SET TRUE", " WITH INHERIT TRUE, SET FALSE"):
            found.append((f"GRANT {role} TO GUEST{options}", f"REVOKE {role} FROM GUEST", f"members of {role}"))
        for setting in ("search_path = public", "row_security = off", "session_replication_role = replica"):
            reset = f"ALTER ROLE {role} RESET ALL; ALTER ROLE {role} IN DATABASE support RESET ALL"
            found.append((f"ALTER ROLE {role} SET {setting}", reset, f"settings of {role}"))
            found.append((f"ALTER ROLE {role} IN DATABASE support SET {setting}", reset, f"settings of {role}"))
        for attribute, undo in (
            ("SUPERUSER", "NOSUPERUSER"),
            ("CREATEDB", "NOCREATEDB"),
            ("REPLICATION", "NOREPLICATION"),
            ("BYPASSRLS", "NOBYPASSRLS"),
            ("NOINHERIT", "INHERIT"),
            ("CONNECTION LIMIT 3", "CONNECTION LIMIT -1"),
            ("VALID UNTIL '2099-01-01'", "VALID UNTIL 'infinity'"),
        ):
            found.append((f"ALTER ROLE {role} {attribute}", f"ALTER ROLE {role} {undo}", f"role {role}"))
        found.append((f"GRANT pg_monitor TO {role}", f"REVOKE pg_monitor FROM {role}", f"memberships of {role}"))
        found.append(
            (f"GRANT SELECT ON employee TO {role}", f"REVOKE SELECT ON employee FROM {role}", f"privileges of {role}")
        )
    objects = [("SCHEMA orchestrator", "USAGE"), ("SCHEMA orchestrator", "CREATE")]
    objects += [
        ("TABLE orchestrator.binding", each)
        for each in ("SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE", "REFERENCES", "TRIGGER", "SELECT (value)")
    ]
    objects += [(f"FUNCTION orchestrator.{signature}", "EXECUTE") for signature in FUNCTIONS]
    for signature in FOR_EVERYBODY:
        allowed = f"EXECUTE ON FUNCTION orchestrator.{signature}"
        where = f"who may call orchestrator.{signature}"
        found.append((f"REVOKE {allowed} FROM PUBLIC", f"GRANT {allowed} TO PUBLIC", where))
    for what, verb in objects:
        open_already = any(what.endswith(f".{signature}") for signature in FOR_EVERYBODY)
        for grantee in ("GUEST",) if open_already else ("GUEST", "PUBLIC"):
            undo = f"REVOKE {verb} ON {what} FROM {grantee}"
            found.append((f"GRANT {verb} ON {what} TO {grantee}", undo, "privileges of others in orchestrator"))
    for signature, text in FUNCTIONS.items():
        function = f"orchestrator.{signature}"
        owned = f"ALTER FUNCTION {function} OWNER TO orchestrator_vault"
        where = f"function {function}"
        changes = ["SECURITY INVOKER", "SET search_path = public", "RESET ALL", "STRICT", "COST 7", "LEAKPROOF"]
        changes += ["SET role = postgres", "PARALLEL UNSAFE" if "PARALLEL SAFE" in text else "PARALLEL SAFE"]
        changes += ["VOLATILE" if "STABLE" in text or "IMMUTABLE" in text else "IMMUTABLE"]
        for change in changes:
            back = (
                f"ALTER FUNCTION {function} CALLED ON NULL INPUT; ALTER FUNCTION {function} NOT LEAKPROOF;"
                f" ALTER FUNCTION {function} RESET ALL; {text}"
            )
            found.append((f"ALTER FUNCTION {function} {change}", back, where))
        described = f"function {function} belongs to GUEST".replace(", ", ",")
        found.append((f"ALTER FUNCTION {function} OWNER TO GUEST", owned, described))
    for do, undo, where in (
        ("ALTER SCHEMA orchestrator OWNER TO GUEST", "ALTER SCHEMA orchestrator OWNER TO postgres", "schema"),
        (
            "ALTER TABLE orchestrator.binding OWNER TO GUEST",
            "ALTER TABLE orchestrator.binding OWNER TO orchestrator_vault",
            "table orchestrator.binding belongs to GUEST",
        ),
        (
            "CREATE TRIGGER told AFTER INSERT ON orchestrator.binding FOR EACH ROW"
            " EXECUTE FUNCTION suppress_redundant_updates_trigger()",
            "DROP TRIGGER told ON orchestrator.binding",
            "what happens on orchestrator.binding",
        ),
        (
            "CREATE RULE told AS ON INSERT TO orchestrator.binding DO ALSO NOTIFY told",
            "DROP RULE told ON orchestrator.binding",
            "what happens on orchestrator.binding",
        ),
        (
            "CREATE POLICY told ON orchestrator.binding USING (true)",
            "DROP POLICY told ON orchestrator.binding",
            "what happens on orchestrator.binding",
        ),
        (
            "ALTER TABLE orchestrator.binding ENABLE ROW LEVEL SECURITY",
            "ALTER TABLE orchestrator.binding DISABLE ROW LEVEL SECURITY",
            "table orchestrator.binding is another one",
        ),
        (
            "ALTER TABLE orchestrator.binding ALTER value SET DEFAULT 'x'",
            "ALTER TABLE orchestrator.binding ALTER value DROP DEFAULT",
            "default value for column value",
        ),
        (
            "ALTER TABLE orchestrator.binding ADD more text",
            "ALTER TABLE orchestrator.binding DROP more",
            "table orchestrator.binding is another one",
        ),
        (
            "ALTER TABLE orchestrator.binding DROP CONSTRAINT binding_pkey",
            "ALTER TABLE orchestrator.binding ADD PRIMARY KEY (login, number)",
            "table orchestrator.binding is another one",
        ),
        (
            "CREATE INDEX told ON orchestrator.binding ((value || 'x'))",
            "DROP INDEX orchestrator.told",
            "index orchestrator.told",
        ),
        ("CREATE VIEW told AS TABLE orchestrator.binding", "DROP VIEW told", "view public.told"),
        ("CREATE TABLE child () INHERITS (orchestrator.binding)", "DROP TABLE child", "table public.child"),
        ("CREATE PUBLICATION told FOR TABLE orchestrator.binding", "DROP PUBLICATION told", "publication"),
        ("CREATE PUBLICATION told FOR TABLES IN SCHEMA orchestrator", "DROP PUBLICATION told", "publication"),
        (
            "CREATE FUNCTION orchestrator.revoke(text) RETURNS void LANGUAGE sql AS ''",
            "DROP FUNCTION orchestrator.revoke(text)",
            "function orchestrator.revoke(text)",
        ),
        ("CREATE TABLE orchestrator.more ()", "DROP TABLE orchestrator.more", "table orchestrator.more"),
        ("CREATE TYPE orchestrator.pair AS (a int)", "DROP TYPE orchestrator.pair", "type orchestrator.pair"),
        ("CREATE DOMAIN orchestrator.kind AS text", "DROP DOMAIN orchestrator.kind", "type orchestrator.kind"),
        (
            "CREATE OPERATOR orchestrator.= (LEFTARG = text, RIGHTARG = name, FUNCTION = textregexeq)",
            None,
            "operator orchestrator.=",
        ),
        (
            "ALTER DEFAULT PRIVILEGES IN SCHEMA orchestrator GRANT EXECUTE ON FUNCTIONS TO GUEST",
            "ALTER DEFAULT PRIVILEGES IN SCHEMA orchestrator REVOKE EXECUTE ON FUNCTIONS FROM GUEST",
            "default privileges",
        ),
        (
            "CREATE POLICY orchestrator_more ON customer_feedback USING (true)",
            "DROP POLICY orchestrator_more ON customer_feedback",
            "row limits of public.customer_feedback",
        ),
        ("CREATE ROLE orchestrator_scope_more", "DROP ROLE orchestrator_scope_more", "role orchestrator_scope_more"),
        (
            'CREATE ROLE "orc_mine-aaaaaaaaaaaa_00000001"; GRANT SCOPE TO "orc_mine-aaaaaaaaaaaa_00000001"'
            " WITH INHERIT TRUE, SET FALSE",
            'DROP ROLE "orc_mine-aaaaaaaaaaaa_00000001"',
            "members of SCOPE",
        ),
    ):
        if undo is not None:
            found.append((do, undo, where))
    return found


PLANTED = planted()


def test_nothing_is_found_where_nothing_was_planted(looking: Looking) -> None:
    assert looking.drift() == {}


def batches(changes: list[tuple[str, str, str]]) -> list[list[tuple[str, str, str]]]:
    """Such as show in different places go together; what changes an owner stays alone."""
    found: list[list[tuple[str, str, str]]] = []
    for change in changes:
        apart = "OWNER" in change[0]
        places = [[where for _, _, where in batch] for batch in found]
        free = [n for n, known in enumerate(places) if change[2] not in known and "OWNER" not in found[n][0][0]]
        if apart or not free:
            found.append([change])
        else:
            found[free[0]].append(change)
    return found


def missed(bench: Bench, looking: Looking, guest: str, changes: list[tuple[str, str, str]]) -> list[str]:
    """What of these is not found once it is done; all of it is taken back."""
    names = {"SCOPE": scope(bench), "GUEST": guest}
    done: list[tuple[str, str, str]] = []
    try:
        for change in changes:
            do, undo, where = (text.replace("SCOPE", names["SCOPE"]).replace("GUEST", guest) for text in change)
            bench.sql(do)
            done.append((do, undo, where))
        found = list(looking.drift())
        return [do for do, _, where in done if not any(where in resource for resource in found)]
    finally:
        for _, undo, _ in reversed(done):
            bench.sql(undo)


@pytest.mark.parametrize("batch", batches(PLANTED), ids=lambda batch: f"{batch[0][0][:60]} and {len(batch) - 1} more")
def test_whatever_is_changed_by_hand_on_what_is_ours_is_found(
    bench: Bench, looking: Looking, guest: str, batch: list[tuple[str, str, str]]
) -> None:
    assert missed(bench, looking, guest, batch) == []
    assert looking.drift() == {}


TOGETHER = [change for change in PLANTED if "OWNER" not in change[0]]
"""What an owner has been granted beside is none of its privileges: it may do all."""


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.sampled_from(TOGETHER), min_size=2, max_size=6, unique_by=lambda change: change[2]))
def test_any_few_of_them_together_are_found(
    bench: Bench, looking: Looking, guest: str, changes: list[tuple[str, str, str]]
) -> None:
    assert missed(bench, looking, guest, changes) == []


REPAIRED = [
    "GRANT SCOPE TO GUEST WITH ADMIN OPTION",
    "GRANT orchestrator_vault TO GUEST",
    "GRANT CREATE ON SCHEMA orchestrator TO PUBLIC",
    "GRANT EXECUTE ON FUNCTION orchestrator.bind(name, integer, text) TO GUEST WITH GRANT OPTION",
    "GRANT SELECT (value) ON orchestrator.binding TO GUEST",
    "ALTER ROLE orchestrator_vault NOINHERIT CONNECTION LIMIT 3 VALID UNTIL '2099-01-01'",
    "ALTER ROLE orchestrator_vault IN DATABASE support SET search_path = public",
    "ALTER FUNCTION orchestrator.revoke(name) SECURITY INVOKER",
    "CREATE RULE told AS ON INSERT TO orchestrator.binding DO ALSO NOTIFY told",
]


@pytest.mark.parametrize("do", REPAIRED)
def test_apply_takes_it_back(bench: Bench, looking: Looking, guest: str, do: str) -> None:
    bench.sql(do.replace("SCOPE", scope(bench)).replace("GUEST", guest))
    assert looking.drift()
    looking.side.apply()
    assert looking.drift() == {}


def test_an_administrator_that_is_declared_may_hand_out_the_roles(bench: Bench, guest: str) -> None:
    bench.sql(f"GRANT {scope(bench)} TO {guest} WITH ADMIN OPTION, INHERIT FALSE, SET FALSE")
    grants = compiled_grants(load_workflows(ROOT / "workflows"), {"support"})
    for admins, expected in (([], True), ([guest], False)):
        side = DatabaseSide("support", Connection(admins=admins), bench.info.support_dsn, grants, prune=False)
        assert bool(side.changes()) is expected
        side.close()
    bench.sql(f"REVOKE {scope(bench)} FROM {guest}")


Act = Callable[[hvac.Client], Any]

VAULT: list[tuple[str, Act, Act, str]] = [
    (
        "a policy under our names, some folders down",
        lambda v: v.sys.create_or_update_policy("step/evil/root", 'path "*" { capabilities = ["sudo", "read"] }'),
        lambda v: v.sys.delete_policy("step/evil/root"),
        "vault sys/policies/acl/step/evil/root",
    ),
    (
        "a policy of a duty in no database",
        lambda v: v.sys.create_or_update_policy("sweep/elsewhere", 'path "x" { capabilities = ["read"] }'),
        lambda v: v.sys.delete_policy("sweep/elsewhere"),
        "vault sys/policies/acl/sweep/elsewhere",
    ),
    (
        "a token role that gives any step's policy",
        lambda v: v.write_data("auth/token/roles/helpful", data={"allowed_policies_glob": ["st*"]}),
        lambda v: v.delete("auth/token/roles/helpful"),
        "vault auth/token/roles/helpful",
    ),
    (
        "a token role that gives one step's policy",
        lambda v: v.write_data("auth/token/roles/helpful", data={"allowed_policies": ["step/customer_feedback/read"]}),
        lambda v: v.delete("auth/token/roles/helpful"),
        "vault auth/token/roles/helpful",
    ),
    (
        "a token role with a name that the runtime may use",
        lambda v: v.write_data("auth/token/roles/step.evil", data={"allowed_policies": ["default"]}),
        lambda v: v.delete("auth/token/roles/step.evil"),
        "vault auth/token/roles/step.evil",
    ),
    (
        "another AppRole for the runtime's policy",
        lambda v: v.write_data("auth/approle/role/other", data={"token_policies": "orchestrator-runtime"}),
        lambda v: v.delete("auth/approle/role/other"),
        "vault auth/approle/role/other",
    ),
    (
        "a person with the runtime's policy",
        lambda v: (
            v.sys.enable_auth_method("userpass"),
            v.write_data(
                "auth/userpass/users/eve", data={"password": "chosen", "token_policies": ["orchestrator-runtime"]}
            ),
        ),
        lambda v: v.sys.disable_auth_method("userpass"),
        "vault auth/userpass/users/eve",
    ),
    (
        "an entity with a step's policy",
        lambda v: v.write_data("identity/entity", data={"name": "eve", "policies": ["step/customer_feedback/read"]}),
        lambda v: v.delete("identity/entity/name/eve"),
        "vault identity/entity/id/",
    ),
    (
        "a group with the runtime's policy",
        lambda v: v.write_data("identity/group", data={"name": "crew", "policies": ["orchestrator-runtime"]}),
        lambda v: v.delete("identity/group/name/crew"),
        "vault identity/group/id/",
    ),
    (
        "a database role with a name of ours",
        lambda v: v.write_data(
            "database/roles/orc-support-00", data={"db_name": "support", "creation_statements": ["SELECT 1"]}
        ),
        lambda v: v.delete("database/roles/orc-support-00"),
        "vault database/roles/orc-support-00",
    ),
]


def found_in_vault(bench: Bench) -> set[str]:
    with bench.provisioning() as work:
        return {change.resource for change in work.check().changes}


@pytest.mark.parametrize(("act", "undo", "resource"), [each[1:] for each in VAULT], ids=[each[0] for each in VAULT])
def test_what_could_give_out_what_the_runtime_may_have_is_found(
    bench: Bench, act: Act, undo: Act, resource: str
) -> None:
    before = found_in_vault(bench)
    act(bench.vault)
    try:
        new = found_in_vault(bench) - before
        assert len([each for each in new if each.startswith(resource)]) == 1, new
    finally:
        undo(bench.vault)
    assert found_in_vault(bench) == before


def test_another_login_of_the_runtime_that_is_declared_is_none(bench: Bench) -> None:
    bench.vault.write_data("auth/approle/role/other", data={"token_policies": "orchestrator-runtime"})
    file = bench.declarations / "declarations.yaml"
    text = file.read_text()
    try:
        assert "vault auth/approle/role/other" in found_in_vault(bench)
        file.write_text(text.replace("runtime:\n", "runtime:\n  other_logins: [auth/approle/role/other]\n"))
        assert "vault auth/approle/role/other" not in found_in_vault(bench)
    finally:
        file.write_text(text)
        bench.vault.delete("auth/approle/role/other")


def test_a_database_that_everybody_may_connect_to_is_a_note_and_no_difference(bench: Bench, looking: Looking) -> None:
    before = looking.side.notes()
    bench.sql("CREATE DATABASE open_to_all")
    try:
        (note,) = set(looking.side.notes()) - set(before)
        assert "open_to_all" in note
        assert looking.drift() == {}
    finally:
        bench.sql("DROP DATABASE open_to_all")

"""The names that provisioning and the runner agree on, and what a grant says of owned objects."""

import hashlib
from types import SimpleNamespace

import pytest
from pydantic import ValidationError

from orchestrator.errors import UsageError
from orchestrator.grants.compiled import CompiledGrant, compile_grant
from orchestrator.grants.models import DatabaseGrant
from orchestrator.provision.database.statements import creation_of
from orchestrator.provision.service import compiled_grants
from orchestrator.workflow.models.workflow import Workflow

BASE = {"kind": "database", "connection": "support", "privileges": [{"select": "public.t", "columns": ["id"]}]}


def compiled(**more: object) -> CompiledGrant:
    made = compile_grant(DatabaseGrant.model_validate({**BASE, **more}), ttl=60, max_ttl=90)
    assert made is not None
    return made


def test_the_names_of_a_grant_stay_the_same_from_release_to_release() -> None:
    made = compiled()
    assert made.vault_role == "orc-support-0ccd812c28da648476f54fb368d50bf6"
    assert made.scope_role == "orchestrator_scope_0508db38f66a86323cb8ad11c090a880"
    assert compiled(owned_objects="drop").vault_role == made.vault_role


def test_a_grant_that_keeps_objects_has_a_vault_role_of_its_own_and_shares_the_scope_role() -> None:
    assert compiled(owned_objects="keep").vault_role != compiled().vault_role
    assert compiled(owned_objects="keep").scope_role == compiled().scope_role


def test_only_a_login_whose_objects_are_kept_is_marked() -> None:
    marks = [statement for statement in creation_of(compiled(owned_objects="keep")) if "COMMENT" in statement]
    assert marks == ["COMMENT ON ROLE \"{{name}}\" IS 'orchestrator: keep owned objects'"]
    assert not [statement for statement in creation_of(compiled()) if "COMMENT" in statement]


@pytest.mark.parametrize(
    "more", [{"owned_objects": "keep"}, {"owned_objects": "drop"}, {"read_only": False, "max_connections": 1}]
)
def test_what_belongs_to_compiled_privileges_cannot_be_said_of_a_role_that_is_maintained_by_hand(
    more: dict[str, object],
) -> None:
    with pytest.raises(ValidationError, match="belong to `privileges`"):
        DatabaseGrant.model_validate({"kind": "database", "connection": "support", "role": "by-hand", **more})


def of(name: str, *columns: str, **more: object) -> Workflow:
    privileges = [{"select": "public.t", "columns": list(columns)}]
    grant = {"kind": "database", "connection": "support", "privileges": privileges, **more}
    step = {"action": "postgres.query", "grants": {"db": grant}, "with": {"sql": "SELECT 1"}}
    return Workflow.model_validate({"version": 1, "name": name, "agent": "tester", "steps": {"work": step}})


def test_the_names_have_128_bits() -> None:
    made = compiled()
    assert [len(name.rpartition(mark)[2]) * 4 for name, mark in ((made.scope_role, "_"), (made.vault_role, "-"))] == [
        128,
        128,
    ]


@pytest.mark.parametrize("names", ["scope", "vault"])
def test_one_name_for_two_things_is_an_error(monkeypatch: pytest.MonkeyPatch, names: str) -> None:
    """Digests are cut here to what an attacker can find a second text for."""
    if names == "scope":
        monkeypatch.setattr("orchestrator.grants.compiled.digest", lambda privileges: "0")
    else:
        real = hashlib.sha256
        monkeypatch.setattr(
            "orchestrator.grants.compiled.hashlib", SimpleNamespace(sha256=lambda text: real(b"the same"))
        )
    with pytest.raises(UsageError, match="another grant has already"):
        compiled_grants([of("harmless", "id"), of("harmful", "id", "secret")], {"support"})


def test_the_same_grant_twice_is_one_and_of_two_mounts_two() -> None:
    assert len(compiled_grants([of("one", "id"), of("two", "id")], {"support"})) == 1
    two = [of("one", "id"), of("two", "id", mount="other")]
    assert len(compiled_grants(two, {"support"}, {"database", "other"})) == 2


@pytest.mark.parametrize("mount", ["other", "sys/auth", "transit", "identity/oidc"])
def test_nothing_is_installed_at_a_path_that_an_author_chose(mount: str) -> None:
    with pytest.raises(UsageError, match="no declared database engine"):
        compiled_grants([of("one", "id", mount=mount)], {"support"})

"""Which privileges show no row: decided from the policies of a table alone."""

from __future__ import annotations

import pytest

from orchestrator.grants.privileges import TABLE_VERBS, Privilege, Verb
from orchestrator.grants.sql.row_security import EVERYONE, HiddenRows, Policy, hidden_rows, row_security

TABLE = ("public", "note")
SCOPE = "orchestrator_scope_1"


def policy(command: str = "*", *roles: str, name: str = "own", permissive: bool = True) -> Policy:
    return Policy(name, permissive, command, frozenset(roles or ("PUBLIC",)))


def hidden(verb: Verb, *policies: Policy, roles: tuple[str, ...] = (SCOPE,)) -> bool:
    columns = ("id",) if verb in ("select", "insert", "update") else ()
    found = list(hidden_rows([Privilege(verb, *TABLE, columns)], {TABLE: policies}, roles))
    assert found in ([], [HiddenRows(TABLE, verb)])
    return bool(found)


@pytest.mark.parametrize("verb", TABLE_VERBS)
def test_row_security_without_any_policy_hides_everything(verb: Verb) -> None:
    assert hidden(verb)


COMMANDS: dict[str, Verb] = {"r": "select", "a": "insert", "w": "update", "d": "delete"}


@pytest.mark.parametrize("command", ["*", *COMMANDS])
@pytest.mark.parametrize("verb", TABLE_VERBS)
def test_a_policy_counts_for_its_command_only(verb: Verb, command: str) -> None:
    assert hidden(verb, policy(command)) is (command != "*" and COMMANDS[command] != verb)


@pytest.mark.parametrize(
    ("roles", "is_hidden"),
    [(("PUBLIC",), False), ((SCOPE,), False), (("app_user", SCOPE), False), (("app_user",), True), (("public",), True)],
)
def test_a_policy_counts_for_its_roles_only(roles: tuple[str, ...], is_hidden: bool) -> None:
    assert hidden("select", policy("*", *roles)) is is_hidden


def test_before_anything_is_installed_only_what_is_for_everybody_counts() -> None:
    assert not hidden("select", policy("r"), roles=())
    assert hidden("select", policy("r", SCOPE), roles=())


def test_a_restrictive_policy_lets_nothing_pass() -> None:
    assert hidden("select", policy(permissive=False))
    assert not hidden("select", policy(permissive=False), policy(name="another"))


def test_our_own_policy_counts_as_long_as_nobody_else_has_a_permissive_one() -> None:
    ours = policy(name=EVERYONE)
    assert not hidden("select", ours)
    assert not hidden("select", ours, policy("*", SCOPE, permissive=False, name="orchestrator_1_select"))
    assert hidden("select", ours, policy("*", "app_user"))
    assert not hidden("select", ours, policy("*", "app_user"), policy("r", name="published"))


def test_what_is_no_table_or_has_no_row_security_hides_nothing() -> None:
    privileges = [Privilege("select", "public", "other", ("id",)), Privilege("usage", *TABLE)]
    assert list(hidden_rows(privileges, {TABLE: ()}, [SCOPE])) == []


def test_the_catalogs_answer_is_read_by_table() -> None:
    rows = [
        ("a", "on", True, "p1", True, "r", ["PUBLIC"]),
        ("a", "on", True, "p2", False, "*", ["x", "y"]),
        ("a", "bare", True, None, None, None, None),
        ("a", "off", False, "p3", True, "*", ["PUBLIC"]),
    ]
    on = {
        ("a", "on"): (policy("r", name="p1"), policy("*", "x", "y", name="p2", permissive=False)),
        ("a", "bare"): (),
    }
    assert row_security(rows) == on
    assert row_security(rows, also=[("a", "off")]) == {**on, ("a", "off"): (policy("*", name="p3"),)}


def test_the_words_name_table_verb_and_remedy() -> None:
    words = HiddenRows(("public", "Order"), "insert")
    assert str(words) == (
        'row level security is on for public."Order", and no permissive policy of it is for insert by a step\'s login, '
        "which may add no row"
    )
    assert words.remedy(SCOPE).startswith('CREATE POLICY ... ON public."Order" FOR INSERT TO PUBLIC or TO ' + SCOPE)

"""Narrower forms of a grant: what they are called, what they may say, and what is the same in all of them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from orchestrator.grants.compiled import compile_grant
from orchestrator.grants.models import DatabaseGrant
from orchestrator.grants.narrowing import check_narrower, narrow
from orchestrator.grants.privileges import ALL_COLUMNS, Privilege, RowLimit, bound_limits
from orchestrator.grants.scope import NarrowerForm, Scope, compiled_forms, normalise, scope_from_json
from orchestrator.planning.requests import bind
from orchestrator.provision.service import compiled_grants
from orchestrator.provision.vault.step_policies import HEADER, step_policy
from orchestrator.workflow.models.workflow import Workflow

ORDERS: dict[str, Any] = {"select": "shop.orders", "columns": ["id", "total", "customer"]}
NOTES: dict[str, Any] = {"update": "shop.notes", "columns": ["text", "read"]}
FORMS: dict[str, Any] = {
    "ids": {"shop.orders": {"select": ["id"]}},
    "no_customer": {"shop.orders": {"select": ["total", "id"]}},
    "both": {"shop.orders": {"select": ["id"]}, "shop.notes": {"update": ["read"]}},
}


def grant(*privileges: dict[str, Any], **more: Any) -> DatabaseGrant:
    return DatabaseGrant.model_validate(
        {"kind": "database", "connection": "support", "privileges": list(privileges or (ORDERS, NOTES)), **more}
    )


def columns(privileges: tuple[Privilege, ...]) -> dict[str, tuple[str, ...]]:
    return {privilege.name: privilege.columns for privilege in privileges}


class TestNames:
    def test_a_whole_grant_keeps_its_names_when_forms_are_added(self) -> None:
        plain, forms = compiled_forms(grant(), step_timeout=60), compiled_forms(grant(narrower=FORMS), step_timeout=60)
        assert set(plain) == {None}
        assert set(forms) == {None, *FORMS}
        assert plain[None] == forms[None]

    def test_the_names_stay_the_same_from_release_to_release(self) -> None:
        made = compile_grant(
            grant(narrower={"ids": {"shop.orders": {"select": ["id"]}}}), ttl=60, max_ttl=90, narrower="ids"
        )
        assert made is not None
        assert (made.vault_role, made.scope_role) == (
            "orc-support-44df247f9644e7b64a9f2deb8ac3a6c4",
            "orchestrator_scope_b7cfc71d643bd401192e03ef6f67305b",
        )

    def test_each_form_has_roles_of_its_own_and_the_limits_of_the_whole(self) -> None:
        more = {"max_connections": 3, "statement_timeout": "7s", "owned_objects": "keep", "ttl": "5m"}
        forms = compiled_forms(grant(narrower=FORMS, **more), step_timeout=400)
        assert (
            len({each.vault_role for each in forms.values()}) == len({each.scope_role for each in forms.values()}) == 4
        )
        limits = {each.limits()[:1] + each.limits()[2:] for each in forms.values()}
        assert limits == {("support", 300, 430, 3, 7, False, "keep")}
        assert len({(each.mount, each.connection) for each in forms.values()}) == 1

    def test_two_forms_that_are_the_same_are_one(self) -> None:
        named = {
            "one": {"shop.orders": {"select": ["id", "total"]}},
            "two": {"SHOP.Orders": {"select": ["total", "id"]}},
        }
        forms = compiled_forms(grant(narrower=named), step_timeout=60)
        assert forms["one"] == forms["two"]

    def test_a_form_that_equals_another_whole_grant_shares_its_roles(self) -> None:
        small = {**ORDERS, "columns": ["id"]}
        narrower = {"ids": {"shop.orders": {"select": ["id"]}}}
        form = compiled_forms(grant(ORDERS, narrower=narrower), step_timeout=60)["ids"]
        same = compiled_forms(grant(small), step_timeout=60)[None]
        longer = compiled_forms(grant(small), step_timeout=61)[None]
        assert form == same
        assert form.scope_role == longer.scope_role
        assert form.vault_role != longer.vault_role

    def test_provisioning_installs_each_form_once(self) -> None:
        def flow(name: str, **more: Any) -> Workflow:
            declared = {"kind": "database", "connection": "support", "privileges": [ORDERS, NOTES], **more}
            step = {"action": "postgres.query", "grants": {"db": declared}, "with": {"sql": "SELECT 1"}}
            return Workflow.model_validate({"version": 1, "name": name, "agent": "me", "steps": {"work": step}})

        plain = compiled_grants([flow("one")], {"support"})
        more = compiled_grants([flow("one", narrower=FORMS), flow("two", narrower=FORMS), flow("three")], {"support"})
        assert [each for each in more if each in plain] == plain
        assert len(more) == 4
        assert len({each.vault_role for each in more}) == 4

    def test_a_role_that_is_maintained_by_hand_has_no_forms(self) -> None:
        by_hand = {"kind": "database", "connection": "support", "role": "by-hand"}
        assert compiled_forms(DatabaseGrant.model_validate(by_hand), step_timeout=60) == {}
        assert normalise("db", DatabaseGrant.model_validate(by_hand), step_timeout=60).narrower == ()
        with pytest.raises(ValidationError, match="belong to `privileges`"):
            DatabaseGrant.model_validate({**by_hand, "narrower": FORMS})


class TestWhatIsDeclared:
    @pytest.mark.parametrize(
        ("form", "why"),
        [
            ({"shop.orders": {"select": ["id", "email"]}}, "does not declare email"),
            ({"shop.orders": {"select": ["email"]}}, "none of the declared columns"),
            ({"shop.orders": {"select": ["id", "total", "customer"]}}, "has every column that the grant has"),
            ({"orders": {"select": ["id"]}}, "`select` of columns on public.orders is not declared"),
            ({"shop.order": {"select": ["id"]}}, "`select` of columns on shop.order is not declared"),
            ({"shop.orders": {"update": ["id"]}}, "`update` of columns on shop.orders is not declared"),
            ({"shop.orders": {"delete": ["id"]}}, "'select', 'insert' or 'update'"),
            ({"shop.orders": {"execute": ["id"]}}, "'select', 'insert' or 'update'"),
            ({"shop.orders": {"select": ["*"]}}, "write `columns: all`"),
            ({"shop.orders": {"select": "all"}}, "list"),
            ({"shop.orders": {"select": "id"}}, "list"),
            ({"shop.orders": {"select": []}}, "at least 1"),
            ({"shop.orders": {}}, "at least 1"),
            ({}, "at least 1"),
            ({"shop.orders; drop": {"select": ["id"]}}, "is not a name"),
            ({"a.shop.orders": {"select": ["id"]}}, "is not a name"),
            ({"shop.orders": {"select": ["x" * 64]}}, "longer than the 63 bytes"),
            ({"shop.orders": {"select": ["id"]}, "shop.queue": {"delete": []}}, "'select', 'insert' or 'update'"),
        ],
    )
    def test_what_is_no_narrower_form_is_an_error(self, form: Any, why: str) -> None:
        with pytest.raises(ValidationError, match=r"narrower") as refused:
            grant(ORDERS, NOTES, {"delete": "shop.queue"}, narrower={"form": form})
        assert why in str(refused.value)

    @pytest.mark.parametrize("name", ["", "Form", "a form", "1form", "x" * 64])
    def test_a_form_has_a_plain_name(self, name: str) -> None:
        with pytest.raises(ValidationError, match="narrower"):
            grant(narrower={name: FORMS["ids"]})

    def test_a_table_that_was_not_named_stays_as_it_is(self) -> None:
        scope = normalise("db", grant(ORDERS, NOTES, {"delete": "shop.queue"}, narrower=FORMS), step_timeout=60)
        found = {form.name: columns(form.privileges) for form in scope.narrower}
        whole = {"notes": ("read", "text"), "orders": ("customer", "id", "total"), "queue": ()}
        assert columns(scope.privileges) == whole
        assert found == {
            "ids": {**whole, "orders": ("id",)},
            "no_customer": {**whole, "orders": ("id", "total")},
            "both": {**whole, "orders": ("id",), "notes": ("read",)},
        }

    def test_names_are_those_of_the_database_however_they_are_written(self) -> None:
        odd = {"select": 'shop."My Orders"', "columns": ["Id", "the total"]}
        made = grant(
            ORDERS,
            odd,
            narrower={"a": {'SHOP."My Orders"': {"select": ["Id"]}}, "b": {"Shop.ORDERS": {"select": ["id"]}}},
        )
        forms = {form.name: columns(form.privileges) for form in normalise("db", made, step_timeout=60).narrower}
        assert forms["a"]["My Orders"] == ("Id",)
        assert forms["b"]["orders"] == ("id",)
        with pytest.raises(ValidationError, match="is not declared"):
            grant(odd, narrower={"a": {'shop."my orders"': {"select": ["Id"]}}})
        with pytest.raises(ValidationError, match="none of the declared"):
            grant(odd, narrower={"a": {'shop."My Orders"': {"select": ["id"]}}})

    def test_of_every_column_any_may_remain(self) -> None:
        every = {"select": "shop.orders", "columns": "all"}
        form = compiled_forms(grant(every, narrower={"some": {"shop.orders": {"select": ["b", "a"]}}}), step_timeout=60)
        assert columns(form["some"].privileges) == {"orders": ("a", "b")}
        assert form[None].privileges[0].columns == ALL_COLUMNS

    def test_what_is_said_of_one_table_twice_holds_together(self) -> None:
        """As a policy may: a table can be written in two ways."""
        declared = (Privilege("select", "shop", "orders", ("a", "b", "c")),)
        assert narrow(declared, {"shop.orders": {"select": ["a", "b"]}, "SHOP.orders": {"select": ["b", "c"]}}) == (
            Privilege("select", "shop", "orders", ("b",)),
        )
        with pytest.raises(ValueError, match="none of the declared columns"):
            narrow(declared, {"shop.orders": {"select": ["a"]}, "SHOP.orders": {"select": ["c"]}})

    def test_every_column_stays_every_column_only_where_that_is_said(self) -> None:
        every = (Privilege("select", "shop", "orders", ALL_COLUMNS),)
        assert narrow(every, {}) == every
        check_narrower(every, {"shop.orders": {"select": ["a"]}})
        with pytest.raises(ValueError, match="every column"):
            check_narrower(every, {})

    @given(st.data())
    def test_no_form_has_more_than_the_whole(self, data: st.DataObject) -> None:
        letters = st.sampled_from("abcdef")
        some = st.lists(letters, min_size=1)
        declared = tuple(
            Privilege(verb, "s", name, tuple(sorted(set(data.draw(some)))), (RowLimit("a", 1),))  # type: ignore[arg-type]
            for verb in ("select", "update")
            for name in ("t", "u")
        )
        wanted = data.draw(
            st.dictionaries(
                st.sampled_from(["s.t", "S.t", "s.u"]), st.dictionaries(st.sampled_from(["select", "update"]), some)
            )
        )
        try:
            left = narrow(declared, wanted)
        except ValueError:
            return
        assert [(each.key, each.where) for each in left] == sorted((each.key, each.where) for each in declared)
        for before, after in zip(sorted(declared, key=lambda each: each.key), left, strict=True):
            limits = [
                set(verbs[after.verb])
                for table, verbs in wanted.items()
                if table.lower() == f"s.{after.name}" and after.verb in verbs
            ]  # type: ignore[index]
            assert set(after.columns) == set(before.columns).intersection(*limits)
            assert after.columns


LIMITED: list[dict[str, Any]] = [
    {"update": "shop.z", "columns": ["v", "w"], "where": {"owner": "${{ inputs.three }}", "n": 7}},
    {"select": "shop.a", "columns": ["id", "x", "y"], "where": {"b": "${{ inputs.two }}", "a": "${{ inputs.one }}"}},
]
LIMITED_FORMS: dict[str, Any] = {
    "z": {"shop.z": {"update": ["v"]}},
    "a": {"shop.a": {"select": ["y"]}},
    "za": {"shop.z": {"update": ["w"]}, "shop.a": {"select": ["id"]}},
}


class TestRowLimits:
    def test_the_values_have_the_same_numbers_in_every_form(self) -> None:
        """A login is told its values by number: another order would open the rows of another value."""
        forms = compiled_forms(grant(*LIMITED, narrower=LIMITED_FORMS), step_timeout=60)
        orders = {
            form: [(privilege.key, limit) for privilege, limit in bound_limits(each.privileges)]
            for form, each in forms.items()
        }
        assert len(orders) == 4
        assert all(order == orders[None] for order in orders.values())
        assert [(key[1], limit.column) for key, limit in orders[None]] == [("a", "a"), ("a", "b"), ("z", "owner")]

    def test_every_form_shows_the_values_of_the_run_and_keeps_constants(self) -> None:
        scopes = (normalise("db", grant(*LIMITED, narrower=LIMITED_FORMS), step_timeout=60),)
        (scope,) = bind(scopes, {"inputs": {"one": 1, "two": "zwei", "three": True}})
        assert scope.bindings == ("1", "zwei", "true")
        for form in scope.narrower:
            chosen = scope.narrowed(form)
            assert chosen.bindings == scope.bindings
            where = {
                each.name: {limit.column: limit.value for limit in each.where} for each in chosen.bound_privileges()
            }
            assert where == {"a": {"a": "1", "b": "zwei"}, "z": {"n": 7, "owner": "true"}}
        shown: Any = scope.as_json()["narrower"]
        assert [form["name"] for form in shown] == ["z", "a", "za"]
        assert all(form["privileges"][0]["where"] == {"a": "1", "b": "zwei"} for form in shown)


class TestScope:
    def scope(self) -> Scope:
        scopes = (normalise("db", grant(*LIMITED, narrower=LIMITED_FORMS), step_timeout=60),)
        return bind(scopes, {"inputs": {"one": 1, "two": "zwei", "three": True}})[0]

    def test_what_the_step_gets_has_no_forms_any_more(self) -> None:
        scope = self.scope()
        whole = scope.narrowed(None)
        assert (whole.narrower, whole.resource, whole.role) == ((), scope.resource, scope.role)
        for form in scope.narrower:
            got = scope.narrowed(form)
            assert (got.resource, got.role, got.privileges) == (form.resource, form.role, form.privileges)
            assert got.resource == f"database/creds/{form.role}" != whole.resource
            assert (got.name, got.ttl, got.connection, got.narrower) == (scope.name, scope.ttl, scope.connection, ())

    def test_the_scope_of_a_lease_is_read_back(self) -> None:
        scope = self.scope()
        for got in (scope.narrowed(None), *map(scope.narrowed, scope.narrower)):
            back = scope_from_json(got.as_json())
            assert back.as_json() == got.as_json()
            assert (back.resource, back.role, back.ttl) == (got.resource, got.role, got.ttl)
            assert (back.bindings, back.narrower) == ((), ())
            assert back.privileges == got.bound_privileges()

    def test_the_scope_of_a_question_is_read_back_without_its_forms(self) -> None:
        scope = self.scope()
        assert scope_from_json(scope.as_json()).as_json() == scope.narrowed(None).as_json()


class TestStepPolicy:
    def test_it_opens_the_whole_and_its_forms_and_nothing_else(self) -> None:
        scope = normalise("db", grant(narrower=FORMS), step_timeout=60)
        text = step_policy([scope])
        assert text.startswith(HEADER)
        opened = [line.split('"')[1] for line in text.splitlines() if line.startswith("path ")]
        forms = compiled_forms(grant(narrower=FORMS), step_timeout=60)
        assert sorted(opened) == sorted(f"database/creds/{each.vault_role}" for each in forms.values())
        assert text.count('capabilities = ["read"]') == text.count("capabilities") == 4

    def test_a_step_without_forms_has_the_policy_that_it_had(self) -> None:
        one = normalise("db", grant(), step_timeout=60)
        assert step_policy([one]) == f'{HEADER}path "{one.resource}" {{\n  capabilities = ["read"]\n}}\n'

    @pytest.mark.parametrize("path", ["database/creds/*", "database/+/x", 'a" { capabilities = ["sudo"] } path "b'])
    def test_a_path_of_a_form_that_means_more_than_itself_is_refused(self, path: str) -> None:
        from orchestrator.errors import UsageError

        form = NarrowerForm("form", "role", path, ())
        with pytest.raises(UsageError, match="cannot stand in a Vault policy"):
            step_policy([Scope("db", "database", "database/creds/x", 60, narrower=(form,))])

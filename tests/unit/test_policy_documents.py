"""The two documents of a decision and their schemas: what is asked, and what an answer may be."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import policy_questions
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from orchestrator.actions.catalog import action, catalog
from orchestrator.planning.plan import build
from orchestrator.policy.documents import (
    DECISION_EXAMPLE,
    MAX_ANSWER_BYTES,
    REQUEST_EXAMPLE,
    decision_from,
    decision_schema,
    request_schema,
)
from orchestrator.policy.obligations import MAX_NOTICES, SUPPORTED, Approval, Obligations
from orchestrator.policy.types import VERSION, PolicyRequest
from orchestrator.workflow.inputs import bind_inputs
from orchestrator.workflow.loader import load, load_text

WORKFLOWS = sorted((Path(__file__).parents[2] / "workflows").glob("*.yaml"))
REQUEST, DECISION = Draft202012Validator(request_schema()), Draft202012Validator(decision_schema())
MALFORMED = (
    "the policy's answer",
    "the policy gave no decision",
    "the policy demands what this version cannot do",
)
"""How the reason begins of an answer that is not a decision."""


def questions() -> Iterator[tuple[str, PolicyRequest]]:
    for name, (asked, _) in policy_questions.DENIED.items():
        yield f"denied: {name}", asked
    for name in ("QUERY", "TRANSLATE", "NOTIFY", "RECORD", "SEVERAL", "NOTHING"):
        yield name, getattr(policy_questions, name)
    for name, case in policy_questions.OWN.items():
        yield f"own: {name}", case.asked


@pytest.mark.parametrize(("made", "example"), [(REQUEST, REQUEST_EXAMPLE), (DECISION, DECISION_EXAMPLE)])
class TestSchemas:
    def test_it_is_one_of_json_schema_2020_12(self, made: Draft202012Validator, example: Any) -> None:
        Draft202012Validator.check_schema(made.schema)
        assert made.schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
        json.dumps(made.schema)

    def test_it_accepts_its_own_example(self, made: Draft202012Validator, example: Any) -> None:
        assert made.schema["examples"] == [example]
        made.validate(json.loads(json.dumps(example)))

    def test_every_member_is_described(self, made: Draft202012Validator, example: Any) -> None:
        schema = made.schema
        for name, member in schema["properties"].items():
            pointed = schema["$defs"].get(str(member.get("$ref")).rpartition("/")[2], {})
            assert member.get("description") or pointed.get("description") or pointed.get("properties"), name
        assert set(example) == set(schema["properties"])

    def test_no_member_may_be_left_out(self, made: Draft202012Validator, example: Any) -> None:
        assert made.schema["required"]
        for name in made.schema["required"]:
            assert not made.is_valid({key: value for key, value in example.items() if key != name})


class TestQuestions:
    @pytest.mark.parametrize("request_", [pytest.param(asked, id=name) for name, asked in questions()])
    def test_what_is_asked_is_valid(self, request_: PolicyRequest) -> None:
        REQUEST.validate(json.loads(json.dumps(request_.as_json())))

    @pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
    def test_what_the_plan_of_a_sample_asks_is_valid(self, path: Path) -> None:
        loaded = load(path, actions=catalog)
        given = {
            name: {"integer": 7, "number": 1.5, "boolean": True, "string": "x"}.get(declared.type, [])
            for name, declared in loaded.workflow.inputs.items()
            if declared.required
        }
        plan = build(loaded, bind_inputs(loaded.workflow, given), action=action, endpoints={})
        assert plan.steps
        for step in plan.steps:
            document = json.loads(json.dumps(step.request.as_json()))
            REQUEST.validate(document)
            only_of_calls = set() if loaded.workflow.is_task else {"task"}
            assert set(document) == set(REQUEST_EXAMPLE) - only_of_calls

    def test_every_kind_of_grant_in_every_form_is_valid(self) -> None:
        text = """
version: 1
name: kinds
agent: tester
inputs: { customer: { type: integer } }
steps:
  work:
    action: exec
    grants:
      db:
        kind: database
        connection: support
        on_expiry: reissue
        privileges:
          - { select: shop.orders, columns: all, where: { customer: "${{ inputs.customer }}", open: true, n: 3 } }
          - { update: 'shop."My Orders"', columns: [a, b] }
          - { delete: shop.queue }
          - { execute: "app.refresh(integer)" }
          - { usage: shop.numbers }
        narrower:
          one: { shop.orders: { select: [id] }, 'shop."My Orders"': { update: [a] } }
      hand: { kind: database, connection: support, role: by-hand }
      key: { kind: secret, path: some/where, keys: [a] }
      mq: { kind: dynamic, path: rabbitmq/creds/x, on_expiry: reissue, overlap: 5s }
      sent: { kind: dynamic, path: pki/issue/x, parameters: { common_name: a.example, n: 3, of: [a] } }
      api: { kind: token, audience: crm, scope: [read], details: [ { type: record, identifier: '1' } ] }
      id: { kind: token, audience: crm, scope: [read], profile: identity }
      s3:
        kind: aws
        issuer: aws-prod
        role: reporter
        actions: ["s3:Get*"]
        resources: ["arn:aws:s3:::reports/${{ inputs.customer }}/*"]
        conditions: { Bool: { "aws:SecureTransport": "true" } }
        wildcards: [actions]
      mail: { kind: oauth2, issuer: google, scope: [read], subject: support@shop.example, proof: dpop }
    with: { command: [/bin/true], credentials: { files: { A: db, B: mq } } }
"""
        loaded = load_text(text, filename="test.yaml", actions=catalog)
        plan = build(loaded, bind_inputs(loaded.workflow, {"customer": 7}), action=action, endpoints={})
        request = plan.steps[0].request
        bound = [replace(each, thumbprint="t") if each.name == "api" else each for each in request.grants]
        document = json.loads(json.dumps(replace(request, grants=bound).as_json()))
        REQUEST.validate(document)
        described = set(request_schema()["$defs"]["_Grant"]["properties"])  # type: ignore[index,call-overload]
        assert set().union(*document["grants"]) == described

    def test_it_says_what_can_be_carried_out(self) -> None:
        document = policy_questions.QUERY.as_json()
        assert tuple(document["supported_obligations"]) == SUPPORTED  # type: ignore[arg-type]
        assert set(SUPPORTED) == set(DECISION_EXAMPLE["obligations"])  # type: ignore[arg-type]
        assert document["version"] == VERSION


texts = st.text("ab \u00e4", max_size=3)
numbers = st.integers(-1, 25) | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.none()
anything = numbers | texts | st.lists(texts, max_size=2) | st.dictionaries(texts, texts, max_size=1)


def mostly(right: st.SearchStrategy[Any], wrong: st.SearchStrategy[Any] = anything) -> st.SearchStrategy[Any]:
    """What is right, and one time in twenty what may be wrong."""
    return st.sampled_from(range(20)).flatmap(lambda drawn: right if drawn < 19 else wrong)


def nearly(*needed: str, **members: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Documents with some of these members, each mostly as it should be, and seldom one that is not known."""
    each = {name: mostly(value) for name, value in members.items()}
    there = st.fixed_dictionaries(
        {name: each[name] for name in needed}, optional={name: each[name] for name in set(each) - set(needed)}
    )
    given = mostly(there, st.fixed_dictionaries({}, optional=each))
    unknown = mostly(st.just({}), st.dictionaries(st.sampled_from(["extra", ""]), anything))
    return st.tuples(given, unknown).map(lambda two: {**two[0], **two[1]})


positive = st.integers(1, 20)
some_columns = st.lists(
    mostly(st.sampled_from(["id", "kind", "x" * 63, "\u00e4" * 63]), st.sampled_from(["x" * 64, ""])),
    min_size=1,
    max_size=3,
)
approvers = mostly(
    st.sampled_from(
        [
            *("vault:a", "vault-policy:b", "vault-entity:c", "slack:d", "oidc:e", "oidc-groups:Support Leads"),
            *("oidc-https://claims.example/groups:f", "oidc-org.id:\u00c4rzte"),
        ]
    ),
    st.sampled_from(
        [
            *("slack:", "slack:a b", "mail:x", " vault:a", "", "vault:" + "a" * 201, "oidc:", "oidc-:a", "oidc-a b:c"),
            *("oidc-groups: a", "oidc-groups:a ", "oidc-groups:a  b", "oidc:a\nb", "oidc:" + "a" * 300, "oidcx:a"),
        ]
    ),
)
approvals = nearly(
    "approvers",
    approvers=st.lists(approvers, min_size=1, max_size=3),
    count=positive,
    expires_in=positive,
    valid_for=positive,
)
verbs = mostly(st.sampled_from(["select", "insert", "update"]), st.sampled_from(["delete", "x"]))
destinations = mostly(st.sampled_from(["security", "a_b-1"]), st.sampled_from(["Security", "1a", ""]))
words = mostly(st.sampled_from(["x", "x" * 2000]), st.sampled_from(["", "x" * 2001]))
obligations = nearly(
    max_ttl=positive,
    columns=st.dictionaries(
        texts, st.dictionaries(texts, st.dictionaries(verbs, mostly(some_columns))), min_size=1, max_size=2
    ),
    max_rows=positive,
    reason_required=st.booleans(),
    notify=st.lists(nearly("to", "text", to=destinations, text=words), max_size=3)
    | st.just([{"to": "security", "text": "x"}] * MAX_NOTICES),
    approval=approvals,
)
answers = nearly(
    "allow", version=st.just(1), allow=st.booleans(), reasons=st.lists(texts, max_size=2), obligations=obligations
)


def whole_floats(value: object) -> bool:
    """Whether somewhere stands a number such as 60.0, which JSON Schema takes for an integer, and we do not."""
    if isinstance(value, dict):
        return any(map(whole_floats, value.values()))
    if isinstance(value, list):
        return any(map(whole_floats, value))
    return isinstance(value, float) and value.is_integer()


def is_understood(answer: object) -> bool:
    decision = decision_from(answer, engine="e", revision="r")
    return not any(reason.startswith(MALFORMED) for reason in decision.reasons[:1])


class TestAnswers:
    @given(answers)
    def test_what_is_valid_is_understood_and_nothing_else(self, answer: dict[str, Any]) -> None:
        if whole_floats(answer):
            assert DECISION.is_valid(answer) or not is_understood(answer)
        else:
            assert is_understood(answer) == DECISION.is_valid(answer)

    @given(answers)
    def test_only_what_is_understood_allows(self, answer: dict[str, Any]) -> None:
        decision = decision_from(answer, engine="e", revision="r")
        assert decision.allow == (answer.get("allow") is True and is_understood(answer))

    @pytest.mark.parametrize(
        "demanded",
        [
            {"max_ttl": 60.0},
            {"max_rows": 5.0},
            {"max_ttl": True},
            {"max_ttl": "60"},
            {"max_ttl": 0},
            {"reason_required": 1},
            {"reason_required": "true"},
            {"approval": {"approvers": ["vault:a"], "count": 1.0}},
            {"approval": {"approvers": ["vault:a"], "count": 21}},
            {"approval": {"approvers": []}},
            {"approval": {"approvers": ["vault:a"], "expires_in": 0}},
            {"approval": {"approvers": ["vault:a"], "valid_for": 0}},
            {"approval": {"approvers": ["vault:a\n"]}},
            {"approval": {"approvers": ["oidc-groups:a\n"]}},
            {"approval": {"approvers": ["anybody"]}},
            {"approval": {"approvers": "vault:a"}},
            {"approval": {"count": 1}},
            {"approval": True},
            {"approval": None},
            {"notify": [{"to": "security\n", "text": "x"}]},
            {"notify": [{"to": "security", "text": "x"}] * (MAX_NOTICES + 1)},
            {"columns": {}},
            {"columns": {"db": {"t": {"delete": ["id"]}}}},
            {"columns": {"db": {"t": {"select": []}}}},
            None,
            [],
        ],
    )
    def test_an_obligation_that_is_not_exactly_one_is_a_denial(self, demanded: Any) -> None:
        decision = decision_from({"allow": True, "obligations": demanded}, engine="e", revision="r")
        assert not decision.allow
        assert decision.obligations == Obligations()

    @pytest.mark.parametrize("version", [2, 0, 1.0, True, "1", None])
    def test_another_version_is_a_denial(self, version: Any) -> None:
        assert not decision_from({"version": version, "allow": True}, engine="e", revision="r").allow
        assert decision_from({"version": 1, "allow": True}, engine="e", revision="r").allow

    @pytest.mark.parametrize("allow", ["yes", "true", 1, 1.0, 0, None, [], [True]])
    def test_only_a_truth_value_allows(self, allow: Any) -> None:
        assert not decision_from({"allow": allow}, engine="e", revision="r").allow

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), b"x", object(), {1: 2}])
    def test_what_json_cannot_say_is_a_denial_of_which_nothing_is_kept(self, value: Any) -> None:
        decision = decision_from({"allow": False, "reasons": ["no"], "extra": [value]}, engine="e", revision="r")
        assert decision.reasons == ("the policy's answer is not JSON",)
        assert (decision.allow, decision.answer) == (False, None)

    def test_the_longest_answer(self) -> None:
        def answer(length: int) -> dict[str, Any]:
            empty = len(json.dumps({"allow": True, "reasons": [""]}))
            return {"allow": True, "reasons": ["x" * (length - empty)]}

        assert decision_from(answer(MAX_ANSWER_BYTES), engine="e", revision="r").allow
        longer = decision_from(answer(MAX_ANSWER_BYTES + 1), engine="e", revision="r")
        assert (longer.allow, longer.answer) == (False, None)

    def test_what_an_answer_says_is_kept(self) -> None:
        decision = decision_from(DECISION_EXAMPLE, engine="e", revision="r", decision_id="7")
        assert decision.allow
        assert (decision.engine, decision.revision, decision.decision_id) == ("e", "r", "7")
        assert decision.answer == DECISION_EXAMPLE
        assert decision.reasons == tuple(DECISION_EXAMPLE["reasons"])  # type: ignore[arg-type]
        assert decision.obligations.as_json() == DECISION_EXAMPLE["obligations"]

    @pytest.mark.parametrize(
        ("answer", "reasons"),
        [
            ({"allow": False, "reasons": ["no", 1, "never"], "extra": 1}, ["no", "never"]),
            ({"allow": True, "reasons": ["yes"], "extra": 1}, []),
            ({"allow": False, "reasons": "no", "extra": 1}, []),
        ],
    )
    def test_of_a_denial_that_is_not_understood_its_own_reasons_are_told_too(
        self, answer: Any, reasons: list[str]
    ) -> None:
        decision = decision_from(answer, engine="e", revision="r")
        assert not decision.allow
        assert list(decision.reasons[1:]) == reasons

    def test_only_what_can_be_read_of_a_bad_answer_is_carried_out_and_that_is_notices(self) -> None:
        notice = {"to": "security", "text": "tried"}
        bad = {"notify": [notice], "max_ttl": "5m", "max_rows": 3, "approval": {"approvers": ["vault:a"]}}
        decision = decision_from({"allow": True, "obligations": bad}, engine="e", revision="r")
        assert decision.obligations == Obligations(notify=(notice,))  # type: ignore[arg-type]


def read(demanded: Any) -> Obligations:
    decision = decision_from({"allow": True, "obligations": demanded}, engine="e", revision="r")
    assert decision.allow, decision.reasons
    return decision.obligations


valid_obligations = obligations.filter(lambda each: is_understood({"allow": True, "obligations": each}))


class TestObligations:
    @given(valid_obligations)
    def test_what_is_read_and_written_again_is_the_same(self, demanded: dict[str, Any]) -> None:
        first = read(demanded)
        written: Any = json.loads(json.dumps(first.as_json()))
        assert all(not demanded[name] for name in set(demanded) - set(written))
        DECISION.validate({"allow": True, "obligations": written})
        assert read(written) == first
        assert read(written).as_json() == written

    def test_an_approval_is_written_with_all_that_it_means(self) -> None:
        (written,) = read({"approval": {"approvers": ["vault:b", "vault:a", "vault:b"]}}).as_json().values()
        assert written == {"approvers": ["vault:a", "vault:b"], "count": 1, "expires_in": 86_400, "valid_for": 3_600}

    @given(st.lists(valid_obligations.map(read), max_size=3))
    def test_the_strictest_meets_all_of_them(self, several: list[Obligations]) -> None:
        all_of = Obligations.strictest(several)
        for each in several:
            assert each.max_ttl is None or (all_of.max_ttl is not None and all_of.max_ttl <= each.max_ttl)
            assert each.max_rows is None or (all_of.max_rows is not None and all_of.max_rows <= each.max_rows)
            assert all_of.reason_required or not each.reason_required
            assert all(notice in all_of.notify for notice in each.notify)
            for grant, tables in each.columns.items():
                for table, verbs in tables.items():
                    for verb, names in verbs.items():
                        assert set(all_of.columns[grant][table][verb]) <= set(names)
            if each.approval is not None:
                assert all_of.approval is not None
                assert set(all_of.approval.approvers) <= set(each.approval.approvers)
                assert all_of.approval.count >= each.approval.count
                assert all_of.approval.expires_in <= each.approval.expires_in
                assert all_of.approval.valid_for <= each.approval.valid_for
        if len(several) == 1:
            assert replace(all_of, notify=()) == replace(several[0], notify=())
        assert len({(notice["to"], notice["text"]) for notice in all_of.notify}) == len(all_of.notify)
        if not several:
            assert all_of == Obligations()

    def test_the_strictest_is_not_stricter_than_it_has_to_be(self) -> None:
        one = Obligations(max_ttl=60, max_rows=9, approval=Approval(("vault:a", "vault:b"), 2, 100, 20))
        other = Obligations(max_ttl=50, approval=Approval(("vault:b", "vault:c"), 1, 90, 30))
        assert Obligations.strictest([one, other, Obligations()]) == Obligations(
            max_ttl=50, max_rows=9, approval=Approval(("vault:b",), 2, 90, 20)
        )

    @pytest.mark.parametrize(
        "several",
        [
            [Obligations(approval=Approval((name,))) for name in ("vault:a", "vault:b")],
            [Obligations(columns={"db": {"t": {"select": (name,)}}}) for name in ("id", "kind")],
        ],
    )
    def test_demands_that_nothing_meets_together_are_a_denial(self, several: list[Obligations]) -> None:
        nobody = Obligations.strictest(several).as_json()
        assert nobody
        decision = decision_from({"allow": True, "obligations": nobody}, engine="e", revision="r")
        assert not decision.allow

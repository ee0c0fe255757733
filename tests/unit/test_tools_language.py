"""Tools in workflow files: what is refused before an agent sees them, and what becomes of what it chooses."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from bench import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from joserfc import jwt
from joserfc.jwk import ECKey
from jsonschema import Draft202012Validator

from orchestrator.actions.catalog import catalog
from orchestrator.cli.main import main
from orchestrator.errors import InvalidExpression, UsageError
from orchestrator.grants.credential import Credential
from orchestrator.grants.scope import scope_from_json
from orchestrator.planning.lint import lint
from orchestrator.planning.requests import bind, scopes_of
from orchestrator.proof.examine import examine_token
from orchestrator.proof.forbidden import Verdict
from orchestrator.secret import Secret
from orchestrator.workflow.loader import LoadedWorkflow, load_text
from orchestrator.workflow.problems import InvalidWorkflow
from orchestrator.workflow.schema import json_schema
from orchestrator.workflow.tools.arguments import arguments_schema, bind_arguments
from orchestrator.workflow.tools.urls import BY_THE_AGENT, evaluate_parameter, url_of

TOP = """\
version: 1
name: complaint
inputs: { customer: { type: integer, minimum: 1 }, note: { type: string, maxLength: 20, default: none } }
context: { customer: "${{ inputs.customer }}" }
"""
CRM = "grants: { crm: { kind: token, ttl: 60s, audience: crm, scope: [write] } }"
NOTE = """\
tools:
  add_note:
    description: Add a note to a ticket.
    call:
      ticket: { type: string, pattern: "^T-[0-9]+$", maxLength: 12 }
      text: { type: string, maxLength: 50 }
      loud: { type: boolean, default: false }
      level: { type: integer, enum: [1, 2, 3], default: 1 }
      share: { type: number, minimum: 0, maximum: 1, default: 0.5 }
      extra: { type: string, default: null }
    grants: { crm: { kind: token, audience: crm, scope: [note] } }
    action: http.request
    with:
      url: "${{ endpoints.crm }}/customers/${{ inputs.customer }}/tickets/${{ call.ticket }}?loud=${{ call.loud }}"
      method: POST
      bearer: crm
      json: { text: "${{ call.text }}", by: "${{ task.agent }}" }
    outputs: [status]
    max_calls: 5
    max_open: 1
"""
HAND_OVER = f"""\
tools:
  ticket_token:
    description: A token for one ticket.
    {CRM}
    hand_over: crm
"""

LOGIN = """\
tools:
  login:
    description: A login.
    grants:
      db: { kind: database, connection: c, ttl: 60s, privileges: [ { select: t, columns: [a] } ] }
    hand_over: db
"""


def load(text: str) -> LoadedWorkflow:
    return load_text(text, filename="t.yaml", actions=catalog)


def messages(text: str) -> str:
    with pytest.raises(InvalidWorkflow) as caught:
        load(text)
    return "\n".join(f"{each.line}: {each.message} / {each.hint}" for each in caught.value.problems)


def tool(*lines: str, call: str = "x: { type: string }", grants: str = "", action: str = "http.request") -> str:
    body = "".join(f"      {line}\n" for line in lines)
    return (
        f"{TOP}tools:\n  t:\n    description: d\n    call: {{ {call} }}\n    grants: {{ {grants} }}\n"
        f"    action: {action}\n    with:\n{body}"
    )


STEPS = "steps: { s: { action: exec, with: { command: [x] } } }\n"
SQL = "db: { kind: database, connection: c, role: r }"


@pytest.mark.parametrize("text", [TOP + NOTE, TOP + HAND_OVER, TOP + "task: { duration: 1h, idle: 90s }\n" + NOTE])
def test_a_file_with_tools_is_valid_and_has_no_agent_of_its_own(text: str) -> None:
    loaded = load(text)
    assert loaded.workflow.is_task
    assert (loaded.workflow.agent, list(loaded.workflow.steps)) == ("", [])
    assert [problem for problem in lint(loaded) if problem.severity == "error"] == []


def test_handing_over_what_cannot_be_revoked_is_warned_of() -> None:
    key = "crm: { kind: secret, ttl: 60s, path: crm/bot, keys: [token] }"
    text = TOP + HAND_OVER.replace(CRM, f"grants: {{ {key} }}")
    (problem,) = lint(load(text))
    assert (problem.severity, problem.line) == ("warning", text.splitlines().index("    hand_over: crm") + 1)
    assert "cannot be revoked" in problem.message
    assert lint(load(TOP + HAND_OVER)) == []


def test_how_long_a_task_lasts_is_said_or_a_quarter_of_an_hour() -> None:
    assert load(TOP + NOTE).workflow.limits.duration == 900
    limits = load(TOP + "task: { duration: 1h, idle: 90s }\n" + NOTE).workflow.limits
    assert (limits.duration, limits.idle) == (3600, 90)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (TOP + "steps: {}\n" + NOTE, "either `steps` or `tools`"),
        (TOP, "`steps` is missing here"),
        (TOP + "tools: {}\n", "`tools` is empty"),
        (TOP + "agent: me\n" + NOTE, "`agent` says nothing of tools"),
        (TOP + "schedule: { every: 1h }\n" + NOTE, "`schedule` says nothing of tools"),
        (TOP.replace("minimum: 1", "secret: true") + NOTE, "an agent gives no secrets"),
        (TOP + "max_runs: 1\n" + NOTE, "`max_runs` says nothing of tools"),
        (
            TOP + "agent: a\ntask: { duration: 1h }\nsteps: { s: { action: exec, with: { command: [x] } } }",
            "belongs to",
        ),
        (TOP + STEPS, "`agent` is missing here"),
        (TOP + f"agent: ''\n{STEPS}", "the agent needs a name"),
        (TOP + NOTE.replace("description: Add a note to a ticket.", "description: ''"), "at least 1 character"),
        (TOP + NOTE.replace("call.ticket }", "call.tickt }"), "the tool has no argument `tickt`"),
        (TOP + NOTE.replace("task.agent", "task.secret"), "`task.secret` is not known"),
        (TOP + NOTE.replace("task.agent", "run.id"), "`run` is not known here"),
        (TOP + NOTE.replace("task.agent", "steps.add_note.output.x"), "`steps` is not known here"),
        (TOP + NOTE.replace('customer: "${{ inputs.customer }}"', "x: y") + "x: 1", "unknown key `x`"),
        (TOP.replace("inputs.customer", "call.ticket") + NOTE, "`context` may refer to inputs"),
        (TOP.replace("inputs.customer", "run.id") + NOTE, "`context` may refer to inputs"),
        (TOP + NOTE.replace("default: 1 }", "default: 4 }"), "it is one of 1, 2, 3"),
        (TOP + NOTE.replace("default: 0.5", "default: 1.5"), "it is at most 1"),
        (
            TOP + NOTE.replace("type: boolean, default: false", "type: boolean, maxLength: 2"),
            "`maxLength` says nothing",
        ),
        (TOP + NOTE.replace("maxLength: 50", "minimum: 5"), "`minimum` says nothing of a text"),
        (TOP + NOTE.replace("enum: [1, 2, 3]", "enum: [1, two]"), "which is not a whole number"),
        (TOP + NOTE.replace("^T-[0-9]+$", "(?=a)b"), "no regular expression that can be used"),
        (TOP + NOTE.replace("^T-[0-9]+$", "(a"), "no regular expression that can be used"),
        (TOP + NOTE.replace("type: boolean", "type: object"), "expected"),
        (TOP + HAND_OVER.replace("hand_over: crm", "hand_over: mail"), "there is no grant `mail` to hand over"),
        (TOP + HAND_OVER.replace("ttl: 60s, ", ""), "needs a `ttl`"),
        (TOP + HAND_OVER + "    action: exec\n", "either an `action` or a grant"),
        (TOP + HAND_OVER.replace("    hand_over: crm\n", ""), "either an `action` or a grant"),
        (TOP + HAND_OVER + "    outputs: [x]\n", "belong to `action`"),
        (TOP + HAND_OVER + "    timeout: 5m\n", "a credential of the kind `token` cannot be renewed"),
        (TOP + LOGIN + "    timeout: 60s\n", "nothing is left to renew"),
        (TOP + LOGIN + "    retry: { attempts: 2 }\n", "belong to `action`"),
        (TOP + HAND_OVER.replace("crm: {", "db: { kind: database, connection: c, role: r }, crm: {"), "that one grant"),
        (TOP + HAND_OVER.replace("kind: token,", "kind: token, profile: identity,"), "cannot fix the claims"),
        (tool("grant: x", action="hand_over"), "`hand_over` is no action"),
        (tool("sql: SELECT ${{ call.x }}", grants=SQL, action="postgres.query"), "for the file to say"),
        (tool("sql: '${{ call.x }}'", grants=SQL, action="postgres.query"), "for the file to say"),
        (tool("sql: SELECT ${{ inputs.note }}", grants=SQL, action="postgres.execute"), "not for `inputs.note`"),
        (tool("command: [sh, -c, '${{ call.x }}']", action="exec"), "for the file to say"),
        (tool("command: [a]", "cwd: /tmp/${{ call.x }}", action="exec"), "for the file to say"),
        (tool("command: [a]", "paths: { read: ['${{ call.x }}'] }", action="exec"), "for the file to say"),
        (tool("callable: a:b", "path: ['${{ call.x }}']", action="python"), "for the file to say"),
        (tool("url: 'https://h/'", "method: '${{ call.x }}'"), "for the file to say"),
        (tool("url: 'https://h/'", "body: '{\"a\": ${{ call.x }}}'"), "for the file to say"),
        (tool("url: '${{ call.x }}'"), "may only fill a part of the path"),
        (tool("url: 'https://${{ call.x }}/a'"), "may only fill a part of the path"),
        (tool("url: 'https://h${{ call.x }}/a'"), "may only fill a part of the path"),
        (tool("url: 'https://h:${{ call.x }}/'"), "may only fill a part of the path"),
        (tool("url: '${{ endpoints.e }}${{ call.x }}'"), "may only fill a part of the path"),
        (tool("url: '${{ endpoints.e + call.x }}/'"), "may only fill a part of the path"),
        (tool("url: 'https://h/a#${{ call.x }}'"), "may only fill a part of the path"),
        (tool("url: 'https://${{ context.customer }}/'"), "may only fill a part of the path"),
    ],
)
def test_what_is_refused_before_an_agent_sees_it(text: str, said: str) -> None:
    assert said in messages(text)


@pytest.mark.parametrize(
    "text",
    [
        tool("url: 'https://h/${{ call.x }}'"),
        tool("url: '${{ endpoints.e }}/a/${{ call.x }}?q=${{ call.x }}'"),
        tool("url: '${{ endpoints.e }}?q=${{ call.x }}'"),
        tool("sql: SELECT 1", "parameters: { a: '${{ call.x }}' }", grants=SQL, action="postgres.query"),
        tool("command: [a]", "stdin: '${{ call.x }}'", action="exec"),
    ],
)
def test_the_neighbours_of_what_is_refused_are_allowed(text: str) -> None:
    load(text)


def test_how_long_a_login_is_handed_over_for_is_its_ttl_or_what_the_tool_says() -> None:
    tool = load(TOP + LOGIN).workflow.tools["login"]
    assert (tool.step.timeout, tool.renewable) == (60, False)
    longer = load(TOP + LOGIN + "    timeout: 61s\n").workflow
    assert (longer.tools["login"].step.timeout, longer.tools["login"].renewable) == (61, True)
    (scope,) = scopes_of(longer, "login")
    assert scope.ttl == 60


def test_a_step_knows_neither_call_nor_task() -> None:
    text = "version: 1\nname: w\nagent: a\nsteps:\n  s:\n    action: exec\n    with: { command: ['${{ %s }}'] }\n"
    assert "`call` is not known here" in messages(text % "call.x")
    assert "`task` is not known here" in messages(text % "task.id")


GOOD = {"ticket": "T-7", "text": "hello"}


def test_arguments_are_bound_with_their_defaults() -> None:
    bound = bind_arguments("add_note", load(TOP + NOTE).workflow.tools["add_note"], GOOD)
    assert bound == {**GOOD, "loud": False, "level": 1, "share": 0.5, "extra": None}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"text": "a"}, "the argument `ticket` is missing"),
        ({**GOOD, "more": 1}, "has no argument `more`"),
        ({**GOOD, "ticket": "T-7\n"}, "it must match"),
        ({**GOOD, "ticket": "x T-7"}, "it must match"),
        ({**GOOD, "ticket": "T-" + "7" * 20}, "may have 12"),
        ({**GOOD, "text": "x" * 51}, "may have 50"),
        ({**GOOD, "text": 5}, "expected a text"),
        ({**GOOD, "text": None}, "expected a text"),
        ({**GOOD, "text": "a\0b"}, "no text may have"),
        ({**GOOD, "text": "a\ud800"}, "no text may have"),
        ({**GOOD, "loud": 1}, "expected true or false"),
        ({**GOOD, "loud": "true"}, "expected true or false"),
        ({**GOOD, "level": 4}, "one of 1, 2, 3"),
        ({**GOOD, "level": True}, "expected a whole number"),
        ({**GOOD, "level": 1.0}, "expected a whole number"),
        ({**GOOD, "share": 1.01}, "at most 1"),
        ({**GOOD, "share": float("nan")}, "not a finite number"),
        ({**GOOD, "share": -1}, "at least 0"),
        ({**GOOD, "share": 10**30}, "64 bits"),
        ({**GOOD, "share": 10**400}, "64 bits"),
        ({**GOOD, "extra": ["a"]}, "expected a text"),
        ({**GOOD, "extra": "x" * 10_001}, "may have 10000"),
    ],
)
def test_an_argument_that_is_not_as_declared_is_refused_without_being_repeated(given: Any, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        bind_arguments("add_note", load(TOP + NOTE).workflow.tools["add_note"], given)
    assert said in caught.value.message
    assert "x" * 30 not in caught.value.message


@pytest.mark.parametrize(
    "more", [{"share": 0}, {"share": 1}, {"level": 3}, {"text": "x" * 50}, {"extra": "x" * 10_000}]
)
def test_the_bounds_themselves_are_allowed(more: dict[str, Any]) -> None:
    given = {**GOOD, **more}
    assert bind_arguments("add_note", load(TOP + NOTE).workflow.tools["add_note"], given).items() >= given.items()


def test_everything_wrong_with_a_call_is_said_at_once() -> None:
    with pytest.raises(UsageError) as caught:
        bind_arguments("add_note", load(TOP + NOTE).workflow.tools["add_note"], {"loud": 3, "b": 1})
    assert all(name in caught.value.message for name in ("`ticket`", "`text`", "`loud`", "`b`"))


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=60),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)
_NAMES = st.sampled_from(["ticket", "text", "loud", "level", "share", "extra", "other"])


@settings(max_examples=200)
@given(st.dictionaries(_NAMES, _JSON, max_size=5))
def test_what_is_bound_is_what_the_shown_schema_allows(more: dict[str, Any]) -> None:
    declared = load(TOP + NOTE).workflow.tools["add_note"]
    schema = arguments_schema(declared)
    Draft202012Validator.check_schema(schema)
    assert not Draft202012Validator(schema).is_valid({**GOOD, "other": 1})
    arguments = {**GOOD, **more}
    try:
        bound = bind_arguments("add_note", declared, arguments)
    except UsageError:
        return
    assert list(Draft202012Validator(schema).iter_errors(arguments)) == []
    assert bound.keys() == declared.call.keys()


URL = "https://crm.example/a/${{ call.x }}/b?q=${{ call.x }}&r=1"


@settings(max_examples=300)
@given(st.text(max_size=30))
def test_whatever_is_chosen_stays_in_its_place_of_the_url(value: str) -> None:
    try:
        url = url_of(URL, {"call": {"x": value}}, BY_THE_AGENT)
    except InvalidExpression:
        assert value in ("", ".", "..") or any("\ud800" <= char <= "\udfff" for char in value)
        return
    parts = urlsplit(url)
    assert (parts.scheme, parts.netloc, parts.fragment) == ("https", "crm.example", "")
    before, chosen, after = parts.path.split("/")[1:]
    assert (before, unquote(chosen), after) == ("a", value, "b")
    assert parts.query == f"q={chosen}&r=1"


@pytest.mark.parametrize("value", ["a/../b", "%2e%2e", "x?y#z", "\\", "a b", "é", "...", 7, True])
def test_a_value_cannot_lead_to_another_path(value: Any) -> None:
    url = url_of("https://h/t/${{ call.x }}/n", {"call": {"x": value}}, BY_THE_AGENT)
    assert url.count("/") == 5
    assert url.isascii()


@pytest.mark.parametrize("value", [".", "..", ""])
def test_a_value_that_is_no_segment_is_refused_in_a_path_and_may_be_asked_for(value: str) -> None:
    with pytest.raises(InvalidExpression):
        url_of("https://h/t/${{ call.x }}/n", {"call": {"x": value}}, BY_THE_AGENT)
    assert url_of("https://h/t?x=${{ call.x }}", {"call": {"x": value}}, BY_THE_AGENT) == f"https://h/t?x={value}"


def test_dots_beside_a_value_are_looked_at_with_it() -> None:
    with pytest.raises(InvalidExpression, match="upwards"):
        url_of("https://h/t/.${{ call.x }}/n", {"call": {"x": "."}}, BY_THE_AGENT)


def test_what_an_endpoint_says_is_not_encoded_and_what_is_chosen_is_not_parsed_again() -> None:
    loaded = load(TOP + NOTE)
    declared, params = loaded.workflow.parts["add_note"], catalog.params_of("http.request")
    assert params is not None
    context = {
        "inputs": {"customer": 7},
        "endpoints": {"crm": "https://h/base"},
        "call": {"ticket": "${{ inputs.customer }}", "loud": True, "text": "${{ endpoints.crm }}"},
        "task": {"agent": "a"},
    }
    found = {
        name: evaluate_parameter(loaded.workflow.is_task, params, name, declared.with_[name], context)
        for name in declared.with_
    }
    assert found["url"] == "https://h/base/customers/7/tickets/%24%7B%7B%20inputs.customer%20%7D%7D?loud=true"
    assert found["json"] == {"text": "${{ endpoints.crm }}", "by": "a"}


DETAILS = """\
    grants:
      crm:
        kind: token
        ttl: 60s
        audience: crm
        scope: [write]
        details: [ { type: crm_record, actions: [write_ticket], identifier: "${{ inputs.customer }}", size: 5 } ]
    hand_over: crm
"""
DETAILED = TOP + "tools:\n  t:\n    description: d\n" + DETAILS


def test_the_details_of_a_token_are_bound_and_recorded() -> None:
    (scope,) = scopes_of(load(DETAILED).workflow, "t")
    assert scope.describe().endswith("(crm_record write_ticket ${{ inputs.customer }}), 1m")
    (bound,) = bind((scope,), {"inputs": {"customer": 1234}})
    assert bound.details == ({"type": "crm_record", "actions": ["write_ticket"], "identifier": "1234", "size": 5},)
    assert scope_from_json(json.loads(json.dumps(bound.as_json()))) == bound


@pytest.mark.parametrize("value", [True, None, "", 1.5, ["1234"], {"a": 1}])
def test_what_a_token_is_for_is_one_text_or_whole_number(value: Any) -> None:
    with pytest.raises(InvalidExpression, match="identifier"):
        bind(scopes_of(load(DETAILED).workflow, "t"), {"inputs": {"customer": value}})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("type: crm_record, ", ""), "`type` is missing"),
        (("type: crm_record", "type: '${{ inputs.note }}'"), "is not allowed here"),
        (("actions: [write_ticket]", "actions: ['${{ inputs.note }}']"), "is not allowed here"),
        (('inputs.customer }}", size', 'inputs.nobody }}", size'), "there is no input `nobody`"),
        (("audience: crm", "audience: crm\n        profile: workflow"), "profile"),
        (("[ { type", "[]\n        x: [ { type"), "at least 1 item"),
    ],
)
def test_details_that_cannot_be_are_refused(change: tuple[str, str], said: str) -> None:
    assert said in messages(DETAILED.replace(*change))


def test_the_schema_of_files_takes_either_kind() -> None:
    validator = Draft202012Validator(json_schema(catalog))
    step = {"action": "exec", "with": {"command": ["a"]}}
    tools = {"t": {"description": "d", "action": "exec", "with": {"command": ["a"]}}}
    both = {"version": 1, "name": "w"}
    assert validator.is_valid({**both, "agent": "a", "steps": {"s": step}})
    assert validator.is_valid({**both, "tools": tools, "task": {"duration": "1h"}})
    for wrong in (
        both,
        {**both, "agent": "a", "steps": {"s": step}, "tools": tools},
        {**both, "agent": "a", "tools": tools},
        {**both, "steps": {"s": step}},
        {**both, "tools": {"t": {"description": "d"}}},
        {**both, "tools": {"t": {**tools["t"], "hand_over": "x"}}},
        {**both, "tools": {"t": {**tools["t"], "with": {"commnd": ["a"]}}}},
    ):
        assert not validator.is_valid(wrong), wrong


@pytest.fixture
def complaint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ORCHESTRATOR_POLICY", "allow-all")
    file = tmp_path / "complaint.yaml"
    file.write_text(TOP + NOTE + HAND_OVER.removeprefix("tools:\n"))
    return file


def test_a_plan_says_what_each_tool_allows_and_what_the_policy_says_of_an_agent(
    complaint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", str(complaint), "--input", "customer=7"]) == 0
    shown = capsys.readouterr().out
    for words in (
        "for any agent",
        "level: a whole number, one of 1, 2, 3, 1 if not given",
        "5 calls a task, 1 at a time",
    ):
        assert words in " ".join(shown.split())
    assert shown.count("not asked: --agent says who would call it") == 2
    assert "2 tools, 2 credentials" in shown
    main(["plan", str(complaint), "--input", "customer=7", "--agent", "somebody", "--json"])
    plan = json.loads(capsys.readouterr().out)
    assert plan["agent"] == "somebody"
    assert [each["decision"]["allow"] is not None for each in plan["steps"]] == [True, True]
    note, token = (each["tool"] for each in plan["steps"])
    assert note["arguments"]["properties"]["level"] == {"type": "integer", "enum": [1, 2, 3], "default": 1}
    assert (token["hand_over"], note["hand_over"], note["max_calls"]) == ("crm", None, 5)


def test_tools_are_not_run_and_a_workflow_has_its_own_agent(
    complaint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(complaint), "--input", "customer=7"]) == 2
    assert "an agent calls while a task is open" in capsys.readouterr().err
    steps = complaint.with_name("steps.yaml")
    steps.write_text(f"version: 1\nname: w\nagent: own\n{STEPS}")
    assert main(["plan", str(steps), "--agent", "other"]) == 2
    assert "names its agent, `own`" in capsys.readouterr().err


def test_the_example_of_the_docs_is_what_they_say() -> None:
    text = (ROOT / "docs" / "tools.md").read_text().partition("```yaml\n")[2].partition("```")[0]
    loaded = load(text)
    assert [problem for problem in lint(loaded) if problem.severity == "error"] == []
    assert set(loaded.workflow.tools) == {"read_messages", "write_ticket"}


def test_what_the_docs_call_fixed_is_fixed() -> None:
    fixed = {name: getattr(catalog.params_of(name), "fixed", frozenset()) for name in catalog.names()}
    assert fixed["http.request"] == {
        "method",
        "body",
        "follow_redirects",
        "redirect_origins",
        "auth",
        "ca",
        "certificate",
    }
    assert fixed["exec"] == {"command", "cwd", "paths", "connect"}
    assert fixed["python"] == {"callable", "path", "paths", "connect"}
    assert fixed["postgres.query"] == fixed["postgres.execute"] == {"sql", "server_messages"}
    for name in catalog.names():
        model = catalog.params_of(name)
        assert model is not None
        assert fixed[name] | model.urls <= {info.alias or key for key, info in model.model_fields.items()}


def test_details_of_a_step_are_for_tokens_that_the_orchestrator_builds() -> None:
    grants = DETAILS.replace("    hand_over: crm\n", "").replace(
        "audience: crm", "audience: crm\n        profile: workflow"
    )
    step = "    action: http.request\n    with: { url: 'https://h/', bearer: crm }\n"
    text = TOP + f"agent: a\nsteps:\n  s:\n{grants}{step}"
    assert "`details` are bound for each token" in messages(text)
    assert load(text.replace("        profile: workflow\n", "")).workflow.parts["s"].grants


def signed(details: Any) -> tuple[Credential, dict[str, Any]]:
    key = ECKey.generate_key("P-256", {"kid": "k"})
    now = int(time.time())
    claims = {"aud": "crm", "scope": "write", "iat": now, "exp": now + 60, "authorization_details": details}
    token = jwt.encode({"alg": "ES256", "kid": "k"}, claims, key)
    return Credential("crm", "token", 60, fields={"token": Secret(token)}), {"keys": [key.as_dict(private=False)]}


@pytest.mark.parametrize("change", [{"identifier": "1235"}, {"actions": ["write_ticket", "delete"]}, {"more": 1}])
def test_a_proof_finds_a_token_that_is_for_more_than_was_bound(change: dict[str, Any]) -> None:
    (scope,) = bind(scopes_of(load(DETAILED).workflow, "t"), {"inputs": {"customer": 1234}})
    own = dict(scope.details[0])
    assert examine_token("t", scope, *signed([own])).holds
    for wrong in ([{**own, **change}], [own, own], [], None):
        proof = examine_token("t", scope, *signed(wrong))
        assert [trial.what for trial in proof.trials if trial.verdict is not Verdict.REFUSED] == [
            "be for anything beyond its details"
        ]

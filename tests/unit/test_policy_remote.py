"""Engines that ask a service, without one: their options, what they say and what they read."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from policy_questions import NOTIFY, QUERY, READ, TOKEN, TRANSLATE
from ruamel.yaml import YAML

from orchestrator.cli.display.plan_view import plan_json
from orchestrator.cli.dry_run import decided
from orchestrator.errors import UsageError
from orchestrator.policy.engines.services.authzen import AuthzenEngine
from orchestrator.policy.engines.services.authzen_messages import Evaluation, Metadata, asked, decision_document
from orchestrator.policy.engines.services.authzen_obligations import MAX_OBLIGATIONS, read_obligations
from orchestrator.policy.engines.services.opa import OpaEngine
from orchestrator.policy.obligations import MAX_NOTICES, Obligations
from orchestrator.policy.opening import open_engine
from orchestrator.policy.types import ConnectedEngine, Decision, PolicyRequest

ROOT = Path(__file__).parents[2]
SECRET = "hunter2-very-secret"
ENGINES = ["opa", "authzen"]


def opened(name: str, **options: str) -> Any:
    return open_engine(name, path=Path("/nowhere"), options=options)


@pytest.mark.parametrize("name", ENGINES)
def test_an_engine_that_asks_a_service_is_found_by_name(name: str) -> None:
    engine = opened(name, url="https://pdp.example/base/")
    assert isinstance(engine, ConnectedEngine)
    assert engine.name == name
    assert engine.service.options.url == "https://pdp.example/base"
    assert opened(name, url="http://localhost:1", plain_http="").service.options.plain_http is False


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize(
    ("options", "variable", "says"),
    [
        ({}, "URL", "it is not known where the service is"),
        ({"url": ""}, "URL", "it is not known where the service is"),
        ({"url": "pdp.example"}, "URL", "begins with https://"),
        ({"url": "ftp://pdp.example"}, "URL", "begins with https://"),
        ({"url": "https://"}, "URL", "begins with https://"),
        ({"url": "https://pdp.example:99999"}, "URL", "not an address"),
        ({"url": f"https://me:{SECRET}@pdp.example"}, "URL", "no user and no password"),
        ({"url": f"https://{SECRET}@pdp.example"}, "URL", "no user and no password"),
        ({"url": f"https://pdp.example/?token={SECRET}"}, "URL", "no query"),
        ({"url": f"https://pdp.example/#{SECRET}"}, "URL", "no query and no fragment"),
        ({"url": "https://pdp.example\\@evil.example"}, "URL", "printable ASCII"),
        ({"url": "https://pdp.example/ü"}, "URL", "printable ASCII"),
        ({"url": "http://pdp.example"}, "URL", "without TLS"),
        ({"url": "http://10.0.0.1"}, "URL", "without TLS"),
        ({"url": "https://pdp.example", "timeout": "0"}, "TIMEOUT", "greater than 0"),
        ({"url": "https://pdp.example", "timeout": SECRET}, "TIMEOUT", "valid number"),
        ({"url": "https://pdp.example", "timeout": "inf"}, "TIMEOUT", "finite number"),
        ({"url": "https://pdp.example", "timeout": "nan"}, "TIMEOUT", "finite number"),
        ({"url": "https://pdp.example", "plain_http": SECRET}, "PLAIN_HTTP", "valid boolean"),
        ({"url": "https://pdp.example", "tokn_file": SECRET}, "TOKN_FILE", "there is no such option"),
        ({"url": "https://pdp.example", "client_key": "/k.pem"}, "CLIENT_KEY", "without `client_cert`"),
        ({"url": "https://pdp.example", "ca_file": "/no/ca.pem"}, "CA_FILE", "No such file"),
        ({"url": "https://pdp.example", "ca_file": "/dev/null"}, "CA_FILE", "not what it should be"),
        ({"url": "https://pdp.example", "client_cert": "/dev/null"}, "CLIENT_CERT", "not what it should be"),
    ],
)
def test_options_that_are_not_valid_are_told_by_their_variable_and_without_their_value(
    name: str, options: dict[str, str], variable: str, says: str
) -> None:
    with pytest.raises(UsageError) as refused:
        opened(name, **options)
    assert f"ORCHESTRATOR_POLICY_OPTIONS__{variable}" in refused.value.message
    assert says in refused.value.message
    assert refused.value.hint is not None
    assert SECRET not in str(refused.value)
    assert refused.value.__cause__ is None


@pytest.mark.parametrize(
    "path", ["/orchestrator", "a//b", "a/", "a?x=1", "a#b", "a b", "a%2fb", "a\\b", "..", "a/../../v1", "."]
)
def test_a_path_that_could_leave_its_place_is_refused(path: str) -> None:
    with pytest.raises(UsageError, match="OPTIONS__PATH"):
        opened("opa", url="https://opa.example", path=path)


def test_plain_http_is_for_this_machine_a_socket_or_whoever_says_so() -> None:
    for options in (
        {"url": "http://127.0.0.1:8181"},
        {"url": "http://[::1]:8181"},
        {"url": "http://opa:8181", "plain_http": "true"},
        {"url": "http://opa", "socket": "/run/opa.sock"},
        {"socket": "/run/opa.sock"},
    ):
        assert opened("opa", **options).name == "opa"


def test_nothing_is_loaded_before_it_is_needed() -> None:
    code = (
        "import sys, orchestrator.cli.entry, orchestrator.policy.engines.services.authzen\n"
        "from orchestrator.policy.engines.services.opa import OpaEngine\n"
        "OpaEngine.from_options({'url': 'https://opa.example'})\n"
        "assert not {'httpx', 'httpcore', 'tenacity'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- what AuthZEN is asked

SCHEMA = json.loads((ROOT / "tests/data/authzen/evaluation-request.schema.json").read_text())
METADATA = Metadata.model_validate(
    {
        "policy_decision_point": "https://pdp.example",
        "access_evaluation_endpoint": "https://pdp.example/e",
        "supported_obligations": ["step-up", "notification"],
    }
)


@pytest.mark.parametrize("request_", [QUERY, TRANSLATE, NOTIFY, replace(QUERY, grants=()), replace(QUERY, time=None)])
def test_every_question_is_valid_by_the_specifications_schema(request_: PolicyRequest) -> None:
    to_ask = asked(request_, "decision", METADATA)
    for resource in to_ask.resources:
        Draft202012Validator(SCHEMA).validate(json.loads(json.dumps(to_ask.single(resource))))
    batch = to_ask.batch()
    for each in batch["evaluations"]:  # type: ignore[union-attr]
        Draft202012Validator(SCHEMA).validate(json.loads(json.dumps({**batch, **each})))  # type: ignore[dict-item]


def test_a_question_is_a_subject_an_action_a_resource_and_the_rest() -> None:
    to_ask = asked(replace(QUERY, grants=(READ, TOKEN)), "admit", METADATA)
    context = to_ask.common["context"]
    assert isinstance(context, dict)
    assert to_ask.common["subject"] == {"type": "agent", "id": QUERY.agent}
    assert to_ask.common["action"] == {"name": "postgres.query", "properties": {"verbs": ["select"]}}
    assert to_ask.resources[1] == {"type": "token", "id": TOKEN.resource, "properties": TOKEN.as_json()}
    assert set(context) == {
        "version",
        "workflow",
        "run",
        "context",
        "step",
        "grants",
        "time",
        "approvals",
        "question",
        "supported_obligations",
        "custom_obligations",
    }
    assert (context["question"], context["supported_obligations"]) == ("admit", ["notification"])
    without = asked(replace(QUERY, grants=(), time=None), "decision", METADATA)
    assert without.resources == [{"type": "step", "id": "customer_feedback/a_step"}]
    assert "time" not in without.common["context"]  # type: ignore[operator]


def test_an_action_cannot_give_itself_another_name() -> None:
    view = {"name": "slack.post_message", "verbs": []}
    assert asked(replace(QUERY, action_view=view), "decision", METADATA).common["action"] == {
        "name": "postgres.query",
        "properties": {"verbs": []},
    }


# --- what comes back


def obligation(kind: str, **properties: Any) -> dict[str, Any]:
    return {"id": "obl-1", "type": kind, "properties": properties}


def custom(name: str, value: Any) -> dict[str, Any]:
    return obligation("custom", name=name, value=value)


def permit(*obligations: Any, **context: Any) -> Evaluation:
    return Evaluation.model_validate({"decision": True, "context": {"obligations": list(obligations), **context}})


def deny(**context: Any) -> Evaluation:
    return Evaluation.model_validate({"decision": False, "context": context})


NOTICE = obligation("notification", to="security", body="look")


def test_of_obligations_the_strictest_hold() -> None:
    table = "public.t"
    one, other = ({"db": {table: {"select": names}}} for names in (["a", "b"], ["b", "c"]))
    document = decision_document(
        [
            permit(custom("max_ttl", 60), custom("max_rows", 5), custom("columns", one)),
            permit(custom("max_ttl", 30), custom("max_rows", 9), custom("columns", other)),
            permit(custom("columns", {"x": {table: {"insert": ["d"]}}}), NOTICE, NOTICE),
            permit(custom("reason_required", True)),
            permit(obligation("notification", to="security", body="look", topic="a topic")),
        ]
    )
    assert document == {
        "allow": True,
        "reasons": [],
        "obligations": {
            "max_ttl": 30,
            "max_rows": 5,
            "columns": {"db": {table: {"select": ["b"]}}, "x": {table: {"insert": ["d"]}}},
            "reason_required": True,
            "notify": [{"to": "security", "text": "look"}, {"to": "security", "text": "a topic: look"}],
        },
    }


def test_columns_that_have_nothing_in_common_leave_none() -> None:
    several = [Obligations(columns={"db": {"t": {"select": (name,)}}}) for name in ("a", "b", "a")]
    assert Obligations.strictest(several).columns == {"db": {"t": {"select": ()}}}
    assert Obligations.strictest([]) == Obligations()


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (obligation("step-up", acr_value="x"), "step-up"),
        (obligation("session_termination", subject="x"), "session_termination"),
        (obligation("max_ttl", value=3), "max_ttl"),
        (custom("approval", True), "custom"),
        (custom("max_ttl", "5m"), "custom with a wrong `max_ttl`"),
        (custom("max_ttl", 0), "custom with a wrong `max_ttl`"),
        (custom("max_ttl", True), "custom with a wrong `max_ttl`"),
        (obligation("custom", name="max_ttl"), "custom with a wrong `value`"),
        (obligation("custom", name="max_ttl", value=3, unless="x"), "custom with a wrong `unless`"),
        (obligation("custom", vendor="x", action="watermark"), "custom with a wrong `name`"),
        (obligation("notification", to="security"), "notification with a wrong `body`"),
        (obligation("notification", to="not a name!", body="x"), "notification with a wrong `notify.0.to`"),
        (obligation("notification", to="security", body=""), "notification with a wrong `notify.0.text`"),
        ({"id": "1", "type": "notification"}, "notification without"),
        ({"type": "notification", "properties": {"to": "a", "body": "b"}}, "notification without"),
        ({"id": 1, "type": "custom", "properties": {}}, "custom without"),
        ("step-up", "an obligation without"),
        (None, "an obligation without"),
    ],
)
def test_what_cannot_be_carried_out_is_a_denial_and_notices_are_delivered(wrong: Any, named: str) -> None:
    document = decision_document([permit(custom("max_ttl", 5), reasons=["fine"]), permit(wrong, NOTICE)])
    assert document["allow"] is False
    assert document["reasons"][0].startswith(f"the policy demands what this version cannot do: {named}")  # type: ignore[index, union-attr]
    assert document["obligations"] == {"notify": [{"to": "security", "text": "look"}]}


@pytest.mark.parametrize("given", [None, {}, "x", 7, {"type": "notification"}])
def test_obligations_that_are_no_list_are_a_denial(given: Any) -> None:
    document = decision_document([Evaluation(decision=True, context={"obligations": given})])
    assert document["allow"] is False


def test_too_many_obligations_are_not_looked_through() -> None:
    assert read_obligations([custom("max_ttl", 5)] * MAX_OBLIGATIONS).problems == ()
    assert read_obligations([custom("max_ttl", 5)] * (MAX_OBLIGATIONS + 1)).problems == ("more than 50 obligations",)
    notices = [obligation("notification", to="security", body=str(number)) for number in range(MAX_NOTICES + 1)]
    document = decision_document([permit(*notices)])
    assert document["allow"] is False
    assert len(document["obligations"]["notify"]) == MAX_NOTICES  # type: ignore[index, call-overload, arg-type]


def test_the_reasons_of_a_denial_are_those_that_deny_and_each_is_told_once() -> None:
    denials = [
        deny(reason_admin={"403": "policy C076E82F"}, reason_user={"403": "insufficient privileges"}),
        deny(reason="not found", error={"status": 404, "message": "no such resource"}),
        deny(reasons=["not found", 7, "", None]),
    ]
    document = decision_document([permit(reasons=["fine"]), *denials])
    assert document == {
        "allow": False,
        "reasons": ["insufficient privileges", "policy C076E82F", "not found", "no such resource"],
        "obligations": {},
    }
    assert decision_document([permit(reasons=["fine"]), permit(reason="fine")])["reasons"] == ["fine"]


# --- a plan


class Asks:
    """An engine that would ask a service."""

    name = "asks"

    def __init__(self) -> None:
        self.asked = 0
        self.closed = False

    async def decide(self, request: PolicyRequest) -> Decision:
        self.asked += 1
        return Decision(False, ("no",), self.name, "r")

    async def aclose(self) -> None:
        self.closed = True


def planned() -> Any:
    class Step:
        needs, condition, timeout, attempts, tool, request = (), None, 30, 1, None, QUERY
        when, for_each, max_parallel, items, unasked = "on_success", None, 1, (), 0

    class Plan:
        steps = (Step(),)

    return Plan()


async def test_a_plan_asks_a_service_only_where_it_is_told_to() -> None:
    engine = Asks()
    view = await decided(planned(), engine, ask=False)
    assert (engine.asked, engine.closed) == (0, True)
    assert (view.denied, view.asked) == ([], False)
    shown = plan_json(view)
    assert shown["allowed"] is None
    assert [step["decision"] for step in shown["steps"]] == [None]  # type: ignore[attr-defined]
    asked_now = await decided(planned(), engine, ask=True)
    assert engine.asked == 1
    assert len(asked_now.denied) == 1
    assert plan_json(asked_now)["allowed"] is False


def plan(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {
        "HOME": str(cwd),
        "PATH": "/usr/bin:/bin",
        "ORCHESTRATOR_POLICY": "opa",
        "ORCHESTRATOR_POLICY_OPTIONS__URL": "http://127.0.0.1:1",
        "ORCHESTRATOR_ENDPOINTS__TRANSLATION": "http://127.0.0.1:2",
    }
    command = [Path(sys.executable).parent / "orchestrator", "plan", ROOT / "workflows/customer_feedback.yaml"]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, env=environment, timeout=60, cwd=cwd)


def test_the_command_says_that_the_policy_was_not_asked(tmp_path: Path) -> None:
    shown = plan(cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "policy not asked" in shown.stdout
    assert "DENIED" not in shown.stdout
    assert json.loads(plan("--json", cwd=tmp_path).stdout)["allowed"] is None
    asked_now = plan("--ask-policy", cwd=tmp_path)
    assert asked_now.returncode == 3
    assert "nothing listens there" in " ".join(asked_now.stdout.split())


# --- the OPA of docker-compose.yml

AUTHZ = (ROOT / "vault/opa/authz.rego").read_text()


@pytest.mark.parametrize(
    ("method", "path", "token", "allowed"),
    [
        ("POST", "v1/data/orchestrator/decision", SECRET, True),
        ("POST", "v1/data/orchestrator/admit", SECRET, True),
        ("GET", "health", None, True),
        ("POST", "v1/data/orchestrator/decision", None, False),
        ("POST", "v1/data/orchestrator/decision", "", False),
        ("POST", "v1/data/orchestrator/decision", "another", False),
        ("GET", "v1/data/orchestrator/decision", SECRET, False),
        ("POST", "v1/data", SECRET, False),
        ("GET", "v1/data", SECRET, False),
        ("PUT", "v1/policies/x", SECRET, False),
        ("POST", "v1/query", SECRET, False),
        ("POST", "health", None, False),
    ],
)
def test_opa_answers_the_holder_of_the_token_and_no_other_question(
    method: str, path: str, token: str | None, allowed: bool
) -> None:
    import hashlib

    import regorus

    engine = regorus.Engine()
    digests = {text: hashlib.sha256(text.encode()).hexdigest() for text in (SECRET, "another", "")}
    computed = "crypto.sha256(input.identity)"  # regorus does not have it
    assert computed in AUTHZ
    engine.add_policy("authz.rego", AUTHZ.replace(computed, "data.digests[input.identity]"))
    engine.add_data_json(json.dumps({"opa_token_sha256": digests[SECRET], "digests": digests}))
    given = {"method": method, "path": path.split("/")} | ({} if token is None else {"identity": token})
    engine.set_input_json(json.dumps(given))
    assert engine.eval_rule("data.system.authz.allow") is allowed


def test_the_composed_opa_asks_who_is_there_and_logs_no_question() -> None:
    composed = YAML(typ="safe", pure=True).load((ROOT / "docker-compose.yml").read_text())
    opa, orchestrator = composed["services"]["opa"], composed["services"]["orchestrator"]
    for word in ("--authentication=token", "--authorization=basic", "--set=decision_logs.console=false", "/authz"):
        assert word in opa["command"]
    assert "./vault/opa:/authz:ro" in opa["volumes"]
    assert set(opa["secrets"]) | set(orchestrator["secrets"]) <= set(composed["secrets"])
    assert "opa_token" in orchestrator["secrets"]
    assert "ports" not in opa


def test_what_the_compose_file_suggests_is_accepted() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    suggested = [line.partition("# ")[2] for line in text.splitlines() if "# ORCHESTRATOR_POLICY" in line]
    values = YAML(typ="safe", pure=True).load("\n".join(suggested))
    assert values.pop("ORCHESTRATOR_POLICY") == "opa"
    options = {name.removeprefix("ORCHESTRATOR_POLICY_OPTIONS__").lower(): value for name, value in values.items()}
    assert isinstance(opened("opa", **options), OpaEngine)


def test_every_option_is_in_the_documentation() -> None:
    documented = (ROOT / "docs/policies.md").read_text()
    for engine in (opened("opa", url="http://localhost"), opened("authzen", url="http://localhost")):
        for name in type(engine.service.options).model_fields:
            assert f"`{name}`" in documented, name
    assert isinstance(engine, AuthzenEngine)

"""The sample policies: what they allow, what they deny, and the reasons people read."""

import hashlib
import json
import os
import shutil
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from orchestrator.actions.catalog import action
from orchestrator.grants.privileges import ALL_COLUMNS, Privilege, RowLimit
from orchestrator.grants.scope import Scope
from orchestrator.jsontypes import JsonObject
from orchestrator.policy.engines.rego import PolicySource, RegoEngine
from orchestrator.policy.types import PolicyRequest

ENGINE = RegoEngine.from_directory(Path(__file__).parents[2] / "workflows" / "policies")
MESSAGES = Privilege("select", "public", "customer_feedback", ("comment", "id", "kind"))
TRANSLATIONS = Privilege("insert", "public", "feedback_translation", ("feedback_id", "language", "translation"))
READ = Scope("db", "database", "database/creds/orc-support-1", 120, connection="support", privileges=(MESSAGES,))
TOKEN = Scope("api", "token", "transit/sign/orchestrator-token", 60, audience="translation-api", scopes=("translate",))
BOT = Scope("bot", "secret", "secret/data/slack/support-bot", 60, keys=("token",))
NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)


def request(action: str, view: JsonObject, *grants: Scope, agent: str = "feedback-assistant") -> PolicyRequest:
    return PolicyRequest(
        workflow="customer_feedback",
        workflow_digest="sha256:00",
        run="run-1",
        trigger="manual",
        inputs={"limit": 5},
        context={},
        step="a_step",
        attempt=1,
        agent=agent,
        action=action,
        action_view=view,
        grants=grants,
        time=NOON,
    )


QUERY = request("postgres.query", {"verbs": ["select"]}, READ)
TRANSLATE = request("http.request", {"method": "POST", "origin": "http://127.0.0.1:4711", "path": "/v1/x"}, TOKEN)
NOTIFY = request("slack.post_message", {"channel": "#support"}, BOT)
RECORD = request(
    "postgres.execute",
    {"verbs": ["insert"]},
    replace(READ, privileges=(TRANSLATIONS,)),
)


@pytest.mark.parametrize("asked", [QUERY, TRANSLATE, NOTIFY, RECORD], ids=["read", "translate", "notify", "record"])
async def test_every_step_of_the_sample_workflow_is_allowed(asked: PolicyRequest) -> None:
    decision = await ENGINE.decide(asked)
    assert decision.allow, decision.reasons
    assert decision.reasons == ("permitted to agent `feedback-assistant`",)
    assert decision.revision == ENGINE.revision


def with_grant(grant: Scope, **changes: object) -> PolicyRequest:
    return replace(QUERY, grants=(replace(grant, **changes),))


AGENT = "agent `feedback-assistant` may not "
DENIED = {
    "a verb that destroys": (
        replace(QUERY, action_view={"verbs": ["delete"]}),
        "SQL verb `delete` is forbidden to every agent",
    ),
    "truncate": (
        replace(QUERY, action_view={"verbs": ["truncate"]}),
        "SQL verb `truncate` is forbidden to every agent",
    ),
    "ddl": (replace(QUERY, action_view={"verbs": ["ddl"]}), "SQL verb `ddl` is forbidden to every agent"),
    "other": (replace(QUERY, action_view={"verbs": ["other"]}), "SQL verb `other` is forbidden to every agent"),
    "unknown": (replace(QUERY, action_view={"verbs": ["unknown"]}), "SQL verb `unknown` is forbidden to every agent"),
    "a verb hidden behind an allowed one": (
        replace(QUERY, action_view={"verbs": ["select", "delete"]}),
        "SQL verb `delete` is forbidden to every agent",
    ),
    "a verb of other agents": (
        replace(QUERY, action_view={"verbs": ["update"]}),
        AGENT + "use the SQL verb `update`",
    ),
    "no verb at all": (
        replace(QUERY, action_view={}),
        "the action `postgres.query` does not say what it is about to do",
    ),
    "a long life": (
        with_grant(READ, ttl=901),
        "grant `db` lives 901s, longer than the 900s that are allowed",
    ),
    "a database role that somebody maintains by hand": (
        with_grant(READ, role="admin", resource="database/creds/admin", privileges=()),
        AGENT + "have the database role `admin` of `support` from database/creds/admin (grant `db`)",
    ),
    "another database": (
        with_grant(READ, connection="billing"),
        AGENT + "have select (comment, id, kind) on public.customer_feedback in the database `billing` (grant `db`)",
    ),
    "another column": (
        with_grant(READ, privileges=(replace(MESSAGES, columns=("email", "id")),)),
        AGENT + "have select (email, id) on public.customer_feedback in the database `support` (grant `db`)",
    ),
    "every column": (
        with_grant(READ, privileges=(replace(MESSAGES, columns=ALL_COLUMNS),)),
        AGENT + "have select (all) on public.customer_feedback in the database `support` (grant `db`)",
    ),
    "another verb on its table": (
        with_grant(READ, privileges=(MESSAGES, replace(MESSAGES, verb="delete", columns=()))),
        AGENT + "have delete on public.customer_feedback in the database `support` (grant `db`)",
    ),
    "another table": (
        with_grant(READ, privileges=(replace(MESSAGES, name="payment_card"),)),
        AGENT + "have select (comment, id, kind) on public.payment_card in the database `support` (grant `db`)",
    ),
    "the same login of another mount": (
        with_grant(READ, resource="payroll/creds/orc-support-1"),
        AGENT + "have a login of `support` from payroll/creds/orc-support-1 (grant `db`)",
    ),
    "another audience": (
        with_grant(TOKEN, audience="billing-api"),
        AGENT + "have a token for `billing-api` with the scope `translate` "
        "from transit/sign/orchestrator-token (grant `api`)",
    ),
    "a broader scope": (
        with_grant(TOKEN, scopes=("admin", "translate")),
        AGENT + "have a token for `translation-api` with the scope `admin translate` "
        "from transit/sign/orchestrator-token (grant `api`)",
    ),
    "a token signed by another key": (
        with_grant(TOKEN, resource="transit/sign/root"),
        AGENT + "have a token for `translation-api` with the scope `translate` from transit/sign/root (grant `api`)",
    ),
    "another secret": (
        with_grant(BOT, resource="secret/data/slack/admin"),
        AGENT + "have the keys `token` of secret/data/slack/admin (grant `bot`)",
    ),
    "another key of its secret": (
        with_grant(BOT, keys=("signing_secret", "token")),
        AGENT + "have the keys `signing_secret, token` of secret/data/slack/support-bot (grant `bot`)",
    ),
    "a dynamic path": (
        replace(QUERY, grants=(Scope("mq", "dynamic", "rabbitmq/creds/x", 60),)),
        AGENT + "have rabbitmq/creds/x (grant `mq`)",
    ),
    "another channel": (
        replace(NOTIFY, action_view={"channel": "#general"}),
        AGENT + "post to the channel #general",
    ),
    "a redirect to another host": (
        replace(TRANSLATE, action_view={**TRANSLATE.action_view, "redirect_origins": ["https://evil.example"]}),
        AGENT + "be redirected to https://evil.example",
    ),
    "a redirect hidden behind an allowed one": (
        replace(
            TRANSLATE,
            action_view={
                **TRANSLATE.action_view,
                "redirect_origins": ["http://localhost:1", "http://169.254.169.254"],
            },
        ),
        AGENT + "be redirected to http://169.254.169.254",
    ),
    "another host": (
        replace(TRANSLATE, action_view={"origin": "https://evil.example"}),
        AGENT + "send requests to https://evil.example",
    ),
    "a host that only begins like its own": (
        replace(TRANSLATE, action_view={"origin": "http://127.0.0.1:80.evil.example"}),
        AGENT + "send requests to http://127.0.0.1:80.evil.example",
    ),
    "a program": (
        request("exec", {"program": "psql"}),
        AGENT + "run the program `psql`",
    ),
    "a program of somebody else": (
        request("exec", {"program": "/home/x/report", "sha256": "ab", "cwd": "/home/x", "path": ["/home/x", "/bin"]}),
        AGENT + "run the program `/home/x/report@sha256:ab` with cwd /home/x; path /home/x:/bin",
    ),
    "a Python function": (
        request("python", {"callable": "os:system", "sha256": "ab", "packages": []}),
        AGENT + "call `os:system@sha256:ab`",
    ),
    "a Python function in a package": (
        request("python", {"callable": "a.b:f", "sha256": "ab", "packages": [{"file": "/a.py", "sha256": "cd"}]}),
        AGENT + "call `a.b:f@sha256:ab` with package /a.py@sha256:cd",
    ),
    "an action that nobody listed": (request("smtp.send", {}), AGENT + "use the action `smtp.send`"),
    "an agent that nobody knows": (
        replace(QUERY, agent="mallory"),
        "agent `mallory` is not known to this policy",
    ),
}


@pytest.mark.parametrize("case", DENIED)
async def test_denied_with_its_reason(case: str) -> None:
    asked, reason = DENIED[case]
    decision = await ENGINE.decide(asked)
    assert not decision.allow
    assert reason in decision.reasons


async def test_the_longest_life_that_is_allowed_is_allowed() -> None:
    assert (await ENGINE.decide(with_grant(READ, ttl=900))).allow


async def test_every_reason_is_given_once_and_in_order() -> None:
    asked = replace(with_grant(READ, ttl=3600), action_view={"verbs": ["truncate", "delete", "delete"]})
    decision = await ENGINE.decide(asked)
    assert decision.reasons == (
        "SQL verb `delete` is forbidden to every agent",
        "SQL verb `truncate` is forbidden to every agent",
        "grant `db` lives 3600s, longer than the 900s that are allowed",
    )


FOR_1234 = (RowLimit("customer_id", "1234"),)
TICKET = Privilege("insert", "public", "ticket", ("customer_id", "id", "messages", "subject"), FOR_1234)
SUPPORT = replace(
    request("postgres.execute", {"verbs": ["insert"]}, replace(READ, privileges=(TICKET,)), agent="support-agent"),
    context={"task": "crm:write_ticket", "customer_id": 1234},
)


async def test_an_agent_with_tasks_is_allowed_its_task_for_its_customer() -> None:
    assert (await ENGINE.decide(SUPPORT)).allow
    as_number = replace(TICKET, where=(RowLimit("customer_id", 1234),))
    assert (await ENGINE.decide(replace(SUPPORT, grants=(replace(READ, privileges=(as_number,)),)))).allow


OF_NO_TASK = {
    "another customer": ({"task": "crm:write_ticket", "customer_id": 1235}, "`crm:write_ticket` for customer 1235"),
    "another task": ({"task": "crm:refund", "customer_id": 1234}, "`crm:refund` for customer 1234"),
    "a customer that is a text": ({"task": "crm:write_ticket", "customer_id": "1234"}, "for customer 1234"),
    "no customer": ({"task": "crm:write_ticket"}, "`crm:write_ticket` for customer (none)"),
    "no task": ({"customer_id": 1234}, "`(none)` for customer 1234"),
    "no context": ({}, "`(none)` for customer (none)"),
}


@pytest.mark.parametrize("case", OF_NO_TASK)
async def test_an_agent_with_tasks_is_denied_everything_else(case: str) -> None:
    context, reason = OF_NO_TASK[case]
    decision = await ENGINE.decide(replace(SUPPORT, context=context))
    assert not decision.allow
    assert any(reason in each for each in decision.reasons), decision.reasons


@pytest.mark.parametrize("where", [(), (RowLimit("customer_id", "1235"),), (RowLimit("id", "1234"),)])
async def test_a_grant_beyond_the_rows_of_the_tasks_customer_is_denied(where: tuple[RowLimit, ...]) -> None:
    wide = replace(READ, privileges=(TICKET, replace(MESSAGES, where=where)))
    decision = await ENGINE.decide(replace(SUPPORT, grants=(wide,)))
    assert not decision.allow
    assert decision.reasons == ("select on public.customer_feedback is not limited to customer 1234",)


async def test_what_permits_a_task_decides_without_the_rules_that_only_explain() -> None:
    folder = Path(__file__).parents[2] / "workflows" / "policies"
    deciding = [PolicySource(name, (folder / name).read_text()) for name in ("shape.rego", "orchestrator.rego")]
    silent = PolicySource("silent.rego", "package orchestrator\nimport rego.v1\ndenials := set()\nstrangers := set()\n")
    engine = RegoEngine.from_sources([*deciding, silent], ENGINE.data)
    assert (await engine.decide(SUPPORT)).allow
    other = replace(SUPPORT, context={"task": "crm:write_ticket", "customer_id": 1235})
    wide = replace(SUPPORT, grants=(replace(READ, privileges=(replace(TICKET, where=()),)),))
    for asked in (other, wide):
        decision = await engine.decide(asked)
        assert (decision.allow, decision.reasons) == (False, ("no rule of the policy allows it",))


@pytest.mark.parametrize("asked", [QUERY, TRANSLATE, NOTIFY], ids=["verbs", "origin", "channel"])
async def test_what_is_not_known_yet_is_left_open_in_a_dry_run_only(asked: PolicyRequest) -> None:
    partial = replace(asked, action_view={"partial": True})
    assert (await ENGINE.decide(replace(partial, time=None))).allow
    assert not (await ENGINE.decide(partial)).allow


async def test_what_is_known_already_is_decided_in_a_dry_run() -> None:
    asked = replace(NOTIFY, time=None, action_view={"partial": True, "channel": "#general"})
    decision = await ENGINE.decide(asked)
    assert decision.reasons == ("agent `feedback-assistant` may not post to the channel #general",)


async def test_an_action_cannot_give_itself_another_name() -> None:
    decision = await ENGINE.decide(request("exec", {"name": "slack.post_message", "channel": "#support"}))
    assert not decision.allow


def without(name: str, replacement: str) -> RegoEngine:
    """The sample policies with one file exchanged."""
    text = f"package orchestrator\n{replacement}\n"
    return RegoEngine.from_sources(
        [replace(source, text=text) if source.name.endswith(name) else source for source in ENGINE.sources], ENGINE.data
    )


def of_agents(agents: JsonObject) -> RegoEngine:
    """The sample's rules with other data."""
    return RegoEngine.from_sources(ENGINE.sources, PolicySource("data.json", json.dumps({"agents": agents})))


@pytest.mark.parametrize("case", DENIED)
async def test_what_is_not_permitted_is_denied_even_where_no_reason_is_written_for_it(case: str) -> None:
    speechless = without("reasons.rego", "denials := set()\nstrangers := set()")
    assert (await speechless.decide(QUERY)).allow
    decision = await speechless.decide(DENIED[case][0])
    assert decision.reasons == ("no rule of the policy allows it",)


@pytest.mark.parametrize(
    ("action", "view", "allowed"),
    [
        ("exec", {"program": "/bin/pg_dump"}, True),
        ("exec", {"program": "/bin/sh"}, False),
        ("exec", {}, False),
        ("exec", {"program": "/bin/pg_dump", "sha256": "ab"}, False),
        ("exec", {"program": "/srv/report", "sha256": "ab"}, True),
        ("exec", {"program": "/srv/report", "sha256": "cd"}, False),
        ("exec", {"program": "/srv/report"}, False),
        ("exec", {"program": "/bin/pg_dump", "cwd": "/srv"}, True),
        ("exec", {"program": "/bin/pg_dump", "cwd": "/srv/evil"}, False),
        ("exec", {"program": "/bin/pg_dump", "path": ["/srv"]}, False),
        ("python", {"callable": "etl:load", "sha256": "ab", "packages": [], "path": []}, True),
        ("python", {"callable": "etl:load", "sha256": "ab", "packages": [], "path": ["/srv"]}, True),
        ("python", {"callable": "etl:load", "sha256": "ab", "packages": [], "path": ["/srv", "/evil"]}, False),
        ("python", {"callable": "etl:load", "sha256": "cd", "packages": [], "path": []}, False),
        ("python", {"callable": "etl:load", "packages": [], "path": []}, False),
        ("python", {"callable": "etl:load", "sha256": "ab", "path": []}, False),
        ("python", {"callable": "etl:load", "sha256": "ab", "packages": [{"file": "/p", "sha256": "ab"}]}, True),
        ("python", {"callable": "etl:load", "sha256": "ab", "packages": [{"file": "/p", "sha256": "cd"}]}, False),
        ("python", {"callable": "os:system", "sha256": "ab", "packages": [], "path": []}, False),
        ("slack.post_message", {"channel": "#support"}, False),
    ],
)
async def test_programs_and_functions_run_only_where_the_agents_entry_names_them(
    action: str, view: JsonObject, allowed: bool
) -> None:
    entry: JsonObject = {
        "actions": ["exec", "python"],
        "programs": ["/bin/pg_dump", "/srv/report@sha256:ab"],
        "callables": ["etl:load@sha256:ab", "/p@sha256:ab"],
        "folders": ["/srv"],
    }
    engine = of_agents({"batch": entry})
    assert (await engine.decide(request(action, view, agent="batch"))).allow is allowed


async def test_one_grant_too_many_denies_the_step() -> None:
    decision = await ENGINE.decide(replace(QUERY, grants=(READ, replace(READ, name="more", connection="billing"))))
    assert not decision.allow
    assert "(grant `more`)" in decision.reasons[0]


TRUE = os.path.realpath(shutil.which("true", path="/usr/bin:/bin") or "")
JSON_CONTENT = hashlib.sha256(Path(json.__file__).read_bytes()).hexdigest()
EVERYTHING: JsonObject = {
    "actions": ["exec", "python", "http.request", "slack.post_message", "postgres.query"],
    "programs": [TRUE],
    "callables": [f"json:dumps@sha256:{JSON_CONTENT}", f"FILE@sha256:{JSON_CONTENT}"],
    "origins": ["https://api.example"],
    "channels": ["#support"],
    "sql": ["select"],
}


@pytest.mark.parametrize(
    ("name", "fits", "does_not"),
    [
        ("exec", {"command": ["true", "x"]}, {"command": ["sh"]}),
        ("python", {"callable": "json:dumps"}, {"callable": "os:system"}),
        (
            "http.request",
            {"method": "GET", "url": "https://api.example/v1"},
            {"method": "GET", "url": "https://api.example:444/v1"},
        ),
        (
            "slack.post_message",
            {"token": "bot.token", "channel": "#support", "text": "hello"},
            {"token": "bot.token", "channel": "#general", "text": "hello"},
        ),
        ("postgres.query", {"sql": "SELECT 1"}, {"sql": "WITH gone AS (DELETE FROM t RETURNING *) SELECT * FROM gone"}),
    ],
)
async def test_the_policy_reads_what_the_actions_themselves_say(
    name: str, fits: dict[str, object], does_not: dict[str, object]
) -> None:
    engine, known = of_agents({"batch": EVERYTHING}), action(name)
    for parameters, allowed in ((fits, True), (does_not, False)):
        view = known.view(known.params.model_validate(parameters))
        decision = await engine.decide(request(name, view, agent="batch"))
        assert decision.allow is allowed, decision.reasons


SHAPES: dict[str, JsonObject] = {
    "a text for a list": {"actions": "postgres.query"},
    "an object for a list": {"sql": {"x": "select"}},
    "a list of something else": {"sql": ["select", 1]},
    "nothing for a list": {"dynamic": None},
    "a list for an object": {"databases": []},
    "a text for columns": {"databases": {"support": {"public.customer_feedback": {"select": "comment, id, kind"}}}},
    "an object for columns": {
        "databases": {"support": {"public.customer_feedback": {"select": {"a": "comment", "b": "id", "c": "kind"}}}}
    },
    "no tasks": {"tasks": False},
    "tasks by another name": {"task": {"crm:write_ticket": [1234]}},
}
ENTRY: JsonObject = {
    "actions": ["postgres.query"],
    "sql": ["select"],
    "databases": {"support": {"public.customer_feedback": {"select": ["comment", "id", "kind"]}}},
}


@pytest.mark.parametrize("case", SHAPES)
async def test_an_entry_of_another_shape_allows_nothing_and_says_what_is_wrong(case: str) -> None:
    asked = replace(QUERY, agent="batch")
    assert (await of_agents({"batch": ENTRY}).decide(asked)).allow
    engine = of_agents({"batch": {**ENTRY, **SHAPES[case]}})
    for answer in (await engine.decide(asked), await engine.admit(asked)):
        assert answer is not None
        assert not answer.allow
        (field,) = SHAPES[case]
        assert any(
            reason.startswith("data.json, agent `batch`") and f"`{field}`" in reason for reason in answer.reasons
        )


@pytest.mark.parametrize("member", ENTRY)
async def test_an_entry_without_a_member_that_the_step_needs_does_not_allow_it(member: str) -> None:
    entry = {name: value for name, value in ENTRY.items() if name != member}
    assert not (await of_agents({"batch": entry}).decide(replace(QUERY, agent="batch"))).allow


@pytest.mark.parametrize("agents", ["batch", ["batch"], None, 5, {"batch": "actions"}, {"batch": ["actions"]}, {}])
async def test_agents_of_another_shape_are_allowed_nothing(agents: JsonObject) -> None:
    decision = await of_agents(agents).decide(replace(QUERY, agent="batch"))
    assert not decision.allow
    assert not any("could not be evaluated" in reason for reason in decision.reasons)


async def test_without_data_nobody_is_allowed_anything() -> None:
    decision = await RegoEngine.from_sources(ENGINE.sources).decide(QUERY)
    assert not decision.allow
    assert "data.json has no object `agents`" in decision.reasons

"""The sample policies: what they allow, what they deny, and the reasons people read."""

import hashlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from policy_questions import (
    DENIED,
    MESSAGES,
    NOTIFY,
    OF_NO_TASK,
    QUERY,
    READ,
    RECORD,
    SUPPORT,
    TICKET,
    TRANSLATE,
    request,
    with_grant,
)

from orchestrator.actions.catalog import action
from orchestrator.grants.privileges import RowLimit
from orchestrator.jsontypes import JsonObject
from orchestrator.policy.engines.rego.engine import PolicySource, RegoEngine
from orchestrator.policy.types import PolicyRequest

ENGINE = RegoEngine.from_directory(Path(__file__).parents[2] / "workflows" / "policies")


@pytest.mark.parametrize("asked", [QUERY, TRANSLATE, NOTIFY, RECORD], ids=["read", "translate", "notify", "record"])
async def test_every_step_of_the_sample_workflow_is_allowed(asked: PolicyRequest) -> None:
    decision = await ENGINE.decide(asked)
    assert decision.allow, decision.reasons
    assert decision.reasons == ("permitted to agent `feedback-assistant`",)
    assert decision.revision == ENGINE.revision


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


async def test_an_agent_with_tasks_is_allowed_its_task_for_its_customer() -> None:
    assert (await ENGINE.decide(SUPPORT)).allow
    as_number = replace(TICKET, where=(RowLimit("customer_id", 1234),))
    assert (await ENGINE.decide(replace(SUPPORT, grants=(replace(READ, privileges=(as_number,)),)))).allow


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

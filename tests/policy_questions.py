"""Questions to the sample policies, and what they answer: for every engine that decides by them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from orchestrator.grants.privileges import ALL_COLUMNS, Privilege, RowLimit
from orchestrator.grants.scope import Scope
from orchestrator.jsontypes import JsonObject
from orchestrator.policy.types import PolicyRequest

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


FOR_1234 = (RowLimit("customer_id", "1234"),)
TICKET = Privilege("insert", "public", "ticket", ("customer_id", "id", "messages", "subject"), FOR_1234)
SUPPORT = replace(
    request("postgres.execute", {"verbs": ["insert"]}, replace(READ, privileges=(TICKET,)), agent="support-agent"),
    context={"task": "crm:write_ticket", "customer_id": 1234},
)


OF_NO_TASK = {
    "another customer": ({"task": "crm:write_ticket", "customer_id": 1235}, "`crm:write_ticket` for customer 1235"),
    "another task": ({"task": "crm:refund", "customer_id": 1234}, "`crm:refund` for customer 1234"),
    "a customer that is a text": ({"task": "crm:write_ticket", "customer_id": "1234"}, "for customer 1234"),
    "no customer": ({"task": "crm:write_ticket"}, "`crm:write_ticket` for customer (none)"),
    "no task": ({"customer_id": 1234}, "`(none)` for customer 1234"),
    "no context": ({}, "`(none)` for customer (none)"),
}


# --- small policies of the suite's own, each a folder with one module


@dataclass(frozen=True)
class Case:
    """A question and what every engine answers. `reasons` None: each engine has its own words for what went wrong."""

    policy: str
    asked: PolicyRequest
    allow: bool
    reasons: tuple[str, ...] | None = ()
    obligations: JsonObject = field(default_factory=dict)


HEAD = "package orchestrator\nimport rego.v1\n"
POLICIES = {
    "obliging": """decision := {"allow": true, "reasons": ["with care"], "obligations": object.union(
    {"max_ttl": 60, "max_rows": 10, "reason_required": true, "notify": [{"to": "security", "text": input.agent}]},
    {"columns": {"db": {"public.customer_feedback": {"select": ["id", "kind"]}}}},
)}""",
    "denying": """decision := {
    "allow": false,
    "reasons": ["not now"],
    "obligations": {"notify": [{"to": "security", "text": "tried"}]},
}""",
    "unable": """decision := {
    "allow": true,
    "obligations": {"delete_everything": true, "notify": [{"to": "security", "text": "tried"}]},
}""",
    "wrong": 'decision := {"allow": true, "obligations": {"max_ttl": "5m"}}',
    "unlisted": 'decision := {"allow": true, "obligations": "none"}',
    "contradicting": 'decision := {"allow": true} if input.agent\ndecision := {"allow": false} if input.step.id',
    "erring": """denials contains "late" if to_number(input.step.id) > 5
decision := {"allow": count(denials) == 0}""",
    "undefined": 'decision := {"allow": true} if input.agent == "nobody"',
    "speechless": 'decision := {"allow": false}',
    "texts": 'decision := {"allow": "yes"}',
    "null": 'decision := {"allow": null}',
    "sets": 'decision := {"allow": false, "reasons": {"b", "c", "a"}}',
    "letters": 'decision := {"allow": false, "reasons": [sprintf("%s \u2028 Zoë 日本 😀", [input.run.inputs.text])]}',
    "together": """kinds := {grant.kind | some grant in input.grants}
apart contains "a token and a secret are not to be held together" if {"token", "secret"} & kinds == {"token", "secret"}
decision := {"allow": count(apart) == 0, "reasons": apart}""",
    "each": """denied contains sprintf("not %s", [grant.resource]) if {
    some grant in input.grants
    grant.kind == "dynamic"
}
decision := {"allow": count(denied) == 0, "reasons": denied}""",
    "asking": """known := [input.time, input.run.reason, input.workflow.name, input.step.id]
decision := {"allow": true, "reasons": known}
admit := {"allow": input.context == {}, "reasons": [input.agent]}""",
    "numbers": 'decision := {"allow": input.context.customer_id == 9007199254740990}',
    "supporting": 'decision := {"allow": "max_rows" in input.supported_obligations}',
    "dry": 'decision := {"allow": input.time == null, "reasons": ["a dry run"]}',
}
NOTICE: JsonObject = {"notify": [{"to": "security", "text": "tried"}]}
DENIED_WITHOUT_REASON = ("the policy does not allow it",)
UNABLE = ("the policy demands what this version cannot do: delete_everything",)
SEVERAL = replace(QUERY, grants=(READ, TOKEN, BOT))
NOTHING = replace(QUERY, grants=())


def write_policies(root: Path) -> None:
    """A folder for each of `POLICIES`."""
    for name, text in POLICIES.items():
        (root / name).mkdir()
        (root / name / "policy.rego").write_text(f"{HEAD}{text}\n")


def _obliging(agent: str) -> JsonObject:
    return {
        "max_ttl": 60,
        "max_rows": 10,
        "reason_required": True,
        "notify": [{"to": "security", "text": agent}],
        "columns": {"db": {"public.customer_feedback": {"select": ["id", "kind"]}}},
    }


OWN = {
    "all obligations": Case("obliging", QUERY, True, ("with care",), _obliging("feedback-assistant")),
    "all obligations, of several grants": Case("obliging", SEVERAL, True, ("with care",), _obliging(QUERY.agent)),
    "all obligations, without a grant": Case("obliging", NOTHING, True, ("with care",), _obliging(QUERY.agent)),
    "notices of a denial": Case("denying", QUERY, False, ("not now",), NOTICE),
    "notices of a denial of several grants": Case("denying", SEVERAL, False, ("not now",), NOTICE),
    "what cannot be done": Case("unable", QUERY, False, UNABLE, NOTICE),
    "what cannot be done, of several grants": Case("unable", SEVERAL, False, UNABLE, NOTICE),
    "an obligation of a wrong type": Case("wrong", QUERY, False, None),
    "obligations that are a text": Case("unlisted", QUERY, False, None),
    "a contradiction": Case("contradicting", QUERY, False, None),
    "an error in a function": Case("erring", QUERY, False, None),
    "undefined": Case("undefined", QUERY, False, None),
    "defined for somebody": Case("undefined", replace(QUERY, agent="nobody"), True),
    "a denial without a reason": Case("speechless", QUERY, False, DENIED_WITHOUT_REASON),
    "a text for a boolean": Case("texts", QUERY, False, None),
    "null for a boolean": Case("null", QUERY, False, None),
    "reasons that are a set": Case("sets", QUERY, False, ("a", "b", "c")),
    "reasons that are a set, of several grants": Case("sets", SEVERAL, False, ("a", "b", "c")),
    "letters": Case(
        "letters", replace(QUERY, inputs={"text": 'q"\\\n</x>'}), False, ('q"\\\n</x> \u2028 Zoë 日本 😀',)
    ),
    "grants that go together": Case("together", replace(QUERY, grants=(READ, TOKEN)), True),
    "grants that do not": Case("together", SEVERAL, False, ("a token and a secret are not to be held together",)),
    "each grant permitted": Case("each", SEVERAL, True),
    "one grant of several denied": Case(
        "each", replace(QUERY, grants=(READ, Scope("mq", "dynamic", "mq/creds/x", 60))), False, ("not mq/creds/x",)
    ),
    "no grant to deny": Case("each", NOTHING, True),
    "what else is known": Case(
        "asking", replace(QUERY, reason="ticket 1"), True, (NOON.isoformat(), "ticket 1", QUERY.workflow, QUERY.step)
    ),
    "a large whole number": Case("numbers", replace(QUERY, context={"customer_id": 9007199254740990}), True),
    "the one after it": Case(
        "numbers", replace(QUERY, context={"customer_id": 9007199254740991}), False, DENIED_WITHOUT_REASON
    ),
    "a number that cannot be told": Case("numbers", replace(QUERY, context={"customer_id": 1 << 63}), False, None),
    "a text that is not Unicode": Case("speechless", replace(QUERY, inputs={"text": "\ud800"}), False, None),
    "a question that is too long": Case("obliging", replace(QUERY, inputs={"text": "x" * (1 << 20)}), False, None),
    "what can be carried out": Case("supporting", QUERY, True),
    "a dry run": Case("dry", replace(QUERY, time=None), True, ("a dry run",)),
    "no dry run": Case("dry", QUERY, False, ("a dry run",)),
}
"""Answers of the policies above, by what they are about."""

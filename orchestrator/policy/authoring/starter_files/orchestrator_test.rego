# What the policy allows, and what it refuses: `orchestrator policy test`. Write the refusals first.
package orchestrator_test

import rego.v1

import data.orchestrator

agents := {"writer": {
	"actions": ["postgres.query"],
	"grants": ["support: select public.feedback", "translation-api: translate", "secret/data/slack/bot"],
}}

question := {
	"agent": "writer",
	"action": {"name": "postgres.query", "verbs": ["select"]},
	"context": {},
	"grants": [],
	"time": "2026-03-02T12:00:00+00:00",
}

login := {
	"name": "db",
	"kind": "database",
	"resource": "database/creds/orc-support-1",
	"connection": "support",
	"privileges": [{"verb": "select", "object": "public.feedback", "columns": ["id"]}],
	"ttl": 60,
}

token := {"name": "api", "kind": "token", "audience": "translation-api", "scopes": ["translate"], "ttl": 60}

secret := {"name": "bot", "kind": "secret", "resource": "secret/data/slack/bot", "keys": ["token"], "ttl": 60}

with_grant(grant) := object.union(question, {"grants": [grant]})

but(document, changes) := object.union(document, changes)

decision_on(asked) := decision if {
	decision := orchestrator.decision with input as asked with data.agents as agents
}

allowed(asked) if decision_on(asked).allow == true

refused(asked, reason) if {
	decision_on(asked) == {"allow": false, "reasons": [reason]}
	not permitted(asked)
}

permitted(asked) if orchestrator.permitted with input as asked with data.agents as agents

test_what_is_listed_is_allowed if {
	allowed(question)
	every grant in [login, token, secret] {
		allowed(with_grant(grant))
	}
}

test_an_agent_that_is_not_known_is_refused if {
	reason := "agent `mallory` is not known: write an entry for it under `agents` in data.json"
	refused(but(question, {"agent": "mallory"}), reason)
}

test_only_agents_that_are_known_are_admitted if {
	known := orchestrator.admit with input as question with data.agents as agents
	known.allow == true
	other := orchestrator.admit with input as but(question, {"agent": "mallory"}) with data.agents as agents
	other.allow == false
}

test_another_action_is_refused if {
	reason := "agent `writer` may not use `exec`: write it under `actions` in data.json"
	refused(but(question, {"action": {"name": "exec"}}), reason)
}

test_another_table_is_refused if {
	cards := but(login, {"privileges": [{"verb": "select", "object": "public.card"}]})
	reason := "agent `writer` may not have `support: select public.card`: write it under `grants` in data.json"
	refused(with_grant(cards), reason)
}

test_another_scope_is_refused if {
	reason := "agent `writer` may not have `translation-api: admin`: write it under `grants` in data.json"
	refused(with_grant(but(token, {"scopes": ["translate", "admin"]})), reason)
}

test_another_secret_is_refused if {
	reason := "agent `writer` may not have `secret/data/root`: write it under `grants` in data.json"
	refused(with_grant(but(secret, {"resource": "secret/data/root"})), reason)
}

test_a_long_life_is_refused if {
	allowed(with_grant(but(login, {"ttl": 900})))
	refused(with_grant(but(login, {"ttl": 901})), "grant `db` lives 901s: `max_ttl` in orchestrator.rego is 900s")
}

test_what_no_rule_speaks_of_is_refused if {
	reason := "no rule allows it: see `permitted` in orchestrator.rego"
	refused(with_grant(but(secret, {"kind": "otp"})), reason)
	refused(with_grant(but(login, {"privileges": []})), reason)
	refused(with_grant(but(login, {"ttl": 0})), reason)
}

test_lists_that_are_none_allow_nothing if {
	wrong := {"writer": {"actions": {"a": "postgres.query"}, "grants": []}}
	decision := orchestrator.decision with input as question with data.agents as wrong
	decision.allow == false
}

test_data_json_has_an_object_of_agents if is_object(data.agents)

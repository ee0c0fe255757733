# What data.json lets the agents of this project do, and what not. How the rules work is in orchestrator_test.rego.
package agents_test

import rego.v1

import data.orchestrator

question := {
	"agent": @agent@,
	"action": {"name": "postgres.query", "verbs": ["select"]},
	"context": {},
	"grants": [{
		"name": "db",
		"kind": "database",
		"connection": "@connection@",
		"privileges": [{"verb": "select", "object": @object@}],
		"ttl": 60,
	}],
}

allowed(asked) if {
	decision := orchestrator.decision with input as asked
	decision.allow == true
}

changed(path, value) := json.patch(question, [{"op": "replace", "path": path, "value": value}])

test_the_agent_may_read_its_table if allowed(question)

test_it_may_not_write_it if not allowed(changed("/grants/0/privileges/0/verb", "delete"))

test_it_may_not_read_another if not allowed(changed("/grants/0/privileges/0/object", "pg_catalog.pg_authid"))

test_it_may_not_read_another_database if not allowed(changed("/grants/0/connection", "another"))

test_nobody_else_may if not allowed(changed("/agent", "another"))

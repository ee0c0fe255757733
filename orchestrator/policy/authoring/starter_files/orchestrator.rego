# May a step get its credentials? Nothing is allowed but what stands in data.json, entry by entry:
#
#   "agents": {
#     "report-writer": {
#       "actions": ["postgres.query"],
#       "grants": ["support: select public.customer_feedback", "translation-api: translate", "secret/data/slack/bot"]
#     }
#   }
#
# `input` is the question; docs/policies.md says what is in it. These rules look at an action's name and at tables, not
# at columns, hosts, channels or programs: where that matters write it, and a test of what it refuses, first.
package orchestrator

import rego.v1

# Seconds that a credential may live.
max_ttl := 900

default decision := {"allow": false, "reasons": ["no rule allows it: see `permitted` in orchestrator.rego"]}

decision := {"allow": true, "reasons": [sprintf("permitted to agent `%s`", [input.agent])]} if {
	permitted
	count(denials) == 0
}

decision := {"allow": false, "reasons": sort(denials)} if count(denials) > 0

# Asked before anything of the workflow's text is evaluated: who is not known gets no further.
default admit := {"allow": false, "reasons": ["no rule admits it: see `admit` in orchestrator.rego"]}

admit := {"allow": true, "reasons": [sprintf("agent `%s` is known", [input.agent])]} if is_object(agent)

admit := {"allow": false, "reasons": [unknown]} if not is_object(agent)

agent := data.agents[input.agent]

permitted if {
	listed(input.action.name, agent.actions)
	is_array(input.grants)
	every grant in input.grants {
		grant_permitted(grant)
	}
}

grant_permitted(grant) if {
	is_number(grant.ttl)
	grant.ttl > 0
	grant.ttl <= max_ttl
	count(wishes(grant)) > 0
	every wish in wishes(grant) {
		listed(wish, agent.grants)
	}
}

# What a grant is for, in the words of data.json. A kind that has no words here is refused.
wishes(grant) := {wish |
	some privilege in grant.privileges
	wish := sprintf("%s: %s %s", [grant.connection, privilege.verb, privilege.object])
} if grant.kind == "database"

wishes(grant) := {sprintf("%s: %s", [grant.audience, scope]) | some scope in grant.scopes} if grant.kind == "token"

wishes(grant) := {grant.resource} if grant.kind in {"secret", "dynamic"}

# `in` finds the values of an object, too: what is to be a list has to be one.
listed(word, list) if {
	is_array(list)
	word in list
}

# --- why not, for those who read it: `permitted` decides ----------------------------------------------

unknown := sprintf("agent `%s` is not known: write an entry for it under `agents` in data.json", [input.agent])

denials contains unknown if not is_object(agent)

denials contains sprintf("agent `%s` may not use `%s`: write it under `actions` in data.json", [input.agent, name]) if {
	is_object(agent)
	name := input.action.name
	not listed(name, agent.actions)
}

denials contains sprintf("agent `%s` may not have `%s`: write it under `grants` in data.json", [input.agent, wish]) if {
	is_object(agent)
	some grant in input.grants
	some wish in wishes(grant)
	not listed(wish, agent.grants)
}

denials contains sprintf("grant `%s` lives %vs: `max_ttl` in orchestrator.rego is %ds", [grant.name, grant.ttl, max_ttl]) if {
	some grant in input.grants
	not grant.ttl <= max_ttl
}

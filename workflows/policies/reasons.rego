# Why a step is denied, in words for the person who reads the refusal. Every rule here only explains:
# `permitted` in orchestrator.rego decides.
package orchestrator

import rego.v1

strangers contains sprintf("agent `%s` is not known to this policy", [input.agent]) if not agent

strangers contains sprintf("agent `%s` may not use the action `%s`", [input.agent, input.action.name]) if {
	agent
	not input.action.name in agent.actions
}

strangers contains sprintf("agent `%s` may not open the task `%s`", [input.agent, input.workflow.name]) if {
	agent
	input.task
	not input.workflow.name in agent.opens
}

strangers contains sprintf("agent `%s` takes no steps: it calls tools in tasks that it opened", [input.agent]) if {
	agent.opens
	not input.task
}

strangers contains reason if some reason in misshapen

denials contains reason if some reason in strangers

denials contains sprintf("SQL verb `%s` is forbidden to every agent", [verb]) if {
	some verb in input.action.verbs
	verb in forbidden_sql
}

denials contains sprintf("agent `%s` may not use the SQL verb `%s`", [input.agent, verb]) if {
	agent
	some verb in input.action.verbs
	not verb in forbidden_sql
	not verb in agent.sql
}

denials contains sprintf("agent `%s` may not send requests to %s", [input.agent, input.action.origin]) if {
	agent
	input.action.name == "http.request"
	input.action.origin
	not origin_permitted
}

denials contains sprintf("agent `%s` may not be redirected to %s", [input.agent, there]) if {
	agent
	input.action.name == "http.request"
	some there in redirects
	not redirect_permitted(there)
}

denials contains sprintf("agent `%s` may not post to the channel %s", [input.agent, input.action.channel]) if {
	agent
	input.action.name == "slack.post_message"
	input.action.channel
	not channel_permitted
}

denials contains sprintf("agent `%s` may not run the program `%s`%s", [input.agent, what_runs, where]) if {
	agent
	input.action.name == "exec"
	input.action.program
	not program_permitted
}

denials contains sprintf("agent `%s` may not call `%s`%s", [input.agent, what_runs, where]) if {
	agent
	input.action.name == "python"
	input.action.callable
	not callable_permitted
}

where := sprintf(" with %s", [concat("; ", circumstances)]) if count(circumstances) > 0

where := "" if count(circumstances) == 0

circumstances := array.concat(
	[sprintf("%s %s", [field, concat(":", folders_of(field))]) |
		some field in ["cwd", "path"]
		count(folders_of(field)) > 0
	],
	[sprintf("package %s", [with_content(around.file, around.sha256)]) | some around in input.action.packages],
)

denials contains sprintf("the action `%s` does not say what it is about to do", [input.action.name]) if {
	agent
	input.action.name in agent.actions
	not action_permitted
	every field in {"verbs", "origin", "channel", "program", "callable"} {
		not field in object.keys(input.action)
	}
}

denials contains sprintf("agent `%s` may not do the task `%s` for customer %v", [input.agent, task, customer]) if {
	agent.tasks
	not customer_permitted
	task := object.get(input.context, "task", "(none)")
	customer := object.get(input.context, "customer_id", "(none)")
}

denials contains sprintf("%s on %s is not limited to customer %v", [privilege.verb, privilege.object, customer]) if {
	agent.tasks
	customer_permitted
	some privilege in unlimited
	customer := input.context.customer_id
}

denials contains sprintf("grant `%s` is not for customer %v alone", [grant.name, input.context.customer_id]) if {
	agent.tasks
	customer_permitted
	some grant in for_anybody
}

denials contains sprintf("agent `%s` may not work on the mailbox `%v`", [input.agent, mailbox]) if {
	agent.mailboxes
	not mailbox_known
	mailbox := object.get(input.context, "mailbox", "(none)")
}

denials contains sprintf("grant `%s` is not for the mailbox `%s` alone", [grant.name, input.context.mailbox]) if {
	agent.mailboxes
	mailbox_known
	some grant in for_other_mailboxes
}

denials contains sprintf("grant `%s` lives %ds, longer than the %ds that are allowed", [grant.name, grant.ttl, max_ttl]) if {
	some grant in input.grants
	grant.ttl > max_ttl
}

denials contains sprintf("agent `%s` may not have %s (grant `%s`)", [input.agent, what(grant), grant.name]) if {
	agent
	some grant in input.grants
	within_ttl(grant)
	not grant_permitted(grant)
}

what(grant) := text if {
	grant.kind == "database"
	count(excess(grant)) > 0
	text := sprintf("%s in the database `%s`", [concat("; ", excess(grant)), grant.connection])
}

what(grant) := text if {
	grant.kind == "database"
	grant.privileges
	count(excess(grant)) == 0
	text := sprintf("a login of `%s` from %s", [grant.connection, grant.resource])
}

what(grant) := text if {
	grant.kind == "database"
	not grant.privileges
	text := sprintf("the database role `%s` of `%s` from %s", [grant.role, grant.connection, grant.resource])
}

excess(grant) := [wish |
	some privilege in grant.privileges
	not privilege_permitted(grant.connection, privilege)
	wish := sprintf("%s%s on %s", [privilege.verb, columns_of(privilege), privilege.object])
]

columns_of(privilege) := sprintf(" (%s)", [concat(", ", privilege.columns)]) if is_array(privilege.columns)

columns_of(privilege) := " (all)" if privilege.columns == "all"

columns_of(privilege) := "" if not privilege.columns

what(grant) := text if {
	grant.kind == "token"
	scopes := concat(" ", grant.scopes)
	text := sprintf("a token for `%s` with the scope `%s`%s from %s", [grant.audience, scopes, details_of(grant), grant.resource])
}

details_of(grant) := "" if not grant.details

details_of(grant) := sprintf(" to %s", [concat("; ", pieces)]) if {
	grant.details
	pieces := [sprintf("%s %s", [concat(", ", object.get(detail, "actions", ["anything"])), detail.type]) |
		some detail in grant.details
	]
}

what(grant) := text if {
	grant.kind == "secret"
	text := sprintf("the keys `%s` of %s", [concat(", ", grant.keys), grant.resource])
}

what(grant) := text if {
	grant.kind == "oauth2"
	scopes := concat(" ", object.get(grant, "scopes", []))
	text := sprintf("a token of `%s` with the scope `%s`%s%s", [grant.issuer, scopes, details_of(grant), on_behalf_of(grant)])
}

on_behalf_of(grant) := "" if not grant.subject

on_behalf_of(grant) := sprintf(" on behalf of `%s`", [grant.subject]) if grant.subject

what(grant) := grant.resource if not grant.kind in {"database", "token", "secret", "oauth2"}

# The one question before a step gets credentials: may it? data.json says who may do what;
# shape.rego says what may stand there.
#
# A step is allowed where every part of it is known and permitted, never because nothing spoke against
# it: a field that is missing makes a permitting rule undefined, and undefined is a denial.
package orchestrator

import rego.v1

default decision := {"allow": false, "reasons": ["no rule of the policy allows it"]}

decision := {"allow": true, "reasons": [sprintf("permitted to agent `%s`", [input.agent])]} if {
	permitted
	count(denials) == 0
}

decision := {"allow": false, "reasons": sort(denials)} if count(denials) > 0

# Asked first, before anything of the author's text is evaluated: what is in a parameter, a condition or the context
# is not known yet, and of an agent or an action that is not known nobody wants to know.
default admit := {"allow": false, "reasons": ["no rule of the policy admits it"]}

admit := {"allow": true, "reasons": [sprintf("agent `%s` is known", [input.agent])]} if {
	count(misshapen) == 0
	input.action.name in agent.actions
	kind_permitted
}

admit := {"allow": false, "reasons": sort(strangers)} if count(strangers) > 0

max_ttl := 900

# SQL verbs that no agent may use, whatever its entry says.
forbidden_sql := {"delete", "truncate", "ddl", "other", "unknown"}

agent := data.agents[input.agent]

# In a dry run (`plan`) some parameters are only known at run time: the view then says `partial`, and what
# is missing from it is decided later. At run time, when there is a time, nothing may be missing.
partial if {
	input.action.partial == true
	input.time == null
}

permitted if {
	count(misshapen) == 0
	input.action.name in agent.actions
	kind_permitted
	action_permitted
	task_permitted
	mailbox_permitted
	is_array(input.grants)
	every grant in input.grants {
		grant_permitted(grant)
	}
}

# --- a step of a run, or a tool of an open task -----------------------------------------------------

# An agent that opens tasks calls the tools of these and takes no steps; all others take steps only.
kind_permitted if {
	not agent.opens
	not input.task
}

kind_permitted if {
	input.task
	input.workflow.name in agent.opens
}

# --- what the step does ---------------------------------------------------------------------------

shows_sql if startswith(input.action.name, "postgres.")

# An action of somebody else's package shows nothing that could be looked at: its name has to do.
action_permitted if {
	not shows_sql
	not input.action.name in {"http.request", "slack.post_message", "exec", "python"}
}

action_permitted if {
	shows_sql
	sql_permitted
}

action_permitted if {
	input.action.name == "http.request"
	origin_permitted
	every there in redirects {
		redirect_permitted(there)
	}
}

action_permitted if {
	input.action.name == "slack.post_message"
	channel_permitted
}

action_permitted if {
	input.action.name == "exec"
	program_permitted
}

action_permitted if {
	input.action.name == "python"
	callable_permitted
}

sql_permitted if {
	count(input.action.verbs) > 0
	every verb in input.action.verbs {
		verb in agent.sql
		not verb in forbidden_sql
	}
}

sql_permitted if known_later("verbs")

origin_permitted if {
	some pattern in agent.origins
	origin_matches(pattern, input.action.origin)
}

origin_permitted if known_later("origin")

redirects := object.get(input.action, "redirect_origins", [])

redirect_permitted(there) if {
	some pattern in agent.origins
	origin_matches(pattern, there)
}

origin_matches(pattern, origin) if pattern == origin

origin_matches(pattern, origin) if {
	endswith(pattern, ":*")
	stem := trim_suffix(pattern, "*")
	startswith(origin, stem)
	regex.match(`^[0-9]+$`, trim_prefix(origin, stem))
}

channel_permitted if input.action.channel in agent.channels

channel_permitted if known_later("channel")

program_permitted if {
	what_runs in agent.programs
	not input.action.path
	folders_permitted(["cwd"])
}

# What a program or a module is, beyond its name: the file of a program (links are followed), and its content wherever
# that does not come with the system.
what_runs := input.action.program if not input.action.sha256

what_runs := with_content(input.action.program, input.action.sha256)

what_runs := with_content(input.action.callable, input.action.sha256)

with_content(name, sha256) := sprintf("%s@sha256:%s", [name, sha256])

# Where an agent may start programs and import modules from: what lies there runs, too.
folders_permitted(fields) if {
	every field in fields {
		every folder in folders_of(field) {
			folder in object.get(agent, "folders", [])
		}
	}
}

folders_of(field) := [] if not input.action[field]

folders_of(field) := input.action[field] if is_array(input.action[field])

folders_of(field) := [input.action[field]] if is_string(input.action[field])

program_permitted if known_later("program")

callable_permitted if {
	what_runs in agent.callables
	is_array(input.action.packages)
	every around in input.action.packages {
		with_content(around.file, around.sha256) in agent.callables
	}
	folders_permitted(["path"])
}

callable_permitted if known_later("callable")

known_later(field) if {
	partial
	not field in object.keys(input.action)
}

# --- whom the step works for ----------------------------------------------------------------------

task_permitted if not agent.tasks

task_permitted if {
	customer_permitted
	count(unlimited) == 0
	count(for_anybody) == 0
}

customer_permitted if input.context.customer_id in agent.tasks[input.context.task]

# What is not held to the rows of the task's customer.
unlimited := [privilege |
	some grant in input.grants
	some privilege in grant.privileges
	not limited_to_customer(privilege)
]

limited_to_customer(privilege) if {
	sprintf("%v", [privilege.where.customer_id]) == sprintf("%v", [input.context.customer_id])
}

# Tokens that are not for the task's customer alone.
for_anybody := [grant |
	some grant in input.grants
	grant.kind == "token"
	not for_customer(grant)
]

for_customer(grant) if {
	count(grant.details) > 0
	every detail in grant.details {
		sprintf("%v", [detail.identifier]) == sprintf("%v", [input.context.customer_id])
	}
}

# --- whose mailbox it works on -------------------------------------------------------------------

mailbox_permitted if not agent.mailboxes

mailbox_permitted if {
	mailbox_known
	count(for_other_mailboxes) == 0
}

mailbox_known if input.context.mailbox in agent.mailboxes

# What is not held to the mailbox of the context.
for_other_mailboxes := [grant |
	some grant in input.grants
	not for_mailbox(grant)
]

for_mailbox(grant) if not grant.kind in {"database", "oauth2"}

for_mailbox(grant) if {
	grant.kind == "oauth2"
	grant.subject == input.context.mailbox
}

for_mailbox(grant) if {
	grant.kind == "database"
	every privilege in grant.privileges {
		privilege.where.mailbox == input.context.mailbox
	}
}

# --- what the step is to hold ---------------------------------------------------------------------

grant_permitted(grant) if {
	within_ttl(grant)
	grant.kind == "database"
	startswith(grant.resource, "database/creds/")
	count(grant.privileges) > 0
	every privilege in grant.privileges {
		privilege_permitted(grant.connection, privilege)
	}
}

# A list of columns, never `all`: columns that are added later were not thought of here.
privilege_permitted(connection, privilege) if {
	known := agent.databases[connection][privilege.object][privilege.verb]
	is_array(privilege.columns)
	every column in privilege.columns {
		column in known
	}
}

grant_permitted(grant) if {
	within_ttl(grant)
	grant.kind == "token"
	grant.resource == "transit/sign/orchestrator-token"
	count(grant.scopes) > 0
	every scope in grant.scopes {
		scope in agent.tokens[grant.audience]
	}
	every detail in object.get(grant, "details", []) {
		detail_permitted(detail)
	}
}

# Nobody speaks for somebody who is not one of its mailboxes.
grant_permitted(grant) if {
	within_ttl(grant)
	grant.kind == "oauth2"
	count(grant.scopes) > 0
	every scope in grant.scopes {
		scope in agent.oauth2[grant.issuer]
	}
	every detail in object.get(grant, "details", []) {
		detail_permitted(detail)
	}
	subject_permitted(grant)
}

subject_permitted(grant) if not grant.subject

subject_permitted(grant) if grant.subject in agent.mailboxes

# What a token is for is a list of actions: one without any would be for whatever its service makes of that.
detail_permitted(detail) if {
	count(detail.actions) > 0
	every action in detail.actions {
		action in agent.details[detail.type]
	}
}

grant_permitted(grant) if {
	within_ttl(grant)
	grant.kind == "secret"
	startswith(grant.resource, "secret/data/")
	count(grant.keys) > 0
	every key in grant.keys {
		key in agent.secrets[trim_prefix(grant.resource, "secret/data/")]
	}
}

grant_permitted(grant) if {
	within_ttl(grant)
	grant.kind == "dynamic"
	grant.resource in agent.dynamic
}

within_ttl(grant) if {
	is_number(grant.ttl)
	grant.ttl > 0
	grant.ttl <= max_ttl
}

# What the policy allows and refuses, asked with data of its own; the last tests ask about data.json itself.
# Run them with `orchestrator policy test`, and see with `--coverage` which rules they have been through.
package orchestrator_test

import rego.v1

import data.orchestrator

agents := {
	"batch": {
		"actions": ["postgres.query", "http.request", "slack.post_message", "exec", "python", "acme.announce"],
		"sql": ["insert", "select"],
		"origins": ["http://localhost:*", "https://api.example"],
		"channels": ["#support"],
		"programs": ["/bin/pg_dump", "/srv/report@sha256:ab"],
		"callables": ["etl:load@sha256:ab", "/etl.py@sha256:ab"],
		"folders": ["/srv"],
		"databases": {"support": {"public.feedback": {"select": ["comment", "id"], "delete": []}}},
		"tokens": {"translation": ["translate"]},
		"secrets": {"slack/bot": ["token"]},
		"dynamic": ["rabbitmq/creds/reports"],
	},
	"clerk": {
		"actions": ["postgres.query"],
		"sql": ["select"],
		"databases": {"support": {"public.feedback": {"select": ["comment", "id"]}}},
		"tasks": {"crm:write_ticket": [1234, "vip"]},
	},
	"caller": {
		"opens": ["desk"],
		"actions": ["hand_over", "http.request", "postgres.query"],
		"sql": ["select"],
		"origins": ["https://api.example"],
		"databases": {"support": {"public.feedback": {"select": ["comment", "id"]}}},
		"tokens": {"crm": ["crm:write"]},
		"details": {"record": ["read", "write"]},
		"tasks": {"crm:write_ticket": [1234]},
	},
	"postman": {
		"opens": ["post"],
		"actions": ["hand_over", "http.request", "postgres.query"],
		"sql": ["select"],
		"origins": ["https://api.example"],
		"databases": {"support": {"public.feedback": {"select": ["comment", "id"]}}},
		"tokens": {"crm": ["crm:write"]},
		"details": {"record": ["read"]},
		"oauth2": {"mail": ["mail.read"]},
		"mailboxes": ["team@shop.example", "desk@shop.example"],
	},
	"collector": {"actions": ["http.request"], "origins": ["https://api.example"], "oauth2": {"mail": ["mail.read"]}},
	"listed": ["actions"],
	"off": false,
}

question := {
	"agent": "batch",
	"action": {"name": "postgres.query", "verbs": ["select"]},
	"context": {},
	"grants": [],
	"time": "2026-03-02T12:00:00+00:00",
}

login := {
	"name": "db",
	"kind": "database",
	"resource": "database/creds/orc-support-1",
	"ttl": 120,
	"connection": "support",
	"role": "orc-support-1",
	"privileges": [{"verb": "select", "object": "public.feedback", "columns": ["comment", "id"]}],
}

token := {
	"name": "api",
	"kind": "token",
	"resource": "transit/sign/orchestrator-token",
	"ttl": 60,
	"audience": "translation",
	"scopes": ["translate"],
}

secret := {"name": "bot", "kind": "secret", "resource": "secret/data/slack/bot", "ttl": 60, "keys": ["token"]}

queue := {"name": "mq", "kind": "dynamic", "resource": "rabbitmq/creds/reports", "ttl": 60}

doing(action) := object.union(object.remove(question, ["action"]), {"action": action})

holding(grant) := object.union(question, {"grants": [grant]})

but(document, changes) := object.union(document, changes)

without(document, field) := object.remove(document, [field])

decision_on(asked) := decision if {
	decision := orchestrator.decision with input as asked with data.agents as agents
}

admission_of(asked) := admission if {
	admission := orchestrator.admit with input as asked with data.agents as agents
}

allowed(asked) if decision_on(asked) == {"allow": true, "reasons": [sprintf("permitted to agent `%s`", [asked.agent])]}

# Refused for exactly these reasons; and not permitted, whatever the reasons are.
refused(asked, reasons) if {
	decision_on(asked) == {"allow": false, "reasons": reasons}
	not permitted(asked)
}

permitted(asked) if orchestrator.permitted with input as asked with data.agents as agents

nobody := "no rule of the policy allows it"

# --- who asks -------------------------------------------------------------------------------------

test_known_agent_is_admitted if {
	admission_of(question) == {"allow": true, "reasons": ["agent `batch` is known"]}
}

test_unknown_agent_is_not_admitted if {
	reasons := ["agent `mallory` is not known to this policy"]
	admission_of(but(question, {"agent": "mallory"})) == {"allow": false, "reasons": reasons}
	refused(but(question, {"agent": "mallory"}), reasons)
}

test_action_of_others_is_not_admitted if {
	reasons := ["agent `batch` may not use the action `smtp.send`"]
	admission_of(doing({"name": "smtp.send"})) == {"allow": false, "reasons": reasons}
	refused(doing({"name": "smtp.send"}), reasons)
}

test_question_without_agent_or_action_is_refused_for_no_rule_allows_it if {
	admission_of({}) == {"allow": false, "reasons": ["no rule of the policy admits it"]}
	decision_on({}) == {"allow": false, "reasons": [nobody]}
}

# --- SQL ------------------------------------------------------------------------------------------

test_sql_is_allowed if allowed(question)

test_several_verbs_are_allowed if allowed(doing({"name": "postgres.query", "verbs": ["select", "insert"]}))

test_verb_of_others_is_refused if {
	refused(
		doing({"name": "postgres.query", "verbs": ["select", "update"]}),
		["agent `batch` may not use the SQL verb `update`"],
	)
}

test_verbs_that_destroy_are_refused_whatever_an_entry_says if {
	every verb in ["delete", "truncate", "ddl", "other", "unknown"] {
		asked := doing({"name": "postgres.query", "verbs": [verb]})
		refused(asked, [sprintf("SQL verb `%s` is forbidden to every agent", [verb])])
		generous := {"batch": {"actions": ["postgres.query"], "sql": [verb]}}
		not orchestrator.decision.allow with input as asked with data.agents as generous
		not orchestrator.permitted with input as asked with data.agents as generous
	}
}

silent := "the action `postgres.query` does not say what it is about to do"

test_sql_without_verbs_is_refused if {
	refused(doing({"name": "postgres.query"}), [silent])
	refused(doing({"name": "postgres.query", "verbs": []}), [nobody])
	refused(doing({"name": "postgres.query", "channel": "#support"}), [nobody])
}

# --- other actions --------------------------------------------------------------------------------

test_action_of_an_extension_is_allowed_by_its_name if allowed(doing({"name": "acme.announce"}))

test_request_is_allowed if {
	allowed(doing({"name": "http.request", "origin": "https://api.example"}))
	allowed(doing({"name": "http.request", "origin": "http://localhost:8080"}))
}

test_request_to_another_host_is_refused if {
	some_others := [
		"https://evil.example",
		"https://api.example:8443",
		"http://localhost:80.evil.example",
		"http://localhost:",
		"http://localhos:80",
		"http://localhost",
	]
	every origin in some_others {
		refused(
			doing({"name": "http.request", "origin": origin}),
			[sprintf("agent `batch` may not send requests to %s", [origin])],
		)
	}
}

test_redirects_are_allowed_where_requests_are if {
	asked := {"name": "http.request", "origin": "https://api.example", "redirect_origins": ["http://localhost:1"]}
	allowed(doing(asked))
	refused(
		doing(but(asked, {"redirect_origins": ["http://localhost:1", "http://169.254.169.254"]})),
		["agent `batch` may not be redirected to http://169.254.169.254"],
	)
}

test_request_without_origin_is_refused if {
	refused(
		doing({"name": "http.request"}),
		["the action `http.request` does not say what it is about to do"],
	)
}

test_message_is_allowed_in_its_channel if {
	allowed(doing({"name": "slack.post_message", "channel": "#support"}))
	refused(
		doing({"name": "slack.post_message", "channel": "#general"}),
		["agent `batch` may not post to the channel #general"],
	)
	refused(
		doing({"name": "slack.post_message"}),
		["the action `slack.post_message` does not say what it is about to do"],
	)
}

test_fields_of_another_action_are_not_looked_at if {
	every field in ["origin", "channel", "program", "callable"] {
		allowed(but(question, {"action": {field: "anything"}}))
	}
	allowed(but(question, {"action": {"redirect_origins": ["https://evil.example"]}}))
}

# --- programs and functions -----------------------------------------------------------------------

program := {"name": "exec", "program": "/bin/pg_dump"}

test_program_is_allowed if {
	allowed(doing(program))
	allowed(doing(but(program, {"cwd": "/srv"})))
	allowed(doing({"name": "exec", "program": "/srv/report", "sha256": "ab"}))
}

test_program_with_other_content_is_refused if {
	refused(
		doing({"name": "exec", "program": "/srv/report", "sha256": "cd"}),
		["agent `batch` may not run the program `/srv/report@sha256:cd`"],
	)
	refused(
		doing({"name": "exec", "program": "/srv/report"}),
		["agent `batch` may not run the program `/srv/report`"],
	)
}

test_program_elsewhere_is_refused if {
	refused(
		doing(but(program, {"cwd": "/tmp"})),
		["agent `batch` may not run the program `/bin/pg_dump` with cwd /tmp"],
	)
	refused(
		doing(but(program, {"cwd": "/srv", "path": ["/srv"]})),
		["agent `batch` may not run the program `/bin/pg_dump` with cwd /srv; path /srv"],
	)
}

test_program_that_is_not_named_is_refused if {
	refused(doing({"name": "exec"}), ["the action `exec` does not say what it is about to do"])
}

function := {"name": "python", "callable": "etl:load", "sha256": "ab", "packages": [], "path": []}

package_of_it := {"file": "/etl.py", "sha256": "ab"}

test_function_is_allowed if {
	allowed(doing(function))
	allowed(doing(but(function, {"packages": [package_of_it], "path": ["/srv"]})))
}

test_function_with_other_content_is_refused if {
	refused(
		doing(but(function, {"sha256": "cd"})),
		["agent `batch` may not call `etl:load@sha256:cd`"],
	)
	refused(
		doing(but(function, {"packages": [package_of_it, {"file": "/etl.py", "sha256": "cd"}]})),
		["agent `batch` may not call `etl:load@sha256:ab` with package /etl.py@sha256:ab; package /etl.py@sha256:cd"],
	)
}

test_function_of_another_folder_is_refused if {
	refused(
		doing(but(function, {"path": ["/srv", "/tmp"]})),
		["agent `batch` may not call `etl:load@sha256:ab` with path /srv:/tmp"],
	)
}

test_function_that_hides_its_content_is_refused if {
	not permitted(doing(without(function, "packages")))
	not permitted(doing(without(function, "sha256")))
	not decision_on(doing(without(function, "packages"))).allow
	refused(doing({"name": "python"}), ["the action `python` does not say what it is about to do"])
}

# --- a dry run ------------------------------------------------------------------------------------

planned := but(question, {"time": null})

test_what_is_not_known_yet_is_left_open_in_a_dry_run if {
	every name in ["postgres.query", "http.request", "slack.post_message", "exec", "python"] {
		action := {"action": {"name": name, "partial": true}}
		allowed(but(without(planned, "action"), action))
		not permitted(but(without(question, "action"), action))
		not permitted(but(without(planned, "action"), {"action": {"name": name}}))
		not permitted(but(without(planned, "action"), {"action": {"name": name, "partial": false}}))
	}
}

test_what_is_known_in_a_dry_run_is_decided if {
	refused(
		but(planned, {"action": {"name": "slack.post_message", "channel": "#general", "partial": true}}),
		["agent `batch` may not post to the channel #general"],
	)
}

# --- grants ---------------------------------------------------------------------------------------

test_grants_are_allowed if {
	every grant in [login, token, secret, queue] {
		allowed(holding(grant))
	}
	allowed(but(question, {"grants": [login, token, secret, queue]}))
}

test_privilege_without_columns_left_is_a_list_all_the_same if {
	allowed(holding(but(login, {"privileges": [{"verb": "delete", "object": "public.feedback", "columns": []}]})))
}

test_grants_that_are_no_list_are_refused if {
	every wrong in [{}, {"db": login}] {
		not permitted(but(without(question, "grants"), {"grants": wrong}))
	}
	not permitted(without(question, "grants"))
}

test_longest_life_is_allowed_and_a_longer_one_refused if {
	every grant in [login, token, secret, queue] {
		allowed(holding(but(grant, {"ttl": 900})))
		refused(
			holding(but(grant, {"ttl": 901})),
			[sprintf("grant `%s` lives 901s, longer than the 900s that are allowed", [grant.name])],
		)
	}
}

test_life_that_is_none_is_refused if {
	every ttl in [0, -1] {
		refused(holding(but(login, {"ttl": ttl})), [nobody])
	}
	not permitted(holding(but(login, {"ttl": "60"})))
	not permitted(holding(but(login, {"ttl": null})))
	not permitted(holding(without(login, "ttl")))
}

may_not_have(what, grant) := [sprintf("agent `batch` may not have %s (grant `%s`)", [what, grant.name])]

test_login_with_other_privileges_is_refused if {
	wishes := {
		"select (email) on public.feedback": {"verb": "select", "object": "public.feedback", "columns": ["email"]},
		"select (all) on public.feedback": {"verb": "select", "object": "public.feedback", "columns": "all"},
		"update on public.feedback": {"verb": "update", "object": "public.feedback"},
		"select (id) on public.card": {"verb": "select", "object": "public.card", "columns": ["id"]},
	}
	every text, privilege in wishes {
		grant := but(login, {"privileges": array.concat(login.privileges, [privilege])})
		refused(holding(grant), may_not_have(sprintf("%s in the database `support`", [text]), grant))
	}
}

test_several_wishes_are_told_in_one_reason if {
	unknown := {"verb": "update", "object": "public.feedback"}
	grant := but(login, {"privileges": [unknown, but(unknown, {"verb": "insert"})]})
	words := "update on public.feedback; insert on public.feedback in the database `support`"
	refused(holding(grant), may_not_have(words, grant))
}

test_login_of_another_database_is_refused if {
	grant := but(login, {"connection": "billing"})
	refused(
		holding(grant),
		may_not_have("select (comment, id) on public.feedback in the database `billing`", grant),
	)
}

test_login_of_another_mount_is_refused if {
	grant := but(login, {"resource": "payroll/creds/orc-support-1"})
	refused(holding(grant), may_not_have("a login of `support` from payroll/creds/orc-support-1", grant))
}

test_role_that_is_maintained_by_hand_is_refused if {
	grant := without(but(login, {"role": "admin", "resource": "database/creds/admin"}), "privileges")
	refused(
		holding(grant),
		may_not_have("the database role `admin` of `support` from database/creds/admin", grant),
	)
	none := but(grant, {"privileges": []})
	refused(holding(none), may_not_have("a login of `support` from database/creds/admin", none))
}

test_other_tokens_are_refused if {
	words := "a token for `%s` with the scope `%s` from %s"
	key := "transit/sign/orchestrator-token"
	others := [
		["billing", ["translate"], key],
		["translation", ["admin", "translate"], key],
		["translation", ["translate"], "transit/sign/root"],
		["translation", [], key],
	]
	every other in others {
		[audience, scopes, resource] := other
		grant := but(token, {"audience": audience, "scopes": scopes, "resource": resource})
		refused(holding(grant), may_not_have(sprintf(words, [audience, concat(" ", scopes), resource]), grant))
	}
}

test_other_secrets_are_refused if {
	others := [["slack/admin", ["token"]], ["slack/bot", ["signing", "token"]], ["slack/bot", []]]
	every other in others {
		[path, keys] := other
		grant := but(secret, {"resource": sprintf("secret/data/%s", [path]), "keys": keys})
		refused(
			holding(grant),
			may_not_have(sprintf("the keys `%s` of secret/data/%s", [concat(", ", keys), path]), grant),
		)
	}
	elsewhere := but(secret, {"resource": "slack/bot"})
	refused(holding(elsewhere), may_not_have("the keys `token` of slack/bot", elsewhere))
}

test_other_paths_are_refused if {
	grant := but(queue, {"resource": "rabbitmq/creds/root"})
	refused(holding(grant), may_not_have("rabbitmq/creds/root", grant))
	strange := but(queue, {"kind": "otp"})
	refused(holding(strange), may_not_have("rabbitmq/creds/reports", strange))
}

test_grant_of_one_kind_is_not_measured_by_the_rules_of_another if {
	every kind in ["database", "token", "secret", "dynamic", "otp"] {
		every grant in [login, token, secret, queue] {
			{kind | permitted(holding(but(grant, {"kind": kind})))} == {kind | kind == grant.kind}
		}
	}
}

test_one_grant_too_many_is_refused if {
	more := but(login, {"name": "more", "connection": "billing"})
	words := "select (comment, id) on public.feedback in the database `billing`"
	refused(but(question, {"grants": [login, more]}), may_not_have(words, more))
}

# --- whom the step works for ----------------------------------------------------------------------

its_rows := [but(login.privileges[0], {"where": {"customer_id": "1234"}})]

task := {
	"agent": "clerk",
	"context": {"task": "crm:write_ticket", "customer_id": 1234},
	"grants": [but(login, {"privileges": its_rows})],
}

ticket := but(question, task)

test_task_for_its_customer_is_allowed if {
	allowed(ticket)
	as_number := but(its_rows[0], {"where": {"customer_id": 1234}})
	allowed(but(ticket, {"grants": [but(login, {"privileges": [as_number]})]}))
}

test_customer_that_is_a_text_is_allowed_by_its_text if {
	vip := but(its_rows[0], {"where": {"customer_id": "vip"}})
	allowed(but(ticket, {"context": {"customer_id": "vip"}, "grants": [but(login, {"privileges": [vip]})]}))
}

test_task_for_another_customer_is_refused if {
	others := [
		[{"task": "crm:write_ticket", "customer_id": 1235}, "`crm:write_ticket` for customer 1235"],
		[{"task": "crm:refund", "customer_id": 1234}, "`crm:refund` for customer 1234"],
		[{"task": "crm:write_ticket", "customer_id": "1234"}, "`crm:write_ticket` for customer 1234"],
		[{"task": "crm:write_ticket"}, "`crm:write_ticket` for customer (none)"],
		[{"customer_id": 1234}, "`(none)` for customer 1234"],
		[{}, "`(none)` for customer (none)"],
	]
	every other in others {
		[context, words] := other
		refused(
			but(without(ticket, "context"), {"context": context}),
			[sprintf("agent `clerk` may not do the task %s", [words])],
		)
	}
}

test_rows_of_others_are_refused if {
	every where in [{}, {"customer_id": "1235"}, {"id": "1234"}] {
		wide := but(login.privileges[0], {"where": where})
		refused(
			but(ticket, {"grants": [but(login, {"privileges": [its_rows[0], wide]})]}),
			["select on public.feedback is not limited to customer 1234"],
		)
	}
}

# --- tools of tasks -------------------------------------------------------------------------------

ticket_token := {
	"name": "crm",
	"kind": "token",
	"resource": "transit/sign/orchestrator-token",
	"ttl": 60,
	"audience": "crm",
	"scopes": ["crm:write"],
	"details": [{"type": "record", "actions": ["read", "write"], "identifier": "1234"}],
}

call := {
	"agent": "caller",
	"workflow": {"name": "desk"},
	"task": {"id": "task_1", "call": {}, "on_behalf_of": ""},
	"action": {"name": "hand_over", "grant": "crm"},
	"context": {"task": "crm:write_ticket", "customer_id": 1234},
	"grants": [ticket_token],
	"time": "2026-03-02T12:00:00+00:00",
}

calling_with(changes) := but(call, {"grants": [but(ticket_token, changes)]})

test_tool_of_its_task_is_allowed if {
	allowed(call)
	allowed(but(call, {"grants": [but(login, {"privileges": its_rows}), ticket_token]}))
	admission_of(without(call, "context")) == {"allow": true, "reasons": ["agent `caller` is known"]}
}

# Neither admitted nor allowed nor permitted, and told why.
turned_away(asked, reason) if {
	admission_of(asked) == {"allow": false, "reasons": [reason]}
	refused(asked, [reason])
	admitting_without_a_word := orchestrator.admit with input as asked
		with data.agents as agents
		with data.orchestrator.strangers as set()
	admitting_without_a_word.allow == false
}

test_task_of_another_type_is_refused if {
	turned_away(but(call, {"workflow": {"name": "vault"}}), "agent `caller` may not open the task `vault`")
}

test_agent_that_opens_tasks_takes_no_steps if {
	turned_away(without(call, "task"), "agent `caller` takes no steps: it calls tools in tasks that it opened")
}

test_agent_that_takes_steps_opens_no_tasks if {
	asked := but(question, {"task": call.task, "workflow": {"name": "desk"}})
	turned_away(asked, "agent `batch` may not open the task `desk`")
}

test_token_that_is_not_for_the_customer_alone_is_refused if {
	reasons := ["grant `crm` is not for customer 1234 alone"]
	piece := ticket_token.details[0]
	others := [[], [but(piece, {"identifier": "1235"})], [piece, but(piece, {"identifier": "1235"})], [without(piece, "identifier")]]
	every details in others {
		refused(calling_with({"details": details}), reasons)
	}
	refused(but(call, {"grants": [without(ticket_token, "details")]}), reasons)
	refused(but(call, {"grants": [ticket_token, but(ticket_token, {"details": []})]}), reasons)
}

test_token_for_other_actions_is_refused if {
	words := "agent `caller` may not have a token for `crm` with the scope `crm:write` to %s from %s (grant `crm`)"
	piece := ticket_token.details[0]
	others := {
		"read, erase record": but(piece, {"actions": ["read", "erase"]}),
		"read, write card": but(piece, {"type": "card"}),
		"anything record": without(piece, "actions"),
		" record": but(piece, {"actions": []}),
	}
	every told, other in others {
		refused(calling_with({"details": [other]}), [sprintf(words, [told, ticket_token.resource])])
	}
	several := sprintf(words, ["read, write record; read, erase record", ticket_token.resource])
	refused(calling_with({"details": [piece, others["read, erase record"]]}), [several])
}

test_task_of_another_customer_is_refused if {
	elsewhere := calling_with({"details": [but(ticket_token.details[0], {"identifier": "1235"})]})
	refused(
		but(elsewhere, {"context": {"task": "crm:write_ticket", "customer_id": 1235}}),
		["agent `caller` may not do the task `crm:write_ticket` for customer 1235"],
	)
}

# --- mailboxes, and tokens of other authorization servers -------------------------------------------

mail_token := {
	"name": "mail",
	"kind": "oauth2",
	"resource": "oauth2/mail",
	"ttl": 60,
	"issuer": "mail",
	"scopes": ["mail.read"],
	"subject": "team@shop.example",
}

post := {
	"agent": "postman",
	"workflow": {"name": "post"},
	"task": {"id": "task_1", "call": {}, "on_behalf_of": ""},
	"action": {"name": "hand_over", "grant": "mail"},
	"context": {"mailbox": "team@shop.example"},
	"grants": [mail_token],
	"time": "2026-03-02T12:00:00+00:00",
}

post_with(changes) := but(post, {"grants": [but(mail_token, changes)]})

row_of(mailbox) := object.union(login.privileges[0], {"where": {"mailbox": mailbox}})

test_token_for_the_mailbox_of_the_context_is_allowed if {
	allowed(post)
	allowed(but(post, {"grants": [mail_token, but(login, {"privileges": [row_of("team@shop.example")]})]}))
	allowed(but(post, {"grants": [mail_token, but(token, {"audience": "crm", "scopes": ["crm:write"]})]}))
	allowed(but(post_with({"subject": "desk@shop.example"}), {"context": {"mailbox": "desk@shop.example"}}))
	allowed(post_with({"details": [{"type": "record", "actions": ["read"]}]}))
}

test_token_for_itself_is_allowed_to_whom_it_names if {
	asked := but(doing({"name": "http.request", "origin": "https://api.example"}), {"agent": "collector"})
	allowed(but(asked, {"grants": [without(mail_token, "subject")]}))
	words := "agent `collector` may not have a token of `mail` with the scope `mail.read` on behalf of `team@shop.example` (grant `mail`)"
	refused(but(asked, {"grants": [mail_token]}), [words])
}

test_mailbox_of_others_is_refused if {
	boss := "boss@shop.example"
	unknown := "agent `postman` may not work on the mailbox `boss@shop.example`"
	token_of := "agent `postman` may not have a token of `mail` with the scope `mail.read` on behalf of `boss@shop.example` (grant `mail`)"
	refused(but(post_with({"subject": boss}), {"context": {"mailbox": boss}}), [token_of, unknown])
	refused(but(post, {"context": {"mailbox": boss}, "grants": []}), [unknown])
	refused(but(post_with({"subject": boss}), {}), [token_of, "grant `mail` is not for the mailbox `team@shop.example` alone"])
}

test_no_mailbox_is_none_of_its_mailboxes if {
	refused(without(but(post, {"grants": []}), "context"), [nobody])
	refused(but(without(post, "context"), {"context": {}, "grants": []}), ["agent `postman` may not work on the mailbox `(none)`"])
}

test_what_is_not_for_the_mailbox_alone_is_refused if {
	reasons := ["grant `mail` is not for the mailbox `team@shop.example` alone"]
	refused(post_with({"subject": "desk@shop.example"}), reasons)
	refused(but(post, {"grants": [without(mail_token, "subject")]}), reasons)
	refused(but(post, {"grants": [mail_token, but(mail_token, {"subject": "desk@shop.example"})]}), reasons)
	rows := ["grant `db` is not for the mailbox `team@shop.example` alone"]
	others := [[row_of("desk@shop.example")], [row_of("team@shop.example"), row_of("desk@shop.example")], login.privileges]
	every privileges in others {
		refused(but(post, {"grants": [but(login, {"privileges": privileges})]}), rows)
	}
}

test_scope_of_another_authorization_server_is_refused if {
	words := "agent `postman` may not have a token of `%s` with the scope `%s`%s on behalf of `team@shop.example` (grant `mail`)"
	refused(post_with({"scopes": ["mail.read", "mail.send"]}), [sprintf(words, ["mail", "mail.read mail.send", ""])])
	refused(post_with({"scopes": []}), [sprintf(words, ["mail", "", ""])])
	refused(but(post, {"grants": [without(mail_token, "scopes")]}), [sprintf(words, ["mail", "", ""])])
	refused(post_with({"issuer": "files"}), [sprintf(words, ["files", "mail.read", ""])])
	details := [{"type": "record", "actions": ["erase"]}]
	refused(post_with({"details": details}), [sprintf(words, ["mail", "mail.read", " to erase record"])])
	refused(post_with({"ttl": 901}), ["grant `mail` lives 901s, longer than the 900s that are allowed"])
}

# --- data.json ------------------------------------------------------------------------------------

batch_with(changes) := {"batch": object.union(agents.batch, changes)}

refused_with(wrong, reason) if {
	decision := orchestrator.decision with input as question with data.agents as wrong
	decision.allow == false
	reason in decision.reasons
	not orchestrator.permitted with input as question with data.agents as wrong
	admission := orchestrator.admit with input as question with data.agents as wrong
	admission.allow == false
	reason in admission.reasons
	admitting_without_a_word := orchestrator.admit with input as question
		with data.agents as wrong
		with data.orchestrator.strangers as set()
	admitting_without_a_word.allow == false
}

test_data_of_another_shape_allow_nothing if {
	wrong := {
		"`actions`: is not a list of texts": {"actions": "postgres.query"},
		"`sql`: is not a list of texts": {"sql": {"a": "select"}},
		"`origins`: is not a list of texts": {"origins": [1]},
		"`channels`: is not a list of texts": {"channels": false},
		"`programs`: is not a list of texts": {"programs": null},
		"`tokens`: is not an object": {"tokens": ["api"]},
		"`tokens`, `api`: is not a list of texts": {"tokens": {"api": "translate"}},
		"`secrets`, `bot`: is not a list of texts": {"secrets": {"bot": {"a": "token"}}},
		"`opens`: is not a list of texts": {"opens": false},
		"`details`, `record`: is not a list of texts": {"details": {"record": "read"}},
		"`mailboxes`: is not a list of texts": {"mailboxes": "team@shop.example"},
		"`oauth2`: is not an object": {"oauth2": ["mail.read"]},
		"`oauth2`, `mail`: is not a list of texts": {"oauth2": {"mail": "mail.read"}},
		"`tasks`: is not an object": {"tasks": false},
		"`tasks`, `t`: is not a list of customers": {"tasks": {"t": 1234}},
		"`tasks`, `u`: is not a list of customers": {"tasks": {"u": [null]}},
		"`databases`: is not an object": {"databases": "support"},
		"`databases`, `a`: is not columns by table and verb": {"databases": {"a": ["public.feedback"]}},
		"`databases`, `b`: is not columns by table and verb": {"databases": {"b": {"t": ["select"]}}},
		"`databases`, `c`: is not columns by table and verb": {"databases": {"c": {"t": {"select": "id"}}}},
	}
	every words, changes in wrong {
		refused_with(batch_with(changes), sprintf("data.json, agent `batch`, %s", [words]))
	}
}

test_member_that_nobody_knows_allows_nothing if {
	reason := "data.json, agent `batch` has a member `task` that nobody knows"
	refused_with(batch_with({"task": {"crm:write_ticket": [1234]}}), reason)
}

test_entry_that_is_no_object_allows_nothing if {
	refused_with({"batch": ["actions"]}, "data.json, agent `batch` is not an object")
	refused_with({"batch": "actions"}, "data.json, agent `batch` is not an object")
	refused_with({"batch": false}, "data.json, agent `batch` is not an object")
}

test_agents_that_are_no_object_allow_nothing if {
	every wrong in [null, false, "batch", ["batch"]] {
		refused_with(wrong, "data.json has no object `agents`")
	}
}

test_wrong_entry_of_another_agent_harms_nobody_else if allowed(question)

test_entries_of_data_json_have_the_right_shape if {
	count(data.agents) > 0
	every name, _ in data.agents {
		wrong := orchestrator.misshapen with input as {"agent": name}
		count(wrong) == 0
	}
}

test_agents_of_data_json_may_not_destroy if {
	every entry in data.agents {
		count({verb | some verb in entry.sql; verb in orchestrator.forbidden_sql}) == 0
	}
}

test_only_the_writer_of_complaints_may_have_tickets_written if {
	writers := {name |
		some name, entry in data.agents
		"write_ticket" in entry.details.crm_record
	}
	writers == {"complaint-writer"}
	{name | some name, entry in data.agents; "crm:write_ticket" in entry.tokens.crm} == writers
	{name | some name, entry in data.agents; "complaint_writer" in entry.opens} == writers
}

test_mails_are_read_by_one_agent_in_one_mailbox_and_sent_by_none if {
	readers := {name | some name, entry in data.agents; entry.oauth2.mail}
	readers == {"mail-agent"}
	data.agents["mail-agent"].mailboxes == ["support@shop.example"]
	data.agents["mail-agent"].oauth2.mail == ["https://www.googleapis.com/auth/gmail.readonly"]
	{name | some name, entry in data.agents; "mail_agent" in entry.opens} == readers
}

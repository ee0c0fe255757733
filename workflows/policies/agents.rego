# Who may do what. One entry an agent; what is not written here is not allowed.
#
#   actions    the actions its steps may take
#   sql        the SQL verbs its statements may use
#   origins    where its HTTP requests may go; a port of `*` is any port
#   channels   where it may post
#   programs   what `exec` may run: "FILE" of the system, or "FILE@sha256:CONTENT" of any other file or script
#   callables  what `python` may call: "MODULE:FUNCTION@sha256:CONTENT", and "FILE@sha256:CONTENT" of its packages
#   folders    where programs may run (`cwd`), and modules be looked for first (`path`), other than where it is usual
#   databases  what its logins may do, by connection and table: the columns of each verb
#   tokens     the OAuth scopes it may ask for, by audience
#   secrets    the keys it may read, by secret
#   dynamic    other Vault paths that answer with a lease
#   tasks      for an agent that works on one customer at a time: its customers, by the task in the context; every
#              database privilege is then to be limited to the rows of that customer
package orchestrator

import rego.v1

agents := {
	"feedback-assistant": {
		"actions": {"postgres.query", "postgres.execute", "http.request", "slack.post_message"},
		"sql": {"select", "insert"},
		"origins": {"http://127.0.0.1:*", "http://localhost:*", "https://translation.example.com"},
		"channels": {"#support"},
		"programs": set(),
		"callables": set(),
		"databases": {"support": {
			"public.customer_feedback": {"select": {"comment", "created_at", "id", "kind"}},
			"public.feedback_translation": {"insert": {"feedback_id", "language", "run_id", "translation"}},
		}},
		"tokens": {"translation-api": {"translate"}},
		"secrets": {"slack/support-bot": {"token"}},
		"dynamic": set(),
	},
	"feedback-enricher": {
		"actions": {"postgres.query", "slack.post_message"},
		"sql": {"select"},
		"origins": set(),
		"channels": {"#support"},
		"programs": set(),
		"callables": set(),
		"databases": {"support": {"public.customer_feedback": {"select": {"city", "id", "loyalty_tier"}}}},
		"tokens": {},
		"secrets": {"slack/support-bot": {"token"}},
		"dynamic": set(),
	},
	"support-agent": {
		"actions": {"postgres.query", "postgres.execute"},
		"sql": {"select", "insert"},
		"origins": set(),
		"channels": set(),
		"programs": set(),
		"callables": set(),
		"databases": {"support": {
			"public.customer_feedback": {"select": {"comment", "created_at", "id", "kind"}},
			"public.ticket": {"insert": {"customer_id", "id", "messages", "subject"}},
		}},
		"tokens": {},
		"secrets": {},
		"dynamic": set(),
		"tasks": {"crm:write_ticket": {1234}},
	},
}

# Who may do what. One entry an agent; what is not written here is not allowed.
#
#   actions    the actions its steps may take
#   sql        the SQL verbs its statements may use
#   origins    where its HTTP requests may go; a port of `*` is any port
#   channels   where it may post
#   programs, callables   what `exec` and `python` may start
#   databases  what its logins may do, by connection and table: the columns of each verb
#   tokens     the OAuth scopes it may ask for, by audience
#   secrets    the keys it may read, by secret
#   dynamic    other Vault paths that answer with a lease
package orchestrator

import rego.v1

agents := {"feedback-assistant": {
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
}}

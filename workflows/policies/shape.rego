# What may stand in data.json: who may do what. One entry an agent; what is not written there is not allowed.
#
#   actions    the actions its steps may take
#   sql        the SQL verbs its statements may use
#   origins    where its HTTP requests may go; a port of `*` is any port
#   channels   where it may post
#   programs   what `exec` may run: "FILE" of the system, or "FILE@sha256:CONTENT" of any other file or script
#   callables  what `python` may call: "MODULE:FUNCTION@sha256:CONTENT", and "FILE@sha256:CONTENT" of its packages
#   folders    where programs may run (`cwd`), and modules be looked for first (`path`), other than where it is usual
#   databases  what its logins may do, by connection, table and verb: the columns
#   tokens     the OAuth scopes it may ask for, by audience
#   oauth2     the OAuth scopes it may ask other authorization servers for, by issuer
#   mailboxes  for an agent that works on one mailbox at a time: its mailboxes; the one in the context is to be the subject
#              of every token, and the limit of every database privilege
#   details    what its tokens may be for (`authorization_details`): the actions, by type
#   secrets    the keys it may read, by secret
#   dynamic    other Vault paths that answer with a lease
#   tasks      for an agent that works on one customer at a time: its customers, by the task in the context; every
#              database privilege is then to be limited to the rows of that customer, and every token to it by details
#   opens      the tasks that it may open and call the tools of, for an agent that takes no steps
#
# An entry that has another shape allows nothing: a member that is misspelt would limit nothing, and `in` looks for
# the values of an object, too.
package orchestrator

import rego.v1

lists := {"actions", "sql", "origins", "channels", "programs", "callables", "folders", "dynamic", "opens", "mailboxes"}

lists_by_name := {"tokens", "oauth2", "details", "secrets", "tasks"}

misshapen contains "data.json has no object `agents`" if not is_object(data.agents)

misshapen contains sprintf("%s is not an object", [entry]) if {
	value := agent
	not is_object(value)
}

misshapen contains sprintf("%s has a member `%v` that nobody knows", [entry, field]) if {
	is_object(agent)
	some field, _ in agent
	not field in (lists | lists_by_name) | {"databases"}
}

misshapen contains sprintf("%s, `%s`: is not a list of texts", [entry, field]) if {
	is_object(agent)
	some field in lists
	not texts(object.get(agent, field, []))
}

misshapen contains sprintf("%s, `%s`: is not an object", [entry, field]) if {
	is_object(agent)
	some field in lists_by_name | {"databases"}
	not is_object(object.get(agent, field, {}))
}

misshapen contains sprintf("%s, `%s`, `%s`: is not a list of texts", [entry, field, name]) if {
	some field in lists_by_name - {"tasks"}
	is_object(agent[field])
	some name, value in agent[field]
	not texts(value)
}

misshapen contains sprintf("%s, `tasks`, `%s`: is not a list of customers", [entry, task]) if {
	is_object(agent.tasks)
	some task, value in agent.tasks
	not customers(value)
}

misshapen contains sprintf("%s, `databases`, `%s`: is not columns by table and verb", [entry, connection]) if {
	is_object(agent.databases)
	some connection, tables in agent.databases
	not columns_by_table_and_verb(tables)
}

entry := sprintf("data.json, agent `%s`", [input.agent])

texts(value) if {
	is_array(value)
	every text in value {
		is_string(text)
	}
}

customers(value) if {
	is_array(value)
	every customer in value {
		type_name(customer) in {"number", "string"}
	}
}

columns_by_table_and_verb(tables) if {
	is_object(tables)
	every verbs in tables {
		is_object(verbs)
		every columns in verbs {
			texts(columns)
		}
	}
}

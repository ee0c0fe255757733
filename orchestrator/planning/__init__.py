"""What can be said of a workflow offline: its graph, the plan of its grants, lint, the question to a policy."""

"""The HTTP API for agents: tasks are opened, tools called and credentials given back. Needs the extra `api`."""

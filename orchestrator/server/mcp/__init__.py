"""The door for models: the tools of a task as those of an MCP server, over stdio and HTTP. Needs the extra `mcp`."""

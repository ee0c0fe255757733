"""The command `orchestrator`: arguments in, exit codes out; no logic."""

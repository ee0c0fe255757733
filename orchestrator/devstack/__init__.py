"""Real embedded servers and sample data, for `orchestrator dev`, the demo and the tests."""

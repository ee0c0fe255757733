"""What `orchestrator init` writes: one workflow, or a folder with all that leads to a first run."""

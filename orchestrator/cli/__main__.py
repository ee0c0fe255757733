"""`python -m orchestrator.cli`: the same as the command `orchestrator`."""

from orchestrator.cli.entry import run

if __name__ == "__main__":
    run()

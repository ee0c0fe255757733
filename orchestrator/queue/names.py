"""What DBOS knows us by."""

from __future__ import annotations

SCHEMA = "orchestrator_dbos"
"""Where DBOS's tables are, in the ledger's database."""

APPLICATION = "orchestrator"

WORKFLOW = "orchestrator.run"
"""The one DBOS workflow that there is: to carry out the run whose id it has, from wherever the ledger says it is."""

FORMAT = "orchestrator-run-1"
"""DBOS's application version. It is that of what is agreed between who enqueues and who carries out, and not of the
release: a DBOS executor leaves alone what waits for another version, and every upgrade would strand it."""

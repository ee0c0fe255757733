"""The page of `orchestrator serve --ui`: runs, leases and decisions, as the ledger has them."""

"""The history as evidence: what others can check who trust neither this program nor whoever keeps the ledger."""

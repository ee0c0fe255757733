"""The durable, append-only history: events, the life of a lease, how a ledger is opened."""

"""The logs of others, held against the ledger: what Vault issued and revoked, which logins PostgreSQL made."""

"""The one session with Vault: login, child tokens, issuance, renewal, revocation, retries."""

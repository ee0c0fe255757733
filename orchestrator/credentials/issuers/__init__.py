"""One module for each kind of grant: how Vault is asked for it."""

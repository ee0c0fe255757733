"""Vault: policies, roles and connections, as its administrator."""

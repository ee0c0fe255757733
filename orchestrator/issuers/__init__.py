"""Issuers that are not Vault, as an admin declares them."""

"""Certificates for keys that are made here: of TLS and of SSH."""

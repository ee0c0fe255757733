"""What people name on the command line, found in the ledger: by the beginning of an id, and for completion."""

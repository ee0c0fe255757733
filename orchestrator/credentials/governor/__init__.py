"""How many leases of a connection may be open at once, over all processes: who waits, and whose turn it is."""

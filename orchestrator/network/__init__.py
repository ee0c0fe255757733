"""How servers are reached: which connections stay on this machine, and whom to trust on the others."""

"""What the settings come to: a login at Vault, a policy engine, and the services of a process."""

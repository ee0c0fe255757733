"""Who says that a login is gone: its database, and its own password."""

"""`postgres.query` and `postgres.execute`."""

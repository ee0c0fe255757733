"""One step of a run: its attempts, each with its own credentials, also for each item of a list."""

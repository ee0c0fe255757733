"""The scheduler: when a workflow is due, what is done about it, and the runs that follow."""

"""Tasks: what agents open, call tools in, and close. Every call is a run of one step, carried out as all runs are."""

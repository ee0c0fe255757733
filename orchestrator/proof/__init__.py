"""Showing, on the real servers, that an issued credential can do what was declared and nothing else."""

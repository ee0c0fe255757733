"""Runs that are put into the shared queue, and a worker's carrying them out."""

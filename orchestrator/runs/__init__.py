"""One run: its attempts, the walk over its graph, how it ends, and the sign of life of its process."""

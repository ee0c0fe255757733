"""One log over the histories of all runs: a Merkle tree, whose root says what has been, and nothing else."""

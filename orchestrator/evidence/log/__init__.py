"""The signed log: checkpoints of a Merkle tree over the histories of all runs, and proofs of what is in it."""

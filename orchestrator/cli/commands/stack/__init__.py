"""Getting started: something to start from, servers of one's own, and what the product does on them."""

"""Trying it: servers of one's own, and what the product does on them."""

"""CEL: what of it is let through, and the process of its own in which Google's engine runs."""

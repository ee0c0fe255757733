"""Closing what others left open, and going on where another process died."""

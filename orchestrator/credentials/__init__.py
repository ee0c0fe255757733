"""Credentials of one step attempt: opened, kept alive, delivered to the step, and taken back."""

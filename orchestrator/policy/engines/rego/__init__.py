"""Rego, evaluated in this process."""

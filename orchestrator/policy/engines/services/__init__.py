"""Policies that a service decides by: OPA, and what speaks OpenID AuthZEN."""

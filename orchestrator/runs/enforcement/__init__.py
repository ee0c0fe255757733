"""Obeying the policy: what may be evaluated, and what a decision leaves of a step."""

"""Obeying the policy: what may be evaluated, what a decision leaves of a step, who is told."""

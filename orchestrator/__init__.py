"""A workflow runner in which no step owns a standing secret.

For each step of a declared workflow the orchestrator asks Vault (or OpenBao) for just-in-time,
time-bound, minimal credentials, hands them to that step alone, revokes them when the step ends
and records the whole chain.
"""

__version__ = "0.1.0"

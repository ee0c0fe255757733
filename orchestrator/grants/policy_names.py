"""The names under which provisioning installs Vault policies and the runtime asks for them."""

from __future__ import annotations


def step_policy_name(workflow: str, step: str) -> str:
    """The policy of one step: it may read exactly the credential paths of the step's own grants."""
    return f"step/{workflow}/{step}"


def sweep_policy_name(connection: str) -> str:
    """The policy under which leftovers of a step are looked for in one database."""
    return f"sweep/{connection}"


def sweep_role_name(connection: str) -> str:
    """The Vault database role whose logins may call the sweep functions, and do nothing else."""
    return f"orchestrator-sweep-{connection}"

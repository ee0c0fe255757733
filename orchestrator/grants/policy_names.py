"""The names under which provisioning installs things in Vault and the runtime asks for them."""

from __future__ import annotations

from typing import Literal

BrokerDuty = Literal["sweep", "bind"]
"""What the broker itself does in a database, each with a narrow login of its own: looking for leftover logins
of a step, and telling the database the values of a step's row limits."""

BROKER_DUTIES: tuple[BrokerDuty, ...] = ("sweep", "bind")

SIGNING = "sign"
"""What the server does with a transit key for the grants of the profile `workflow`."""


def step_policy_name(workflow: str, step: str) -> str:
    """The policy of one step: it may read exactly the credential paths of the step's own grants."""
    return f"step/{workflow}/{step}"


def token_role_name(policy: str) -> str:
    """The token role that gives a child token this one policy; names of token roles may have no slash."""
    return policy.replace("/", ".")


def duty_policy_name(duty: BrokerDuty, connection: str) -> str:
    """The policy under which the broker does its duty in one database."""
    return f"{duty}/{connection}"


def signer_policy_name(key: str) -> str:
    """The policy under which the server itself signs with one transit key."""
    return f"{SIGNING}/{key}"


def duty_role_name(duty: BrokerDuty, connection: str) -> str:
    """The Vault database role whose logins may call the functions of that duty, and do nothing else."""
    return f"orchestrator-{duty}-{connection}"

"""`orchestrator leases deny`: ending the sessions of a role that nobody can take back one by one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from orchestrator.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from orchestrator.issuers.aws import AwsAccount
    from orchestrator.provision.aws.denial import Denial


def deny_sessions(issuer: str, role: str, agent: str | None, declarations: Path, *, lift: bool, as_json: bool) -> None:
    """Deny, or lift, and say what came of it. Raises typer.Exit with 6 where nothing was seen to be refused."""
    from orchestrator.cli import failures, interruption
    from orchestrator.cli.connect import vault_admin
    from orchestrator.cli.display.json_output import print_json
    from orchestrator.cli.display.terminal import console
    from orchestrator.clock import SystemClock
    from orchestrator.provision.aws.denial import Denier

    account = _account(issuer, declarations)
    named = account.role(role)
    if named is None:
        raise UsageError(f"`{issuer}` has no role `{role}`", hint=f"there is: {', '.join(sorted(account.roles))}")
    with vault_admin() as admin:
        denier = Denier(account, named, admin, SystemClock(), failures.note)
        if lift:
            policy = interruption.run(lambda: denier.lift(agent))
            if as_json:
                print_json({"role": named.arn, "policy": policy, "lifted": True})
            else:
                console().print(f"{policy} of {named.arn} is taken away", markup=False, highlight=False)
            return
        denial = interruption.run(lambda: denier.deny(agent))
    if as_json:
        print_json(denial)
    else:
        console().print(_told(denial), markup=False, highlight=False)
    if denial.evidence != "refused":
        raise typer.Exit(int(ExitCode.UNCONFIRMED))


def _told(denial: Denial) -> str:
    whose = f" that were issued for {denial.agent}" if denial.agent else ""
    return (
        f"the sessions of {denial.role}{whose} from before {denial.before:%Y-%m-%d %H:%M:%S} UTC are denied "
        f"({denial.policy}); {denial.note}"
    )


def _account(issuer: str, declarations: Path) -> AwsAccount:
    from orchestrator.issuers.aws import AwsAccount
    from orchestrator.issuers.declared import load_issuers

    found = load_issuers(declarations / "declarations.yaml")
    account = found.get(issuer)
    if not isinstance(account, AwsAccount):
        known = [name for name, each in found.items() if isinstance(each, AwsAccount)]
        raise UsageError(f"there is no AWS account `{issuer}`", hint=f"there is: {', '.join(sorted(known)) or 'none'}")
    return account

"""Looking in the target database for logins of a step that Vault does not know of, and dropping them.

Vault can create a login role and lose the lease (its own request was cancelled, it was sealed, it
crashed in between): no Vault call can remove such a role. Its name carries the step key, and the
functions `orchestrator.sweep` and `orchestrator.ephemeral_roles`, installed by provisioning, drop
and list exactly the roles of one step key.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from orchestrator.credentials.broker import Broker
from orchestrator.credentials.types import Attempt
from orchestrator.errors import Unreachable
from orchestrator.grants.credential import Credential
from orchestrator.grants.policy_names import sweep_policy_name, sweep_role_name
from orchestrator.grants.scope import Scope
from orchestrator.ledger.ids import new_step_key

_SWEEP_SECONDS = 30
"""How long one sweep may take; also the life of its login."""


@dataclass(frozen=True, slots=True)
class DatabaseSweeper:
    """Sweeps with a short-lived login of its own, which goes through the broker and the ledger like any other."""

    broker: Broker
    endpoints: Mapping[str, str]

    async def sweep(self, attempt: Attempt, connection: str, *, deadline: float) -> tuple[str, ...]:
        """Drop every login of the attempt's step key and return their names, sorted.

        Raises Unreachable, GrantRefused or VaultUnreachable where it cannot be said that none is left.
        """
        role = sweep_role_name(connection)
        scope = Scope("(sweep)", "database", f"database/creds/{role}", _SWEEP_SECONDS, connection=connection, role=role)
        sweeping = replace(
            attempt,
            step_key=new_step_key("sweep"),
            scopes=(scope,),
            policy=sweep_policy_name(connection),
            deadline=min(deadline, self.broker.clock.monotonic() + _SWEEP_SECONDS - 1),
        )
        async with self.broker.open(sweeping) as credentials:
            return await self._run(credentials[scope.name], attempt.step_key, connection)

    async def _run(self, credential: Credential, step_key: str, connection: str) -> tuple[str, ...]:
        import psycopg

        endpoint = self.endpoints.get(connection)
        if endpoint is None:
            raise Unreachable(f"no endpoint is configured for the connection `{connection}`")
        try:
            async with await psycopg.AsyncConnection.connect(
                endpoint,
                user=credential.fields["username"].reveal(),
                password=credential.fields["password"].reveal(),
                application_name=f"orchestrator sweep {step_key}",
                connect_timeout=5,
                autocommit=True,
                options=f"-c statement_timeout={_SWEEP_SECONDS}s",
            ) as session:
                dropped = await (await session.execute("SELECT orchestrator.sweep(%s)", [step_key])).fetchall()
                left = await (await session.execute("SELECT orchestrator.ephemeral_roles(%s)", [step_key])).fetchall()
        except psycopg.Error as error:
            raise Unreachable(f"the connection `{connection}` could not be swept: {type(error).__name__}") from None
        if left:
            raise Unreachable(f"logins of {step_key} are left in `{connection}`")
        return tuple(sorted(row[0] for row in dropped))

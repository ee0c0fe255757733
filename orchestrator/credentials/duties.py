"""What the broker itself does in a target database, each duty with a short-lived login of its own.

*Sweep*: Vault can create a login role and lose the lease (its own request was cancelled, it was
sealed, it crashed in between): no Vault call can remove such a role. Its name carries the step key,
and the functions `orchestrator.sweep` and `orchestrator.ephemeral_roles` drop and list exactly the
roles of one step key; `orchestrator.sweep_expired` drops those, of whatever step, that are no longer
valid. What cannot be dropped is disabled, and the database's reason is told.

*Bind*: the values of a step's row limits are told to the database by `orchestrator.bind`, once for a
login, before the step has it. Until then the login sees no row.

Both are done at the primary. Where the steps' endpoint is a standby of it, a bind waits until the values are there.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from orchestrator.credentials.arrival import unknown_login
from orchestrator.credentials.broker import Broker
from orchestrator.credentials.standby import at_standby, is_standby, not_known, replayed
from orchestrator.credentials.types import Attempt, ExpiredLogins, LoginLeft, LoginsLeft
from orchestrator.errors import Unreachable
from orchestrator.grants.policy_names import BrokerDuty, duty_policy_name, duty_role_name
from orchestrator.grants.scope import Scope
from orchestrator.ledger.ids import new_step_key

if TYPE_CHECKING:
    import psycopg

_DUTY_SECONDS = 30
"""How long one duty may take; also the life of its login. Of a shorter time half is kept for taking the login back."""

_LEAST_SECONDS = 0.25
"""With less time than that no duty is begun: its own login could not be taken back in time."""


@dataclass(frozen=True, slots=True)
class DatabaseDuties:
    """Every login goes through the broker and the ledger like any other."""

    broker: Broker
    endpoints: Mapping[str, str]
    primaries: Mapping[str, str] = field(default_factory=dict)
    """Where the duties are done instead, by connection, where the endpoint is a standby."""

    async def sweep(self, attempt: Attempt, connection: str, *, deadline: float) -> tuple[str, ...]:
        """Drop every login of the attempt's step key and return their names, sorted.

        Raises LoginsLeft where one cannot be dropped, and Unreachable, GrantRefused or VaultUnreachable
        where it cannot be said that none is left.
        """
        step_key = attempt.step_key
        async with self._session("sweep", attempt, connection, deadline) as session:
            rows = await (
                await session.execute("SELECT login, problem FROM orchestrator.sweep(%s)", [step_key])
            ).fetchall()
            left = await (await session.execute("SELECT orchestrator.ephemeral_roles(%s)", [step_key])).fetchall()
        if left:
            problems = {str(login): str(problem) for login, problem in rows if problem}
            raise LoginsLeft(
                connection,
                tuple(LoginLeft(str(login), problems.get(login, "it was created meanwhile")) for (login,) in left),
            )
        return tuple(sorted(str(login) for login, _ in rows))

    async def sweep_expired(self, attempt: Attempt, connection: str, *, deadline: float) -> ExpiredLogins:
        """Drop the ephemeral logins that are no longer valid by the database's own clock, whatever their step.

        Where there are very many the rest is left to the next call. Raises Unreachable, GrantRefused or
        VaultUnreachable.
        """
        async with self._session("sweep", attempt, connection, deadline) as session:
            rows = await (await session.execute("SELECT login, problem FROM orchestrator.sweep_expired()")).fetchall()
        return ExpiredLogins(
            dropped=tuple(sorted(str(login) for login, problem in rows if problem is None)),
            left=tuple(LoginLeft(str(login), str(problem)) for login, problem in rows if problem is not None),
        )

    async def bind(
        self, attempt: Attempt, connection: str, login: str, values: Sequence[str], *, deadline: float
    ) -> None:
        """Set the row limits of a login, numbered from 1. Raises Unreachable, GrantRefused or VaultUnreachable."""
        async with self._session("bind", attempt, connection, deadline) as session:
            await session.cursor().executemany(
                "SELECT orchestrator.bind(%s, %s, %s)",
                [(login, number, value) for number, value in enumerate(values, 1)],
            )
            if connection in self.primaries:
                await replayed(session, self.endpoints[connection], connection)

    @asynccontextmanager
    async def _session(
        self, duty: BrokerDuty, attempt: Attempt, connection: str, deadline: float
    ) -> AsyncIterator[psycopg.AsyncConnection]:
        import psycopg

        endpoint = self.primaries.get(connection) or self.endpoints.get(connection)
        if endpoint is None:
            raise Unreachable(f"no endpoint is configured for the connection `{connection}`")
        role = duty_role_name(duty, connection)
        scope = Scope(f"({duty})", "database", f"database/creds/{role}", _DUTY_SECONDS, connection, role)
        now = self.broker.clock.monotonic()
        half = (deadline - now) / 2
        if half < _LEAST_SECONDS:
            raise _too_late(duty)
        until = now + min(half, _DUTY_SECONDS - 1)
        own = replace(
            attempt,
            step_key=new_step_key(duty),
            scopes=(scope,),
            policy=duty_policy_name(duty, connection),
            deadline=until,
        )
        broker = replace(self.broker, grace=min(self.broker.grace, half))
        async with _until(until, duty), broker.open(own) as credentials:
            login = credentials[scope.name].fields
            try:
                async with await psycopg.AsyncConnection.connect(
                    endpoint,
                    user=login["username"].reveal(),
                    password=login["password"].reveal(),
                    application_name=f"orchestrator {duty} {attempt.step_key}",
                    connect_timeout=5,
                    client_encoding="UTF8",
                    autocommit=True,
                    options=f"-c statement_timeout={_DUTY_SECONDS}s",
                ) as session:
                    if is_standby(session):
                        raise at_standby(duty, connection)
                    yield session
            except psycopg.Error as error:
                if unknown_login(error, login["username"].reveal()):
                    raise not_known(duty, connection) from None
                raise Unreachable(
                    f"the orchestrator's own {duty} in `{connection}` failed: {type(error).__name__}",
                    hint="is the database up, and is it provisioned? run `orchestrator provision check`",
                ) from None


@asynccontextmanager
async def _until(deadline: float, duty: str) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout_at(deadline):
            yield
    except TimeoutError:
        raise _too_late(duty) from None


def _too_late(duty: str) -> Unreachable:
    return Unreachable(f"there was no time left for the orchestrator's own {duty}")

"""What the broker itself does in a target database, each duty with a short-lived login of its own.

*Sweep*: Vault can create a login role and lose the lease (its own request was cancelled, it was
sealed, it crashed in between): no Vault call can remove such a role; and what it says is gone may
still be there. The name of a login carries the step key, and
the functions `orchestrator.sweep` and `orchestrator.ephemeral_roles` drop and list exactly the roles
of one step key; `orchestrator.sweep_expired` drops those, of whatever step, that are no longer valid.
What cannot be dropped is disabled, and the database's reason is told.

*Bind*: the values of a step's row limits are told to the database by `orchestrator.bind`, once for a
login, before the step has it. Until then the login sees no row.

Both are done at the primary. Where the steps' endpoint is a standby of it, a bind waits until the values are there.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from orchestrator.credentials.arrival import unknown_login
from orchestrator.credentials.broker import Broker
from orchestrator.credentials.standby import at_standby, not_known, replayed
from orchestrator.credentials.types import Attempt, LeasesOfRun, LoginLeft, SweptLogins
from orchestrator.credentials.witnesses.database import LINGER_SECONDS, MAY_NAME_SYSTEM, Looking, Refused, Witness
from orchestrator.errors import Unreachable
from orchestrator.grants.policy_names import BrokerDuty, duty_policy_name, duty_role_name
from orchestrator.grants.scope import Scope
from orchestrator.ledger.ids import new_step_key
from orchestrator.network.postgres import STRINGS, protected, refusal_hint, why, without_settings
from orchestrator.network.postgres_settings import Answer, beginning

if TYPE_CHECKING:
    import psycopg

_SWEEP = f"""\
SELECT swept.login, swept.problem, {MAY_NAME_SYSTEM} FROM (SELECT) AS always LEFT JOIN LATERAL (
    SELECT each.login, each.problem FROM unnest(%s::text[]) AS step_key, orchestrator.sweep(step_key) AS each
) AS swept ON true"""  # noqa: S608 -- constants
_EXPIRED = "SELECT login, problem FROM orchestrator.sweep_expired()"
_BIND = "SELECT orchestrator.bind(%s, %s, %s)"

_KEYS_AT_ONCE = 100
"""Step keys in one statement: what it has dropped stays dropped if a later one takes too long."""

_DUTY_SECONDS = 30
"""How long one duty may take; also the life of its login. Of a shorter time half is kept for taking the login back."""

_SETTINGS = {
    "search_path": "pg_catalog, pg_temp",
    STRINGS: "on",
    "statement_timeout": f"{_DUTY_SECONDS}s",
    "default_transaction_isolation": "read committed",  # what was created meanwhile is seen
}
"""Of each transaction of a duty, whatever the server, the database or the endpoint have for others."""

_LEAST_SECONDS = 0.25
"""With less time than that no duty is begun: its own login could not be taken back in time."""


@dataclass(frozen=True, slots=True)
class SweepSession:
    """A session of the orchestrator's own login for sweeps."""

    connection: str
    looking: Looking

    async def sweep(self, step_keys: Collection[str]) -> SweptLogins:
        """As `Duties.sweep` has it, over this session. Raises psycopg.Error, which `sweeping` turns into ours."""
        keys = sorted(step_keys)
        dropped: list[str] = []
        left: dict[str, str] = {}
        witnesses: dict[str, Witness] = {}
        for begin in range(0, len(keys), _KEYS_AT_ONCE):
            some = keys[begin : begin + _KEYS_AT_ONCE]
            swept, there, witness = await self._swept(some)
            for login, problem in swept:
                if problem is None:
                    dropped.append(login)
                else:
                    left[login] = problem
            for login in there:
                left.setdefault(login, "it was created meanwhile")
            witnesses |= dict.fromkeys(some, witness)
        return SweptLogins(
            dropped=tuple(sorted(set(dropped) - left.keys())),
            left=tuple(LoginLeft(login, problem) for login, problem in sorted(left.items())),
            witnesses=witnesses,
        )

    async def _swept(self, keys: Sequence[str]) -> tuple[list[tuple[str, str | None]], list[str], Witness]:
        """What was dropped or could not be, what is left, and who says so: in one transaction."""
        session = self.looking.session
        try:
            async with _transaction(session, self.connection):
                rows = await (await session.execute(_SWEEP, [keys])).fetchall()
                left, witness = await self.looking.left(keys, rows[0][2])
        except Refused:  # of the facts about itself, which are not worth a confirmation
            await session.execute("ROLLBACK")
            return await self._swept(keys)
        swept = [(str(login), problem) for login, problem, _ in rows if login is not None]
        return swept, left, witness


@dataclass(frozen=True, slots=True)
class DatabaseDuties:
    """Every login goes through the broker and the ledger like any other."""

    broker: Broker
    endpoints: Mapping[str, str]
    primaries: Mapping[str, str] = field(default_factory=dict)
    """Where the duties are done instead, by connection, where the endpoint is a standby."""

    async def sweep(
        self, attempt: Attempt, connection: str, step_keys: Collection[str], *, deadline: float
    ) -> SweptLogins:
        """Drop every login of these step keys; when this returns only those in `left` are there, disabled.

        Raises Unreachable, GrantRefused or VaultUnreachable where it cannot be said that no other is left.
        """
        async with self.sweeping(attempt, connection, deadline=deadline) as session:
            return await session.sweep(step_keys)

    @asynccontextmanager
    async def sweeping(self, attempt: Attempt, connection: str, *, deadline: float) -> AsyncIterator[SweepSession]:
        """A login with which sweeps are asked, for half of the time that there is, and half a minute at most.

        Raises Unreachable, GrantRefused or VaultUnreachable, also for what goes wrong while it is open.
        """
        async with self._session("sweep", attempt, connection, deadline) as session:
            patience = min(LINGER_SECONDS, (deadline - self.broker.clock.monotonic()) / 8)
            yield SweepSession(connection, Looking(session, patience))

    async def sweep_expired(self, attempt: Attempt, connection: str, *, deadline: float) -> SweptLogins:
        """Drop the ephemeral logins that are no longer valid by the database's own clock, whatever their step.

        Where there are very many the rest is left to the next call. Raises Unreachable, GrantRefused or
        VaultUnreachable.
        """
        async with (
            self._session("sweep", attempt, connection, deadline) as session,
            _transaction(session, connection),
        ):
            rows = await (await session.execute(_EXPIRED)).fetchall()
        return SweptLogins(
            dropped=tuple(sorted(str(login) for login, problem in rows if problem is None)),
            left=tuple(LoginLeft(str(login), str(problem)) for login, problem in rows if problem is not None),
        )

    async def bind(
        self, attempt: Attempt, connection: str, login: str, values: Sequence[str], *, deadline: float, run: LeasesOfRun
    ) -> None:
        """Set the row limits of a login, numbered from 1. Raises Unreachable, GrantRefused or VaultUnreachable."""
        async with self._session("bind", attempt, connection, deadline, run) as session:
            async with _transaction(session, connection):
                each = [(login, number, value) for number, value in enumerate(values, 1)]
                await session.cursor().executemany(_BIND, each)
            if connection in self.primaries:
                await replayed(session, self.endpoints[connection], connection)

    @asynccontextmanager
    async def _session(
        self, duty: BrokerDuty, attempt: Attempt, connection: str, deadline: float, run: LeasesOfRun | None = None
    ) -> AsyncIterator[psycopg.AsyncConnection]:
        import psycopg
        from psycopg.conninfo import make_conninfo

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
            max_ttl=None,
        )
        broker = replace(self.broker, grace=min(self.broker.grace, half))
        # What was found counts even if taking the login back takes longer: that has a limit of its own.
        async with AsyncExitStack() as stack, _until(until, duty):
            login = (await stack.enter_async_context(broker.open(own, run=run)))[scope.name].fields
            try:
                connected = await psycopg.AsyncConnection.connect(
                    protected(without_settings(endpoint)[0], issued=True),
                    user=login["username"].reveal(),
                    password=login["password"].reveal(),
                    application_name=f"orchestrator {duty} {attempt.step_key}",
                    connect_timeout=5,
                    client_encoding="UTF8",
                    autocommit=True,
                    prepare_threshold=None,  # the next transaction may be another session's
                )
                yield await stack.enter_async_context(connected)
            except psycopg.errors.FeatureNotSupported:
                raise at_standby(duty, connection) from None
            except psycopg.Error as error:
                if unknown_login(error, login["username"].reveal()):
                    raise not_known(duty, connection) from None
                own_words = make_conninfo(password=login["password"].reveal())
                said = error.diag.message_primary or why(error, own_words)
                raise Unreachable(
                    f"the orchestrator's own {duty} in `{connection}` failed: {said}",
                    hint=refusal_hint(error)
                    or "is the database up, and is it provisioned? run `orchestrator provision check`",
                ) from None


@asynccontextmanager
async def _transaction(session: psycopg.AsyncConnection, connection: str) -> AsyncIterator[None]:
    """One transaction of a duty, committed when the block ends well; else the session is to be closed.

    Raises Unreachable where the session is not the duty's own, and psycopg.Error.
    """
    begun = await session.execute(beginning(session, _SETTINGS, read_only=False))
    begun.nextset()
    if problem := Answer.of(session, await begun.fetchone()).problem():
        raise Unreachable(f"the orchestrator's own duty in `{connection}` was not done: {problem[0]}", hint=problem[1])
    yield
    await session.execute("COMMIT")


@asynccontextmanager
async def _until(deadline: float, duty: str) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout_at(deadline):
            yield
    except TimeoutError:
        raise _too_late(duty) from None


def _too_late(duty: str) -> Unreachable:
    return Unreachable(f"there was no time left for the orchestrator's own {duty}")

"""One connection to PostgreSQL for one step: opened as the step's login, closed with it, errors made safe."""

from __future__ import annotations

import asyncio
import logging
import math
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from orchestrator.actions.base import StepContext
from orchestrator.actions.references import credential_of, field_of, redactor_for, within_deadline
from orchestrator.credentials.arrival import WAIT_SECONDS, Arrival, unknown_login
from orchestrator.errors import DatabaseUnreachable, StepFailed
from orchestrator.grants.credential import Credential
from orchestrator.network.inflow import bounded_inflow
from orchestrator.network.postgres import STRINGS, protected, reads_as_parsed, refusal_hint, without_settings
from orchestrator.network.postgres_settings import Answer, beginning
from orchestrator.redaction.redactor import Redactor

if TYPE_CHECKING:
    import psycopg

log = logging.getLogger(__name__)

_ENCODING = {
    "22P05": "the encoding of the database has no such character: `SHOW server_encoding` says which it is",
    "22021": "a database whose encoding is SQL_ASCII keeps bytes of any encoding: convert them in the SQL, such as "
    "`convert_from(convert(convert_to(name, 'SQL_ASCII'), 'LATIN1', 'UTF8'), 'SQL_ASCII')`",
}
"""SQLSTATE of characters that cannot be brought from one side to the other, and what to do. Every session of ours
asks for UTF-8; the server converts (PostgreSQL manual, 23.3)."""

MAX_INFLOW = 16 << 20
"""Bytes that a database may send to a step which does not ask for rows: outcomes, notices and errors."""

_CONNECTION_LOST = ("08", "57P")
"""SQLSTATE classes: connection exceptions, and shutdown of the server or of the session by an operator."""


def database_credential(context: StepContext, grant: str | None) -> Credential:
    """The credential of the named database grant, or of the step's only one."""
    if grant is not None:
        credential = credential_of(context, grant)
        if credential.kind != "database":
            raise StepFailed(f"grant `{grant}` is of kind {credential.kind}", hint="name a grant of kind `database`")
        return credential
    found = [credential for credential in context.credentials.values() if credential.kind == "database"]
    if len(found) != 1:
        raise StepFailed(
            f"the step holds {len(found)} database credentials", hint="name one of its grants with `grant`"
        )
    return found[0]


@asynccontextmanager
async def transaction(
    context: StepContext,
    grant: str | None,
    *,
    read_only: bool,
    max_inflow: int = MAX_INFLOW,
    server_messages: bool = False,
) -> AsyncIterator[psycopg.AsyncConnection[tuple[Any, ...]]]:
    """A connection inside one transaction, committed when the block ends well.

    Raises StepFailed: `connection`, `timeout`, `permission` (SQLSTATE 42501), `database`, or `output` where the server
    sends more than `max_inflow` bytes in all. `server_messages`: what the server says is part of the error. When the
    block is left in any other way the query is cancelled on the server and the connection closed.
    """
    import psycopg

    credential = database_credential(context, grant)
    redactor = redactor_for(context)
    async with within_deadline(context, "the database"), AsyncExitStack() as bounds:
        try:
            connection = await _connect(context, credential)
        except psycopg.Error as error:
            raise connect_failure(error, credential, redactor) from None
        inflow = await bounds.enter_async_context(bounded_inflow(connection.fileno(), max_inflow))
        try:
            await _begin(connection, context, credential, read_only=read_only)
            yield connection
            await connection.execute("COMMIT")
        except psycopg.Error as error:
            raise (
                too_much(max_inflow) if inflow.exceeded else query_failure(error, redactor, told=server_messages)
            ) from None
        except UnicodeEncodeError:
            raise StepFailed(
                "the statement cannot be sent: a parameter is not valid Unicode",
                kind="database",
                hint="half of a surrogate pair (`\\ud83d`) is no character: correct what makes the text",
            ) from None
        finally:
            await connection.close()


def check_strings(connection: psycopg.AsyncConnection[tuple[Any, ...]]) -> None:
    """Raise StepFailed where the session would read more out of the statement than the policy was told of it."""
    if not reads_as_parsed(connection.info.parameter_status(STRINGS)):
        raise StepFailed(
            f"the session has {STRINGS} switched off, so that the statement may mean something else to the server",
            kind="database",
            hint="leave that setting as it is",
        )


async def _begin(
    connection: psycopg.AsyncConnection[tuple[Any, ...]],
    context: StepContext,
    credential: Credential,
    *,
    read_only: bool,
) -> None:
    """Begin the transaction with the settings of the session, as the step's own login, in one message."""
    import psycopg

    from orchestrator.actions.postgres.values import SESSION

    _, given = without_settings(context.endpoints[credential.connection or ""])
    settings = {
        "TimeZone": "UTC",
        **given,
        "statement_timeout": str(math.ceil(context.remaining() * 1000)),
        "cursor_tuple_fraction": "1",
        STRINGS: "on",
        **SESSION,
    }
    try:
        begun = await connection.execute(beginning(connection, settings, read_only=read_only))
        begun.nextset()
        answer = Answer.of(connection, await begun.fetchone())
    except psycopg.errors.FeatureNotSupported:
        raise StepFailed(
            f"the endpoint `{credential.connection}` is a standby, in which nothing can be written",
            kind="database",
            hint="name a connection whose endpoint is the primary",
        ) from None
    except (
        psycopg.ProgrammingError,
        psycopg.DataError,
        psycopg.errors.CantChangeRuntimeParam,
        psycopg.errors.ProtocolViolation,
    ) as error:  # in the server's own words: the author's statement has not come to it yet
        raise StepFailed(
            f"the database `{credential.connection}` does not begin a transaction with the settings of the session: "
            f"{redactor_for(context).redact(error.diag.message_primary or type(error).__name__)}",
            kind="database",
            hint="are the `options` of the endpoint settings of this server, and does a pooler in between keep a "
            "transaction together?",
        ) from None
    if problem := answer.problem():
        raise StepFailed(problem[0], kind="database", hint=problem[1])


async def _connect(context: StepContext, credential: Credential) -> psycopg.AsyncConnection[tuple[Any, ...]]:
    import psycopg
    from psycopg.conninfo import conninfo_to_dict

    from orchestrator.actions.postgres.values import load_as_json

    endpoint = context.endpoints.get(credential.connection or "")
    if endpoint is None:
        raise StepFailed(
            f"no endpoint is known for the database connection `{credential.connection}`",
            hint="add it to the endpoints in the settings: postgresql://host:port/database",
        )
    given = conninfo_to_dict(endpoint)
    if given.get("password"):
        raise StepFailed(
            f"the endpoint `{credential.connection}` contains a password",
            hint="endpoints are addresses without secrets",
        )
    address, _ = without_settings(endpoint)
    remaining = context.remaining()
    login = field_of(credential, "username").reveal()
    arrival = Arrival.of(login, seconds=remaining, waiting=partial(_say_waiting, context, credential))
    while True:
        try:
            connection = await psycopg.AsyncConnection.connect(
                protected(address, issued=True),
                user=login,
                password=field_of(credential, "password").reveal(),
                client_encoding="UTF8",
                autocommit=True,  # what begins a transaction is more than BEGIN
                application_name=f"orchestrator {context.workflow}/{context.step} {context.run_id}",
                connect_timeout=min(math.ceil(remaining), int(given.get("connect_timeout") or 3600)),
            )
        except psycopg.OperationalError as error:
            await asyncio.sleep(arrival.pause(error))
        else:
            load_as_json(connection)
            return connection


def _say_waiting(context: StepContext, credential: Credential) -> None:
    log.warning(
        "run %s, step %s: the server of `%s` does not know the login yet, as a standby that is behind; "
        "it is tried for %gs at most",
        context.run_id,
        context.step,
        credential.connection,
        min(WAIT_SECONDS, context.remaining()),
    )


def too_much(max_inflow: int) -> StepFailed:
    """What it means for the step that the server sent more than it was allowed to."""
    return StepFailed(
        f"the database sent more than {max_inflow} bytes, and was cut off",
        kind="output",
        hint="add a LIMIT, select fewer columns, leave out RETURNING, or raise `max_bytes`",
    )


def connect_failure(error: psycopg.Error, credential: Credential, redactor: Redactor) -> StepFailed:
    """What a connection that did not come about means for the step."""
    import psycopg

    text = " ".join(redactor.redact(str(error)).split())[:500]
    timed_out = isinstance(error, psycopg.errors.ConnectionTimeout)
    unknown = unknown_login(error, field_of(credential, "username").reveal())
    failure = StepFailed if unknown else DatabaseUnreachable  # who does not know the login has answered
    return failure(
        f"cannot connect to the database `{credential.connection}`: {text}",
        kind="timeout" if timed_out else "connection",
        hint=_UNKNOWN
        if unknown
        else refusal_hint(error)
        or "is the endpoint right, the server up, and the login allowed from here (pg_hba.conf, CONNECTION LIMIT)?",
    )


def query_failure(error: psycopg.Error, redactor: Redactor, *, told: bool = False) -> StepFailed:
    """What a failed statement means for the step.

    The server's own words may quote rows of other people (`invalid input syntax for type integer: "..."`), so that they
    are told only where the author asks for it, and of them the primary message: DETAIL and CONTEXT are never.
    """
    state = error.sqlstate
    if state is None:
        lost = type(error).__name__ in ("OperationalError", "InterfaceError")
        text = redactor.redact(" ".join(str(error).split()))[:500]
        if lost:
            return StepFailed(f"the connection to the database was lost: {text}", kind="connection", hint=_TRY_AGAIN)
        return StepFailed(
            f"the statement cannot be sent: {text}", kind="database", hint="compare `sql` and `parameters`"
        )
    message = redactor.redact(error.diag.message_primary or "no message") if told else _meaning(error)
    what = f"{message} (SQLSTATE {state})"
    if state == "42501":
        return StepFailed(what, kind="permission", hint=_NOT_ALLOWED)
    if state == "57014":
        return StepFailed(what, kind="timeout", hint="raise `timeout` of the step, or make the statement faster")
    if state.startswith(_CONNECTION_LOST):
        return StepFailed(what, kind="connection", hint=_TRY_AGAIN)
    if state in _ENCODING:
        return StepFailed(what, kind="database", hint=_ENCODING[state])
    if state == "25006":
        return StepFailed(what, kind="database", hint="`postgres.query` only reads; use `postgres.execute`")
    return StepFailed(what, kind="database", hint=_SEE if told else f"{_SEE}; {_TELL}")


def _meaning(error: psycopg.Error) -> str:
    """What the SQLSTATE stands for, and the names in the schema that the server gives beside its words."""
    message = error.diag.message_primary or ""
    if _OF_NAMES_ONLY.fullmatch(message):
        return message
    name = type(error).__name__
    words = "the server refused it" if name.endswith("Error") else re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()
    where = (error.diag.table_name, error.diag.column_name, error.diag.constraint_name)
    named = [each for each in where if each and _IDENTIFIER.fullmatch(each)]
    return f"{words} ({', '.join(named)})" if named else words


_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_$]{0,62}")
_OF_NAMES_ONLY = re.compile(
    r"permission denied for [a-z ]{1,30} [A-Za-z_][A-Za-z0-9_$]{0,62}"
    r'|(?:relation|column|schema) "?[A-Za-z_][A-Za-z0-9_$.]{0,126}"? does not exist'
)
"""Words of the server that hold nothing but a name of the schema: without it nobody knows which grant is missing."""
_NOT_ALLOWED = (
    "the grant's role does not allow it, or no row security policy lets the row pass; see `grants infer` and `prove`"
)
_SEE = "see the SQLSTATE in the PostgreSQL manual, appendix A"
_TELL = "`server_messages: true` tells the server's own words, which may quote rows"
_UNKNOWN = (
    "is the endpoint the server in which Vault makes the logins, or a standby of it that is further behind than a "
    "login is waited for?"
)
_TRY_AGAIN = "try again, for example with `retry: { on: [connection] }`"

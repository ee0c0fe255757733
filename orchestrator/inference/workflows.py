"""The grants of a whole workflow: what its SQL needs by the database's own analysis, step by step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg

from orchestrator.environment import how_to_set
from orchestrator.errors import Unreachable, UsageError
from orchestrator.grants.models import DatabaseGrant
from orchestrator.grants.privileges import Privilege
from orchestrator.inference.comparison import Difference, difference
from orchestrator.inference.live import Inference, Inferred
from orchestrator.inference.steps import StepSql, database_grants, declared_types, sql_of
from orchestrator.network.postgres import STRINGS, protected, refusal_hint, why, without_settings
from orchestrator.network.postgres_settings import Answer, telling
from orchestrator.secret import Secret
from orchestrator.workflow.loader import LoadedWorkflow
from orchestrator.workflow.models.steps import Step
from orchestrator.workflow.problems import Problem

GRANT = "db"
"""The name of the grant that is added to a step that has none."""

_MIN_VERSION = 160000
"""The first whose analysis prints who is checked for what; an older one would seem to need nothing."""

_DYNAMIC = "an expression makes the SQL, so that only the run knows it: declare what it needs"
_SETTINGS = {
    "default_transaction_read_only": "on",
    STRINGS: "on",
    "lock_timeout": "10s",
    "statement_timeout": "60s",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class StepNeeds:
    """One step that runs SQL. `declared` are the lines of its grant in their order, canonically named.

    `role` is that of a grant which an admin maintains by hand: what it allows is not in the workflow.
    `added` says that the step has no database grant yet.
    """

    step: str
    action: str
    connection: str
    grant: str
    declared: tuple[Privilege, ...] = ()
    role: str | None = None
    added: bool = False
    found: Difference

    @property
    def differs(self) -> bool:
        """Whether the declaration is not what was inferred; not known of a role that is maintained by hand."""
        return self.added or (self.role is None and bool(self.found))

    def as_json(self) -> dict[str, Any]:
        """A JSON object, as `grants infer --json` prints it for each step."""
        parts: dict[str, Any] = {
            "step": self.step,
            "action": self.action,
            "connection": self.connection,
            "grant": self.grant,
            "complete": self.found.complete,
            "differs": self.differs,
        }
        if self.role is not None:
            parts["role"] = self.role
        for name, privileges in (
            ("privileges", self.found.wanted),
            ("missing", self.found.missing),
            ("not_needed", self.found.superfluous),
        ):
            parts[name] = [privilege.as_json() for privilege in privileges]
        return {**parts, "notes": list(self.found.notes), "remarks": list(self.found.remarks)}


class Catalogs:
    """The databases that can be asked, by connection; each is opened when it is first needed."""

    def __init__(self, logins: Mapping[str, Secret], endpoints: Mapping[str, str], open_: ExitStack) -> None:
        self._logins = logins
        self._endpoints = endpoints
        self._open = open_
        self._inferences: dict[str, Inference] = {}

    def of(self, connection: str) -> Inference:
        """Raises UsageError where no login is known, and Unreachable where it does not work."""
        if connection not in self._inferences:
            if connection not in self._logins:
                raise UsageError(
                    f"no login is known with which the catalog of `{connection}` could be read",
                    hint=how_to_set(
                        "catalog_databases", connection, "to the DSN of a login that may connect, and no more"
                    ),
                )
            login, endpoint = self._logins[connection], self._endpoints.get(connection, "")
            session = self._open.enter_context(_session(connection, login, endpoint))
            self._inferences[connection] = Inference(session)
        return self._inferences[connection]


@contextmanager
def open_catalogs(logins: Mapping[str, Secret], endpoints: Mapping[str, str] | None = None) -> Iterator[Catalogs]:
    """The databases whose DSNs are given by connection; their sessions are closed at the end.

    `endpoints` are the addresses that steps connect to: what settings there are in them holds here, too.
    """
    with ExitStack() as sessions:
        yield Catalogs(logins, endpoints or {}, sessions)


@contextmanager
def _session(connection: str, dsn: Secret, endpoint: str) -> Iterator[psycopg.Connection]:
    """A session that resolves names as a step's own does: by the endpoint's search path, else the database's, and not
    by the login's."""
    try:
        session = psycopg.connect(
            protected(without_settings(dsn.reveal())[0]),
            connect_timeout=10,
            autocommit=True,
            client_encoding="UTF8",
            application_name="orchestrator grants infer",
        )
    except psycopg.Error as error:
        raise _unreadable(connection, error, dsn) from None
    with session:
        if session.info.server_version < _MIN_VERSION:
            raise UsageError(
                f"the database `{connection}` is PostgreSQL {session.info.server_version // 10000}",
                hint="grants can be inferred from 16 on",
            )
        try:
            _become_nobody_in_particular(session)
            settings = without_settings(endpoint)[1]
            if "search_path" not in settings:
                _take_the_path(session, connection)
            told = session.execute(telling(session, {**settings, **_SETTINGS}))
            answer = Answer.of(session, told.fetchone())
        except psycopg.Error as error:
            raise _unreadable(connection, error, dsn) from None
        if problem := answer.problem():
            raise Unreachable(f"the catalog of `{connection}` cannot be read: {problem[0]}", hint=problem[1])
        yield session
        if not session.closed and _served_by(session) != answer.backend:
            raise Unreachable(
                f"the catalog of `{connection}` was not read in one session of the server, so that it may be wrong",
                hint="a pooler in between changes sessions after each transaction: name the server itself, or a pooler "
                "with session pooling",
            )


def _served_by(session: psycopg.Connection) -> int:
    return Answer.of(session, session.execute(telling(session, {})).fetchone()).backend


def _unreadable(connection: str, error: psycopg.Error, dsn: Secret) -> Unreachable:
    return Unreachable(
        f"the catalog of `{connection}` cannot be read: {why(error, dsn.reveal())}",
        hint=refusal_hint(error)
        or how_to_set("catalog_databases", connection, "to the DSN of a login that may connect, and no more"),
    )


def _become_nobody_in_particular(session: psycopg.Connection) -> None:
    """A superuser and an owner pass row security by, and would not see what its policies need: a step meets them.

    `pg_read_all_data` may use every schema, and passes nothing by (PostgreSQL manual, 22.5).
    """
    row = session.execute("SELECT pg_has_role(session_user, 'pg_read_all_data', 'SET')").fetchone()
    if row and row[0]:
        session.execute("SET ROLE pg_read_all_data")


def _take_the_path(session: psycopg.Connection, connection: str) -> None:
    """The search path of a fresh login: what the server and the database say, and not what is the reader's own."""
    path, source, of_all = session.execute(_PATH).fetchone() or ("", "", None)
    if of_all is None and source in _OF_THE_READER:
        raise UsageError(
            f"the login that reads the catalog of `{connection}` has a search path of its own, behind which that of "
            "a step cannot be seen",
            hint="take it away (ALTER ROLE ... RESET search_path, or in the DSN), or set one for the database",
        )
    session.execute(_SET_PATH, [str(of_all if of_all is not None else path)])


def infer_workflow(
    loaded: LoadedWorkflow, catalogs: Catalogs, *, steps: Sequence[str] = (), connection: str | None = None
) -> tuple[list[StepNeeds], list[Problem]]:
    """The needs of the named steps, or of all that run SQL. `connection` is for steps that have no database grant.

    The second part has every statement that the databases cannot resolve: those are not among the needs. Raises
    UsageError for a step that is not there or runs no SQL, and Unreachable.
    """
    workflow = loaded.workflow
    for name in steps:
        if name not in workflow.parts:
            raise UsageError(f"there is no step `{name}`", hint=f"there is: {', '.join(workflow.parts)}")
        if sql_of(workflow.parts[name]) is None:
            raise UsageError(f"step `{name}` is `{workflow.parts[name].action}`, which runs no SQL of the workflow")
    found: list[StepNeeds] = []
    problems: list[Problem] = []
    for name in steps or workflow.parts:
        step = workflow.parts[name]
        statement = sql_of(step, declared_types(workflow, name))
        if statement is None:
            continue
        grants = database_grants(step)
        if problem := _which_grant(loaded, name, step, grants, connection):
            problems.append(problem)
            continue
        grant_name, grant = next(iter(grants.items()), (GRANT, None))
        catalog = catalogs.of(grant.connection if grant else str(connection))
        try:
            inferred = _infer(catalog, statement)
        except UsageError as error:
            problems.append(loaded.problem(loaded.place(name, "with", "sql"), error.message, error.hint or ""))
            continue
        found.append(_needs(name, step, grant_name, grant, str(connection), catalog, inferred))
    return found, problems


def _which_grant(
    loaded: LoadedWorkflow, name: str, step: Step, grants: Mapping[str, DatabaseGrant], connection: str | None
) -> Problem | None:
    """Why it cannot be told which grant the SQL runs under, if so."""
    place = loaded.place(name)
    if len(grants) > 1:
        return loaded.problem(
            (*place, "with"), f"step `{name}` has {len(grants)} database grants", "say with `grant` which one it uses"
        )
    if not grants and connection is None:
        return loaded.problem(
            place, f"step `{name}` has no database grant", "say with --connection what it connects to"
        )
    if not grants and GRANT in step.grants:
        return loaded.problem(
            (*place, "grants", GRANT), f"the grant `{GRANT}` is not one of a database", "give it another name"
        )
    return None


def _infer(catalog: Inference, statement: StepSql) -> Inferred:
    if statement.text is None:
        return Inferred((), (_DYNAMIC,))
    return catalog.of(statement.text, placeholders=statement.placeholders, values=statement.values)


def _needs(
    name: str,
    step: Step,
    grant_name: str,
    grant: DatabaseGrant | None,
    connection: str,
    catalog: Inference,
    inferred: Inferred,
) -> StepNeeds:
    declared = tuple(catalog.canonical(each.privilege()) for each in grant.privileges) if grant else ()
    return StepNeeds(
        step=name,
        action=step.action,
        connection=grant.connection if grant else connection,
        grant=grant_name,
        declared=declared,
        role=grant.role if grant else None,
        added=grant is None,
        found=difference(declared, inferred),
    )


_OF_THE_READER = ("user", "database user", "client")

_PATH = """
SELECT setting, source, (
    SELECT substr(each, length('search_path=') + 1) FROM pg_db_role_setting, unnest(setconfig) AS each
    WHERE setrole = 0 AND setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
    AND starts_with(each, 'search_path=') ORDER BY setdatabase DESC LIMIT 1)
FROM pg_settings WHERE name = 'search_path'
"""

_SET_PATH = r"""SELECT set_config('search_path', regexp_replace(%s, '"\$user",? *', ''), false)"""
"""Nobody has a schema with the name of a login that does not exist yet."""

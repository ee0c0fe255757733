"""A password is given to the database that is meant, and to nobody else who answers at its address."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import psycopg.conninfo
import pytest
from bench import Bench
from database_servers import Authority, Gateway, Thief, listening

from orchestrator.actions.base import StepContext
from orchestrator.actions.postgres.statements import Query, QueryParams
from orchestrator.actions.process.exec import Exec, ExecParams
from orchestrator.actions.process.python import Python, PythonParams
from orchestrator.credentials.standby import replayed
from orchestrator.errors import OrchestratorError, ProvisionError, StepFailed, Unreachable
from orchestrator.grants.credential import Credential
from orchestrator.grants.scope import Scope
from orchestrator.inference.workflows import open_catalogs
from orchestrator.network.postgres import environment, for_vault, protected
from orchestrator.proof.examine import Examination, examine_database
from orchestrator.provision.database.side import DatabaseSide
from orchestrator.provision.declarations import Connection
from orchestrator.secret import Secret

PASSWORD = "issued-secret-password"
ELSEWHERE = "host=db.example.test&hostaddr=0.0.0.0"
"""An address that is not loopback and leads to this machine all the same."""


def credential(user: str = "someone", password: str = PASSWORD) -> Credential:
    fields = {"username": Secret(user), "password": Secret(password)}
    return Credential("db", "database", 60, connection="support", fields=fields)


def context(endpoint: str, held: Credential | None = None) -> StepContext:
    return StepContext(
        run_id="run-1",
        workflow="w",
        step="read",
        attempt=1,
        agent="a",
        idempotency_key="k",
        deadline=time.monotonic() + 60,
        credentials={"db": held or credential()},
        endpoints={"support": endpoint},
    )


def as_a_step(endpoint: str) -> None:
    asyncio.run(Query().run(QueryParams(sql="SELECT 1"), context(endpoint)))


def as_a_proof(endpoint: str) -> None:
    scope = Scope("db", "database", "database/creds/x", 60, "support", "x")
    examine_database("read", scope, "x", credential(), endpoint, Examination())


def as_an_administrator(endpoint: str) -> None:
    DatabaseSide("support", Connection(), Secret(with_login(endpoint)), [], prune=False)


def as_inference(endpoint: str) -> None:
    with open_catalogs({"support": Secret(with_login(endpoint))}) as catalogs:
        catalogs.of("support")


def as_a_duty_at_a_standby(endpoint: str) -> None:
    """The primary is well; what answers at the endpoint is not."""

    class Primary:
        class info:  # noqa: N801 -- psycopg's own name
            user, password = "someone", PASSWORD

        async def execute(self, statement: str) -> Any:
            return self

        async def fetchone(self) -> tuple[str]:
            return ("1",)

        async def close(self) -> None:
            pass

    asyncio.run(replayed(Primary(), endpoint, "support"))  # type: ignore[arg-type]


def with_login(endpoint: str) -> str:
    return endpoint.replace("://", f"://someone:{PASSWORD}@", 1)


CALLERS = [as_a_step, as_a_proof, as_an_administrator, as_inference, as_a_duty_at_a_standby]


@pytest.mark.parametrize("asks", ["clear", "md5", "nothing"])
@pytest.mark.parametrize("where", ["here", "elsewhere"])
@pytest.mark.parametrize("call", CALLERS)
def test_a_server_that_refuses_tls_and_asks_for_the_password_learns_nothing(
    call: Callable[[str], None], where: str, asks: str
) -> None:
    thief = Thief(asks)
    with listening(thief) as port:
        place = f"127.0.0.1:{port}/x" if where == "here" else f"/x?{ELSEWHERE}&port={port}"
        with pytest.raises((OrchestratorError, psycopg.OperationalError)) as caught:
            call(f"postgresql://{place}")
    assert thief.began
    assert thief.answers == []
    assert PASSWORD not in str(caught.value)


@pytest.mark.parametrize("call", CALLERS)
def test_a_server_with_a_certificate_of_its_own_making_learns_nothing(
    call: Callable[[str], None], tmp_path: Path
) -> None:
    thief = Thief("clear", Authority.make(tmp_path, "evil").server("db.example.test"))
    with listening(thief) as port, pytest.raises((OrchestratorError, psycopg.OperationalError)):
        call(f"postgresql:///x?{ELSEWHERE}&port={port}")
    assert thief.began == 1
    assert thief.answers == []


@pytest.mark.parametrize(("asks", "said"), [("md5", "require_auth=md5"), ("clear", "require_auth=password")])
def test_what_the_address_says_in_so_many_words_is_obeyed(asks: str, said: str) -> None:
    thief = Thief(asks, stop=True)
    with listening(thief) as port, pytest.raises(StepFailed):
        as_a_step(f"postgresql:///x?{ELSEWHERE}&port={port}&sslmode=disable&{said}")
    assert len(thief.answers) == 1
    thief = Thief(asks, stop=True)
    with listening(thief) as port, pytest.raises(StepFailed):
        as_a_step(f"postgresql:///x?{ELSEWHERE}&port={port}&sslmode=disable")
    assert thief.answers == []


def test_the_duties_of_a_run_and_its_steps_tell_a_thief_nothing(bench: Bench) -> None:
    """With logins that were really issued: of the step, and of the question whether it is gone."""
    thief = Thief("clear")
    text = (
        "version: 1\nname: robbed\nagent: feedback-assistant\nsteps:\n  read:\n    action: postgres.query\n"
        "    grants: {db: {kind: database, connection: support,"
        " privileges: [{select: customer_feedback, columns: [id]}]}}\n    with: {sql: SELECT 1}\n"
    )
    with listening(thief) as port:
        outcome = bench.run(text, endpoints={"support": f"postgresql://127.0.0.1:{port}/support"}, grace=3.0)
    assert outcome.exit_code != 0
    assert thief.began >= 2
    assert thief.answers == []


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, stack: Any) -> Iterator[tuple[Authority, Any, Gateway, int]]:
    """The shared stack's real PostgreSQL behind TLS, under the name db.example.test."""
    authority = Authority.make(tmp_path_factory.mktemp("tls"), "good")
    gateway = Gateway(stack.postgres_port, authority.server("db.example.test"))
    with psycopg.connect(stack.admin_dsn.reveal(), autocommit=True) as session:
        session.execute(f"CREATE ROLE tls_reader LOGIN PASSWORD '{PASSWORD}'")
        session.execute("GRANT CONNECT ON DATABASE postgres TO tls_reader")
    with listening(gateway) as port:
        yield authority, stack, gateway, port
    with psycopg.connect(stack.admin_dsn.reveal(), autocommit=True) as session:
        session.execute("REVOKE CONNECT ON DATABASE postgres FROM tls_reader")
        session.execute("DROP ROLE tls_reader")


async def read(endpoint: str) -> Any:
    held = credential("tls_reader")
    return await Query().run(QueryParams(sql="SELECT current_user::text AS me"), context(endpoint, held))


async def test_a_good_certificate_of_a_named_authority_works_and_the_session_is_encrypted(served: Any) -> None:
    authority, _, gateway, port = served
    before = gateway.encrypted
    output = await read(f"postgresql:///postgres?{ELSEWHERE}&port={port}&sslrootcert={authority.file}")
    assert output["rows"] == [{"me": "tls_reader"}]
    assert gateway.encrypted == before + 1


@pytest.mark.parametrize(
    ("address", "told", "hint"),
    [
        ("host=other.example.test&hostaddr=0.0.0.0&sslrootcert={ca}", "does not match host name", "another name"),
        ("host=0.0.0.0&sslrootcert={ca}", "does not match host name", "another name"),
        (ELSEWHERE, "certificate verify failed", "sslrootcert"),
        (ELSEWHERE + "&sslrootcert={other}", "certificate verify failed", "sslrootcert"),
        (ELSEWHERE + "&sslrootcert=/nowhere.pem", "root certificate file", "sslrootcert"),
    ],
)
async def test_another_name_or_an_unknown_authority_is_refused_with_what_to_do(
    served: Any, tmp_path: Path, address: str, told: str, hint: str
) -> None:
    authority, _, _, port = served
    other = Authority.make(tmp_path, "other")
    with pytest.raises(StepFailed, match=told) as caught:
        await read(f"postgresql:///postgres?port={port}&{address.format(ca=authority.file, other=other.file)}")
    assert caught.value.kind == "connection"
    assert hint in (caught.value.hint or "")


async def test_a_server_without_tls_elsewhere_is_refused_and_works_where_the_address_says_so(stack: Any) -> None:
    endpoint = f"postgresql:///postgres?{ELSEWHERE}&port={stack.postgres_port}"
    with pytest.raises(StepFailed, match="does not support SSL") as caught:
        await read(endpoint)
    assert "sslmode=disable" in (caught.value.hint or "")


async def test_where_the_address_says_so_a_real_server_without_tls_is_used(served: Any) -> None:
    _, stack, _, _ = served
    endpoint = f"postgresql:///postgres?{ELSEWHERE}&port={stack.postgres_port}&sslmode=disable"
    assert (await read(endpoint))["rows"] == [{"me": "tls_reader"}]


async def test_the_administrator_and_inference_are_told_what_to_do_too(served: Any) -> None:
    _, _, _, port = served
    dsn = Secret(f"postgresql://tls_reader:{PASSWORD}@/postgres?{ELSEWHERE}&port={port}")
    with pytest.raises(ProvisionError) as provision:
        DatabaseSide("support", Connection(), dsn, [], prune=False)
    with pytest.raises(Unreachable) as inference, open_catalogs({"support": dsn}) as catalogs:
        catalogs.of("support")
    for caught in (provision, inference):
        assert "sslrootcert" in (caught.value.hint or "")
        assert PASSWORD not in f"{caught.value} {caught.value.hint}"


async def test_programs_of_a_step_connect_as_carefully(served: Any, tmp_path: Path) -> None:
    authority, _, _, port = served
    there = context(f"postgresql:///postgres?{ELSEWHERE}&port={port}&sslrootcert={authority.file}")
    command = {"command": ["/usr/bin/env"], "environment": {"A": "b"}}
    shown = (await Exec().run(ExecParams.model_validate(command), there))["stdout"].splitlines()  # type: ignore[index,call-overload,union-attr]
    expected = {
        "PGCLIENTENCODING": "UTF8",
        "PGSSLMODE": "verify-full",
        "PGSSLROOTCERT": str(authority.file),
        "PGREQUIREAUTH": "scram-sha-256",
    }
    assert {name: value for name, _, value in (line.partition("=") for line in shown)}.items() >= expected.items()
    (tmp_path / "told.py").write_text("import os\ndef variables(): return dict(os.environ)\n")
    params = PythonParams.model_validate({"callable": "told:variables", "path": [str(tmp_path)]})
    assert (await Python().run(params, there)).items() >= expected.items()  # type: ignore[union-attr]
    own = {"command": ["/usr/bin/env"], "environment": {"PGSSLMODE": "prefer"}}
    shown = (await Exec().run(ExecParams.model_validate(own), there))["stdout"].splitlines()  # type: ignore[index,call-overload,union-attr]
    assert "PGSSLMODE=prefer" in shown


def test_programs_get_the_strictest_of_several_databases() -> None:
    assert environment(["postgresql://127.0.0.1/a"]) == {"PGCLIENTENCODING": "UTF8", "PGREQUIREAUTH": "scram-sha-256"}
    several = environment(["postgresql://127.0.0.1/a", "postgresql://db.example/b", "postgresql://localhost/c"])
    assert several["PGSSLMODE"] == "verify-full"
    assert environment(["postgresql://db.example/b?sslmode=disable"])["PGSSLMODE"] == "disable"
    assert environment(["https://no.database"]) == {}


@pytest.mark.parametrize(
    ("address", "strict"),
    [
        ("postgresql://127.0.0.1/x", False),
        ("postgresql://localhost,[::1]/x", False),
        ("postgresql:///x?host=/run/postgresql", False),
        ("host=127.0.0.1 dbname=x", False),
        ("postgresql://localhost,db.example/x", True),
        ("postgresql://localhost/x?hostaddr=10.0.0.1", True),
        ("postgresql://localhost.example/x", True),
        ("postgresql:///x", True),
        ("service=production", True),
        ("host=db.example dbname=x", True),
    ],
)
def test_only_what_stays_on_this_machine_does_without_tls(address: str, strict: bool) -> None:
    given = psycopg.conninfo.conninfo_to_dict(protected(address, issued=True))
    assert (given.get("sslmode") == "verify-full") is strict
    assert str(given["require_auth"]).startswith("scram-sha-256")


def test_an_administrator_without_a_password_may_be_known_by_other_means_but_never_tells_one() -> None:
    given = psycopg.conninfo.conninfo_to_dict(protected("postgresql://admin@db.example/x?sslcert=/c.pem"))
    assert given["require_auth"] == "!password,!md5"
    assert given["sslmode"] == "verify-full"


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [
        ("postgresql://127.0.0.1:5432/x", "postgresql://127.0.0.1:5432/x"),
        ("postgresql://db.example/x", "postgresql://db.example/x?sslmode=verify-full"),
        ("postgresql://db.example/x?sslmode=disable", "postgresql://db.example/x?sslmode=disable"),
        ("postgresql://127.0.0.1:1,db.example:2/x", "postgresql://127.0.0.1:1,db.example:2/x?sslmode=verify-full"),
        (
            "postgresql://db.example/x?sslrootcert=%2Fca.pem&require_auth=md5&target_session_attrs=read-write",
            "postgresql://db.example/x?target_session_attrs=read-write&sslmode=verify-full",
        ),
    ],
)
def test_vault_is_told_the_same_of_tls_and_nothing_that_its_driver_does_not_know(endpoint: str, expected: str) -> None:
    assert for_vault(endpoint) == expected

"""Steps that outlast even the maximum TTL of their credential, and take another one while they run."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterator
from textwrap import indent
from typing import Any

import pytest
from bench import Bench
from escaped import holds_secret
from fork_server import ForkServer

from orchestrator.actions.catalog import catalog
from orchestrator.assembly import open_services
from orchestrator.errors import ExitCode
from orchestrator.grants.scope import normalise
from orchestrator.ledger.events import (
    LeaseIssued,
    LeaseLoginTried,
    LeaseRenewed,
    LeaseRequested,
    LeaseRevoked,
    LeaseRevoking,
    LeaseVaultRevoked,
)
from orchestrator.ledger.ids import new_run_id
from orchestrator.ledger.lease import LeaseState
from orchestrator.recovery.open_leases import close_left_over, left_over
from orchestrator.recovery.takeover import Recovery
from orchestrator.redaction.redactor import Redactor
from orchestrator.runs.types import RunOutcome
from orchestrator.workflow.loader import load_text
from orchestrator.workflow.problems import InvalidWorkflow

GRANT = """
kind: database
connection: support
role: brief-role
ttl: 6s
on_expiry: reissue
overlap: 1s
"""
EXEC = """
version: 1
name: reissued
agent: tester
steps:
  work:
    action: exec
    grants:
      db:
{grant}
    with:
      command: [{python}, -I, {program}, "{dsn}"]
      paths: {{ read: [{program}] }}
      credentials: {{ files: {{ LOGIN: db }} }}
    timeout: {timeout}
"""
PYTHON = """
version: 1
name: reissued_python
agent: tester
steps:
  work:
    action: python
    grants:
      db:
{grant}
    with:
      callable: author_code:work
      path: [{folder}]
      arguments: {{ dsn: "{dsn}" }}
    timeout: 90s
    outputs: [versions, names]
"""
PROGRAM = """
import json, os, sys, time
import psycopg

seen = []
while len(seen) < 2:
    with open(os.environ["LOGIN"]) as file:
        login = json.load(file)
    if login["version"] not in seen:
        seen.append(login["version"])
        assert os.stat(os.environ["LOGIN"]).st_mode & 0o777 == 0o600
        fields = login["fields"]
        with psycopg.connect(sys.argv[1], user=fields["username"], password=fields["password"]) as session:
            session.execute("SELECT count(id) FROM customer_feedback")
    time.sleep(0.05)
print(seen)
"""
FUNCTION = """
import psycopg

def work(credentials, dsn):
    versions, names = [], set()
    for _ in range(3):
        login = credentials["db"]
        versions.append(credentials.version("db"))
        with psycopg.connect(dsn, user=login["username"], password=login["password"]) as session:
            names.add(session.execute("SELECT session_user").fetchone()[0].rsplit("_", 1)[0])
        if len(versions) < 3:
            assert credentials.wait("db", after=versions[-1], timeout=20)
    return {"versions": versions, "names": sorted(names)}
"""


@pytest.fixture
def brief_role(bench: Bench) -> Iterator[None]:
    """A database role whose leases live for eight seconds at most, however often they are renewed."""
    vault = bench.vault
    like = vault.read("database/roles/feedback-read")["data"]
    allowed = vault.read("database/config/support")["data"]["allowed_roles"]
    vault.write("database/config/support", allowed_roles=[*allowed, "brief-role"])
    vault.write_data("database/roles/brief-role", data={**like, "default_ttl": 6, "max_ttl": 8})
    yield
    vault.delete("database/roles/brief-role")
    vault.write("database/config/support", allowed_roles=allowed)


def exec_text(bench: Bench, program: str, *, grant: str = GRANT, timeout: str = "90s") -> str:
    file = bench.directory / "program.py"
    file.write_text(program)
    return EXEC.format(
        grant=indent(grant.strip(), " " * 8),
        python=sys.executable,
        program=file,
        dsn=bench.info.support_endpoint,
        timeout=timeout,
    )


def own_leases(bench: Bench, outcome: RunOutcome) -> list[Any]:
    return [lease for lease in bench.history(outcome.run_id) if lease.grant == "db"]


@pytest.mark.usefixtures("brief_role")
def test_a_program_reads_each_new_login_from_its_file_and_every_lease_ends(bench: Bench) -> None:
    outcome = bench.run(exec_text(bench, PROGRAM.replace("< 2", "< 3")))
    assert outcome.exit_code is ExitCode.DONE, outcome.reason
    leases = own_leases(bench, outcome)
    assert len(leases) >= 3
    assert {lease.state for lease in bench.history(outcome.run_id)} == {LeaseState.REVOKED}
    assert len({lease.step_key for lease in leases}) == 1, "all under the key of the one attempt"
    assert len({lease.subject for lease in leases}) == len(leases)


@pytest.mark.usefixtures("brief_role")
def test_a_new_lease_is_on_record_before_it_is_issued_and_the_old_one_goes_after_it_was_handed_over(
    bench: Bench,
) -> None:
    outcome = bench.run(exec_text(bench, PROGRAM.replace("< 2", "< 3")))
    first, second = (lease.lease_id for lease in own_leases(bench, outcome)[:2])
    story = [
        (type(event), getattr(event, "lease_id", ""))
        for event in bench.events
        if not isinstance(event, LeaseRenewed) and getattr(event, "lease_id", "") in (first, second)
    ]
    assert story[:6] == [
        (LeaseRequested, first),
        (LeaseIssued, first),
        (LeaseRequested, second),
        (LeaseIssued, second),
        (LeaseRevoking, first),
        (LeaseVaultRevoked, first),
    ]
    token = bench.history(outcome.run_id)[0].lease_id
    of_step = {token, *(lease.lease_id for lease in own_leases(bench, outcome))}  # and not of the sweep
    ends = [
        (type(event), event.lease_id)
        for event in bench.events
        if isinstance(event, LeaseVaultRevoked | LeaseRevoked) and event.lease_id in of_step
    ]
    by_vault = [lease for kind, lease in ends if kind is LeaseVaultRevoked]
    tried = {event.lease_id: event.refused for event in bench.events if isinstance(event, LeaseLoginTried)}
    assert tried == dict.fromkeys(by_vault, True), "also of what another one has taken the place of"
    later = [(type(event), getattr(event, "lease_id", "")) for event in bench.events]
    assert later.index((LeaseLoginTried, first)) < later.index((LeaseRevoking, second)), (
        "and that while the step goes on"
    )
    assert {first, second} <= set(by_vault)
    before = ends[: ends.index((LeaseRevoked, token))]
    assert [lease for _, lease in before] == by_vault, "the step's own token goes when nothing hangs from it any more"
    assert ends.index((LeaseRevoked, first)) > ends.index((LeaseVaultRevoked, by_vault[-1])), (
        "its database is asked when the step is over: a sweep by step key would drop what took its place"
    )
    reason = next(event.reason for event in bench.events if isinstance(event, LeaseRevoking))
    assert reason == f"{second} has taken its place"


@pytest.mark.usefixtures("brief_role")
def test_a_function_finds_the_newest_login_in_its_credentials(bench: Bench) -> None:
    (bench.directory / "author_code.py").write_text(FUNCTION)
    text = PYTHON.format(grant=indent(GRANT.strip(), " " * 8), folder=bench.directory, dsn=bench.info.support_endpoint)
    outcome = bench.run(text)
    assert outcome.exit_code is ExitCode.DONE, outcome.reason
    leases = own_leases(bench, outcome)
    assert len(leases) >= 3
    assert {lease.state for lease in bench.history(outcome.run_id)} == {LeaseState.REVOKED}


@pytest.mark.usefixtures("brief_role")
def test_without_reissue_the_same_step_is_ended_in_time(bench: Bench) -> None:
    grant = GRANT.replace("on_expiry: reissue\n", "").replace("overlap: 1s\n", "")
    outcome = bench.run(exec_text(bench, PROGRAM, grant=grant))
    assert outcome.exit_code is ExitCode.STEP_FAILED
    assert "ends before the step does: the maximum TTL of its role in Vault is reached" in outcome.reason
    assert len(own_leases(bench, outcome)) == 1


TALKATIVE = """
import json, os, sys, time
while True:
    with open(os.environ["LOGIN"]) as file:
        login = json.load(file)
    if login["version"] == 2:
        print("x" * 1990, login["fields"]["password"], file=sys.stderr)
        sys.exit(3)
    time.sleep(0.05)
"""


@pytest.mark.usefixtures("brief_role")
def test_a_password_that_was_handed_over_later_is_cleared_from_messages_like_the_first(bench: Bench) -> None:
    outcome = bench.run(exec_text(bench, TALKATIVE))
    assert outcome.exit_code is ExitCode.STEP_FAILED
    assert "ended with exit code 3" in outcome.reason
    assert "***" in outcome.reason
    assert not holds_secret(outcome.reason.encode())


LIMITED = """
kind: database
connection: support
ttl: 6s
on_expiry: reissue
overlap: 1s
privileges:
  - { select: customer_feedback, columns: [id, kind], where: { kind: "${{ inputs.kind }}" } }
"""
COUNTING = PROGRAM.replace(
    'session.execute("SELECT count(id) FROM customer_feedback")',
    """
            kinds = session.execute("SELECT DISTINCT kind FROM customer_feedback").fetchall()
            assert kinds == [("complaint",)], kinds""",
)


def test_the_row_limits_of_a_step_hold_for_each_new_login(bench: Bench) -> None:
    text = exec_text(bench, COUNTING, grant=LIMITED).replace(
        "agent: tester", "agent: tester\ninputs: { kind: { type: string } }"
    )
    workflow = load_text(text, filename="flow.yaml", actions=catalog).workflow
    bench.install(workflow)
    step = workflow.steps["work"]
    role = normalise("db", step.grants["db"], step_timeout=step.timeout).role
    bench.vault.write_data(f"database/roles/{role}", data={"max_ttl": 8})
    outcome = bench.run(text, install=False, inputs={"kind": "complaint"})
    assert outcome.exit_code is ExitCode.DONE, outcome.reason
    assert len(own_leases(bench, outcome)) >= 2
    assert bench.sql("SELECT count(*) FROM orchestrator.binding") == [0]


@pytest.mark.usefixtures("brief_role")
@pytest.mark.parametrize(
    ("kind", "when"),
    [(LeaseRequested.kind, "after"), (LeaseIssued.kind, "before"), (LeaseIssued.kind, "after")],
    ids=["asked-for", "issued-and-not-recorded", "issued"],
)
def test_a_runner_that_is_killed_while_it_replaces_a_lease_leaves_neither(
    bench: Bench, children: ForkServer, kind: str, when: str
) -> None:
    text, run_id = exec_text(bench, HOLDING), new_run_id()
    bench.install(load_text(text, filename="flow.yaml", actions=catalog).workflow)
    provisioned = bench.provisioned
    given = {
        "vault": bench.info.vault_address,
        "role_id": provisioned.role_id,
        "secret_id": provisioned.secret_id.reveal(),
        "ledger": bench.config().ledger_url,
        "endpoints": bench.info.endpoints,
        "issuer": bench.info.issuer_url,
        "workflow": text,
        "run": run_id,
        "do": "run",
        "point": {"kind": kind, "grant_kind": "database", "when": when, "count": 2},
    }
    assert children.run(given) == -9

    async def recover() -> None:
        async with open_services(bench.config(settle=-600.0), redactor=Redactor()) as services:
            await Recovery(services).until_decided()
            await close_left_over(services, left_over(services.reader))

    asyncio.run(recover())
    bench.assert_nothing_left()
    leases = [lease for lease in bench.history(run_id) if lease.grant == "db"]
    assert len(leases) == 2
    assert {lease.state for lease in leases} == {LeaseState.REVOKED}


HOLDING = """
import sys, time
time.sleep(80)
"""


@pytest.mark.usefixtures("brief_role")
def test_a_reissue_that_vault_refuses_ends_the_step_in_time_and_says_which_limit_was_met(bench: Bench) -> None:
    first = threading.Event()

    def refuse() -> None:
        until_issued(bench, first)
        bench.vault.delete("database/roles/brief-role")

    thread = threading.Thread(target=refuse)
    thread.start()
    try:
        outcome = bench.run(exec_text(bench, HOLDING))
    finally:
        first.set()
        thread.join()
    assert outcome.exit_code is ExitCode.STEP_FAILED
    assert "ends before the step does" in outcome.reason
    assert "no other one could take its place" in outcome.reason
    assert "unknown role" in outcome.reason
    states = sorted(lease.state.value for lease in own_leases(bench, outcome))
    assert states == ["denied", "revoked"]


def until_issued(bench: Bench, over: threading.Event) -> None:
    while not over.is_set() and not bench.logins():
        over.wait(0.02)


def problems(text: str) -> str:
    with pytest.raises(InvalidWorkflow) as invalid:
        load_text(text, filename="flow.yaml", actions=catalog)
    return str(invalid.value)


REFUSED = """\
version: 1
name: refused
agent: tester
steps:
  work:
    action: {action}
    grants:
      db: {{ kind: database, connection: support, role: some-role, on_expiry: reissue }}
    with: {with_}
"""


@pytest.mark.parametrize(
    ("action", "with_", "why"),
    [
        ("postgres.query", "{ sql: SELECT 1 }", "postgres.query takes `db` once"),
        (
            "exec",
            "{ command: [true], credentials: { env: { P: db.password } } }",
            "`with.credentials.env.P` takes `db.password` once",
        ),
        (
            "exec",
            "{ command: [true], credentials: { files: { P: db.password } } }",
            "`with.credentials.files.P` takes `db.password` once",
        ),
        ("exec", "{ command: [true] }", "exec takes `db` once"),
        ("http.request", "{ url: 'https://x.test/', bearer: db.token }", "takes `db.token` once"),
    ],
)
def test_a_step_that_cannot_take_a_new_credential_is_refused_at_its_place(action: str, with_: str, why: str) -> None:
    said = problems(REFUSED.format(action=action, with_=with_))
    assert "flow.yaml:8:" in said
    assert why in said
    assert "when the step begins" in said


def test_an_overlap_without_a_second_credential_is_refused() -> None:
    text = REFUSED.format(action="exec", with_="{ command: [true] }").replace("on_expiry: reissue", "overlap: 3s")
    assert "`overlap` belongs to `on_expiry: reissue`" in problems(text)

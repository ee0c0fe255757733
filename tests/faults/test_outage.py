"""OpenBao is away for a while in the middle of several runs: they wait within their deadlines, or fail cleanly."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import Executor, ThreadPoolExecutor

import pytest
from bench import Bench
from waiting import wait_for

from orchestrator.actions.catalog import catalog
from orchestrator.assembly import open_services
from orchestrator.devstack.stack import DevStack
from orchestrator.errors import ExitCode
from orchestrator.ledger.ids import new_run_id
from orchestrator.ledger.lease import FINAL, LeaseState
from orchestrator.ledger.states import RunState
from orchestrator.recovery.open_leases import close_left_over, left_over
from orchestrator.redaction.redactor import Redactor
from orchestrator.runs.runner import Runner
from orchestrator.runs.types import RunOutcome, RunRequest, Services
from orchestrator.workflow.loader import LoadedWorkflow, load_text

AWAY = 20.0
"""Seconds, by the clock: longer than the step that has no time, and than several of the longest pauses (5 s)."""

LATER = -600.0
"""As `settle`: ten minutes have passed."""

HOLD = '[/bin/sh, -c, "touch STARTED-NAME; until [ -e GO ]; do sleep 0.1; done"]'
DB = "{ kind: database, connection: support, role: feedback-read }"

WAITS_FOR_ITS_CREDENTIALS = f"""
version: 1
name: waits
agent: tester
steps:
  hold:
    action: exec
    with: {{ command: {HOLD}, paths: {{ write: [FOLDER] }} }}
    timeout: 300s
  work:
    needs: [hold]
    action: postgres.query
    grants: {{ db: {DB}, api: {{ kind: token, audience: translation-api, scope: [translate] }} }}
    with: {{ sql: SELECT 1, grant: db }}
    timeout: 240s
"""
HAS_NO_TIME_TO_WAIT = WAITS_FOR_ITS_CREDENTIALS.replace("name: waits", "name: hurries").replace("240s", "10s")
WORKS_ALL_THROUGH = f"""
version: 1
name: works
agent: tester
steps:
  work:
    action: exec
    grants: {{ db: {DB} }}
    with:
      command: [/bin/sh, -c, "touch STARTED-NAME; until [ -e BACK ]; do sleep 0.1; done"]
      paths: {{ write: [FOLDER] }}
      credentials: {{ files: {{ LOGIN: db }} }}
    timeout: 300s
  more:
    needs: [work]
    action: postgres.query
    grants: {{ db: {DB} }}
    with: {{ sql: SELECT 1 }}
    timeout: 100s
"""
ENDS_MEANWHILE = f"""
version: 1
name: ends
agent: tester
steps:
  work:
    action: exec
    grants: {{ db: {DB} }}
    with: {{ command: {HOLD}, paths: {{ write: [FOLDER] }}, credentials: {{ files: {{ LOGIN: db }} }} }}
    timeout: 300s
"""


def loaded(bench: Bench, text: str) -> LoadedWorkflow:
    name = text.split("name: ")[1].split("\n")[0]
    for mark in ("STARTED-NAME", "GO", "BACK"):
        text = text.replace(mark, str(bench.directory / mark.replace("NAME", name)))
    text = text.replace("FOLDER", str(bench.directory))
    found = load_text(text, filename=f"{name}.yaml", actions=catalog)
    bench.install(found.workflow)
    return found


@pytest.mark.parametrize("own_bench", ["persistent"], indirect=True)
def test_a_vault_that_is_away_is_waited_for_as_long_as_each_step_may_take(
    own_bench: tuple[DevStack, Bench],
) -> None:
    servers, bench = own_bench
    patient = [loaded(bench, text) for text in (WAITS_FOR_ITS_CREDENTIALS, HAS_NO_TIME_TO_WAIT, WORKS_ALL_THROUGH)]
    impatient = loaded(bench, ENDS_MEANWHILE)

    async def run(services: Services, workflow: LoadedWorkflow) -> RunOutcome:
        return await Runner(services).run(RunRequest(run_id=new_run_id(), loaded=workflow, inputs={}))

    async def begin_then_lose_vault(keeper: Executor) -> list[RunOutcome]:
        async with (
            open_services(bench.config(grace=120.0), redactor=Redactor()) as patiently,
            open_services(bench.config(grace=3.0), redactor=Redactor()) as impatiently,
        ):
            runs = [
                *(asyncio.create_task(run(patiently, workflow)) for workflow in patient),
                asyncio.create_task(run(impatiently, impatient)),
            ]
            begun = [bench.directory / f"STARTED-{name}" for name in ("waits", "hurries", "works", "ends")]
            await asyncio.to_thread(wait_for, lambda: all(file.exists() for file in begun), "every run to begin")
            assert len(bench.logins()) == 2
            await asyncio.get_running_loop().run_in_executor(keeper, outage)
            return await asyncio.gather(*runs)

    def outage() -> None:
        servers.openbao.kill()
        (bench.directory / "GO").touch()
        began = time.monotonic()
        while (left := AWAY - (time.monotonic() - began)) > 0:
            time.sleep(min(left, 1.0))
            assert len(bench.logins()) <= 2, "nothing new without Vault"
        servers.openbao.start()
        (bench.directory / "BACK").touch()

    keeper = ThreadPoolExecutor(1)  # the server dies with the thread that started it, so that one stays
    waits, hurries, works, ends = asyncio.run(begin_then_lose_vault(keeper))

    assert (waits.exit_code, waits.state) == (ExitCode.DONE, RunState.SUCCEEDED), waits.reason
    assert (works.exit_code, works.state) == (ExitCode.DONE, RunState.SUCCEEDED), works.reason
    assert (hurries.exit_code, hurries.state) == (ExitCode.UNREACHABLE, RunState.FAILED)
    assert "could not be issued" in hurries.reason
    assert "did not accept a connection" in hurries.reason
    assert (ends.exit_code, ends.state) == (ExitCode.UNCONFIRMED, RunState.SUCCEEDED), ends.reason
    for outcome in (waits, works, hurries):
        assert states(bench, outcome) <= FINAL
    assert states(bench, ends) == {LeaseState.REVOKING}, "what Vault could not confirm is not called gone"

    async def sweep() -> None:
        async with open_services(bench.config(settle=LATER), redactor=Redactor()) as services:
            await close_left_over(services, left_over(services.reader))

    asyncio.run(sweep())
    assert states(bench, ends) <= FINAL
    assert bench.logins() == []
    wait_for(lambda: not bench.vault_leases(), "Vault to drop what hung from revoked tokens")
    bench.assert_nothing_left()
    servers.openbao.stop()
    keeper.shutdown()


def states(bench: Bench, outcome: RunOutcome) -> set[LeaseState]:
    return {lease.state for lease in bench.history(outcome.run_id) if "sweep" not in lease.resource}

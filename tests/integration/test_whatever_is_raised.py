"""Whatever is raised, wherever: its step fails, the other steps and the run end, nothing is left, all is on record."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import fields, replace
from typing import Any, ClassVar

import pytest
from bench import Bench, Setup

from orchestrator.actions.base import Params, StepContext
from orchestrator.actions.catalog import action, catalog
from orchestrator.assembly import open_services
from orchestrator.credentials.broker import Broker
from orchestrator.credentials.run_leases import RunLeases
from orchestrator.errors import ExitCode, StepFailed
from orchestrator.ledger.events import Event, StepFinished
from orchestrator.ledger.ids import new_run_id
from orchestrator.ledger.journal import Journal
from orchestrator.ledger.lease import FINAL
from orchestrator.ledger.opening import open_ledger
from orchestrator.ledger.states import RunState, StepState
from orchestrator.ledger.types import LeaseFilter, LedgerReader
from orchestrator.policy.types import Decision, PolicyRequest
from orchestrator.recovery.open_leases import close_left_over, left_over
from orchestrator.redaction.redactor import Redactor
from orchestrator.runs import graph_walk, runner
from orchestrator.runs.graph_walk import CallStep, Graph
from orchestrator.runs.runner import Runner
from orchestrator.runs.types import RunOutcome, RunRequest, Services
from orchestrator.secret import Secret
from orchestrator.workflow.loader import LoadedWorkflow, load_text

CANARY = "canary-2f7c-of-nobody"
GRANT = "{ db: { kind: database, connection: support, role: feedback-read } }"
WORKFLOW = f"""
version: 1
name: raising
agent: tester
steps:
  bad:
    action: postgres.query
    grants: {GRANT}
    with: {{ sql: SELECT 1 }}
    timeout: 30s
  after:
    action: postgres.query
    grants: {GRANT}
    needs: [bad]
    with: {{ sql: SELECT 1 }}
  other:
    action: postgres.query
    grants: {GRANT}
    with: {{ sql: SELECT 1 }}
"""


class Unspeakable(Exception):
    """Cannot even say what it is."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


EXCEPTIONS: Mapping[str, Callable[[], BaseException]] = {
    "ValueError": lambda: ValueError(f"bad {CANARY}"),
    "KeyError": lambda: KeyError(CANARY),
    "IndexError": IndexError,
    "Unspeakable": Unspeakable,
    "ExceptionGroup": lambda: ExceptionGroup("two", [ValueError(CANARY), TypeError()]),
    "TimeoutError": TimeoutError,
    "StopIteration": StopIteration,
    "StopAsyncIteration": StopAsyncIteration,
    "RecursionError": RecursionError,
    "MemoryError": MemoryError,
    "UnicodeError": lambda: UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no"),
    "CancelledError": asyncio.CancelledError,
}
"""What code may raise that means no harm."""

APART = {
    name: EXCEPTIONS[name]
    for name in (
        *("ValueError", "Unspeakable", "ExceptionGroup", "TimeoutError"),
        *("StopIteration", "StopAsyncIteration", "CancelledError"),
    )
}
"""Those of them that Python, asyncio or we deal with each in another way. The others are like ValueError to all."""

WORSE: Mapping[str, Callable[[], BaseException]] = {
    "SystemExit": lambda: SystemExit(7),
    "GeneratorExit": GeneratorExit,
    "BaseExceptionGroup": lambda: BaseExceptionGroup("one", [SystemExit(3)]),
    "BaseException": lambda: BaseException(CANARY),
}
"""What an action may raise besides."""


class AnyParams(Params):
    model_config: ClassVar[Any] = {"extra": "allow"}


class Stub:
    """An action that does as it is told."""

    summary: ClassVar[str] = "As told."
    params: ClassVar[type[Params]] = AnyParams

    def __init__(self, work: Callable[[StepContext], Awaitable[Any]]) -> None:
        self.work = work

    def view(self, params: Any) -> dict[str, Any]:
        return {}

    async def run(self, params: Any, context: StepContext) -> Any:
        return await self.work(context)


class Raising:
    """Raises whenever anything is asked of it."""

    def __init__(self, make: Callable[[], BaseException]) -> None:
        self.make = make

    def __getattr__(self, name: str) -> Any:
        raise self.make()


Sabotage = Callable[[Services, Callable[[], BaseException]], Services]


def only_bad(services: Services, bad: Callable[[str], Any]) -> Services:
    """The first call for an action is that of the step `bad`; the others get what they ask for."""
    calls: list[str] = []

    def lookup(name: str) -> Any:
        calls.append(name)
        return bad(name) if len(calls) == 1 else action(name)

    return replace(services, action=lookup)


def stub(work: Callable[[StepContext, Callable[[], BaseException]], Awaitable[Any]]) -> Sabotage:
    return lambda services, make: only_bad(services, lambda name: Stub(lambda context: work(context, make)))


async def at_once(context: StepContext, make: Callable[[], BaseException]) -> Any:
    raise make()


async def after_a_while(context: StepContext, make: Callable[[], BaseException]) -> Any:
    await asyncio.sleep(0.01)
    raise make()


async def from_a_task(context: StepContext, make: Callable[[], BaseException]) -> Any:
    async def inner() -> None:
        raise make()

    await asyncio.gather(inner(), asyncio.sleep(0))


async def from_a_task_group(context: StepContext, make: Callable[[], BaseException]) -> Any:
    async def inner() -> None:
        await asyncio.sleep(0)
        raise make()

    async with asyncio.TaskGroup() as group:
        group.create_task(inner())
        group.create_task(asyncio.sleep(5))
    raise make()


class OddMapping(dict[str, Any]):
    def __init__(self, make: Callable[[], BaseException]) -> None:
        super().__init__(a=1)
        self.make = make

    def items(self) -> Any:
        raise self.make()

    def __iter__(self) -> Iterator[str]:
        raise self.make()


async def odd_output(context: StepContext, make: Callable[[], BaseException]) -> Any:
    return {"a": [OddMapping(make)]}


def no_action(services: Services, make: Callable[[], BaseException]) -> Services:
    def fail(name: str) -> Any:
        raise make()

    return only_bad(services, fail)


def no_view(services: Services, make: Callable[[], BaseException]) -> Services:
    class Hidden(Stub):
        def view(self, params: Any) -> dict[str, Any]:
            raise make()

    return only_bad(services, lambda name: Hidden(lambda context: asyncio.sleep(0)))


def no_coroutine(services: Services, make: Callable[[], BaseException]) -> Services:
    class Plain(Stub):
        def run(self, params: Any, context: StepContext) -> Any:
            raise make()

    return only_bad(services, lambda name: Plain(lambda context: asyncio.sleep(0)))


def no_params(services: Services, make: Callable[[], BaseException]) -> Services:
    return only_bad(services, lambda name: type("Odd", (), {"params": Raising(make)})())


def no_policy(services: Services, make: Callable[[], BaseException]) -> Services:
    class Engine:
        async def decide(self, request: PolicyRequest) -> Decision:
            if request.step == "bad":
                raise make()
            return await services.policy.decide(request)

    return replace(services, policy=Engine())


def garbled_policy(services: Services, make: Callable[[], BaseException]) -> Services:
    class Engine:
        async def decide(self, request: PolicyRequest) -> Any:
            return Raising(make) if request.step == "bad" else await services.policy.decide(request)

    return replace(services, policy=Engine())


def failing_vault(method: str, *, after: bool) -> Sabotage:
    """A call of the step `bad` to Vault fails in a way that nobody foresaw, before or after Vault did it."""

    def sabotage(services: Services, make: Callable[[], BaseException]) -> Services:
        vault = services.broker.vault
        original = getattr(vault, method)
        raised: list[int] = []

        async def call(*given: Any, **named: Any) -> Any:
            if raised:
                return await original(*given, **named)
            raised.append(1)
            if after:
                await original(*given, **named)
            raise make()

        setattr(vault, method, call)
        return services

    return sabotage


def failing_issuer(*, after: bool) -> Sabotage:
    def sabotage(services: Services, make: Callable[[], BaseException]) -> Services:
        broker = services.broker

        class Issuer:
            async def issue(self, request: Any) -> Any:
                if request.attempt.step != "bad":
                    return await broker.issuer("database").issue(request)
                if after:
                    await broker.issuer("database").issue(request)
                raise make()

        return replace(services, broker=replace(broker, issuer=lambda kind: Issuer()))

    return sabotage


def forgetful_run(services: Services, make: Callable[[], BaseException]) -> Services:
    """What the first step leaves to its run to be confirmed never reaches it."""

    class Forgetful(Broker):
        def of_run(self, journal: Journal) -> RunLeases:
            leases = super().of_run(journal)
            given_back = leases.given_back

            def forget(*given: Any) -> None:
                leases.given_back = given_back  # type: ignore[method-assign]
                raise make()

            leases.given_back = forget  # type: ignore[method-assign]
            return leases

    broker = services.broker
    return replace(services, broker=Forgetful(**{part.name: getattr(broker, part.name) for part in fields(broker)}))


POINTS: Mapping[str, Sabotage] = {
    "looking the action up": no_action,
    "the parameters": no_params,
    "the action's view": no_view,
    "the policy engine": no_policy,
    "the policy's answer": garbled_policy,
    "minting the step token": failing_vault("create_step_token", after=False),
    "the answer to minting": failing_vault("create_step_token", after=True),
    "the issuer": failing_issuer(after=False),
    "what was issued": failing_issuer(after=True),
    "the action that is no coroutine": no_coroutine,
    "the action at once": stub(at_once),
    "the action later": stub(after_a_while),
    "the action's own task": stub(from_a_task),
    "the action's task group": stub(from_a_task_group),
    "the output": stub(odd_output),
}
CLOSING: Mapping[str, Sabotage] = {
    "revoking a lease": failing_vault("revoke_lease", after=False),
    "the answer to revoking a lease": failing_vault("revoke_lease", after=True),
    "revoking the step token": failing_vault("revoke_accessor", after=False),
    "the answer to revoking the step token": failing_vault("revoke_accessor", after=True),
    "what is left to the run": forgetful_run,
}
WIDE = {"the action that is no coroutine", "the action at once", "the action later", "the output"}


def loaded(bench: Bench, text: str = WORKFLOW) -> LoadedWorkflow:
    found = load_text(text, filename="test.yaml", actions=catalog)
    bench.install(found.workflow)
    return found


async def run(
    bench: Bench, workflow: LoadedWorkflow, sabotage: Sabotage, make: Callable[[], BaseException], **changes: Any
) -> tuple[RunOutcome, list[Event]]:
    """One run with something in it that raises; what it left to confirm is closed afterwards."""
    seen: list[Event] = []
    redactor = Redactor()
    redactor.add(Secret(CANARY))
    config = bench.config(**changes)
    async with open_services(config, redactor=redactor, observer=lambda run, time, event: seen.append(event)) as whole:
        request = RunRequest(run_id=new_run_id(), loaded=workflow, inputs={})
        outcome = await Runner(sabotage(whole, make)).run(request)
    async with open_services(replace(config, settle=-100_000.0), redactor=redactor) as services:
        await close_left_over(services, left_over(services.reader))
        check(services.reader, outcome)
    return outcome, seen


def check(ledger: LedgerReader, outcome: RunOutcome) -> None:
    """The run, each of its steps and each attempt has one end on record, and no lease is open."""
    record = ledger.run(outcome.run_id)
    assert record is not None
    assert (record.state, record.exit_code) == (outcome.state, int(outcome.exit_code))
    assert record.state is not RunState.RUNNING
    assert ledger.verify(outcome.run_id) is None
    events = ledger.events(outcome.run_id)
    assert Counter(event.kind for event in events)["run.finished"] == 1
    for step in outcome.steps:
        own = [event for event in events if event.data.get("step") == step]
        kinds = Counter(event.kind for event in own)
        assert kinds["step.finished"] == 1, step
        assert kinds["attempt.started"] == kinds["attempt.finished"], step
    assert {lease.state for lease in ledger.leases(LeaseFilter(run=outcome.run_id))} <= FINAL
    assert CANARY not in str([event.data for event in events])


@pytest.mark.parametrize("point", POINTS)
def test_an_exception_anywhere_in_an_attempt_ends_its_step_and_no_other(bench: Bench, point: str) -> None:
    workflow = loaded(bench)

    async def go() -> None:
        for name, make in ({**EXCEPTIONS, **WORSE} if point in WIDE else APART).items():
            outcome, _ = await run(bench, workflow, POINTS[point], make, max_parallel=1)
            assert outcome.state is RunState.FAILED, name
            assert outcome.exit_code in (ExitCode.STEP_FAILED, ExitCode.UNREACHABLE), name
            assert dict(outcome.steps) == {
                "bad": StepState.FAILED,
                "after": StepState.SKIPPED,
                "other": StepState.SUCCEEDED,
            }, name
            assert CANARY not in str(outcome.errors["bad"])
            bench.assert_nothing_left()

    asyncio.run(go())


@pytest.mark.parametrize("point", CLOSING)
def test_an_exception_while_credentials_are_taken_back_keeps_no_other_from_being(bench: Bench, point: str) -> None:
    workflow = loaded(bench)

    async def go() -> None:
        for name, make in APART.items():
            outcome, _ = await run(bench, workflow, CLOSING[point], make, max_parallel=1)
            assert set(outcome.steps.values()) == {StepState.SUCCEEDED}, name
            assert outcome.exit_code in (ExitCode.DONE, ExitCode.UNCONFIRMED), name
            bench.assert_nothing_left()

    asyncio.run(go())


@pytest.mark.parametrize("exception", {**EXCEPTIONS, **WORSE})
def test_what_an_action_raises_ends_its_step_on_every_ledger(bench: Bench, setup: Setup, exception: str) -> None:
    make = {**EXCEPTIONS, **WORSE}[exception]
    how: Any = {"ledger_url": setup.ledger_url, "max_parallel": 1}
    outcome, _ = asyncio.run(run(bench, loaded(bench), POINTS["the action later"], make, **how))
    assert (outcome.state, outcome.exit_code) == (RunState.FAILED, ExitCode.STEP_FAILED)
    assert outcome.steps["other"] is StepState.SUCCEEDED
    assert getattr(outcome.errors["bad"], "kind", "") == ("timeout" if exception == "TimeoutError" else "error")


@pytest.mark.parametrize("exception", EXCEPTIONS)
def test_an_exception_in_the_walk_ends_the_run_as_a_defect(
    bench: Bench, exception: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sabotage(services: Services, make: Callable[[], BaseException]) -> Services:
        async def drive(graph: Graph, call: CallStep, *arguments: Any, **options: Any) -> dict[str, StepState]:
            async def raising(step: str) -> StepState:
                state = await call(step)
                if step == "other":
                    raise make()
                return state

            return await graph_walk.drive(graph, raising, *arguments, **options)

        monkeypatch.setattr(runner, "drive", drive)
        return services

    outcome, _ = asyncio.run(run(bench, loaded(bench), sabotage, EXCEPTIONS[exception], max_parallel=1))
    if exception == "CancelledError":  # a step's task that was cancelled is a cancelled step, whoever did it
        assert outcome.state is RunState.SUCCEEDED
        return
    assert (outcome.state, outcome.exit_code) == (RunState.FAILED, ExitCode.DEFECT)
    assert "defect" in outcome.reason
    assert "report" in outcome.reason
    assert CANARY not in outcome.reason


KINDS = ("lease.requested", "lease.issued", "lease.revoking", "attempt.finished", "step.finished", "run.finished")


@pytest.mark.parametrize("kind", KINDS)
def test_an_exception_in_the_record_of_an_event_still_ends_the_run(bench: Bench, kind: str) -> None:
    """Not that the ledger is away, which ends a run, but that what is to be recorded cannot be, once."""

    def sabotage(services: Services, make: Callable[[], BaseException]) -> Services:
        ledger, raised = services.ledger, []

        class Failing:
            begin_run, take_over, aclose = ledger.begin_run, ledger.take_over, ledger.aclose

            async def append(self, run_id: str, fence: int, events: Any) -> None:
                if not raised and any(event.kind == kind for event in events):
                    raised.append(kind)
                    raise make()
                await ledger.append(run_id, fence, events)

        failing: Any = Failing()
        return replace(services, ledger=failing, broker=replace(services.broker, ledger=failing))

    workflow = loaded(bench)

    async def go() -> None:
        for name, make in APART.items():
            outcome, _ = await run(bench, workflow, sabotage, make, max_parallel=1)
            assert outcome.state in (RunState.FAILED, RunState.SUCCEEDED), name
            assert outcome.steps["other"] is StepState.SUCCEEDED, name
            bench.assert_nothing_left()

    asyncio.run(go())


def test_who_watches_a_run_cannot_fail_it(bench: Bench) -> None:
    workflow = loaded(bench)

    def observe(run_id: str, time: Any, event: Event) -> None:
        raise Unspeakable

    async def go() -> RunOutcome:
        async with open_services(bench.config(), redactor=Redactor(), observer=observe) as services:
            return await Runner(services).run(RunRequest(run_id=new_run_id(), loaded=workflow, inputs={}))

    outcome = asyncio.run(go())
    assert outcome.exit_code is ExitCode.DONE
    with open_ledger(bench.config().ledger_url, clock=bench.config().clock) as ledger:
        check(ledger, outcome)


def when_stopped(then: Callable[[], Awaitable[Any]]) -> Sabotage:
    async def work(context: StepContext, make: Callable[[], BaseException]) -> Any:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return await then()

    return stub(work)


async def returns() -> Any:
    return {"done": True}


async def raises() -> Any:
    raise ValueError(CANARY)


async def fails() -> Any:
    raise StepFailed("the service was told to stop", kind="connection")


async def goes_on() -> Any:
    while True:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            continue


TIMED_OUT = {
    "returns": (returns, "timeout", "took longer than the step's timeout of 1s"),
    "raises": (raises, "timeout", "told to stop, the action raised ValueError: ***"),
    "fails": (fails, "connection", "the service was told to stop"),
    "goes on": (goes_on, "timeout", "went on for 0.2s after it was told to stop, and was left behind"),
}


@pytest.mark.parametrize("how", TIMED_OUT)
def test_a_step_ends_at_its_timeout_however_its_action_takes_being_stopped(
    bench: Bench, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.runs.steps.action_task.STOP_SECONDS", 0.2)
    then, kind, said = TIMED_OUT[how]
    workflow = loaded(bench, WORKFLOW.replace("timeout: 30s", "timeout: 1s"))
    outcome, _ = asyncio.run(run(bench, workflow, when_stopped(then), ValueError, max_parallel=1))
    assert (outcome.state, outcome.exit_code) == (RunState.FAILED, ExitCode.STEP_FAILED)
    assert outcome.steps["other"] is StepState.SUCCEEDED
    error = outcome.errors["bad"]
    assert isinstance(error, StepFailed)
    assert error.kind == kind
    assert said in error.message


@pytest.mark.parametrize("how", TIMED_OUT)
def test_a_run_ends_at_its_timeout_however_an_action_takes_being_stopped(
    bench: Bench, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.runs.steps.action_task.STOP_SECONDS", 0.2)
    then, _, said = TIMED_OUT[how]
    workflow = loaded(bench, WORKFLOW.replace("agent: tester", "agent: tester\ntimeout: 1s"))
    outcome, seen = asyncio.run(run(bench, workflow, when_stopped(then), ValueError, max_parallel=1))
    assert (outcome.state, outcome.exit_code) == (RunState.FAILED, ExitCode.STEP_FAILED)
    assert "the run took longer than its timeout" in outcome.reason
    assert outcome.steps["bad"] is StepState.CANCELLED
    [ended] = [event for event in seen if isinstance(event, StepFinished) and event.step == "bad"]
    assert ended.reason == (said if how == "raises" else ended.reason)
    assert ("left behind" in ended.reason) == (how == "goes on")


def test_a_timeout_of_the_run_while_credentials_are_taken_back_waits_for_that(bench: Bench) -> None:
    workflow = loaded(bench, WORKFLOW.replace("agent: tester", "agent: tester\ntimeout: 2s"))
    closing: list[str] = []

    def sabotage(services: Services, make: Callable[[], BaseException]) -> Services:
        vault = services.broker.vault
        original = vault.revoke_lease

        async def slow(*given: Any, **named: Any) -> Any:
            if not closing:
                closing.append("begun")
                limit = asyncio.get_running_loop().time() + 3
                while asyncio.get_running_loop().time() < limit:
                    await asyncio.sleep(0.1)
                closing.append("ended")
            return await original(*given, **named)

        vault.revoke_lease = slow  # type: ignore[method-assign]
        return services

    outcome, _ = asyncio.run(run(bench, workflow, sabotage, ValueError, max_parallel=1))
    assert closing == ["begun", "ended"]
    assert "the run took longer than its timeout" in outcome.reason
    assert dict(outcome.steps) == {
        "bad": StepState.SUCCEEDED,
        "after": StepState.CANCELLED,
        "other": StepState.CANCELLED,
    }


def test_a_cancellation_while_the_end_is_recorded_does_not_lose_it(bench: Bench) -> None:
    workflow = loaded(bench)

    async def go() -> RunOutcome:
        async with open_services(bench.config(), redactor=Redactor()) as services:
            ledger, tasks = services.ledger, []

            class Slow:
                begin_run, take_over, aclose = ledger.begin_run, ledger.take_over, ledger.aclose

                async def append(self, run_id: str, fence: int, events: Any) -> None:
                    if any(event.kind == "run.finished" for event in events):
                        tasks[0].cancel()
                        await asyncio.sleep(0.05)
                        tasks[0].cancel()
                    await ledger.append(run_id, fence, events)

            slow: Any = Slow()
            request = RunRequest(run_id=new_run_id(), loaded=workflow, inputs={})
            tasks.append(asyncio.create_task(Runner(replace(services, ledger=slow)).run(request)))
            outcome: RunOutcome = await tasks[0]
            check(services.reader, outcome)
            return outcome

    assert asyncio.run(go()).exit_code is ExitCode.DONE


def test_a_cancellation_while_the_beginning_is_recorded_ends_the_run(bench: Bench) -> None:
    workflow = loaded(bench)

    async def go() -> RunOutcome:
        async with open_services(bench.config(), redactor=Redactor()) as services:
            ledger, tasks = services.ledger, []

            class Slow:
                append, take_over, aclose = ledger.append, ledger.take_over, ledger.aclose

                async def begin_run(self, run_id: str, started: Any, also: Any = ()) -> int:
                    fence = await ledger.begin_run(run_id, started, also)
                    tasks[0].cancel()
                    await asyncio.sleep(0.05)
                    return fence

            slow: Any = Slow()
            request = RunRequest(run_id=new_run_id(), loaded=workflow, inputs={})
            tasks.append(asyncio.create_task(Runner(replace(services, ledger=slow)).run(request)))
            outcome: RunOutcome = await tasks[0]
            check(services.reader, outcome)
            return outcome

    outcome = asyncio.run(go())
    assert (outcome.state, outcome.exit_code) == (RunState.CANCELLED, ExitCode.INTERRUPTED)
    assert set(outcome.steps.values()) == {StepState.CANCELLED}


EMPTY = """
version: 1
name: empty_result
agent: tester
{context}
inputs: {{ ids: {{ type: array, default: [] }} }}
steps:
  read:
    action: postgres.query
    grants: {{ db: {{ kind: database, connection: support, role: feedback-read }} }}
    with: {{ sql: SELECT 1 AS id WHERE false }}
    outputs: [rows]
  bad:
    action: postgres.query
    grants: {{ db: {grant} }}
    {condition}
    with: {{ sql: "SELECT %(id)s AS id", parameters: {{ id: {value} }} }}
  after:
    action: postgres.query
    needs: [bad]
    grants: {{ db: {{ kind: database, connection: support, role: feedback-read }} }}
    with: {{ sql: SELECT 1 }}
  other:
    action: postgres.query
    grants: {{ db: {{ kind: database, connection: support, role: feedback-read }} }}
    with: {{ sql: SELECT 1 }}
"""
BY_HAND = "{ kind: database, connection: support, role: feedback-read }"
FIRST = "'${{ steps.read.output.rows[0].id }}'"


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"value": FIRST}, "with.parameters.id"),
        ({"condition": f"if: {FIRST}"}, "if"),
        (
            {
                "grant": "{ kind: database, connection: support, privileges: [{ "
                f"select: public.customer_feedback, columns: [id], where: {{ id: {FIRST} }} }}] }}"
            },
            "grants.db",
        ),
    ],
)
def test_the_first_row_of_an_empty_result_fails_the_step_that_asks_for_it(
    bench: Bench, setup: Setup, changes: dict[str, str], place: str
) -> None:
    parts = {"context": "", "grant": BY_HAND, "condition": "", "value": "1", **changes}
    workflow = loaded(bench, EMPTY.format(**parts))
    how: Any = {"ledger_url": setup.ledger_url}
    outcome, _ = asyncio.run(run(bench, workflow, lambda services, make: services, ValueError, **how))
    assert (outcome.state, outcome.exit_code) == (RunState.FAILED, ExitCode.STEP_FAILED)
    assert outcome.steps == {
        "read": StepState.SUCCEEDED,
        "bad": StepState.FAILED,
        "after": StepState.SKIPPED,
        "other": StepState.SUCCEEDED,
    }
    error = outcome.errors["bad"]
    assert error.message.startswith(f"step `bad`: `{place}")
    assert "`steps.read.output.rows[0].id` cannot be evaluated: a list does not have the element" in error.message
    assert "size(rows) > 0" in str(error.hint)


def test_a_context_that_cannot_be_told_ends_the_run_before_anything_is_issued(bench: Bench) -> None:
    parts = {"grant": BY_HAND, "condition": "", "value": "1", "context": "context: { one: '${{ inputs.ids[0] }}' }"}
    outcome, seen = asyncio.run(run(bench, loaded(bench, EMPTY.format(**parts)), lambda s, m: s, ValueError))
    assert (outcome.state, outcome.exit_code) == (RunState.FAILED, ExitCode.INVALID)
    assert outcome.reason.startswith("`context.one`: `inputs.ids[0]`")
    assert not [event for event in seen if event.kind.startswith("lease.")]

"""The Rego engine: every way of not getting a clear yes is a no, and broken policies are found at the start."""

import asyncio
import gc
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import UsageError
from orchestrator.policy.engines.allow_all import AllowAllEngine
from orchestrator.policy.engines.rego.engine import PolicySource, RegoEngine, revision_of
from orchestrator.policy.opening import open_engine
from orchestrator.policy.types import Decision, PolicyRequest
from orchestrator.policy.watched import WatchedPolicies

ALLOW = 'package orchestrator\ndecision := {"allow": true}\n'


def request(agent: str = "a") -> PolicyRequest:
    return PolicyRequest(
        workflow="w",
        workflow_digest="sha256:00",
        run="r",
        trigger="manual",
        inputs={},
        context={},
        step="s",
        attempt=1,
        agent=agent,
        action="exec",
        action_view={},
        grants=(),
    )


def decide(text: str, agent: str = "a") -> Decision:
    return asyncio.run(RegoEngine.from_sources([PolicySource("p.rego", text)]).decide(request(agent)))


def test_a_policy_that_says_yes_allows() -> None:
    assert decide(ALLOW).allow


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('decision := {"allow": true} if input.agent == "b"', "undefined"),
        ('decision := {"allow": "yes"}', "no boolean `allow`"),
        ('decision := {"allow": true, "reasons": "fine"}', "`reasons`"),
        ('decision := {"allow": true, "reasons": [1]}', "`reasons.0`"),
        ('decision := {"allow": true, "reasons": {{"a": 1}}}', "`reasons.0`"),
        ('decision := {"allow": true, "reasons": {["a"]}}', "`reasons.0`"),
        ('decision := {{"allow": true}}', "undefined"),
        ('decision := {"allow": true, "obligations": []}', "`obligations`"),
        (
            'decision := {"allow": true, "obligations": {"delete_everything": "at once"}}',
            "cannot do: delete_everything",
        ),
        ('decision := {"allow": true, "obligations": {"max_ttl": "5m"}}', "`obligations.max_ttl`"),
        ('decision := {"allow": true, "obligatons": {"max_ttl": 60}}', "not understood: obligatons"),
        ("decision := true", "undefined"),
    ],
)
def test_an_answer_that_is_not_exactly_understood_is_a_denial(text: str, reason: str) -> None:
    decision = decide(f"package orchestrator\n{text}\n")
    assert not decision.allow
    assert reason in decision.reasons[0]


def test_an_error_while_deciding_is_a_denial_that_says_where() -> None:
    text = """package orchestrator
decision := {"allow": true} if input.agent
decision := {"allow": false} if input.workflow.name == "w"
"""
    decision = decide(text)
    assert not decision.allow
    assert decision.reasons == (
        "the policy could not be evaluated: p.rego:3:1: rule conflicts with rule at p.rego:2:1",
    )


def test_reasons_given_as_a_set_come_in_order() -> None:
    assert decide('package orchestrator\ndecision := {"allow": false, "reasons": {"b", "c", "a"}}').reasons == (
        "a",
        "b",
        "c",
    )


def test_an_obligation_that_is_known_is_handed_on() -> None:
    text = 'package orchestrator\ndecision := {"allow": true, "obligations": {"max_ttl": 60}}'
    assert decide(text).obligations.max_ttl == 60


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("package orchestrator\ndecision := {", "broken.rego:2:14"),
        ('package orchestrator\n\ndecision := {"allow": who}', "broken.rego:3:23"),
    ],
)
def test_a_broken_policy_is_found_at_the_start_with_its_place_and_excerpt(
    tmp_path: Path, text: str, place: str
) -> None:
    (tmp_path / "broken.rego").write_text(text)
    with pytest.raises(UsageError) as caught:
        RegoEngine.from_directory(tmp_path)
    assert place in caught.value.message
    assert text.splitlines()[-1] in caught.value.message
    assert "backtrace" not in caught.value.message


def test_policies_that_define_no_decision_are_refused_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "other.rego").write_text("package something.else\nallow := true\n")
    with pytest.raises(UsageError, match=r"no policy defines data\.orchestrator\.decision"):
        RegoEngine.from_directory(tmp_path)


def test_a_folder_without_policies_is_refused(tmp_path: Path) -> None:
    (tmp_path / "only_test.rego").write_text(ALLOW)
    with pytest.raises(UsageError, match="has no policy in it"):
        RegoEngine.from_directory(tmp_path)
    with pytest.raises(UsageError, match="is not a folder"):
        RegoEngine.from_directory(tmp_path / "nowhere")


def test_a_policy_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "binary.rego").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match=r"binary\.rego"):
        RegoEngine.from_directory(tmp_path)


def test_policy_tests_are_not_policies(tmp_path: Path) -> None:
    (tmp_path / "a.rego").write_text(ALLOW)
    before = RegoEngine.from_directory(tmp_path)
    (tmp_path / "a_test.rego").write_text("not rego at all")
    assert RegoEngine.from_directory(tmp_path).revision == before.revision


def test_the_revision_changes_with_every_name_and_every_byte() -> None:
    one, two = PolicySource("x/a.rego", ALLOW), PolicySource("x/b.rego", "package b")
    revisions = {
        revision_of([one, two]),
        revision_of([one]),
        revision_of([PolicySource("x/c.rego", ALLOW), two]),
        revision_of([one, PolicySource("x/b.rego", "package b ")]),
    }
    assert len(revisions) == 4
    assert revision_of([two, one]) == revision_of([one, two])
    assert revision_of([PolicySource("y/a.rego", ALLOW)]) == revision_of([one])


async def test_many_tasks_and_threads_may_ask_at_once() -> None:
    text = 'package orchestrator\ndecision := {"allow": input.agent == "a", "reasons": [input.agent]}'
    engine = RegoEngine.from_sources([PolicySource("p.rego", text)])

    async def ask(agent: str) -> Decision:
        return await engine.decide(request(agent))

    agents = ["a", "b", "c"] * 20
    in_tasks = await asyncio.gather(*map(ask, agents))
    in_threads = await asyncio.gather(*(asyncio.to_thread(asyncio.run, ask(agent)) for agent in agents))
    for decisions in (in_tasks, in_threads):
        assert [decision.reasons for decision in decisions] == [(agent,) for agent in agents]
        assert [decision.allow for decision in decisions] == [agent == "a" for agent in agents]


def test_engines_are_found_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.rego").write_text(ALLOW)
    watched = open_engine("rego", path=tmp_path)
    assert isinstance(watched, WatchedPolicies)
    assert isinstance(watched.engine, RegoEngine)
    assert isinstance(open_engine("allow-all", path=tmp_path), AllowAllEngine)
    with pytest.raises(UsageError, match="nothing is registered as `regno`"):
        open_engine("regno", path=tmp_path)


async def test_allowing_everything_says_that_nobody_looked() -> None:
    decision = await AllowAllEngine().decide(request())
    assert decision.allow
    assert decision.engine == "allow-all"
    assert "no policy was asked" in decision.reasons[0]


def test_an_engine_that_another_thread_finds_unused_ends_without_a_word(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The collector of cycles runs in whichever thread makes the objects that are one too many."""
    said: list[Any] = []
    hook, sys.unraisablehook = sys.unraisablehook, said.append

    def leave() -> None:
        cycle: list[Any] = [RegoEngine.from_sources([PolicySource("a.rego", ALLOW)])]
        cycle.append(cycle)
        with pytest.raises(UsageError) as failed:
            RegoEngine.from_sources([PolicySource("b.rego", "package orchestrator\ndecision := ")])
        cycle.append(failed)

    gc.disable()
    try:
        leave()
        collecting = threading.Thread(target=gc.collect)
        collecting.start()
        collecting.join()
    finally:
        gc.enable()
        sys.unraisablehook = hook
    assert said == []
    assert "unsendable" not in capfd.readouterr().err


OFFICE_HOURS = """
package orchestrator
default decision := {{"allow": false, "reasons": ["outside office hours"]}}
decision := {{"allow": true, "reasons": ["dry run, decided at run time"]}} if input.time == null
decision := {{"allow": true, "reasons": ["office hours"]}} if {{
  {guard}
  [hour, _, _] := time.clock([time.parse_rfc3339_ns(input.time), "Europe/Berlin"])
  hour >= 0
}}
"""


def test_a_rule_that_asks_first_does_not_fail_on_a_dry_run_which_has_no_time() -> None:
    assert request().as_json()["time"] is None
    asked = decide(OFFICE_HOURS.format(guard="is_string(input.time)"))
    assert (asked.allow, asked.reasons) == (True, ("dry run, decided at run time",))


def test_without_that_an_error_in_one_rule_is_a_denial_whatever_the_others_say() -> None:
    assert not decide(OFFICE_HOURS.format(guard="true")).allow

"""What a workflow file may say about its schedule, and where it is told what is wrong."""

import pytest

from orchestrator.actions.catalog import catalog
from orchestrator.workflow.loader import LoadedWorkflow, load_text
from orchestrator.workflow.problems import InvalidWorkflow

BASE = """version: 1
name: nightly
agent: tester
inputs:
  limit: {{ type: integer }}
  colour: {{ default: red, enum: [red, blue] }}
  key: {{ secret: true, default: x }}
schedule: {schedule}
steps:
  only:
    action: exec
    with: {{ command: [/bin/true] }}
"""


def loaded(schedule: str, base: str = BASE.replace("  key: {{ secret: true, default: x }}\n", "")) -> LoadedWorkflow:
    return load_text(base.format(schedule=schedule), filename="t.yaml", actions=catalog)


def test_a_schedule_says_when_with_which_inputs_and_what_happens_on_overlap() -> None:
    schedule = loaded(
        "{ cron: '15 0 7 * * 1-5', timezone: Europe/Berlin, jitter: 90s, overlap: queue, catch_up: latest, "
        "enabled: false, inputs: { limit: 5 } }"
    ).workflow.schedule
    assert schedule is not None
    assert (schedule.jitter, schedule.overlap, schedule.catch_up, schedule.enabled) == (90, "queue", "latest", False)
    assert schedule.inputs == {"limit": 5}


def test_the_defaults_are_the_careful_ones() -> None:
    schedule = loaded("{ every: 1h, inputs: { limit: 5 } }").workflow.schedule
    assert schedule is not None
    assert (schedule.jitter, schedule.overlap, schedule.catch_up, schedule.enabled) == (None, "forbid", "none", True)


@pytest.mark.parametrize(
    ("schedule", "told"),
    [
        ("{ every: 1h }", "scheduled runs need the input `limit`"),
        ("{ every: 1h, inputs: { limit: many } }", "the input `limit` is not right: expected a whole number"),
        ("{ every: 1h, inputs: { limit: 1, color: red } }", "there is no input `color`"),
        ("{ every: 1h, inputs: { limit: 1, colour: green } }", "it is one of"),
        ("{ every: 1h, inputs: { limit: '${{{{ run.id }}}}' } }", "an expression has no effect here"),
        ("{ every: 1h, jitter: 1h, inputs: { limit: 1 } }", "`jitter` must be shorter than `every`"),
        ("{ every: 1h, overlap: perhaps, inputs: { limit: 1 } }", "'forbid', 'queue', 'replace' or 'allow'"),
        ("{ inputs: { limit: 1 } }", "either `cron` or `every`"),
        ("{ every: 999999999h, inputs: { limit: 1 } }", "a duration is at most 87660h"),
        ("{ every: 87660h1s, inputs: { limit: 1 } }", "a duration is at most 87660h"),
        ("{ every: 1000000000000000000000000000000, inputs: { limit: 1 } }", "a duration is at most 87660h"),
        ("{ every: " + "9" * 400 + "h, inputs: { limit: 1 } }", "is not a duration"),
        ("{ every: -5, inputs: { limit: 1 } }", "a duration is longer than zero"),
    ],
)
def test_what_is_wrong_with_a_schedule_is_told_with_its_place(schedule: str, told: str) -> None:
    with pytest.raises(InvalidWorkflow) as error:
        loaded(schedule.replace("{{{{", "{{").replace("}}}}", "}}"))
    assert told in str(error.value)
    assert all(problem.line == 7 for problem in error.value.problems)


def test_a_secret_input_is_not_written_into_a_schedule() -> None:
    with pytest.raises(InvalidWorkflow, match="the input `key` is secret"):
        loaded("{ every: 1h, inputs: { limit: 1, key: abc } }", BASE.replace(", default: x", ""))

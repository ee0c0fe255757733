"""Whatever a grant declares and whatever is inferred: the file says the latter, and the rest of it is untouched.

Or nothing is written, and it is said why.
"""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from written_workflows import Style, Written, declarations, files, inferences

from orchestrator.actions.catalog import catalog
from orchestrator.errors import UsageError
from orchestrator.grants.models import DatabaseGrant
from orchestrator.grants.privileges import Privilege, merge
from orchestrator.inference.comparison import difference
from orchestrator.inference.live import Inferred
from orchestrator.inference.rewrite import rewritten
from orchestrator.inference.workflows import StepNeeds
from orchestrator.workflow.loader import LoadedWorkflow, load_text
from orchestrator.workflow.problems import InvalidWorkflow

LINE_END = re.compile("\r\n|\r|\n")


def needs_of(loaded: LoadedWorkflow, inferred: dict[str, tuple[Privilege, ...]]) -> list[StepNeeds]:
    """What is to be written, as `grants infer` would find it."""
    found = []
    for step, wanted in inferred.items():
        grant = loaded.workflow.parts[step].grants.get("db")
        assert grant is None or isinstance(grant, DatabaseGrant)
        declared = tuple(each.privilege() for each in grant.privileges) if grant else ()
        need = StepNeeds(
            step=step,
            action="postgres.query",
            connection="c",
            grant="db",
            declared=declared,
            role=grant.role if grant else None,
            added=grant is None,
            found=difference(declared, Inferred(wanted)),
        )
        if need.found.complete and (need.differs or need.role is not None):
            found.append(need)
    return found


def load(text: str) -> LoadedWorkflow:
    return load_text(text, filename="w.yaml", actions=catalog)


def declared_in(loaded: LoadedWorkflow, step: str) -> tuple[Privilege, ...]:
    grant = loaded.workflow.parts[step].grants["db"]
    assert isinstance(grant, DatabaseGrant)
    return merge(each.privilege() for each in grant.privileges)


def lines_of(text: str) -> str:
    return LINE_END.sub("\n", text)


@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(file=files())
def test_the_file_says_what_is_inferred_and_everything_else_stays(file: Written) -> None:
    loaded = load(file.text)
    needs = needs_of(loaded, file.inferred)
    result = rewritten(loaded, needs, actions=catalog)
    for need in needs:
        assert declared_in(result, need.step) == need.found.wanted
    position = 0
    for part in file.around:
        position = lines_of(result.text).index(part, position) + len(part)
    assert lines_of(result.text)[position:] in ("", "\n") or not file.text.endswith(("\n", "\r"))
    for comment in file.comments:
        assert re.search(rf"(?m)(^|[\s,]){re.escape(comment)}[ \t]*$", lines_of(result.text)), f"{comment} is lost"
    if len(set(LINE_END.findall(file.text))) == 1:
        assert set(LINE_END.findall(result.text)) == set(LINE_END.findall(file.text))
    assert not needs_of(result, file.inferred), "a second time, nothing is to be written"
    if not needs:
        assert result.text == file.text


@given(file=files())
def test_steps_that_are_not_chosen_stay_byte_for_byte(file: Written) -> None:
    loaded = load(file.text)
    (chosen, *others) = file.inferred
    result = rewritten(loaded, needs_of(loaded, {chosen: file.inferred[chosen]}), actions=catalog)
    if others:
        rest = file.text[file.text.index(f"  {others[0]}:") :]
        assert result.text.endswith(rest)


@st.composite
def json_files(draw: st.DrawFn) -> tuple[str, dict[str, tuple[Privilege, ...]]]:
    steps: dict[str, Any] = {}
    for number in range(draw(st.integers(1, 3))):
        step: dict[str, Any] = {"action": "postgres.query"}
        grant: dict[str, Any] = {"kind": "database", "connection": "c"}
        match draw(st.sampled_from(["compiled", "compiled", "role", "none", "empty"])):
            case "compiled":
                grant["privileges"] = [each.as_json() for each in draw(declarations())]
                step["grants"] = {"db": grant}
            case "role":
                step["grants"] = {"db": {**grant, "role": "by-hand"}}
            case "empty":
                step["grants"] = {}
        steps[f"step{number}"] = {**step, "with": {"sql": 'x # "y"'}}
    content = {"version": 1, "name": "small", "agent": "tester", "steps": steps}
    ascii_only = not json.dumps(content, ensure_ascii=False).isprintable()
    text = json.dumps(content, indent=draw(st.sampled_from([None, 2, "\t"])), ensure_ascii=False)
    assume(not ascii_only)  # a text that YAML reads otherwise than JSON
    return text.replace("\n", draw(st.sampled_from(["\n", "\r\n"]))), {step: draw(inferences) for step in steps}


@given(file=json_files())
def test_json_stays_json(file: tuple[str, dict[str, tuple[Privilege, ...]]]) -> None:
    text, inferred = file
    loaded = load(text)
    needs = needs_of(loaded, inferred)
    result = rewritten(loaded, needs, actions=catalog)
    content, before = json.loads(result.text), json.loads(text)
    for need in needs:
        assert declared_in(result, need.step) == need.found.wanted
        content["steps"][need.step]["grants"]["db"].pop("privileges")
        grant = before["steps"][need.step].setdefault("grants", {}).setdefault("db", {})
        grant.update({"kind": "database", "connection": "c"})
        grant.pop("privileges", None)
        grant.pop("role", None)
    assert content == before
    assert not needs_of(result, inferred)


SPOILT = [
    "\r",
    "\n",
    "\r\n",
    "\t",
    "#",
    " # x",
    "&a ",
    "*a",
    "!!str ",
    "\x85",
    "\u2028",
    ",",
    "- ",
    ": ",
    "? ",
    " ",
    "'",
    "}",
    "]",
]


@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much], max_examples=200)
@given(file=files(), data=st.data())
def test_a_file_that_somebody_spoilt_is_written_right_or_refused(file: Written, data: st.DataObject) -> None:
    text = file.text
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(text)))
        text = text[:place] + data.draw(st.sampled_from(SPOILT)) + text[place + data.draw(st.integers(0, 1)) :]
    try:
        loaded = load(text)
        steps = {step: wanted for step, wanted in file.inferred.items() if step in loaded.workflow.parts}
        needs = needs_of(loaded, steps)
    except (InvalidWorkflow, AssertionError):
        assume(False)
    try:
        result = rewritten(loaded, needs, actions=catalog)
    except UsageError as error:
        assert error.message
        return
    for need in needs:
        assert declared_in(result, need.step) == need.found.wanted
    assert not needs_of(result, steps)


@given(declared=declarations(), inferred=inferences, data=st.data())
def test_anchors_are_refused_with_the_reason_wherever_an_edit_would_meet_them(
    declared: list[Privilege], inferred: tuple[Privilege, ...], data: st.DataObject
) -> None:
    grants = Style(data.draw).grants(declared)
    place = data.draw(st.sampled_from(["    grants:", "    action:"]))
    text = (
        "version: 1\nname: x\nagent: tester\nsteps:\n  work:\n    action: postgres.query\n"
        f"{grants}    with: {{ sql: x }}\n"
    ).replace(place, f"{place} &anchor")
    try:
        loaded = load(text)
    except InvalidWorkflow:
        assume(False)
    needs = needs_of(loaded, {"work": inferred})
    if place == "    grants:" and needs:
        with pytest.raises(UsageError, match="step `work` is written with a YAML anchor or alias"):
            rewritten(loaded, needs, actions=catalog)
    else:
        assert "&anchor" in rewritten(loaded, needs, actions=catalog).text

"""Reading workflow files: everything that is wrong is said at once, at its place, before anything runs."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from orchestrator.actions.catalog import catalog
from orchestrator.errors import UsageError
from orchestrator.secret import Secret
from orchestrator.starter.workflow import STARTER
from orchestrator.workflow.inputs import bind_inputs, public_inputs
from orchestrator.workflow.loader import LoadedWorkflow, load, load_text
from orchestrator.workflow.problems import InvalidWorkflow, Problem
from orchestrator.workflow.schema import json_schema

ROOT = Path(__file__).parents[2]
SAMPLES = sorted((ROOT / "workflows").glob("*.yaml"))


def read(text: str) -> LoadedWorkflow:
    return load_text(text, filename="w.yaml", actions=catalog)


def problems(text: str) -> tuple[Problem, ...]:
    with pytest.raises(InvalidWorkflow) as caught:
        read(text)
    return caught.value.problems


def messages(text: str) -> str:
    return "\n".join(f"{problem.message} / {problem.hint}" for problem in problems(text))


def step(body: str, top: str = "") -> str:
    return f"version: 1\nname: w\nagent: a\n{top}\nsteps:\n  one:\n    action: postgres.query\n{body}"


GRANT = "    grants:\n      db: { kind: database, connection: c, role: r }\n"
QUERY = GRANT + "    with: { sql: SELECT 1 }\n"


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.name)
def test_every_sample_is_valid_under_the_loader_and_the_schema(path: Path) -> None:
    load(path, actions=catalog)
    jsonschema.validate(YAML(typ="safe", pure=True).load(path.read_text()), json_schema(catalog))


def test_the_shipped_schema_is_the_generated_one() -> None:
    shipped = json.loads((ROOT / "orchestrator" / "workflow" / "workflow.schema.json").read_text())
    assert shipped == json_schema(catalog)
    jsonschema.Draft202012Validator.check_schema(shipped)


def test_the_schema_refuses_unknown_keys_and_actions() -> None:
    validator = jsonschema.Draft202012Validator(json_schema(catalog))
    good = YAML(typ="safe", pure=True).load(step(QUERY))
    assert validator.is_valid(good)
    assert not validator.is_valid({**good, "stepz": {}})
    assert not validator.is_valid({**good, "steps": {"one": {**good["steps"]["one"], "action": "nothing"}}})


@pytest.mark.parametrize("merged", ["*one", "[*one]", "{ a: 1 }"])
def test_a_merge_key_is_said_to_be_one(merged: str) -> None:
    told = messages(step(QUERY).replace("  one:", "  one: &one", 1) + f"  two:\n    <<: {merged}\n")
    assert "merge keys (`<<`) are not read / write out here what it brings in" in told
    assert "put it in quotes" not in told


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        (step(QUERY).replace("  one:", f"  {'a' * 41}:"), "at most 40 lower-case letters, digits and underscores,"),
        (step(QUERY).replace("  one:", "  One:"), "at most 40 lower-case letters, digits and underscores,"),
        (
            step(QUERY.replace("db:", f"{'a' * 64}:")),
            "at most 63 lower-case letters, digits, underscores and hyphens, beginning with a letter",
        ),
    ],
)
def test_a_name_that_cannot_be_one_is_told_what_may_be_in_it_and_how_much(text: str, hint: str) -> None:
    assert hint in messages(text)


@pytest.mark.parametrize("letters", [40, 1])
def test_a_name_of_just_that_length_is_one(letters: int) -> None:
    assert list(read(step(QUERY).replace("  one:", f"  {'a' * letters}:")).workflow.steps) == ["a" * letters]


def test_the_starter_is_valid() -> None:
    assert read(STARTER).workflow.name == "my_workflow"


def test_all_errors_of_a_file_are_reported_at_once_and_at_their_place() -> None:
    text = """\
version: 1
name: w
agent: a
inputz: {}
steps:
  one:
    action: postgres.quey
    with: { sql: SELECT 1 }
    timeout: soon
  two:
    action: postgres.query
    need: [one]
    grants:
      db: { kind: databse, connection: c, role: r }
    with: { sql: SELECT 1, grnt: db }
  three:
    action: http.request
    with: { method: GET, url: "${{ steps.tow.output.x }}", bearer: api }
"""
    found = {(problem.line, problem.message): problem for problem in problems(text)}
    assert found[4, "unknown key `inputz`"].hint == "did you mean `inputs`?"
    assert found[7, "there is no action `postgres.quey`"].hint == "did you mean `postgres.query`?"
    assert any(line == 9 and "duration" in message for line, message in found)
    assert found[12, "unknown key `need`"].hint == "did you mean `needs`?"
    assert found[14, "there is no kind of grant `databse`"].hint == "did you mean `database`?"
    assert found[15, "unknown key `grnt`"].hint == "did you mean `grant`?"
    assert found[18, "there is no step `tow`"].hint == "did you mean `two`?"
    assert (18, "the step has no grant `api`") in found


def test_a_problem_is_shown_with_a_caret_under_its_place() -> None:
    (problem,) = problems(step(QUERY, top="nonsense: 1"))
    assert problem.render().splitlines()[:3] == [
        "w.yaml:4:1: error: unknown key `nonsense`",
        "    4 | nonsense: 1",
        "      | ^",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the file is empty"),
        ("- 1\n- 2", "a workflow is a map"),
        ("version: 1\nversion: 1", "is here twice"),
        ("a: [1", "not valid YAML"),
        ("%YAML 9.9\n---\na", "not valid YAML"),
        ("%TAG ! a\n---\n!x a", "tag"),
        ("k0:\n%YAML 3.0\n---\na", "not valid YAML"),
        ("[" * 5_000, "not valid YAML"),
        ("a: !!python/object:os.system x", "tag"),
        ("a: 1\n---\nb: 2", "not valid YAML"),
        ("1: x", "is not a text"),
        ("<<: { if: 'true' }", "merge keys (`<<`) are not read / write out here what it brings in"),
        (step(QUERY + "    needs: [one]\n"), "needs itself"),
        (step(QUERY + "    needs: [ghost]\n"), "there is no step `ghost`"),
        (step(QUERY + "    timeout: 0s\n"), "longer than zero"),
        (step(QUERY + "    if: inputs.x >\n"), "not a CEL expression"),
        (step(QUERY + "    if: secrets.x\n"), "there is no variable `secrets`"),
        (step(QUERY + "    description: ${{ inputs.x }}\n"), "no effect here"),
        (step(GRANT + "    with: { sql: '${{ inputs.nope }}' }\n"), "there is no input `nope`"),
        (step(GRANT + "    with: { sql: '${{ steps.one.output.rows }}' }\n"), "refers to itself"),
        (step(GRANT + "    with: { sql: '${{ inputs' }\n"), "is not closed"),
        (step(GRANT + "    with: { sql: [1] }\n"), "expected a text"),
        (step(GRANT + "    with: {}\n"), "`sql` is missing"),
        (step(QUERY, top="inputs: { n: { type: integer, default: x } }"), "expected a whole number"),
        (step(QUERY, top="inputs: { n: { type: string, secret: true, default: x } }"), "no default"),
        (step(QUERY, top="schedule: { cron: 'whenever' }"), "not a cron expression"),
        (step(QUERY, top="schedule: { cron: '0 7 * * *', timezone: Mars/Base }"), "IANA"),
        (step(QUERY, top="context: { x: '${{ steps.one.output.rows }}' }"), "may refer to inputs, workflow, run"),
    ],
)
def test_what_is_refused_before_anything_runs(text: str, said: str) -> None:
    assert said in messages(text)


def test_a_reference_to_an_output_that_is_not_kept_says_how_to_keep_it() -> None:
    text = (
        step(QUERY)
        + "  two:\n    action: http.request\n    with: { method: GET, url: '${{ steps.one.output.rows }}' }\n"
    )
    (problem,) = problems(text)
    assert problem.hint == "add `outputs: [rows]` to step `one`"


def test_a_cycle_is_named() -> None:
    more = "  two:\n    action: postgres.query\n    with: { sql: x }\n    needs: [one]\n"
    assert "one -> two -> one" in messages(step(QUERY + "    needs: [two]\n") + more)


def test_a_secret_input_may_only_be_passed_on_whole() -> None:
    top = "inputs: { key: { secret: true } }"
    whole = step(GRANT + "    with: { sql: SELECT 1, parameters: { k: '${{ inputs.key }}' } }\n", top=top)
    read(whole)
    for misuse in ("x ${{ inputs.key }}", "${{ inputs.key + inputs.key }}", "${{ size(inputs.key) }}"):
        text = step(f"{GRANT}    with: {{ sql: SELECT 1, parameters: {{ k: '{misuse}' }} }}\n", top=top)
        assert "may only be passed on whole" in messages(text)
    assert "may only be passed on whole" in messages(step(QUERY + "    if: inputs.key == 'x'\n", top=top))


def test_aliases_that_explode_are_refused_quickly() -> None:
    bomb = "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
    )
    assert "too many values" in messages(bomb)


def test_ordinary_aliases_are_fine() -> None:
    text = step(GRANT.replace("{ kind", "&g { kind") + "    with: { sql: SELECT 1 }\n")
    text += "  two:\n    action: postgres.query\n    grants: { db: *g }\n    with: { sql: SELECT 2 }\n"
    assert read(text).workflow.steps["two"].grants == read(text).workflow.steps["one"].grants


@given(st.text(max_size=300))
def test_no_text_makes_the_loader_fail_in_another_way(text: str) -> None:
    try:
        read(text)
    except InvalidWorkflow as error:
        assert error.problems
        for problem in error.problems:
            problem.render()


@given(st.integers(0, 400), st.characters(), st.booleans())
def test_no_damage_to_a_good_file_makes_the_loader_fail_in_another_way(at: int, char: str, cut: bool) -> None:
    good = STARTER
    text = good[:at] + char + good[at + cut :]
    try:
        read(text)
    except InvalidWorkflow as error:
        assert error.problems


def test_inputs_are_typed_and_all_that_is_wrong_is_named() -> None:
    top = "inputs: { n: { type: integer }, flag: { type: boolean, default: true }, key: { secret: true } }"
    workflow = read(step(QUERY, top=top)).workflow
    bound = bind_inputs(workflow, {"n": "5", "key": "hunter2"}, from_text=True)
    assert bound == {"n": 5, "flag": True, "key": Secret("hunter2")}
    assert public_inputs(workflow, bound) == {"n": 5, "flag": True, "key": "***"}
    with pytest.raises(UsageError) as caught:
        bind_inputs(workflow, {"n": "five", "flagg": "x"}, from_text=True)
    for part in ("`n` is not right", "`flagg`; did you mean `flag`?", "`key` is missing"):
        assert part in caught.value.message
    assert "five" not in caught.value.message


@pytest.mark.parametrize(
    "place", ["    with: { sql: SELECT 1, parameters: { x: '${{ %s }}' } }", "    if: '%s'\n" + QUERY]
)
def test_an_expression_that_could_crash_the_engine_is_named_with_its_place(place: str) -> None:
    text = step(place % "+".join(["1"] * 600))
    [found] = [problem for problem in problems(text) if "words and signs" in problem.message]
    line = next(number for number, row in enumerate(text.splitlines(), 1) if "1+1+1" in row)
    assert (found.line, found.column > 1) == (line, True)
    assert len(found.message) < 200


def test_an_input_that_is_not_declared_is_told_with_those_that_are() -> None:
    two = read(step(QUERY, top="inputs: { limit: { type: integer, default: 1 }, zone: { type: string, default: a } }"))
    with pytest.raises(UsageError, match="there is no input `m`; known here: limit, zone"):
        bind_inputs(two.workflow, {"m": 3})
    with pytest.raises(UsageError, match=r"there is no input `limt`; did you mean `limit`\?"):
        bind_inputs(two.workflow, {"limt": 3})
    with pytest.raises(UsageError, match="there is no input `m`; the workflow has none"):
        bind_inputs(read(step(QUERY)).workflow, {"m": 3})


def test_where_a_step_keeps_nothing_its_reader_is_told_what_to_add() -> None:
    text = f"{step(QUERY)}  two:\n    action: exec\n    with: {{ command: [a, '${{{{ steps.one.output }}}}'] }}\n"
    (problem,) = problems(text)
    assert problem.message == "name one key of the output of `one`"
    assert problem.hint == "add `outputs: [KEY]` to step `one`: it keeps nothing"


def test_another_version_of_the_language_is_told_from_one_of_the_workflow() -> None:
    (problem,) = problems(step(QUERY).replace("version: 1", "version: 2"))
    assert (problem.message, "language" in problem.hint) == ("expected 1", True)


@pytest.mark.parametrize("number", ["5", "1.10", "true"])
def test_a_number_that_is_written_where_a_text_is_wanted_goes_into_quotes(number: str) -> None:
    (problem,) = problems(step(GRANT + f"    with: {{ sql: SELECT 1, grant: {number} }}\n"))
    assert problem.hint == "put it in quotes"

"""The reference pages are what the code says, whole, and nothing in them is without a description."""

from __future__ import annotations

import dataclasses
import html
import re
from typing import Any, Literal

import pytest
from bench import ROOT
from pydantic import BaseModel, Field

from orchestrator.actions.catalog import catalog
from orchestrator.errors import ExitCode
from orchestrator.ledger import states
from orchestrator.ledger.lease import TRANSITIONS, LeaseState
from orchestrator.settings import Settings
from orchestrator.workflow.cel.template import ROOTS
from orchestrator.workflow.cel.types import _types
from orchestrator.workflow.loader import load_text
from orchestrator.workflow.models.workflow import Workflow
from tools.reference import __main__ as command
from tools.reference import events, expressions, extensions, schemas
from tools.reference import settings as of_settings
from tools.reference.docstrings import summary
from tools.reference.pages import FOLDER, pages

PAGES = pages()
STEP_TYPES = {"text": "string", "integer": "int"}


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_what_the_code_says_today(name: str) -> None:
    assert (FOLDER / name).read_text() == PAGES[name], "run `make reference`"


def test_no_page_is_left_of_what_is_not_generated_any_more() -> None:
    assert {path.name for path in FOLDER.iterdir()} == set(PAGES)


def test_the_check_names_the_page_that_is_out_of_date(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "FOLDER", tmp_path)
    monkeypatch.setattr(command, "pages", lambda: {"a.md": "a", "b.md": "b"})
    (tmp_path / "old.md").write_text("old")
    assert command.main([]) == 0
    assert command.main(["--check"]) == 0
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a.md": "a", "b.md": "b"}
    (tmp_path / "b.md").write_text("changed")
    assert command.main(["--check"]) == 1
    assert "b.md; run" in capsys.readouterr().err
    assert (tmp_path / "b.md").read_text() == "changed"


def rows(page: str, heading: str) -> list[list[str]]:
    """The cells of the first table below a heading."""
    _, found, rest = page.partition(f"\n{heading}\n")
    assert found, heading
    lines = rest[rest.index("\n| ") :].strip().split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def models(schema: dict[str, Any]) -> dict[str, dict[str, Any]]:
    found = {name: part for name, part in schema["$defs"].items() if part.get("properties")}
    return {schemas.heading(name, part): part for name, part in found.items()}


def test_every_key_of_the_language_is_there_with_its_meaning() -> None:
    schema = Workflow.model_json_schema(by_alias=True)
    assert len(models(schema)) > 12
    for title, part in {"Workflow": schema, **models(schema)}.items():
        shown = {row[0]: row for row in rows(PAGES["workflow.md"], f"## {title}")}
        assert list(shown) == [f"`{key}`" for key in part["properties"]], title
        for key, row in shown.items():
            assert row[3] or key in ("`kind`",), f"{title}.{key} has no description"


@pytest.mark.parametrize("name", catalog.names())
def test_every_parameter_and_every_key_of_the_output_of_an_action_is_there(name: str) -> None:
    params = catalog.params_of(name)
    assert params is not None
    page = PAGES["actions.md"]
    for key, _, _, said in rows(page, f"## {name}"):
        assert said, f"{name} {key} has no description"
    assert [row[0] for row in rows(page, f"## {name}")] == [
        f"`{key}`" for key in params.model_json_schema(by_alias=True)["properties"]
    ]
    section = page.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
    assert section.count("```yaml") == (0 if name in ("exec", "python", "aws.call") else 1), "the samples have it"


@pytest.mark.parametrize("name", catalog.names())
def test_the_described_keys_are_those_that_the_output_can_have(name: str) -> None:
    params = catalog.params_of(name)
    assert params is not None
    possible = {frozenset(): params.output_keys({})}
    for parameter, part in params.model_json_schema().get("properties", {}).items():
        for value in part.get("enum", ()):
            possible[frozenset([(parameter, value)])] = params.output_keys({parameter: value})
    if None in possible.values():
        assert set(params.output_descriptions) == {"*"}
        return
    assert set(params.output_descriptions) == {key for keys in possible.values() for key in keys or ()}
    assert set(params.output_types) <= set(params.output_descriptions)


def test_a_key_that_only_one_form_of_the_output_has_says_which() -> None:
    shown = {row[0]: row[2] for row in rows(PAGES["actions.md"].partition("\n## exec\n")[2], "Its output:")}
    assert "With `output`: `json`." in shown["`json`"]
    assert "With `output`: `text`." in shown["`stdout`"]
    assert "With" not in shown["`exit_code`"]


def test_every_setting_is_there_with_its_variable_and_its_meaning() -> None:
    shown = {row[1].strip("`[]"): row for row in rows(PAGES["settings.md"], "# Settings")}
    assert list(shown) == list(Settings.model_fields)
    for name, row in shown.items():
        assert row[4], f"{name} has no description"
        assert row[0] == ", ".join(f"`{variable}`" for variable in of_settings.variables(name))
    assert shown["endpoints"][0] == "`ORCHESTRATOR_ENDPOINTS__NAME`"
    assert shown["auth_token"][0] == "`ORCHESTRATOR_AUTH_TOKEN`, `VAULT_TOKEN`"
    assert shown["grace"][3] == "`30.0`"


def test_every_field_of_every_event_means_something() -> None:
    kinds = [each.kind for each in events.events()]
    assert len(kinds) == len(set(kinds)) > 25
    for each in events.events():
        fields = [field.name for field in dataclasses.fields(each)]
        assert [row[0].strip("`") for row in rows(PAGES["events.md"], f"## {each.kind}")] == fields
        for name in fields:
            assert events.meaning(each, name) or f"`{name}`" in summary(each), f"{each.kind}.{name} says nothing"


def test_no_common_meaning_is_kept_for_a_field_that_no_event_has() -> None:
    assert set(events.COMMON) <= {field.name for each in events.events() for field in dataclasses.fields(each)}


@pytest.mark.parametrize("kind", [states.RunState, states.StepState, states.ApprovalState, LeaseState])
def test_every_state_is_there_with_its_meaning(kind: Any) -> None:
    shown = {row[0].strip("`"): row for row in rows(PAGES["states.md"], f"## {kind.__name__}")}
    assert list(shown) == [each.value for each in kind]
    assert all(row[1] for row in shown.values())


def test_the_transitions_of_a_lease_are_those_of_the_one_table() -> None:
    for state, _, by, after in rows(PAGES["states.md"], "## LeaseState"):
        legal = TRANSITIONS[LeaseState(state.strip("`"))]
        assert set(re.findall(r"`(\w+)`", after)) == {each.value for each in legal}
        assert by


def test_a_run_that_waits_can_be_cancelled_and_one_that_was_interrupted_cannot() -> None:
    after = {row[0].strip("`"): row[2] for row in rows(PAGES["states.md"], "## RunState")}
    assert after["waiting"] == "`running`, `cancelled`"
    assert after["interrupted"] == "`running`"
    assert after["failed"] == "nothing: it is final"


def test_every_exit_code_is_there_with_its_meaning() -> None:
    shown = {int(row[0]): row[2] for row in rows(PAGES["exit-codes.md"], "# Exit codes")}
    assert set(shown) == {int(each) for each in ExitCode}
    assert all(shown.values())


def test_every_variable_of_expressions_is_described() -> None:
    assert expressions.missing() == []
    assert {path.partition(".")[0] for path in expressions.VARIABLES} == set(ROOTS)


def workflow_with(path: str) -> str:
    """A workflow in which an expression refers to the path, where that may be."""
    used = path.replace("NAME", "n").replace("KEY", "stdout")
    if path.startswith(("call", "task")):
        part = f"with: {{ command: [/bin/echo, a], stdin: '${{{{ {used} }}}}' }}\n    call: {{ n: {{ type: string }} }}"
        return f"version: 1\nname: w\ntools:\n  t:\n    description: d\n    action: exec\n    {part}\n"
    loop = "\n    for_each: [1]" if path in ("item", "step.index") else ""
    return (
        "version: 1\nname: w\nagent: a\ninputs: { n: { type: string } }\ncontext: { n: x }\nsteps:\n"
        "  n: { action: exec, with: { command: [/bin/echo] }, outputs: [stdout] }\n"
        f"  s:\n    action: exec\n    needs: [n]{loop}\n"
        f"    with: {{ command: [/bin/echo], stdin: '${{{{ {used} }}}}' }}\n"
    )


@pytest.mark.parametrize("path", expressions.VARIABLES)
def test_a_variable_is_there_and_has_the_type_that_the_checks_know(path: str) -> None:
    loaded = load_text(workflow_with(path), filename="w.yaml", actions=catalog)
    used = path.replace("NAME", "n").replace("KEY", "stdout")
    known = dict(_types(loaded.workflow.model_dump(by_alias=True), {used}, catalog))
    said = expressions.VARIABLES[path][0]
    if said in STEP_TYPES:
        assert known == {used: STEP_TYPES[said]} or path == "endpoints.NAME"


def test_what_is_said_not_to_be_there_is_not() -> None:
    assert list(expressions.absent()) == expressions.NOT_THERE


def test_the_entry_points_are_those_of_the_project() -> None:
    for group, named in extensions.groups().items():
        shown = {row[0].strip("`"): row[1].strip("`") for row in rows(PAGES["extensions.md"], f"## {group}")}
        assert shown == named


def test_every_command_and_option_is_there_with_its_meaning() -> None:
    from typer.main import get_command

    from orchestrator.cli.main import command_line

    def commands(group: Any, name: str) -> Any:
        for each, inner in getattr(group, "commands", {}).items():
            yield from commands(inner, f"{name} {each}")
        if not getattr(group, "commands", None):
            yield name, group

    found = {name: each for name, each in commands(get_command(command_line()), "orchestrator") if not each.hidden}
    assert len(found) > 40
    for name, each in found.items():
        assert each.help, name
        section = re.split(rf"^##+ {re.escape(name)}$", PAGES["command-line.md"], flags=re.MULTILINE)[1]
        section = html.unescape(section.partition("\n##")[0])
        for given in each.params:
            if not getattr(given, "hidden", False):
                assert given.help, f"{name} {given.name} has no help"
                option = given.param_type_name == "option"
                for word in given.opts if option else [given.display_name_raw.strip("[].")]:
                    assert word in section, (name, word)


class Inner(BaseModel):
    """What is inside.

    More of it.
    """

    kind: Literal["odd"]
    size: int = Field(default=3, ge=1, le=9, description="How large, with a | bar and a <tag>.")


class Outer(BaseModel):
    """A model that the generator has never seen."""

    first: Inner
    many: dict[str, list[Inner]] | None = None
    word: str = Field(pattern="^(a|b)$", description="One of `a|b`, or *not*.", examples=["a"])


def test_a_key_that_nobody_has_heard_of_is_written_like_the_others() -> None:
    text = schemas.sections("Outer", Outer.model_json_schema())
    assert [row[:3] for row in rows("\n" + text, "## Outer")] == [
        ["`first`", "[Grant: odd](#grant-odd)", "required"],
        ["`many`", "map of list of [Grant: odd](#grant-odd)", ""],
        ["`word`", "text; matches <code>^(a&#124;b)$</code>", "required"],
    ]
    meanings = {row[0]: row[3] for row in rows("\n" + text, "## Outer")}
    assert meanings["`first`"] == "What is inside."
    assert meanings["`word`"] == r"One of <code>a&#124;b</code>, or \*not\*. Example: `a`."
    assert rows("\n" + text, "## Grant: odd")[1] == [
        "`size`",
        "integer; at least 1; at most 9",
        "`3`",
        "How large, with a &#124; bar and a &lt;tag&gt;.",
    ]


def test_make_writes_the_reference() -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(r"^reference: .*\n\t\$\(BIN\)/python -m tools\.reference$", makefile, re.M)

"""`data.json` beside the rules: read as `opa run FOLDER` reads it, strictly, and every problem with its place."""

import asyncio
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import test_policy_rego

from orchestrator.errors import UsageError
from orchestrator.policy.engines.rego.engine import RegoEngine
from orchestrator.policy.engines.rego.folder import MAX_FILE_BYTES
from orchestrator.policy.watched import WatchedPolicies

RULES = """package orchestrator
import rego.v1
default decision := {"allow": false}
decision := {"allow": true, "reasons": [data.word]} if input.agent in data.agents
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "rules.rego").write_text(RULES)
    (tmp_path / "data.json").write_text('{"agents": ["a"], "word": "as data.json says"}')
    return tmp_path


def refused(folder: Path) -> str:
    with pytest.raises(UsageError) as caught:
        RegoEngine.from_directory(folder)
    return caught.value.message


async def test_rules_look_into_the_data_at_the_root(folder: Path) -> None:
    engine = RegoEngine.from_directory(folder)
    decision = await engine.decide(test_policy_rego.request("a"))
    assert (decision.allow, decision.reasons) == (True, ("as data.json says",))
    assert not (await engine.decide(test_policy_rego.request("b"))).allow


async def test_data_are_there_in_other_threads(folder: Path) -> None:
    engine = RegoEngine.from_directory(folder)
    decision = await asyncio.to_thread(asyncio.run, engine.decide(test_policy_rego.request("a")))
    assert decision.reasons == ("as data.json says",)


async def test_without_data_what_looks_into_them_is_undefined(folder: Path) -> None:
    (folder / "data.json").unlink()
    assert not (await RegoEngine.from_directory(folder).decide(test_policy_rego.request("a"))).allow


def test_the_revision_is_also_that_of_the_data(folder: Path) -> None:
    revisions = set()
    for text in ('{"word": "a"}', '{"word": "b"}', '{"word": "b"} '):
        (folder / "data.json").write_text(text)
        revisions.add(RegoEngine.from_directory(folder).revision)
    (folder / "data.json").unlink()
    revisions.add(RegoEngine.from_directory(folder).revision)
    assert len(revisions) == 4


async def test_changed_data_are_read_before_the_next_question(folder: Path) -> None:
    policies = WatchedPolicies(RegoEngine.from_directory, folder)
    before = policies.revision
    assert not (await policies.decide(test_policy_rego.request("b"))).allow
    (folder / "data.json").write_text('{"agents": ["b"], "word": "new"}')
    assert (await policies.decide(test_policy_rego.request("b"))).reasons == ("new",)
    assert policies.revision != before
    (folder / "data.json").write_text("{")
    assert (await policies.decide(test_policy_rego.request("b"))).reasons == ("new",)
    assert "data.json:1:2: is not JSON" in policies.trouble


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "data.json:1:1: is not JSON"),
        ('{\n  "a": 1,\n}', "data.json:"),
        ('{"a": 1} x', "data.json:1:10: is not JSON: Extra data"),
        ("[1]", "data.json:1:1: is not one JSON object"),
        ('\n "a"', "data.json:2:2: is not one JSON object"),
        ("\ufeff{}", "data.json:1:1: is not JSON"),
        ('{"a": 1, "b": 2,\n "a": 3}', 'data.json:2:2: the key "a" is there twice'),
        ('{"a": [{"b": {"c": 1, "c": 1}}]}', 'data.json:1:23: the key "c" is there twice'),
        ('{"a": 1, "\\u0061": 2}', 'data.json:1:10: the key "\\u0061" is there twice'),
        ('{"a": NaN}', "data.json:1:7: NaN is no JSON"),
        ('{"a": [1, -Infinity]}', "data.json:1:11: -Infinity is no JSON"),
        ('{"a": 9223372036854775808}', "data.json:1:7: the number 9223372036854775808 cannot"),
        ('{"a": -9223372036854775809}', "data.json:1:7: the number -9223372036854775809 cannot"),
        ('{"a": ' + "1" * 5000 + "}", "data.json:1:7: the number 1111"),
        ('{"a": 1e400}', "data.json:1:7: the number 1e400 cannot"),
        ('{"a": 9007199254740993.0}', "data.json:1:7: the number 9007199254740993.0 cannot"),
        ('{"a": "\\ud800"}', "data.json:1:"),
        ('{"a": ' + "[" * 200 + "]" * 200 + "}", "data.json:1:"),
        ('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", "data.json:1:1: is nested too deeply"),
        ('{"a": 1, "orchestrator": {}}', "data.json:1:10: `data.orchestrator` is a package of the rules"),
        ('{"a": {"orchestrator": {}}, "orchestrator": 1}', "data.json:1:29: `data.orchestrator`"),
    ],
)
def test_what_json_leaves_open_is_refused_with_its_place(folder: Path, text: str, said: str) -> None:
    (folder / "data.json").write_text(text)
    message = refused(folder)
    assert said in message
    assert len(message) < 1000


def test_an_excerpt_shows_the_line_and_the_place(folder: Path) -> None:
    (folder / "data.json").write_text('{\n\t"a": 1,\n\t"a": 2\n}')
    assert refused(folder).endswith('  |\n3 | \t"a": 2\n  | \t^')


def test_an_excerpt_of_a_long_line_is_the_part_around_the_place(folder: Path) -> None:
    numbers = ", ".join(map(str, range(50_000)))
    (folder / "data.json").write_text(f'{{"list": [{numbers}, NaN], "more": [{numbers}]}}')
    _, _, excerpt, caret = refused(folder).split("\n")
    assert len(excerpt) < 200
    assert excerpt[caret.index("^") :].startswith("NaN], ")


def test_the_ends_of_lines_are_those_of_unix_wherever_a_file_was_written(folder: Path) -> None:
    before = RegoEngine.from_directory(folder).revision
    for end in (b"\r\n", b"\r"):
        (folder / "rules.rego").write_bytes(RULES.encode().replace(b"\n", end))
        assert RegoEngine.from_directory(folder).revision == before


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        '{"a": 9223372036854775807, "b": -9223372036854775808, "c": 1.5, "d": 1e3, "e": 9007199254740991.0}',
        '{"a": {"a": {"a": []}}, "b": {"a": null}, "c": [{"a": true}, {"a": false}]}',
        '{"a": "{\\"a\\": [NaN, \\\\", "b{": "a,:", "orchestrator2": "NaN"}',
        '{"list": ["orchestrator", {"orchestrator": 1}]}',
    ],
)
def test_all_other_json_is_read(folder: Path, text: str) -> None:
    (folder / "data.json").write_text(text)
    engine = RegoEngine.from_directory(folder)
    assert engine.data is not None
    assert json.loads(engine.data.text) == json.loads(text)


@pytest.mark.parametrize(
    ("data", "refused"),
    [
        ({"lib": {}}, True),
        ({"lib": {"other": 1}}, True),
        ({"deep": {"er": {"x": 1}}}, True),
        ({"deep": 1}, True),
        ({"deep": [{"er": 1}]}, True),
        ({"deep": {"other": 1}}, False),
        ({"er": 1}, False),
    ],
)
def test_data_are_not_where_any_package_of_the_folder_is(folder: Path, data: dict[str, Any], refused: bool) -> None:
    (folder / "lib.rego").write_text("package lib\nx := 1\n")
    (folder / "deep.rego").write_text("package deep.er\nx := 1\n")
    (folder / "data.json").write_text(json.dumps(data))
    if refused:
        with pytest.raises(UsageError, match="is a package of the rules"):
            RegoEngine.from_directory(folder)
    else:
        RegoEngine.from_directory(folder)


@pytest.mark.parametrize("name", ["data.yaml", "data.yml", "more.json", "users.yaml", "x_test.json"])
def test_data_that_only_opa_would_read_are_refused(folder: Path, name: str) -> None:
    (folder / name).write_text("{}")
    with pytest.raises(UsageError, match="is not read") as caught:
        RegoEngine.from_directory(folder)
    assert name in caught.value.message
    assert "data.json" in str(caught.value.hint)


def test_hidden_files_other_files_and_folders_are_left_alone(folder: Path) -> None:
    before = RegoEngine.from_directory(folder).revision
    (folder / ".data.json.swp").write_bytes(b"\xff")
    (folder / ".hidden.yaml").write_text("a: 1")
    (folder / "README.md").write_text("about")
    (folder / "more").mkdir()
    assert RegoEngine.from_directory(folder).revision == before


def _not_utf8(file: Path) -> None:
    file.write_bytes(b'{"a": "\xff"}')


def _too_long(file: Path) -> None:
    file.write_text('{"a": "' + "x" * MAX_FILE_BYTES + '"}')


def _lost_link(file: Path) -> None:
    file.unlink()
    file.symlink_to("nowhere")


def _pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def _folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize("break_it", [_not_utf8, _too_long, _lost_link, _pipe, _folder])
@pytest.mark.parametrize("name", ["data.json", "rules.rego"])
def test_a_file_that_cannot_be_read_is_refused_by_name(
    folder: Path, break_it: Callable[[Path], None], name: str
) -> None:
    break_it(folder / name)
    assert f"{name}: cannot be read as UTF-8 text: " in refused(folder)

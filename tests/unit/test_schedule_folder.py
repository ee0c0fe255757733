"""The workflows of a folder, and what happens when its files change."""

from pathlib import Path
from typing import Any

import pytest

from orchestrator.actions.catalog import catalog
from orchestrator.errors import UsageError
from orchestrator.scheduling.folder import WorkflowFolder
from orchestrator.workflow.loader import LoadedWorkflow, load

TEXT = """version: 1
name: {name}
description: {text}
agent: tester
schedule: {{ every: 1h }}
steps:
  only:
    action: exec
    with: {{ command: [/bin/true] }}
"""


def put(folder: Path, file: str, name: str, text: str = "first") -> None:
    (folder / file).write_text(TEXT.format(name=name, text=text))


def descriptions(reading: WorkflowFolder) -> dict[str, str]:
    return {name: loaded.workflow.description for name, loaded in reading.read().workflows.items()}


def test_every_yaml_file_is_a_workflow_but_hidden_files_and_others_are_not(tmp_path: Path) -> None:
    put(tmp_path, "a.yaml", "first")
    put(tmp_path, "b.yml", "second")
    put(tmp_path, ".draft.yaml", "draft")
    put(tmp_path, "notes.txt", "notes")
    (tmp_path / "policies").mkdir()
    assert sorted(WorkflowFolder(tmp_path, catalog).read().workflows) == ["first", "second"]


def test_what_agents_call_is_neither_a_workflow_to_run_nor_wrong(tmp_path: Path) -> None:
    put(tmp_path, "a.yaml", "one")
    tool = "  only:\n    description: d\n    action: exec\n    with: { command: [/bin/true] }\n"
    (tmp_path / "b.yaml").write_text(f"version: 1\nname: two\ntools:\n{tool}")
    found = WorkflowFolder(tmp_path, catalog).read()
    assert (list(found.workflows), found.invalid) == (["one"], 0)


def test_while_no_file_changes_the_answer_is_the_same_object(tmp_path: Path) -> None:
    put(tmp_path, "a.yaml", "one")
    reading = WorkflowFolder(tmp_path, catalog)
    assert reading.read() is reading.read()


def test_a_changed_file_is_loaded_again_and_a_removed_one_forgotten(tmp_path: Path) -> None:
    put(tmp_path, "a.yaml", "one")
    reading = WorkflowFolder(tmp_path, catalog)
    assert descriptions(reading) == {"one": "first"}
    put(tmp_path, "a.yaml", "one", "another")
    put(tmp_path, "b.yaml", "two")
    assert descriptions(reading) == {"one": "another", "two": "first"}
    (tmp_path / "a.yaml").unlink()
    assert descriptions(reading) == {"two": "first"}


def test_a_file_that_is_broken_keeps_its_last_valid_version(tmp_path: Path) -> None:
    put(tmp_path, "a.yaml", "one")
    reading = WorkflowFolder(tmp_path, catalog)
    reading.read()
    (tmp_path / "a.yaml").write_text("version: 1\nname: [")
    broken = reading.read()
    assert list(broken.workflows) == ["one"]
    assert broken.invalid == 1
    put(tmp_path, "a.yaml", "one", "mended")
    mended = reading.read()
    assert mended.workflows["one"].workflow.description == "mended"
    assert mended.invalid == 0


def test_a_file_that_was_never_valid_is_not_scheduled(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.yaml").write_text("version: 2")
    found = WorkflowFolder(tmp_path, catalog).read()
    assert (dict(found.workflows), found.invalid) == ({}, 1)
    assert "it is not scheduled" in caplog.text


def test_of_two_files_with_one_name_only_the_first_is_scheduled(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path, "b.yaml", "same", "in b")
    put(tmp_path, "a.yaml", "same", "in a")
    reading = WorkflowFolder(tmp_path, catalog)
    assert descriptions(reading) == {"same": "in a"}
    assert reading.read().invalid == 1
    assert "a.yaml has a workflow same already" in caplog.text


@pytest.mark.parametrize("defect", [RecursionError(), MemoryError(), KeyError("line of a file")])
def test_a_file_over_which_reading_fails_keeps_no_other_from_being_scheduled(
    defect: Exception, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail_over_one(path: Path, **more: Any) -> LoadedWorkflow:
        if path.name == "b.yaml":
            raise defect
        return load(path, **more)

    monkeypatch.setattr("orchestrator.scheduling.folder.load", fail_over_one)
    for name in "abc":
        put(tmp_path, f"{name}.yaml", f"in_{name}")
    found = WorkflowFolder(tmp_path, catalog).read()
    assert (list(found.workflows), found.invalid) == (["in_a", "in_c"], 1)
    assert type(defect).__name__ in caplog.text
    assert "line of a file" not in caplog.text


def test_a_folder_that_is_none_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        WorkflowFolder(tmp_path / "nowhere", catalog).read()


def test_what_a_run_will_lack_is_told_when_the_file_is_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = """version: 1
name: {name}
agent: a
steps:
  ask: {{ action: http.request, with: {{ url: "${{{{ endpoints.billing }}}}/x" }} }}
"""
    (tmp_path / "w.yaml").write_text(text.format(name="asks"))
    folder = WorkflowFolder(tmp_path, catalog, endpoints={})
    assert list(folder.read().workflows) == ["asks"]
    assert "w.yaml:5: there is no endpoint `billing`: set ORCHESTRATOR_ENDPOINTS__BILLING" in caplog.text
    caplog.clear()
    WorkflowFolder(tmp_path, catalog, endpoints={"billing": "http://127.0.0.1"}).read()
    WorkflowFolder(tmp_path, catalog).read()
    assert "endpoint" not in caplog.text

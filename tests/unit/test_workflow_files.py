"""A workflow is read from one regular file of bounded size, whatever somebody put in its place."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.actions.catalog import catalog
from orchestrator.errors import UsageError
from orchestrator.provision.service import load_workflows
from orchestrator.provision.vault.step_policies import step_access
from orchestrator.scheduling.folder import WorkflowFolder
from orchestrator.workflow.files import MAX_BYTES, read_text
from orchestrator.workflow.loader import load
from orchestrator.workflow.problems import InvalidWorkflow

SECRET = "s.3cr3t-id-of-the-runtime-0f9e8d7c"


def workflow(name: str, grants: str = "") -> str:
    return (
        f"version: 1\nname: {name}\nagent: a\nsteps:\n  one:\n    action: exec\n{grants}    with: {{ command: [a] }}\n"
    )


def link(path: Path) -> None:
    outside = path.parent.parent / "secret-id"
    outside.write_text(SECRET)
    path.symlink_to(outside)


def link_through_a_folder(path: Path) -> None:
    outside = path.parent.parent / "elsewhere"
    outside.mkdir()
    (outside / "secret-id").write_text(SECRET)
    (path.parent / "sub").symlink_to(outside)
    path.symlink_to("sub/secret-id")


def link_to_memory(path: Path) -> None:
    path.symlink_to("/proc/self/environ")


def sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, 3 << 30)


def growing(path: Path) -> None:
    path.write_bytes(b"#" * (MAX_BYTES + 1))


HOSTILE: dict[str, Callable[[Path], object]] = {
    "a FIFO": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a terminal": lambda path: path.symlink_to("/dev/tty"),
    "a folder": os.mkdir,
    "a link to a file outside": link,
    "a link through a folder": link_through_a_folder,
    "a link to the memory of the process": link_to_memory,
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a sparse file of 3 GB": sparse,
    "a byte too much": growing,
    "bytes that are no text": lambda path: path.write_bytes(b"\xff" + SECRET.encode()),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_folder_goes_on_without_what_is_no_workflow_file(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "workflows"
    folder.mkdir()
    HOSTILE[kind](folder / "bad.yaml")
    (folder / "good.yaml").write_text(workflow("good"))
    reading = WorkflowFolder(folder, catalog)
    found = reading.read()
    assert (list(found.workflows), found.invalid) == (["good"], 1)
    assert "bad.yaml: it is not scheduled" in caplog.text
    assert SECRET not in caplog.text
    with pytest.raises(UsageError) as caught:
        load_workflows(folder)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("kind", ["a FIFO", "a device", "a sparse file of 3 GB", "a byte too much", "a link to itself"])
@pytest.mark.parametrize("command", [["validate"], ["plan"], ["run"], ["queue", "add"], ["grants", "infer"]])
def test_a_command_refuses_what_is_no_workflow_file(kind: str, command: list[str], tmp_path: Path) -> None:
    HOSTILE[kind](tmp_path / "bad.yaml")
    limited = "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30));"
    ran = subprocess.run(
        [sys.executable, "-c", limited + "from orchestrator.cli.entry import run; run()", *command, "bad.yaml"],
        cwd=tmp_path,
        env={"HOME": str(tmp_path), "PATH": os.environ["PATH"], "VAULT_ADDR": "https://vault.example"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 2, ran.stderr
    assert "bad.yaml" in ran.stderr


def test_the_links_of_a_configmap_are_followed_and_noticed(tmp_path: Path) -> None:
    for version in ("one", "two"):
        (tmp_path / f"..2026_{version}").mkdir()
        (tmp_path / f"..2026_{version}" / "w.yaml").write_text(workflow(version))
    (tmp_path / "..data").symlink_to("..2026_one")
    (tmp_path / "w.yaml").symlink_to("..data/w.yaml")
    reading = WorkflowFolder(tmp_path, catalog)
    assert list(reading.read().workflows) == ["one"]
    (tmp_path / "..new").symlink_to("..2026_two")
    (tmp_path / "..new").rename(tmp_path / "..data")
    assert list(reading.read().workflows) == ["two"]
    assert [each.name for each in load_workflows(tmp_path)] == ["two"]


def test_a_folder_may_be_a_link_itself(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "w.yaml").write_text(workflow("one"))
    (tmp_path / "shown").symlink_to("real")
    assert list(WorkflowFolder(tmp_path / "shown", catalog).read().workflows) == ["one"]


def test_a_file_that_a_person_names_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "real.txt").write_text(workflow("one"))
    (tmp_path / "w.yaml").symlink_to("real.txt")
    assert load(tmp_path / "w.yaml", actions=catalog).workflow.name == "one"


def test_the_largest_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "w.yaml").write_text("#" * MAX_BYTES)
    assert len(read_text(tmp_path / "w.yaml")) == MAX_BYTES


def test_no_line_of_a_file_reaches_the_log_of_a_service(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, content in {
        "a.yaml": f"{SECRET}\n",
        "b.yaml": f"password: {SECRET}\n",
        "c.yaml": f"version: 1\nname: [{SECRET}\n",
        "d.yaml": workflow(SECRET),
        "e.yaml": f"version: 1\n{SECRET}: 1\n{SECRET}: 1\n",
        "f.yaml": f"a: *{SECRET}\n",
    }.items():
        (tmp_path / name).write_text(content)
    assert WorkflowFolder(tmp_path, catalog).read().invalid == 6
    assert SECRET not in caplog.text
    for name in "abcdef":
        assert f"{name}.yaml:" in caplog.text
    with pytest.raises(InvalidWorkflow) as caught:
        load(tmp_path / "a.yaml", actions=catalog)
    assert SECRET not in str(caught.value), "a message may be logged"
    assert SECRET in caught.value.shown, "whoever named the file sees its line"


@pytest.mark.parametrize("content", [f"a: &{SECRET[2:8]} 1\nb: &{SECRET[2:8]} {SECRET}\n", "? &a [*a, 1]\n: " * 5_000])
def test_an_anchor_that_is_defined_twice_is_refused_and_not_warned_of(
    content: str, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    (tmp_path / "w.yaml").write_text(content)
    with pytest.raises(InvalidWorkflow, match="an anchor is defined twice"):
        load(tmp_path / "w.yaml", actions=catalog)
    assert not recwarn.list


def test_the_file_that_had_a_name_keeps_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "m.yaml").write_text(workflow("same"))
    reading = WorkflowFolder(tmp_path, catalog)
    digest = reading.read().workflows["same"].digest
    for name in ("a.yaml", "z.yaml"):
        (tmp_path / name).write_text(workflow("same") + "# another\n")
    found = reading.read()
    assert (found.workflows["same"].digest, found.invalid) == (digest, 2)
    for name in ("a.yaml", "z.yaml"):
        assert f"{name}: {tmp_path}/m.yaml has a workflow same already" in caplog.text
    (tmp_path / "m.yaml").write_text(workflow("other"))
    assert set(reading.read().workflows) == {"same", "other"}
    (tmp_path / "a.yaml").write_text(workflow("other"))
    found = reading.read()
    assert found.workflows["other"].filename.endswith("m.yaml"), "who takes a new name does not get another's"


@pytest.mark.parametrize("names", [("a.yaml", "z.yaml"), ("a.yml", "a.yaml"), ("z.yaml", "b.yml")])
def test_what_is_provisioned_is_of_one_file_for_each_name(names: tuple[str, str], tmp_path: Path) -> None:
    grants = "    grants: { s: { kind: secret, path: prod/%s, keys: [a] } }\n"
    for name, path in zip(names, ("harmless", "root-password"), strict=True):
        (tmp_path / name).write_text(workflow("same", grants % path))
    with pytest.raises(UsageError, match="both have a workflow `same`") as caught:
        load_workflows(tmp_path)
    for name in names:
        assert name in caught.value.message


def test_no_policy_of_a_step_takes_the_place_of_another(tmp_path: Path) -> None:
    grants = "    grants: { s: { kind: secret, path: prod/a, keys: [a] } }\n"
    (tmp_path / "w.yaml").write_text(workflow("same", grants))
    (loaded,) = load_workflows(tmp_path)
    with pytest.raises(UsageError, match="`step/same/one`"):
        step_access([loaded, loaded], [])


def test_what_is_said_of_a_hostile_file_is_bounded(tmp_path: Path) -> None:
    keys = ", ".join(f"k{number}: 1" for number in range(20_000))
    (tmp_path / "w.yaml").write_text("{" + keys + "}")
    with pytest.raises(InvalidWorkflow) as caught:
        load(tmp_path / "w.yaml", actions=catalog)
    assert len(caught.value.problems) <= 100
    assert len(caught.value.shown) < 100_000
    assert "^" in caught.value.shown


@pytest.mark.parametrize("through", ["w.yaml", "sub/w.yaml"])
def test_a_workflow_outside_of_the_folder_is_not_reached_by_a_link(through: str, tmp_path: Path) -> None:
    folder, outside = tmp_path / "workflows", tmp_path / "elsewhere"
    folder.mkdir()
    outside.mkdir()
    (outside / "w.yaml").write_text(workflow("foreign"))
    (folder / "sub").symlink_to(outside)
    (folder / "w.yaml").symlink_to(through if "/" in through else outside / through)
    assert not WorkflowFolder(folder, catalog).read().workflows
    with pytest.raises(UsageError, match="leads out of its folder"):
        load_workflows(folder)


@pytest.mark.parametrize("kind", ["a FIFO", "a device", "a folder"])
def test_what_is_no_regular_file_is_said_to_be_none(kind: str, tmp_path: Path) -> None:
    HOSTILE[kind](tmp_path / "w.yaml")
    with pytest.raises(UsageError, match="is not a regular file"):
        read_text(tmp_path / "w.yaml")

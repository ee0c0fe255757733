"""Policies that change while runs go on: the new ones decide, and never half of them."""

from __future__ import annotations

import gc
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import test_policy_sample as sample

from orchestrator.errors import UsageError
from orchestrator.policy.engines.rego.engine import RegoEngine
from orchestrator.policy.types import Decision, PolicyEngine
from orchestrator.policy.watched import OnError, WatchedPolicies

HEAD = "package orchestrator\nimport rego.v1\n"


def write(folder: Path, says: str, library: str | None = None) -> None:
    """Two files that only fit together: an answer says which of both decided."""
    folder.mkdir(parents=True, exist_ok=True)
    rule = f'decision := {{"allow": true, "reasons": ["{says}", data.library.word]}}\n'
    (folder / "a.rego").write_text(HEAD + rule)
    (folder / "b.rego").write_text(f'package library\nimport rego.v1\nword := "{library or says}"\n')


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "policies", "old")
    return tmp_path / "policies"


def watched(folder: Path, on_error: OnError = OnError.KEEP) -> WatchedPolicies:
    return WatchedPolicies(RegoEngine.from_directory, folder, on_error)


async def ask(policies: WatchedPolicies) -> Decision:
    return await policies.decide(sample.QUERY)


async def test_changed_policies_decide_from_the_next_question_on(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    policies = watched(folder)
    first = await ask(policies)
    assert first.reasons == ("old", "old")
    write(folder, "new")
    second = await ask(policies)
    assert second.reasons == ("new", "new")
    assert second.revision != first.revision
    assert [record.message for record in caplog.records][-1] == (
        f"policies {second.revision} take the place of {first.revision}"
    )


async def test_a_change_that_keeps_size_and_time_is_seen(folder: Path) -> None:
    policies = watched(folder)
    before = (folder / "a.rego").stat()
    (folder / "a.rego").write_text((folder / "a.rego").read_text().replace('"old"', '"odd"'))
    os.utime(folder / "a.rego", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (await ask(policies)).reasons == ("odd", "old")


async def test_a_file_that_comes_or_goes_is_a_change(folder: Path) -> None:
    policies = watched(folder)
    (folder / "c.rego").write_text(HEAD + 'admit := {"allow": false, "reasons": ["nobody"]}\n')
    admitted = await policies.admit(sample.QUERY)
    assert admitted is not None
    assert admitted.reasons == ("nobody",)
    (folder / "c.rego").unlink()
    assert await policies.admit(sample.QUERY) is None


async def test_folders_that_are_exchanged_by_a_link_are_a_change(tmp_path: Path) -> None:
    """As a ConfigMap is mounted: the files are links through `..data`, which is exchanged at once."""
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    for version in ("old", "new"):
        write(mounted / f"..{version}", version)
    (mounted / "..data").symlink_to("..old")
    for name in ("a.rego", "b.rego"):
        (mounted / name).symlink_to(f"..data/{name}")
    whole = tmp_path / "whole"
    whole.symlink_to(mounted / "..old")
    of_files, of_folder = watched(mounted), watched(whole)
    assert (await ask(of_files)).reasons == (await ask(of_folder)).reasons == ("old", "old")
    for link, target in ((mounted / "..data", "..new"), (whole, mounted / "..new")):
        fresh = link.with_name("fresh")
        fresh.symlink_to(target)
        fresh.rename(link)
    assert (await ask(of_files)).reasons == (await ask(of_folder)).reasons == ("new", "new")
    shutil.rmtree(mounted / "..old")
    assert (await ask(of_files)).reasons == ("new", "new")


@pytest.mark.parametrize("by", ["rename", "one file after another"])
async def test_no_engine_is_made_of_half_a_change(folder: Path, by: str) -> None:
    """The folder is exchanged at the worst moment: while an engine is being made of it."""
    write(folder.with_name("next"), "next")
    made: list[PolicyEngine] = []

    def make(path: Path) -> PolicyEngine:
        if len(made) == 1:
            half = [path / "a.rego", path / "b.rego"]
            texts = [half[0].read_text()]  # the old one is read, then comes the change
            if by == "rename":
                path.rename(path.with_name("away"))
                path.with_name("next").rename(path)
            else:
                write(path, "next")
            texts.append(half[1].read_text())
            (path.with_name("mixture")).mkdir()
            for name, text in zip(("a.rego", "b.rego"), texts, strict=True):
                (path.with_name("mixture") / name).write_text(text)
            made.append(RegoEngine.from_directory(path.with_name("mixture")))
        else:
            made.append(RegoEngine.from_directory(path))
        return made[-1]

    policies = WatchedPolicies(make, folder)
    write(folder, "middle")
    answer = await ask(policies)
    assert len(made) == 3
    assert answer.reasons == ("next", "next")


def test_what_never_comes_to_rest_is_not_taken(folder: Path) -> None:
    count = 0

    def make(path: Path) -> PolicyEngine:
        nonlocal count
        count += 1
        write(path, f"restless{count}")
        return RegoEngine.from_directory(path)

    with pytest.raises(UsageError, match="changes while it is read"):
        WatchedPolicies(make, folder)


def _broken_syntax(folder: Path) -> None:
    (folder / "a.rego").write_text(HEAD + "decision := {\n")


def _forbidden_call(folder: Path) -> None:
    (folder / "c.rego").write_text(HEAD + "x := time.now_ns()\n")


def _recursion(folder: Path) -> None:
    (folder / "c.rego").write_text(HEAD + "f(x) := f(x)\n")


def _no_decision(folder: Path) -> None:
    (folder / "a.rego").unlink()


def _no_file(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


def _no_folder(folder: Path) -> None:
    shutil.rmtree(folder)


def _a_file_in_its_place(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("no folder")


def _no_text(folder: Path) -> None:
    (folder / "c.rego").write_bytes(b"\xff\xfe")


def _lost_link(folder: Path) -> None:
    (folder / "c.rego").symlink_to("nowhere")


def _pipe(folder: Path) -> None:
    os.mkfifo(folder / "c.rego")


def _folder_of_that_name(folder: Path) -> None:
    (folder / "c.rego").mkdir()


BREAKS = (
    _broken_syntax,
    _forbidden_call,
    _recursion,
    _no_decision,
    _no_file,
    _no_folder,
    _a_file_in_its_place,
    _no_text,
    _lost_link,
    _pipe,
)


@pytest.mark.parametrize("break_it", BREAKS)
@pytest.mark.parametrize("on_error", OnError)
async def test_policies_that_are_not_valid_are_told_once_and_do_not_decide(
    folder: Path, caplog: pytest.LogCaptureFixture, break_it: Callable[[Path], None], on_error: OnError
) -> None:
    caplog.set_level(logging.INFO)
    policies = watched(folder, on_error)
    revision = policies.revision
    break_it(folder)
    for _ in range(3):
        decision = await ask(policies)
        admitted = await policies.admit(sample.QUERY)
        assert decision.revision == revision
        assert policies.trouble
        if on_error is OnError.KEEP:
            assert (decision.allow, decision.reasons, admitted) == (True, ("old", "old"), None)
        else:
            assert (decision.allow, admitted) == (False, decision)
            assert decision.reasons[0].startswith("the policies have changed and cannot be used: ")
            assert "\n" not in decision.reasons[0]
    (error,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert "cannot be used" in error.message
    shutil.rmtree(folder) if folder.is_dir() else folder.unlink(missing_ok=True)
    write(folder, "new")
    assert (await ask(policies)).reasons == ("new", "new")
    assert not policies.trouble


@pytest.mark.parametrize("on_error", OnError)
async def test_a_change_that_is_taken_back_is_no_trouble_any_more(folder: Path, on_error: OnError) -> None:
    policies = watched(folder, on_error)
    (folder / "c.rego").write_text("not rego at all")
    policies.refresh()
    assert "c.rego" in policies.trouble
    (folder / "c.rego").unlink()
    assert (await ask(policies)).reasons == ("old", "old")
    assert not policies.trouble


async def test_what_is_no_policy_changes_nothing(folder: Path) -> None:
    policies = watched(folder, OnError.DENY)
    revision = policies.revision
    (folder / ".a.rego.swp").write_bytes(b"\xff")
    (folder / ".#a.rego").symlink_to("nobody@nowhere")
    (folder / "a_test.rego").write_text("not rego at all")
    (folder / "README").write_text("about these policies")
    assert (await ask(policies)).allow
    assert policies.revision == revision


def test_policies_that_are_not_valid_to_begin_with_are_refused(folder: Path) -> None:
    _broken_syntax(folder)
    for on_error in OnError:
        with pytest.raises(UsageError, match=r"a\.rego:4:1"):
            watched(folder, on_error)


async def test_engines_that_were_replaced_do_not_pile_up(folder: Path) -> None:
    def engines() -> int:
        gc.collect()
        return sum(isinstance(each, RegoEngine) for each in gc.get_objects())

    policies = watched(folder)
    before = engines()
    for number in range(3):
        write(folder, f"v{number}")
        assert (await ask(policies)).reasons == (f"v{number}", f"v{number}")
    assert engines() == before > 0

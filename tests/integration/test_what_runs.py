"""What `exec` and `python` show to policies is what runs: found once, and held to its content."""

from __future__ import annotations

import hashlib
import os
import py_compile
import sys
import time
import zipfile
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from pydantic import ValidationError

from orchestrator.actions.base import StepContext
from orchestrator.actions.catalog import action, catalog
from orchestrator.actions.http.request import Request, RequestParams
from orchestrator.actions.process.exec import Exec, ExecParams
from orchestrator.actions.process.python import Python, PythonParams
from orchestrator.errors import StepFailed, UsageError
from orchestrator.planning.plan import build
from orchestrator.workflow.loader import load_text

SHELL = os.path.realpath("/bin/sh")


def context() -> StepContext:
    return StepContext("r1", "w", "s", 1, "a", "r1/s", time.monotonic() + 60)


def digest(file: Path | str) -> str:
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


def script(file: Path, says: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f'#!/bin/sh\necho {says} "$0"\n')
    file.chmod(0o700)
    return file


def command(*words: object, **others: Any) -> ExecParams:
    return ExecParams.model_validate({"command": [str(word) for word in words], **others})


async def said(params: ExecParams) -> str:
    output: Any = await Exec().run(params, context())
    return str(output["stdout"]).strip()


# --- exec


def test_a_program_of_the_system_is_shown_as_the_file_that_it_is() -> None:
    view = Exec().view(command("sh", "-c", "private"))
    reach = {"paths": {"read": [], "write": []}, "connect": []}
    assert view == {"program": SHELL, "called": "sh", "arguments": 2, "environment": [], **reach}


async def test_a_script_is_shown_with_its_content_and_runs_under_the_name_by_which_it_is_called(tmp_path: Path) -> None:
    real, link = script(tmp_path / "real" / "report", "honest"), tmp_path / "link"
    link.symlink_to(real)
    params = command(link)
    view = Exec().view(params)
    assert (view["program"], view["called"], view["sha256"]) == (str(real), str(link), digest(real))
    assert await said(params) == f"honest {link}"


def test_other_content_under_the_same_name_is_another_view(tmp_path: Path) -> None:
    file = script(tmp_path / "report", "honest")
    first = Exec().view(command(file))
    script(file, "evil")
    second = Exec().view(command(file))
    assert first["program"] == second["program"]
    assert first["sha256"] != second["sha256"]


async def test_a_relative_program_is_looked_for_in_the_working_directory(tmp_path: Path) -> None:
    script(tmp_path / "bin" / "report", "relative")
    (tmp_path / "there").symlink_to(tmp_path)
    params = command("bin/../bin/report", cwd=str(tmp_path / "there"))
    view = Exec().view(params)
    assert (view["program"], view["cwd"]) == (str(tmp_path / "bin" / "report"), str(tmp_path))
    assert (await said(params)).startswith("relative")
    with pytest.raises(StepFailed, match="relative, and there is no `cwd`"):
        Exec().view(command("bin/report"))


@pytest.mark.parametrize("how", ["content", "link", "gone", "folder"])
async def test_what_is_exchanged_after_the_decision_does_not_run(tmp_path: Path, how: str) -> None:
    real, link = script(tmp_path / "real", "honest"), tmp_path / "link"
    link.symlink_to(real)
    params = command(link)
    Exec().view(params)
    if how == "content":
        script(real, "evil")
    elif how == "link":
        link.unlink()
        link.symlink_to(script(tmp_path / "evil", "evil"))
    elif how == "gone":
        real.unlink()
    else:
        real.unlink()
        real.mkdir()
    with pytest.raises(StepFailed, match=r"changed after the policy decided|cannot be started"):
        await said(params)
    assert Exec().view(command("sh"))["program"] == SHELL


async def test_a_program_and_its_copy_elsewhere_are_told_apart(tmp_path: Path) -> None:
    copy = tmp_path / "sh"
    copy.write_bytes(Path(SHELL).read_bytes())
    copy.chmod(0o700)
    params = command(copy, "-c", "echo copy")
    assert Exec().view(params)["sha256"] == digest(SHELL)
    assert await said(params) == "copy"
    copy.write_bytes(copy.read_bytes() + b"x")
    with pytest.raises(StepFailed, match="changed after"):
        await said(params)


@pytest.mark.parametrize("kind", ["fifo", "folder", "plain file"])
def test_what_cannot_be_executed_is_no_program(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "odd"
    if kind == "fifo":
        os.mkfifo(file, 0o700)
    elif kind == "folder":
        file.mkdir()
    else:
        file.write_text("#!/bin/sh\n")
    with pytest.raises(StepFailed, match="cannot be started"):
        Exec().view(command(file))


LOADERS = """
    LD_PRELOAD LD_LIBRARY_PATH LD_AUDIT DYLD_INSERT_LIBRARIES GCONV_PATH PYTHONPATH PYTHONSTARTUP PYTHONHOME BASH_ENV
    BASH_FUNC_ls ENV IFS SHELLOPTS PS4 NODE_OPTIONS NODE_PATH npm_config_node_options PERL5LIB PERL5OPT PERL5DB
    RUBYOPT RUBYLIB GEM_HOME GIT_SSH_COMMAND GIT_EXTERNAL_DIFF GIT_CONFIG_GLOBAL GIT_EXEC_PATH JAVA_TOOL_OPTIONS
    _JAVA_OPTIONS CLASSPATH DOTNET_STARTUP_HOOKS LUA_INIT PAGER EDITOR PSQLRC OPENSSL_CONF MAKEFLAGS
"""


@pytest.mark.parametrize("name", LOADERS.split())
@pytest.mark.parametrize("where", ["environment", "env", "files"])
def test_a_variable_that_loads_something_else_is_refused(name: str, where: str) -> None:
    given = {"environment": {name: "/x"}} if where == "environment" else {"credentials": {where: {name: "db.x"}}}
    with pytest.raises(ValidationError, match=f"load or start something else: {name}"):
        command("/bin/true", **given)


def test_such_a_variable_is_refused_when_the_file_is_validated() -> None:
    text = "version: 1\nname: w\nagent: a\nsteps:\n  s:\n    action: exec\n    with:\n      command: [/bin/true]\n"
    load_text(text + "      environment: { HOME: /x }\n", filename="w.yaml", actions=catalog)
    with pytest.raises(UsageError, match="LD_PRELOAD"):
        load_text(text + "      environment: { LD_PRELOAD: /x }\n", filename="w.yaml", actions=catalog)


@pytest.mark.parametrize(
    "name", ["HOME", "TZ", "LANG", "LC_ALL", "PGHOST", "GIT_AUTHOR_NAME", "MY_LD_PATH", "ENVIRONMENT"]
)
def test_a_variable_that_is_mere_data_is_shown_by_its_name(name: str) -> None:
    view = Exec().view(command("/bin/true", environment={name: "some-value"}))
    assert view["environment"] == [name]
    assert "some-value" not in str(view)


async def test_a_search_path_needs_a_full_path_and_is_shown(tmp_path: Path) -> None:
    script(tmp_path / "report", "evil")
    own = {"PATH": f"{tmp_path}:/bin"}
    for word in ("report", "./report", "bin/report"):
        with pytest.raises(ValidationError, match="needs a program with its full path"):
            command(word, environment=own, cwd=str(tmp_path))
    params = command("/bin/sh", "-c", "report", environment=own, paths={"read": [str(tmp_path)]})
    assert Exec().view(params)["path"] == [str(tmp_path), "/bin"]
    assert (await said(params)).startswith("evil")


# --- python


def module(folder: Path, name: str, text: str) -> Path:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(dedent(text))
    return file


def function(callable: str, *path: Path | str, **arguments: Any) -> PythonParams:
    return PythonParams.model_validate(
        {"callable": callable, "path": [str(each) for each in path], "arguments": arguments}
    )


async def result(params: PythonParams) -> Any:
    return await Python().run(params, context())


async def test_the_module_that_is_shown_is_the_first_on_the_path(tmp_path: Path) -> None:
    good = module(tmp_path / "good", "reports.py", "def build(): return 'good'")
    evil = module(tmp_path / "evil", "reports.py", "def build(): return 'evil'")
    for first, second, name in ((good, evil, "good"), (evil, good, "evil")):
        params = function("reports:build", first.parent, second.parent)
        view = Python().view(params)
        assert (view["file"], view["sha256"]) == (str(first), digest(first))
        assert view["path"] == [str(first.parent), str(second.parent)]
        assert await result(params) == name


async def test_a_package_beside_a_module_is_what_is_shown_and_runs(tmp_path: Path) -> None:
    module(tmp_path, "reports.py", "def build(): return 'module'")
    package = module(tmp_path, "reports/__init__.py", "def build(): return 'package'")
    params = function("reports:build", tmp_path)
    assert Python().view(params)["file"] == str(package)
    assert await result(params) == "package"


async def test_the_packages_around_a_module_are_shown(tmp_path: Path) -> None:
    around = module(tmp_path, "outer/__init__.py", "state = 'outer ran'")
    inner = module(tmp_path, "outer/spread/reports.py", "import outer\ndef build(): return outer.state")
    params = function("outer.spread.reports:build", tmp_path)
    view = Python().view(params)
    assert view["packages"] == [{"file": str(around), "sha256": digest(around)}]
    assert view["file"] == str(inner)
    assert await result(params) == "outer ran"


async def test_links_are_followed_and_relative_folders_made_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = module(tmp_path / "real", "reports.py", "def build(): return 1")
    (tmp_path / "link").symlink_to(real.parent)
    monkeypatch.chdir(tmp_path)
    params = function("reports:build", "link")
    view = Python().view(params)
    assert (view["file"], view["path"]) == (str(real), [str(real.parent)])
    assert await result(params) == 1


@pytest.mark.parametrize("what", ["module", "package", "link", "new package before the module"])
async def test_a_module_that_is_exchanged_after_the_decision_is_not_imported(tmp_path: Path, what: str) -> None:
    mark = tmp_path / "ran"
    evil = f"open({str(mark)!r}, 'w')\ndef build(): return 1"
    module(tmp_path, "real/outer/__init__.py", "")
    module(tmp_path, "real/outer/reports.py", "def build(): return 0")
    module(tmp_path, "evil/outer/__init__.py", evil)
    module(tmp_path, "evil/outer/reports.py", evil)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    params = function("outer.reports:build", tmp_path / "link")
    Python().view(params)
    if what == "module":
        module(tmp_path, "real/outer/reports.py", evil)
    elif what == "package":
        module(tmp_path, "real/outer/__init__.py", evil)
    elif what == "link":
        (tmp_path / "real").rename(tmp_path / "away")
        (tmp_path / "evil").rename(tmp_path / "real")
    else:
        module(tmp_path, "real/outer/reports/__init__.py", evil)
    with pytest.raises(StepFailed, match="changed meanwhile"):
        await result(params)
    assert not mark.exists()


async def test_a_compilation_beside_the_source_is_not_what_runs(tmp_path: Path) -> None:
    source = module(tmp_path, "reports.py", "def build(): return 'evil'\n")
    py_compile.compile(str(source))
    before = source.stat()
    source.write_text("def build(): return 'good'\n")
    os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert source.stat().st_size == before.st_size
    params = function("reports:build", tmp_path)
    assert Python().view(params)["sha256"] == digest(source)
    assert await result(params) == "good"


async def test_a_compilation_without_source_is_shown_and_runs(tmp_path: Path) -> None:
    source = module(tmp_path, "reports.py", "def build(): return 'compiled'\n")
    compiled = tmp_path / "reports.pyc"
    py_compile.compile(str(source), cfile=str(compiled))
    source.unlink()
    params = function("reports:build", tmp_path)
    assert (Python().view(params)["file"], Python().view(params)["sha256"]) == (str(compiled), digest(compiled))
    assert await result(params) == "compiled"


@pytest.mark.parametrize("name", ["json", "importlib", "asyncio"])
async def test_a_module_with_the_name_of_one_that_is_loaded_already_is_refused(tmp_path: Path, name: str) -> None:
    module(tmp_path, f"{name}.py", "def dumps(**given): return 'evil'")
    params = function(f"{name}:dumps", tmp_path)
    assert Python().view(params)["file"] == str(tmp_path / f"{name}.py")
    with pytest.raises(StepFailed, match="name of a module that is loaded already"):
        await result(params)


@pytest.mark.parametrize("name", ["__main__:main", "no_such_module:f", "json.no_such:f", "sys.path:append"])
def test_what_is_no_module_is_not_shown(name: str, tmp_path: Path) -> None:
    with pytest.raises(StepFailed, match="cannot be imported") as caught:
        Python().view(function(name, tmp_path))
    assert caught.value.kind == "error"


async def test_a_main_module_on_the_path_is_not_taken_for_the_process_itself(tmp_path: Path) -> None:
    module(tmp_path, "__main__.py", "def main(): return 'evil'")
    with pytest.raises(StepFailed, match="loaded already"):
        await result(function("__main__:main", tmp_path))


def test_an_archive_a_missing_folder_and_what_is_no_file_are_refused(tmp_path: Path) -> None:
    archive = tmp_path / "reports.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("reports.py", "def build(): return 'zip'")
    for path in (archive, archive / "inside", tmp_path / "nowhere"):
        with pytest.raises(StepFailed, match="is not a folder"):
            Python().view(function("reports:build", path))
    os.mkfifo(tmp_path / "piped.py")
    with pytest.raises(StepFailed, match="cannot be imported"):
        Python().view(function("piped:build", tmp_path))


@pytest.mark.parametrize("name", ["sys:getrecursionlimit", "os:getcwd", "_struct:_clearcache", "platform:machine"])
async def test_modules_of_the_interpreter_are_shown_and_run(name: str) -> None:
    params = function(name)
    view = Python().view(params)
    file = view["file"]
    assert isinstance(file, str)
    assert file == "built-in" or view["sha256"] == digest(file)
    await result(params)


async def test_nothing_of_the_author_is_imported_where_it_is_looked_for(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    module(tmp_path, "outer/__init__.py", f"open({str(mark)!r}, 'w')")
    module(tmp_path, "outer/reports.py", "def build(): return 1")
    Python().view(function("outer.reports:build", tmp_path))
    assert not mark.exists()
    assert not [name for name in sys.modules if name.startswith("outer")]


# --- the others, and the plan


def test_whether_redirects_are_followed_is_shown() -> None:
    for follow in (False, True):
        params = RequestParams.model_validate({"url": "https://h.example/a?b=c", "follow_redirects": follow})
        view = Request().view(params)
        where = {"method": "GET", "origin": "https://h.example", "path": "/a"}
        assert view == {**where, "follow_redirects": follow, "redirect_origins": []}


def test_a_plan_shows_the_same_and_says_what_is_not_there(tmp_path: Path) -> None:
    file = script(tmp_path / "report", "honest")
    reports = module(tmp_path, "reports.py", "def build(): return 1")
    text = f"""
version: 1
name: w
agent: a
steps:
  here: {{ action: exec, with: {{ command: [{file}, x], cwd: {tmp_path} }} }}
  gone: {{ action: exec, with: {{ command: [no-such-program] }} }}
  code: {{ action: python, with: {{ callable: "reports:build", path: [{tmp_path}] }} }}
  lost: {{ action: python, with: {{ callable: "reports:build" }} }}
"""
    loaded = load_text(text, filename="w.yaml", actions=catalog)
    views = {
        step.request.step: step.request.action_view for step in build(loaded, {}, action=action, endpoints={}).steps
    }
    assert views["here"] == Exec().view(command(file, "x", cwd=str(tmp_path)))
    assert views["code"] == Python().view(function("reports:build", reports.parent))
    assert views["gone"]["partial"] is True
    assert "cannot be started" in str(views["gone"]["unknown"])
    assert "cannot be imported" in str(views["lost"]["unknown"])

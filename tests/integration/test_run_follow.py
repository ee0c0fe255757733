"""`run --follow`: what programs of steps write, seen while they do, and never with a secret."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from bench import Bench
from fork_server import ForkServer
from waiting import wait_for

from orchestrator.actions.catalog import catalog
from orchestrator.cli.main import main
from orchestrator.redaction.redactor import Redactor
from orchestrator.secret import Secret
from orchestrator.workflow.loader import load_text

CANARY = "c4nary/+of%a-step:7f21"
GRANTS = """{ db: { kind: database, connection: support, role: feedback-read },
               kv: { kind: secret, path: app/followed, keys: [token] } }"""

PRINTS = '''
import base64, json, os, sys, time
from urllib.parse import quote


streams = [sys.stdout, sys.stderr]


def say(text, end="\\n"):
    for stream in streams:
        stream.write(text + end)
        stream.flush()


def forms(secret):
    raw = secret.encode()
    yield secret
    yield base64.b64encode(raw).decode()
    yield base64.urlsafe_b64encode(b"x" + raw).decode()
    yield raw.hex()
    yield quote(secret, safe="")
    yield json.dumps({"token": secret})
    yield "".join("\\\\u%04x" % ord(char) for char in secret)
    if len(set(secret)) > 4:  # a text of fewer letters is no reason to join lines
        yield secret[:9] + "\\n" + secret[9:]


def tell(secrets, folder):
    """Everything in all forms, and one in two halves between which it waits until it is told to go on."""
    for secret in secrets:
        for form in forms(secret):
            say("is it " + form + " then")
        for char in secret:
            say(char, end="")
        say("")
    say("half of one follows")
    for number, stream in enumerate(streams):
        stream.write(secrets[0][:11])
        stream.flush()
        open(folder + "/go%d" % number, "rb").read()
        stream.write(secrets[0][11:] + "\\n")
    say("that was all")


def call(credentials, folder):
    del streams[1:]  # both are one
    tell([credentials["kv"]["token"], credentials["db"]["password"]], folder)


if __name__ == "__main__":
    tell([os.environ["TOKEN"], os.environ["PASSWORD"]], sys.argv[1])
    sys.exit(int(sys.argv[2]))
'''

EXEC = """
    action: exec
    with:
      command: [PYTHON, -I, FOLDER/prints.py, FOLDER, "CODE"]
      paths: { read: [FOLDER] }
      credentials: { env: { TOKEN: kv.token, PASSWORD: db.password } }
      output: none
"""
CALL = """
    action: python
    with: { callable: "prints:call", path: [FOLDER], arguments: { folder: FOLDER } }
"""


def quick(*steps: str, name: str = "follows") -> str:
    return f"version: 1\nname: {name}\nagent: tester\nsteps:\n" + "".join(f"  {step}\n" for step in steps)


def shell(name: str, script: str, more: str = "") -> str:
    return f"{name}: {{ action: exec, {more} with: {{ command: [/bin/sh, -c, {json.dumps(script)}] }} }}"


@pytest.fixture
def here(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a command runs as the runtime, in this process."""
    for name, value in {**bench.environment(), "ORCHESTRATOR_POLICY": "allow-all"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def secret(bench: Bench) -> Iterator[str]:
    bench.vault.secrets.kv.v2.create_or_update_secret("app/followed", secret={"token": CANARY}, mount_point="secret")
    yield CANARY
    bench.vault.secrets.kv.v2.delete_metadata_and_all_versions("app/followed", mount_point="secret")


@pytest.mark.parametrize("kind", ["exec", "exec-fails", "python"])
def test_no_form_of_a_secret_is_told_or_kept(
    kind: str, secret: str, bench: Bench, here: Path, children: ForkServer
) -> None:
    (here / "prints.py").write_text(PRINTS)
    fifos = [here / "go0"] if kind == "python" else [here / "go0", here / "go1"]
    for fifo in fifos:
        os.mkfifo(fifo)
    step = (CALL if kind == "python" else EXEC).replace("FOLDER", str(here)).replace("PYTHON", sys.executable)
    step = step.replace("CODE", "3" if kind == "exec-fails" else "0")
    text = (
        f"version: 1\nname: tells_{kind.replace('-', '_')}\nagent: tester\nsteps:\n  work:{step}    grants: {GRANTS}\n"
    )
    (here / "w.yaml").write_text(text)
    bench.install(load_text(text, filename="w.yaml", actions=catalog).workflow)
    with (here / "said").open("wb") as log:
        run = children.start("run", str(here / "w.yaml"), "--follow", environment=dict(os.environ), log=log)
        for fifo in fifos:
            go = wait_for(partial(_opened, fifo), "half of a secret to be written", 30)
            wait_for(lambda: b"half of one follows" in (here / "said").read_bytes(), "what goes before it")
            assert bench.logins_of_steps() != []
            os.close(go)
        code = run.wait(60)
    said = (here / "said").read_text()
    assert code == (4 if kind == "exec-fails" else 0), said
    assert said.count("work | that was all") == len(fifos)
    assert said.count("work | is it *** then") >= 10
    (here / "prints.py").unlink()
    for where, told in _written(bench).items():
        assert not Redactor([Secret(secret)]).find(told), where
        for part in (secret[:11], secret[11:]):
            assert part not in told, where
        assert not re.search("[QXZJ]{8}|(?:5[18aA]|4[aA]){8}", told), where
        assert "half of one follows" not in told or where.endswith("/said") or kind == "exec-fails", where
    bench.assert_nothing_left()


def _opened(fifo: Path) -> int | None:
    """The other end, where a program has opened it for reading."""
    try:
        return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
    except OSError:
        return None


def _written(bench: Bench) -> dict[str, str]:
    files = [path for path in bench.directory.rglob("*") if path.is_file()]
    return {str(path): path.read_bytes().decode("latin-1") for path in files}


def test_each_line_has_the_name_of_its_step_or_item_and_nothing_moves_the_cursor(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = here / "w.yaml"
    file.write_text(
        quick(
            shell("one", "printf 'out\\n'; printf '\\033]0;owned\\007 err\\n' >&2; printf 'no end'"),
            shell("each", "echo of an item; exit 0", "for_each: [a, b],"),
        )
    )
    assert main(["run", str(file), "--follow", "--json"]) == 0
    out, err = capfd.readouterr()
    lines = err.splitlines()
    assert {"one | out", "one | \\x1b]0;owned\\a err", "one | no end"} <= set(lines)
    assert {"each[0] | of an item", "each[1] | of an item"} <= set(lines)
    assert json.loads(out.splitlines()[-1])["kind"] == "outcome"
    assert all(json.loads(line) for line in out.splitlines())
    assert "owned" not in out


def test_lines_come_in_order_with_those_of_the_run_and_without_follow_there_are_none(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = here / "w.yaml"
    file.write_text(quick(shell("one", "echo first; echo last; exit 3")))
    assert main(["run", str(file), "--follow"]) == 4
    err = capfd.readouterr().err
    places = [err.index(text) for text in ("one: started", "one | first", "one | last", "one: failed", "failed, exit")]
    assert places == sorted(places)
    assert main(["run", str(file)]) == 4
    err = capfd.readouterr().err
    assert "one |" not in err
    assert "the end of its stdout:\n  first\n  last" in err
    assert main(["run", str(file), "--follow", "--quiet"]) == 4
    err = capfd.readouterr().err
    assert err.startswith("one | first\none | last\nerror: step `one` failed")
    assert main(["run", str(file), "--quiet", "--run-id", "failed-1"]) == 4
    capfd.readouterr()
    assert main(["runs", "retry", "failed-1", "--follow", "--quiet"]) == 4
    assert capfd.readouterr().err.startswith("one | first\none | last\nerror: step `one` failed")


@pytest.mark.parametrize("pipe", ["unread", "closed"])
def test_a_terminal_that_takes_nothing_holds_up_neither_a_step_nor_its_time_out(
    pipe: str, here: Path, bench: Bench, children: ForkServer
) -> None:
    text = quick(
        shell("much", "head -c 3000000 /dev/zero | tr '\\0' '\\n' | sed s/^/lines/ >&2"),
        shell("late", "sleep 60", "timeout: 1s,"),
    ).replace("agent: tester", "agent: tester\non_failure: continue")
    (here / "w.yaml").write_text(text)
    reading, writing = os.pipe()
    if pipe == "closed":
        os.close(reading)
    with open(os.devnull, "r+b") as nothing:
        words = ("run", str(here / "w.yaml"), "--follow", "--quiet", "--run-id", f"stuck-{pipe}")
        process = children.start_on(
            *words, environment=dict(os.environ), streams=(nothing.fileno(), nothing.fileno(), writing)
        )
    os.close(writing)

    def ended() -> str:
        shown = children.command("runs", "show", words[-1], "--json", environment=dict(os.environ))
        return shown.stdout if shown.returncode == 0 and '"state": "running"' not in shown.stdout else ""

    run = json.loads(wait_for(ended, "the run to end", 30))
    states = {step["step"]: step["state"] for step in run["steps"]}
    assert states == {"much": "succeeded", "late": "failed"}
    if pipe == "unread":
        while os.read(reading, 65536):
            pass
        os.close(reading)
    assert process.wait(60) == 4


def test_of_what_comes_faster_than_it_can_be_shown_the_rest_is_counted(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = here / "w.yaml"
    script = "head -c 8000000 /dev/zero | tr '\\0' '\\n' | sed s/^/words/ >&2; echo the last line >&2"
    file.write_text(quick(shell("one", script)))
    assert main(["run", str(file), "--follow", "--quiet"]) == 0
    err = capfd.readouterr().err
    assert re.search(r"^one \| \[\d{5,} bytes are not shown: they came too fast\]$", err, re.MULTILINE)
    assert len(err) < 60_000_000


FAILS = {
    "an exit code": ("echo out; echo err >&2; exit 3", "", "ended with exit code 3", ["out", "err"]),
    "a signal": ("echo out; kill -9 $$", "", "was killed by signal 9", ["out"]),
    "too much": ("echo out; yes | head -n 200", "max_bytes: 100, ", "wrote more than 100 bytes", ["out"]),
    "a time-out": ("echo out; echo err >&2; sleep 60", "", "took longer than the step", ["out", "err"]),
    "no JSON": ("echo out", "output: json, ", "is not JSON", ["out"]),
}


@pytest.mark.parametrize(("script", "more", "why", "ends"), FAILS.values(), ids=FAILS)
def test_the_error_of_a_failed_step_has_the_end_of_what_it_wrote(
    script: str, more: str, why: str, ends: list[str], bench: Bench
) -> None:
    step = f"w: {{ action: exec, timeout: 1s, with: {{ {more}command: [/bin/sh, -c, {json.dumps(script)}] }} }}"
    outcome = bench.run(quick(step), install=False)
    message = outcome.errors["w"].message
    assert why in message
    for name in ends:
        assert re.search(rf"the end of its std{name}:\n{name}(\n|$)", message), message


def test_the_end_of_much_output_begins_with_a_line_and_holds_no_secret_that_is_cut(secret: str, bench: Bench) -> None:
    script = 'i=0; while [ $i -lt 60 ]; do echo "at $i $T and more"; i=$((i+1)); done; exit 3'
    text = f"""version: 1
name: cuts
agent: tester
steps:
  w:
    action: exec
    grants: {{ kv: {{ kind: secret, path: app/followed, keys: [token] }} }}
    with:
      command: [/bin/sh, -c, {json.dumps(script)}]
      credentials: {{ env: {{ T: kv.token }} }}
"""
    message = bench.run(text).errors["w"].message
    shown = message.partition("the end of its stdout:\n")[2].splitlines()
    assert shown[-1] == "at 59 *** and more"
    assert all(re.fullmatch(r"at \d+ \*\*\* and more", line) for line in shown)
    assert len(message) < 1200


def test_a_function_that_raises_tells_what_it_printed(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "raises.py").write_text("def call():\n    print('half way')\n    raise ValueError('no more')\n")
    step = f'w: {{ action: python, with: {{ callable: "raises:call", path: [{tmp_path}] }} }}'
    message = bench.run(quick(step), install=False).errors["w"].message
    assert message == "`raises:call` raised ValueError: no more; the end of what it printed:\nhalf way"


PRINTS_AND_WAITS = """
import os, time


def call(folder):
    print("at work")
    while not os.path.exists(folder + "/go"):
        time.sleep(0.02)
"""


def test_what_a_function_prints_is_seen_line_by_line_while_it_works(here: Path, children: ForkServer) -> None:
    (here / "prints.py").write_text(PRINTS_AND_WAITS)
    (here / "w.yaml").write_text(quick("work:" + CALL.replace("FOLDER", str(here)), name="at_work"))
    with (here / "said").open("wb") as log:
        words = ("run", str(here / "w.yaml"), "--follow", "--quiet")
        run = children.start(*words, environment=dict(os.environ), log=log)
        try:
            wait_for(lambda: b"work | at work\n" in (here / "said").read_bytes(), "the line that it has printed", 30)
        finally:
            (here / "go").touch()
        assert run.wait(60) == 0

"""What is certainly wrong is told before anything is issued: by `validate`, or by the run before its first step."""

from __future__ import annotations

import io
import json
import os
import subprocess
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import fork_server
import pytest
from bench import Bench

from orchestrator.cli.main import main
from orchestrator.errors import ExitCode
from orchestrator.ledger.events import Decided, LeaseRequested
from orchestrator.ledger.states import RunState, StepState
from orchestrator.policy.engines.rego.engine import PolicySource, RegoEngine

HEAD = """version: 1
name: invoices
agent: tester
inputs: {{ notify: {{ type: boolean, default: true }}, n: {{ type: integer, default: 3 }} }}
steps:
  write:
    action: postgres.execute
    grants: {{ db: {{ kind: database, connection: support, role: by-hand }} }}
    with: {{ sql: "INSERT INTO feedback_translation (feedback_id) VALUES (1)" }}
{step}
"""
"""The first step would write; the second has the mistake."""

READING = "kind: database, connection: support, privileges: [{ select: customer_feedback, columns: [id] }]"
DB = f"grants: {{ db: {{ {READING} }} }}"
TWO = f"grants: {{ db: {{ {READING} }}, other: {{ kind: database, connection: support, role: feedback-read }} }}"

IN_THE_FILE = {
    "an output that a program cannot have": (
        "action: exec, needs: [write], outputs: [nope], with: { command: [/bin/true] }",
        "the output of exec has no `nope` here",
    ),
    "json of a program that prints text": (
        "action: exec, needs: [write], outputs: [json], with: { command: [/bin/true] }",
        "the output of exec has no `json` here",
    ),
    "an output that an answer cannot have": (
        "action: http.request, needs: [write], outputs: [json], with: { url: 'https://a.example/' }",
        "the output of http.request has no `json` here",
    ),
    "an output that a query cannot have": (
        f"action: postgres.query, needs: [write], outputs: [row], {DB}, with: {{ sql: SELECT 1 AS id }}",
        "the output of postgres.query has no `row` here",
    ),
    "an output that a message cannot have": (
        "action: slack.post_message, needs: [write], outputs: [text], "
        "grants: { bot: { kind: secret, path: a, keys: [token] } }, with: { token: bot.token, channel: c, text: t }",
        "the output of slack.post_message has no `text` here",
    ),
    "a placeholder without a parameter": (
        f"action: postgres.query, needs: [write], {DB}, "
        "with: { sql: 'SELECT id FROM customer_feedback WHERE id = %(s)s', parameters: { t: 1 } }",
        "the SQL has `%(s)s`, and `parameters` has no `s`",
    ),
    "a query that writes": (
        f"action: postgres.query, needs: [write], {DB}, with: {{ sql: DELETE FROM customer_feedback }}",
        "this is DELETE",
    ),
    "a list in the place of a text": (
        "action: exec, needs: [write], with: { command: [/bin/echo, [1]] }",
        "expected a text, got a list",
    ),
    "a number in the place of a text": (
        "action: exec, needs: [write], with: { command: [/bin/echo, 1.10] }",
        "expected a text, got a number",
    ),
    "no such function": (
        "action: exec, needs: [write], with: { command: [/bin/echo, '${{ lowercase(run.id) }}'] }",
        "there is no function or variable `lowercase`",
    ),
    "no login for the SQL": (
        "action: postgres.query, needs: [write], with: { sql: SELECT 1 }",
        "postgres.query needs a grant of kind `database`, and the step has none",
    ),
    "two logins for the SQL": (
        f"action: postgres.query, needs: [write], {TWO}, with: {{ sql: SELECT 1 }}",
        "uses one database grant, and the step has 2: db, other",
    ),
}
OF_THE_SETTINGS = {
    "an address that is not set": (
        "action: http.request, needs: [write], with: { url: '${{ endpoints.bookkeeping }}/invoices' }",
        "there is no endpoint `bookkeeping`",
    ),
    "an address within a text": (
        "action: exec, needs: [write], with: { command: [/bin/echo, 'to ${{ endpoints.bookkeeping }}'] }",
        "there is no endpoint `bookkeeping`",
    ),
    "an address by its key": (
        "action: exec, needs: [write], with: { command: [/bin/echo, '${{ endpoints[\"book keeping\"] }}'] }",
        "there is no endpoint `book keeping`",
    ),
    "the port of an address that is not set": (
        "action: exec, needs: [write], with: { command: [/bin/true], connect: [bookkeeping] }",
        "there is no endpoint `bookkeeping`",
    ),
    "a database in which rows are limited for a program": (
        "action: exec, needs: [write], with: { command: [/bin/true] }, grants: { db: { kind: database, "
        "connection: billing, privileges: [{ select: a, columns: [id], where: { id: '${{ inputs.n }}' } }] } }",
        "there is no endpoint `billing`",
    ),
    "a database whose address is not set": (
        f"action: postgres.query, needs: [write], {DB.replace('support', 'billing')}, "
        "with: { sql: SELECT id FROM customer_feedback }",
        "there is no endpoint `billing`",
    ),
}


def text_of(step: str) -> str:
    return HEAD.format(step=f"  second: {{ {step} }}")


def orchestrator(bench: Bench, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in this process, which is a good deal faster than in one of its own."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as changed, redirect_stdout(out), redirect_stderr(err):
        for name in os.environ:
            if name.startswith(("ORCHESTRATOR_", "VAULT_")):
                changed.delenv(name)
        for name, value in {**bench.environment(), "ORCHESTRATOR_POLICY": "allow-all"}.items():
            changed.setenv(name, value)
        changed.chdir(folder)
        code = main(list(arguments))
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


def nothing_was_issued(bench: Bench, folder: Path) -> None:
    for noun in ("runs", "leases"):
        listed = orchestrator(bench, folder, noun, "list", "--json")
        assert (listed.returncode, json.loads(listed.stdout)) == (0, []), listed.stderr
    bench.assert_nothing_left()


@pytest.mark.parametrize("mistake", [*IN_THE_FILE, *OF_THE_SETTINGS])
def test_a_newcomers_mistake_is_found_before_anything_was_issued(mistake: str, bench: Bench, tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    step, said = {**IN_THE_FILE, **OF_THE_SETTINGS}[mistake]
    (folder / "w.yaml").write_text(text_of(step))
    validated = orchestrator(bench, folder, "validate", "w.yaml")
    if mistake in IN_THE_FILE:
        assert validated.returncode == 2, validated.stdout
        assert "w.yaml:10:" in validated.stderr
        assert said in validated.stderr
        assert "hint: " in validated.stderr or "expected a text" in said
    else:
        assert validated.returncode == 0, validated.stderr
        planned = orchestrator(bench, folder, "plan", "w.yaml")
        assert planned.returncode == 0
        assert "w.yaml:10:" in planned.stderr
        assert f"warning: {said}" in planned.stderr
        assert "refused before its first step" in planned.stderr
        (lack,) = json.loads(orchestrator(bench, folder, "plan", "w.yaml", "--json").stdout)["lacks"]
        assert lack["message"] == said
    ran = orchestrator(bench, folder, "run", "w.yaml")
    assert ran.returncode == 2, ran.stdout
    assert said in ran.stderr
    assert "w.yaml:10:" in ran.stderr
    nothing_was_issued(bench, folder)


@pytest.mark.parametrize("mistake", [*OF_THE_SETTINGS, "no login for the SQL", "two logins for the SQL"])
def test_whoever_starts_the_run_it_ends_before_its_first_step(mistake: str, bench: Bench) -> None:
    """Schedules, workers, agents and `--run-id` have no look at the file before: the run itself takes it."""
    step, said = {**IN_THE_FILE, **OF_THE_SETTINGS}[mistake]
    outcome = bench.run(text_of(step), install=False)
    assert (outcome.state, outcome.exit_code) == (RunState.FAILED, ExitCode.INVALID)
    assert said in outcome.reason
    assert set(outcome.steps.values()) == {StepState.CANCELLED}
    assert [event for event in bench.events if isinstance(event, LeaseRequested | Decided)] == []
    assert bench.history(outcome.run_id) == []


class TestStepsThatMayNotRun:
    ADDRESS = "action: exec, with: { command: [/bin/echo, '${{ endpoints.nowhere }}'] }"

    def text(self, second: str, *more: str) -> str:
        steps = [f"  second: {{ {second} }}", *(f"  {each}" for each in more)]
        head, _, _ = HEAD.format(step="").partition("  write:")
        return head + "\n".join(steps) + "\n"

    def test_what_is_false_by_the_inputs_needs_no_address(self, bench: Bench) -> None:
        text = self.text(self.ADDRESS + ", if: inputs.notify")
        assert bench.run(text, inputs={"notify": False}).steps == {"second": StepState.SKIPPED}
        refused = bench.run(text, inputs={"notify": True})
        assert (refused.exit_code, refused.steps) == (ExitCode.INVALID, {"second": StepState.CANCELLED})

    def test_nor_does_what_waits_for_it(self, bench: Bench) -> None:
        later = "third: { action: exec, needs: [second], with: { command: [/bin/echo, '${{ endpoints.nowhere }}'] } }"
        text = self.text("action: exec, with: { command: [/bin/true] }, if: inputs.n > 5", later)
        assert set(bench.run(text).steps.values()) == {StepState.SKIPPED}
        assert bench.run(text, inputs={"n": 6}).exit_code is ExitCode.INVALID

    def test_what_another_step_decides_may_run_and_needs_its_address(self, bench: Bench) -> None:
        first = "first: { action: exec, with: { command: [/bin/true] }, outputs: [exit_code] }"
        text = self.text(self.ADDRESS + ", if: steps.first.output.exit_code == 1", first)
        assert bench.run(text).exit_code is ExitCode.INVALID

    @pytest.mark.parametrize(
        "second",
        [
            ADDRESS + ", if: has(endpoints.nowhere)",
            "action: exec, with: { command: [/bin/true, '${{ has(endpoints.no) ? endpoints.no : run.id }}'] }",
        ],
    )
    def test_what_is_asked_for_may_be_missing(self, second: str, bench: Bench) -> None:
        assert bench.run(self.text(second)).exit_code is ExitCode.DONE

    def test_nothing_is_evaluated_where_the_policy_admits_nothing(self, bench: Bench) -> None:
        rule = "package orchestrator\ndecision := true\nadmit := false"
        engine = RegoEngine.from_sources([PolicySource("test.rego", rule)])
        outcome = bench.run(self.text(self.ADDRESS + ", if: inputs.notify"), policy=engine)
        assert (outcome.exit_code, outcome.steps) == (ExitCode.REFUSED, {"second": StepState.REFUSED})


class TestTextsOfNumbers:
    """Alone an expression gives the same text as inside of a longer one, wherever a text is wanted."""

    @pytest.mark.parametrize(
        ("cel", "text"),
        [
            ("inputs.n", "3"),
            ("0 - inputs.n", "-3"),
            ("inputs.notify", "true"),
            ("inputs.n > 5", "false"),
            ("9007199254740993", "9007199254740993"),
            ("0.1", "0.1"),
            ("2.0", "2.0"),
            ("1.0 / 3.0", "0.3333333333333333"),
            ("1e21", "1e+21"),
        ],
    )
    def test_of_an_argument_and_of_a_variable(self, cel: str, text: str, bench: Bench) -> None:
        head, _, _ = HEAD.format(step="").partition("  write:")
        step = f"""  say:
    action: exec
    outputs: [stdout]
    with:
      command: [/bin/sh, -c, 'printf "%s|%s|%s" "$1" "$2" "$V"', sh, '${{{{ {cel} }}}}', 'x${{{{ {cel} }}}}']
      environment: {{ V: '${{{{ {cel} }}}}' }}
"""
        outcome = bench.run(head + step)
        assert outcome.outputs["say"]["stdout"] == f"{text}|x{text}|{text}", outcome.errors

    @pytest.mark.parametrize(("value", "kind"), [("[1, 2]", "a list"), ("{'a': 1}", "a map"), ("null", "nothing")])
    def test_what_is_no_scalar_is_told_with_its_place_and_nothing_was_issued(
        self, value: str, kind: str, bench: Bench
    ) -> None:
        head, _, _ = HEAD.format(step="").partition("  write:")
        step = f"""  say:
    action: exec
    grants: {{ db: {{ kind: database, connection: support, role: feedback-read }} }}
    with:
      command: [/bin/echo, "${{{{ dyn({value}) }}}}"]
"""
        outcome = bench.run(head + step)
        error: Any = outcome.errors["say"]
        assert error.message == (
            f"step `say`: parameters of exec are not valid: `with.command[1]`: expected a text, got {kind}"
        )
        assert error.kind == "parameters"
        assert "expression" in error.hint
        assert "Input should" not in str(error)
        assert bench.history(outcome.run_id) == []


class TestManyFiles:
    def test_one_that_cannot_be_read_hides_no_others_errors(self, bench: Bench, tmp_path: Path) -> None:
        (tmp_path / "bad.yaml").write_text("version: 2\n")
        (tmp_path / "good.yaml").write_text(text_of("action: exec, with: { command: [/bin/true] }"))
        shown = orchestrator(bench, tmp_path, "validate", "missing.yaml", "good.yaml", "bad.yaml")
        assert shown.returncode == 2
        assert "missing.yaml cannot be read" in shown.stderr
        assert "bad.yaml:1:10: error: expected 1" in shown.stderr
        assert shown.stdout == "good.yaml: valid\n"

    def test_a_folder_is_all_of_its_workflows(self, bench: Bench, tmp_path: Path) -> None:
        folder = tmp_path / "w"
        (folder / "deeper").mkdir(parents=True)
        for name in ("a.yaml", "b.yml", ".hidden.yaml", "notes.txt", "deeper/c.yaml"):
            (folder / name).write_text("version: 2\n")
        shown = orchestrator(bench, tmp_path, "validate", "w", "--json")
        told = {problem["file"] for problem in json.loads(shown.stdout)["problems"]}
        assert (shown.returncode, told) == (2, {"w/a.yaml", "w/b.yml"})

    @pytest.mark.parametrize("given", [["."], ["a.yaml", "b.yaml"], ["a.yaml", "b.yaml", "a.yaml"]])
    def test_two_of_one_name_in_a_folder_are_told(self, given: list[str], bench: Bench, tmp_path: Path) -> None:
        for name in ("a.yaml", "b.yaml"):
            (tmp_path / name).write_text(text_of("action: exec, with: { command: [/bin/true] }"))
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "elsewhere" / "c.yaml").write_text((tmp_path / "a.yaml").read_text())
        shown = orchestrator(bench, tmp_path, "validate", *given)
        assert shown.returncode == 2
        assert "b.yaml:2:7: error: a.yaml and b.yaml both have a workflow `invoices`" in shown.stderr
        assert shown.stdout == "a.yaml: valid\n"
        apart = orchestrator(bench, tmp_path, "validate", "a.yaml", "elsewhere/c.yaml")
        assert (apart.returncode, apart.stdout) == (0, "a.yaml: valid\nelsewhere/c.yaml: valid\n")

    @pytest.mark.parametrize("folder", ["empty", "."])
    def test_a_folder_without_workflows_is_a_mistake(self, folder: str, bench: Bench, tmp_path: Path) -> None:
        here = tmp_path / "here"
        (here / "empty").mkdir(parents=True)
        shown = orchestrator(bench, here, "validate", folder)
        assert (shown.returncode, "there is no workflow in" in shown.stderr) == (2, True)

    @pytest.mark.parametrize(
        ("given", "code"), [(text_of("action: exec, with: { command: [/bin/true] }"), 0), ("a", 2)]
    )
    def test_the_standard_input_is_a_file_too(self, given: str, code: int, bench: Bench, tmp_path: Path) -> None:
        ran = subprocess.run(
            [*fork_server.orchestrator(), "validate", "-"],
            input=given,
            cwd=tmp_path,
            env=bench.environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == code
        assert ran.stdout == ("-: valid\n" if code == 0 else "")

    def test_provisioning_tells_what_is_wrong_with_each_file(self, bench: Bench, tmp_path: Path) -> None:
        folder = tmp_path / "workflows"
        folder.mkdir()
        (folder / "a.yaml").write_text("version: 2\n")
        (folder / "b.yaml").symlink_to("b.yaml")
        (folder / "c.yaml").write_text(text_of("action: exec, outputs: [nope], with: { command: [/bin/true] }"))
        environment = {**bench.environment(), "ORCHESTRATOR_AUTH_TOKEN": bench.info.root_token.reveal()}
        ran = subprocess.run(
            [*fork_server.orchestrator(), "provision", "plan", "--workflows", str(folder)],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 2, ran.stderr
        for name in ("a.yaml:1:10", "b.yaml", "c.yaml:10:"):
            assert name in ran.stderr

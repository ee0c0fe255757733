"""`orchestrator policy`: writing, checking and testing policies, and looking at what they have decided."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli import options
from orchestrator.cli.display.printable import clean, one_line
from orchestrator.errors import ExitCode, UsageError
from orchestrator.jsontypes import counted

if TYPE_CHECKING:
    from orchestrator.ledger.findings import DecisionFilter
    from orchestrator.policy.authoring.checking import CheckedFolder
    from orchestrator.policy.authoring.testing import Outcome, Report
    from orchestrator.policy.engines.rego.problems import PolicyProblem

app = typer.Typer(
    help="Write, check and test policies in Rego, and look at what was decided.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Folder = Annotated[
    Path | None,
    typer.Argument(metavar="[PATH]", help="The folder of policies. Default: ORCHESTRATOR_POLICY_PATH."),
]


def register(program: typer.Typer) -> None:
    """Add the group of commands."""
    program.add_typer(app, name="policy")


@app.callback()
def _policy() -> None:
    pass


@app.command("init")
def init(
    path: Annotated[Path, typer.Argument(metavar="[PATH]", help="The folder to write.")] = Path("policies"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite files that are there.")] = False,
) -> None:
    """Write policies to start from: rules that deny everything, data, and tests."""
    from orchestrator.policy.authoring.starter import write_starter

    for file in write_starter(path, overwrite=force):
        sys.stdout.write(f"{one_line(str(file))} written\n")
    folder = one_line(str(path))
    sys.stdout.write(
        f"everything is denied until an agent has an entry in {folder}/data.json; next:\n"
        f"  orchestrator policy check {folder}\n"
        f"  orchestrator policy test {folder} --coverage\n"
        f"  export ORCHESTRATOR_POLICY_PATH={folder}   # for `plan`, `run`, `serve` and `worker`\n"
    )


@app.command("check")
def check(path: Folder = None, as_json: options.Json = False) -> None:
    """Check rules, tests and data, and say where they are wrong. Nothing is decided.

    The exit code is 2 where something is wrong.
    """
    from orchestrator.policy.authoring.checking import check_folder

    folder = check_folder(_folder(path))
    if as_json:
        from orchestrator.cli.display.json_output import print_json

        problems = [problem.as_json() for problem in folder.problems]
        print_json({"valid": not problems, "files": list(folder.files), "problems": problems})
    elif not folder.problems:
        sys.stdout.write(f"{one_line(str(folder.path))}: valid ({counted(len(folder.files), 'file')})\n")
    else:
        _show(folder)
    if folder.problems:
        raise typer.Exit(int(ExitCode.INVALID))


@app.command("test")
def run_tests_of(
    path: Folder = None,
    run: Annotated[
        str, typer.Option("--run", metavar="REGEX", help="Only tests whose full name has a match of this.")
    ] = "",
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show the tests that pass, too.")] = False,
    coverage: Annotated[
        bool, typer.Option("--coverage", help="Show which lines of the rules no test goes through.")
    ] = False,
    min_coverage: Annotated[
        float | None,
        typer.Option("--min-coverage", metavar="PERCENT", min=0, max=100, help="Fail below this, of all lines."),
    ] = None,
    timeout: Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", min=0.1, help="How long all tests may take together.")
    ] = 60.0,
    as_json: options.Json = False,
) -> None:
    """Run the tests of policies: rules `test_...` in `*_test.rego` that are true.

    The exit code is 2 where the policies are not valid, a test does not hold, or too few lines are covered.
    """
    from orchestrator.policy.authoring.checking import check_folder
    from orchestrator.policy.authoring.testing import run_tests

    folder = check_folder(_folder(path), evaluated=False)
    if folder.problems:
        if as_json:
            from orchestrator.cli.display.json_output import print_json

            print_json({"passed": False, "problems": [problem.as_json() for problem in folder.problems]})
        else:
            _show(folder)
        raise typer.Exit(int(ExitCode.INVALID))
    report = run_tests(folder, pattern=run, seconds=timeout)
    is_covered = min_coverage is None or report.percent >= min_coverage
    if as_json:
        from orchestrator.cli.display.json_output import print_json

        print_json(
            {
                "passed": report.holds and is_covered,
                "tests": [outcome.as_json() for outcome in report.outcomes],
                "coverage": {
                    "percent": round(report.percent, 2),
                    "files": [file.as_json() for file in report.coverage],
                },
            }
        )
    else:
        _print_report(report, verbose=verbose, coverage=coverage or not is_covered)
        if not is_covered:
            sys.stderr.write(
                f"error: {_percent(report.percent)} of the lines are covered, fewer than {min_coverage:g} %\n"
            )
    if not (report.holds and is_covered):
        raise typer.Exit(int(ExitCode.INVALID))


Since = Annotated[str | None, typer.Option(metavar="TIME", help="Of runs that began since then: 2026-03-02, 2h, 3d.")]
Until = Annotated[str | None, typer.Option(metavar="TIME", help="Of runs that began before then.")]
Workflow = Annotated[str | None, typer.Option(help="Only of this workflow.")]
Policies = Annotated[
    Path | None,
    typer.Option("--policy-path", metavar="PATH", help="The folder of policies. Default: ORCHESTRATOR_POLICY_PATH."),
]


@app.command("explain")
def explain(
    run: Annotated[
        str, typer.Argument(metavar="RUN|LEASE", help="The id of a run or a lease, or the beginning of it.")
    ],
    step: Annotated[str | None, typer.Argument(metavar="[STEP]", help="The step, where it is a run.")] = None,
    attempt: Annotated[int | None, typer.Option(min=1, help="Which attempt; by default the last one.")] = None,
    policy_path: Policies = None,
    as_json: options.Json = False,
) -> None:
    """Show why a step was allowed or denied: question and answer, the rules that were true, what would change it."""
    from orchestrator.cli.connect import ledger_reader
    from orchestrator.cli.display.decision_view import print_explanation
    from orchestrator.cli.display.json_output import print_json
    from orchestrator.cli.recorded_decisions import decision_about
    from orchestrator.policy.engines.rego.engine import RegoEngine
    from orchestrator.policy.review import explanation

    with ledger_reader() as reader:
        recorded = decision_about(reader, run, step, attempt)
    if not recorded.input:
        raise UsageError(
            f"the question of {recorded.key} is not on record any more",
            hint="it was dropped after its retention, or decided by a release that kept no more than its digest",
        )
    found = explanation.explain(recorded, RegoEngine.from_directory(_folder(policy_path)))
    if as_json:
        print_json(found.as_json())
    else:
        print_explanation(found)


@app.command("replay")
def replay(
    since: Since = None,
    until: Until = None,
    workflow: Workflow = None,
    run: options.OfRun = None,
    policy_path: Policies = None,
    as_json: options.Json = False,
) -> None:
    """Ask recorded decisions again of other policies: what would newly be denied, or allowed.

    The exit code is 4 where something would be decided otherwise, for a check of changed policies.
    """
    from orchestrator.cli.connect import ledger_reader
    from orchestrator.cli.display.decision_view import print_replay, replay_json
    from orchestrator.cli.display.json_output import print_json
    from orchestrator.cli.recorded_decisions import recorded_decisions
    from orchestrator.policy.engines.rego.engine import RegoEngine
    from orchestrator.policy.review.replay import DECISIVE, counted, grouped
    from orchestrator.policy.review.replay import replay as asked_again

    engine = RegoEngine.from_directory(_folder(policy_path))
    with ledger_reader() as reader:
        counts, changed = counted(asked_again(recorded_decisions(reader, _which(since, until, workflow, run)), engine))
    if as_json:
        print_json(replay_json(counts, changed))
    else:
        print_replay(counts, grouped(changed))
    if any(counts[change] for change in DECISIVE):
        raise typer.Exit(int(ExitCode.STEP_FAILED))


@app.command("decisions")
def decisions(
    since: Since = None,
    until: Until = None,
    workflow: Workflow = None,
    run: options.OfRun = None,
    mask: Annotated[
        list[str] | None,
        typer.Option(
            "--mask", metavar="POINTER", help="Leave this out, such as /input/run/inputs; may be given again."
        ),
    ] = None,
    policy_path: Policies = None,
    post: Annotated[str | None, typer.Option("--post", metavar="URL", help="Send them to this collector.")] = None,
    token_file: Annotated[
        Path | None, typer.Option("--token-file", metavar="FILE", help="A bearer token for the collector.")
    ] = None,
    ca_file: Annotated[
        Path | None, typer.Option("--ca-file", metavar="FILE", help="The authorities of the collector's certificate.")
    ] = None,
) -> None:
    """Export decisions as OPA's decision log: one JSON object a line, or posted to a collector.

    What the rule `data.system.log.mask` of the policies names is left out, as OPA does it.
    """
    from orchestrator.cli.connect import ledger_reader
    from orchestrator.cli.display.json_output import json_line
    from orchestrator.cli.recorded_decisions import recorded_decisions
    from orchestrator.policy.engines.rego.engine import RegoEngine
    from orchestrator.policy.review.decision_log import log_event, masked, masks_of

    folder = _folder(policy_path)
    engine = RegoEngine.from_directory(folder) if policy_path is not None or folder.is_dir() else None
    masks = masks_of(mask or (), engine)
    with ledger_reader() as reader:
        found = recorded_decisions(reader, _which(since, until, workflow, run))
        events = (masked(event, masks(event)) for event in map(log_event, found))
        if post is None:
            for event in events:
                sys.stdout.write(json_line(event) + "\n")
            return
        from orchestrator.network.origins import is_confidential
        from orchestrator.policy.review.collector import post as send

        if not is_confidential(post):
            raise UsageError("decisions are not sent over plain http, except to this machine itself", hint="use https")
        done = 0
        for done in send(events, post, token_file=token_file, ca_file=ca_file):
            if sys.stderr.isatty():
                sys.stderr.write(f"{counted(done, 'decision')} sent\r")
    sys.stderr.write(f"{counted(done, 'decision')} sent\n")


def _which(since: str | None, until: str | None, workflow: str | None, run: str | None) -> DecisionFilter:
    from orchestrator.clock import SystemClock
    from orchestrator.ledger.findings import DecisionFilter
    from orchestrator.presentation.moments import parse_moment

    now = SystemClock().now()
    return DecisionFilter(
        run=run,
        workflow=workflow,
        since=parse_moment(since, now=now) if since else None,
        until=parse_moment(until, now=now) if until else None,
    )


def _folder(path: Path | None) -> Path:
    """Where the policies are. Only that setting is read: the others may not be there on an author's machine."""
    if path is not None:
        return path
    from orchestrator.environment import policy_location

    return policy_location()


def _show(folder: CheckedFolder) -> None:
    for problem in folder.problems:
        sys.stderr.write(clean(_words(problem)) + "\n")
    sys.stderr.write(f"{counted(len(folder.problems), 'problem')} found\n")


def _words(problem: PolicyProblem) -> str:
    return f"{problem.shown}\n  hint: {problem.hint}" if problem.hint else problem.shown


def _print_report(report: Report, *, verbose: bool, coverage: bool) -> None:
    from orchestrator.policy.authoring.coverage import ranges
    from orchestrator.policy.authoring.testing import State

    for outcome in report.outcomes:
        if verbose or outcome.state in (State.FAILED, State.NOT_RUN):
            sys.stdout.write(clean(_line(outcome)) + "\n")
    if coverage:
        for file in report.coverage:
            missed = f", not lines {ranges(file.missed)}" if file.missed else ""
            counts = f"{len(file.covered)} of {file.lines} lines covered ({_percent(file.percent)})"
            sys.stdout.write(f"{one_line(file.file)}: {counts}{missed}\n")
        sys.stdout.write(f"covered in all: {_percent(report.percent)}\n")
    counts = ", ".join(f"{report.count(state)} {state}" for state in State if report.count(state))
    sys.stdout.write(f"{counted(len(report.outcomes), 'test')}: {counts}\n")


def _line(outcome: Outcome) -> str:
    place = f"{outcome.case.file}:{outcome.case.line}"
    reason = f"\n  {outcome.reason}" if outcome.reason else ""
    return f"{outcome.state.upper():<7} {outcome.case.name}  {place}{reason}"


def _percent(value: float) -> str:
    """Never rounded up: 100 means every line."""
    return f"{int(value * 10) / 10:g} %"

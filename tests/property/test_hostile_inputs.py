"""No workflow text, expression or SQL brings a process down: it is answered, in bounded time and memory.

ORCHESTRATOR_TEST_HOSTILE=10000 pytest tests/property/test_hostile_inputs.py
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.starter.workflow import STARTER

INPUTS = int(os.environ.get("ORCHESTRATOR_TEST_HOSTILE", "300"))
"""In all: a third each of YAML, CEL and SQL."""

MOST_MEMORY = 900 << 20
PATIENCE = 600
"""Seconds until a child that says nothing is taken to hang: far more than its processor time."""

ROOT = Path(__file__).parents[2]
SAMPLES = [STARTER, *(path.read_text() for path in sorted((ROOT / "workflows").glob("*.yaml")))]


class Child:
    """The process that hostile inputs are given to."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def ask(self, kind: str, text: str) -> None:
        """Assert that it answers, and goes on."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("hostile_child.py"))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,  # a warning is no answer
                text=True,
            )
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps({"kind": kind, "text": text}) + "\n")
        process.stdin.flush()
        if not select.select([process.stdout], [], [], PATIENCE)[0]:
            process.kill()
        line = process.stdout.readline()
        if not line:
            code = self.close()
            raise AssertionError(f"the process ended with {code} over {text[:300]!r}")
        assert line.startswith("{"), f"{line[:200]} is said over {text[:300]!r}"
        answer = json.loads(line)
        assert answer["ended"] in ("accepted", "refused"), text[:300]
        assert answer["memory"] < MOST_MEMORY, text[:300]

    def close(self) -> int | None:
        """How it ended."""
        process, self._process = self._process, None
        if process is None:
            return None
        with process:
            assert process.stdin is not None
            process.stdin.close()
        return process.returncode


@pytest.fixture
def child() -> Iterator[Child]:
    running = Child()
    yield running
    assert running.close() in (0, None)


sizes = st.sampled_from([1, 2, 3, 8, 20, 29, 30, 31, 33, 60, 100, 199, 400, 1_000, 5_000, 30_000, 200_000])
noise = st.text(max_size=30) | st.sampled_from(["\0", "\ud800", "\u2028", "\x85", "\ufeff", "\x1b[2J", "\r", "\t"])


@st.composite
def mutated(draw: st.DrawFn, samples: list[str], pieces: list[str]) -> str:
    """A good text with some of it taken out, doubled, moved, or replaced by noise or by a piece of the language."""
    text = draw(st.sampled_from(samples))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(text)))
        to = min(len(text), at + draw(st.integers(0, 40)))
        match draw(st.integers(0, 4)):
            case 0:
                text = text[:at] + text[to:]
            case 1:
                text = text[:at] + text[at:to] * draw(st.sampled_from([2, 3, 50, 2_000])) + text[to:]
            case 2:
                text = text[:at] + draw(noise) + text[to:]
            case 3:
                text = text[:at] + draw(st.sampled_from(pieces)) + text[to:]
            case _:
                text = text[to:] + text[:at]
        text = text[:400_000]
    return text


def shaped(*shapes: Callable[[str, int], str], leaves: list[str]) -> st.SearchStrategy[str]:
    """Shapes of the language, each as deep or long as it is drawn, within each other."""

    def grow(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        return st.builds(
            lambda shape, within, size: shape(within, max(1, min(size, 400_000 // (len(within) + 1)))),
            st.sampled_from(shapes),
            inner,
            sizes,
        )

    return st.recursive(st.sampled_from(leaves), grow, max_leaves=4)


CEL = shaped(
    lambda inner, size: "+".join([inner] * size),
    lambda inner, size: " && ".join([f"({inner})"] * size),
    lambda inner, size: "(" * size + inner + ")" * size,
    lambda inner, size: "[" * size + inner + "]" * size,
    lambda inner, size: "{'a':" * size + inner + "}" * size,
    lambda inner, size: f"[{', '.join([inner] * size)}]",
    lambda inner, size: inner + ".a" * size,
    lambda inner, size: inner + "[0]" * size,
    lambda inner, size: f"[{inner}]" + ".map(x, x + x)" * size,
    lambda inner, size: f"[{inner}]" + ".map(x, [x, x])" * size,
    lambda inner, size: f"steps.read.output.rows.map(r, {inner})" * size,
    lambda inner, size: f"steps.read.output.rows.filter(r, steps.read.output.rows.exists(o, {inner} == o.id))",
    lambda inner, size: "steps.read.output.rows.map(a, " * size + inner + ")" * size,
    lambda inner, size: f"inputs.big.matches('(a|b)*{size}' + string({inner}))",
    lambda inner, size: "true ? " * size + inner + " : 1" * size,
    lambda inner, size: "!" * size + inner,
    lambda inner, size: "-" * size + inner,
    lambda inner, size: "string(" * size + inner + ")" * size,
    lambda inner, size: f"'{inner * size}'",
    lambda inner, size: f"r'{inner}\\' + '''{inner}",
    lambda inner, size: f"{inner} // {inner}\n" * size,
    lambda inner, size: f"google.protobuf.Value{{ {inner}: 1 }}" * size,
    leaves=[
        *("1", "'a'", "null", "inputs.n", "inputs.big", "inputs", "steps", "1.5e308", "9223372036854775807", "x", "in"),
        *("steps.read.output.rows", "duration('1h')", "timestamp('2026-01-01T00:00:00Z')", "b'\\xff'", "type(1)", "[]"),
        *("timestamp('9999-12-31T23:59:59Z')", "-0.0", "'\\ud800'", "{}", "inputs.list", "has(inputs.n)", "dyn(1)"),
    ],
)
SQL = shaped(
    lambda inner, size: "select " + "+".join([f"({inner})"] * size),
    lambda inner, size: " union ".join([inner] * size),
    lambda inner, size: "select " + "(" * size + inner + ")" * size,
    lambda inner, size: f"select 1 from ({inner}) x" + " join t on true" * size,
    lambda inner, size: "select " + "case when true then " * size + f"({inner})" + " end" * size,
    lambda inner, size: "with x as (" * size + inner + ") select 1" * size,
    lambda inner, size: "select " + "not " * size + f"exists ({inner})",
    lambda inner, size: "; ".join([inner] * size),
    lambda inner, size: f"select ({inner})" + "::int" * size,
    lambda inner, size: "select " + "array[" * size + f"({inner})" + "]" * size,
    lambda inner, size: "select 1" + f" between ({inner}) and 1 is null" * size,
    lambda inner, size: f"select '{inner * size}",
    lambda inner, size: f"select $a${inner * size}$a$",
    lambda inner, size: "select " + "%(" * size + inner,
    lambda inner, size: "/*" * size + inner + "*/" * size,
    lambda inner, size: f"explain (analyze) {inner}",
    lambda inner, size: f"insert into t values {', '.join([f'(({inner}))'] * size)}",
    lambda inner, size: f"BEGIN ATOMIC {inner}; " * size + "END",
    leaves=[
        *("select 1", "select a.end as end from t", "table t", "values (1)", "delete from t returning *", "select $1"),
        *("do $$ begin end $$", "copy t to program 'x'", "select", "create table t as select 1", "select %(a)s", ")"),
        *("merge into t using s on true when matched then delete", "call f(1)", "select x'00' || e'\\x'", "\0"),
    ],
)
YAML = shaped(
    lambda inner, size: "[" * size + inner + "]" * size,
    lambda inner, size: "{a: " * size + inner + "}" * size,
    lambda inner, size: "- " * size + inner,
    lambda inner, size: "".join(f"{' ' * min(place, 300)}k{place}:\n" for place in range(min(size, 2_000))) + inner,
    lambda inner, size: "\n".join(f"k{place}: {inner}" for place in range(size)),
    lambda inner, size: (
        f"a: &a [{inner}]\n"
        + "\n".join(
            f"a{place}: &a{place} [*a{place - 1 if place else ''}, *a{place - 1 if place else ''}]"
            for place in range(min(size, 60))
        )
    ),
    lambda inner, size: f"a: &a {inner}\nb: [{', '.join(['*a'] * size)}]",
    lambda inner, size: f"&a [*a, {inner}]",
    lambda inner, size: f"? {inner}\n: " * size,
    lambda inner, size: f"--- {inner}\n" * size,
    lambda inner, size: (
        "version: 1\nname: w\nagent: a\nsteps:\n"
        + "".join(
            f"  s{place}: {{ action: exec, with: {{ command: [{inner}] }}, needs: [s{place + 1}] }}\n"
            for place in range(min(size, 300))
        )
    ),
    lambda inner, size: (
        "version: 1\nname: w\nagent: a\n"
        f"steps: {{ a: {{ action: exec, with: {{ command: ['${{{{ {inner * size} }}}}'] }} }} }}"
    ),
    lambda inner, size: (
        f"version: 1\nname: w\nagent: a\ninputs: {{ {inner}: {{ type: integer, default: {inner} }} }}\nsteps: {{}}"
    ),
    lambda inner, size: f'"{inner * size}',
    lambda inner, size: f"a: |\n {inner * size}",
    lambda inner, size: f"a: !!{inner} {'x' * size}",
    leaves=[
        *(
            "1",
            "a",
            "''",
            "~",
            "*a",
            "<<: *a",
            "!!python/object:os.system x",
            "0x" + "f" * 3_000,
            "1e999999999",
            "-.inf",
        ),
        *(
            "9" * 6_000,
            "2026-01-01",
            "%YAML 9.9\n---\na",
            "\t- a",
            "a: b: c",
            "'${{ inputs.n }}'",
            "1_000_000",
            "0o7",
            "%",
        ),
    ],
)

CELS = ["size(steps.read.output.rows.filter(r, r.id > inputs.n)) > 2 ? inputs.name : string(inputs.n)"]
SQLS = [
    "SELECT f.id, count(*) FROM shop.feedback f JOIN customer c ON c.id = f.customer_id WHERE f.kind = %(kind)s AND "
    "NOT EXISTS (SELECT 1 FROM gone g WHERE g.id = f.id) GROUP BY f.id ORDER BY 2 DESC LIMIT %(limit)s",
    "WITH gone AS (DELETE FROM a USING b WHERE a.id = b.id RETURNING a.*) INSERT INTO c SELECT * FROM gone "
    "ON CONFLICT (id) DO UPDATE SET x = excluded.x || 'y', "
    "z = CASE WHEN c.z BETWEEN 1 AND 2 THEN 1 ELSE ARRAY[1][1] END",
]
WORDS = [
    "[",
    "]",
    "{",
    "}",
    "(",
    ")",
    ":",
    ",",
    "'",
    '"',
    "\\",
    "${{",
    "}}",
    "&a",
    "*a",
    "|",
    ">",
    "- ",
    "!!",
    "#",
    "%(",
]

hostile = settings(
    max_examples=max(1, INPUTS // 3), deadline=None, database=None, suppress_health_check=list(HealthCheck)
)


@hostile
@given(text=YAML | mutated(SAMPLES, WORDS) | noise)
def test_no_workflow_brings_the_process_down(child: Child, text: str) -> None:
    child.ask("yaml", text)


@hostile
@given(text=CEL | mutated(CELS, [*WORDS, ".map(x, x + x)", "steps.read.output", "//", "''' "]) | noise)
def test_no_expression_brings_the_process_down(child: Child, text: str) -> None:
    child.ask("cel", text)


@hostile
@given(text=SQL | mutated(SQLS, [*WORDS, " UNION ", " NOT ", "--", "/*", "$$", " CASE ", " END "]) | noise)
def test_no_sql_brings_the_process_down(child: Child, text: str) -> None:
    child.ask("sql", text)


UNITS = [
    *(
        "'",
        '"',
        "`",
        "'\\",
        '"\\',
        "'''",
        '"""',
        "''",
        "'\n",
        "b'",
        "r'",
        "br'\\",
        "e'\\",
        "u&'\\0041",
        "$a$",
        "$a",
        "$1",
    ),
    *("+", "+-", "/*", "*/", "/*-", "--", "--\n", "/", "<", "?", "%", "%(", "%(a", "%%", "%s", "@-", "#", "//", "//\n"),
    *("(", "[", "{", "{}", "{{", "}}", "${{", "${{ ", "$${{", "${{ 1 }}", "${{ a", ")", "]", "}", "(1)", "[1]", "{a: "),
    *(
        "1",
        "1.",
        "1_",
        "1e",
        "0x",
        "-1",
        "a",
        "a.",
        "a b ",
        ".a",
        "not ",
        "a,",
        ",",
        ";",
        ":",
        "::",
        ": ",
        "? ",
        "- ",
        "|",
    ),
    *(
        "\n",
        "\r",
        "\t",
        " ",
        "\\",
        "\\n",
        "\u2028",
        "\x85",
        "é",
        "\U0001f511",
        "\ufeff",
        "&a ",
        "*a ",
        "!",
        "!a ",
        "<<: ",
    ),
    *(
        "a: 1\n",
        "- - ",
        "- a\n",
        "? a\n",
        "  ",
        "\n ",
        "|\n",
        ">-\n ",
        "---\n",
        "...\n",
        "%YAML 1.2\n",
        "a: &a\n",
        "# a\n",
    ),
]
"""What is repeated until the text is as long as it may be: what looks through the rest for each of them takes hours."""

PLACES = {
    "yaml": ["{}", "a: {}", 'a: "{}', "a: '{}", "a: |\n  {}", "a: [{}", "# {}"],
    "template": ["{}", "x ${{{{ {}", "x ${{{{ {} }}}}", "${{{{ '{}"],
    "sql": ["{}", "select {}", "select '{}", "select ({}", "do $$ {}"],
    "cel": ["{}", "'{}", "[{}", "inputs.list.map(a, {}"],
}
LONGEST = {"yaml": 1 << 20, "template": 1 << 20, "sql": 100_000, "cel": 20_000}
IN_SHORT = {"yaml": 60_000, "template": 60_000, "sql": 25_000, "cel": 20_000}
"""Long enough that Python code that looks through the rest for each unit takes longer than an input has."""


@pytest.mark.parametrize("kind", PLACES)
def test_no_repetition_holds_up_the_process(child: Child, kind: str) -> None:
    """Every unit in one place, or with ORCHESTRATOR_TEST_HOSTILE=10000 in all, and in the longest text that may be."""
    everything = INPUTS >= 10_000
    length = (LONGEST if everything else IN_SHORT)[kind]
    for number, unit in enumerate(UNITS):
        for place in PLACES[kind] if everything else [PLACES[kind][number % len(PLACES[kind])]]:
            text = place.format(unit * ((length - 100) // len(unit.encode())))
            child.ask("cel" if kind == "template" else kind, text)

"""Expressions: their variables, their bounds, and what CEL's functions give, asked of the engine itself."""

from __future__ import annotations

import json
from collections.abc import Iterator

from orchestrator.errors import InvalidExpression
from orchestrator.workflow.cel import engine, syntax
from orchestrator.workflow.cel.engine import Budget, execute
from orchestrator.workflow.cel.template import ROOTS
from orchestrator.workflow.checks import RUN_PARTS, TASK_PARTS
from tools.reference.markdown import code, page, prose, table

_HEAD = """\
# Expressions

`${{ }}` holds one expression of the [Common Expression Language](https://cel.dev). A value that is one expression and
nothing else keeps the type of its result; in a longer text results are inserted, and must be texts, numbers or truth
values. `$${{` stands for a literal `${{`. `if` is an expression, with or without `${{ }}`. Credentials are not among
the variables. `orchestrator validate` compiles every expression, with the types below, before anything runs.
"""

VARIABLES = {
    "inputs.NAME": ("as declared", "An input. A secret one may only be passed on whole."),
    "context.NAME": ("any", "What the workflow's `context` has."),
    "endpoints.NAME": ("text", "The address of an endpoint of the settings."),
    "workflow.name": ("text", "The workflow's name."),
    "workflow.dir": ("text", "The folder of the workflow file."),
    "run.id": ("text", "The run's id; steps only."),
    "run.trigger": ("text", "What started it: `manual`, `cron`, ...; steps only."),
    "run.started": ("text", "When it began, ISO 8601 in UTC; steps only."),
    "run.failed": ("list of text", "The steps that have failed so far; steps only."),
    "steps.NAME.output.KEY": ("as the action says", "A key that an earlier step keeps of its output; steps only."),
    "steps.NAME.state": ("text", "How an earlier step stands, such as `succeeded`; steps only."),
    "steps.NAME.error": ("text", "Why an earlier step failed; steps only."),
    "step.id": ("text", "The step itself."),
    "step.attempt": ("integer", "Which try at it this is, from 1."),
    "step.index": ("integer", "With `for_each`: which item this is, from 0."),
    "item": ("any", "With `for_each`: the item."),
    "call.NAME": ("as declared", "What the agent chose; tools only."),
    "task.id": ("text", "The task; tools only."),
    "task.agent": ("text", "The agent that opened it; tools only."),
    "task.on_behalf_of": ("text", "The person for whom it acts, or empty; tools only."),
}
"""Each path: its type, and what it is."""

DATA = {"inputs": {"limit": 5, "name": "Ada Lovelace", "at": "2026-05-04T07:00:00Z", "tags": ["a", "b"]}}
"""What the examples look at."""

EXAMPLES = {
    "Operators": [
        "inputs.limit * 2 + 1",
        "inputs.limit >= 5 && !(inputs.name == '')",
        "inputs.limit > 3 ? 'many' : 'few'",
    ],
    "Texts": [
        "size(inputs.name)",
        "inputs.name.startsWith('Ada')",
        "inputs.name.endsWith('lace')",
        "inputs.name.contains('Love')",
        "inputs.name.matches('^[A-Z]')",
        "'n=' + string(inputs.limit)",
    ],
    "Lists and maps": [
        "inputs.tags[0]",
        "'a' in inputs.tags",
        "size(inputs.tags)",
        "inputs.tags + ['c']",
        "inputs.tags.map(t, t + '!')",
        "inputs.tags.filter(t, t != 'a')",
        "inputs.tags.exists(t, t == 'b')",
        "inputs.tags.exists_one(t, t == 'b')",
        "inputs.tags.all(t, size(t) == 1)",
        "{'who': inputs.name}",
    ],
    "Absence": ["has(inputs.limit)", "has(inputs.nothing) ? inputs.nothing : 'default'"],
    "Conversions": ["int('42')", "double('1.5')", "string(1.5)", "bool('true')", "type(inputs.limit) == int"],
    "Times": [
        "timestamp(inputs.at).getFullYear()",
        "timestamp(inputs.at).getDayOfWeek()",
        "string(timestamp(inputs.at) + duration('24h'))",
        "timestamp(inputs.at) < timestamp('2027-01-01T00:00:00Z')",
    ],
}

NOT_THERE = ["inputs.name.lowerAscii()", "inputs.tags.join(',')", "inputs.name.split(' ')", "math.greatest(1, 2)"]
"""What some implementations of CEL add, and this one has not."""


def text() -> str:
    """The page."""
    rows = [(code(path), kind, prose(said)) for path, (kind, said) in VARIABLES.items()]
    undescribed = [(code(path), "any", "") for path in missing()]
    return page(
        _HEAD,
        "## Variables",
        table(("variable", "type", "what it is"), [*rows, *undescribed]),
        "## Functions",
        f"Those of CEL's standard definitions. The results below are the engine's, with the inputs "
        f"{code(json.dumps(DATA['inputs']))}.",
        *(f"### {topic}\n\n{table(('expression', 'gives'), _results(each))}" for topic, each in EXAMPLES.items()),
        "### Not there",
        f"Extensions that other implementations bring, such as {', '.join(code(each) for each in absent())}: let SQL, "
        "the service or a step of the action `python` do it.",
        "## Bounds",
        table(("of", "at most"), _bounds()),
    )


def missing() -> list[str]:
    """What the language knows and the table does not."""
    parts = {"run": RUN_PARTS, "task": TASK_PARTS}
    paths = [f"{root}.{part}" for root in parts for part in parts[root]]
    roots = {path.partition(".")[0] for path in VARIABLES}
    return [path for path in paths if path not in VARIABLES] + [root for root in ROOTS if root not in roots]


def absent() -> Iterator[str]:
    """Those of `NOT_THERE` that are refused."""
    for each in NOT_THERE:
        try:
            execute(each, DATA, Budget())
        except InvalidExpression:
            yield each


def _results(expressions: list[str]) -> list[tuple[str, str]]:
    return [(code(each), code(json.dumps(execute(each, DATA, Budget())))) for each in expressions]


def _bounds() -> list[tuple[str, str]]:
    return [
        ("characters of an expression", f"{syntax.MAX_CHARACTERS:,}"),
        ("tokens of an expression", f"{syntax.MAX_TOKENS:,}"),
        ("brackets within brackets", str(syntax.MAX_NESTING)),
        ("processor time of all expressions of one value", f"{engine.SECONDS:g} seconds"),
        ("data that an expression looks at, and that it gives", f"{engine.MAX_DATA >> 20} MiB of JSON"),
    ]

"""The process in which the tests of policies are evaluated: it may be killed, a loop of Rego may not.

It is started by path, imports nothing of this package, reads one request of JSON from its standard input, and writes
one line of JSON for each test as soon as it has its answer. The kernel bounds its memory and its time: where nobody is
left to end it, it ends all the same.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Sequence
from typing import Any

UNDEFINED = "<undefined>"


def path_of(rule: str) -> str:
    """`data.a.b-c` as a reference of Rego: `data["a"]["b-c"]`."""
    first, *rest = rule.split(".")
    return first + "".join(f"[{json.dumps(part)}]" for part in rest)


class Evaluator:
    """Modules and data, compiled once; each test gets a copy that no other test has touched."""

    def __init__(self, modules: Sequence[tuple[str, str]], data: str | None) -> None:
        import regorus

        self._engine = regorus.Engine()
        for name, text in modules:
            self._engine.add_policy(name, text)
        if data is not None:
            self._engine.add_data_json(data)
        self._engine.set_input_json("{}")
        self._engine.set_enable_coverage(True)

    def evaluate(self, rule: str) -> dict[str, Any]:
        """`{"value": ...}` or `{"error": words}`, and the lines of each file that were gone through."""
        engine = self._engine.clone()
        try:
            answer: dict[str, Any] = {"value": json.loads(engine.eval_rule_as_json(path_of(rule)))}
        except (RuntimeError, ValueError) as error:
            answer = {"error": str(error).partition("Stack backtrace:")[0].strip()}
        answer["rule"] = rule
        report = json.loads(engine.get_coverage_report_as_json())
        answer["covered"] = {file["path"]: file["covered"] for file in report["files"]}
        return answer


def main(arguments: list[str]) -> None:
    """`child.py FOLDER_OF_THE_ENGINE MEMORY SECONDS`: bytes, and processor time."""
    folder, memory, seconds = arguments
    sys.path.append(folder)
    limits = (resource.RLIMIT_CORE, 0), (resource.RLIMIT_AS, int(memory)), (resource.RLIMIT_CPU, int(seconds))
    for limit, most in limits:
        try:
            resource.setrlimit(limit, (most, most))
        except (OSError, ValueError):  # macOS knows the one of memory and does not obey it
            continue
    asked = json.load(sys.stdin)
    evaluator = Evaluator(asked["modules"], asked["data"])
    for rule in asked["rules"]:
        sys.stdout.write(json.dumps(evaluator.evaluate(rule)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])

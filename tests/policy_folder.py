"""A folder of Rego as a policy service evaluates it: the rules, and `data.json` beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import regorus


class Undefined(Exception):
    """No document has that path, or no rule applies."""


class Failed(Exception):
    """The evaluation ended in an error; the message is the evaluator's first line."""


class PolicyFolder:
    """Belongs to the thread that made it, as regorus demands."""

    def __init__(self, path: Path) -> None:
        self._engine = regorus.Engine()
        for file in sorted(path.glob("*.rego")):
            if not file.name.endswith("_test.rego"):
                self._engine.add_policy(file.name, file.read_text())
        if (data := path / "data.json").is_file():
            self._engine.add_data_json(data.read_text())

    def evaluate(self, path: str, document: Any) -> Any:
        """The document at `orchestrator/decision`, with sets as sorted lists. Raises Undefined or Failed."""
        self._engine.set_input_json(json.dumps(document))
        try:
            value = self._engine.eval_rule("data." + path.replace("/", "."))
        except RuntimeError as error:
            if "not a valid rule path" in str(error):
                raise Undefined from None
            raise Failed(str(error).partition("Stack backtrace:")[0].strip().splitlines()[-1]) from None
        if value is None:
            raise Undefined
        return _plain(value)


def _plain(value: Any) -> Any:
    if isinstance(value, set | frozenset):
        return sorted(map(_plain, value), key=lambda item: json.dumps(item, sort_keys=True))
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return {key: _plain(part) for key, part in value.items()} if isinstance(value, dict) else value

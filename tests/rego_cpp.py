"""Microsoft's other evaluator of Rego (rego-cpp), as a second opinion: one question a line, one answer a line.

A process of its own: some questions end it.
"""

import json
import sys
from typing import Any

from regopy import Interpreter, RegoError
from regopy.rego_shared import rego_bundle_query_entrypoint, rego_free_output, rego_output_ok, rego_output_string


class Raw:
    """An answer as rego-cpp writes it: regopy's own class parses it at once, and some of it is no JSON."""

    def __init__(self, impl: Any) -> None:
        self.impl = impl

    def __del__(self) -> None:
        rego_free_output(self.impl)


def answer(modules: list[tuple[str, str]], document: str, data: str | None = None) -> dict[str, Any]:
    """`{"value": ...}`, `{"undefined": true}` or `{"error": "..."}` for `data.orchestrator.decision`."""
    interpreter = Interpreter()
    try:
        for name, text in modules:
            interpreter.add_module(name, text)
        if data is not None:
            interpreter.add_data_json(data)
        bundle = interpreter.build(None, ["orchestrator/decision"])
        if not bundle.ok():
            return {"error": "does not compile"}
        interpreter.set_input_term(document)
        output = Raw(rego_bundle_query_entrypoint(interpreter._impl, bundle._impl, "orchestrator/decision"))
    except (RegoError, ValueError, RecursionError) as error:
        return {"error": str(error)}
    text = rego_output_string(output.impl)
    if not rego_output_ok(output.impl):
        return {"error": text}
    if text == "undefined":
        return {"undefined": True}
    try:
        return {"value": json.loads(text)["expressions"][0]}
    except ValueError:
        return {"error": text}


def main() -> None:
    """Until the questions end."""
    for line in sys.stdin:
        print("answer " + json.dumps(answer(**json.loads(line))), flush=True)


if __name__ == "__main__":
    main()

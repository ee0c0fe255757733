"""The rule of a step's policy for a path that takes parameters: their names, and constants that Vault can compare.

Measured on OpenBao 2.7.2 (`allowed_parameters`): a text is compared as it is, but one that begins or ends with `*` is
a pattern, and `${` begins what HCL would insert; a list of texts must be written as a list within the list of allowed
values; truth values are compared; numbers never compare equal, so of these the name alone is allowed.
`required_parameters` refuses what leaves one out, or gives null for one with a fixed value. What is not named in
`allowed_parameters` is refused.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping

from orchestrator.jsontypes import JsonValue


def parameters_rule(path: str, parameters: Mapping[str, JsonValue], *, made: Collection[str] = ()) -> str:
    """The rule, as HCL, under which exactly these parameters are sent; the constants among them have this value.

    `made` are the names of others, whose values are made for each lease.
    """
    pins = {**{name: _pinned(value) for name, value in parameters.items()}, **dict.fromkeys(made, "[]")}
    lines = "".join(f"    {json.dumps(name)} = {pin}\n" for name, pin in pins.items())
    return (
        f'path "{path}" {{\n'
        f'  capabilities = ["update"]\n'
        f"  required_parameters = {json.dumps(list(pins))}\n"
        f"  allowed_parameters = {{\n{lines}  }}\n"
        f"}}\n"
    )


def _pinned(value: JsonValue) -> str:
    """The allowed values, or none where any is allowed: it is bound later, or Vault cannot compare it."""
    if isinstance(value, bool):
        return "[true]" if value else "[false]"
    if isinstance(value, str) and "${" not in value and not value.startswith("*") and not value.endswith("*"):
        return f"[{_quoted(value)}]"
    if isinstance(value, list) and not any("${" in str(each) for each in value):
        return f"[[{', '.join(_quoted(str(each)) for each in value)}]]"
    return "[]"


def _quoted(text: str) -> str:
    """A string of HCL (version 1), which takes the escapes of JSON, but no pairs of surrogates."""
    return json.dumps(text, ensure_ascii=False)

"""The settings, from the model that reads them."""

from __future__ import annotations

from typing import Any

from orchestrator.environment import PREFIX
from orchestrator.settings import Settings
from tools.reference.docstrings import attributes
from tools.reference.markdown import code, page, prose, table, unset
from tools.reference.schemas import default_of, type_of

_HEAD = f"""\
# Settings

Each is a variable of the environment, or a key of the TOML file that `{PREFIX}CONFIG` names; variables win over it.
No file of the working directory is read. Where a setting is a table, a part of it is a variable of its own
(`{PREFIX}ENDPOINTS__SUPPORT`), and a key of that table in the file (`[endpoints]`, `support = "..."`). An unknown key
of the file is an error.
"""

_BESIDE = f"""\
Beside these:

- `{PREFIX}CONFIG` names the file.
- `{PREFIX}DEBUG=1` prints the traceback of a defect, without issued secrets; it changes nothing that is logged.
- The endpoint `slack` (`{PREFIX}ENDPOINTS__SLACK`) takes the place of Slack's own address for `slack.post_message`, as
  for a proxy or a test; for the buttons of approvals that is `{PREFIX}SLACK_API`.
"""


def text() -> str:
    """The page."""
    schema = Settings.model_json_schema(by_alias=False)
    definitions = schema.get("$defs", {})
    rows = [_row(name, part, definitions) for name, part in schema["properties"].items()]
    return page(_HEAD, table(("variable", "key of the file", "type", "default", "meaning"), rows), _BESIDE)


def variables(name: str) -> list[str]:
    """The variables that a setting is read from, the first that is set wins."""
    alias: Any = Settings.model_fields[name].validation_alias
    if alias is not None:
        return [str(choice) for choice in alias.choices if str(choice).isupper()]
    table_of_names = getattr(Settings.model_fields[name].annotation, "__origin__", None) is dict
    return [f"{PREFIX}{name.upper()}" + ("__NAME" if table_of_names else "")]


def _row(name: str, part: dict[str, Any], definitions: dict[str, Any]) -> tuple[str, ...]:
    shown = ", ".join(code(each) for each in variables(name))
    key = f"[{name}]" if shown.endswith("__NAME`") else name
    kind = type_of(part, definitions)
    default = default_of(part, required=False)
    return shown, code(key), kind, default, prose(unset(attributes(Settings).get(name, ""), "unset"))

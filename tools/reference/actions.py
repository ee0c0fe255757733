"""The actions: parameters, outputs and kinds of failure, from the classes that carry them out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any, cast

from orchestrator.actions.base import Action, Params
from tools.reference.docstrings import summary
from tools.reference.extensions import registered
from tools.reference.markdown import code, fenced, page, paragraphs, prose, table
from tools.reference.samples import step_with
from tools.reference.schemas import heading, keys, referred, section

_HEAD = """\
# Actions

What a step or a tool can do: `action` names it, `with` gives it its parameters. Every parameter may be given by a
`${{ }}` expression, unless it says otherwise; those that name a grant (`grant` or `grant.field`) never hold the
credential itself. Keys of the output that later steps or the agent are to see are named in `outputs`; nothing else is
kept. Other packages can [bring actions of their own](extensions.md).
"""

_WORDS = {
    "string": "text",
    "int": "integer",
    "double": "number",
    "bool": "true or false",
    "list": "list",
    "map": "map",
    "maps": "list of maps",
}


def text() -> str:
    """The page."""
    return page(_HEAD, *(_action(name, place) for name, place in registered("orchestrator.actions")))


def _action(name: str, place: str) -> str:
    module, _, attribute = place.partition(":")
    action = cast("type[Action]", getattr(import_module(module), attribute))
    schema = action.params.model_json_schema(by_alias=True, mode="validation")
    definitions = schema.get("$defs", {})
    models = [each for each in dict.fromkeys(_all_referred(schema, definitions)) if definitions[each].get("properties")]
    example = step_with(name)
    return page(
        f"## {name}",
        prose(action.summary),
        paragraphs(schema.get("description", "")),
        keys(schema, definitions),
        *_marks(action.params),
        "Its output:",
        _outputs(action.params),
        paragraphs(summary(action)),
        *(section(heading(each, definitions[each]), definitions[each], definitions, 3) for each in models),
        f"In a workflow:\n\n{fenced('yaml', example)}" if example else "",
    )


def _all_referred(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> Iterator[str]:
    for name in dict.fromkeys(referred({key: part for key, part in schema.items() if key != "$defs"})):
        yield name
        yield from _all_referred(definitions[name], definitions)


def _marks(params: type[Params]) -> Iterator[str]:
    said = (
        (params.literal, "No expression may be in {}."),
        (params.fixed, "Nothing that an agent chooses may be in {}."),
        (params.endpoints, "Endpoints of the [settings](settings.md) are named by {}."),
    )
    for names, words in said:
        if names:
            yield words.format(", ".join(code(name) for name in sorted(names)))


def _outputs(params: type[Params]) -> str:
    described = params.output_descriptions
    if params.output_keys({}) is None:
        return prose(described["*"])
    rows = [
        (code(key), _WORDS.get(params.output_types.get(key, ""), "any"), " ".join([prose(said), *_only(params, key)]))
        for key, said in described.items()
    ]
    return table(("key", "type", "meaning"), rows)


def _only(params: type[Params], key: str) -> Iterator[str]:
    """With which values of a parameter there is such a key, where it is not with all."""
    for name, each in params.model_json_schema().get("properties", {}).items():
        values = each.get("enum", ())
        having = [value for value in values if key in (params.output_keys({name: value}) or ())]
        if values and len(having) < len(values):
            yield f"With {code(name)}: {', '.join(code(str(value)) for value in having)}."

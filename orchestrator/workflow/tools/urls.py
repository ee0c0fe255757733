"""What an agent has chosen, in the text of a URL: percent-encoded as one segment or value, and nowhere else.

Encoded it cannot begin another segment, a query or a fragment (RFC 3986, 2.2); as a whole segment `.` and `..` would
still be taken for a way up by whoever normalises (6.2.2.3), and nothing at all would make two slashes of one: these are
refused.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any
from urllib.parse import quote

from pydantic import BaseModel

from orchestrator.errors import InvalidExpression
from orchestrator.workflow.cel.template import parse_template, references
from orchestrator.workflow.expressions import evaluate, located, render

BY_THE_AGENT = ("inputs", "call", "context", "task")
"""The variables of expressions in which is what whoever opens a task or calls a tool has chosen."""

_BEHIND_AN_AUTHORITY = re.compile(r"https?://[^/?#\s]+[/?][^#]*", re.IGNORECASE)
_AN_ADDRESS = "https://endpoint"
"""Stands for the address of an endpoint, which whoever installs the orchestrator says."""

_HINT = "write `${{ endpoints.NAME }}/path/${{ call.name }}`"


def misplaced(value: Any, chosen: Collection[str]) -> Iterator[tuple[str, str]]:
    """What is wrong with the places at which a URL takes values of the agent (variables `chosen`), with a hint."""
    if not isinstance(value, str) or "${{" not in value:
        return
    before = ""
    try:
        for part in parse_template(value).parts:
            if isinstance(part, str):
                before += part
            elif roots := _roots(part.cel) & set(chosen):
                if not _BEHIND_AN_AUTHORITY.fullmatch(before):
                    root = sorted(roots)[0]
                    yield f"`{root}` may only fill a part of the path or of the query of a URL, behind its host", _HINT
                before += "x"
            else:
                before += _AN_ADDRESS if not before else "x"
    except InvalidExpression:
        return  # reported already


def evaluate_parameter(
    of_tool: bool, params: type[BaseModel], name: str, value: Any, context: Mapping[str, Any]
) -> Any:
    """One parameter of an action with its expressions evaluated; `of_tool`: what is chosen is kept in its place.

    Raises InvalidExpression, which names the place.
    """
    at = f"with.{name}"
    if of_tool and name in getattr(params, "urls", ()) and isinstance(value, str):
        try:
            return url_of(value, context, BY_THE_AGENT)
        except InvalidExpression as error:
            raise located(error, at) from None
    return evaluate(value, context, at=at)


def url_of(text: str, context: Mapping[str, Any], chosen: Collection[str]) -> Any:
    """The URL with what is chosen encoded into it. Raises InvalidExpression, also for a value that cannot stand there.

    Values of other variables, which are the installation's, are inserted as they are.
    """

    def place(before: str, cel: str, value: str) -> str:
        if not _roots(cel) & set(chosen):
            return value
        if not _BEHIND_AN_AUTHORITY.fullmatch(before):
            raise InvalidExpression(f"`{cel}` may only stand behind the host of a URL", hint=_HINT)
        if not value and "?" not in before:
            raise InvalidExpression(f"`{cel}` is empty, and would leave out a part of the path")
        try:
            return quote(value, safe="")
        except UnicodeEncodeError:
            raise InvalidExpression(f"`{cel}` is not a text that a URL can hold") from None

    url = render(text, context, place)
    if isinstance(url, str) and any(part in (".", "..") for part in url.partition("?")[0].split("/")):
        raise InvalidExpression("a value makes the URL lead upwards", hint="declare a `pattern` for the argument")
    return url


def _roots(cel: str) -> set[str]:
    return {each.path[0] for each in references(cel)}

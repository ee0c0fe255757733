"""`${{ CEL }}` in workflow files: evaluating it.

A text that is exactly one expression keeps the type of its result; in a longer text the results
are inserted, and must be scalars. `$${{` stands for a literal `${{`. The language is CEL
(https://cel.dev); credentials are not among its variables, so no expression can ever see one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from orchestrator.errors import InvalidExpression
from orchestrator.jsontypes import text_of
from orchestrator.secret import Secret
from orchestrator.workflow.cel.engine import Budget, execute
from orchestrator.workflow.cel.syntax import check_size
from orchestrator.workflow.cel.template import PATH, parse_template, references


def evaluate(value: Any, context: Mapping[str, Any], *, at: str = "") -> Any:
    """The value with every expression in it replaced by its result; maps and lists are walked.

    `context` gives the variables, such as `inputs` and `steps`; `at` is where the value stands, such as `with`.
    A secret input that is referred to as a whole comes out as the `Secret` itself. Raises InvalidExpression, which
    names the place (`with.parameters.id`) and the expression, and never a value.
    """
    return _evaluated(value, context, at, Budget())


def _evaluated(value: Any, context: Mapping[str, Any], at: str, time: Budget) -> Any:
    if isinstance(value, str):
        try:
            return _text(value, context, time)
        except InvalidExpression as error:
            raise located(error, at) from None
    if isinstance(value, Mapping):
        return {key: _evaluated(item, context, f"{at}.{key}" if at else str(key), time) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_evaluated(item, context, f"{at}[{index}]", time) for index, item in enumerate(value)]
    return value


def needs_engine(value: Any) -> bool:
    """Whether an expression in the value does more than name something; then `evaluate` may take seconds."""
    if isinstance(value, str):
        try:
            return "${{" in value and not all(PATH.fullmatch(each.cel) for each in parse_template(value).expressions)
        except InvalidExpression:
            return False
    if isinstance(value, Mapping):
        return any(needs_engine(item) for item in value.values())
    return isinstance(value, list | tuple) and any(needs_engine(item) for item in value)


def located(error: InvalidExpression, at: str) -> InvalidExpression:
    """The same error with its place before it."""
    return InvalidExpression(f"`{at}`: {error.message}", hint=error.hint) if at else error


def holds(condition: str, context: Mapping[str, Any]) -> bool:
    """Whether an `if:` is true. It may be written with or without `${{ }}`. Raises InvalidExpression."""
    result = _run(condition_of(condition), context, Budget())
    if not isinstance(result, bool):
        raise InvalidExpression(f"the condition `{condition}` is neither true nor false")
    return result


def condition_of(text: str) -> str:
    """The CEL text of an `if:`."""
    if "${{" not in text:
        check_size(text.strip())
        return text.strip()
    whole = parse_template(text.strip()).whole
    if whole is None:
        raise InvalidExpression("a condition is one expression", hint="write all of it inside one `${{ }}`")
    return whole.cel


def render(text: str, context: Mapping[str, Any], place: Callable[[str, str, str], str]) -> str:
    """The text with what `place(before, cel, value)` makes of each result, all of it a text in any case.

    `before` is what the text has come to so far. Raises InvalidExpression, as `place` may.
    """
    time, rendered = Budget(), ""
    for part in parse_template(text).parts:
        inserted = part if isinstance(part, str) else place(rendered, part.cel, _inserted(part.cel, context, time))
        rendered += inserted
    return rendered


def _text(text: str, context: Mapping[str, Any], time: Budget) -> Any:
    if "${{" not in text:
        return text
    template = parse_template(text)
    if template.whole is not None:
        return _secret(template.whole.cel, context) or _run(template.whole.cel, context, time)
    return "".join(part if isinstance(part, str) else _inserted(part.cel, context, time) for part in template.parts)


def _secret(cel: str, context: Mapping[str, Any]) -> Secret | None:
    """The secret input that is referred to as a whole, which never passes through CEL."""
    root, _, name = cel.partition(".")
    value = context.get("inputs", {}).get(name.strip()) if root.strip() == "inputs" else None
    return value if isinstance(value, Secret) else None


def _inserted(cel: str, context: Mapping[str, Any], time: Budget) -> str:
    result = _run(cel, context, time)
    if isinstance(result, str | bool | int | float):
        return text_of(result)
    raise InvalidExpression(
        f"`{cel}` gives {_kind(result)}, which cannot stand inside a text",
        hint="let the expression be the whole value, or pick a single text or number from it",
    )


def _run(cel: str, context: Mapping[str, Any], time: Budget) -> Any:
    """The result of one expression. What only names a value needs no engine: most expressions, and large data."""
    visible = {key: value for key, value in context.items() if key != "inputs"}
    visible["inputs"] = {
        name: value for name, value in context.get("inputs", {}).items() if not isinstance(value, Secret)
    }
    if PATH.fullmatch(cel):
        return _looked_up(cel, visible)
    return execute(cel, _referred_to(cel, visible), time)


def _looked_up(cel: str, visible: Mapping[str, Any]) -> Any:
    value: Any = visible
    for name in cel.split("."):
        if not isinstance(value, Mapping):
            raise InvalidExpression(
                f"`{cel}` cannot be evaluated: the values are of kinds that do not go together",
                hint=f"what has the key `{name}` asked of it is not a map",
            )
        if name not in value:
            raise InvalidExpression(
                f"`{cel}` cannot be evaluated: there is no `{name}`",
                hint="check the name; `has(a.b)` asks whether it is there",
            )
        value = value[name]
    return value


def _referred_to(cel: str, visible: Mapping[str, Any]) -> dict[str, Any]:
    """Of the data only what the expression refers to: the engine is another process."""
    found: dict[str, Any] = {}
    for path in sorted(reference.path for reference in references(cel)):
        _copy(visible, found, path)
    return found


def _copy(source: Mapping[str, Any], target: dict[str, Any], path: tuple[str, ...]) -> None:
    name, *rest = path
    if name not in source or (name in target and target[name] is source[name]):
        return
    if rest and isinstance(source[name], Mapping):
        _copy(source[name], target.setdefault(name, {}), tuple(rest))
    else:
        target[name] = source[name]


def _kind(value: Any) -> str:
    return {"dict": "a map", "list": "a list", "NoneType": "null", "bytes": "bytes"}.get(
        type(value).__name__, f"a {type(value).__name__}"
    )

"""What the code says of its attributes: the texts that stand below them, and the docstrings of classes."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from typing import Any


@cache
def attributes(owner: type) -> dict[str, str]:
    """The texts below the attributes of a class, by name; those of its bases come along."""
    found: dict[str, str] = {}
    for base in reversed(owner.__mro__):
        if base.__module__.startswith("orchestrator."):
            tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
            found |= dict(_documented(tree.body[0]))
    return found


def summary(owner: Any) -> str:
    """The docstring of a class or function, without its indentation; empty where it has none of its own."""
    return inspect.cleandoc(getattr(owner, "__doc__", None) or "")


def _documented(body: ast.stmt) -> Iterator[tuple[str, str]]:
    statements = body.body if isinstance(body, ast.ClassDef) else []
    for statement, following in pairwise(statements):
        said = following.value if isinstance(following, ast.Expr) else None
        if isinstance(said, ast.Constant) and isinstance(said.value, str):
            for name in _names(statement):
                yield name, inspect.cleandoc(said.value)


def _names(statement: ast.stmt) -> Iterator[str]:
    if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
        yield statement.target.id
    if isinstance(statement, ast.Assign):
        yield from (target.id for target in statement.targets if isinstance(target, ast.Name))

"""The two clients of the API, so that a test of both is written once."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from orchestrator.client import AsyncBroker, AsyncHandover, AsyncTask

Make = Callable[..., Any]
"""Makes brokers of either kind."""


@dataclass
class Driven:
    """An asynchronous object as if it were a blocking one, so that a test of both is written once."""

    it: Any
    run: Callable[[Any], Any]

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.it, {"close": "aclose"}.get(name, name))
        if not callable(found):
            return found
        return lambda *given, **named: self._came(found(*given, **named))

    def __enter__(self) -> Any:
        return self._came(self.it.__aenter__())

    def __exit__(self, *left: Any) -> None:
        self.run(self.it.__aexit__(*left))

    def _came(self, result: Any) -> Any:
        if inspect.iscoroutine(result):
            result = self.run(result)
        kinds = (AsyncBroker, AsyncTask, AsyncHandover)
        return Driven(result, self.run) if isinstance(result, kinds) else result


def driven(make: Make, broker: Any, result: Any) -> Any:
    """What `resume` and `wait` give."""
    return broker._came(result) if isinstance(broker, Driven) else result

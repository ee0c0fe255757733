"""What DBOS may store of a run: nothing but how it has ended. Which run it is its own id says.

An input, an output or the message of an error cannot be written by mistake: there is no way to encode it.
"""

from __future__ import annotations

import json
from typing import Any

from dbos import Serializer

from orchestrator.ledger.states import RunState
from orchestrator.queue.rows import OURS

_ERROR = "!"


class UnknownError(Exception):
    """Stands for an error of which only the name of its class was kept; the ledger says the rest."""


class References(Serializer):
    """Instead of pickle."""

    def name(self) -> str:
        """What a row that it has written says of itself."""
        return OURS

    def serialize(self, data: Any) -> str:
        """As `encode`."""
        return encode(data)

    def deserialize(cls, serialized_data: str) -> Any:  # noqa: N805 -- as the class above names it
        """As `decode`."""
        return decode(serialized_data)


def encode(data: object) -> str:
    """As JSON. Raises TypeError, without showing the value, for anything that is more than a reference."""
    match data:
        case BaseException():
            return json.dumps({_ERROR: type(data).__name__})
        case RunState():
            return json.dumps(data.value)
        case {"args": (), "kwargs": kwargs} if not kwargs:
            return json.dumps([])
    raise TypeError(f"a {type(data).__name__} is no reference, and nothing else may be stored")


def decode(text: str) -> object:
    """What was encoded, for those who read DBOS's records."""
    match json.loads(text):
        case {"!": str(name)}:
            return UnknownError(name)
        case []:
            return {"args": (), "kwargs": {}}
        case state:
            return RunState(state)

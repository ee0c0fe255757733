"""What DBOS may store of a run: its id and fence, and in which state steps ended. Nothing else has a form here.

An input, an output or the message of an error cannot be written by mistake: there is no way to encode it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from orchestrator.ledger.states import StepState

_ERROR = "!"
"""No step can be called so."""


class UnknownError(Exception):
    """Stands for an error of which only the name of its class was kept; the ledger says the rest."""


def encode(data: object) -> str:
    """As JSON. Raises TypeError, without showing the value, for anything that is more than a reference."""
    match data:
        case BaseException():
            return json.dumps({_ERROR: type(data).__name__})
        case StepState():
            return json.dumps(data.value)
        case {"args": (str(run_id), int(fence)), "kwargs": kwargs} if not kwargs:
            return json.dumps([run_id, fence])
        case Mapping() if all(isinstance(state, StepState) for state in data.values()):
            return json.dumps({str(step): state.value for step, state in data.items()})
    raise TypeError(f"a {type(data).__name__} is no reference, and nothing else may be stored by an engine")


def decode(text: str) -> object:
    """What was encoded, for those who read DBOS's records."""
    match json.loads(text):
        case {"!": str(name)}:
            return UnknownError(name)
        case [run_id, fence]:
            return {"args": (run_id, fence), "kwargs": {}}
        case dict(states):
            return {step: StepState(state) for step, state in states.items()}
        case state:
            return StepState(state)

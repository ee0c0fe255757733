"""The client of the HTTP API for agents: tasks are opened, tools called, and credentials given back whatever happens.

It needs httpx, and of this package only what is pure and small. Nothing is done and nobody is asked on import.
"""

from orchestrator.client.asynchronous import AsyncBroker, AsyncExchange, AsyncHandover, AsyncTask
from orchestrator.client.auth import AsyncTaskAuth, TaskAuth
from orchestrator.client.blocking import Broker, Exchange, Handover, Task
from orchestrator.client.documents import Credential, Tool
from orchestrator.client.errors import (
    ApprovalPending,
    BrokerError,
    BudgetSpent,
    CallCancelled,
    CallFailed,
    CutOff,
    Denied,
    InvalidRequest,
    NotAllowed,
    NotFound,
    NotRenewed,
    TaskClosed,
    TooManyRequests,
    Unauthenticated,
    Unavailable,
    Unconfirmed,
)
from orchestrator.client.exchange import Patience
from orchestrator.client.possession import ProofKey, Prover

__all__ = [
    "ApprovalPending",
    "AsyncBroker",
    "AsyncExchange",
    "AsyncHandover",
    "AsyncTask",
    "AsyncTaskAuth",
    "Broker",
    "BrokerError",
    "BudgetSpent",
    "CallCancelled",
    "CallFailed",
    "Credential",
    "CutOff",
    "Denied",
    "Exchange",
    "Handover",
    "InvalidRequest",
    "NotAllowed",
    "NotFound",
    "NotRenewed",
    "Patience",
    "ProofKey",
    "Prover",
    "Task",
    "TaskAuth",
    "TaskClosed",
    "TooManyRequests",
    "Tool",
    "Unauthenticated",
    "Unavailable",
    "Unconfirmed",
]

"""A CRM: tickets by customer. A token is for one customer and for reading or writing, or it is for nothing here."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from orchestrator.devstack.services.admin import Backdoor
from orchestrator.pep.details import Operation
from orchestrator.pep.middleware import BearerAuthentication, token_of
from orchestrator.pep.protection import Protection

AUDIENCE = "crm"
"""Of the tokens that it takes."""

_TYPE = "crm_record"
"""Of their `authorization_details`."""


class Wish(BaseModel):
    """The body of `POST /customers/ID/tickets`."""

    model_config = ConfigDict(extra="forbid")

    subject: Annotated[str, Field(min_length=1, max_length=200)]
    priority: Literal["low", "normal", "high"] = "normal"


@dataclass
class Tickets:
    """The state behind the API. What is written is by the subject of the token."""

    protection: Protection
    backdoor: Backdoor
    by_customer: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    async def read(self, request: Request) -> Response:
        """`GET /customers/ID/tickets`: those of this customer, oldest first."""
        customer = self._permitted(request, "read_tickets")
        if (failure := self.backdoor.planned_failure()) is not None:
            return failure.response()
        return JSONResponse({"tickets": self.by_customer.get(customer, [])})

    async def write(self, request: Request) -> Response:
        """`POST /customers/ID/tickets`: the ticket as it was written, with its number."""
        customer = self._permitted(request, "write_ticket")
        if (failure := self.backdoor.planned_failure()) is not None:
            return failure.response()
        wish = Wish.model_validate_json(await request.body())
        by = token_of(request.scope).subject
        ticket = {"id": f"T-{next(self._numbers)}", "customer_id": customer, **wish.model_dump(), "by": by}
        self.by_customer[customer].append(ticket)
        return JSONResponse(ticket, 201)

    def _permitted(self, request: Request, action: str) -> str:
        """The customer of the path. Raises AccessRefused unless the token is for this action on this very customer."""
        customer = str(request.path_params["customer"])
        operation = Operation(_TYPE, action, identifier=customer)
        self.protection.require(token_of(request.scope), scope=f"crm:{action}", operation=operation)
        return customer


def crm_app(protection: Protection, backdoor: Backdoor) -> Starlette:
    """Needs the scope `crm:read_tickets` or `crm:write_ticket`, and details that name action and customer."""
    tickets = Tickets(protection, backdoor)
    guarded = [Middleware(BearerAuthentication, protection=protection)]

    async def health(request: Request) -> Response:
        return JSONResponse({"ok": True})

    return Starlette(
        routes=[
            Route("/health", health),
            Route("/customers/{customer}/tickets", tickets.read, methods=["GET"], middleware=guarded),
            Route("/customers/{customer}/tickets", tickets.write, methods=["POST"], middleware=guarded),
            *backdoor.routes(lambda: {"tickets": tickets.by_customer}),
        ],
        exception_handlers={ValidationError: _malformed},
    )


async def _malformed(request: Request, error: Exception) -> Response:
    assert isinstance(error, ValidationError)
    problems = [{"where": list(problem["loc"]), "what": problem["msg"]} for problem in error.errors()]
    return JSONResponse({"error": "invalid_body", "problems": problems}, 400)

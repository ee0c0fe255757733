"""Policies in an Open Policy Agent, asked by its Data API.

`POST {url}/v1/data/{path}` with `{"input": document}` (OPA documentation, REST API, "Get a Document (with Input)"). Two
parameters are set: `provenance=true`, so that the answer says of which bundles it is, and `strict-builtin-errors=true`,
so that an error in a built-in function is an error (HTTP 500, a denial) as it is in process, and does not make a rule
undefined that would have denied. An undefined document is an answer without `result`: a denial.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field

from orchestrator.jsontypes import JsonObject
from orchestrator.policy.documents import decision_from
from orchestrator.policy.engines.services.options import ServiceOptions, options_from
from orchestrator.policy.engines.services.service import PolicyService, Unanswered, bounded, request_body, short_text
from orchestrator.policy.types import Decision, PolicyRequest
from orchestrator.secret import Secret

_UNKNOWN = "unknown"
_QUERY = "provenance=true&strict-builtin-errors=true"
_BUNDLES = 20
"""How many bundles a revision names."""

_Path = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*$")]


class OpaOptions(ServiceOptions):
    """Where the rules are, beside where the service is."""

    path: _Path = "orchestrator/decision"
    """The document that answers `decide`, below `data`."""
    admit_path: _Path | None = None
    """The one that answers `admit`; None: that question is not asked."""


@dataclass(slots=True)
class OpaEngine:
    """Asks an OPA. What goes wrong on the way is a denial; a cancellation passes through."""

    service: PolicyService
    path: str
    admit_path: str | None = None
    name: str = field(default="opa", init=False)

    @classmethod
    def from_options(cls, options: Mapping[str, str]) -> OpaEngine:
        """Raises UsageError, naming the variable, for options that are not valid."""
        checked = options_from(OpaOptions, options, engine="opa")
        return cls(PolicyService(checked), checked.path, checked.admit_path)

    async def decide(self, request: PolicyRequest) -> Decision:
        """Ask the document at `path`."""
        return await self._ask(self.path, request)

    async def admit(self, request: PolicyRequest) -> Decision | None:
        """Ask the document at `admit_path`; None where none was named."""
        return await self._ask(self.admit_path, request) if self.admit_path else None

    async def aclose(self) -> None:
        """Close the client; it may be asked again."""
        await self.service.aclose()

    def remember_with(self, remember: Callable[[Secret], None]) -> None:
        """Tell this of each token before it is used."""
        self.service.remember = remember

    async def _ask(self, path: str, request: PolicyRequest) -> Decision:
        url = f"{self.service.options.url}/v1/data/{path}?{_QUERY}"
        try:
            async with self.service.deadline():
                answer = await self.service.ask("POST", url, body=request_body({"input": request.as_json()}))
        except Unanswered as error:
            return self.service.denied(error.reason, engine=self.name, revision=_UNKNOWN)
        return bounded(
            decision_from(
                answer.body.get("result"),
                engine=self.name,
                revision=_revision(answer.body.get("provenance")),
                decision_id=short_text(answer.body.get("decision_id")),
            )
        )


def _revision(provenance: object) -> str:
    """`name@revision` of each bundle (`provenance.bundles`), else that of a single one, else OPA's version."""
    if not isinstance(provenance, Mapping):
        return _UNKNOWN
    found = [f"{short_text(name)}@{revision}" for name, revision in sorted(_bundles(provenance).items())]
    if found:
        more = [f"and {len(found) - _BUNDLES} more"] if len(found) > _BUNDLES else []
        return ", ".join(found[:_BUNDLES] + more)
    if single := short_text(provenance.get("revision")):
        return single
    version = short_text(provenance.get("version"))
    return f"opa {version}" if version else _UNKNOWN


def _bundles(provenance: JsonObject) -> dict[str, str]:
    bundles = provenance.get("bundles")
    if not isinstance(bundles, Mapping):
        return {}
    each = {name: short_text(of.get("revision")) for name, of in bundles.items() if isinstance(of, Mapping)}
    return {name: revision or _UNKNOWN for name, revision in each.items()}

"""Decisions of any policy decision point that speaks the OpenID Authorization API 1.0 (AuthZEN).

How a question is mapped is in `authzen_messages`. Several grants are one request to the Access Evaluations API, where
the decision point offers one; else each is a request of its own, one after the other. All must be permitted.

What it offers is in its metadata (section 9), asked for at first, again after `METADATA_SECONDS`, and where an endpoint
is not found (404). Who publishes none (404) is asked at the default path. Its endpoints are of its own origin, since
our token goes there. An answer that names another request (`X-Request-ID`) than ours is no answer; none has to be named
in that header, which the specification only recommends.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from pydantic import ValidationError

from orchestrator.jsontypes import JsonObject, counted
from orchestrator.policy.documents import MAX_ANSWER_BYTES, decision_from
from orchestrator.policy.engines.services.authzen_messages import (
    Evaluation,
    Evaluations,
    Metadata,
    Question,
    asked,
    decision_document,
    what_is_wrong,
)
from orchestrator.policy.engines.services.options import ServiceOptions, options_from, origin_of
from orchestrator.policy.engines.services.service import PolicyService, Unanswered, bounded, request_body
from orchestrator.policy.types import Decision, PolicyRequest
from orchestrator.secret import Secret

METADATA_SECONDS = 300.0
"""How long metadata are taken as they were."""

_WELL_KNOWN = "/.well-known/authzen-configuration"
_DEFAULT_PATH = "/access/v1/evaluation"
_EXACT_BITS = 53
"""Of whole numbers: a decision point may read them as floating point (section 11.5)."""

_Model = TypeVar("_Model", Evaluation, Evaluations, Metadata)


class AuthzenOptions(ServiceOptions):
    """Whether the first of the two questions is asked, beside where the service is."""

    admit: bool = False


@dataclass(slots=True)
class AuthzenEngine:
    """Asks a policy decision point. What goes wrong on the way is a denial; a cancellation passes through.

    `clock` gives monotonic seconds, `new_id` the identifier of a question.
    """

    service: PolicyService
    admits: bool = False
    clock: Callable[[], float] = time.monotonic
    new_id: Callable[[], str] = field(default=lambda: str(uuid.uuid4()))
    name: str = field(default="authzen", init=False)
    _known: tuple[float, Metadata] | None = field(default=None, init=False, repr=False)

    @classmethod
    def from_options(cls, options: Mapping[str, str]) -> AuthzenEngine:
        """Raises UsageError, naming the variable, for options that are not valid."""
        checked = options_from(AuthzenOptions, options, engine="authzen")
        return cls(PolicyService(checked), checked.admit)

    async def decide(self, request: PolicyRequest) -> Decision:
        """Ask about the step, as it will run."""
        return await self._ask("decision", request)

    async def admit(self, request: PolicyRequest) -> Decision | None:
        """Ask with `question: admit` in the context; None where the options do not say so."""
        return await self._ask("admit", request) if self.admits else None

    async def aclose(self) -> None:
        """Close the client; it may be asked again."""
        await self.service.aclose()

    def remember_with(self, remember: Callable[[Secret], None]) -> None:
        """Tell this of each token before it is used."""
        self.service.remember = remember

    async def _ask(self, question: Question, request: PolicyRequest) -> Decision:
        identifier = self.new_id()
        revision = "unknown"
        try:
            async with self.service.deadline():
                metadata = await self._metadata()
                revision = metadata.policy_decision_point
                answer = await self._evaluated(metadata, question, request, identifier)
        except Unanswered as error:
            return self.service.denied(error.reason, engine=self.name, revision=revision, decision_id=identifier)
        document = decision_document(answer.evaluations, beside=answer.context)
        decision = decision_from(document, engine=self.name, revision=revision, decision_id=identifier)
        said = answer.model_dump(mode="json", exclude_none=True)
        return bounded(replace(decision, answer=said) if len(json.dumps(said)) <= MAX_ANSWER_BYTES else decision)

    async def _evaluated(
        self, metadata: Metadata, question: Question, request: PolicyRequest, identifier: str
    ) -> Evaluations:
        """The answers; with metadata as they are now, where an endpoint of those that were known is not found."""
        known = self._known
        try:
            return await self._evaluations(metadata, question, request, identifier)
        except Unanswered as error:
            if error.status != 404:
                raise
            self._known = None
            if known is None or known[0] == self.clock():
                raise
        return await self._evaluations(await self._metadata(), question, request, identifier)

    async def _evaluations(
        self, metadata: Metadata, question: Question, request: PolicyRequest, identifier: str
    ) -> Evaluations:
        to_ask = asked(request, question, metadata)
        if metadata.access_evaluations_endpoint is not None and len(to_ask.resources) > 1:
            body = await self._post(metadata.access_evaluations_endpoint, to_ask.batch(), identifier)
            answers = _valid(Evaluations, body)
        else:
            each = [
                _valid(Evaluation, await self._post(metadata.access_evaluation_endpoint, to_ask.single(resource), name))
                for resource, name in zip(to_ask.resources, _names(identifier, to_ask.resources), strict=True)
            ]
            answers = Evaluations(evaluations=each)
        if len(answers.evaluations) != len(to_ask.resources):
            wanted = counted(len(to_ask.resources), "evaluation")
            raise Unanswered(f"it answered {len(answers.evaluations)} of {wanted}")
        return answers

    async def _post(self, url: str, body: JsonObject, identifier: str) -> JsonObject:
        sent = request_body(body, exact_bits=_EXACT_BITS)
        answer = await self.service.ask("POST", url, body=sent, headers={"x-request-id": identifier})
        if answer.headers.get("x-request-id", identifier) != identifier:
            raise Unanswered("its answer is to another request (X-Request-ID)")
        return answer.body

    async def _metadata(self) -> Metadata:
        """What is known of it, asked for where that is too old. Raises Unanswered."""
        now = self.clock()
        if self._known is not None and now - self._known[0] < METADATA_SECONDS:
            return self._known[1]
        url = self.service.options.url
        try:
            metadata = _valid(Metadata, (await self.service.ask("GET", _well_known(url))).body)
        except Unanswered as error:
            if error.status != 404:
                raise
            metadata = Metadata(policy_decision_point=url, access_evaluation_endpoint=url + _DEFAULT_PATH)
        _check(metadata, url)
        self._known = (now, metadata)
        return metadata


def _well_known(url: str) -> str:
    """The well-known path is put between host and path (section 9.2)."""
    scheme, _, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host}{_WELL_KNOWN}{slash}{path}"


def _check(metadata: Metadata, url: str) -> None:
    """Section 9.2.3, and that our token stays at its origin. Raises Unanswered."""
    if metadata.policy_decision_point.rstrip("/") != url:
        raise Unanswered("its metadata are those of another decision point (`policy_decision_point`)")
    for endpoint in (metadata.access_evaluation_endpoint, metadata.access_evaluations_endpoint):
        try:
            same = endpoint is None or origin_of(endpoint) == origin_of(url)
        except ValueError:
            same = False
        if not same:
            raise Unanswered("its metadata name an endpoint of another origin, where our token does not go")


def _names(identifier: str, resources: Sequence[object]) -> list[str]:
    """A request of its own has an identifier of its own."""
    return [identifier] if len(resources) == 1 else [f"{identifier}.{number}" for number, _ in enumerate(resources, 1)]


def _valid(model: type[_Model], body: JsonObject) -> _Model:
    try:
        return model.model_validate(body)
    except ValidationError as error:
        raise Unanswered(f"its answer is not what it should be: {what_is_wrong(error)}") from None

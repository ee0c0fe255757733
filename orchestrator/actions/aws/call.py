"""`aws.call`: one call of AWS's API, with the session that this step was issued and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, Field
from pydantic import JsonValue as Json

from orchestrator.actions.aws.failures import failed, refused_parameters
from orchestrator.actions.aws.operations import Answered, Operation, Prepared, Session
from orchestrator.actions.aws.output import output_of
from orchestrator.actions.base import GrantRef, OutputType, Params, StepContext
from orchestrator.actions.http.transfer import Outgoing, transfer
from orchestrator.actions.references import credential_of, redacted, within_deadline
from orchestrator.environment import how_to_set
from orchestrator.errors import StepFailed
from orchestrator.grants.credential import Credential
from orchestrator.grants.fields import Name
from orchestrator.jsontypes import JsonObject, JsonValue
from orchestrator.network.aws.query import check_endpoint, check_region
from orchestrator.network.origins import is_confidential, origin
from orchestrator.secret import Secret

_MOST_EXCHANGES = 3
"""Of one call: a bucket in another region is asked for again there."""

_OTHER_NAMES = {"access_key_id": "access_key", "secret_access_key": "secret_key", "session_token": "security_token"}
"""How HashiCorp Vault's `aws` engine names the same fields."""


class CallParams(Params):
    """One operation, by AWS's own names, and its parameters, which are data."""

    output_types: ClassVar[Mapping[str, OutputType]] = {"status": "int", "request_id": "string", "result": "map"}
    output_descriptions: ClassVar[Mapping[str, str]] = {
        "status": "The HTTP status of the answer.",
        "request_id": "AWS's own id of the request, for its logs and support.",
        "result": "What the operation gives, by the names of AWS's API reference.",
    }
    fixed: ClassVar[frozenset[str]] = frozenset({"service", "operation", "region", "endpoint"})
    endpoints: ClassVar[frozenset[str]] = frozenset({"endpoint"})

    service: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{1,62}$")] = Field(
        description="The service, by the name that boto3 and the AWS CLI have for it.", examples=["s3"]
    )
    operation: Annotated[str, Field(pattern=r"^[A-Z][A-Za-z0-9]{1,126}$")] = Field(
        description="The operation, by its name in the API reference.", examples=["GetObject"]
    )
    parameters: dict[str, Json] = Field(
        default_factory=dict,
        description='Its parameters. Bytes are a text, or `{"base64": "..."}`; times are written as in RFC 3339.',
    )
    grant: Annotated[str, GrantRef("aws", "dynamic")] = Field(description="The grant with the session.")
    region: Annotated[str, AfterValidator(check_region)] = Field(description="Such as eu-central-1.")
    endpoint: Name | None = Field(
        default=None, description="A name among the endpoints of the settings, instead of AWS's own address."
    )
    max_bytes: Annotated[int, Field(gt=0)] = Field(default=5_000_000, description="The longest answer.")

    @classmethod
    def output_keys(cls, given: Mapping[str, Any]) -> frozenset[str]:
        """Those of `output_types`."""
        return frozenset(cls.output_types)


class Call:
    """Output: `{"status", "request_id", "result"}`; bytes are a text if they are UTF-8, else `{"base64": ...}`.

    Needs the extra `aws`. Neither the environment nor any file of AWS's is read. An answer in which AWS marks a part
    as sensitive is refused. Kinds: `parameters`, `permission`, `not_found`, `rate_limited`, `connection`, `timeout`,
    `output`, `error`.
    """

    summary: ClassVar[str] = "Call an operation of AWS."
    params: ClassVar[type[Params]] = CallParams

    def view(self, params: CallParams) -> JsonObject:
        """Service, operation, region, the endpoint if it is another one, and which parameters there are."""
        view: dict[str, JsonValue] = {
            "service": params.service,
            "operation": params.operation,
            "region": params.region,
            "parameters": sorted(params.parameters),
        }
        return {**view, "endpoint": params.endpoint} if params.endpoint is not None else view

    async def run(self, params: CallParams, context: StepContext) -> JsonValue:
        """Make the call once. Raises StepFailed; whether it is made again is for the step's `retry` to say."""
        operation = Operation(
            params.service,
            params.operation,
            params.region,
            params.parameters,
            _session(credential_of(context, params.grant)),
            _endpoint(params, context),
        )
        async with within_deadline(context, f"{params.service}:{params.operation}"):
            answers: list[Answered] = []
            for _ in range(_MOST_EXCHANGES):
                outcome = await asyncio.to_thread(operation.outcome, answers)
                if not isinstance(outcome, Prepared):
                    break
                answers.append(await _exchange(outcome, params, context))
            else:
                raise StepFailed(f"AWS redirects more than {_MOST_EXCHANGES - 1} times", kind="connection")
        if outcome.invalid is not None:
            raise refused_parameters(params.operation, outcome.invalid)
        if outcome.error is not None:
            raise failed(f"{params.service}:{params.operation}", outcome.error, lambda text: redacted(context, text))
        return output_of(outcome)


def _session(credential: Credential) -> Session:
    def field(name: str) -> Secret:
        found = credential.fields.get(name) or credential.fields.get(_OTHER_NAMES[name])
        if found is None:
            raise StepFailed(f"the credential of grant `{credential.grant}` has no `{name}`")
        return found

    return Session(field("access_key_id"), field("secret_access_key"), field("session_token"))


def _endpoint(params: CallParams, context: StepContext) -> str | None:
    if params.endpoint is None:
        return None
    address = context.endpoints.get(params.endpoint)
    if address is None:
        raise StepFailed(
            f"there is no endpoint `{params.endpoint}`",
            kind="parameters",
            hint=how_to_set("endpoints", params.endpoint),
        )
    try:
        return check_endpoint(address)
    except ValueError as error:
        raise StepFailed(f"the endpoint `{params.endpoint}` is wrong: {error}", kind="parameters") from None


async def _exchange(prepared: Prepared, params: CallParams, context: StepContext) -> Answered:
    """Send what botocore has signed, with a client of ours: it is bounded, and gone when the step is cancelled."""
    import httpx

    from orchestrator.network.http_client import http_client

    if not is_confidential(prepared.url):
        raise StepFailed(f"a session is not sent to {origin(prepared.url)} over plain http", kind="connection")
    request = Outgoing(prepared.method, prepared.url, prepared.headers, prepared.body)
    try:
        async with http_client(context.remaining()) as client:
            answer = await transfer(client, request, redirects=0, max_bytes=params.max_bytes, elsewhere=client)
    except httpx.TimeoutException:
        raise StepFailed(f"{origin(prepared.url)} did not answer in time", kind="timeout") from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise StepFailed(
            f"no answer from {origin(prepared.url)}: {type(error).__name__}",
            kind="connection",
            hint="is the region right, and is AWS reachable from here?",
        ) from None
    return Answered(answer.status, dict(answer.headers), answer.body, answer.url)

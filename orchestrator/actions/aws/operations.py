"""One operation of AWS's as botocore knows it: its request made and signed, its answer read. Nothing is sent here.

botocore is given no environment and no files, and hands the request over where it would send it. So what is sent goes
the same way as that of every other action.
"""

from __future__ import annotations

import base64
import binascii
import io
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from orchestrator.errors import StepFailed
from orchestrator.secret import Secret


@dataclass(frozen=True, slots=True)
class Session:
    """Temporary credentials."""

    access_key_id: Secret
    secret_access_key: Secret
    session_token: Secret


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request as it is sent, signed."""

    method: str
    url: str
    headers: Mapping[str, str] = field(repr=False)
    body: bytes | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class Answered:
    """What came back for one request."""

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)
    url: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the operation came to: its result and the shape of it, an error, or what is wrong with the parameters."""

    result: Mapping[str, Any] = field(default_factory=dict, repr=False)
    shape: Any = None
    error: Mapping[str, Any] | None = field(default=None, repr=False)
    invalid: str | None = field(default=None, repr=False)


class _NotSent(Exception):
    def __init__(self, request: Prepared) -> None:
        super().__init__()
        self.request = request


@dataclass(frozen=True, slots=True)
class Operation:
    """One call. `parameters` are JSON; `endpoint` takes the place of AWS's own address."""

    service: str
    name: str
    region: str
    parameters: Mapping[str, Any] = field(repr=False)
    session: Session
    endpoint: str | None = None

    def outcome(self, answers: Sequence[Answered]) -> Prepared | Outcome:
        """The next request, where these answers do not settle it, or what it came to. Takes a moment; for a thread.

        Raises StepFailed for a service or an operation that there is not, and without the extra `aws`.
        """
        try:
            from botocore.exceptions import BotoCoreError, ClientError, ParamValidationError
        except ImportError:
            raise StepFailed("botocore is not installed", hint="pip install 'credential-orchestrator[aws]'") from None
        client = self._client()
        model = self._model(client)
        left = iter(answers)

        def instead_of_sending(request: Any, **rest: Any) -> Any:
            answer = next(left, None)
            if answer is None:
                raise _NotSent(_prepared(request))
            return _response(answer)

        client.meta.events.register_first("before-send.*", instead_of_sending)
        try:
            result = _method(client, self.name)(**_as_shape(self.parameters, model.input_shape))
        except _NotSent as held:
            return held.request
        except ClientError as error:
            return Outcome(error=error.response)
        except ParamValidationError as error:
            return Outcome(invalid=str(error))
        except BotoCoreError as error:
            raise StepFailed(f"{self.service}:{self.name} cannot be asked for: {type(error).__name__}") from None
        return Outcome(result=result, shape=model.output_shape)

    def _client(self) -> Any:
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError

        try:
            return _closed_session().create_client(
                self.service,
                region_name=self.region,
                endpoint_url=self.endpoint,
                verify=True,
                aws_access_key_id=self.session.access_key_id.reveal(),
                aws_secret_access_key=self.session.secret_access_key.reveal(),
                aws_session_token=self.session.session_token.reveal(),
                config=Config(
                    retries={"total_max_attempts": 1, "mode": "standard"},
                    ignore_configured_endpoint_urls=True,
                    proxies={},
                    request_checksum_calculation="when_required",
                    response_checksum_validation="when_required",
                    parameter_validation=True,
                ),
            )
        except (BotoCoreError, ValueError) as error:
            raise StepFailed(
                f"there is no service `{self.service}` in AWS that can be asked ({type(error).__name__})",
                kind="parameters",
                hint="by the name that boto3 has for it, such as `s3` or `dynamodb`",
            ) from None

    def _model(self, client: Any) -> Any:
        from botocore.model import OperationNotFoundError

        try:
            return client.meta.service_model.operation_model(self.name)
        except OperationNotFoundError:
            raise StepFailed(
                f"{self.service} has no operation `{self.name}`",
                kind="parameters",
                hint="as the API reference spells it, such as `GetObject`",
            ) from None


def _method(client: Any, operation: str) -> Any:
    return getattr(client, {api: name for name, api in client.meta.method_to_api_mapping.items()}[operation])


@cache
def _loader() -> Any:
    """botocore's own descriptions of the services, and none from a folder of the user's."""
    from botocore.loaders import Loader

    return Loader(extra_search_paths=[Loader.BUILTIN_DATA_PATH], include_default_search_paths=False)


def _closed_session() -> Any:
    """A session of botocore's that reads no variable and no file."""
    from botocore.session import Session as BotoSession

    class Closed(BotoSession):  # type: ignore[misc]  # botocore has no types
        @property
        def full_config(self) -> dict[str, Any]:
            return {"profiles": {}}

        def get_scoped_config(self) -> dict[str, Any]:
            return {}

    variables = {
        name: (None, None, default, convert) for name, (_, _, default, convert) in BotoSession.SESSION_VARIABLES.items()
    }
    variables["config_file"] = variables["credentials_file"] = (None, None, os.devnull, None)
    # What it says at the level `debug` has the headers of requests in it, and with them the session.
    logging.getLogger("botocore").setLevel(logging.WARNING)
    session = Closed(session_vars=variables)
    session.register_component("data_loader", _loader())
    return session


def _prepared(request: Any) -> Prepared:
    body = request.body
    if hasattr(body, "read"):
        body = body.read()
    headers = {
        str(name): value.decode("latin-1") if isinstance(value, bytes) else str(value)
        for name, value in request.headers.items()
        if name.lower() not in ("expect", "content-length", "transfer-encoding")
    }
    return Prepared(request.method, request.url, headers, body.encode() if isinstance(body, str) else body or None)


class _Whole(io.BytesIO):
    """A body that is here already, in the ways in which botocore reads one."""

    def stream(self, *arguments: Any, **rest: Any) -> Iterator[bytes]:
        yield self.read()


def _response(answer: Answered) -> Any:
    from botocore.awsrequest import AWSResponse

    return AWSResponse(answer.url, answer.status, answer.headers, _Whole(answer.body))


def _as_shape(value: Any, shape: Any) -> Any:
    """The parameters with bytes where AWS wants bytes. What does not fit is left to botocore to refuse."""
    kind = getattr(shape, "type_name", None)
    if kind == "structure" and isinstance(value, Mapping):
        return {name: _as_shape(each, shape.members.get(name)) for name, each in value.items()}
    if kind == "list" and isinstance(value, list):
        return [_as_shape(each, shape.member) for each in value]
    if kind == "map" and isinstance(value, Mapping):
        return {name: _as_shape(each, shape.value) for name, each in value.items()}
    if kind == "blob" and isinstance(value, str):
        return value.encode()
    if kind == "blob" and isinstance(value, Mapping) and list(value) == ["base64"]:
        try:
            return base64.b64decode(str(value["base64"]), validate=True)
        except binascii.Error:
            raise StepFailed("a parameter is not base64", kind="parameters") from None
    return value

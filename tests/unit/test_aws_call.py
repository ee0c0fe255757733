"""`aws.call`: what is asked of botocore, what becomes of its answers, and what AWS's errors mean."""

from __future__ import annotations

import asyncio
import base64
import builtins
import json
import time
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from sick_services import Sick, saying, sick_service, silent

from orchestrator.actions.aws.call import Call, CallParams
from orchestrator.actions.aws.failures import failed, refused_parameters
from orchestrator.actions.aws.operations import Operation, Prepared, Session
from orchestrator.actions.base import StepContext
from orchestrator.errors import OutputRefused, StepFailed
from orchestrator.grants.credential import Credential
from orchestrator.secret import Secret

FIELDS = {
    "access_key_id": Secret("ASIAQQQQQQQQQQQQQQQQ"),
    "secret_access_key": Secret("Z" * 40),
    "session_token": Secret("T" * 40),
}


def call(
    url: str = "http://127.0.0.1:9/", *, fields: Any = FIELDS, seconds: float = 5, endpoint: str = "here", **params: Any
) -> Any:
    wanted = {"service": "s3", "operation": "GetObject", "region": "eu-central-1", "grant": "aws", **params}
    context = StepContext(
        run_id="r",
        workflow="w",
        step="s",
        attempt=1,
        agent="a",
        idempotency_key="k",
        deadline=time.monotonic() + seconds,
        credentials={"aws": Credential("aws", "aws", 900, fields=fields)},
        endpoints={"here": url},
    )
    return asyncio.run(Call().run(CallParams.model_validate({**wanted, "endpoint": endpoint}), context))


def answered(body: bytes | str, status: str = "200 OK", **params: Any) -> tuple[Any, Sick]:
    with sick_service(Sick(saying(body, status, **params.pop("headers", {})))) as sick:
        return call(sick.url, **params), sick


OBJECT = {"parameters": {"Bucket": "reports", "Key": "42/may.csv"}}
JSON = {"headers": {"content_type": "application/x-amz-json-1.1"}}


def test_an_object_is_a_text_and_what_is_no_text_is_base64() -> None:
    output, sick = answered("Grüße", **OBJECT)
    assert (output["status"], output["result"]["Body"]) == (200, "Grüße")
    assert sick.asked[0].target == "/reports/42/may.csv"
    assert sick.asked[0].headers["x-amz-security-token"] == "T" * 40
    assert "Credential=ASIAQQQQQQQQQQQQQQQQ/" in sick.asked[0].headers["authorization"]
    output, _ = answered(b"\xff\x00", **OBJECT)
    assert output["result"]["Body"] == {"base64": base64.b64encode(b"\xff\x00").decode()}


def test_parameters_are_data_and_bytes_where_aws_wants_bytes() -> None:
    put: dict[str, Any] = {"operation": "PutObject"}
    _, sick = answered("", **put, parameters={"Bucket": "b", "Key": "k", "Body": "Grüße"})
    assert sick.asked[0].body == "Grüße".encode()
    _, sick = answered("", **put, parameters={"Bucket": "b", "Key": "k", "Body": {"base64": "/wA="}})
    assert sick.asked[0].body == b"\xff\x00"
    with pytest.raises(StepFailed, match="base64"):
        call(**put, parameters={"Bucket": "b", "Key": "k", "Body": {"base64": "?"}})


def test_numbers_and_times_of_an_answer_are_json() -> None:
    body = json.dumps({"Table": {"TableName": "t", "ItemCount": 3, "CreationDateTime": 1.5e9}})
    output, _ = answered(body, service="dynamodb", operation="DescribeTable", parameters={"TableName": "t"}, **JSON)
    assert output["result"]["Table"]["ItemCount"] == 3
    assert output["result"]["Table"]["CreationDateTime"].startswith("2017-07-14T02:40:00")
    assert json.dumps(output)


SECRETS = {
    "a secret": ("secretsmanager", "GetSecretValue", {"SecretId": "x"}, {"Name": "x", "SecretString": "hush-hush"}),
    "a decrypted parameter": (
        "ssm",
        "GetParameter",
        {"Name": "x"},
        {"Parameter": {"Name": "x", "Value": "hush-hush"}},
    ),
    "a data key": ("kms", "GenerateDataKey", {"KeyId": "x"}, {"KeyId": "x", "Plaintext": "aHVzaC1odXNo"}),
}


@pytest.mark.parametrize(("service", "operation", "parameters", "answer"), SECRETS.values(), ids=list(SECRETS))
def test_what_aws_calls_sensitive_is_no_output(service: str, operation: str, parameters: Any, answer: Any) -> None:
    with pytest.raises(OutputRefused, match="sensitive") as caught:
        answered(json.dumps(answer), service=service, operation=operation, parameters=parameters, **JSON)
    assert "hush" not in str(caught.value)


def xml(code: str, message: str = "no") -> str:
    return f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"


KINDS = [
    ("AccessDenied", "403 Forbidden", "permission"),
    ("ExpiredToken", "400 Bad Request", "permission"),
    ("SignatureDoesNotMatch", "403 Forbidden", "permission"),
    ("NoSuchKey", "404 Not Found", "not_found"),
    ("SlowDown", "503 Slow Down", "rate_limited"),
    ("InternalError", "500 Internal Server Error", "connection"),
    ("InvalidArgument", "400 Bad Request", "error"),
]


@pytest.mark.parametrize(("code", "status", "kind"), KINDS)
def test_an_error_of_aws_has_a_kind_that_retries_can_name(code: str, status: str, kind: str) -> None:
    with sick_service(Sick(saying(xml(code), status))) as sick, pytest.raises(StepFailed) as caught:
        call(sick.url, **OBJECT)
    assert caught.value.kind == kind
    assert code in caught.value.message
    assert len(sick.asked) == 1, "whether it is tried again is for the step to say"


def test_a_session_that_an_error_repeats_is_not_told() -> None:
    with pytest.raises(StepFailed) as caught:
        answered(xml("InvalidToken", f"not {'T' * 40}, not {'Z' * 40}"), "400 Bad Request", **OBJECT)
    assert "TTTT" not in str(caught.value)
    assert "ZZZZ" not in str(caught.value)


def test_foreign_words_are_cut_and_odd_codes_replaced() -> None:
    error = {"Error": {"Code": "a b\n", "Message": "x" * 9000}, "ResponseMetadata": {"HTTPStatusCode": 418}}
    told = failed("s3:X", error, lambda text: text)
    assert told.message.startswith("s3:X: AWS answered 418 UnknownError: xxx")
    assert len(told.message) < 600
    assert refused_parameters("X", 'Missing required parameter in input: "Bucket"').message.endswith("look at `Bucket`")


WRONG: dict[str, dict[str, Any]] = {
    "no such service": {"service": "s33"},
    "no such operation": {"operation": "GetObjects"},
    "no such parameter": {"parameters": {"Bucket": "b", "Key": "k", "Kye": "hush-hush"}},
    "a parameter is missing": {"parameters": {"Bucket": "b"}},
    "another type": {"parameters": {"Bucket": "b", "Key": {"hush-hush": 1}}},
    "no such endpoint": {"endpoint": "nowhere"},
}


@pytest.mark.parametrize("changes", WRONG.values(), ids=list(WRONG))
def test_what_cannot_be_asked_is_told_before_anything_is_sent(changes: dict[str, Any]) -> None:
    with pytest.raises(StepFailed) as caught:
        call(**{**OBJECT, **changes})
    assert caught.value.kind == "parameters"
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"service": "../s3"},
        {"operation": "get_object"},
        {"region": "evil.example/#"},
        {"endpoint": "http://x"},
        {"x": 1},
    ],
)
def test_what_is_no_name_is_refused_by_the_language(changes: dict[str, Any]) -> None:
    base = {"service": "s3", "operation": "GetObject", "region": "eu-central-1", "grant": "aws"}
    with pytest.raises(ValidationError):
        CallParams.model_validate({**base, **changes})


def test_a_session_is_sent_over_tls_or_stays_on_this_machine() -> None:
    with pytest.raises(StepFailed, match="https"):
        call("http://aws.example/", **OBJECT)


def test_an_answer_is_bounded_and_a_silent_service_is_left() -> None:
    with pytest.raises(StepFailed, match="more than 10 bytes"):
        answered("x" * 100, **OBJECT, max_bytes=10)
    with sick_service(Sick(silent)) as sick, pytest.raises(StepFailed) as caught:
        call(sick.url, **OBJECT, seconds=0.3)
    assert caught.value.kind == "timeout"


def test_a_redirect_is_not_followed_with_the_session() -> None:
    with pytest.raises(StepFailed):
        answered(b"", "307 Temporary Redirect", **OBJECT, headers={"location": "http://127.0.0.1:9/"})


def test_credentials_of_vaults_own_engine_are_taken_by_their_names() -> None:
    theirs = {"access_key": FIELDS["access_key_id"], "secret_key": Secret("S" * 40), "security_token": Secret("U" * 40)}
    _, sick = answered("x", **OBJECT, fields=theirs)
    assert sick.asked[0].headers["x-amz-security-token"] == "U" * 40
    with pytest.raises(StepFailed, match="no `session_token`"):
        call(**OBJECT, fields={"access_key_id": Secret("x"), "secret_access_key": Secret("y")})


def test_aws_is_asked_where_it_is_whatever_the_environment_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = tmp_path / "config"
    config.write_text("[default]\nendpoint_url = http://127.0.0.1:9/\n")
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.setenv(name, "http://127.0.0.1:9/")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    session = Session(FIELDS["access_key_id"], FIELDS["secret_access_key"], FIELDS["session_token"])
    prepared = Operation("s3", "GetObject", "eu-central-1", OBJECT["parameters"], session).outcome([])
    assert isinstance(prepared, Prepared)
    assert prepared.url == "https://reports.s3.eu-central-1.amazonaws.com/42/may.csv"


def test_the_view_has_names_and_no_values() -> None:
    params = CallParams.model_validate(
        {"service": "s3", "operation": "GetObject", "region": "eu-central-1", "grant": "aws", **OBJECT}
    )
    assert Call().view(params) == {
        "service": "s3",
        "operation": "GetObject",
        "region": "eu-central-1",
        "parameters": ["Bucket", "Key"],
    }


def test_without_the_extra_it_is_said_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("botocore"):
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(StepFailed, match="not installed") as caught:
        call(**OBJECT)
    assert "credential-orchestrator[aws]" in str(caught.value)

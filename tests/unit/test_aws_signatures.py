"""Signatures against AWS's published examples, and against botocore's for whatever else."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.network.aws.sigv4 import SigningKey, Unsigned, day_key, day_of, signed

SECRET = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
AT = datetime(2015, 8, 30, 12, 36, tzinfo=UTC)
KEY = SigningKey("AKIDEXAMPLE", "20150830", day_key(SECRET, "20150830"))
FORM = "application/x-www-form-urlencoded"

PUBLISHED = {  # the AWS Signature Version 4 test suite, and the example of the IAM User Guide
    "get-vanilla": (
        Unsigned("GET", "example.amazonaws.com", {}, b""),
        "service",
        "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31",
    ),
    "post-vanilla": (
        Unsigned("POST", "example.amazonaws.com", {}, b""),
        "service",
        "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b",
    ),
    "post-x-www-form-urlencoded": (
        Unsigned("POST", "example.amazonaws.com", {"Content-Type": FORM}, b"Param1=value1"),
        "service",
        "ff11897932ad3f4e8b18135d722051e5ac45fc38421b1da7b9d196a0fe09473a",
    ),
    "ListUsers": (
        Unsigned(
            "GET",
            "iam.amazonaws.com",
            {"Content-Type": f"{FORM}; charset=utf-8"},
            b"",
            query="Action=ListUsers&Version=2010-05-08",
        ),
        "iam",
        "5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7",
    ),
}


@pytest.mark.parametrize(("request_", "service", "signature"), PUBLISHED.values(), ids=list(PUBLISHED))
def test_the_published_examples_have_the_published_signatures(request_: Unsigned, service: str, signature: str) -> None:
    headers = signed(request_, KEY, region="us-east-1", service=service, at=AT)
    assert headers["Authorization"].endswith(f"Signature={signature}")


@given(
    secret=st.text("abcXYZ019/+=", min_size=16, max_size=64),
    body=st.binary(max_size=200),
    token=st.none() | st.text("abc/+=", min_size=1, max_size=50),
    content_type=st.text("az/;=  -", min_size=1, max_size=20).filter(lambda text: text.strip() == text != ""),
    seconds=st.integers(0, 10**9),
)
def test_botocore_signs_the_same(secret: str, body: bytes, token: str | None, content_type: str, seconds: int) -> None:
    at = datetime(2001, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)
    key = SigningKey("AKIAEXAMPLE", day_of(at), day_key(secret, day_of(at)), token)
    host = "sts.eu-central-1.amazonaws.com"
    ours = signed(
        Unsigned("POST", host, {"Content-Type": content_type}, body), key, region="eu-central-1", service="sts", at=at
    )
    request = AWSRequest("POST", f"https://{host}/", headers={"Content-Type": content_type, "Host": host}, data=body)
    theirs = SigV4Auth(Credentials("AKIAEXAMPLE", secret, token), "sts", "eu-central-1")
    request.context["timestamp"] = at.strftime("%Y%m%dT%H%M%SZ")
    theirs._modify_request_before_signing(request)
    text = theirs.string_to_sign(request, theirs.canonical_request(request))
    assert ours["Authorization"].endswith(f"Signature={theirs.signature(text, request)}")


def test_a_key_of_another_day_signs_nothing() -> None:
    with pytest.raises(ValueError, match="another day"):
        signed(PUBLISHED["get-vanilla"][0], KEY, region="r", service="s", at=AT + timedelta(days=1))


def test_neither_the_key_nor_the_session_is_shown() -> None:
    key = SigningKey("AKIDEXAMPLE", "20150830", b"the key of the day", "the session")
    assert "the " not in repr(key)

"""What STS and IAM answer, read so that nothing in it is taken for more than a text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import UsageError
from orchestrator.issuers.aws import AwsAccount
from orchestrator.network.aws.answers import LARGEST_ANSWER, Refusal, UnreadableAnswer, refusal_of, texts_of
from orchestrator.network.aws.query import check_endpoint, check_region, endpoint_of, iam_region


def test_the_texts_of_an_answer_have_their_places() -> None:
    body = b'<?xml version="1.0"?>\n<R xmlns="https://x/"><A>\n <B>one</B><C x="y">t&amp;wo</C><D/></A></R>'
    assert texts_of(body) == {"R/A/B": "one", "R/A/C": "t&wo"}


UNREADABLE = {
    "nothing": b"",
    "no XML": b"{}",
    "cut off": b"<R><A>one</A>",
    "two documents": b"<R/><R/>",
    "a document type": b"<!DOCTYPE R><R/>",
    "an entity": b'<!DOCTYPE R [<!ENTITY a "b">]><R>&a;</R>',
    "an external entity": b'<!DOCTYPE R [<!ENTITY a SYSTEM "file:///etc/passwd">]><R>&a;</R>',
    "a parameter entity": b'<!DOCTYPE R [<!ENTITY % a "b">%a;]><R/>',
    "an unknown entity": b"<R>&nbsp;</R>",
    "an unknown encoding": b'<?xml version="1.0" encoding="x-strange"?><R/>',
    "a text twice": b"<R><A>one</A><A>two</A></R>",
    "too deep": b"<a>" * 30 + b"</a>" * 30,
    "too many": b"<R>" + b"<a/>" * 3000 + b"</R>",
    "too large": b"<R>" + b" " * LARGEST_ANSWER + b"</R>",
}


@pytest.mark.parametrize("body", UNREADABLE.values(), ids=list(UNREADABLE))
def test_what_is_no_plain_document_is_refused(body: bytes) -> None:
    with pytest.raises(UnreadableAnswer):
        texts_of(body)


@given(st.binary(max_size=300))
def test_whatever_comes_is_texts_or_refused(body: bytes) -> None:
    try:
        assert all(isinstance(text, str) for text in texts_of(body).values())
    except UnreadableAnswer:
        pass


def test_an_error_says_its_code_and_its_message() -> None:
    said = b"<Type>Sender</Type><Code>AccessDenied</Code><Message>no\n way</Message>"
    body = b"<ErrorResponse><Error>" + said + b"</Error></ErrorResponse>"
    assert refusal_of(body) == Refusal("AccessDenied", "no way")
    assert refusal_of(body.replace(b"AccessDenied", b"Access Denied!")) is None
    assert refusal_of(b"<html>") is None


def test_the_addresses_of_partitions() -> None:
    assert endpoint_of("sts", "eu-central-1") == "https://sts.eu-central-1.amazonaws.com/"
    assert endpoint_of("sts", "cn-north-1") == "https://sts.cn-north-1.amazonaws.com.cn/"
    assert endpoint_of("iam", "eu-central-1") == "https://iam.amazonaws.com/"
    assert endpoint_of("iam", "us-gov-east-1") == "https://iam.us-gov.amazonaws.com/"
    assert [iam_region(each) for each in ("eu-west-1", "us-gov-east-1", "cn-northwest-1")] == [
        "us-east-1",
        "us-gov-west-1",
        "cn-north-1",
    ]


@pytest.mark.parametrize("address", ["http://sts.example", "ftp://x", "https://x/path", "https://u:p@x", "https://x?y"])
def test_a_session_is_asked_for_over_tls_only(address: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        check_endpoint(address)


@pytest.mark.parametrize("region", ["", "eu", "eu-central-1.evil.example/", "EU-CENTRAL-1"])
def test_a_region_is_no_part_of_another_address(region: str) -> None:
    with pytest.raises(ValueError, match="region"):
        check_region(region)


ACCOUNT = {
    "kind": "aws",
    "region": "eu-central-1",
    "access_key": {"id": "AKIAQQQQQQQQQQQQQQQQ", "key": "aws-prod"},
    "roles": {"reporter": "arn:aws:iam::123456789012:role/team/reporter"},
}


def test_an_account_is_declared_in_few_words() -> None:
    account = AwsAccount.model_validate(ACCOUNT)
    assert account.sts == "https://sts.eu-central-1.amazonaws.com/"
    assert account.vault_path == "transit/hmac/aws-prod/sha2-256"
    role = account.role("reporter")
    assert role is account.role("arn:aws:iam::123456789012:role/team/reporter")
    assert role is not None
    assert (role.name, role.max_session) == ("reporter", 3600)
    assert account.role("admin") is None


WRONG: dict[str, dict[str, object]] = {
    "nobody asks": {"access_key": None},
    "two ask": {"identity_role": "aws"},
    "an external id of a web identity": {"access_key": None, "identity_role": "aws", "external_id": "ours"},
    "the denier is who asks": {"denier": {"id": "AKIAZZZZZZZZZZZZZZZZ", "key": "aws-prod"}},
    "no role": {"roles": {}},
    "no ARN of a role": {"roles": {"reporter": "arn:aws:iam::123456789012:user/reporter"}},
    "a session that there is not": {"roles": {"r": {"arn": ACCOUNT["roles"]["reporter"], "max_session": "5m"}}},  # type: ignore[index]
    "plain http": {"endpoint": "http://sts.example/"},
    "a secret": {"secret_access_key": "x"},
}


@pytest.mark.parametrize("changes", WRONG.values(), ids=list(WRONG))
def test_an_account_that_cannot_be_meant_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises((ValueError, UsageError)):
        AwsAccount.model_validate({**ACCOUNT, **changes})

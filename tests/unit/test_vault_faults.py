"""What Vault's answers mean for a credential that may or may not have been issued."""

import pytest

from orchestrator.vault.faults import (
    Outcome,
    VaultRefused,
    VaultUnavailable,
    error_text,
    outcome_of,
    retry_after_seconds,
)
from orchestrator.vault.retry import is_retryable


@pytest.mark.parametrize(
    ("status", "errors", "outcome"),
    [
        (400, "unknown role: x", Outcome.REFUSED),
        (403, "permission denied", Outcome.REFUSED),
        (404, "", Outcome.REFUSED),
        (429, 'request path "database/creds/x": rate limit quota exceeded', Outcome.NOT_DONE),
        (473, "", Outcome.NOT_DONE),
        (503, "Vault is sealed", Outcome.NOT_DONE),
        (503, "", Outcome.UNKNOWN),
        (500, "failed to connect to `host=/x`: dial error: connect: connection refused", Outcome.NOT_DONE),
        (500, "failed to persist lease entry: context canceled", Outcome.UNKNOWN),
        (500, "internal error", Outcome.UNKNOWN),
        (502, "", Outcome.UNKNOWN),
    ],
)
def test_an_answer_says_whether_the_request_may_have_been_done(status: int, errors: str, outcome: Outcome) -> None:
    assert outcome_of(status, errors) is outcome


def test_what_may_have_been_issued_is_not_simply_asked_for_again() -> None:
    unknown = VaultUnavailable("cut", outcome=Outcome.UNKNOWN, path="database/creds/x")
    not_done = VaultUnavailable("sealed", outcome=Outcome.NOT_DONE, path="database/creds/x", status=503)
    assert not is_retryable(unknown, repeatable=False)
    assert is_retryable(unknown, repeatable=True)
    assert is_retryable(not_done, repeatable=False)
    assert not is_retryable(VaultRefused("no", status=403, path="x"), repeatable=True)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("7", 7.0), (None, None), ("soon", None), ("Thu, 01 Jan 1970 00:00:20 GMT", 10.0), ("-3", 0.0)],
)
def test_retry_after_is_read_in_both_of_its_forms(header: str | None, seconds: float | None) -> None:
    headers = {"Date": "Thu, 01 Jan 1970 00:00:10 GMT", **({"Retry-After": header} if header else {})}
    assert retry_after_seconds(headers) == seconds


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("61", 60.0),
        ("1795000000", 60.0),
        ("1795000000000", 60.0),
        ("9" * 400, 60.0),
        ("1e999", 60.0),
        ("inf", 60.0),
        ("-inf", 0.0),
        ("nan", None),
        ("-1", 0.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 60.0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
        ("Thu, 01 Jan 99999 00:00:00 GMT", None),
        ("Thu, 01 Jan 1970 00:00:20 +9999999999", None),
        ("Thu, 01 Jan 1970 00:00:20", None),
    ],
)
def test_no_server_makes_us_wait_for_longer_than_a_minute(header: str, seconds: float | None) -> None:
    assert retry_after_seconds({"Date": "Thu, 01 Jan 1970 00:00:10 GMT", "Retry-After": header}) == seconds


def test_a_reason_without_end_is_cut() -> None:
    assert len(error_text(["x" * 10_000_000])) < 3000


def test_a_date_to_retry_after_means_nothing_without_the_servers_own_time() -> None:
    assert retry_after_seconds({"Retry-After": "Thu, 01 Jan 1970 00:00:20 GMT"}) is None


def test_vaults_error_list_becomes_one_line() -> None:
    assert error_text(["1 error occurred:\n\t* permission denied\n\n"]) == "permission denied"

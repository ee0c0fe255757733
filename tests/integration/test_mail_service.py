"""The mail service: the mailbox that a token is of, what its scope permits, and Google's words for everything else."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import httpx
import pytest
from authorization import proof
from joserfc.jwk import ECKey

from orchestrator.devstack.authorization.configuration import (
    AuthMethod,
    Client,
    Configuration,
    GrantType,
    Resource,
    TokenFormat,
)
from orchestrator.devstack.authorization.misbehaviours import Endpoint, Kind, Misbehaviour
from orchestrator.devstack.authorization.server import AuthorizationServer
from orchestrator.devstack.sample_services import Introspecting, MailService
from orchestrator.devstack.services.mail.samples import INJECTION, PERSONS, SAMPLES, SUPPORT
from orchestrator.devstack.services.mail.scopes import AUDIENCE, FULL, LABELS, METADATA, MODIFY, READONLY, SCOPES, SEND
from orchestrator.secret import Secret

OPAQUE = "https://gmail.googleapis.com/opaque"
SECRET = Secret("not-so-secret-" + "x" * 20)
CLIENT = ("agent", SECRET.reveal())
CONFIGURATION = Configuration(
    clients=(
        Client("agent", AuthMethod.SECRET_BASIC, (GrantType.REFRESH_TOKEN, GrantType.CLIENT_CREDENTIALS), SECRET),
        Client("mail", AuthMethod.SECRET_BASIC, secret=SECRET, introspects=(AUDIENCE,)),
    ),
    resources=(
        Resource(AUDIENCE, SCOPES),
        Resource(OPAQUE, SCOPES, TokenFormat.OPAQUE, audience=AUDIENCE),
        Resource("https://other.example/", SCOPES),
        Resource("https://other.example/opaque", SCOPES, TokenFormat.OPAQUE),
    ),
    accounts=(SUPPORT, *PERSONS),
)


@pytest.fixture(scope="module")
def authorization(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AuthorizationServer]:
    with AuthorizationServer(tmp_path_factory.mktemp("authorization"), CONFIGURATION) as server:
        yield server


def started(directory: Path, authorization: AuthorizationServer) -> MailService:
    asks = Introspecting(authorization.introspection_endpoint, "mail", SECRET)
    return MailService(directory, authorization.issuer, Secret("admin"), asks)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, authorization: AuthorizationServer) -> Iterator[MailService]:
    with started(tmp_path_factory.mktemp("mail"), authorization) as running:
        yield running


@pytest.fixture
def mail(shared: MailService, authorization: AuthorizationServer) -> Iterator[httpx.Client]:
    """A service whose mailboxes are left as they are."""
    with httpx.Client(base_url=f"{shared.url}/gmail/v1/users/", trust_env=False) as client:
        yield client
    authorization.behave()


@pytest.fixture
def own(tmp_path: Path, authorization: AuthorizationServer) -> Iterator[MailService]:
    """A service of the test's own."""
    with started(tmp_path / "mail", authorization) as running:
        yield running


@pytest.fixture
def own_mail(own: MailService) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"{own.url}/gmail/v1/users/", trust_env=False) as client:
        yield client


class Bearer(httpx.Auth):
    def __init__(self, token: str) -> None:
        self.token = token

    def auth_flow(self, request: httpx.Request) -> Iterator[httpx.Request]:  # type: ignore[override]
        request.headers["Authorization"] = f"Bearer {self.token}"
        yield request


def bearer(
    server: AuthorizationServer, *scopes: str, resource: str = AUDIENCE, headers: dict[str, str] | None = None
) -> Bearer:
    scope = " ".join(scopes or (READONLY,))
    first = server.refresh_token("agent", SUPPORT, scope, resource=resource).reveal()
    form = {"grant_type": "refresh_token", "refresh_token": first}
    answer = httpx.post(server.token_endpoint, auth=CLIENT, data=form, headers=headers, trust_env=False).json()
    return Bearer(answer["access_token"])


def refused(answer: httpx.Response) -> tuple[int, str, str]:
    error = answer.json()["error"]
    assert error["code"] == answer.status_code
    return answer.status_code, error["status"], error["errors"][0]["reason"]


def state(service: MailService) -> dict[str, Any]:
    answer = httpx.get(f"{service.url}/_admin/state", headers={"X-Admin-Token": "admin"}, trust_env=False)
    document: dict[str, Any] = answer.json()
    return document


def letter(to: str = "marta.kowalska@mail.example", **headers: str) -> dict[str, str]:
    message = EmailMessage()
    message["To"] = to
    message["Subject"] = headers.pop("Subject", "Your refund")
    for name, value in headers.items():
        message[name] = value
    message.set_content("It is on its way.")
    return {"raw": base64.urlsafe_b64encode(message.as_bytes()).decode()}


@pytest.mark.parametrize("resource", [AUDIENCE, OPAQUE])
def test_the_mails_of_the_mailbox_are_listed_newest_first_without_spam(
    authorization: AuthorizationServer, mail: httpx.Client, resource: str
) -> None:
    token = bearer(authorization, resource=resource)
    answer = mail.get("me/messages", auth=token).json()
    team = sorted((s for s in SAMPLES if s.to == SUPPORT and "SPAM" not in s.labels), key=lambda s: s.id, reverse=True)
    assert [each["id"] for each in answer["messages"]] == [sample.id for sample in team]
    assert all(set(each) == {"id", "threadId"} for each in answer["messages"])
    assert answer["resultSizeEstimate"] == len(team) == 12
    with_spam = mail.get(f"{SUPPORT}/messages", auth=token, params={"includeSpamTrash": "true"}).json()
    assert with_spam["resultSizeEstimate"] == 13


def test_a_long_list_comes_in_pages(authorization: AuthorizationServer, mail: httpx.Client) -> None:
    token = bearer(authorization)
    found, asked = [], {}
    while True:
        answer = mail.get("me/messages", auth=token, params={"maxResults": 5, **asked}).json()
        found.append([each["id"] for each in answer["messages"]])
        if "nextPageToken" not in answer:
            break
        asked = {"pageToken": answer["nextPageToken"]}
    assert [len(each) for each in found] == [5, 5, 2]
    assert len({each for page in found for each in page}) == 12


@pytest.mark.parametrize(
    ("query", "ids"),
    [
        ("from:jonas", "72"),
        ("subject:refund", "1"),
        ('"charged twice"', "6"),
        ("is:unread order -from:jonas", "cba961"),
        ("in:spam", "5"),
        ("label:starred", "d"),
        ("after:2026/11/25 before:2026-11-26", "cba"),
        ("rfc822msgid:<19ac000000000003@mail.example>", "3"),
        ("to:support@shop.example subject:invoice", "b"),
        ("is:read", "d8"),
        ("salary", "a"),
        ("nothing-of-that", ""),
    ],
)
def test_mails_are_found_by_what_gmail_searches_for(
    authorization: AuthorizationServer, mail: httpx.Client, query: str, ids: str
) -> None:
    answer = mail.get("me/messages", auth=bearer(authorization), params={"q": query}).json()
    assert "".join(each["id"][-1] for each in answer.get("messages", [])) == ids
    assert answer["resultSizeEstimate"] == len(ids)


def test_mails_are_found_by_all_the_labels_that_are_named(
    authorization: AuthorizationServer, mail: httpx.Client
) -> None:
    token = bearer(authorization)
    answer = mail.get("me/messages", auth=token, params={"labelIds": ["INBOX", "IMPORTANT"]}).json()
    assert [each["id"] for each in answer["messages"]] == ["19ac000000000009"]
    wrong = mail.get("me/messages", auth=token, params={"labelIds": "Label_77"})
    assert refused(wrong) == (400, "INVALID_ARGUMENT", "invalidArgument")


def test_a_mail_is_shown_in_each_format(authorization: AuthorizationServer, mail: httpx.Client) -> None:
    token = bearer(authorization)
    full = mail.get("me/messages/19ac000000000007", auth=token).json()
    assert full["threadId"] == "19ac000000000002"
    assert full["labelIds"] == ["INBOX", "UNREAD"]
    assert full["payload"]["mimeType"] == "text/plain"
    assert {"name": "Subject", "value": "Re: Where is my parcel?"} in full["payload"]["headers"]
    assert base64.urlsafe_b64decode(full["payload"]["body"]["data"]).decode().startswith("It is Sunday now")
    minimal = mail.get("me/messages/19ac000000000007", auth=token, params={"format": "minimal"}).json()
    assert minimal == {name: value for name, value in full.items() if name != "payload"}
    few = {"format": "metadata", "metadataHeaders": ["subject", "From"]}
    metadata = mail.get("me/messages/19ac000000000007", auth=token, params=few).json()
    assert {each["name"] for each in metadata["payload"]["headers"]} == {"From", "Subject"}
    assert "body" not in metadata["payload"]
    raw = mail.get("me/messages/19ac000000000007", auth=token, params={"format": "raw"}).json()
    assert b"Re: Where is my parcel?" in base64.urlsafe_b64decode(raw["raw"])


def test_a_mail_of_several_parts_is_shown_with_them(authorization: AuthorizationServer, mail: httpx.Client) -> None:
    shown = mail.get("me/messages/19ac000000000004", auth=bearer(authorization)).json()["payload"]
    assert shown["mimeType"] == "multipart/alternative"
    assert [(part["partId"], part["mimeType"]) for part in shown["parts"]] == [("0", "text/plain"), ("1", "text/html")]
    assert "Grüßen" in base64.urlsafe_b64decode(shown["parts"][0]["body"]["data"]).decode()


def test_a_mail_is_sent_as_the_mailbox_and_arrives_where_it_is_one(
    own: MailService, authorization: AuthorizationServer, own_mail: httpx.Client
) -> None:
    token = bearer(authorization, SEND)
    wish = letter(f"{PERSONS[0]}, marta.kowalska@mail.example", From="boss@shop.example")
    sent = own_mail.post("me/messages/send", auth=token, json=wish).json()
    assert sent["labelIds"] == ["SENT"]
    now = state(own)
    assert now["sent"] == [
        {
            "id": sent["id"],
            "from": SUPPORT,
            "to": [PERSONS[0], "marta.kowalska@mail.example"],
            "subject": "Your refund",
            "client_id": "agent",
        }
    ]
    assert len(now["mailboxes"][PERSONS[0]]) == 3
    shown = own_mail.get(f"me/messages/{sent['id']}", auth=bearer(authorization)).json()
    assert {"name": "From", "value": SUPPORT} in shown["payload"]["headers"]


def test_an_answer_stays_in_its_thread(authorization: AuthorizationServer, own_mail: httpx.Client) -> None:
    token = bearer(authorization, SEND)
    wish = {**letter(), "threadId": "19ac000000000001"}
    assert own_mail.post("me/messages/send", auth=token, json=wish).json()["threadId"] == "19ac000000000001"
    wrong = own_mail.post("me/messages/send", auth=token, json={**wish, "threadId": "19ac000000000101"})
    assert refused(wrong) == (404, "NOT_FOUND", "notFound")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"raw": "%%%"}, "invalidArgument"),
        ({}, "invalidArgument"),
        ({"raw": base64.urlsafe_b64encode(b"Subject: to nobody\n\nx").decode()}, "invalidArgument"),
        ({"raw": 7}, "parseError"),
    ],
)
def test_what_is_no_mail_is_not_sent(
    shared: MailService, authorization: AuthorizationServer, mail: httpx.Client, body: Any, reason: str
) -> None:
    before = state(shared)["sent"]
    answer = mail.post("me/messages/send", auth=bearer(authorization, SEND), json=body)
    assert refused(answer) == (400, "INVALID_ARGUMENT", reason)
    assert state(shared)["sent"] == before


def test_labels_are_put_on_and_taken_off(
    own: MailService, authorization: AuthorizationServer, own_mail: httpx.Client
) -> None:
    token = bearer(authorization, MODIFY)
    wish = {"addLabelIds": ["Label_1"], "removeLabelIds": ["UNREAD"]}
    before = own_mail.get("me/messages/19ac000000000001", auth=token).json()
    after = own_mail.post("me/messages/19ac000000000001/modify", auth=token, json=wish).json()
    assert after == {"id": before["id"], "threadId": before["threadId"], "labelIds": ["INBOX", "Label_1"]}
    assert state(own)["mailboxes"][SUPPORT]["19ac000000000001"] == ["INBOX", "Label_1"]
    changed = own_mail.get("me/messages/19ac000000000001", auth=token).json()
    assert int(changed["historyId"]) > int(before["historyId"])
    for wrong in ({}, {"addLabelIds": ["Label_77"]}, {"removeLabelIds": ["SENT"]}):
        answer = own_mail.post("me/messages/19ac000000000001/modify", auth=token, json=wrong)
        assert refused(answer) == (400, "INVALID_ARGUMENT", "invalidArgument")


def test_the_labels_are_those_of_the_team(authorization: AuthorizationServer, mail: httpx.Client) -> None:
    listed = mail.get("me/labels", auth=bearer(authorization, LABELS)).json()["labels"]
    own = {each["name"] for each in listed if each["type"] == "user"}
    assert {"Refund", "Delivery", "Complaint", "Invoice"} <= own
    assert {"INBOX", "SPAM", "UNREAD"} <= {each["id"] for each in listed if each["type"] == "system"}


def test_without_a_token_google_says_that_one_is_missing(mail: httpx.Client) -> None:
    answer = mail.get("me/messages")
    assert refused(answer) == (401, "UNAUTHENTICATED", "required")
    assert answer.headers["www-authenticate"] == 'Bearer realm="https://accounts.google.com/"'
    (entry,) = answer.json()["error"]["details"]
    assert entry == {
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": "CREDENTIALS_MISSING",
        "domain": "googleapis.com",
        "metadata": {"method": "caribou.api.proto.MailboxService.ListMessages", "service": "gmail.googleapis.com"},
    }


BAD = 'Bearer realm="https://accounts.google.com/", error="invalid_token"'


def test_a_token_that_is_none_or_is_for_another_service_is_refused_as_bad(
    authorization: AuthorizationServer, mail: httpx.Client
) -> None:
    elsewhere = [
        bearer(authorization, READONLY, resource=f"https://other.example/{kind}").token for kind in ("", "opaque")
    ]
    good = bearer(authorization).token
    for token in ("junk", "a.b.c", good[:-3] + "AAA", *elsewhere):
        answer = mail.get("me/messages", auth=Bearer(token))
        assert refused(answer) == (401, "UNAUTHENTICATED", "authError")
        assert answer.headers["www-authenticate"] == BAD
        assert answer.json()["error"]["errors"] == [
            {
                "message": "Invalid Credentials",
                "domain": "global",
                "reason": "authError",
                "location": "Authorization",
                "locationType": "header",
            }
        ]
    assert mail.get("me/messages", params={"access_token": good}).status_code == 401
    two = [("Authorization", f"Bearer {good}"), ("Authorization", f"Bearer {good}")]
    assert mail.get("me/messages", headers=two).status_code == 401


def test_a_token_that_is_bound_to_a_key_is_not_taken_without_a_proof(
    authorization: AuthorizationServer, mail: httpx.Client
) -> None:
    for resource in (AUDIENCE, OPAQUE):
        shown = proof(ECKey.generate_key("P-256"), authorization.token_endpoint)
        token = bearer(authorization, resource=resource, headers={"DPoP": shown})
        assert refused(mail.get("me/messages", auth=token)) == (401, "UNAUTHENTICATED", "authError")


def test_an_opaque_token_that_was_revoked_counts_no_more(
    authorization: AuthorizationServer, mail: httpx.Client
) -> None:
    token = bearer(authorization, resource=OPAQUE)
    assert mail.get("me/messages", auth=token).status_code == 200
    form = {"token": token.token}
    httpx.post(authorization.revocation_endpoint, auth=CLIENT, data=form, trust_env=False).raise_for_status()
    assert refused(mail.get("me/messages", auth=token)) == (401, "UNAUTHENTICATED", "authError")


def test_where_the_issuer_cannot_be_asked_nobody_is_let_in(
    authorization: AuthorizationServer, mail: httpx.Client
) -> None:
    token = bearer(authorization, resource=OPAQUE)
    for kind in (Kind.SERVER_ERROR, Kind.HTML, Kind.GARBAGE, Kind.REDIRECT, Kind.HANG_UP):
        authorization.misbehave(Misbehaviour(kind, endpoint=Endpoint.INTROSPECTION, times=1))
        assert refused(mail.get("me/messages", auth=token)) == (503, "UNAVAILABLE", "backendError")
    authorization.misbehave(Misbehaviour(Kind.ALWAYS_INACTIVE, times=1))
    assert refused(mail.get("me/messages", auth=token)) == (401, "UNAUTHENTICATED", "authError")
    assert mail.get("me/messages", auth=token).status_code == 200


INSUFFICIENT = [
    ("GET", "me/messages", (SEND,), "ListMessages"),
    ("GET", "me/messages/19ac000000000001", (SEND, LABELS), "GetMessage"),
    ("GET", "me/labels", (SEND,), "ListLabels"),
    ("POST", "me/messages/send", (READONLY, LABELS), "SendMessage"),
    ("POST", "me/messages/19ac000000000001/modify", (READONLY, SEND), "ModifyMessage"),
]


@pytest.mark.parametrize(("verb", "path", "scopes", "method"), INSUFFICIENT)
def test_what_the_scope_does_not_permit_is_not_done(
    shared: MailService,
    authorization: AuthorizationServer,
    mail: httpx.Client,
    verb: str,
    path: str,
    scopes: tuple[str, ...],
    method: str,
) -> None:
    before = state(shared)
    answer = mail.request(verb, path, auth=bearer(authorization, *scopes), json=letter())
    assert refused(answer) == (403, "PERMISSION_DENIED", "insufficientPermissions")
    error = answer.json()["error"]
    assert error["message"] == "Request had insufficient authentication scopes."
    assert error["errors"][0]["message"] == "Insufficient Permission"
    assert error["details"][0]["reason"] == "ACCESS_TOKEN_SCOPE_INSUFFICIENT"
    assert error["details"][0]["metadata"]["method"] == f"caribou.api.proto.MailboxService.{method}"
    assert 'error="insufficient_scope"' in answer.headers["www-authenticate"]
    after = state(shared)
    assert (after["mailboxes"], after["sent"]) == (before["mailboxes"], before["sent"])


def test_metadata_are_all_that_the_scope_of_metadata_gives(
    authorization: AuthorizationServer, mail: httpx.Client
) -> None:
    token = bearer(authorization, METADATA)
    path = "me/messages/19ac000000000001"
    assert mail.get("me/messages", auth=token).status_code == 200
    assert mail.get(path, auth=token, params={"format": "metadata"}).status_code == 200
    for params in ({"format": "full"}, {"format": "raw"}, {}):
        assert refused(mail.get(path, auth=token, params=params)) == (403, "PERMISSION_DENIED", "forbidden")
    assert refused(mail.get("me/messages", auth=token, params={"q": "refund"}))[0] == 403


@pytest.mark.parametrize("other", [*PERSONS, "nobody@shop.example"])
def test_no_other_mailbox_is_there_for_a_token(
    authorization: AuthorizationServer, mail: httpx.Client, other: str
) -> None:
    token = bearer(authorization, FULL)
    for path in ("messages", "messages/19ac000000000101", "labels"):
        answer = mail.get(f"{other}/{path}", auth=token)
        assert refused(answer) == (403, "PERMISSION_DENIED", "forbidden")
        assert answer.json()["error"]["message"] == f"Delegation denied for {SUPPORT}"
    assert refused(mail.post(f"{other}/messages/send", auth=token, json=letter()))[0] == 403


def test_a_mail_of_another_mailbox_is_not_found_in_ones_own(
    authorization: AuthorizationServer, mail: httpx.Client
) -> None:
    token = bearer(authorization, FULL)
    assert refused(mail.get("me/messages/19ac000000000101", auth=token)) == (404, "NOT_FOUND", "notFound")
    answer = mail.get("me/messages/no-id", auth=token)
    assert refused(answer) == (400, "INVALID_ARGUMENT", "invalidArgument")
    assert answer.json()["error"]["message"] == "Invalid id value"


def test_a_client_by_itself_has_no_mailbox(authorization: AuthorizationServer, mail: httpx.Client) -> None:
    for resource in (AUDIENCE, OPAQUE):
        form = {"grant_type": "client_credentials", "scope": FULL, "resource": resource}
        answer = httpx.post(authorization.token_endpoint, auth=CLIENT, data=form, trust_env=False).json()
        said = mail.get("me/messages", auth=Bearer(answer["access_token"]))
        assert refused(said) == (400, "FAILED_PRECONDITION", "failedPrecondition")


def test_what_was_asked_and_what_was_decided_is_in_the_log(
    own: MailService, authorization: AuthorizationServer, own_mail: httpx.Client
) -> None:
    token = bearer(authorization)
    own_mail.get("me/messages", auth=token, params={"q": "salary"})
    own_mail.post(f"{PERSONS[0]}/messages/send", auth=token, json=letter())
    own_mail.get("me/labels")
    asked, denied, unknown = state(own)["decisions"]
    assert (asked["method"], asked["query"], asked["status"]) == ("ListMessages", "q=salary", 200)
    assert (asked["subject"], asked["client_id"], asked["scope"]) == (SUPPORT, "agent", [READONLY])
    assert (denied["status"], denied["reason"]) == (403, "insufficientPermissions")
    assert (unknown["status"], unknown["subject"]) == (401, None)
    assert token.token not in str(state(own)) + own.log.read_text()
    assert httpx.get(f"{own.url}/_admin/state", trust_env=False).status_code == 404


@pytest.mark.parametrize(("status", "name"), [(429, "RESOURCE_EXHAUSTED"), (500, "INTERNAL"), (503, "UNAVAILABLE")])
def test_the_next_call_fails_as_it_was_asked_to(
    shared: MailService, authorization: AuthorizationServer, mail: httpx.Client, status: int, name: str
) -> None:
    wish = {"status": status, "retry_after": 3}
    headers = {"X-Admin-Token": "admin"}
    httpx.post(f"{shared.url}/_admin/fail-next", json=wish, headers=headers, trust_env=False)
    token = bearer(authorization)
    failed = mail.get("me/messages", auth=token)
    assert (failed.status_code, failed.json()["error"]["status"], failed.headers["retry-after"]) == (status, name, "3")
    assert mail.get("me/messages", auth=token).status_code == 200


def test_the_samples_are_what_a_team_gets() -> None:
    team = [sample for sample in SAMPLES if sample.to == SUPPORT]
    wanted = {"refund", "delivery", "complaint", "invoice", "spam", "injection"}
    assert wanted <= {sample.category for sample in team}
    (hostile,) = [sample for sample in team if sample.id == INJECTION]
    assert all(person in hostile.text for person in PERSONS)
    assert {sample.to for sample in SAMPLES} == {SUPPORT, *PERSONS}


def test_a_service_without_introspection_takes_signed_tokens_only(
    tmp_path: Path, authorization: AuthorizationServer
) -> None:
    with MailService(tmp_path, authorization.issuer, Secret("admin")) as service:
        url = f"{service.url}/gmail/v1/users/me/labels"
        signed, opaque = (bearer(authorization, resource=resource).token for resource in (AUDIENCE, OPAQUE))
        for token, status in ((signed, 200), (opaque, 401)):
            assert httpx.get(url, auth=Bearer(token), trust_env=False).status_code == status

"""The CRM: a token is for one customer and one action, and every other one is refused as RFC 6750 says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from transit_signer import Signer

from orchestrator.devstack.admin import VaultAdmin
from orchestrator.devstack.services.crm import AUDIENCE
from orchestrator.devstack.stack import StackInfo

WISH = {"subject": "The parcel is late", "priority": "high"}


def detail(customer: str = "7001", *actions: str) -> dict[str, Any]:
    return {"type": "crm_record", "actions": list(actions or ("write_ticket",)), "identifier": customer}


@pytest.fixture
def signer(stack: StackInfo) -> Signer:
    return Signer(VaultAdmin(stack.vault_address, stack.root_token), stack.issuer_url)


@pytest.fixture
def crm(stack: StackInfo) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=stack.crm_url, trust_env=False) as client:
        yield client


def bearer(signer: Signer, *details: dict[str, Any], scope: str = "crm:write_ticket", **changes: Any) -> dict[str, str]:
    said = {"aud": AUDIENCE, "scope": scope, "authorization_details": list(details) or None, **changes}
    return {"Authorization": f"Bearer {signer.token(**said)}"}


def test_a_ticket_is_written_and_read_with_tokens_that_are_for_it(crm: httpx.Client, signer: Signer) -> None:
    to_write = bearer(signer, detail("7001"), sub="complaint-writer")
    to_read = bearer(signer, detail("7001", "read_tickets"), scope="crm:read_tickets")
    written = crm.post("/customers/7001/tickets", json=WISH, headers=to_write)
    assert written.status_code == 201
    ticket = written.json()
    assert {**ticket, "id": ""} == {**WISH, "id": "", "customer_id": "7001", "by": "complaint-writer"}
    plain = crm.post("/customers/7001/tickets", json={"subject": "Again"}, headers=to_write).json()
    assert plain["priority"] == "normal"
    assert crm.get("/customers/7001/tickets", headers=to_read).json() == {"tickets": [ticket, plain]}


WRITE, READ = "crm:write_ticket", "crm:read_tickets"
REFUSED: dict[str, tuple[str, str, str, list[dict[str, Any]]]] = {
    "another customer": ("POST", "/customers/7003/tickets", WRITE, [detail("7002")]),
    "another way to write the customer": ("POST", "/customers/07002/tickets", WRITE, [detail("7002")]),
    "to read with what is to write": ("GET", "/customers/7002/tickets", WRITE, [detail("7002")]),
    "to write with what is to read": ("POST", "/customers/7002/tickets", READ, [detail("7002", "read_tickets")]),
    "to write with the scope alone": ("POST", "/customers/7002/tickets", WRITE, []),
    "to write with the details alone": ("POST", "/customers/7002/tickets", READ, [detail("7002")]),
    "half of it in each piece": (
        "POST",
        "/customers/7002/tickets",
        WRITE,
        [detail("7002", "read_tickets"), detail("7003", "write_ticket")],
    ),
    "a piece of another type": ("POST", "/customers/7002/tickets", WRITE, [{**detail("7002"), "type": "invoice"}]),
    "a piece with a limit that it does not know": (
        "POST",
        "/customers/7002/tickets",
        WRITE,
        [{**detail("7002"), "until": "noon"}],
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_token_is_not_for_is_forbidden(crm: httpx.Client, signer: Signer, case: str) -> None:
    method, path, scope, details = REFUSED[case]
    answer = crm.request(method, path, json=WISH, headers=bearer(signer, *details, scope=scope))
    assert answer.status_code == 403
    assert answer.headers["WWW-Authenticate"].startswith('Bearer realm="crm", error="insufficient_scope"')
    assert answer.headers["Cache-Control"] == "no-store"


def test_nothing_was_written_for_those_who_were_refused(stack: StackInfo, crm: httpx.Client, signer: Signer) -> None:
    for method, path, scope, details in REFUSED.values():
        crm.request(method, path, json=WISH, headers=bearer(signer, *details, scope=scope))
    state = crm.get("/_admin/state", headers={"X-Admin-Token": stack.admin_token.reveal()}).json()
    assert {"7002", "7003", "07002"}.isdisjoint(state["tickets"])


@pytest.mark.parametrize(
    ("changes", "because"),
    [
        ({"aud": "translation-api"}, "the token is for another audience"),
        ({"exp": 1}, "the token has expired"),
        ({"iss": "https://issuer.example"}, "the token is of another issuer"),
    ],
)
def test_a_token_that_is_not_believed_is_told_why(
    crm: httpx.Client, signer: Signer, changes: dict[str, Any], because: str
) -> None:
    answer = crm.post("/customers/7002/tickets", json=WISH, headers=bearer(signer, detail("7002"), **changes))
    assert answer.status_code == 401
    challenge = f'Bearer realm="crm", error="invalid_token", error_description="{because}"'
    assert answer.headers["WWW-Authenticate"] == challenge


def test_a_request_without_a_token_is_challenged(crm: httpx.Client) -> None:
    for answer in (crm.get("/customers/7002/tickets"), crm.post("/customers/7002/tickets", json=WISH)):
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"] == 'Bearer realm="crm"'


def test_its_health_is_for_everybody(crm: httpx.Client) -> None:
    answer = crm.get("/health")
    assert (answer.status_code, answer.json()) == (200, {"ok": True})


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"subject": ""},
        {"subject": "x" * 201},
        {**WISH, "priority": "urgent"},
        {**WISH, "customer_id": "7003"},
        [],
        "text",
    ],
)
def test_a_malformed_ticket_is_a_bad_request(crm: httpx.Client, signer: Signer, body: Any) -> None:
    assert crm.post("/customers/7004/tickets", json=body, headers=bearer(signer, detail("7004"))).status_code == 400


def test_a_failure_can_be_planned_as_at_the_other_services(stack: StackInfo, crm: httpx.Client, signer: Signer) -> None:
    admin = {"X-Admin-Token": stack.admin_token.reveal()}
    crm.post("/_admin/fail-next", json={"status": 503, "retry_after": 1}, headers=admin).raise_for_status()
    headers = bearer(signer, detail("7005", "read_tickets"), scope=READ)
    answers = [crm.get("/customers/7005/tickets", headers=headers) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [503, 200]
    assert crm.get("/_admin/state").status_code == 404

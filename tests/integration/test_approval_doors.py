"""Other doors for approvals: HTTP with a Vault token, and Slack's buttons, at a real worker."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest
from bench import Bench, Setup
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.keywrap import aes_key_wrap_with_padding
from fork_server import Forked, ForkServer
from waiting import wait_for

from orchestrator.actions.catalog import catalog
from orchestrator.clock import SystemClock
from orchestrator.ledger.coordination.approvals import ApprovalRecord
from orchestrator.ledger.opening import open_ledger
from orchestrator.ledger.states import ApprovalState, RunState
from orchestrator.workflow.loader import load_text

pytestmark = pytest.mark.parametrize("setup", ["queue"], indirect=True)

SIGNING_SECRET = "8f742231b10e8888abcd99yyyzzz85a5"
"""That of Slack's own documentation."""

BOT = "xoxq-not-a-real-bot-token"
ALICE, STRANGER = "U0ALICE01", "U0STRANGER"

FLOW = """
version: 1
name: asked
agent: tester
steps:
  work:
    action: postgres.query
    grants: { db: { kind: database, connection: support, role: feedback-read } }
    with: { sql: SELECT 1 AS one }
"""


class Slack:
    """The methods that are called, answered as Slack answers them; what was sent is kept."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                assert self.headers["authorization"] == f"Bearer {BOT}"
                outer.calls.append((self.path.rpartition("/")[2], body))
                answer = json.dumps({"ok": True, "channel": "C01", "ts": "1700000000.000100"}).encode()
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,))
        self.thread.start()

    def called(self, method: str) -> list[dict[str, Any]]:
        return [body for name, body in self.calls if name == method]

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@dataclass
class Doors:
    """A running worker with its listener, a person with a Vault token, and Slack."""

    bench: Bench
    ledger_url: str
    slack: Slack
    children: ForkServer
    process: Forked | None = None
    tokens: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        directory = self.bench.directory
        self.log = directory / "stderr"
        self.policies = directory / "policies"
        self.policies.mkdir()
        self.approvers("vault:userpass-alice", f"slack:{ALICE}")
        self.bot = directory / "bot-token"
        self.bot.write_text(BOT)
        vault = self.bench.vault
        for name in ("alice", "mallory"):
            vault.write_data(f"auth/userpass/users/{name}", data={"password": "x" * 12})
            answer = vault.write_data(f"auth/userpass/login/{name}", data={"password": "x" * 12})
            self.tokens[name] = answer["auth"]["client_token"]

    def approvers(self, *names: str) -> None:
        answer = json.dumps({"allow": True, "obligations": {"approval": {"approvers": names}}})
        (self.policies / "p.rego").write_text(f"package orchestrator\ndecision := {answer}\n")

    def environment(self) -> dict[str, str]:
        return {
            **self.bench.environment(),
            "ORCHESTRATOR_LEDGER_URL": self.ledger_url,
            "ORCHESTRATOR_POLICY_PATH": str(self.policies),
            "ORCHESTRATOR_SLACK_CHANNEL": "#approvals",
            "ORCHESTRATOR_SLACK_TOKEN_FILE": str(self.bot),
            "ORCHESTRATOR_SLACK_API": f"http://127.0.0.1:{self.slack.server.server_port}/api",
        }

    def start(self, *options: str) -> None:
        with self.log.open("ab") as log:
            words = ("worker", "--listen", "127.0.0.1:0", "--log-format", "json", *options)
            self.process = self.children.start(*words, environment=self.environment(), log=log)

    @property
    def address(self) -> str:
        def found() -> list[str]:
            lines = self.log.read_text().splitlines()
            return [record["address"] for line in lines if "address" in (record := json.loads(line))]

        return f"http://{wait_for(found, 'the listener')[-1]}"

    def ask(self) -> ApprovalRecord:
        """Queue a run, and wait until it waits."""
        path = self.bench.directory / "asked.yaml"
        path.write_text(FLOW)
        self.bench.install(load_text(FLOW, filename="asked.yaml", actions=catalog).workflow)
        self.children.command("queue", "add", str(path), environment=self.environment()).check_returncode()
        (record,) = wait_for(self.open_requests, "the request")
        wait_for(lambda: self.state(record) is RunState.WAITING, "the run that waits")
        return record

    def open_requests(self) -> list[ApprovalRecord]:
        with open_ledger(self.ledger_url, clock=SystemClock()) as ledger:
            return list(ledger.approvals.all(state=ApprovalState.OPEN))

    def state(self, record: ApprovalRecord) -> RunState:
        with open_ledger(self.ledger_url, clock=SystemClock()) as ledger:
            found = ledger.run(record.run_id)
        assert found is not None
        return found.state

    def get(self, path: str, token: str | None = None) -> httpx.Response:
        headers = {"x-vault-token": token} if token else {}
        return httpx.get(f"{self.address}{path}", headers=headers, trust_env=False, timeout=20)

    def post(self, path: str, body: Any, token: str | None = None) -> httpx.Response:
        headers = {"x-vault-token": token} if token else {}
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return httpx.post(f"{self.address}{path}", content=content, headers=headers, trust_env=False, timeout=20)

    def press(
        self,
        record: ApprovalRecord,
        *,
        user: str = ALICE,
        action: str = "approve",
        secret: str = SIGNING_SECRET,
        late: float = 0,
        **changes: str,
    ) -> httpx.Response:
        """What Slack sends when somebody presses a button, signed as it signs."""
        return self.send(*pressed(record, user=user, action=action, secret=secret, late=late, **changes))

    def send(self, body: bytes, headers: dict[str, str]) -> httpx.Response:
        url = f"{self.address}/v1/slack/interactions"
        return httpx.post(url, content=body, headers=headers, trust_env=False, timeout=20)

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(60)
        self.slack.close()


def pressed(
    record: ApprovalRecord, *, user: str, action: str, secret: str, late: float, **changes: str
) -> tuple[bytes, dict[str, str]]:
    payload = {
        "type": "block_actions",
        "user": {"id": user, "name": "whoever"},
        "container": {"type": "message", "channel_id": "C01", "message_ts": "1700000000.000100"},
        "actions": [{"action_id": action, "value": record.approval_id, "type": "button"}],
    }
    body = urlencode({"payload": json.dumps(payload)}).encode()
    stamp = str(int(time.time() - late))
    signature = "v0=" + hmac.new(secret.encode(), f"v0:{stamp}:".encode() + body, hashlib.sha256).hexdigest()
    headers = {
        "content-type": "application/x-www-form-urlencoded",
        "x-slack-request-timestamp": stamp,
        "x-slack-signature": signature,
    }
    return body, {**headers, **{name.replace("_", "-"): value for name, value in changes.items()}}


def import_signing_secret(bench: Bench) -> None:
    """What an admin does once: the secret becomes an HMAC key (Vault API, `POST /transit/keys/:name/import`)."""
    vault = bench.vault
    wrapping = serialization.load_pem_public_key(vault.read("transit/wrapping_key")["data"]["public_key"].encode())
    assert isinstance(wrapping, RSAPublicKey)
    ephemeral = os.urandom(32)
    oaep = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)
    wrapped = wrapping.encrypt(ephemeral, oaep) + aes_key_wrap_with_padding(ephemeral, SIGNING_SECRET.encode())
    vault.write_data(
        "transit/keys/orchestrator-slack/import",
        data={"ciphertext": base64.b64encode(wrapped).decode(), "type": "hmac", "hash_function": "SHA256"},
    )


@pytest.fixture
def doors(bench: Bench, setup: Setup, children: ForkServer) -> Iterator[Doors]:
    vault = bench.vault
    vault.sys.enable_auth_method("userpass")
    import_signing_secret(bench)
    made = Doors(bench, setup.ledger_url, Slack(), children)
    try:
        yield made
    finally:
        made.close()
        vault.sys.disable_auth_method("userpass")
        vault.write_data("transit/keys/orchestrator-slack/config", data={"deletion_allowed": True})
        vault.delete("transit/keys/orchestrator-slack")


class TestHttp:
    def test_a_token_says_who_somebody_is(self, doors: Doors) -> None:
        doors.start("--approvals")
        record = doors.ask()
        alice, mallory = doors.tokens["alice"], doors.tokens["mallory"]
        path = f"/v1/approvals/{record.approval_id}"
        assert doors.get("/v1/approvals").status_code == 401
        assert doors.get(path).status_code == 401
        assert doors.get(path, "s.nonsense").status_code == 401
        assert doors.post(path, {"verdict": "approve"}).status_code == 401
        assert [each["id"] for each in doors.get("/v1/approvals?state=open", alice).json()["approvals"]] == [
            record.approval_id
        ]
        assert doors.get("/v1/approvals?state=denied", alice).json()["approvals"] == []
        assert doors.get(path, mallory).json()["question"]["agent"] == "tester"
        refused = doors.post(path, {"verdict": "approve"}, mallory)
        assert (refused.status_code, refused.headers["content-type"]) == (403, "application/problem+json")
        assert "vault:userpass-mallory is not among those who may approve it" in refused.json()["detail"]
        assert doors.post("/v1/approvals/appr_nothing", {"verdict": "approve"}, alice).status_code == 404
        assert doors.bench.logins_of_steps() == []
        given = doors.post(path, {"verdict": "approve", "comment": "fine"}, alice)
        assert (given.status_code, given.json()["state"]) == (200, "approved")
        assert given.json()["votes"][0]["comment"] == "fine"
        wait_for(lambda: doors.state(record) is RunState.SUCCEEDED, "the end of the run")
        assert doors.post(path, {"verdict": "deny"}, alice).status_code == 409
        assert alice not in doors.log.read_text()

    def test_what_is_no_vote_is_refused(self, doors: Doors) -> None:
        doors.start("--approvals")
        record = doors.ask()
        for body in (
            *(b"", b"nonsense", b"[]", b"\xff", b"x" * 20_000),
            *({}, {"verdict": "maybe"}, {"verdict": "approve", "by": "root"}, {"verdict": "approve", "comment": 5}),
        ):
            answer = doors.post(f"/v1/approvals/{record.approval_id}", body, doors.tokens["alice"])
            assert answer.status_code == 400, body
        assert doors.open_requests() == [record]

    def test_nothing_is_there_unless_it_was_asked_for(self, doors: Doors) -> None:
        doors.start()
        assert doors.get("/v1/approvals", doors.tokens["alice"]).status_code == 404
        assert doors.post("/v1/slack/interactions", b"").status_code == 404


class TestSlack:
    def test_a_button_approves_and_the_message_says_so(self, doors: Doors) -> None:
        doors.start("--approvals")
        record = doors.ask()
        (posted,) = wait_for(lambda: doors.slack.called("chat.postMessage"), "the message")
        assert posted["channel"] == "#approvals"
        buttons = posted["blocks"][-1]["elements"]
        assert [(each["action_id"], each["value"]) for each in buttons] == [
            ("approve", record.approval_id),
            ("deny", record.approval_id),
        ]
        assert "tester asks for asked/work" in posted["text"]
        assert doors.bench.logins_of_steps() == []
        assert doors.press(record).status_code == 200
        wait_for(lambda: doors.state(record) is RunState.SUCCEEDED, "the end of the run")
        (updated,) = wait_for(lambda: doors.slack.called("chat.update"), "the message's end")
        assert f"approved: approve by slack:{ALICE}" in json.dumps(updated)
        assert all(block["type"] != "actions" for block in updated["blocks"])
        for path in doors.bench.directory.rglob("*"):
            if path.is_file() and path != doors.bot:
                assert BOT.encode() not in path.read_bytes(), path
                assert SIGNING_SECRET.encode() not in path.read_bytes(), path

    def test_a_denial_by_button_ends_the_run(self, doors: Doors) -> None:
        doors.start("--approvals")
        record = doors.ask()
        assert doors.press(record, action="deny").status_code == 200
        wait_for(lambda: doors.state(record) is RunState.REFUSED, "the end of the run")

    def test_who_may_not_is_told_and_nobody_else(self, doors: Doors) -> None:
        doors.start("--approvals")
        record = doors.ask()
        assert doors.press(record, user=STRANGER).status_code == 200
        (told,) = wait_for(lambda: doors.slack.called("chat.postEphemeral"), "what was told")
        assert told["user"] == STRANGER
        assert "not among those" in told["text"]
        assert doors.open_requests() == [record]
        assert doors.slack.called("chat.update") == []

    def test_forged_replayed_and_late_requests_are_refused(self, doors: Doors) -> None:
        """One server for all of them: nothing of it may move the request."""
        doors.start("--approvals")
        record = doors.ask()
        body, headers = pressed(record, user=STRANGER, action="approve", secret=SIGNING_SECRET, late=0)
        assert doors.send(body, headers).status_code == 200
        assert doors.send(body, headers).status_code == 401, "a replay"
        again = {**headers, "x-slack-signature": headers["x-slack-signature"].upper().replace("V0", "v0")}
        assert doors.send(body, again).status_code == 401, "the same signature in other letters"
        refused = {
            "another secret": {"secret": "x" * 32},
            "late": {"late": 301 + 5},
            "early": {"late": -301 - 5},
            "no signature": {"x_slack_signature": ""},
            "a signature of another kind": {"x_slack_signature": "v1=" + "0" * 64},
            "half a signature": {"x_slack_signature": "v0=" + "0" * 63},
            "letters that are no digits": {"x_slack_signature": "v0=" + "g" * 64},
            "no time": {"x_slack_request_timestamp": ""},
            "no number": {"x_slack_request_timestamp": "abc"},
            "a number of other digits": {"x_slack_request_timestamp": "1e9"},
            "a negative time": {"x_slack_request_timestamp": "-5"},
            "another time than signed": {"x_slack_request_timestamp": str(int(time.time()) - 7)},
        }
        for name, how in refused.items():
            assert doors.press(record, **how).status_code == 401, name  # type: ignore[arg-type]
        body, headers = pressed(record, user=ALICE, action="deny", secret=SIGNING_SECRET, late=0)
        assert doors.send(body.replace(b"deny", b"approve"), headers).status_code == 401, "another body"
        assert doors.send(body + b"&payload=x", headers).status_code == 401
        assert doors.send(b"\xff\xfe" + body, headers).status_code == 401
        assert doors.send(b"", headers).status_code == 401
        assert doors.open_requests() == [record]
        assert doors.bench.logins_of_steps() == []
        assert doors.press(record).status_code == 200, "and a real one counts"
        wait_for(lambda: doors.state(record) is RunState.SUCCEEDED, "the end of the run")

    def test_a_signed_request_that_is_no_button_is_refused(self, doors: Doors) -> None:
        doors.start("--approvals")
        record = doors.ask()
        button = [{"action_id": "approve", "value": record.approval_id}]
        for payload in (
            {},
            {"type": "view_submission"},
            {"type": "block_actions", "user": {"id": ALICE}, "actions": []},
            {"type": "block_actions", "user": {"id": "U1 or root"}, "actions": button},
            {"type": "block_actions", "user": {"id": [ALICE]}, "actions": button},
            {"type": "block_actions", "user": {"id": ALICE}, "actions": [{**button[0], "action_id": "maybe"}]},
        ):
            body = urlencode({"payload": json.dumps(payload)}).encode()
            stamp = str(int(time.time()))
            signed = hmac.new(SIGNING_SECRET.encode(), f"v0:{stamp}:".encode() + body, hashlib.sha256).hexdigest()
            headers = {"x-slack-request-timestamp": stamp, "x-slack-signature": f"v0={signed}"}
            assert doors.send(body, headers).status_code == 400, payload
        assert doors.open_requests() == [record]

    def test_a_slack_that_is_away_holds_nothing_up(self, doors: Doors) -> None:
        doors.bot.unlink()
        doors.start("--approvals")
        record = doors.ask()
        wait_for(lambda: "Slack shows nothing of" in doors.log.read_text(), "the log")
        answer = doors.post(f"/v1/approvals/{record.approval_id}", {"verdict": "approve"}, doors.tokens["alice"])
        assert answer.status_code == 200
        wait_for(lambda: doors.state(record) is RunState.SUCCEEDED, "the end of the run")


def test_two_doors_are_not_two_people(doors: Doors) -> None:
    """Nobody knows whether alice of Vault and U0ALICE01 of Slack are one person: so they do not count as two."""
    answer = {
        "allow": True,
        "obligations": {"approval": {"approvers": ["vault:userpass-alice", f"slack:{ALICE}"], "count": 2}},
    }
    (doors.policies / "p.rego").write_text(f"package orchestrator\ndecision := {json.dumps(answer)}\n")
    doors.start("--approvals")
    record = doors.ask()
    assert doors.press(record).status_code == 200
    given = doors.post(f"/v1/approvals/{record.approval_id}", {"verdict": "approve"}, doors.tokens["alice"])
    assert given.json()["state"] == "open"
    assert [each["counts"] for each in given.json()["votes"]] == [True, True]
    assert doors.state(record) is RunState.WAITING
    assert doors.bench.logins_of_steps() == []

"""Access tokens of a real authorization server: issued, narrowed, used, refused, ended, and what is on record."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import hvac.exceptions
import pytest
from app_server import served
from database_servers import Authority, encrypted, listening, pump
from fork_server import orchestrator
from oauth import ALICE, FILES, KEYS, MAIL, READ, SECRET, SUPPORT, OAuth, escaped_tokens
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.routing import Route

from orchestrator.actions.catalog import catalog
from orchestrator.assembly import open_services
from orchestrator.devstack.authorization.misbehaviours import Endpoint, Kind, Misbehaviour
from orchestrator.errors import ExitCode, OutputRefused, UsageError
from orchestrator.ledger.events import LeaseEnded, LeaseIssued, LeaseRevoked, LeaseRevoking
from orchestrator.ledger.ids import new_run_id
from orchestrator.ledger.lease import LeaseState
from orchestrator.ledger.types import LeaseRecord
from orchestrator.pep.access import access_tokens
from orchestrator.pep.middleware import BearerAuthentication
from orchestrator.pep.possession import Nonces, Possession
from orchestrator.pep.protection import Protection
from orchestrator.pep.sources import IssuerKeys
from orchestrator.provision.vault.admin import VaultAdmin
from orchestrator.provision.vault.key_import import import_key, material
from orchestrator.redaction.redactor import Redactor
from orchestrator.runs.runner import Runner
from orchestrator.runs.types import RunOutcome, RunRequest
from orchestrator.secret import Secret
from orchestrator.workflow.inputs import bind_inputs
from orchestrator.workflow.loader import load_text

BASIC = "issuer: basic, scope: [read], ttl: 60s"


def lease_of(oauth: OAuth, outcome: RunOutcome) -> LeaseRecord:
    """The lease of the grant; there is one."""
    [found] = [each for each in oauth.bench.history(outcome.run_id) if each.grant_kind == "oauth2"]
    return found


def events(oauth: OAuth, kind: type) -> list[Any]:
    return [event for event in oauth.bench.events if isinstance(event, kind)]


def failure(outcome: RunOutcome) -> str:
    return str(outcome.errors["ask"])


def done(outcome: RunOutcome) -> RunOutcome:
    assert outcome.exit_code is ExitCode.DONE, failure(outcome)
    return outcome


@pytest.mark.parametrize("client", ["basic", "post", *(f"signed-{name}" for name in KEYS)])
def test_a_step_has_a_token_that_its_issuer_calls_inactive_afterwards(oauth_bench: OAuth, client: str) -> None:
    outcome = done(oauth_bench.run(f"issuer: {client}, scope: [read], ttl: 60s"))
    lease = lease_of(oauth_bench, outcome)
    assert lease.state is LeaseState.REVOKED
    assert events(oauth_bench, LeaseRevoked)[0].confirmed_by == "issuer"
    assert oauth_bench.alive() == []
    assert lease.scope["scopes"] == ["read"]
    assert lease.scope["issuer"] == client


def test_a_signed_token_ends_and_is_never_called_revoked(oauth_bench: OAuth) -> None:
    outcome = done(oauth_bench.run(f"issuer: basic, scope: [{READ}], resource: {MAIL!r}, ttl: 60s"))
    lease = lease_of(oauth_bench, outcome)
    assert lease.state is LeaseState.ENDED
    [ended] = [each for each in events(oauth_bench, LeaseEnded) if each.lease_id == lease.lease_id]
    assert "unsupported_token_type" in ended.reason
    assert ended.valid_until is not None
    assert abs((ended.valid_until - lease.requested_at).total_seconds() - 60) < 10
    [issued] = [each for each in events(oauth_bench, LeaseIssued) if each.lease_id == lease.lease_id]
    assert issued.subject, "the `jti` of the token, by which the issuer's log and ours are held together"


def test_an_assertion_speaks_for_one_mailbox_and_no_other(oauth_bench: OAuth) -> None:
    grant = f"issuer: bearer, scope: [{READ}], resource: {MAIL!r}, ttl: 60s"
    done(oauth_bench.run(f"{grant}, subject: {SUPPORT}"))
    asked = len(oauth_bench.asked())
    with (
        pytest.raises(UsageError, match=r"on behalf of `boss@shop\.example`"),
        oauth_bench.bench.provisioning(
            [
                load_text(
                    oauth_bench.text(f"{grant}, subject: boss@shop.example"), filename="t.yaml", actions=catalog
                ).workflow
            ]
        ),
    ):
        pass
    outcome = oauth_bench.run(f"{grant}, subject: boss@shop.example")
    assert outcome.exit_code is ExitCode.REFUSED
    assert "may not be asked for a token on behalf of `boss@shop.example`" in failure(outcome)
    assert lease_of(oauth_bench, outcome).state is LeaseState.DENIED
    assert len(oauth_bench.asked()) == asked, "who may not be asked for is not asked for"


def test_the_issuer_itself_refuses_another_mailbox_and_another_scope(oauth_bench: OAuth) -> None:
    """Declared too widely, it is still the issuer that decides."""
    outcome = oauth_bench.run(f"issuer: bearer, scope: [{READ}], resource: {MAIL!r}, subject: {ALICE}, ttl: 60s")
    assert outcome.exit_code is ExitCode.REFUSED
    assert "refused by issuer" in failure(outcome)
    outcome = oauth_bench.run(f"issuer: bearer, scope: ['mail:send'], resource: {MAIL!r}, subject: {SUPPORT}, ttl: 60s")
    assert outcome.exit_code is ExitCode.REFUSED
    assert oauth_bench.alive() == []


def test_a_subject_may_come_from_the_run_and_is_held_against_the_declaration_then(oauth_bench: OAuth) -> None:
    grant = f"issuer: bearer, scope: [{READ}], resource: {MAIL!r}, ttl: 60s, subject: '${{{{ inputs.mailbox }}}}'"
    text = oauth_bench.text(grant).replace("agent: reader", "agent: reader\ninputs: { mailbox: { type: string } }")
    for mailbox, code in ((SUPPORT, ExitCode.DONE), ("boss@shop.example", ExitCode.REFUSED)):
        outcome = oauth_bench.bench.run(text, issuers=oauth_bench.issuers, inputs={"mailbox": mailbox})
        assert outcome.exit_code is code
        assert lease_of(oauth_bench, outcome).scope["subject"] == mailbox


def test_a_token_of_vault_is_exchanged_for_one_of_the_issuer(oauth_bench: OAuth) -> None:
    done(oauth_bench.run(f"issuer: exchanger, scope: [{READ}], resource: {MAIL!r}, subject: {SUPPORT}, ttl: 60s"))


def test_resource_and_details_are_asked_for_and_held_against_the_answer(oauth_bench: OAuth) -> None:
    details = "details: [{ type: file, actions: [read], identifier: report }]"
    outcome = done(oauth_bench.run(f"issuer: basic, scope: [read], resource: {FILES!r}, {details}, ttl: 60s"))
    assert lease_of(oauth_bench, outcome).scope["details"] == [
        {"type": "file", "actions": ["read"], "identifier": "report"}
    ]
    refused = oauth_bench.run(f"issuer: basic, scope: [read], {details.replace('read]', 'delete]')}, ttl: 60s")
    assert refused.exit_code is ExitCode.REFUSED
    assert "invalid_authorization_details" in failure(refused)


def test_a_bound_token_is_asked_for_with_the_proof_of_a_key(oauth_bench: OAuth) -> None:
    done(oauth_bench.run("issuer: bound, scope: [read], proof: dpop, ttl: 60s"))
    refused = oauth_bench.run("issuer: bound, scope: [read], ttl: 60s")
    assert refused.exit_code is ExitCode.REFUSED
    assert oauth_bench.alive() == []


WRONG = [
    ("wider", Misbehaviour(Kind.WIDER_SCOPE, scope=READ), f"more than was asked for: `{READ}`"),
    ("narrower", Misbehaviour(Kind.NARROWER_SCOPE, scope="read"), "less than was asked for: without `write`"),
    ("unsaid", Misbehaviour(Kind.NO_SCOPE), "does not say which scope"),
    ("without an end", Misbehaviour(Kind.NO_EXPIRES_IN), "does not say how long"),
    ("longer", Misbehaviour(Kind.LONGER_EXPIRY, seconds=3600), "for 3600s, longer than the grant's 60s"),
    ("of another type", Misbehaviour(Kind.OTHER_TOKEN_TYPE), "of the type `n_a`, not `bearer`"),
    ("with a refresh token", Misbehaviour(Kind.UNASKED_REFRESH_TOKEN), "a refresh token that nobody asked for"),
]


@pytest.mark.parametrize(("misbehaviour", "said"), [each[1:] for each in WRONG], ids=[each[0] for each in WRONG])
def test_what_was_not_asked_for_is_refused_and_revoked(
    oauth_bench: OAuth, misbehaviour: Misbehaviour, said: str
) -> None:
    oauth_bench.server.misbehave(misbehaviour)
    outcome = oauth_bench.run("issuer: basic, scope: [read, write], ttl: 60s")
    assert outcome.exit_code is ExitCode.REFUSED
    assert said in failure(outcome)
    assert lease_of(oauth_bench, outcome).state is LeaseState.REVOKED
    assert oauth_bench.alive() == [], "neither the token nor what came along with it"


def test_an_issuer_may_leave_out_the_scope_that_was_asked_for_where_that_is_declared(oauth_bench: OAuth) -> None:
    oauth_bench.server.misbehave(Misbehaviour(Kind.NO_SCOPE))
    oauth_bench.declare("basic", scope_in="unsaid")
    done(oauth_bench.run(BASIC))
    oauth_bench.declare("basic", scope_in="token")
    done(oauth_bench.run(f"issuer: basic, scope: [{READ}], resource: {MAIL!r}, ttl: 60s"))


@pytest.mark.parametrize(
    ("misbehaviour", "code", "state"),
    [
        (Misbehaviour(Kind.GARBAGE), ExitCode.UNREACHABLE, LeaseState.ENDED),
        (Misbehaviour(Kind.HTML), ExitCode.UNREACHABLE, LeaseState.ENDED),
        (Misbehaviour(Kind.SERVER_ERROR), ExitCode.UNREACHABLE, LeaseState.ENDED),
        (Misbehaviour(Kind.HANG_UP), ExitCode.UNREACHABLE, LeaseState.ENDED),
        (Misbehaviour(Kind.LATE, seconds=30), ExitCode.STEP_FAILED, LeaseState.ENDED),
        (Misbehaviour(Kind.REDIRECT), ExitCode.UNREACHABLE, LeaseState.FAILED),
    ],
    ids=["garbage", "a page", "a server error", "no answer", "too late", "elsewhere"],
)
def test_of_an_answer_that_never_came_it_is_said_that_nobody_holds_the_token(
    oauth_bench: OAuth, misbehaviour: Misbehaviour, code: ExitCode, state: LeaseState
) -> None:
    oauth_bench.server.misbehave(misbehaviour)
    outcome = oauth_bench.run(BASIC, timeout="3s")
    assert outcome.exit_code is code, failure(outcome)
    lease = lease_of(oauth_bench, outcome)
    assert lease.state is state
    if state is LeaseState.ENDED:
        [ended] = [each for each in events(oauth_bench, LeaseEnded) if each.lease_id == lease.lease_id]
        assert "nobody holds it" in ended.reason
        assert ended.valid_until is not None
        assert [each.reason for each in events(oauth_bench, LeaseRevoking) if each.lease_id == lease.lease_id]
    assert len(oauth_bench.asked()) > 0


def test_an_issuer_that_is_busy_is_asked_again(oauth_bench: OAuth) -> None:
    oauth_bench.server.misbehave(Misbehaviour(Kind.SERVER_ERROR, status=503, retry_after=1, times=2))
    done(oauth_bench.run(BASIC))


def test_an_issuer_that_is_away_fails_the_step_and_nothing_may_exist(oauth_bench: OAuth) -> None:
    oauth_bench.declare("basic", discovery=None, token_endpoint="http://127.0.0.1:9/token")
    outcome = oauth_bench.run(BASIC, timeout="6s")
    assert outcome.exit_code is ExitCode.UNREACHABLE
    assert "did not accept a connection" in failure(outcome)
    assert lease_of(oauth_bench, outcome).state is LeaseState.FAILED


@pytest.mark.parametrize(
    ("misbehaviour", "said"),
    [
        (Misbehaviour(Kind.REVOCATION_IGNORED, Endpoint.REVOCATION), "active all the same"),
        (Misbehaviour(Kind.ALWAYS_INACTIVE, Endpoint.INTROSPECTION), "does not say whether it is still active"),
        (Misbehaviour(Kind.SERVER_ERROR, Endpoint.REVOCATION), "answered 500"),
        (Misbehaviour(Kind.GARBAGE, Endpoint.INTROSPECTION), "does not say whether it is still active"),
    ],
    ids=["revokes nothing", "calls everything inactive", "cannot revoke", "garbage"],
)
def test_a_token_is_revoked_only_where_its_issuer_says_that_and_can_be_believed(
    oauth_bench: OAuth, misbehaviour: Misbehaviour, said: str
) -> None:
    oauth_bench.server.misbehave(misbehaviour)
    outcome = done(oauth_bench.run(BASIC, grace=2.0))
    lease = lease_of(oauth_bench, outcome)
    assert lease.state is LeaseState.ENDED
    [ended] = [each for each in events(oauth_bench, LeaseEnded) if each.lease_id == lease.lease_id]
    assert said in ended.reason


def test_a_refresh_token_is_used_up_and_its_successor_kept(oauth_bench: OAuth) -> None:
    first = oauth_bench.server.refresh_token("refresher", SUPPORT, READ, resource=MAIL).reveal()
    oauth_bench.bench.vault.write_data(
        "secret/data/oauth/refresher", data={"data": {"refresh_token": first, "note": 1}}
    )
    grant = f"issuer: refresher, scope: [{READ}], resource: {MAIL!r}, ttl: 60s"
    for _ in range(2):
        before = oauth_bench.kept("oauth/refresher")["refresh_token"]
        done(oauth_bench.run(grant))
        kept = oauth_bench.kept("oauth/refresher")
        assert kept.keys() == {"refresh_token", "note"}
        assert kept["refresh_token"] != before


def test_many_processes_use_one_refresh_token_one_after_the_other(oauth_bench: OAuth) -> None:
    """Two at once would be theft to the issuer, and end everything that it gave."""
    first = oauth_bench.server.refresh_token("refresher", SUPPORT, READ, resource=MAIL).reveal()
    oauth_bench.bench.vault.write_data("secret/data/oauth/refresher", data={"data": {"refresh_token": first}})
    text = oauth_bench.text(f"issuer: refresher, scope: [{READ}], resource: {MAIL!r}, ttl: 60s")
    loaded = load_text(text, filename="test.yaml", actions=catalog)
    oauth_bench.bench.install(loaded.workflow)

    async def all_at_once() -> list[RunOutcome]:
        async with open_services(
            oauth_bench.bench.config(issuers=oauth_bench.issuers), redactor=Redactor()
        ) as services:
            requests = [
                RunRequest(run_id=new_run_id(), loaded=loaded, inputs=bind_inputs(loaded.workflow, {}))
                for _ in range(5)
            ]
            return list(await asyncio.gather(*(Runner(services).run(each) for each in requests)))

    for outcome in asyncio.run(all_at_once()):
        done(outcome)
    done(oauth_bench.run(f"issuer: refresher, scope: [{READ}], resource: {MAIL!r}, ttl: 60s"))


def test_a_refresh_token_that_stays_the_same_stays(oauth_bench: OAuth) -> None:
    first = oauth_bench.server.refresh_token("keeper", SUPPORT, READ, resource=MAIL).reveal()
    oauth_bench.bench.vault.write_data("secret/data/oauth/keeper", data={"data": {"refresh_token": first}})
    for _ in range(2):
        done(oauth_bench.run(f"issuer: keeper, scope: [{READ}], resource: {MAIL!r}, ttl: 60s"))
        assert oauth_bench.kept("oauth/keeper") == {"refresh_token": first}


def test_of_a_refresh_token_that_somebody_did_not_give_back_it_is_said_who_had_it(oauth_bench: OAuth) -> None:
    mark = {"in_use_by": "lse_dead", "in_use_since": "2026-01-01T00:00:00+00:00"}
    data = {"refresh_token": "used-up-and-gone-" * 3, **mark}
    oauth_bench.bench.vault.write_data("secret/data/oauth/refresher", data={"data": data})
    outcome = oauth_bench.run(f"issuer: refresher, scope: [{READ}], resource: {MAIL!r}, ttl: 60s")
    assert outcome.exit_code is ExitCode.REFUSED
    assert "`lse_dead` used the refresh token before" in failure(outcome)
    assert "in_use_by" not in oauth_bench.kept("oauth/refresher")


def test_a_refresh_token_in_use_is_waited_for_and_no_longer_than_the_step_may_take(oauth_bench: OAuth) -> None:
    mark = {"in_use_by": "lse_busy", "in_use_since": "2999-01-01T00:00:00+00:00"}
    data = {"refresh_token": "in-use-elsewhere-" * 3, **mark}
    oauth_bench.bench.vault.write_data("secret/data/oauth/refresher", data={"data": data})
    asked = len(oauth_bench.asked())
    outcome = oauth_bench.run(f"issuer: refresher, scope: [{READ}], resource: {MAIL!r}, ttl: 60s", timeout="5s")
    assert outcome.exit_code is ExitCode.REFUSED
    assert "`lse_busy` is using the refresh token" in failure(outcome)
    assert len(oauth_bench.asked()) == asked


def test_the_token_of_a_step_shows_who_asks_to_its_own_issuer_only(oauth_bench: OAuth) -> None:
    """What a stolen runtime could have: neither another issuer's key, nor its secret, nor the key of our own tokens."""
    loaded = load_text(oauth_bench.text("issuer: signed-es, scope: [read], ttl: 60s"), filename="t", actions=catalog)
    oauth_bench.bench.install(loaded.workflow)
    runtime = hvac.Client(oauth_bench.bench.info.vault_address)
    bench = oauth_bench.bench
    runtime.auth.approle.login(bench.provisioned.role_id, bench.provisioned.secret_id.reveal())
    made = runtime.adapter.post("/v1/auth/token/create/step.oauth_reader.ask", json={"ttl": "40s"})
    child = hvac.Client(bench.info.vault_address, token=made["auth"]["client_token"])
    wish = {"input": "AAAA", "hash_algorithm": "sha2-256", "marshaling_algorithm": "jws"}
    child.write_data("transit/sign/oauth-es", data=wish)
    for path, data in (
        ("transit/sign/oauth-es", {**wish, "batch_input": []}),
        ("transit/sign/oauth-es", {**wish, "hash_algorithm": "sha2-512"}),
        ("transit/sign/oauth-rs", wish),
        ("transit/sign/orchestrator-token", wish),
        ("transit/keys/oauth-es/rotate", {}),
    ):
        with pytest.raises(hvac.exceptions.Forbidden):
            child.write_data(path, data=data)
    for path in ("secret/data/oauth/client", "transit/export/signing-key/oauth-es"):
        with pytest.raises(hvac.exceptions.Forbidden):
            child.read(path)


def test_a_rotated_key_signs_at_once_by_its_new_name(oauth_bench: OAuth) -> None:
    """The issuer does not know the new key here, so that it can be seen who was asked with which."""
    vault = oauth_bench.bench.vault
    vault.write_data("transit/keys/oauth-turned", data={"type": "ecdsa-p256"})
    oauth_bench.declare("turned", **oauth_bench.declared["signed-es"])
    oauth_bench.declared["turned"]["client"] = {
        **oauth_bench.declared["signed-es"]["client"],
        "key": {"name": "oauth-turned"},
    }
    oauth_bench.declare("turned")
    outcome = oauth_bench.run("issuer: turned, scope: [read], ttl: 60s")
    assert outcome.exit_code is ExitCode.REFUSED
    assert "invalid_client" in failure(outcome)


def test_a_grant_of_an_issuer_that_nobody_declared_is_refused(oauth_bench: OAuth) -> None:
    loaded = load_text(oauth_bench.text("issuer: nobody, scope: [read]"), filename="t.yaml", actions=catalog)
    with pytest.raises(UsageError, match="issuer `nobody`"), oauth_bench.bench.provisioning([loaded.workflow]):
        pass
    oauth_bench.bench.install(load_text(oauth_bench.text(BASIC), filename="t.yaml", actions=catalog).workflow)
    outcome = oauth_bench.run(BASIC.replace("basic", "nobody"), install=False)
    assert outcome.exit_code is ExitCode.REFUSED
    assert "no authorization server `nobody` is declared" in failure(outcome)


def test_scopes_resources_and_details_are_asked_for_only_where_they_are_declared(oauth_bench: OAuth) -> None:
    oauth_bench.declare("basic", scopes=["read"], resources=[], detail_types=[])
    asked = len(oauth_bench.asked())
    for grant, more in (
        ("scope: [write]", "the scope `write`"),
        (f"scope: [read], resource: {FILES!r}", f"the resource `{FILES}`"),
        ("scope: [read], details: [{ type: file, actions: [read] }]", "details of the type `file`"),
        (f"scope: [read], subject: {SUPPORT}", f"a token on behalf of `{SUPPORT}`"),
    ):
        outcome = oauth_bench.run(f"issuer: basic, ttl: 60s, {grant}")
        assert outcome.exit_code is ExitCode.REFUSED
        assert f"may not be asked for {more}" in failure(outcome)
    assert len(oauth_bench.asked()) == asked


def test_nothing_that_the_issuer_gave_or_took_is_anywhere(oauth_bench: OAuth) -> None:
    first = oauth_bench.server.refresh_token("refresher", SUPPORT, READ, resource=MAIL).reveal()
    oauth_bench.bench.vault.write_data("secret/data/oauth/refresher", data={"data": {"refresh_token": first}})
    for grant in (
        BASIC,
        "issuer: post, scope: [read], ttl: 60s",
        f"issuer: refresher, scope: [{READ}], resource: {MAIL!r}, ttl: 60s",
        f"issuer: bearer, scope: [{READ}], resource: {MAIL!r}, subject: {SUPPORT}, ttl: 60s",
        "issuer: bound, scope: [read], proof: dpop, ttl: 60s",
    ):
        done(oauth_bench.run(grant))
    oauth_bench.server.misbehave(Misbehaviour(Kind.WIDER_SCOPE, scope="write"))
    assert oauth_bench.run(BASIC).exit_code is ExitCode.REFUSED
    directory = oauth_bench.bench.directory
    assert escaped_tokens(oauth_bench.server, [directory]) == []
    written = [path for path in directory.rglob("*") if path.is_file()]
    assert all(SECRET.encode() not in path.read_bytes() for path in written)
    control = directory / "control.txt"
    control.write_text(json.dumps({"kept": oauth_bench.kept("oauth/refresher")["refresh_token"]}))
    assert escaped_tokens(oauth_bench.server, [directory]) == [str(control)], "the search finds what is there"
    control.unlink()


def test_a_bound_token_is_of_use_to_whoever_has_its_key_and_with_a_nonce_of_the_service(oauth_bench: OAuth) -> None:
    """The service is our library's, the token and its `cnf` are the issuer's."""
    seen: list[tuple[str, bool]] = []
    issuer = oauth_bench.server.issuer

    def app(url: str) -> Any:
        protection = Protection(
            access_tokens(issuer, MAIL, algorithms=frozenset({"ES256"})),
            IssuerKeys.discovered(issuer),
            "files",
            possession=Possession(url, nonces=Nonces(Secret("n" * 32))),
        )
        inner = Starlette(
            routes=[Route("/report", lambda request: JSONResponse({"ok": True}))],
            middleware=[Middleware(BearerAuthentication, protection=protection)],
        )

        async def remembering(scope: Any, receive: Any, send: Any) -> None:
            headers = {name.decode(): value.decode() for name, value in scope["headers"]}
            seen.append((headers.get("authorization", "").partition(" ")[0], "dpop" in headers))
            await inner(scope, receive, send)

        return remembering

    with served(app) as url:
        grant = f"scope: [{READ}], resource: {MAIL!r}, ttl: 60s"
        outcome = done(oauth_bench.run(f"issuer: bound, {grant}, proof: dpop", url=f"{url}/report?a=b"))
        assert outcome.outputs["ask"] == {"status": 200}
        assert seen == [("DPoP", True), ("DPoP", True)], "the first without a nonce, the second with the service's"
        assert lease_of(oauth_bench, outcome).scope["proof"] == "dpop"


def test_prove_tells_what_a_token_is_not_good_for(oauth_bench: OAuth, tmp_path: Path) -> None:
    file = tmp_path / "proven.yaml"
    file.write_text(oauth_bench.text(f"issuer: basic, scope: [{READ}], resource: {MAIL!r}, ttl: 60s"))
    oauth_bench.bench.install(load_text(file.read_text(), filename=file.name, actions=catalog).workflow)
    environment = oauth_bench.bench.environment(
        ORCHESTRATOR_ISSUERS=str(oauth_bench.file), ORCHESTRATOR_POLICY="allow-all"
    )
    command = [*orchestrator(), "prove", str(file), "--json"]
    proven = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert proven.returncode == ExitCode.DONE, proven.stderr
    [grant] = [each for each in json.loads(proven.stdout)["grants"] if each["grant"] == "api"]
    assert {each["what"]: each["verdict"] for each in grant["tried"]} == {
        "live longer than its grant": "refused",
        "hold another scope than was declared": "refused",
        "serve as a token for another service": "refused",
    }


def test_a_secret_that_was_imported_signs_for_its_client_and_is_never_here(oauth_bench: OAuth) -> None:
    """`client_secret_jwt`: the issuer has the secret, Vault has it as an `hmac` key, and we have neither."""
    bench = oauth_bench.bench
    admin = VaultAdmin(bench.provisioned.admin_config(), bench.info.root_token)
    try:
        if admin.read("transit/keys/oauth-hs") is None:
            import_key(admin, "transit", "oauth-hs", material(SECRET, "hmac"), rotate=False)
    finally:
        admin.close()
    outcome = done(oauth_bench.run("issuer: shared, scope: [read], ttl: 60s"))
    assert lease_of(oauth_bench, outcome).state is LeaseState.REVOKED


def test_an_issuer_with_an_authority_of_its_own_is_trusted_where_that_is_declared(
    oauth_bench: OAuth, tmp_path: Path
) -> None:
    authority, stranger = Authority.make(tmp_path, "ours"), Authority.make(tmp_path, "stranger")
    presented = authority.server("127.0.0.1")

    def in_front(connection: socket.socket) -> None:
        with (
            encrypted(presented, connection) as secured,
            socket.create_connection(("127.0.0.1", oauth_bench.server.port)) as server,
        ):
            back = threading.Thread(target=pump, args=[server, secured], daemon=True)
            back.start()
            pump(secured, server)
            back.join(10)

    with listening(in_front) as port:
        at = f"https://127.0.0.1:{port}/token"
        endpoints = {"introspection_endpoint": f"{at}/introspection", "revocation_endpoint": f"{at}/revocation"}
        oauth_bench.declare("basic", discovery=None, token_endpoint=at, **endpoints)
        for ca in (None, str(stranger.file), "no-such-file.pem"):
            oauth_bench.declare("basic", ca=ca)
            outcome = oauth_bench.run(BASIC, timeout="3s")
            assert outcome.exit_code is not ExitCode.DONE
            assert lease_of(oauth_bench, outcome).state is LeaseState.FAILED
        (oauth_bench.file.parent / "ours.pem").write_bytes(authority.file.read_bytes())
        oauth_bench.declare("basic", ca="ours.pem")
        outcome = done(oauth_bench.run(BASIC))
        assert lease_of(oauth_bench, outcome).state is LeaseState.REVOKED


def test_an_issuer_that_is_slow_to_revoke_holds_up_no_database_login(oauth_bench: OAuth) -> None:
    """The login is gone while the issuer is still waited for."""
    oauth_bench.server.misbehave(Misbehaviour(Kind.LATE, Endpoint.REVOCATION, seconds=60))
    login = "db: { kind: database, connection: support, role: feedback-read, ttl: 60s }\n      api:"
    text = oauth_bench.text(BASIC).replace("api:", login, 1)
    bench, before = oauth_bench.bench, len(oauth_bench.server.requests())

    def asked_to_revoke() -> bool:
        return any(each["endpoint"] == "/token/revocation" for each in oauth_bench.server.requests()[before:])

    with ThreadPoolExecutor(1) as threads:
        run = threads.submit(bench.run, text, issuers=oauth_bench.issuers, grace=10.0)
        while not run.done() and not asked_to_revoke():
            time.sleep(0.05)
        while not run.done() and bench.logins_of_steps():
            time.sleep(0.05)
        assert not run.done()
        assert not any(isinstance(event, LeaseEnded) for event in bench.events)
        waited_for, outcome = time.monotonic(), done(run.result())
    assert time.monotonic() - waited_for > 2, "the login was not there until the issuer was given up"
    states = {each.grant: each.state for each in bench.history(outcome.run_id)}
    assert (states["db"], states["api"]) == (LeaseState.REVOKED, LeaseState.ENDED)
    assert outcome.unconfirmed == ()


def test_an_output_that_holds_the_token_is_refused(oauth_bench: OAuth) -> None:
    text = f"""
version: 1
name: oauth_reader
agent: reader
steps:
  ask:
    action: exec
    grants:
      api: {{ kind: oauth2, {BASIC} }}
    with: {{ command: [/bin/sh, -c, 'echo "it is $TOKEN"'], credentials: {{ env: {{ TOKEN: api.token }} }} }}
    outputs: [stdout]
    timeout: 20s
"""
    outcome = oauth_bench.bench.run(text, issuers=oauth_bench.issuers)
    assert outcome.exit_code is ExitCode.STEP_FAILED
    assert isinstance(outcome.errors["ask"], OutputRefused)
    assert lease_of(oauth_bench, outcome).state is LeaseState.REVOKED
    assert escaped_tokens(oauth_bench.server, [oauth_bench.bench.directory]) == []

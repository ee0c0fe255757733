"""Every way in which the runtime logs in, against the real server: it works, and what was obtained is given back."""

from __future__ import annotations

import asyncio
import json
import ssl
import subprocess
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import hvac.exceptions
import pytest
from bench import Bench, surroundings
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from fork_server import orchestrator
from joserfc import jwt
from joserfc.jwk import ECKey

from orchestrator.clock import SystemClock
from orchestrator.devstack.session import runtime_environment
from orchestrator.errors import ExitCode, UsageError
from orchestrator.secret import Secret
from orchestrator.vault.config import AppRoleAuth, JwtAuth, KubernetesAuth, TokenAuth, TokenFileAuth, VaultConfig
from orchestrator.vault.faults import VaultRefused
from orchestrator.vault.session import StepToken, VaultSession

POLICY = "orchestrator-runtime"
AUDIENCE, SUBJECT, ISSUER = "vault.test", "runner-7", "https://ci.test"
NAMESPACE, ACCOUNT, REVIEWER = "batch", "orchestrator", "reviewer-bearer"


@dataclass
class KubernetesApi:
    """The part of a Kubernetes API server that Vault uses: TokenReview (`authentication.k8s.io/v1`), over HTTPS."""

    key: ECKey
    certificate: str
    reviews: list[dict[str, Any]] = field(default_factory=list)
    address: str = ""

    def review(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Who the token belongs to, as the API server's authenticator would say."""
        self.reviews.append(wanted)
        answer = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview"}
        try:
            claims = jwt.decode(wanted["spec"]["token"], self.key, algorithms=["ES256"]).claims
        except Exception as error:  # noqa: BLE001 -- whatever is wrong with the token, it is not authenticated
            return {**answer, "status": {"authenticated": False, "error": type(error).__name__}}
        user = {"username": claims["sub"], "uid": "uid-1", "groups": ["system:serviceaccounts"]}
        return {**answer, "status": {"authenticated": True, "user": user, "audiences": claims["aud"]}}


@pytest.fixture
def key() -> ECKey:
    return ECKey.generate_key("P-256")


@pytest.fixture
def identity() -> Iterator[Path]:
    """A folder for tokens in files, as a platform would mount it; gone when the test is over."""
    with tempfile.TemporaryDirectory(prefix="identity-") as folder:
        yield Path(folder)


@pytest.fixture
def kubernetes(key: ECKey, identity: Path) -> Iterator[KubernetesApi]:
    """An API server on a free port. It wants the reviewer's bearer token, as a cluster would."""
    certificate = self_signed(identity / "server.pem")
    api = KubernetesApi(key, certificate)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(identity / "server.pem")

    class Answer(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            known = self.headers["Authorization"] == f"Bearer {REVIEWER}"
            right = self.path == "/apis/authentication.k8s.io/v1/tokenreviews"
            status = 201 if known and right else 401
            text = json.dumps(api.review(body) if status == 201 else {"kind": "Status", "code": 401}).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        server.daemon_threads = True
        server.socket = context.wrap_socket(server.socket, server_side=True)
        api.address = f"https://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield api
        server.shutdown()
        thread.join()


def self_signed(file: Path) -> str:
    """A certificate for 127.0.0.1, written with its key to a file; returns the certificate (PEM)."""
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "kubernetes.test")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(private, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
    private_pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file.write_bytes(private_pem + certificate)
    return certificate.decode()


@pytest.fixture
def jwt_role(bench: Bench, key: ECKey) -> Iterator[str]:
    """A role of `auth/jwt` bound to one issuer, audience and subject."""
    bench.vault.write_data("sys/auth/jwt", data={"type": "jwt"})
    config = {"jwt_validation_pubkeys": [key.as_pem(private=False).decode()], "bound_issuer": ISSUER}
    bench.vault.write_data("auth/jwt/config", data=config)
    role = {
        "role_type": "jwt",
        "user_claim": "sub",
        "bound_audiences": [AUDIENCE],
        "bound_subject": SUBJECT,
        "token_policies": [POLICY],
        "token_ttl": "1h",
    }
    bench.vault.write_data("auth/jwt/role/runner", data=role)
    yield "runner"
    bench.vault.delete("sys/auth/jwt")


@pytest.fixture
def kubernetes_role(bench: Bench, kubernetes: KubernetesApi) -> Iterator[str]:
    """A role of `auth/kubernetes` bound to one service account."""
    bench.vault.write_data("sys/auth/kubernetes", data={"type": "kubernetes"})
    config = {
        "kubernetes_host": kubernetes.address,
        "kubernetes_ca_cert": kubernetes.certificate,
        "token_reviewer_jwt": REVIEWER,
        "disable_local_ca_jwt": True,
    }
    bench.vault.write_data("auth/kubernetes/config", data=config)
    role = {
        "bound_service_account_names": [ACCOUNT],
        "bound_service_account_namespaces": [NAMESPACE],
        "audience": AUDIENCE,
        "token_policies": [POLICY],
        "token_ttl": "1h",
    }
    bench.vault.write_data("auth/kubernetes/role/runner", data=role)
    yield "runner"
    bench.vault.delete("sys/auth/kubernetes")


def workload_token(key: ECKey, file: Path, **changes: Any) -> Path:
    now = int(time.time())
    claims = {"iss": ISSUER, "aud": [AUDIENCE], "sub": SUBJECT, "iat": now, "exp": now + 600, **changes}
    file.write_text(jwt.encode({"alg": "ES256"}, claims, key) + "\n")
    return file


def service_account_token(key: ECKey, file: Path, account: str = ACCOUNT) -> Path:
    """As the API server projects it into a pod (Kubernetes manual, "Configure Service Accounts for Pods")."""
    return workload_token(
        key,
        file,
        iss="https://kubernetes.default.svc.cluster.local",
        sub=f"system:serviceaccount:{NAMESPACE}:{account}",
        **{"kubernetes.io": {"namespace": NAMESPACE, "serviceaccount": {"name": account, "uid": "uid-1"}}},
    )


def runtime_token(bench: Bench, **wish: Any) -> tuple[Secret, str]:
    """A token of the runtime's policy that somebody else made, and its accessor."""
    made = bench.vault.auth.token.create_orphan(policies=[POLICY], no_default_policy=True, **{"ttl": "1h", **wish})
    return Secret(made["auth"]["client_token"]), made["auth"]["accessor"]


@asynccontextmanager
async def session_of(config: VaultConfig) -> AsyncIterator[VaultSession]:
    session = VaultSession(config, clock=SystemClock(), remember=lambda secret: None)
    try:
        yield session
    finally:
        await session.aclose()


def soon() -> float:
    return time.monotonic() + 15


async def step_token(session: VaultSession, ttl: int = 60) -> StepToken:
    return await session.create_step_token(
        role="step.customer_feedback.read", display_name="logins", ttl=ttl, metadata={}, deadline=soon()
    )


async def own_accessor(session: VaultSession) -> str:
    """The accessor of the token that the session acts with now, by Vault's own answer."""
    body = await session.runtime_request("get", "auth/token/lookup-self", deadline=soon())
    return str(body["data"]["accessor"])


def is_alive(bench: Bench, accessor: str) -> bool:
    try:
        bench.vault.auth.token.lookup_accessor(accessor)
    except (hvac.exceptions.Forbidden, hvac.exceptions.InvalidRequest, hvac.exceptions.InvalidPath):
        return False
    return True


def use(bench: Bench, config: VaultConfig) -> str:
    """Log in, make a step token, revoke it, end the session. Returns the accessor of the session's own token."""

    async def go() -> str:
        async with session_of(config) as session:
            token = await step_token(session)
            assert is_alive(bench, token.accessor)
            own = await own_accessor(session)
            assert is_alive(bench, own)
            await session.revoke_accessor(token.accessor, deadline=soon())
            assert not is_alive(bench, token.accessor)
            assert is_alive(bench, own)
            return own

    return asyncio.run(go())


def config(bench: Bench, auth: Any) -> VaultConfig:
    return VaultConfig(bench.info.vault_address, auth)


def test_approle_logs_in_and_gives_its_token_back(bench: Bench) -> None:
    assert not is_alive(bench, use(bench, bench.provisioned.vault_config()))


def test_a_jwt_in_a_file_logs_in_and_the_token_is_given_back(
    bench: Bench, jwt_role: str, key: ECKey, identity: Path
) -> None:
    file = workload_token(key, identity / "jwt")
    assert not is_alive(bench, use(bench, config(bench, JwtAuth(jwt_role, file))))


def test_kubernetes_logs_in_by_a_token_review_and_the_token_is_given_back(
    bench: Bench, kubernetes_role: str, kubernetes: KubernetesApi, key: ECKey, identity: Path
) -> None:
    file = service_account_token(key, identity / "token")
    assert not is_alive(bench, use(bench, config(bench, KubernetesAuth(kubernetes_role, file))))
    assert [review["spec"]["token"] for review in kubernetes.reviews] == [file.read_text().strip()]


def test_a_token_that_was_given_is_not_revoked(bench: Bench) -> None:
    token, accessor = runtime_token(bench)
    assert use(bench, config(bench, TokenAuth(token))) == accessor
    assert is_alive(bench, accessor)
    bench.vault.auth.token.revoke_accessor(accessor)


def test_a_token_out_of_a_file_is_not_revoked(bench: Bench, identity: Path) -> None:
    token, accessor = runtime_token(bench)
    (identity / "sink").write_text(token.reveal() + "\n")
    assert use(bench, config(bench, TokenFileAuth(identity / "sink"))) == accessor
    assert is_alive(bench, accessor)
    bench.vault.auth.token.revoke_accessor(accessor)


def test_a_token_file_that_was_replaced_is_read_again_when_the_old_token_cannot_outlive_a_step(
    bench: Bench, identity: Path
) -> None:
    sink = identity / "sink"
    old, old_accessor = runtime_token(bench, ttl="30s", explicit_max_ttl="30s")
    new, new_accessor = runtime_token(bench)
    sink.write_text(old.reveal())

    async def go() -> None:
        async with session_of(config(bench, TokenFileAuth(sink))) as session:
            await step_token(session, ttl=5)
            sink.write_text(new.reveal())
            await step_token(session, ttl=5)
            assert await own_accessor(session) == old_accessor, "it still serves"
            await step_token(session, ttl=60)
            assert await own_accessor(session) == new_accessor

    asyncio.run(go())
    assert is_alive(bench, old_accessor)
    assert is_alive(bench, new_accessor)
    for accessor in (old_accessor, new_accessor):
        bench.vault.auth.token.revoke_accessor(accessor)


def test_a_token_that_cannot_outlive_the_step_is_refused_where_there_is_no_other(bench: Bench) -> None:
    token, accessor = runtime_token(bench, ttl="30s", explicit_max_ttl="30s")

    async def go() -> None:
        async with session_of(config(bench, TokenAuth(token))) as session:
            with pytest.raises(VaultRefused, match="expires before a step token of 60s") as refusal:
                await step_token(session, ttl=60)
            assert "token_ttl" in str(refusal.value.hint)

    asyncio.run(go())
    bench.vault.auth.token.revoke_accessor(accessor)


@pytest.fixture
def short_approle(bench: Bench) -> Iterator[AppRoleAuth]:
    """An AppRole whose tokens live for 30 seconds and not longer."""
    role = {"token_policies": [POLICY], "token_ttl": "30s", "token_explicit_max_ttl": "30s"}
    bench.vault.write_data("auth/approle/role/short-lived", data=role)
    role_id = bench.vault.read("auth/approle/role/short-lived/role-id")["data"]["role_id"]
    secret_id = bench.vault.write_data("auth/approle/role/short-lived/secret-id", data={})["data"]["secret_id"]
    yield AppRoleAuth(role_id, Secret(secret_id))
    bench.vault.delete("auth/approle/role/short-lived")


def lengthen(bench: Bench) -> None:
    """What the next login gets; the token that is there keeps its own maximum."""
    data = {"token_ttl": "1h", "token_explicit_max_ttl": "2h"}
    bench.vault.write_data("auth/approle/role/short-lived", data=data)


def test_all_tokens_of_a_session_that_logged_in_twice_are_given_back(bench: Bench, short_approle: AppRoleAuth) -> None:
    async def go() -> tuple[str, str]:
        async with session_of(config(bench, short_approle)) as session:
            held = await step_token(session, ttl=5)
            first = await own_accessor(session)
            lengthen(bench)
            await step_token(session, ttl=60)
            second = await own_accessor(session)
            assert is_alive(bench, held.accessor), "a child of the first token is not cut short by the second login"
            return first, second

    first, second = asyncio.run(go())
    assert first != second
    assert not is_alive(bench, first)
    assert not is_alive(bench, second)


def test_a_token_that_is_already_gone_does_not_keep_the_others_from_being_given_back(
    bench: Bench, short_approle: AppRoleAuth
) -> None:
    async def go() -> str:
        async with session_of(config(bench, short_approle)) as session:
            await step_token(session, ttl=5)
            first = await own_accessor(session)
            lengthen(bench)
            await step_token(session, ttl=60)
            bench.vault.auth.token.revoke_accessor(first)  # as if it had expired in the meantime
            return await own_accessor(session)

    assert not is_alive(bench, asyncio.run(go()))


@pytest.mark.parametrize(
    ("claims", "reason"),
    [
        ({"aud": ["somebody-else"]}, "audience"),
        ({"sub": "another-runner"}, "sub"),
        ({"iss": "https://elsewhere.test"}, "iss"),
        ({"exp": 1, "iat": 0}, "expired"),
    ],
)
def test_a_jwt_that_the_role_does_not_accept_is_a_refusal_that_says_why(
    bench: Bench, jwt_role: str, key: ECKey, identity: Path, claims: dict[str, Any], reason: str
) -> None:
    file = workload_token(key, identity / "jwt", **claims)
    with pytest.raises(VaultRefused) as refusal:
        use(bench, config(bench, JwtAuth(jwt_role, file)))
    assert_says_why(refusal.value, reason, "auth/jwt/login")
    assert file.read_text().strip() not in str(refusal.value)


def test_a_jwt_signed_by_somebody_else_is_a_refusal(bench: Bench, jwt_role: str, identity: Path) -> None:
    file = workload_token(ECKey.generate_key("P-256"), identity / "jwt")
    with pytest.raises(VaultRefused) as refusal:
        use(bench, config(bench, JwtAuth(jwt_role, file)))
    assert_says_why(refusal.value, "signature", "auth/jwt/login")


def test_a_service_account_that_the_role_does_not_name_is_a_refusal(
    bench: Bench, kubernetes_role: str, key: ECKey, identity: Path
) -> None:
    file = service_account_token(key, identity / "token", account="default")
    with pytest.raises(VaultRefused) as refusal:
        use(bench, config(bench, KubernetesAuth(kubernetes_role, file)))
    assert_says_why(refusal.value, "service account", "auth/kubernetes/login")


def test_a_token_that_the_cluster_does_not_know_is_a_refusal(
    bench: Bench, kubernetes_role: str, identity: Path
) -> None:
    file = service_account_token(ECKey.generate_key("P-256"), identity / "token")
    with pytest.raises(VaultRefused) as refusal:
        use(bench, config(bench, KubernetesAuth(kubernetes_role, file)))
    assert_says_why(refusal.value, "", "auth/kubernetes/login")


def test_a_wrong_secret_id_is_a_refusal(bench: Bench) -> None:
    auth = AppRoleAuth(bench.provisioned.role_id, Secret("not-the-secret-id"))
    with pytest.raises(VaultRefused) as refusal:
        use(bench, config(bench, auth))
    assert_says_why(refusal.value, "", "auth/approle/login")
    assert "not-the-secret-id" not in str(refusal.value)


def test_a_token_that_vault_does_not_know_is_a_refusal(bench: Bench) -> None:
    with pytest.raises(VaultRefused) as refusal:
        use(bench, config(bench, TokenAuth(Secret("unknown-token"))))
    assert_says_why(refusal.value, "permission denied", "auth/token/lookup-self")
    assert "unknown-token" not in str(refusal.value)


def assert_says_why(refusal: VaultRefused, reason: str, path: str) -> None:
    assert refusal.path == path
    assert reason in refusal.message
    assert refusal.exit_code is ExitCode.REFUSED
    assert refusal.hint is not None
    assert "log" in refusal.hint, "the hint is about logging in, not about the policy of a step"


def test_a_token_in_a_file_that_is_not_there_is_a_usage_error_that_names_it(bench: Bench, identity: Path) -> None:
    (identity / "empty").touch()
    for auth in (
        TokenFileAuth(identity / "missing"),
        JwtAuth("runner", identity / "missing"),
        TokenFileAuth(identity / "empty"),
    ):
        with pytest.raises(UsageError, match=str(identity)):
            use(bench, config(bench, auth))


STEP = """
version: 1
name: logins
agent: tester
steps:
  work:
    action: postgres.query
    grants:
      db: { kind: database, connection: support, role: feedback-read }
    with: { sql: SELECT 1 AS one }
    timeout: 20s
"""


def command(bench: Bench, **variables: str) -> subprocess.CompletedProcess[str]:
    """`orchestrator run` of one step with a database grant, in a process of its own."""
    from orchestrator.actions.catalog import catalog
    from orchestrator.workflow.loader import load_text

    bench.install(load_text(STEP, filename="logins.yaml", actions=catalog).workflow)
    file = bench.directory / "logins.yaml"
    file.write_text(STEP)
    runtime = runtime_environment(bench.provisioned, bench.directory).items()
    environment = {
        **surroundings(),
        **{name: value for name, value in runtime if not name.startswith("ORCHESTRATOR_AUTH_")},
        "ORCHESTRATOR_POLICY": "allow-all",
        **variables,
    }
    words = [*orchestrator(), "run", str(file)]
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("method", ["approle", "token", "token-file", "jwt", "kubernetes"])
def test_the_command_line_logs_in_by_every_method_that_the_settings_know(
    bench: Bench, jwt_role: str, kubernetes_role: str, key: ECKey, identity: Path, method: str
) -> None:
    token, accessor = runtime_token(bench)
    (identity / "secret-id").write_text(bench.provisioned.secret_id.reveal())
    (identity / "sink").write_text(token.reveal())
    workload_token(key, identity / "jwt")
    service_account_token(key, identity / "token")
    ways = {
        "approle": {"ROLE_ID": bench.provisioned.role_id, "SECRET_ID_FILE": str(identity / "secret-id")},
        "token": {"TOKEN": token.reveal()},
        "token-file": {"TOKEN_FILE": str(identity / "sink")},
        "jwt": {"ROLE": jwt_role, "JWT_FILE": str(identity / "jwt")},
        "kubernetes": {"ROLE": kubernetes_role, "JWT_FILE": str(identity / "token")},
    }
    variables = {f"ORCHESTRATOR_AUTH_{name}": value for name, value in {"METHOD": method, **ways[method]}.items()}
    ended = command(bench, **variables)
    assert ended.returncode == ExitCode.DONE, ended.stderr
    assert is_alive(bench, accessor)
    bench.vault.auth.token.revoke_accessor(accessor)


def test_the_command_line_answers_3_to_a_jwt_for_another_audience(
    bench: Bench, jwt_role: str, key: ECKey, identity: Path
) -> None:
    file = workload_token(key, identity / "jwt", aud=["somebody-else"])
    ended = command(
        bench,
        ORCHESTRATOR_AUTH_METHOD="jwt",
        ORCHESTRATOR_AUTH_ROLE=jwt_role,
        ORCHESTRATOR_AUTH_JWT_FILE=str(file),
    )
    assert ended.returncode == ExitCode.REFUSED
    assert "auth/jwt/login" in ended.stderr + ended.stdout
    assert "audience" in ended.stderr + ended.stdout


def test_every_method_of_the_settings_is_tested_here() -> None:
    from typing import get_args

    from orchestrator.settings import Method

    assert set(get_args(Method)) == {"approle", "token", "token-file", "jwt", "kubernetes"}

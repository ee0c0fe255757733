"""`orchestrator issuers`: who issues beside Vault, and the public keys by which it knows us."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import fork_server
from oauth import OAuth, public_jwk

from orchestrator.errors import ExitCode


def orchestrator(oauth: OAuth, *words: str, **more: str) -> tuple[int, str, str]:

    done = subprocess.run(
        [*fork_server.orchestrator(), "issuers", *words],
        env=oauth.bench.environment(**more),
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout, done.stderr


def told(oauth: OAuth, *words: str) -> dict[str, Any]:
    code, out, error = orchestrator(oauth, "check", str(oauth.file), "--json", *words)
    assert code == ExitCode.DONE, error
    found: dict[str, Any] = json.loads(out)["issuers"]
    return found


def test_a_declaration_is_told_with_what_an_end_means(oauth_bench: OAuth) -> None:
    oauth_bench.declare("plain", **oauth_bench.declared["basic"])
    oauth_bench.declare("plain", discovery=None, token_endpoint=f"{oauth_bench.server.issuer}/token")
    found = told(oauth_bench, "--ask")
    assert found["basic"]["introspection endpoint"] == oauth_bench.server.introspection_endpoint
    assert found["basic"]["ends"].startswith("revoked, where the issuer then calls it inactive")
    assert found["plain"]["ends"] == "ended, valid until it expires: there is no revocation endpoint"
    assert found["refresher"]["ends"].startswith("ended")
    assert found["signed-es"]["signed"] == ["ES256 by transit/oauth-es"]
    assert found["bearer"]["subjects"]
    assert told(oauth_bench)["basic"]["ends"] == "as its metadata say; ask with --ask"
    code, out, _ = orchestrator(oauth_bench, "check", str(oauth_bench.file))
    assert (code, "flow: client_credentials" in out) == (ExitCode.DONE, True)


def test_a_server_that_does_not_answer_is_told_by_the_exit_code(oauth_bench: OAuth) -> None:
    oauth_bench.declare("basic", issuer="http://127.0.0.1:9")
    code, _, error = orchestrator(oauth_bench, "check", str(oauth_bench.file), "--ask")
    assert code == ExitCode.UNREACHABLE
    assert "its metadata" in error


def test_public_keys_are_printed_as_the_issuer_is_told_them(oauth_bench: OAuth) -> None:
    admin = {
        "ORCHESTRATOR_AUTH_METHOD": "token",
        "VAULT_TOKEN": oauth_bench.bench.info.root_token.reveal(),
    }
    for name in ("es", "rs", "ed"):
        code, out, error = orchestrator(oauth_bench, "keys", str(oauth_bench.file), f"signed-{name}", **admin)
        assert code == ExitCode.DONE, error
        [key] = json.loads(out)["keys"]
        expected = public_jwk(oauth_bench.bench.vault, f"oauth-{name}")
        assert {part: key[part] for part in expected} == expected
        assert "d" not in key
    code, _, error = orchestrator(oauth_bench, "keys", str(oauth_bench.file), "basic", **admin)
    assert code == ExitCode.INVALID
    assert "without a key of ours" in error

"""Access tokens of a real authorization server: issued, narrowed, used, refused, ended, and what is on record."""

from __future__ import annotations

import pytest
from oauth import KEYS, OAuth

from orchestrator.errors import ExitCode
from orchestrator.ledger.lease import LeaseState


@pytest.mark.parametrize("client", ["basic", "post", *(f"signed-{name}" for name in KEYS)])
def test_a_step_has_a_token_that_its_issuer_calls_inactive_afterwards(oauth_bench: OAuth, client: str) -> None:
    outcome = oauth_bench.run(f"issuer: {client}, scope: [read], ttl: 60s")
    assert outcome.exit_code is ExitCode.DONE, outcome
    lease, token = oauth_bench.bench.history(outcome.run_id)[::-1]
    assert (lease.grant_kind, lease.state) == ("oauth2", LeaseState.REVOKED)
    assert oauth_bench.server.tokens() == []

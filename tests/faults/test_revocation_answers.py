"""Only Vault's own word says that something is taken back, whatever else answers at its address.

The answers here are given by something between the runner and Vault, which never hears of the request. So the truth
is what the database and Vault still have.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import hvac.exceptions
import pytest
from bench import Bench
from proxy import Answer, Proxy

from orchestrator.clock import SystemClock
from orchestrator.devstack.openbao import OpenBao
from orchestrator.devstack.stack import DevStack
from orchestrator.vault.config import TokenAuth, VaultConfig
from orchestrator.vault.faults import Outcome, VaultUnavailable
from orchestrator.vault.session import VaultSession

NOT_VAULTS_WORD = [
    pytest.param(Answer(200, b"{}"), id="200-with-an-empty-object"),
    pytest.param(Answer(200, b""), id="200-with-nothing"),
    pytest.param(Answer(200, b'{"data": null, "warnings": null}'), id="200-with-an-envelope"),
    pytest.param(Answer(200, b'{"warnings": ["it will be tried later"]}'), id="200-with-another-warning"),
    pytest.param(Answer(202, b""), id="202-with-nothing"),
    pytest.param(Answer(202, b"{}"), id="202-with-an-empty-object"),
    pytest.param(Answer(204, b"{}"), id="204-with-a-body"),
]


def soon() -> float:
    return time.monotonic() + 10


@dataclass
class Between:
    """Vault behind a proxy, and what was issued before the proxy lied."""

    bench: Bench
    proxy: Proxy

    @asynccontextmanager
    async def session(self) -> AsyncIterator[VaultSession]:
        config = replace(self.bench.provisioned.vault_config(), address=self.proxy.address)
        session = VaultSession(config, clock=SystemClock(), remember=lambda secret: None)
        try:
            await session.login(deadline=soon())
            yield session
        finally:
            await session.aclose()

    def asked(self, part: str) -> int:
        return len([line for line in self.proxy.requests if part in line])

    def token_lives(self, accessor: str) -> bool:
        try:
            self.bench.vault.auth.token.lookup_accessor(accessor)
        except hvac.exceptions.VaultError:
            return False
        return True


@pytest.fixture
def between(bench: Bench) -> Iterator[Between]:
    at = urlsplit(bench.info.vault_address)
    assert at.hostname
    assert at.port
    with Proxy((at.hostname, at.port), http=True) as proxy:
        yield Between(bench, proxy)


def about(part: str) -> Callable[[str], bool]:
    return lambda line: part in line


LEASES, ACCESSOR, SELF = "/sys/leases/revoke", "/auth/token/revoke-accessor", "/auth/token/revoke-self"


@pytest.mark.parametrize("answer", NOT_VAULTS_WORD)
async def test_a_lease_is_revoked_when_vault_says_so_and_not_before(between: Between, answer: Answer) -> None:
    lease = between.bench.vault.read("database/creds/feedback-read")["lease_id"]
    between.proxy.fail(answer, when=about(LEASES))
    async with between.session() as session:
        await session.revoke_lease(lease, deadline=soon())
    assert between.asked(LEASES) == 2
    between.bench.assert_nothing_left()


@pytest.mark.parametrize("answer", NOT_VAULTS_WORD)
async def test_a_token_is_revoked_when_vault_says_so_and_not_before(between: Between, answer: Answer) -> None:
    accessor = between.bench.vault.auth.token.create(ttl="60s")["auth"]["accessor"]
    between.proxy.fail(answer, when=about(ACCESSOR))
    async with between.session() as session:
        await session.revoke_accessor(accessor, deadline=soon())
    assert between.asked(ACCESSOR) == 2
    assert not between.token_lives(accessor)


@pytest.mark.parametrize("answer", NOT_VAULTS_WORD)
async def test_the_runtimes_own_token_is_given_back_when_vault_says_so(between: Between, answer: Answer) -> None:
    between.proxy.fail(answer, when=about(SELF))
    async with between.session() as session:
        assert await session.aclose(deadline=soon())
    assert between.asked(SELF) == 2


async def test_a_lease_of_which_vault_never_speaks_is_of_unknown_outcome(between: Between) -> None:
    made = between.bench.vault.read("database/creds/feedback-read")
    lease, login = made["lease_id"], made["data"]["username"]
    between.proxy.fail(Answer(200, b"{}"), times=1000, when=about(LEASES))
    async with between.session() as session:
        with pytest.raises(VaultUnavailable, match="the answer 200 to sys/leases/revoke does not say") as error:
            await session.revoke_lease(lease, deadline=0.0)
        assert error.value.outcome is Outcome.UNKNOWN
        assert between.bench.logins() == [login]
        between.proxy.heal()
        await session.revoke_lease(lease, deadline=soon())


async def test_what_is_gone_already_counts_as_revoked(between: Between) -> None:
    vault = between.bench.vault
    lease = vault.read("database/creds/feedback-read")["lease_id"]
    accessor = vault.auth.token.create(ttl="60s")["auth"]["accessor"]
    async with between.session() as session:
        for _ in range(2):
            await session.revoke_lease(lease, deadline=soon())
            await session.revoke_accessor(accessor, deadline=soon())
        await session.revoke_lease("database/creds/feedback-read/never", deadline=soon())
        await session.revoke_accessor("never", deadline=soon())
    assert (between.asked(LEASES), between.asked(ACCESSOR)) == (3, 3), "nothing had to be asked for again"
    between.bench.assert_nothing_left()


class _OpenedUp(DevStack.VAULT):  # type: ignore[misc,name-defined]
    """A server whose storage an administrator may write into."""

    def configuration(self) -> str:
        return f"{super().configuration()}raw_storage_endpoint = true\n"


def _delete(vault: OpenBao, entry: str) -> None:
    vault.request("DELETE", f"sys/raw/{entry}")


def _mark_as_being_revoked(vault: OpenBao, entry: str) -> None:
    kept = json.loads(vault.request("GET", f"sys/raw/{entry}")["data"]["value"])
    vault.request("PUT", f"sys/raw/{entry}", {"value": json.dumps({**kept, "num_uses": -1})})


@pytest.mark.parametrize("left_behind_by", [_delete, _mark_as_being_revoked])
async def test_a_token_that_can_no_longer_be_used_counts_as_revoked_though_its_accessor_is_known(
    tmp_path: Path, left_behind_by: Callable[[OpenBao, str], None]
) -> None:
    """What a server leaves that is asked at the same moment to revoke a token and its parent, now and then."""
    with _OpenedUp(tmp_path / "vault") as vault:
        here = "sys/token/id"
        before = vault.request("LIST", f"sys/raw/{here}")["data"]["keys"]
        token = vault.request("POST", "auth/token/create", {"ttl": "60s"})["auth"]
        (entry,) = set(vault.request("LIST", f"sys/raw/{here}")["data"]["keys"]) - set(before)
        left_behind_by(vault, f"{here}/{entry}")
        with pytest.raises(httpx.HTTPStatusError, match="400"):
            vault.request("POST", "auth/token/revoke-accessor", {"accessor": token["accessor"]})
        used = httpx.get(f"{vault.address}/v1/auth/token/lookup-self", headers={"X-Vault-Token": token["client_token"]})
        assert used.status_code == 403
        config = VaultConfig(vault.address, TokenAuth(vault.root_token))
        session = VaultSession(config, clock=SystemClock(), remember=lambda secret: None)
        try:
            await session.revoke_accessor(token["accessor"], deadline=soon())
        finally:
            await session.aclose()

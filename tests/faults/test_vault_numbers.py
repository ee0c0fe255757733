"""Answers of Vault's whose numbers cannot be meant: they are not understood, and nothing is reckoned with them."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import pytest
from bench import Bench
from proxy import Answer, GarbledAnswer, Proxy

from orchestrator.clock import SystemClock
from orchestrator.vault.config import TokenAuth
from orchestrator.vault.faults import Outcome, VaultUnavailable
from orchestrator.vault.session import VaultSession

NO_SECONDS = [-1, True, 1.5, "60", None, 10**30]


def soon() -> float:
    return time.monotonic() + 10


@pytest.fixture
def proxy(bench: Bench) -> Iterator[Proxy]:
    at = urlsplit(bench.info.vault_address)
    assert at.hostname
    assert at.port
    with Proxy((at.hostname, at.port), http=True) as proxy:
        yield proxy


@asynccontextmanager
async def session_of(bench: Bench, proxy: Proxy, **changes: Any) -> AsyncIterator[VaultSession]:
    config = replace(bench.provisioned.vault_config(), address=proxy.address, **changes)
    session = VaultSession(config, clock=SystemClock(), remember=lambda secret: None)
    try:
        yield session
    finally:
        await session.aclose()


def says(**parts: Any) -> GarbledAnswer:
    return GarbledAnswer(json.dumps(parts).encode())


@pytest.mark.parametrize("number", NO_SECONDS, ids=str)
async def test_a_renewal_for_no_time_is_not_understood(bench: Bench, proxy: Proxy, number: Any) -> None:
    lease = bench.vault.read("database/creds/feedback-read")["lease_id"]
    async with session_of(bench, proxy) as session:
        proxy.fail(says(lease_id=lease, lease_duration=number), when=lambda line: "/sys/leases/renew" in line)
        with pytest.raises(VaultUnavailable, match="cannot be understood") as error:
            await session.renew_lease(lease, increment=60, deadline=soon())
        assert error.value.outcome is Outcome.UNKNOWN
        await session.revoke_lease(lease, deadline=soon())


@pytest.mark.parametrize("number", NO_SECONDS, ids=str)
async def test_a_login_for_no_time_is_not_understood(bench: Bench, proxy: Proxy, number: Any) -> None:
    auth = {"client_token": "none", "accessor": "none", "renewable": True, "lease_duration": number}
    proxy.fail(says(auth=auth), when=lambda line: "/approle/login" in line)
    async with session_of(bench, proxy) as session:
        with pytest.raises(VaultUnavailable, match="cannot be understood"):
            await session.login(deadline=soon())


@pytest.mark.parametrize("number", NO_SECONDS, ids=str)
async def test_a_token_that_lives_for_no_time_is_not_understood(bench: Bench, proxy: Proxy, number: Any) -> None:
    proxy.fail(says(data={"ttl": number, "renewable": False}), when=lambda line: "/lookup-self" in line)
    async with session_of(bench, proxy, auth=TokenAuth(bench.info.root_token)) as session:
        with pytest.raises(VaultUnavailable, match="cannot be understood"):
            await session.login(deadline=soon())


@pytest.mark.parametrize("leases", [7, ["x"], [{"error": "x"}], [{"lease_id": 7}]], ids=str)
async def test_a_list_of_something_else_is_not_understood(bench: Bench, proxy: Proxy, leases: Any) -> None:
    async with session_of(bench, proxy) as session:
        proxy.fail(says(data={"leases": leases}), when=lambda line: "/sys/leases?type=irrevocable" in line)
        with pytest.raises(VaultUnavailable, match="cannot be understood"):
            await session.irrevocable_leases(deadline=soon())


@pytest.mark.parametrize("wait", ["1795000000", "9" * 400, "inf"])
async def test_a_vault_that_wants_to_be_left_alone_for_ever_is_given_up_in_time(
    bench: Bench, proxy: Proxy, wait: str
) -> None:
    proxy.fail(Answer(429, headers={"Retry-After": wait}), when=lambda line: "/approle/login" in line)
    async with session_of(bench, proxy) as session:
        with pytest.raises(VaultUnavailable, match="429") as error:
            await session.login(deadline=soon())
        assert error.value.retry_after == 60.0
        await session.login(deadline=soon())


@pytest.mark.parametrize("wait", ["nan", "-5", "soon", "0"])
async def test_a_vault_that_names_no_time_is_asked_again(bench: Bench, proxy: Proxy, wait: str) -> None:
    proxy.fail(Answer(429, headers={"Retry-After": wait}), when=lambda line: "/approle/login" in line)
    async with session_of(bench, proxy) as session:
        await session.login(deadline=soon())
    assert proxy.unused == 0

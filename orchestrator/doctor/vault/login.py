"""Logging in to Vault as the settings say, what that login may, and what provisioning has installed for it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

from orchestrator.doctor.findings import Finding, fault, fault_of, fine, not_seen, warning
from orchestrator.doctor.subject import Subject
from orchestrator.doctor.vault.installed import installed
from orchestrator.doctor.vault.rights import AREA as RIGHTS
from orchestrator.doctor.vault.rights import SIGNING, TOO_MUCH, too_much, unsigned
from orchestrator.errors import ExitCode, OrchestratorError
from orchestrator.vault.config import TokenAuth, TokenFileAuth, VaultConfig
from orchestrator.vault.faults import VaultRefused
from orchestrator.vault.fields import section
from orchestrator.vault.session import VaultSession

AREA = "login"

_SHORT = 300
"""Seconds of life of a token that cannot be obtained again: with less a run may well end of it."""


async def login(subject: Subject, config: VaultConfig) -> list[Finding]:
    """One login, which is given back at the end."""
    async with _session(subject, config) as session:
        try:
            await session.login(deadline=subject.clock.monotonic() + subject.seconds)
            own = await session.runtime_request("get", "auth/token/lookup-self", deadline=_deadline(subject))
            data = section(own, "data", "auth/token/lookup-self")
        except OrchestratorError as error:
            return [_refused(config, error)]
        policies = [str(each) for each in data.get("policies") or () if each != "default"]
        found = [*_whence(subject, config, int(data.get("ttl") or 0))]
        found += await _rights(session, subject, policies)
        return [*found, *await installed(session, subject)]


@asynccontextmanager
async def _session(subject: Subject, config: VaultConfig) -> AsyncIterator[VaultSession]:
    quick = replace(config, connect_timeout=subject.seconds, read_timeout=subject.seconds, connections=4)
    session = VaultSession(quick, clock=subject.clock, remember=subject.remember)
    try:
        yield session
    finally:
        await session.aclose(deadline=_deadline(subject))


def _deadline(subject: Subject) -> float:
    return subject.clock.monotonic() + subject.seconds


def _refused(config: VaultConfig, error: OrchestratorError) -> Finding:
    given = isinstance(config.auth, TokenAuth | TokenFileAuth)
    if given and isinstance(error, VaultRefused) and error.status == 403:
        return fault(
            AREA,
            "Vault does not know the token: it has expired, was revoked, or is of another Vault or namespace",
            "get another one, or log in by a role (ORCHESTRATOR_AUTH_ROLE_ID)",
            ExitCode.REFUSED,
        )
    return fault_of(AREA, error)


def _whence(subject: Subject, config: VaultConfig, ttl: int) -> Sequence[Finding]:
    """By what the process logs in, and whether that lasts."""
    if isinstance(config.auth, TokenFileAuth) and config.auth.path == subject.home_token:
        return [
            warning(
                AREA,
                f"Vault lets us in by {config.auth.path}, the token that a person has got by `vault login`",
                "let the orchestrator have a login of its own (ORCHESTRATOR_AUTH_ROLE_ID)",
            )
        ]
    if isinstance(config.auth, TokenAuth) and 0 < ttl < _SHORT:
        return [
            warning(
                AREA,
                f"Vault lets us in by a token that ends in {ttl} s and cannot be obtained again",
                "log in by a role (ORCHESTRATOR_AUTH_ROLE_ID), or name a token file that somebody keeps fresh",
            )
        ]
    way = type(config.auth).__name__.removesuffix("Auth")
    return [fine(AREA, f"Vault lets us in by {_WAYS[way]}")]


_WAYS = {
    "AppRole": "AppRole",
    "Token": "a token",
    "TokenFile": "a token in a file",
    "Kubernetes": "the pod's account",
    "Jwt": "a workload identity token",
}


async def _rights(session: VaultSession, subject: Subject, policies: Sequence[str]) -> list[Finding]:
    try:
        answer = await session.runtime_request(
            "post", "sys/capabilities-self", deadline=_deadline(subject), payload={"paths": [*TOO_MUCH, SIGNING]}
        )
    except OrchestratorError as error:
        return [
            not_seen(
                RIGHTS,
                f"what the login may cannot be seen: {error.message}",
                "install the runtime's policy of this version: `orchestrator provision apply`",
            )
        ]
    capabilities = section(answer, "data", "sys/capabilities-self")
    return [*too_much(capabilities, policies), *unsigned(capabilities)]

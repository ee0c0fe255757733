"""Vault: whether it answers, is the one to ask, is open, and what time it is there."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from orchestrator.clock import Clock
from orchestrator.doctor.findings import Finding, fault, fault_of, fine, warning
from orchestrator.errors import ExitCode, OrchestratorError
from orchestrator.vault.config import VaultConfig
from orchestrator.vault.time import VaultTime
from orchestrator.vault.transport import Transport

AREA = "vault"
CLOCK = "clock"

_HEALTH = "sys/health?standbyok=true&perfstandbyok=true&sealedcode=200&uninitcode=200"
"""Answers 200 whatever state it is in, and says which (Vault API, `/sys/health`)."""

_SEEN = 5.0
"""Seconds between two clocks that are nothing to speak of: the header has whole seconds, and the way takes time."""

_TOO_FAR = 60.0
"""Seconds from which on tokens and signatures of one clock are refused by the other."""


async def vault(config: VaultConfig, clock: Clock, seconds: float) -> list[Finding]:
    """What Vault says of itself, without any login."""
    return await asyncio.to_thread(_look, config, clock, seconds)


def _look(config: VaultConfig, clock: Clock, seconds: float) -> list[Finding]:
    heard = VaultTime(clock)
    # Where namespaces are, the one of the settings does not answer for the server's health.
    transport = Transport(
        replace(config, namespace=None, connect_timeout=seconds, read_timeout=seconds), hear_date=heard.hear
    )
    try:
        health = transport.request("get", _HEALTH, token=None)
    except OrchestratorError as error:
        return [fault_of(AREA, error)]
    finally:
        transport.close()
    return [*_state(config, health), *_clocks(heard.now(), clock.now())]


def _state(config: VaultConfig, health: Mapping[str, Any]) -> Iterator[Finding]:
    """Of what a server says of its health."""
    there = f"Vault {health.get('version', 'of no version')} at {config.address}"
    if health.get("initialized") is not True:
        yield fault(AREA, f"{there} is not initialised, or is no Vault", "is VAULT_ADDR right?", ExitCode.UNREACHABLE)
    elif health.get("sealed") is not False:
        yield fault(AREA, f"{there} is sealed", "unseal it, then look again", ExitCode.UNREACHABLE)
    elif health.get("standby") is True:
        yield warning(
            AREA,
            f"{there} answers, and is a standby",
            "it passes requests on, or refuses them: name the address of the active server, or of a load balancer",
        )
    else:
        yield fine(AREA, f"{there} answers, and is open")


def _clocks(theirs: datetime | None, ours: datetime) -> Iterator[Finding]:
    """How far two clocks are apart."""
    if theirs is None:
        yield warning(CLOCK, "Vault does not say what time it is", "what answers at VAULT_ADDR sends no `Date`")
        return
    apart = (theirs - ours).total_seconds()
    if abs(apart) <= _SEEN:
        yield fine(CLOCK, "this machine's and Vault's agree")
        return
    told = f"Vault's clock is {abs(apart):.0f} s {'ahead of' if apart > 0 else 'behind'} this machine's"
    advice = "let both keep their time by NTP: credentials end by Vault's clock, signatures are checked by others'"
    yield fault(CLOCK, told, advice) if abs(apart) > _TOO_FAR else warning(CLOCK, told, advice)

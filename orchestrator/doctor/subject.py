"""What is looked at: everything that the settings say, as data."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.actions.confinement import Confinement
from orchestrator.clock import Clock, SystemClock
from orchestrator.errors import OrchestratorError
from orchestrator.policy.types import PolicyEngine
from orchestrator.secret import Secret
from orchestrator.vault.config import VaultConfig
from orchestrator.workflow.loader import LoadedWorkflow


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """An installation. `vault` is an error where the settings do not say how to log in.

    `policy` opens the policy engine and may raise UsageError; it is called in the event loop's thread. `confirms` says
    where a login is to be had for each connection; `seconds` is how long one look may take.
    """

    vault: VaultConfig | OrchestratorError
    policy: Callable[[], PolicyEngine]
    ledger: str
    remember: Callable[[Secret], None]
    endpoints: Mapping[str, str] = field(default_factory=dict)
    primaries: Mapping[str, str] = field(default_factory=dict)
    destinations: Collection[str] = ()
    """Whom the settings know how to tell something."""
    workflows: Sequence[LoadedWorkflow] = ()
    queue: bool = False
    confinement: Confinement = Confinement.BEST
    home_token: Path | None = None
    """The file that `vault login` writes, where it is there."""
    traces: bool = False
    """Whether the environment asks for OpenTelemetry."""
    clock: Clock = field(default_factory=SystemClock)
    seconds: float = 5.0

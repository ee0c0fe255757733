"""Whether the scheduler can do its work now: the ledger can be written and Vault lets it in."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping

from orchestrator.errors import OrchestratorError, Refused
from orchestrator.ledger.coordination.schedules import ScheduleStates
from orchestrator.policy.types import PolicyEngine
from orchestrator.policy.watched import WatchedPolicies
from orchestrator.runs.types import Services
from orchestrator.telemetry.metrics import Metrics

log = logging.getLogger(__name__)

CHECK_SECONDS = 5.0
"""How long a check of Vault or of the ledger may take."""
FRESH_SECONDS = 5.0
"""How long an answer is given again: whoever asks often does not reach Vault more often."""
STALLED_SECONDS = 30.0
"""After this long without a turn of the loop the process is not healthy."""


def policy_state(engine: PolicyEngine) -> str:
    """`ok`, or `stale` while the policies have changed and cannot be used.

    A service that decides is not asked for it: whether it answers shows with each step, and a probe every few seconds
    from every worker would be most of its work.
    """
    return "stale" if isinstance(engine, WatchedPolicies) and engine.trouble else "ok"


class Readiness:
    """Belongs to one event loop."""

    def __init__(self, services: Services, store: ScheduleStates, metrics: Metrics) -> None:
        self._services = services
        self._store = store
        self._metrics = metrics
        self._lock = asyncio.Lock()
        self._checked: tuple[float, Mapping[str, str]] | None = None

    async def check(self) -> Mapping[str, str]:
        """`ledger` and `vault`, each `ok`, `unreachable` or `refused`."""
        async with self._lock:
            now = self._services.clock.monotonic()
            if self._checked is None or now - self._checked[0] >= FRESH_SECONDS:
                ledger, vault = await asyncio.gather(
                    self._asked("ledger", lambda: asyncio.to_thread(self._store.probe)),
                    self._asked("vault", lambda: self._services.broker.vault.login(deadline=now + CHECK_SECONDS)),
                )
                self._checked = (now, {"ledger": ledger, "vault": vault})
            return self._checked[1]

    async def _asked(self, service: str, question: Callable[[], Awaitable[None]]) -> str:
        try:
            async with asyncio.timeout(CHECK_SECONDS + 1):
                await question()
        except TimeoutError:
            answer, why = "unreachable", f"no answer within {CHECK_SECONDS + 1:.0f}s"
        except Refused as error:
            answer, why = "refused", error.message
        except OrchestratorError as error:
            answer, why = "unreachable", error.message
        else:
            return "ok"
        self._metrics.unreachable(service)
        log.warning("not ready: %s: %s", service, why)
        return answer

"""Whether spans of the runs are sent to an OpenTelemetry collector: the standard variables say so."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestrator.telemetry.observed_ledger import Observer

log = logging.getLogger(__name__)

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_PROTOCOL = "http/protobuf"


@contextmanager
def traced() -> Iterator[Observer | None]:
    """An observer whose spans are sent to the collector that the environment names, or None.

    That they cannot be sent is a warning, and never an error.
    """
    with ExitStack() as stack:
        observer: Observer | None = None
        if _wanted(os.environ):
            try:
                from orchestrator.clock import SystemClock
                from orchestrator.telemetry.tracing import exported_spans

                observer = stack.enter_context(exported_spans(SystemClock()))
            except ImportError as error:
                log.warning("no spans are sent: %s is missing; pip install 'credential-orchestrator[otel]'", error.name)
            except ValueError as error:
                log.warning("no spans are sent: a variable OTEL_... is not valid: %s", error)
        yield observer


def _wanted(environment: Mapping[str, str]) -> bool:
    """See the OpenTelemetry specification, "Environment Variable Specification"; an empty variable counts as unset."""
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true" or environment.get("OTEL_TRACES_EXPORTER") == "none":
        return False
    if not any(environment.get(name) for name in _ENDPOINTS):
        return False
    protocol = next((environment[name] for name in _PROTOCOLS if environment.get(name)), _PROTOCOL)
    if protocol != _PROTOCOL:
        log.warning("no spans are sent: OTLP by %s is not supported, only by %s", protocol, _PROTOCOL)
        return False
    return True

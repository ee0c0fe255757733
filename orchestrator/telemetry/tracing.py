"""Sending spans to an OpenTelemetry collector (OTLP over HTTP, protobuf). Needs the extra `otel`.

The SDK reads the standard `OTEL_*` variables itself. A thread of its own sends; what cannot be sent is
dropped, and a run neither waits for it nor fails by it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from orchestrator.clock import Clock
from orchestrator.telemetry.observed_ledger import Observer
from orchestrator.telemetry.spans import RunSpans, RunTraceIds

SERVICE = "credential-orchestrator"
"""`service.name` where neither OTEL_SERVICE_NAME nor OTEL_RESOURCE_ATTRIBUTES says another."""

_LAST_SECONDS = 5.0
"""How long the end of the process may wait for spans that are still to be sent."""


@contextmanager
def exported_spans(clock: Clock) -> Iterator[Observer]:
    """An observer whose spans are sent while inside; leaving sends the rest, for some seconds at most."""
    ids = RunTraceIds()
    resource = Resource({SERVICE_NAME: SERVICE}).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=resource, id_generator=ids, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    spans = RunSpans(provider.get_tracer("orchestrator"), ids)
    try:
        yield spans.observe
    finally:
        spans.end_all(clock.now())
        closing = threading.Thread(target=provider.shutdown, name="last spans", daemon=True)
        closing.start()
        closing.join(_LAST_SECONDS)

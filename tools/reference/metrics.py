"""The metrics of `serve` and `worker`, from the registry that they are counted in."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

from orchestrator.telemetry.prometheus import PrometheusMetrics
from tools.reference.markdown import code, page, prose, table

_HEAD = """\
# Metrics

`orchestrator serve` shows them at `/metrics` in Prometheus's text format (extra `serve`). Labels are names, states,
kinds and reasons: never inputs, outputs or credentials. Rules for alerts are in
[`deploy/prometheus/alerts.yaml`](../../deploy/prometheus/alerts.yaml); what each of them means is in
[Running in production](../production.md#monitoring).
"""


def text() -> str:
    """The page."""
    measured = [each for each in vars(PrometheusMetrics()).values() if isinstance(each, Counter | Gauge | Histogram)]
    return page(_HEAD, table(("metric", "type", "labels", "meaning"), [_row(each) for each in measured]))


def _row(each: Counter | Gauge | Histogram) -> tuple[str, ...]:
    (described,) = each.describe()
    name = f"{described.name}_total" if described.type == "counter" else described.name
    labels = ", ".join(code(label) for label in each._labelnames)
    return code(name), described.type, labels, prose(described.documentation)

"""The same metrics for Prometheus, by its own client: `GET /metrics`.

metrics = Prometheus()  # everything that guards do from now on
body, content_type = metrics.text(), metrics.content_type
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from guardkit import telemetry
from guardkit.errors import MissingExtra
from guardkit.telemetry import names
from guardkit.telemetry.names import Metric

try:
    import prometheus_client as client
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
except ImportError as error:
    raise MissingExtra("Prometheus metrics", "telemetry") from error


class Prometheus:
    """Metrics in a registry of its own (or `registry`), recorded for as long as this object lives, or until `close`.
    more: further metrics, that are shown from the start. Raises ValueError where a registry has metrics of these names
    already."""

    content_type: str = client.CONTENT_TYPE_LATEST

    def __init__(self, registry: Any = None, more: Iterable[Metric] = ()):
        self.registry = client.CollectorRegistry() if registry is None else registry
        pushed = (m for m in (*names.METRICS, *more) if m not in names.READ)
        self._instruments = {metric: self._make(metric) for metric in pushed}
        self.registry.register(self)
        recorder = _Recorder(self._instruments)
        telemetry.record(recorder)
        self.close = weakref.finalize(self, telemetry.forget, recorder)
        """Record no more."""

    def _make(self, metric: Metric) -> Any:
        if metric.kind == "histogram":
            return client.Histogram(
                metric.prometheus, metric.about, metric.labels, buckets=metric.buckets, registry=self.registry
            )
        kind = client.Counter if metric.kind == "counter" else client.Gauge
        return kind(metric.prometheus, metric.about, metric.labels, registry=self.registry)

    def collect(self) -> Iterator[Any]:
        """What is read when it is asked for; called by the registry."""
        families: dict[Metric, Any] = {}
        for metric in names.READ:
            family = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
            families[metric] = family(metric.prometheus, metric.about, labels=metric.labels)
        for metric, labels, value in telemetry.readings():
            families[metric].add_metric([labels[name] for name in metric.labels], value)
        yield from families.values()

    def text(self) -> bytes:
        """All metrics, in Prometheus's text format."""
        found: bytes = client.generate_latest(self.registry)
        return found


class _Recorder:
    """What is handed to the guards: it does not keep the metrics alive."""

    def __init__(self, instruments: Mapping[Metric, Any]):
        self._instruments = instruments

    def _of(self, metric: Metric, labels: Mapping[str, str]) -> Any:
        instrument = self._instruments[metric]
        return instrument.labels(**labels) if metric.labels else instrument

    def add(self, metric: Metric, amount: float, labels: Mapping[str, str]) -> None:
        """Count `amount` more, or move a gauge by it."""
        if metric in self._instruments:  # another server of this process may have metrics of its own
            self._of(metric, labels).inc(amount)

    def observe(self, metric: Metric, value: float, labels: Mapping[str, str], times: int = 1) -> None:
        if metric not in self._instruments:
            return
        instrument = self._of(metric, labels)
        for _ in range(times):
            instrument.observe(value)


__all__ = ["Prometheus"]

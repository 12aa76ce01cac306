"""OpenTelemetry: spans, events and metrics, by the names of `names.py`. Imported only where it is listened to."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from opentelemetry import _logs, context, metrics, trace
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.trace import SpanKind, Status, StatusCode

from guardkit import telemetry
from guardkit._version import __version__
from guardkit.audit_text import audit_text
from guardkit.telemetry import names
from guardkit.telemetry.names import ATTRIBUTES, Metric

if TYPE_CHECKING:
    from guardkit.guard import Guard
    from guardkit.policy import Decision

CAPTURE = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
_API = ("opentelemetry.trace", "opentelemetry.metrics", "opentelemetry._logs")  # whose providers only stand in


def configured() -> bool:
    """Whether the application has set a provider for spans or metrics."""
    return _is_real(trace.get_tracer_provider()) or _is_real(metrics.get_meter_provider())


def _is_real(provider: object) -> bool:
    return not type(provider).__module__.startswith(_API)


class Otel:
    """A sink for metrics, and where spans begin. Providers that are not given are the global ones, also those that are
    set later."""

    def __init__(
        self,
        tracer_provider: Any = None,
        meter_provider: Any = None,
        logger_provider: Any = None,
        text: bool | None = None,
    ):
        self.tracer = trace.get_tracer(names.SCOPE, __version__, tracer_provider)
        self._loggers = logger_provider
        asked = os.environ.get(CAPTURE, "").lower() in ("true", "span_only", "span_and_event")
        self.text = asked if text is None else text
        self._meter = metrics.get_meter(names.SCOPE, __version__, meter_provider)
        self._instruments = {metric: _instrument(self._meter, metric) for metric in names.METRICS}

    # -- metrics

    def add(self, metric: Metric, amount: float, labels: Mapping[str, str]) -> None:
        self._of(metric).add(amount, _labels(labels))

    def observe(self, metric: Metric, value: float, labels: Mapping[str, str], times: int = 1) -> None:
        instrument, attributes = self._of(metric), _labels(labels)
        for _ in range(times):
            instrument.record(value, attributes)

    def _of(self, metric: Metric) -> Any:
        if metric not in self._instruments:
            self._instruments[metric] = _instrument(self._meter, metric)
        return self._instruments[metric]

    # -- spans

    def start(self, guard: Guard, parent: Any = None, start_ns: int | None = None) -> GuardSpan:
        guardrail = f"{names.SCOPE}/{guard.model.name}"
        attributes = {
            "operation": names.OPERATION,
            "guardrail": guardrail,
            "model": guard.model.name,
            "policy": guard.policy.name,
            "kind": names.SPAN_KIND,
        }
        span = self.tracer.start_span(
            f"{names.OPERATION} {guardrail}",
            context=parent,
            kind=SpanKind.INTERNAL,
            attributes=_labels(attributes),
            start_time=start_ns,
            record_exception=False,  # an error's message may quote the text
            set_status_on_exception=False,
        )
        return GuardSpan(self, span)

    def event(self, span: Any, attributes: dict[str, Any]) -> None:
        """What an evaluation found, by the logs' provider where one is set, as the conventions want it; else in the
        span."""
        provider = self._loggers or _logs.get_logger_provider()
        if _is_real(provider):
            _logs.get_logger(names.SCOPE, __version__, provider).emit(
                _logs.LogRecord(
                    event_name=names.RESULT_EVENT,
                    attributes=attributes,
                    context=trace.set_span_in_context(span),
                    severity_number=_logs.SeverityNumber.INFO,
                )
            )
        else:
            span.add_event(names.RESULT_EVENT, attributes)


class GuardSpan:
    """The span of one text, or of a batch around those of its texts."""

    def __init__(self, otel: Otel, span: Any):
        self._otel, self._span = otel, span
        self._token: Any = None
        self.is_recording: bool = span.is_recording()

    @property
    def wants_text(self) -> bool:
        return self._otel.text and self.is_recording

    def enter(self) -> None:
        """Make it the current span, until `leave`."""
        self._token = context.attach(trace.set_span_in_context(self._span))

    def leave(self) -> None:
        if self._token is not None:
            context.detach(self._token)
            self._token = None

    def child(self, guard: Guard) -> GuardSpan:
        """A span of one item within it, which began when it did."""
        start_ns: int | None = getattr(self._span, "start_time", None)
        return self._otel.start(guard, trace.set_span_in_context(self._span), start_ns)

    def set(self, values: Mapping[str, Any]) -> None:
        self._span.set_attributes(_labels(values))

    def decided(self, decision: Decision, error: str | None, item: object) -> None:
        """error: the type of what kept the text from being judged."""
        if not self.is_recording:
            return
        verdict, stage = decision.verdict, decision.stage.value
        found: dict[str, Any] = {
            "target": names.TARGETS[stage],
            "stage": stage,
            "verdict": names.VERDICTS[decision.action.value],
            "action": decision.action.value,
            "rule": decision.rule.partition(": ")[2] or decision.rule,
            "judged": decision.judged,
        }
        event: dict[str, Any] = {"evaluation": names.EVALUATION}
        if verdict is not None:
            found |= {"model": verdict.model, "severity": verdict.severity.value, "risk": verdict.risk}
            if verdict.categories:
                found["finding"] = verdict.categories[0].value
                found["categories"] = [c.value for c in verdict.categories]
        if not decision.judged or verdict is None:
            event["error"] = error or "unknown"
            self.failed(event["error"])
        else:
            event |= {"score": verdict.risk, "label": verdict.severity.value}
        if self.wants_text and item is not None:
            found["text"] = audit_text(item)
        self.set(found)
        self._otel.event(self._span, _labels(event))

    def failed(self, error: str) -> None:
        self._span.set_attribute(ATTRIBUTES["error"], error)
        self._span.set_status(Status(StatusCode.ERROR))

    def end(self) -> None:
        self._span.end()


def _labels(values: Mapping[str, Any]) -> dict[str, Any]:
    return {ATTRIBUTES[name]: value for name, value in values.items()}


def _instrument(meter: Any, metric: Metric) -> Any:
    about = {"unit": metric.unit, "description": metric.about}
    if metric in names.READ:
        make = meter.create_observable_counter if metric.kind == "counter" else meter.create_observable_gauge

        def read(options: CallbackOptions) -> Iterable[Observation]:
            return [Observation(v, _labels(labels)) for m, labels, v in telemetry.readings() if m is metric]

        return make(metric.name, callbacks=[read], **about)
    if metric.kind == "histogram":
        return meter.create_histogram(metric.name, explicit_bucket_boundaries_advisory=list(metric.buckets), **about)
    make = meter.create_counter if metric.kind == "counter" else meter.create_up_down_counter
    return make(metric.name, **about)

"""Spans and metrics: who listens sees every decision, under the right parent and without a word of the texts."""

from __future__ import annotations

import asyncio
import gc
import re
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from guardkit import Action, AuditRecord, Guard, NotJudged, Overloaded, Stage, telemetry
from guardkit.models.base import Query, QueryScores, Work
from guardkit.models.loop_thread import LoopThread
from guardkit.telemetry import names
from guardkit.telemetry.otel import CAPTURE
from guardkit.telemetry.prometheus import Prometheus
from guardkit.testing import FakeGuard, FakeModel

SECRET = "the secret words"
SCRIPT = {"forbidden": "unsafe", "hmm": "controversial", "crash": RuntimeError(f"cannot read '{SECRET}'")}


class Listening:
    """Providers that keep what they get."""

    def __init__(self) -> None:
        self.exporter, self.reader = InMemorySpanExporter(), InMemoryMetricReader()
        self.tracers = TracerProvider()
        self.tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.meters = MeterProvider([self.reader])
        self.tracer = self.tracers.get_tracer("an application")

    @property
    def spans(self) -> list[ReadableSpan]:
        """Those of guardkit, in the order of their ends."""
        return [s for s in self.exporter.get_finished_spans() if s.name.startswith(names.OPERATION)]

    def points(self, metric: names.Metric) -> dict[tuple[Any, ...], Any]:
        """The newest values of a metric by its labels, in the order of the table."""
        data = self.reader.get_metrics_data()
        found = {}
        for resource in data.resource_metrics if data else ():
            for scope in resource.scope_metrics:
                for each in scope.metrics:
                    if each.name == metric.name:
                        for point in each.data.data_points:
                            attributes = dict(point.attributes or {})
                            key = tuple(attributes[names.ATTRIBUTES[label]] for label in metric.labels)
                            found[key] = getattr(point, "value", None) or getattr(point, "count", 0)
        return found


@pytest.fixture
def listening() -> Iterator[Listening]:
    found = Listening()
    telemetry.configure(tracer_provider=found.tracers, meter_provider=found.meters)
    yield found
    telemetry.configure(enabled=False)


def _get(span: ReadableSpan, name: str) -> Any:
    return (span.attributes or {}).get(names.ATTRIBUTES[name])


def _result(span: ReadableSpan) -> dict[str, Any]:
    (event,) = span.events
    assert event.name == "gen_ai.evaluation.result"
    return dict(event.attributes or {})


def _everything(spans: Sequence[ReadableSpan]) -> str:
    return "".join(span.to_json() for span in spans)


# -- nobody listens


def test_nothing_of_opentelemetry_is_loaded_until_the_application_does() -> None:
    code = """
import sys
from guardkit.testing import FakeGuard
guard = FakeGuard({"bad": "unsafe"})
guard.check("bad"); guard.decide_batch(["a", "b"])
with guard.stream() as stream: stream.feed("some text ")
assert not [name for name in sys.modules if name.startswith(("opentelemetry", "prometheus"))]
from opentelemetry import trace
guard.check("bad")  # there, but nobody has set a provider
from guardkit import telemetry
assert telemetry.active() is None
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
exporter, provider = InMemorySpanExporter(), TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
guard.check("bad")  # now there is somebody
print([span.name for span in exporter.get_finished_spans()])
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stdout.strip() == "['run_guardrail guardkit/fake']", run.stderr


def test_the_tables_name_every_stage_and_action() -> None:
    assert set(names.TARGETS) == {s.value for s in Stage}
    assert set(names.VERDICTS) == {a.value for a in Action}
    assert {label for metric in names.METRICS for label in metric.labels} <= set(names.ATTRIBUTES)


# -- spans


def test_a_check_is_a_span_with_its_verdict_and_an_evaluation(listening: Listening) -> None:
    guard = FakeGuard(SCRIPT, policy="strict")
    verdict = guard.check("this is forbidden", stage="tool_output")
    (span,) = listening.spans
    assert span.name == "run_guardrail guardkit/fake"
    assert span.kind is trace.SpanKind.INTERNAL
    assert span.status.status_code is StatusCode.UNSET  # it did what it is for
    attributes = dict(span.attributes or {})
    assert attributes["gen_ai.operation.name"] == "run_guardrail"
    assert attributes["gen_ai.security.target.type"] == "tool_result"
    assert attributes["gen_ai.security.verdict.type"] == "deny"
    assert attributes["gen_ai.security.policy.name"] == "strict"
    assert attributes["gen_ai.security.risk.score"] == verdict.risk
    assert attributes["openinference.span.kind"] == "GUARDRAIL"
    assert attributes["guardkit.categories"] == ("violent",)
    result = _result(span)
    assert result["gen_ai.evaluation.name"] == "guardkit.safety"
    assert result["gen_ai.evaluation.score.label"] == "unsafe"
    assert result["gen_ai.evaluation.score.value"] == verdict.risk


def test_async_twins_and_decisions_give_the_same_spans(listening: Listening) -> None:
    guard = FakeGuard(SCRIPT)
    guard.check("hmm")
    guard.decide("hmm")
    guard.enforce("hmm")
    asyncio.run(guard.acheck("hmm"))
    asyncio.run(guard.adecide("hmm"))
    seen = [(s.name, dict(s.attributes or {}), _result(s)) for s in listening.spans]
    assert len(seen) == 5
    assert all(each == seen[0] for each in seen)
    assert seen[0][1]["gen_ai.security.verdict.type"] == "warn"


def test_a_batch_is_a_span_with_one_for_each_item(listening: Listening) -> None:
    FakeGuard(SCRIPT).check_batch(["fine", "forbidden", [{"role": "user", "content": "hmm"}]])
    *items, batch = listening.spans
    assert _get(batch, "batch") == 3
    assert not batch.events
    assert [_get(s, "severity") for s in items] == ["safe", "unsafe", "controversial"]
    assert {s.parent.span_id for s in items if s.parent} == {batch.context.span_id if batch.context else None}
    assert all(s.start_time == batch.start_time for s in items)


def test_spans_nest_under_the_callers(listening: Listening) -> None:
    guard = FakeGuard(SCRIPT)

    async def application() -> None:
        with listening.tracer.start_as_current_span("chain"):
            await guard.acheck("fine")
            stream = guard.astream()
            await stream.feed("one two three ")
            await stream.finish()

    with listening.tracer.start_as_current_span("chain"):
        guard.check("fine")
        assert trace.get_current_span().name == "chain"  # type: ignore[attr-defined]
        with guard.stream() as stream:
            stream.feed("one two three ")
            stream.finish()
    asyncio.run(application())
    chains = {s.context.span_id for s in listening.exporter.get_finished_spans() if s.name == "chain" and s.context}
    assert len(listening.spans) == 4
    assert len(chains) == 2
    assert {s.parent.span_id for s in listening.spans if s.parent} == chains
    assert not trace.get_current_span().get_span_context().is_valid


class _Client:
    async def aclose(self) -> None: ...


class _Remote(FakeModel):
    """A model behind an event loop in a thread of its own, whose client is traced, as an HTTP client may be."""

    def __init__(self, tracer: trace.Tracer):
        super().__init__(SCRIPT)
        self._tracer, self.thread = tracer, LoopThread("remote", _Client)

    def submit(self, works: Sequence[Work], deadline: float | None = None) -> list[Future[Any]]:
        return [self.thread.submit(self._request(work)) for work in works]

    def turn(self) -> None:
        """Work arrives in the other thread: nobody serves himself."""

    async def _request(self, work: Work) -> Any:
        with self._tracer.start_as_current_span("request"):
            return await asyncio.to_thread(super().submit([work])[0].result)


def test_what_a_models_own_thread_traces_nests_under_the_guardrail(listening: Listening) -> None:
    model = _Remote(listening.tracer)
    guard = Guard(model)
    guard.check("fine")
    asyncio.run(guard.acheck("fine"))
    with guard.stream() as stream:
        stream.feed("one two ")
    model.thread.close()
    requests = [s for s in listening.exporter.get_finished_spans() if s.name == "request"]
    own = {s.context.span_id for s in listening.spans if s.context}
    assert len(requests) == 3
    assert {s.parent.span_id for s in requests if s.parent} == own


def test_a_stream_is_a_span_that_says_what_went_out(listening: Listening) -> None:
    guard = FakeGuard(SCRIPT, holdback=2)
    with guard.stream() as stream:
        for word in ("one", "two", "three", "four", "forbidden", "five"):
            stream.feed(word + " ")
        stream.finish()
    (span,) = listening.spans
    assert _get(span, "released") == stream.released > 0
    assert _get(span, "withheld") == stream.withheld > 0
    assert _get(span, "enforced") == "block"
    assert _get(span, "target") == "llm_output"
    assert _result(span)["gen_ai.evaluation.score.label"] == "unsafe"
    counted = listening.points(names.CHARACTERS)
    assert counted["fake", "released"] == stream.released
    assert counted["fake", "withheld"] == stream.withheld
    with guard.stream(holdback=0) as early:
        for word in ("one", "two", "forbidden"):
            early.feed(word + " ")
    assert _get(listening.spans[-1], "retracted") == early.shown_early


@pytest.mark.parametrize("finished", [True, False])
def test_a_stream_that_is_dropped_is_gone_at_once(listening: Listening, finished: bool) -> None:
    guard = FakeGuard()
    gc.collect()
    gc.disable()  # a program that serves may do so for long
    try:
        stream = guard.stream("hi")
        stream.feed("fine ")
        if finished:
            stream.finish()
        was = weakref.ref(stream), weakref.ref(guard)
        del stream, guard
        assert [each() for each in was] == [None, None]
    finally:
        gc.enable()


def test_what_is_not_judged_is_an_error_and_no_result(listening: Listening) -> None:
    guard = FakeGuard(SCRIPT)
    with pytest.raises(NotJudged):
        guard.check("crash")
    assert not guard.decide([{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]).judged
    with pytest.raises(NotJudged), guard.stream() as stream:
        stream.feed("a crash ")
    for span, error in zip(listening.spans, ("RuntimeError", "NotJudged", "RuntimeError"), strict=True):
        assert span.status.status_code is StatusCode.ERROR
        assert _get(span, "error") == error
        assert _get(span, "judged") is False
        assert set(_result(span)) == {"gen_ai.evaluation.name", "error.type"}
    assert sum(listening.points(names.NOT_JUDGED).values()) == 3
    assert not listening.points(names.VERDICT_COUNT)


def test_a_check_that_is_given_up_counts_as_not_judged(listening: Listening) -> None:
    model = _Slow()

    async def give_up() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await Guard(model).acheck_batch(["one", "two"])

    asyncio.run(give_up())
    model.go_on.set()
    assert listening.points(names.NOT_JUDGED) == {("fake", "unknown", "CancelledError", "block"): 2}
    (span,) = listening.spans
    assert (span.status.status_code, _get(span, "error")) == (StatusCode.ERROR, "CancelledError")


class _Full(FakeModel):
    def open(self, context: Sequence[Any]) -> Any:
        raise Overloaded("too many streams are open")


def test_a_stream_that_cannot_be_opened_is_reported(listening: Listening) -> None:
    records: list[AuditRecord] = []
    before = set(telemetry.streams)  # what other tests left open
    with pytest.raises(NotJudged):
        Guard(_Full(SCRIPT), audit=records.append).stream()
    assert [_get(s, "error") for s in listening.spans] == ["Overloaded"]
    assert [r.judged for r in records] == [False]
    assert set(telemetry.streams) <= before


# -- texts


def test_no_text_and_no_message_of_an_error_is_in_any_span(listening: Listening) -> None:
    with listening.tracer.start_as_current_span("chain"), pytest.raises(NotJudged):
        FakeGuard(SCRIPT).check(f"crash {SECRET}")
    for text in (f"forbidden {SECRET}", f"crash {SECRET}", SECRET):
        guard = FakeGuard(SCRIPT)
        guard.decide(text)
        guard.decide_batch([text, [{"role": "user", "content": text}]])
        asyncio.run(guard.adecide(text))
        guard.redact(text)
        try:
            with guard.stream([{"role": "user", "content": text}]) as stream:
                stream.feed(text + " ")
                stream.finish()
        except NotJudged:
            pass
    assert len(listening.spans) > 15
    seen = _everything(listening.spans)
    assert "secret" not in seen
    assert "cannot read" not in seen


@pytest.mark.parametrize("by_environment", [False, True])
def test_texts_are_in_spans_where_they_are_asked_for(
    listening: Listening, monkeypatch: pytest.MonkeyPatch, by_environment: bool
) -> None:
    if by_environment:
        monkeypatch.setenv(CAPTURE, "true")
    telemetry.configure(
        tracer_provider=listening.tracers, meter_provider=listening.meters, text=None if by_environment else True
    )
    guard = FakeGuard(SCRIPT)
    guard.check(SECRET)
    with guard.stream() as stream:
        stream.feed("what came ")
        stream.finish()
    assert [_get(s, "text") for s in listening.spans] == [SECRET, "what came "]
    assert "cannot read" not in _everything(listening.spans)


# -- events, metrics


def test_results_are_log_events_where_logs_have_a_provider(listening: Listening) -> None:
    exporter, logs = InMemoryLogRecordExporter(), LoggerProvider()
    logs.add_log_record_processor(SimpleLogRecordProcessor(exporter))
    telemetry.configure(tracer_provider=listening.tracers, meter_provider=listening.meters, logger_provider=logs)
    FakeGuard(SCRIPT).check("forbidden")
    (span,), (log,) = listening.spans, exporter.get_finished_logs()
    assert not span.events
    record = log.log_record
    assert record.event_name == "gen_ai.evaluation.result"
    assert record.span_id == (span.context.span_id if span.context else None)
    assert dict(record.attributes or {})["gen_ai.evaluation.score.label"] == "unsafe"


def test_metrics_count_what_was_decided(listening: Listening) -> None:
    guard = FakeGuard(SCRIPT)
    guard.decide_batch(["forbidden", "forbidden", "fine", "hmm", "crash"])
    guard.check("this is fine", stage="document")
    assert listening.points(names.VERDICT_COUNT) == {
        ("fake", "prompt", "unsafe", "violent", "block"): 2,
        ("fake", "prompt", "safe", "none", "allow"): 1,
        ("fake", "prompt", "controversial", "violent", "flag"): 1,
        ("fake", "document", "safe", "none", "allow"): 1,
    }
    assert listening.points(names.NOT_JUDGED) == {("fake", "prompt", "RuntimeError", "block"): 1}
    assert listening.points(names.DURATION) == {("fake", "check"): 6}
    assert listening.points(names.BATCH)["fake",] >= 2
    others = set(telemetry.streams)  # what other tests left open
    stream = guard.stream()
    assert listening.points(names.STREAMS_OPEN)[()] == len(others) + 1
    stream.finish()
    assert listening.points(names.STREAMS_OPEN)[()] == len(others)
    assert listening.points(names.QUEUE)["fake",] == 0


class _Slow(FakeModel):
    """Begins, and goes on when it is told."""

    def __init__(self) -> None:
        super().__init__(SCRIPT)
        self.begun, self.go_on = threading.Event(), threading.Event()

    def query(self, queries: Sequence[Query]) -> list[list[QueryScores]]:
        self.begun.set()
        assert self.go_on.wait(60)
        return super().query(queries)


def test_what_waits_is_read_from_the_model(listening: Listening) -> None:
    model = _Slow()
    guard = Guard(model)
    threads = [threading.Thread(target=guard.check, args=(text,)) for text in ("one", "two", "three")]
    for thread in threads:
        thread.start()
    assert model.begun.wait(60)
    while listening.points(names.QUEUE)["fake",] < 3:
        time.sleep(0.001)
    model.go_on.set()
    for thread in threads:
        thread.join()
    assert listening.points(names.QUEUE)["fake",] == 0


def test_prometheus_has_the_same_metrics() -> None:
    metrics = Prometheus()
    try:
        guard = FakeGuard(SCRIPT, holdback=1)
        guard.decide_batch(["forbidden", "fine", "crash"])
        with guard.stream() as stream:
            stream.feed("one two three forbidden ")
        text = metrics.text().decode()
    finally:
        metrics.close()
    assert (
        'guardkit_verdicts_total{action="block",category="violent",model="fake",severity="unsafe",stage="prompt"} 1.0'
        in text
    )
    assert 'guardkit_not_judged_total{action="block",error="RuntimeError",model="fake",stage="prompt"} 1.0' in text
    assert 'guardkit_verdict_duration_seconds_count{model="fake",surface="check"} 3.0' in text
    assert f'guardkit_stream_characters_total{{model="fake",outcome="withheld"}} {stream.withheld}.0' in text
    for metric in names.METRICS:
        assert f"# TYPE {metric.prometheus}" in text
    assert metrics.content_type.startswith("text/plain")
    before = metrics.text()
    guard.check("fine")  # closed: recorded no more
    assert metrics.text().count(b"guardkit_verdicts_total") == before.count(b"guardkit_verdicts_total")


def test_nanos_cache_and_batches_are_seen() -> None:
    metrics = Prometheus()
    try:
        with Guard.load() as guard:
            guard.check("What is the capital of Mongolia?")
            guard.check("What is the capital of Mongolia?")
            text = metrics.text().decode()
    finally:
        metrics.close()
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if line and line[0] != "#")
    assert float(values['guardkit_cache_used{loop="nano"}']) >= 1
    assert float(values['guardkit_cache_hits_total{loop="nano"}']) >= 1
    assert float(values['guardkit_batch_rows_count{loop="nano"}']) >= 1


# -- who listens may fail


class _Broken(SpanProcessor):
    def on_start(self, span: Any, parent_context: Any = None) -> None:
        raise OSError("no space left")

    def on_end(self, span: Any) -> None:
        raise OSError("no space left")


def test_a_listener_that_fails_changes_no_verdict(caplog: pytest.LogCaptureFixture) -> None:
    tracers = TracerProvider()
    tracers.add_span_processor(_Broken())
    telemetry.configure(tracer_provider=tracers)
    try:
        guard = FakeGuard(SCRIPT)
        assert guard.decide("forbidden").action is Action.block
        with guard.stream() as stream:
            assert stream.feed("one ") == []
            assert [e.kind for e in stream.finish()] == ["text"]
        assert "telemetry failed" in caplog.text
        assert not trace.get_current_span().get_span_context().is_valid
    finally:
        telemetry.configure(enabled=False)


# -- the page about it

PAGE = (Path(__file__).parents[1] / "docs" / "observability.md").read_text(encoding="utf-8")


def test_the_docs_name_every_metric_with_its_labels() -> None:
    rows = {cell: row for row in PAGE.splitlines() if row.startswith("| `guardkit.") for cell in row.split("|")[1:2]}
    for metric in names.METRICS:
        stem, _, leaf = metric.name.rpartition(".")
        row = next(
            r for cell, r in rows.items() if f"`{metric.name}`" in cell or (stem in cell and f"`.{leaf}`" in cell)
        )
        assert all(label in row for label in metric.labels), metric.name


def test_the_programs_in_the_docs_run() -> None:
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S))
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert '"name": "run_guardrail guardkit/nano"' in run.stdout
    assert "guardkit_verdicts_total{" in run.stdout

"""A request as a span: between the client's trace and the guard's spans, without a word of the texts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from starlette.datastructures import Headers
from starlette.testclient import TestClient

from guardkit import AuditRecord, telemetry
from guardkit.testing import FakeGuard
from guardkit_serve import Key, Settings, Upstream, create_app
from guardkit_serve.upstream import headers_for

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CLIENT = {"traceparent": f"00-{TRACE}-{PARENT}-01"}


@pytest.fixture
def exporter() -> Iterator[InMemorySpanExporter]:
    found, tracers = InMemorySpanExporter(), TracerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(found))
    telemetry.configure(tracer_provider=tracers)
    found.tracer = tracers.get_tracer("an instrumentation")  # type: ignore[attr-defined]
    yield found
    telemetry.configure(enabled=False)


def client(**settings: Any) -> TestClient:
    app = create_app(FakeGuard({"bad": "unsafe"}), Settings(access_log=False, **settings))
    return TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False)


def _server(exporter: InMemorySpanExporter) -> list[ReadableSpan]:
    return [s for s in exporter.get_finished_spans() if s.kind is SpanKind.SERVER]


def _guards(exporter: InMemorySpanExporter) -> list[ReadableSpan]:
    return [s for s in exporter.get_finished_spans() if s.name.startswith("run_guardrail")]


@pytest.mark.parametrize(
    ("path", "body"),
    [("/v1/check", {"text": "a secret, bad"}), ("/page/stream", {"prompt": "a secret", "answer": "so bad a secret"})],
)
def test_the_guards_spans_lie_under_the_request_and_that_under_the_client(
    exporter: InMemorySpanExporter, path: str, body: dict[str, str]
) -> None:
    client().post(path, json=body, headers=CLIENT)
    (request,) = _server(exporter)
    assert request.name == f"POST {path}"
    assert request.parent is not None
    assert f"{request.parent.span_id:016x}" == PARENT
    attributes = dict(request.attributes or {})
    assert attributes["http.route"] == path
    assert attributes["http.response.status_code"] == 200
    assert attributes["http.request.method"] == "POST"
    assert len(_guards(exporter)) == len(body)
    for span in _guards(exporter):
        assert span.parent is not None
        assert span.parent.span_id == request.context.span_id
        assert f"{span.context.trace_id:032x}" == TRACE
    assert "secret" not in "".join(span.to_json() for span in exporter.get_finished_spans())


def test_the_action_and_faults_are_told(exporter: InMemorySpanExporter) -> None:
    http = client()
    http.post("/v1/check", json={"text": "bad"})
    http.post("/v1/check", json={"txt": "bad"})
    http.get("/no/such/path?of=secret")
    blocked, wrong, nowhere = _server(exporter)
    assert (blocked.attributes or {})["guardkit.action"] == "block"
    assert (wrong.attributes or {})["http.response.status_code"] == 400
    assert wrong.status.status_code is StatusCode.UNSET
    assert (nowhere.name, "http.route" in (nowhere.attributes or {})) == ("GET", False)
    for path in ("/health", "/ready", "/metrics", "/assets/page.js", "/page/recent"):
        http.get(path)
    assert len(_server(exporter)) == 3


def test_an_instrumentation_that_is_there_is_not_doubled(exporter: InMemorySpanExporter) -> None:
    app = create_app(FakeGuard({}), Settings(access_log=False))

    async def instrumented(scope: Any, receive: Any, send: Any) -> None:
        with exporter.tracer.start_as_current_span("outer", kind=SpanKind.SERVER):  # type: ignore[attr-defined]
            await app(scope, receive, send)

    TestClient(instrumented, base_url="http://127.0.0.1").post("/v1/check", json={"text": "fine"})
    (outer,) = _server(exporter)
    (guard,) = _guards(exporter)
    assert outer.name == "outer"
    assert guard.parent is not None
    assert guard.parent.span_id == outer.context.span_id


def test_the_upstream_goes_on_with_the_trace(exporter: InMemorySpanExporter) -> None:
    upstream = Upstream("http://127.0.0.1:1")
    with exporter.tracer.start_as_current_span("request") as span:  # type: ignore[attr-defined]
        sent = headers_for(upstream, "/v1/chat/completions", Headers(CLIENT), keys=False)
    assert sent["traceparent"].split("-")[2] == f"{span.get_span_context().span_id:016x}"
    telemetry.configure(enabled=False)
    assert (
        headers_for(upstream, "/v1/chat/completions", Headers(CLIENT), keys=False)["traceparent"]
        == CLIENT["traceparent"]
    )
    assert not trace.get_current_span().get_span_context().is_valid


def test_who_is_turned_away_is_a_span_too(exporter: InMemorySpanExporter) -> None:
    http = client(keys=(Key("team", hashlib.sha256(b"secret").hexdigest()),))
    assert http.post("/v1/check", json={"text": "x"}).status_code == 401
    (request,) = _server(exporter)
    assert (request.attributes or {})["http.response.status_code"] == 401
    assert not _guards(exporter)


def test_the_audit_has_what_was_asked_and_nothing_else() -> None:
    """The warm-up is nobody's question; what the server gave up on is an answer all the same."""
    records: list[AuditRecord] = []
    slow = FakeGuard({}, audit=records.append, delay=0.4)
    app = create_app(slow, Settings(access_log=False, judge_s=0.05))
    with TestClient(app, base_url="http://127.0.0.1") as http:
        assert records == []
        found = http.post("/v1/check", json={"text": "hello"}).json()
    assert (found["judged"], found["action"]) == (False, "block")
    assert [(r.judged, r.action, r.text) for r in records] == [(False, "block", None)]

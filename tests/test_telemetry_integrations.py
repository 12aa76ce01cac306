"""The two integrations report the same spans, under whatever span they run in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from langchain_core.language_models import FakeListChatModel
from langchain_core.runnables import RunnableLambda
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.postprocessor.guardkit import GuardNodePostprocessor
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from guardkit import telemetry
from guardkit.testing import FakeGuard
from langchain_guardkit import GuardedChatModel

SPOKEN = "All is well here."


@pytest.fixture
def exporter() -> Iterator[InMemorySpanExporter]:
    found, tracers = InMemorySpanExporter(), TracerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(found))
    telemetry.configure(tracer_provider=tracers)
    found.tracer = tracers.get_tracer("an application")  # type: ignore[attr-defined]
    yield found
    telemetry.configure(enabled=False)


def under_a_span(exporter: Any, call: Callable[[], object]) -> list[ReadableSpan]:
    """The guard's spans of `call`, which ran under an application's span; all of them lie under it."""
    with exporter.tracer.start_as_current_span("application"):
        call()
    *_, application = exporter.get_finished_spans()
    own = [s for s in exporter.get_finished_spans() if s.name.startswith("run_guardrail")]
    known = {s.context.span_id for s in exporter.get_finished_spans()}
    assert all(s.parent is not None and s.parent.span_id in known for s in own)
    assert {s.context.trace_id for s in own} == {application.context.trace_id}
    return own


def _stages(spans: list[ReadableSpan]) -> set[str]:
    return {str((s.attributes or {})["gen_ai.security.target.subtype"]) for s in spans if not _is_batch(s)}


def _is_batch(span: ReadableSpan) -> bool:
    return "guardkit.batch.size" in (span.attributes or {})


async def _all(stream: Any) -> None:
    async for _ in stream:
        pass


@pytest.mark.parametrize("way", ["invoke", "ainvoke", "stream", "astream"])
def test_a_chain_of_langchains(exporter: InMemorySpanExporter, way: str) -> None:
    guard = FakeGuard({"bad": "unsafe"})
    model = GuardedChatModel(FakeListChatModel(responses=[SPOKEN]), guard, exit_behavior="end")
    tracer = exporter.tracer  # type: ignore[attr-defined]

    def step(value: str) -> str:
        with tracer.start_as_current_span("a step of its own"):
            guard.check("what a tool said", stage="tool_output")
        return value

    chain = guard | RunnableLambda(step) | model
    calls: dict[str, Callable[[], object]] = {
        "invoke": lambda: chain.invoke("hello"),
        "ainvoke": lambda: asyncio.run(chain.ainvoke("hello")),
        "stream": lambda: list(chain.stream("hello")),
        "astream": lambda: asyncio.run(_all(chain.astream("hello"))),
    }
    spans = under_a_span(exporter, calls[way])
    assert _stages(spans) >= {"prompt", "tool_output", "response"}
    (step_span,) = [s for s in exporter.get_finished_spans() if s.name == "a step of its own"]
    inside = [s for s in spans if s.parent is not None and s.parent.span_id == step_span.context.span_id]
    assert _stages(inside) == {"tool_output"}


@pytest.mark.parametrize("is_async", [False, True])
def test_llama_indexs_nodes(exporter: InMemorySpanExporter, is_async: bool) -> None:
    nodes = [NodeWithScore(node=TextNode(text=text)) for text in ("fine", "this is bad")]
    judge: BaseNodePostprocessor = GuardNodePostprocessor(guard=FakeGuard({"bad": "unsafe"}))
    kept: list[NodeWithScore] = []

    def call() -> None:
        if is_async:
            kept.extend(asyncio.run(judge.apostprocess_nodes(nodes)))
        else:
            kept.extend(judge.postprocess_nodes(nodes))

    spans = under_a_span(exporter, call)
    assert [node.node.get_content() for node in kept] == ["fine"]
    assert _stages(spans) == {"document"}
    verdicts = sorted(str((s.attributes or {})["guardkit.severity"]) for s in spans if not _is_batch(s))
    assert verdicts == ["safe", "unsafe"]

"""What guardkit's spans, events and metrics are called: the one place to change when the conventions do.

OpenTelemetry's GenAI conventions have an event for what an evaluator found, `gen_ai.evaluation.result`. A span for a
guardrail is proposed there and not merged; its names are used as proposed (`run_guardrail`, `gen_ai.security.*`). What
neither names is guardkit's own (`guardkit.*`). Prometheus has the same metrics under names of its own style.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

SCOPE = "guardkit"
OPERATION = "run_guardrail"
EVALUATION = "guardkit.safety"
"""What the score of an evaluation event is: the probability that the text is not safe; its label is the severity."""
RESULT_EVENT = "gen_ai.evaluation.result"

ATTRIBUTES: Mapping[str, str] = {
    "operation": "gen_ai.operation.name",
    "guardrail": "gen_ai.security.guardrail.name",
    "model": "gen_ai.request.model",
    "target": "gen_ai.security.target.type",
    "stage": "gen_ai.security.target.subtype",
    "verdict": "gen_ai.security.verdict.type",
    "enforced": "gen_ai.security.action.type",
    "policy": "gen_ai.security.policy.name",
    "rule": "gen_ai.security.policy.rule.id",
    "finding": "gen_ai.security.risk.finding",
    "risk": "gen_ai.security.risk.score",
    "text": "gen_ai.security.content.input.value",
    "evaluation": "gen_ai.evaluation.name",
    "label": "gen_ai.evaluation.score.label",
    "score": "gen_ai.evaluation.score.value",
    "error": "error.type",
    "kind": "openinference.span.kind",  # of Arize's convention, beside the others
    "action": "guardkit.action",
    "severity": "guardkit.severity",
    "category": "guardkit.category",
    "categories": "guardkit.categories",
    "judged": "guardkit.judged",
    "characters": "guardkit.characters",
    "batch": "guardkit.batch.size",
    "released": "guardkit.stream.released",
    "withheld": "guardkit.stream.withheld",
    "retracted": "guardkit.stream.retracted",
    "tokens": "guardkit.stream.tokens",
    "outcome": "guardkit.outcome",
    "surface": "guardkit.surface",
    "loop": "guardkit.loop",
    "route": "http.route",
    "status": "http.response.status_code",
}
"""guardkit's own names, of attributes and of metrics' labels, and what they are called in OpenTelemetry."""

TARGETS: Mapping[str, str] = {
    "prompt": "llm_input",
    "response": "llm_output",
    "reasoning": "llm_output",
    "tool_call": "tool_call",
    "tool_output": "tool_result",
    "document": "knowledge_result",
}
"""A stage as the kind of thing that a guardrail looks at."""
VERDICTS: Mapping[str, str] = {"allow": "allow", "flag": "warn", "redact": "modify", "block": "deny"}
"""A policy's action as a guardrail's verdict."""
SPAN_KIND = "GUARDRAIL"


@dataclass(frozen=True, eq=False)
class Metric:
    """name: dotted, as in OpenTelemetry. unit: of UCUM; "1" for a ratio. labels: keys of `ATTRIBUTES`. buckets: the
    upper bounds of a histogram's."""

    name: str
    kind: Literal["counter", "histogram", "gauge"]
    unit: str
    about: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()

    @property
    def prometheus(self) -> str:
        """The name in Prometheus's style; its client adds `_total` to that of a counter."""
        base = self.name.replace(".", "_")
        return f"{base}_seconds" if self.unit == "s" else base


_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_POWERS = tuple(float(1 << i) for i in range(11))

VERDICT_COUNT = Metric(
    "guardkit.verdicts",
    "counter",
    "{verdict}",
    "Texts that were judged; the category is the likeliest one, or none",
    ("model", "stage", "severity", "category", "action"),
)
NOT_JUDGED = Metric(
    "guardkit.not_judged",
    "counter",
    "{text}",
    "Texts that were not, or not wholly, judged, by the kind of error",
    ("model", "stage", "error", "action"),
)
DURATION = Metric(
    "guardkit.verdict.duration",
    "histogram",
    "s",
    "Time to the verdict: of a check the call; of a stream what its judging took, in all",
    ("model", "surface"),
    _SECONDS,
)
CHARACTERS = Metric(
    "guardkit.stream.characters",
    "counter",
    "{character}",
    "Characters of streams that were released, withheld, or shown and taken back (retracted)",
    ("model", "outcome"),
)
BATCH = Metric(
    "guardkit.batch.rows", "histogram", "{row}", "Texts or pieces that shared a forward pass", ("loop",), _POWERS
)
STREAMS_OPEN = Metric("guardkit.streams.open", "gauge", "{stream}", "Streams that are open")
QUEUE = Metric("guardkit.queue.depth", "gauge", "{work}", "Pieces of work that wait for a model", ("loop",))
CACHE_USED = Metric("guardkit.cache.used", "gauge", "{entry}", "What a model's cache holds", ("loop",))
CACHE_ROOM = Metric("guardkit.cache.room", "gauge", "{entry}", "What fits into it", ("loop",))
CACHE_HITS = Metric("guardkit.cache.hits", "counter", "{row}", "Rows that were in the cache already", ("loop",))

METRICS = (
    *(VERDICT_COUNT, NOT_JUDGED, DURATION, CHARACTERS, BATCH),
    *(STREAMS_OPEN, QUEUE, CACHE_USED, CACHE_ROOM, CACHE_HITS),
)
"""Every metric of the core; gauges, and what is counted by the models themselves (hits), are read when asked for."""
READ = (STREAMS_OPEN, QUEUE, CACHE_USED, CACHE_ROOM, CACHE_HITS)

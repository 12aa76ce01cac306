"""What the server tells about its work: one object, called on each request, judged text and stream.

What guards decide is counted by the core (`guardkit.telemetry`), so that Prometheus and OpenTelemetry have the same
numbers here as everywhere; what only a server has is added. The newest decisions are kept for the page, in memory and
without their texts, unless the settings allow those.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guardkit import Decision, telemetry
from guardkit.telemetry.names import Metric
from guardkit.telemetry.prometheus import Prometheus
from guardkit_serve.together import Together

RECENT = 500  # decisions that the page can look back on
TOLD_AT_ONCE = 256  # times of pieces
MAX_TEXT = 2000  # characters of a text that is kept
_SECONDS = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0)

REQUESTS = Metric("guardkit.serve.requests", "counter", "{request}", "Requests", ("route", "status", "action"))
REQUEST_TIME = Metric(
    "guardkit.serve.request.duration", "histogram", "s", "First byte in to last byte out", ("route",), _SECONDS
)
REQUESTS_OPEN = Metric("guardkit.serve.requests.open", "gauge", "{request}", "Requests under way")
ADDED_FIRST = Metric(
    "guardkit.serve.added.first", "histogram", "s", "Time that the guard adds to an answer's first piece", (), _SECONDS
)
ADDED_NEXT = Metric(
    "guardkit.serve.added.next", "histogram", "s", "Time that the guard adds to each later piece", (), _SECONDS
)
METRICS = (REQUESTS, REQUEST_TIME, REQUESTS_OPEN, ADDED_FIRST, ADDED_NEXT)


@dataclass(frozen=True)
class Seen:
    """A decision as the page shows it. number: counts up; time: Unix seconds; surface: "check" or "stream"; text: None
    unless texts are kept."""

    number: int
    time: float
    surface: str
    model: str
    policy: str
    decision: Decision
    seconds: float
    text: str | None

    def to_dict(self, with_text: bool) -> dict[str, Any]:
        decision, verdict = self.decision, self.decision.verdict
        out: dict[str, Any] = {
            "number": self.number,
            "time": round(self.time, 3),
            "surface": self.surface,
            "model": verdict.model if verdict else self.model,
            "policy": self.policy,
            "stage": decision.stage.value,
            "action": decision.action.value,
            "judged": decision.judged,
            "rule": decision.rule,
            "severity": verdict.severity.value if verdict else None,
            "categories": [c.label for c in verdict.categories] if verdict else [],
            "risk": round(verdict.risk, 4) if verdict else None,
            "ms": None if self.surface == "stream" else round(self.seconds * 1e3, 2),
        }
        return out | {"text": self.text} if with_text and self.text is not None else out


class Observer:
    """Calls are quick, come from one event loop, and raise nothing. keep_texts: whether the newest decisions are kept
    with the beginning of their texts. folder: where the workers of one server leave their metrics for each other."""

    def __init__(self, keep_texts: bool = False, folder: Path | None = None) -> None:
        self.keep_texts = keep_texts
        self.requests_open = self.streams_open = 0
        self._metrics = Prometheus(more=METRICS)
        self._added = _Times(ADDED_NEXT)
        self._together = None if folder is None else Together(folder, self._metrics.text)
        self._recent: deque[Seen] = deque(maxlen=RECENT)
        self._number = 0
        self._categories: Counter[str] = Counter()
        self._actions: Counter[str] = Counter()

    # -- told by the server

    def request_started(self, route: str) -> None:
        self.requests_open += 1
        _add(REQUESTS_OPEN, 1)

    def request_ended(self, route: str, status: int, action: str, seconds: float) -> None:
        """seconds: from the first byte in to the last byte out."""
        self.requests_open -= 1
        _add(REQUESTS_OPEN, -1)
        _add(REQUESTS, 1, {"route": route, "status": str(status), "action": action})
        _observe(REQUEST_TIME, seconds, {"route": route})

    def judged(self, decision: Decision, model: str, policy: str, seconds: float) -> None:
        """A whole text was judged, or was not (`decision.judged`). seconds: of the batch that it was part of."""
        self._note("check", decision, model, policy, seconds)

    def stream_opened(self, stage: str, model: str, policy: str) -> None:
        self.streams_open += 1

    def stream_closed(
        self, decision: Decision, model: str, policy: str, released: int, withheld: int, retracted: int
    ) -> None:
        """One text of a streamed answer has ended; characters."""
        self.streams_open -= 1
        self._added.tell()
        self._note("stream", decision, model, policy, 0.0)

    def forwarded(self, first: bool, seconds: float) -> None:
        """A piece of a streamed answer went out. seconds: that the guard took since the piece came in, the time that
        it waited for what follows it left out; first: of this answer."""
        if first:
            _observe(ADDED_FIRST, seconds)
            return
        self._added.found.append(seconds)
        if len(self._added.found) >= TOLD_AT_ONCE:
            self._added.tell()

    # -- asked for

    def exposition(self) -> tuple[bytes, str]:
        """The body of ``/metrics``, and its content type."""
        self._added.tell()
        text = self._metrics.text() if self._together is None else self._together.text()
        return text, self._metrics.content_type

    def recent(self, after: int, with_text: bool = False) -> list[dict[str, Any]]:
        """The newest decisions with a number above `after`, oldest first."""
        return [seen.to_dict(with_text and self.keep_texts) for seen in self._recent if seen.number > after]

    def totals(self) -> dict[str, Any]:
        """Since the server started; times in ms, of the newest checks."""
        times = sorted(seen.seconds * 1e3 for seen in self._recent if seen.surface == "check")
        return {
            "decisions": self._number,
            "actions": dict(self._actions),
            "categories": dict(self._categories.most_common()),
            "requests_open": self.requests_open,
            "streams_open": self.streams_open,
            "ms": {f"p{p}": round(times[(len(times) - 1) * p // 100], 2) for p in (50, 95, 99)} if times else {},
        }

    def _note(self, surface: str, decision: Decision, model: str, policy: str, seconds: float) -> None:
        self._number += 1
        self._actions[decision.action.value if decision.judged else "not judged"] += 1
        if decision.verdict is not None:
            self._categories.update(c.label for c in decision.verdict.categories[:1])
        text = decision.text[:MAX_TEXT] if self.keep_texts and decision.text is not None else None
        bare = Decision(
            decision.action, decision.verdict, decision.rule, decision.judged, decision.stage, limit=decision.limit
        )
        self._recent.append(Seen(self._number, time.time(), surface, model, policy, bare, seconds, text))


class _Times:
    """Times that are told a few hundred at once, as a piece of a stream is too small a thing for each to be told. Those
    of one bucket are told as their mean, which lies in it too: counts and sum stay what they are."""

    def __init__(self, metric: Metric):
        self._metric = metric
        self.found: list[float] = []

    def tell(self) -> None:
        if (emitter := telemetry.active()) is not None:
            together: dict[int, list[float]] = {}
            for seconds in self.found:
                together.setdefault(bisect_left(self._metric.buckets, seconds), []).append(seconds)
            for alike in together.values():
                emitter.observe(self._metric, sum(alike) / len(alike), {}, len(alike))
        self.found.clear()


def _add(metric: Metric, amount: float, labels: Mapping[str, str] | None = None) -> None:
    if (emitter := telemetry.active()) is not None:
        emitter.add(metric, amount, labels or {})


def _observe(metric: Metric, seconds: float, labels: Mapping[str, str] | None = None) -> None:
    if (emitter := telemetry.active()) is not None:
        emitter.observe(metric, seconds, labels or {})

"""What is reported of a check and of a stream, to spans and to metrics alike."""

from __future__ import annotations

import functools
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, Self

from guardkit import telemetry
from guardkit.telemetry import names
from guardkit.telemetry.names import Metric

if TYPE_CHECKING:
    from guardkit.batch import Outcome
    from guardkit.guard import Guard
    from guardkit.policy import Decision
    from guardkit.stream import StreamGuard
    from guardkit.telemetry.otel import GuardSpan, Otel


_P = ParamSpec("_P")


def quietly(report: Callable[_P, None]) -> Callable[_P, None]:
    """A fault of who listens (an exporter, a sampler) is logged: what is judged stands."""

    @functools.wraps(report)
    def reported(*args: _P.args, **kwargs: _P.kwargs) -> None:
        try:
            report(*args, **kwargs)
        except Exception:
            logging.getLogger("guardkit").exception("telemetry failed")

    return reported


class Emitter:
    """otel: where spans go; None: nowhere. recorders: where metrics go."""

    def __init__(self, otel: Otel | None, recorders: Sequence[telemetry.Recorder]):
        self.otel, self.recorders = otel, tuple(recorders)

    @quietly
    def add(self, metric: Metric, amount: float, labels: Mapping[str, str]) -> None:
        for recorder in self.recorders:
            recorder.add(metric, amount, labels)

    @quietly
    def observe(self, metric: Metric, value: float, labels: Mapping[str, str], times: int = 1) -> None:
        for recorder in self.recorders:
            recorder.observe(metric, value, labels, times)

    def check(self, guard: Guard, items: Sequence[Any]) -> Check:
        return Check(self, guard, items)

    def stream(self, guard: Guard, stream: StreamGuard) -> Watch:
        return Watch(self, guard, stream)

    def decided(self, guard: Guard, found: Sequence[tuple[Decision, str | None]]) -> None:
        """Count decisions, each with the type of the error that kept it from being judged."""
        counts: Counter[tuple[Metric, tuple[tuple[str, str], ...]]] = Counter()
        for decision, error in found:
            verdict = decision.verdict
            labels = {"stage": decision.stage.value, "action": decision.action.value}
            labels["model"] = verdict.model if verdict is not None else guard.model.name
            if not decision.judged or verdict is None:
                counts[names.NOT_JUDGED, (*labels.items(), ("error", error or "unknown"))] += 1
                continue
            labels["severity"] = verdict.severity.value
            labels["category"] = verdict.categories[0].value if verdict.categories else "none"
            counts[names.VERDICT_COUNT, tuple(labels.items())] += 1
        for (metric, pairs), n in counts.items():
            self.add(metric, n, dict(pairs))


class Check:
    """One call of `check`, `decide` or a batch of them; its span is the current one meanwhile. A batch has a span of
    its own around those of its items."""

    def __init__(self, emitter: Emitter, guard: Guard, items: Sequence[Any]):
        self._emitter, self._guard, self._items = emitter, guard, items
        self._span: GuardSpan | None = None
        self._began = time.perf_counter()

    @quietly
    def _begin(self) -> None:
        if self._emitter.otel is not None:
            self._span = self._emitter.otel.start(self._guard)
            self._span.enter()

    def __enter__(self) -> Self:
        self._begin()
        return self

    def found(self, outcomes: list[Outcome]) -> list[Outcome]:
        """What became of the items, in order; handed on."""
        self._found(outcomes)
        return outcomes

    @quietly
    def _found(self, outcomes: Sequence[Outcome]) -> None:
        guard, emitter = self._guard, self._emitter
        decisions = [(guard.decided(o), type(o.error).__name__ if o.error is not None else None) for o in outcomes]
        emitter.decided(guard, decisions)
        elapsed = time.perf_counter() - self._began
        if decisions:
            labels = {"model": guard.model.name, "surface": "check"}
            emitter.observe(names.DURATION, elapsed, labels, len(decisions))
        if self._span is None or not self._span.is_recording:
            return
        if len(decisions) != 1:
            self._span.set({"batch": len(decisions)})
        for item, (decision, error), outcome in zip(self._items, decisions, outcomes, strict=True):
            span = self._span if len(decisions) == 1 else self._span.child(guard)
            span.decided(decision, error, item)
            span.set({"characters": outcome.characters})
            if span is not self._span:
                span.end()

    @quietly
    def _end(self, error: str | None) -> None:
        if error is not None:  # interrupted, cancelled, closed: nothing is known of any item
            guard = self._guard
            labels = {"stage": "unknown", "action": guard.policy.on_error.value, "model": guard.model.name}
            n = 1 if isinstance(self._items, str) else len(self._items)
            self._emitter.add(names.NOT_JUDGED, n, labels | {"error": error})
        if self._span is not None:
            self._span.leave()
            if error is not None:
                self._span.failed(error)
            self._span.end()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end(None if kind is None else kind.__name__)


class Watch:
    """One stream, from when it is opened to when it is closed. A `with` block in which a piece of it is judged; entered
    for each delta, so that does little. Nothing here refers to itself: a stream that is dropped is gone at once."""

    def __init__(self, emitter: Emitter, guard: Guard, stream: StreamGuard):
        self._emitter, self._guard = emitter, guard
        self._span: GuardSpan | None = None
        self._judging_s = self._start = 0.0
        telemetry.streams.add(stream)
        self._begin()

    @quietly
    def _begin(self) -> None:
        if self._emitter.otel is not None:
            self._span = self._emitter.otel.start(self._guard)

    def __enter__(self) -> None:
        if self._span is not None:
            self._enter(self._span)
        self._start = time.perf_counter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._judging_s += time.perf_counter() - self._start
        if self._span is not None:
            self._leave(self._span)

    @property
    def wants_text(self) -> bool:
        return self._span is not None and self._span.wants_text

    @quietly
    def _enter(self, span: GuardSpan) -> None:
        span.enter()

    @quietly
    def _leave(self, span: GuardSpan) -> None:
        span.leave()

    @quietly
    def decided(self, stream: StreamGuard, error: str | None, text: str | None) -> None:
        """What came of it: at its end, and at a stop from which it is taken back."""
        self._emitter.decided(self._guard, [(stream.decision, error)])
        if self._span is not None:
            self._span.decided(stream.decision, error, text)

    @quietly
    def end(self, stream: StreamGuard) -> None:
        """It was closed."""
        telemetry.streams.discard(stream)
        emitter, model = self._emitter, self._guard.model.name
        emitter.observe(names.DURATION, self._judging_s, {"model": model, "surface": "stream"})
        counts = {"released": stream.released, "withheld": stream.withheld, "retracted": stream.shown_early}
        for outcome, n in counts.items():
            if n:
                emitter.add(names.CHARACTERS, n, {"model": model, "outcome": outcome})
        if self._span is not None:
            enforced = "block" if stream.stopped else "allow"
            self._span.set({"enforced": enforced, "tokens": stream.n_tokens, **counts})
            self._span.end()


__all__ = ["Check", "Emitter", "Watch"]

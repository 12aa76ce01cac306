"""Spans and metrics for whoever listens; nothing at all where nobody does.

Guards report to OpenTelemetry as soon as the application has set a provider: there is nothing to switch on.
`configure` names other providers than the global ones, or none. `record` adds a sink for metrics alone, such as
`guardkit.telemetry.prometheus.Prometheus`. What things are called stands in `names.py`.

No text that was judged, and no message of an error, is in a span, an event or a metric. The texts are where they are
asked for: `configure(text=True)`, or OpenTelemetry's own `OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT`.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from threading import Lock
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakSet

from guardkit.loop import Load, loops
from guardkit.telemetry import names
from guardkit.telemetry.names import Metric

if TYPE_CHECKING:
    from guardkit.batch import Outcome
    from guardkit.guard import Guard
    from guardkit.telemetry.otel import Otel
    from guardkit.telemetry.watch import Check, Emitter


class Far(Protocol):
    """A model elsewhere, as far as its metrics go."""

    def loads(self) -> Iterator[tuple[str, Load]]:
        """How busy its loops are, by their names."""


class Recorder(Protocol):
    """A sink for metrics. Called from any thread; labels are those of the metric."""

    def add(self, metric: Metric, amount: float, labels: Mapping[str, str]) -> None:
        """Count `amount` more."""

    def observe(self, metric: Metric, value: float, labels: Mapping[str, str], times: int = 1) -> None:
        """Put `value` into a histogram, `times` times."""


streams: WeakSet[Any] = WeakSet()
"""The streams that are open, of those that were opened while somebody listened."""
far: WeakSet[Far] = WeakSet()
"""The models that live in processes of their own."""
_otel: Otel | None = None
_recorders: tuple[Recorder, ...] = ()
_emitter: Emitter | None = None  # of both
_looking = Lock()
_settled = False  # whether it is known where spans go; until then OpenTelemetry's providers are looked for


def active() -> Emitter | None:
    """What reports; None where nobody listens."""
    if not _settled and "opentelemetry" in sys.modules:  # an application that has set a provider has imported it
        _look()
    return _emitter


class _Nobody:
    """Nobody listens to a check."""

    def __enter__(self) -> _Nobody:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def found(self, outcomes: list[Outcome]) -> list[Outcome]:
        return outcomes


_NOBODY = _Nobody()


def checking(guard: Guard, items: Sequence[Any]) -> Check | _Nobody:
    """For the `with` block of a check of `items`; it is told what was found."""
    emitter = active()
    return _NOBODY if emitter is None else emitter.check(guard, items)


def configure(
    *,
    tracer_provider: Any = None,
    meter_provider: Any = None,
    logger_provider: Any = None,
    text: bool | None = None,
    enabled: bool = True,
) -> None:
    """Report to these providers of OpenTelemetry; those that are not given are the global ones.

    text: whether spans hold the texts that were judged (default: as the environment says). enabled: False for neither
    spans nor OpenTelemetry's metrics. Raises `MissingExtra` without opentelemetry-api.
    """
    if not enabled:
        _listen(None)
        return
    try:
        from guardkit.telemetry.otel import Otel
    except ImportError as error:
        from guardkit.errors import MissingExtra

        raise MissingExtra("guardkit.telemetry.configure()", "telemetry") from error
    _listen(Otel(tracer_provider, meter_provider, logger_provider, text))


def record(recorder: Recorder) -> None:
    """Hand metrics to `recorder` too, from now on."""
    global _recorders
    _recorders = (*_recorders, recorder)
    _rebuild()


def forget(recorder: Recorder) -> None:
    """Hand it no more."""
    global _recorders
    _recorders = tuple(r for r in _recorders if r is not recorder)
    _rebuild()


def batch(loop: str, rows: int, times: int = 1) -> None:
    """`rows` texts or pieces went through a model of `loop` in one forward pass."""
    if (emitter := active()) is not None:
        emitter.observe(names.BATCH, rows, {"loop": loop}, times)


def readings() -> Iterator[tuple[Metric, dict[str, str], float]]:
    """What is read when it is asked for (`names.READ`), now."""
    yield names.STREAMS_OPEN, {}, len(streams)
    totals: Counter[tuple[Metric, str]] = Counter()
    near = ((loop.name.removeprefix("guardkit-"), loop.load()) for loop in loops())
    for loop, load in (*near, *(each for model in list(far) for each in model.loads())):
        found: dict[Metric, int] = {names.QUEUE: load.waiting}
        if load.room:
            found |= {names.CACHE_USED: load.cached, names.CACHE_ROOM: load.room, names.CACHE_HITS: load.hits}
        for metric, value in found.items():
            totals[metric, loop] += value
    for (metric, name), total in totals.items():
        yield metric, {"loop": name}, total


def _look() -> None:
    from guardkit.telemetry.otel import Otel, configured

    if configured():
        with _looking:
            if not _settled:
                _listen(Otel())


def _listen(otel: Otel | None) -> None:
    global _otel, _settled
    _otel, _settled = otel, True
    _rebuild()


def _rebuild() -> None:
    global _emitter
    from guardkit.telemetry.watch import Emitter

    recorders = _recorders if _otel is None else (_otel, *_recorders)
    _emitter = Emitter(_otel, recorders) if recorders else None


__all__ = ["Recorder", "active", "batch", "configure", "forget", "readings", "record", "streams"]

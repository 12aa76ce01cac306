"""What telemetry costs: a check and a streamed token with nobody listening, and with OpenTelemetry and Prometheus.

    python benchmarks/telemetry_overhead.py [--checks 300]

The model is a double that answers at once, so that the figures are of guardkit's own code. Each way is measured in
turns with the others, and the fastest turn counts.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

from common import header, table

from guardkit import telemetry
from guardkit.testing import FakeGuard

TURNS = 7
WORDS = [f"word{i} " for i in range(400)]


def nobody() -> None:
    telemetry.configure(enabled=False)


def no_provider() -> None:
    """OpenTelemetry is imported by somebody, and no provider is set: looked for at each call."""
    import opentelemetry.trace  # noqa: F401

    telemetry.configure(enabled=False)
    telemetry._settled = False


def prometheus() -> Callable[[], object]:
    from guardkit.telemetry.prometheus import Prometheus

    telemetry.configure(enabled=False)
    return Prometheus().close


def spans() -> None:
    """Recorded, and dropped where they end."""
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.trace import TracerProvider

    telemetry.configure(tracer_provider=TracerProvider(), meter_provider=MeterProvider())


def per_check_us(guard: FakeGuard, n: int) -> float:
    start = time.perf_counter()
    for _ in range(n):
        guard.check("hello there")
    return (time.perf_counter() - start) / n * 1e6


def per_token_us(guard: FakeGuard) -> float:
    with guard.stream() as stream:
        start = time.perf_counter()
        for word in WORDS:
            stream.feed(word)
        return (time.perf_counter() - start) / len(WORDS) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checks", type=int, default=300, help="in a turn (default: 300)")
    checks = parser.parse_args().checks
    header("Telemetry", "opentelemetry-sdk", "prometheus-client")
    guard = FakeGuard({"bad": "unsafe"})
    ways = {
        "nobody listens": nobody,
        "no provider is set": no_provider,
        "Prometheus": prometheus,
        "OpenTelemetry": spans,
    }
    best = {name: [float("inf"), float("inf")] for name in ways}
    for _ in range(TURNS):
        for name, begin in ways.items():
            end = begin()
            best[name][0] = min(best[name][0], per_check_us(guard, checks))
            best[name][1] = min(best[name][1], per_token_us(guard))
            if callable(end):
                end()
    telemetry.configure(enabled=False)
    rows = [[name, f"{check:.1f}", f"{token:.1f}"] for name, (check, token) in best.items()]
    table(["who listens", "us a check", "us a token"], rows)


if __name__ == "__main__":
    main()

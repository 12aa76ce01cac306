"""What the server tells about its work: one object, called on each request, judged text and stream. No texts."""

from __future__ import annotations

from collections import Counter

from guardkit import Decision


class Observer:
    """Counts in memory. Calls are quick, come from one event loop, and raise nothing."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, ...]] = Counter()
        self.requests_open = self.streams_open = 0

    def request_started(self, route: str) -> None:
        self.requests_open += 1

    def request_ended(self, route: str, status: int, action: str, seconds: float) -> None:
        """seconds: from the first byte in to the last byte out."""
        self.requests_open -= 1
        self.counts["requests", route, str(status), action] += 1

    def judged(self, decision: Decision, model: str, policy: str, seconds: float) -> None:
        """A whole text was judged, or was not (`decision.judged`). seconds: of the batch that it was part of."""
        severity = decision.verdict.severity.value if decision.verdict else "none"
        self.counts["verdicts", decision.stage.value, severity, decision.action.value] += 1

    def stream_opened(self, stage: str, model: str, policy: str) -> None:
        self.streams_open += 1

    def stream_closed(
        self, decision: Decision, model: str, policy: str, released: int, withheld: int, retracted: int
    ) -> None:
        """One text of a streamed answer has ended; characters."""
        self.streams_open -= 1
        self.judged(decision, model, policy, 0.0)
        self.counts["characters", "released"] += released
        self.counts["characters", "withheld"] += withheld
        self.counts["characters", "retracted"] += retracted

    def forwarded(self, first: bool, seconds: float) -> None:
        """A piece of a streamed answer went out. seconds: that the guard took since the piece came in, the time that
        it waited for what follows it left out; first: of this answer."""

    def exposition(self) -> tuple[bytes, str]:
        """The body of ``/metrics``, and its content type."""
        lines = [f'guardkit_{kind}_total{{kind="{" ".join(rest)}"}} {n}' for (kind, *rest), n in self.counts.items()]
        return ("\n".join(lines) + "\n").encode(), "text/plain; version=0.0.4; charset=utf-8"

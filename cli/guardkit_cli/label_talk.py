"""What `guard label` says on stderr while it runs, and at its end."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import TYPE_CHECKING

from guardkit.labelling.labels import Tally
from guardkit_cli.output import escape, is_terminal, say

if TYPE_CHECKING:
    from guardkit.labelling.jobs import Job


def _size(job: Job) -> int:
    """Bytes of an input, where it is on this machine."""
    try:
        return os.stat(job.given.path).st_size
    except OSError:
        return 1


class Talk:
    """Progress, what went wrong, and the summary, on stderr."""

    def __init__(self, jobs: Sequence[Job], quiet: bool):
        self._jobs, self._quiet = jobs, quiet
        self._start = self._next = perf_counter()
        self._found = Tally()
        self.shares: Mapping[str, float] = {}  # of the run, by the output's name
        self._sizes = {job.name: _size(job) for job in jobs}
        self._first: tuple[float, float] | None = None  # when something was judged first, and how much was done then
        self._at: Job | None = None
        self._is_terminal = is_terminal(sys.stderr)
        self._is_drawn = False
        self.n_problems = 0

    def told(self, job: Job, found: Tally) -> None:
        self._at = job
        self._found.update(found)
        now = perf_counter()
        if self._first is None:
            self._first = now, self._done()
        if self._quiet or now < self._next:
            return
        self._next = now + (0.2 if self._is_terminal else 30.0)
        self._draw(now)

    def _done(self) -> float:
        """The share of all inputs that is done, by their sizes."""
        done = sum(size * self.shares.get(name, 0.0) for name, size in self._sizes.items())
        return done / max(sum(self._sizes.values()), 1)

    def _left(self, now: float) -> str:
        """How long the rest takes at the rate so far."""
        if self._first is None:
            return ""
        start, before = self._first
        done = self._done()
        if done - before < 1e-6 or now - start < 1:
            return ""
        seconds = (now - start) * (1 - done) / (done - before)
        left = (
            f"{seconds:.0f} s"
            if seconds < 90
            else f"{seconds / 60:.0f} min"
            if seconds < 5400
            else f"{seconds / 3600:.1f} h"
        )
        return f"  {done:.0%}, {left} left"

    def _draw(self, now: float) -> None:
        rate = self._found.rows / max(now - self._start, 1e-6)
        counted = {**self._found.severities, "not judged": self._found.not_judged}
        counts = ", ".join(f"{n:,} {name}" for name, n in counted.items() if n)
        name = escape(self._at.given.path) if self._at else ""
        line = f"{name}  {self._found.rows:,} rows  {rate:,.0f}/s{self._left(now)}  {counts}"
        if self._is_terminal:
            sys.stderr.write(f"\r\x1b[K{line}")
            self._is_drawn = True
        else:
            sys.stderr.write(f"guard: {line}\n")
        sys.stderr.flush()

    def wipe(self) -> None:
        if self._is_drawn:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self._is_drawn = False

    def problem(self, job: Job, error: Exception) -> None:
        self.wipe()
        self.n_problems += 1
        say(str(error), "error")

    def summary(self, total: Tally, others: int) -> None:
        self.wipe()
        for error, n in total.errors.items():
            say(f"{n:,} row{'' if n == 1 else 's'} not judged: {error}", "error")
        if self._quiet:
            return
        if others:
            say(f"{others:,} other file{'' if others == 1 else 's'} in there: no data that is known, not read")
        seconds = perf_counter() - self._start
        counts = [f"{total.severities[name]:,} {name}" for name in ("safe", "controversial", "unsafe")]
        actions = [f"{n:,} {name}" for name, n in sorted(total.actions.items()) if n]
        rate = f" ({self._found.rows / seconds:,.0f}/s)" if self._found.rows >= 100 else ""
        before = f", {total.rows - self._found.rows:,} of them before" if total.rows > self._found.rows else ""
        rows = f"{total.rows:,} row{'' if total.rows == 1 else 's'}{before}"
        say(f"{rows}: {', '.join(counts)}, {total.not_judged:,} not judged; {seconds:.1f} s{rate}")
        say(f"by the policy: {', '.join(actions) or 'nothing'}")

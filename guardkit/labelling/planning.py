"""What a run will take, before it: rows, tokens, and time by the throughput that a sample shows."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from guardkit.labelling.choosing import Chosen, Sample
from guardkit.labelling.jobs import Job, Settings, counted
from guardkit.labelling.judging import Judge
from guardkit.labelling.rows import Row

SAMPLE_ROWS = 256
WARM_UP_ROWS = 16


@dataclass(frozen=True)
class Plan:
    """rows: of all inputs, or of the sample that is asked for; labelled: of them, in outputs that are done. tokens: of
    all rows, by the model's own tokenizer on the `measured` rows. rows_per_s, tokens_per_s: judged by this guard on
    this machine; seconds: for what is not labelled yet."""

    inputs: int
    rows: int
    labelled: int
    measured: int
    tokens: int
    rows_per_s: float
    tokens_per_s: float

    @property
    def seconds(self) -> float:
        return (self.rows - self.labelled) / self.rows_per_s if self.rows_per_s else 0.0

    def lines(self) -> list[str]:
        """For people."""
        mean = self.tokens / self.rows if self.rows else 0.0
        done = f", {self.labelled:,} of them labelled already" if self.labelled else ""
        return [
            f"{self.inputs:,} input{'' if self.inputs == 1 else 's'}, {self.rows:,} rows{done}; "
            f"about {_short(self.tokens)} tokens ({mean:,.0f} a row)",
            f"measured here on {self.measured:,} rows: {self.rows_per_s:,.0f} rows/s, "
            f"{_short(self.tokens_per_s)} tokens/s",
            f"time left: about {duration(self.seconds)}",
        ]


def plan(jobs: Sequence[Job], judge: Judge, settings: Settings, n_sample: int = SAMPLE_ROWS) -> Plan:
    """Count the rows, and judge some that are drawn at random; their labels are not kept."""
    drawn = counted(Sample(number=n_sample), jobs, settings.column)
    rows = [row for job in jobs for row in _rows(job, settings, drawn.of(job.name))]
    judge.labels(rows[:WARM_UP_ROWS])
    timed = [row for row in rows[WARM_UP_ROWS:] if row.error is None] or [row for row in rows if row.error is None]
    judge.forget()
    start = time.perf_counter()
    for at in range(0, len(timed), settings.batch_rows):
        judge.labels(timed[at : at + settings.batch_rows])
    seconds = time.perf_counter() - start
    tokens = sum(_tokens(judge, row) for row in timed)
    total = sum(drawn.counts.values())
    if settings.sample is not None:
        total = min(total, settings.sample.number or round(total * (settings.sample.share or 1)))
    done = [found["counts"]["rows"] for job in jobs if (found := job.progress.done) is not None]
    n = max(len(timed), 1)
    return Plan(
        inputs=len(jobs),
        rows=total,
        labelled=min(sum(done), total),
        measured=len(timed),
        tokens=round(total * tokens / n),
        rows_per_s=len(timed) / max(seconds, 1e-9),
        tokens_per_s=tokens / max(seconds, 1e-9),
    )


def _rows(job: Job, settings: Settings, chosen: Chosen) -> list[Row]:
    found: list[Row] = []
    if not chosen.rows:
        return found
    last = max(chosen.rows)
    with job.given.local() as path:
        for unit in job.given.units(path, settings.column, judged=True, field=settings.reading.field):
            at = [i for i in range(len(unit)) if chosen(unit.first + i)]
            if at:
                found += [replace(row, index=len(found)) for row in unit.rows(settings.reading, at)]
            if unit.first + len(unit) > last:
                break
    return found


def _tokens(judge: Judge, row: Row) -> int:
    tokenizer = judge.guards[0].model.tokenizer
    texts = [item if isinstance(item, str) else "\n".join(m.said for m in item) for item in row.items]
    return sum(len(tokenizer.encode(text)[0]) for text in texts)


def _short(number: float) -> str:
    for size, name in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if number >= size:
            return f"{number / (1e3 if name == 'k' else size):,.1f} {name}"
    return f"{number:,.0f}"


def duration(seconds: float) -> str:
    """For people."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes, hours, days = seconds / 60, seconds / 3600, seconds / 86400
    return f"{minutes:.0f} min" if minutes < 90 else f"{hours:.1f} hours" if hours < 48 else f"{days:,.1f} days"

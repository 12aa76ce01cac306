"""What was found in a data set, as one HTML page: by severity, category and score, and by its own columns."""

from __future__ import annotations

import heapq
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from guardkit import pages
from guardkit._version import __version__
from guardkit.evaluation import charts
from guardkit.labelling.agreement import agreement, pairs
from guardkit.labelling.jobs import Job, Settings
from guardkit.labelling.labels import Label
from guardkit.pages import html
from guardkit.verdict import SEVERITIES

BINS = 20
MAX_VALUES = 20  # of a column that is shown
MAX_WORST = 20
MAX_TEXT = 2_000
_NAMES = (*(s.value for s in SEVERITIES), "not judged")


@dataclass
class Found:
    """What is counted, a row at a time: memory does not grow with the rows."""

    severities: Counter[str] = field(default_factory=Counter)
    actions: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    categories: dict[str, Counter[str]] = field(default_factory=dict)
    files: dict[str, Counter[str]] = field(default_factory=dict)
    columns: dict[str, dict[str, Counter[str]] | None] = field(default_factory=dict)
    risks: list[int] = field(default_factory=lambda: [0] * BINS)
    worst: list[tuple[float, int, str, str]] = field(default_factory=list)
    votes: Counter[str] = field(default_factory=Counter)
    """How often guards that voted gave each combination of severities, joined by blanks."""
    voters: tuple[str, ...] = ()
    rows: int = 0

    def add(self, file: str, index: int, record: Mapping[str, Any], label: Label) -> None:
        severity = label["severity"] or "not judged"
        self.rows += 1
        self.severities[severity] += 1
        self.actions[label["action"]] += 1
        self.files.setdefault(file, Counter())[severity] += 1
        if "error" in label and (label["error"] in self.errors or len(self.errors) < MAX_VALUES):
            self.errors[label["error"]] += 1
        for category in label["categories"] if label["severity"] not in (None, "safe") else ():
            self.categories.setdefault(category, Counter())[severity] += 1
        if "votes" in label and label["severity"] is not None:
            self.voters = tuple(vote["model"] for vote in label["votes"])
            self.votes[" ".join(vote["severity"] for vote in label["votes"])] += 1
        for name, value in record.items():
            self._column(str(name), value, severity)
        if label["scores"] and label["severity"] is not None:
            risk = 1.0 - label["scores"]["safe"]
            self.risks[min(max(int(risk * BINS), 0), BINS - 1)] += 1
            if label["severity"] != "safe":
                entry = (risk, -self.rows, f"{file}, row {index + 1}", _shown(record, label))
                (heapq.heappush if len(self.worst) < MAX_WORST else heapq.heappushpop)(self.worst, entry)

    def _column(self, name: str, value: object, severity: str) -> None:
        """Columns of few values are told apart by them; one with more is left out."""
        known = self.columns.setdefault(name, {})
        if known is None:
            return
        if not isinstance(value, str | int | bool | None) or (isinstance(value, str) and len(value) > 60):
            self.columns[name] = None
            return
        text = "(none)" if value is None else str(value)
        if text not in known and len(known) >= MAX_VALUES:
            self.columns[name] = None
            return
        known.setdefault(text, Counter())[severity] += 1


def _shown(record: Mapping[str, Any], label: Label) -> str:
    return json.dumps(record, ensure_ascii=False, default=str)[:MAX_TEXT]


def collect(jobs: Sequence[Job], settings: Settings) -> Found:
    """What is in the outputs that are written, from their inputs and labels."""
    found = Found()
    for job in jobs:
        if job.progress.done is None:
            continue
        labels = job.progress.labels()
        kept = next(labels, None)
        with job.given.local() as path:
            for unit in job.given.units(path, settings.column):
                records = unit.objects()
                while kept is not None and kept[0] < unit.first + len(unit):
                    record = records[kept[0] - unit.first]
                    found.add(job.name, kept[0], record, json.loads(kept[2]))
                    kept = next(labels, None)
    return found


def as_html(found: Found, about: Sequence[str], *, with_text: bool = True) -> str:
    """The page. about: lines of what was labelled, by which guard."""
    severity = {name: found.severities[name] for name in _NAMES}
    parts = [
        pages.head("guard label", style="body{max-width:88rem}"),
        pages.header("guard label", f"guardkit {__version__}. {found.rows:,} rows.", *about),
        "<main>",
        _section("Severity", ["severity", "rows", "share"], _shares(severity, found.rows)),
        _section("Action", ["action", "rows", "share"], _shares(found.actions, found.rows)),
    ]
    if found.errors:
        parts.append(_section("Not judged", ["reason", "rows"], [[e, f"{n:,}"] for e, n in found.errors.most_common()]))
    if found.categories:
        parts.append(_by("Category", "category", found.categories))
    parts += _agreement(found)
    if found.rows > found.severities["not judged"]:
        bins = [f"{i / BINS:.2f}" for i in range(BINS)]
        chart = charts.bar_chart("Risk (1 - safe)", "score", "rows", bins, [("rows", found.risks)])
        parts.append(f'<section><h2>Scores</h2><div class="charts"><figure>{chart}</figure></div></section>')
    if len(found.files) > 1:
        parts.append(_by("File", "file", found.files))
    parts += [_by(f"Column {name}", name, known) for name, known in found.columns.items() if known and len(known) > 1]
    parts += _worst(found, with_text)
    parts.append(f"</main>{pages.FOOT}")
    return "\n".join(parts)


def _agreement(found: Found) -> Iterator[str]:
    """How far guards that voted agree, and what each two of them said."""
    if not found.votes:
        return
    lines = agreement(found.votes, found.voters).lines()
    yield f"<section><h2>Agreement of the guards</h2>{''.join(f'<p>{html(line)}</p>' for line in lines)}</section>"
    names = [s.value for s in SEVERITIES]
    for (one, other), table in pairs(found.votes, found.voters).items():
        rows = [[a, *(f"{table[a, b]:,}" for b in names)] for a in names]
        yield _section(f"{one} and {other}", [f"{one} \\ {other}", *names], rows)


def _shares(counts: Mapping[str, int], rows: int) -> list[list[str]]:
    return [[name, f"{n:,}", f"{n / max(rows, 1):.2%}"] for name, n in counts.items()]


def _by(title: str, name: str, known: Mapping[str, Counter[str]]) -> str:
    rows = []
    for value, counts in sorted(known.items(), key=lambda item: -sum(item[1].values())):
        total = sum(counts.values())
        flagged = counts["controversial"] + counts["unsafe"]
        rows.append([value, *(f"{counts[n]:,}" for n in _NAMES), f"{flagged / max(total, 1):.2%}"])
    return _section(title, [name, *_NAMES, "not safe"], rows)


def _section(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return f"<section><h2>{html(title)}</h2>{pages.table(head, rows, title, wide=True)}</section>"


def _worst(found: Found, with_text: bool) -> Iterator[str]:
    if not found.worst:
        return
    yield f"<section><h2>The {len(found.worst)} with the highest risk</h2>"
    for risk, _, where, text in sorted(found.worst, reverse=True):
        about = f"{html(where)}: risk {risk:.3f}"
        if with_text:
            yield f'<details><summary>{about}</summary><div class="text" dir="auto">{html(text)}</div></details>'
        else:
            yield f"<p>{about}</p>"
    yield "</section>"

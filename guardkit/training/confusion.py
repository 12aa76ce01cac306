"""How two annotations of the same rows differ: agreement, Cohen's kappa, confusion by severity, and all that by the
values of columns. As lines for people, as JSON, and as a page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from guardkit import pages
from guardkit._version import __version__
from guardkit.labelling.agreement import cohen, shown
from guardkit.pages import html
from guardkit.training.cross import Labelled
from guardkit.verdict import SEVERITIES, Severity

NAMES = tuple(s.value for s in SEVERITIES)
COLUMNS = ("source", "lang", "language")  # told apart where records have them
MAX_VALUES = 50  # of a column that is told apart
PAIRS = {
    "given and final": ("given", "final"),
    "strict and loose": ("strict", "loose"),
    "given and teacher": ("given", "teacher"),
}
Table = Counter[tuple[str, str]]


@dataclass
class Counts:
    """What is counted of some rows. tables: of each of `PAIRS`, how often it gave each two severities."""

    rows: int = 0
    no_label: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    sources: Counter[str] = field(default_factory=Counter)
    tables: dict[str, Table] = field(default_factory=lambda: {name: Counter() for name in PAIRS})

    def add(self, given: Severity | None, label: Labelled) -> None:
        self.rows += 1
        if label.error is not None:
            self.errors[label.error] += 1
        if given is None:
            self.no_label += label.error is None
            return
        self.sources[label.source] += 1
        said = {"given": given, "final": label.severity}
        said |= {"strict": label.strict, "loose": label.loose, "teacher": label.teacher}
        for name, (one, other) in PAIRS.items():
            a, b = said[one], said[other]
            if a is not None and b is not None:
                self.tables[name][a.value, b.value] += 1

    @property
    def not_judged(self) -> int:
        return sum(self.errors.values())

    def to_dict(self) -> dict[str, Any]:
        found: dict[str, Any] = {"rows": self.rows, "no_label": self.no_label, "not_judged": self.not_judged}
        found |= {"errors": dict(self.errors.most_common(20)), "sources": dict(self.sources)}
        for name, table in self.tables.items():
            if table:
                agreed, kappa = cohen(table)
                cells = {one: {other: table[one, other] for other in NAMES} for one in NAMES}
                found[name] = {"rows": table.total(), "agree": agreed, "kappa": kappa, "confusion": cells}
        return found


@dataclass
class Comparison:
    """Counts of all rows, and of the rows of each value of the columns that are told apart; a column with more than
    `MAX_VALUES` different ones is not."""

    columns: Sequence[str] = ()
    whole: Counts = field(default_factory=Counts)
    by: dict[str, dict[str, Counts] | None] = field(default_factory=dict)

    def add(self, record: Mapping[str, Any], given: Severity | None, label: Labelled) -> None:
        self.whole.add(given, label)
        for name in self.columns or COLUMNS:
            known = self.by.setdefault(name, {}) if name in record else None
            if known is None:
                continue
            value = str(record[name])
            if value not in known and len(known) >= MAX_VALUES:
                self.by[name] = None
                continue
            known.setdefault(value, Counts()).add(given, label)

    @property
    def told_apart(self) -> dict[str, dict[str, Counts]]:
        return {name: known for name, known in self.by.items() if known and len(known) > 1}

    def to_dict(self) -> dict[str, Any]:
        by = {name: {v: c.to_dict() for v, c in known.items()} for name, known in self.told_apart.items()}
        return self.whole.to_dict() | {"by": by}

    def lines(self) -> list[str]:
        """For people."""
        found = [_summary(self.whole)]
        for name, table in self.whole.tables.items():
            if table:
                found += [_agreement(name, table), *_grid(PAIRS[name], table)]
        for name, known in self.told_apart.items():
            found.append(f"by {name}:")
            found += [f"  {value}: {_short(counts)}" for value, counts in _largest(known)]
        return found

    def html(self, about: Sequence[str]) -> str:
        """One page. about: lines of what was labelled, and how."""
        parts = [
            pages.head("labels", style="body{max-width:88rem}"),
            pages.header("labels", f"guardkit {__version__}. {_summary(self.whole)}.", *about),
            "<main>",
            _section("Where labels come from", ["source", "rows"], [[s, f"{n:,}"] for s, n in _named(self.whole)]),
        ]
        for name, table in self.whole.tables.items():
            if table:
                one, other = PAIRS[name]
                rows = [[a, *(f"{table[a, b]:,}" for b in NAMES)] for a in NAMES]
                head = [f"{one} \\ {other}", *NAMES]
                parts.append(_section(name.capitalize(), head, rows, _agreement(name, table)))
        for name, known in self.told_apart.items():
            parts.append(_section(f"By {name}", [name, *_HEAD], [[v, *_cells(c)] for v, c in _largest(known)]))
        return "\n".join([*parts, f"</main>{pages.FOOT}"])


_HEAD = ("rows", "controversial", "changed", "kappa of given and final", "not judged")


def _cells(counts: Counts) -> list[str]:
    table = counts.tables["given and final"]
    n = table.total()
    controversial = sum(table[one, "controversial"] for one in NAMES)
    agreed, kappa = cohen(table)
    shares = [f"{controversial / n:.1%}", f"{1 - agreed:.1%}", shown(kappa)] if n else ["-", "-", "-"]
    return [f"{counts.rows:,}", *shares, f"{counts.not_judged:,}"]


def _short(counts: Counts) -> str:
    rows, controversial, changed, kappa, not_judged = _cells(counts)
    return f"{rows} rows, {controversial} controversial, {changed} changed, kappa {kappa}, {not_judged} not judged"


def _largest(known: Mapping[str, Counts]) -> list[tuple[str, Counts]]:
    return sorted(known.items(), key=lambda item: (-item[1].rows, item[0]))


def _named(counts: Counts) -> Iterator[tuple[str, int]]:
    names = {
        "given": "as given",
        "models": "changed: both models say otherwise",
        "disagreement": "controversial: the models disagree",
        "teacher": "the teacher's",
    }
    yield from ((names[source], n) for source, n in counts.sources.most_common())
    yield "no label", counts.no_label


def _summary(counts: Counts) -> str:
    by = ", ".join(f"{n:,} {name}" for name, n in _named(counts))
    return f"{counts.rows:,} rows: {by}; {counts.not_judged:,} not judged"


def _agreement(name: str, table: Table) -> str:
    agreed, kappa = cohen(table)
    return f"{name}: {agreed:.1%} of {table.total():,} rows agree, Cohen's kappa {shown(kappa)}"


def _grid(pair: tuple[str, str], table: Table) -> list[str]:
    head = f"{pair[0]} \\ {pair[1]}"
    rows = [[head, *NAMES], *([one, *(f"{table[one, other]:,}" for other in NAMES)] for one in NAMES)]
    return ["  " + row[0].ljust(20) + "".join(cell.rjust(15) for cell in row[1:]) for row in rows]


def _section(title: str, head: Sequence[str], rows: Sequence[Sequence[str]], note: str = "") -> str:
    said = f"<p>{html(note)}</p>" if note else ""
    return f"<section><h2>{html(title)}</h2>{said}{pages.table(head, rows, title, wide=True)}</section>"

"""Results as tables of text: for terminals, Markdown and HTML alike; and as JSON."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from guardkit._version import __version__
from guardkit.evaluation.figures import SetFigures
from guardkit.evaluation.locations import BINS
from guardkit.evaluation.metrics import Interval, Rates
from guardkit.evaluation.specs import Published
from guardkit.verdict import SEVERITIES

NOTE = (
    "Percent. Strict counts controversial as positive, loose as negative, in labels and verdicts alike; best is the "
    "higher F1 of the two, with its 95% bootstrap interval; AP, FPR@R90 and ECE are of that mode. AP: average "
    "precision. FPR@R90: false positives where 90% are found. ECE: calibration error. Not judged: rows without a "
    "verdict, in no figure. Published: best of strict and loose, by others, on the same set."
)
SHOWN_PUBLISHED = "Qwen3Guard-Gen-0.6B"
PublishedTable = Mapping[str, Sequence[Published]]


@dataclass(frozen=True)
class Table:
    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _with_interval(value: float | None, interval: Interval | None) -> str:
    if value is None or interval is None:
        return percent(value)
    return f"{percent(value)} [{percent(interval.low)}-{percent(interval.high)}]"


def _four(rates: Rates | None) -> list[str]:
    if rates is None:
        return ["-"] * 4
    return [percent(v) for v in (rates.f1, rates.precision, rates.recall, rates.fpr)]


# ----------------------------------------------------------------------------------------------------------- tables


def summary(results: Sequence[SetFigures], published: PublishedTable, shown: str = SHOWN_PUBLISHED) -> Table:
    """A row for each set and model that has labels of severity; sets in order, models side by side below each other."""
    known = {r.spec: value for r in results if (value := _best(_published(r, published), shown))}
    head = ["set", "model", "rows", "not judged", "best F1", "strict F1", "P", "R", "FPR", "loose F1", "P", "R", "FPR"]
    head += ["best mode", "AP", "FPR@R90", "ECE", *([f"published: {shown}"] if known else [])]
    rows = []
    for r in _by_set(results):
        if r.strict is None or r.loose is None:
            continue
        best = r.mode(r.best_mode or "strict") or r.strict
        row = [r.dataset, r.model, f"{r.n_rows:,}", f"{r.n_not_judged + r.n_unread:,}"]
        row += [_with_interval(r.best_f1, r.best_interval), *_four(r.strict.rates), *_four(r.loose.rates)]
        row += [r.best_mode or "-", percent(best.average_precision), percent(best.fpr_at["0.9"]), percent(best.ece)]
        if known:
            row.append(known.get(r.spec, "-"))
        rows.append(row)
    return Table("Severity", head, rows)


def _published(r: SetFigures, published: PublishedTable) -> Sequence[Published]:
    """What others report of the same set; a file that is only called like one is another set."""
    return published.get(r.spec, ()) if r.spec is not None else ()


def _best(figures: Sequence[Published], model: str) -> str:
    """The higher of a model's published strict and loose F1; empty where there is none."""
    values = [p.value for p in figures if p.model == model and p.mode in ("strict", "loose")]
    return f"{max(values):.1f}" if values else ""


def _named(figures: Sequence[Published], mode: str) -> str:
    return ", ".join(f"{p.value:g} {p.model}" for p in figures if p.mode == mode) or "-"


def refusals(results: Sequence[SetFigures], published: PublishedTable) -> Table:
    rows = []
    for r in _by_set(results):
        if r.refusal is not None:
            f1, precision, recall, fpr = _four(r.refusal.rates)
            known = _named(_published(r, published), "refusal")
            n = sum((r.refusal.rates.tp, r.refusal.rates.fp, r.refusal.rates.fn, r.refusal.rates.tn))
            counts = [f"{n:,}", f"{r.refusal.n_not_judged + r.n_not_judged + r.n_unread:,}"]
            rows.append([r.dataset, r.model, *counts, f1, precision, recall, fpr, known])
    return Table("Refusal", ["set", "model", "rows", "not judged", "F1", "P", "R", "FPR", "published F1"], rows)


def streaming(results: Sequence[SetFigures], published: PublishedTable) -> Table:
    head = ["set", "model", "mode", "unsafe", "no location", "exact hit", "within 128", *BINS]
    head += ["published hit", "published within"]
    rows = []
    for r in _by_set(results):
        known = [_named(_published(r, published), figure) for figure in ("hit", "within")]
        for mode, s in r.stops.items():
            row = [r.dataset, r.model, mode, f"{s.n:,}", f"{r.n_without_location:,}", percent(s.hit), percent(s.within)]
            rows.append([*row, *(str(s.bins[b]) for b in BINS), *known])
    return Table("Where streams are stopped", head, rows)


def shown_early(results: Sequence[SetFigures]) -> Table:
    head = ["set", "model", "mode", "hold-back", "mean tokens", "median", "p90", "texts with none"]
    rows = [
        [r.dataset, r.model, mode, str(e.holdback), f"{e.mean:.1f}", f"{e.median:g}", f"{e.p90:g}", percent(e.none)]
        for r in _by_set(results)
        for mode, s in r.stops.items()
        for e in s.early
    ]
    return Table("Tokens shown too early", head, rows)


def languages(results: Sequence[SetFigures]) -> Table:
    head = ["set", "model", "language", "rows", "strict F1", "P", "R", "FPR", "loose F1", "P", "R", "FPR"]
    rows = [
        [r.dataset, r.model, f.language, f"{f.n:,}", *_four(f.strict), *_four(f.loose)]
        for r in _by_set(results)
        for f in r.languages
    ]
    return Table("By language", head, rows)


def categories(results: Sequence[SetFigures]) -> Table:
    head = ["set", "model", "category", "unsafe rows", "flagged strict", "flagged loose", "named: F1", "P", "R"]
    rows = [
        [r.dataset, r.model, f.category, f"{f.n:,}", percent(f.flagged), percent(f.flagged_loose), *_four(f.named)[:3]]
        for r in _by_set(results)
        for f in r.categories
    ]
    return Table("By category", head, rows)


def confusion(results: Sequence[SetFigures]) -> Table:
    names = [s.value for s in SEVERITIES]
    rows = [
        [r.dataset, r.model, label, *(f"{n:,}" for n in counts)]
        for r in _by_set(results)
        for label, counts in zip(names, r.confusion, strict=False)
        if any(counts)
    ]
    return Table("Labels by verdicts", ["set", "model", "label", *(f"said {n}" for n in names)], rows)


def published_figures(results: Sequence[SetFigures], published: PublishedTable) -> Table:
    rows = [
        [name, p.model, p.mode, f"{p.value:.1f}", p.source]
        for name, figures in _same_sets(results, published)
        for p in figures
    ]
    return Table("Published by others, same sets", ["set", "model", "mode", "figure", "source"], rows)


def _same_sets(results: Sequence[SetFigures], published: PublishedTable) -> Iterator[tuple[str, Sequence[Published]]]:
    for name in dict.fromkeys(r.spec for r in results):
        if name is not None and name in published:
            yield name, published[name]


def faults(results: Sequence[SetFigures]) -> Table:
    rows = [
        [r.dataset, r.model, f"{n:,}", error[:200]] for r in _by_set(results) for error, n in sorted(r.errors.items())
    ]
    return Table("Not judged", ["set", "model", "rows", "why"], rows)


def sets(results: Sequence[SetFigures]) -> Table:
    rows = []
    for r in _by_set(results):
        counts = [f"{r.n_unlabelled:,}", f"{r.n_left_out:,}"]
        rows.append([r.dataset, r.title, r.revision, r.licence or "-", *counts, r.model, r.model_revision])
    head = ["set", "title", "revision", "licence", "rows without label", "left out", "model", "model revision"]
    return Table("Read", head, rows)


def all_tables(results: Sequence[SetFigures], published: PublishedTable, shown: str = SHOWN_PUBLISHED) -> list[Table]:
    """Every table that has rows."""
    tables = [
        *(summary(results, published, shown), refusals(results, published), streaming(results, published)),
        *(shown_early(results), languages(results), categories(results), confusion(results), faults(results)),
        *(published_figures(results, published), sets(results)),
    ]
    return [t for t in tables if t.rows]


def _by_set(results: Sequence[SetFigures]) -> list[SetFigures]:
    order = {name: i for i, name in enumerate(dict.fromkeys(r.dataset for r in results))}
    return sorted(results, key=lambda r: order[r.dataset])


# ---------------------------------------------------------------------------------------------------------- formats


def as_text(table: Table) -> str:
    """Columns aligned with blanks; what may be a number stands to the right."""
    cells = [list(table.head), *map(list, table.rows)]
    widths = [max(_width(row[i]) for row in cells) for i in range(len(table.head))]
    left = [i < 2 or not any(row[i][:1].isdigit() or row[i] == "-" for row in cells[1:]) for i in range(len(widths))]
    lines = []
    for row in cells:
        padded = [
            cell + " " * (w - _width(cell)) if to_left else " " * (w - _width(cell)) + cell
            for cell, w, to_left in zip(row, widths, left, strict=True)
        ]
        lines.append("  ".join(padded).rstrip())
    return "\n".join([f"{table.title}", *lines])


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def as_markdown(results: Sequence[SetFigures], published: PublishedTable, shown: str = SHOWN_PUBLISHED) -> str:
    parts = [f"# guard eval\n\nguardkit {__version__}. {NOTE}"]
    for table in all_tables(results, published, shown):
        head = f"| {' | '.join(map(_cell, table.head))} |\n|{'---|' * len(table.head)}"
        rows = "\n".join(f"| {' | '.join(map(_cell, row))} |" for row in table.rows)
        parts.append(f"## {table.title}\n\n{head}\n{rows}")
    return "\n\n".join(parts) + "\n"


def _cell(text: str) -> str:
    # Without "](" there is neither a link nor an image, which would be fetched when the report is looked at.
    for plain, escaped in (("\\", "\\\\"), ("|", "\\|"), ("<", "&lt;"), ("](", "]\\("), ("\n", " "), ("\r", " ")):
        text = text.replace(plain, escaped)
    return text


def as_dict(
    results: Sequence[SetFigures], published: PublishedTable, missing: Sequence[str], *, with_text: bool = False
) -> dict[str, Any]:
    """JSON-ready. missing: sets and models that were asked for and could not be read or loaded."""
    return {
        "guardkit": __version__,
        "results": [r.to_dict(with_text=with_text) for r in results],
        "published": {name: [asdict(p) for p in figures] for name, figures in _same_sets(results, published)},
        "missing": list(missing),
    }

"""Results as one HTML page: tables, charts, the worst mistakes. Self-contained; every text is escaped and hidden."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from guardkit import pages
from guardkit._version import __version__
from guardkit.evaluation import charts
from guardkit.evaluation.columns import MAX_SHOWN, Mistake
from guardkit.evaluation.figures import HISTOGRAM_BINS, ModeFigures, SetFigures
from guardkit.evaluation.locations import BINS
from guardkit.evaluation.report import NOTE, SHOWN_PUBLISHED, PublishedTable, Table, all_tables
from guardkit.pages import html
from guardkit.verdict import SEVERITIES


def as_html(
    results: Sequence[SetFigures],
    published: PublishedTable,
    shown: str = SHOWN_PUBLISHED,
    *,
    missing: Sequence[str] = (),
    with_text: bool = True,
) -> str:
    lost = f"Could not be read or loaded, not scored: {', '.join(missing)}"
    parts = [
        pages.head("guard eval", style="body{max-width:88rem}"),
        pages.header("guard eval", f"guardkit {__version__}. {NOTE}"),
        "<main>",
        *([f'<p class="warn">{html(lost)}</p>'] if missing else []),
        *map(_table, all_tables(results, published, shown)),
    ]
    for name in dict.fromkeys(r.dataset for r in results):
        own = [r for r in results if r.dataset == name]
        title = f'<p class="note">{html(own[0].title)}</p>' if own[0].title != name else ""
        parts.append(f'<section><h2>{html(name)}</h2>{title}<div class="charts">')
        parts += (f"<figure>{chart}</figure>" for chart in _charts(own))
        parts.append("</div>")
        for r in own:
            parts += _mistakes(r, with_text)
        parts.append("</section>")
    parts.append(f"</main>{pages.FOOT}")
    return "\n".join(parts)


def _table(table: Table) -> str:
    return (
        f"<section><h2>{html(table.title)}</h2>{pages.table(table.head, table.rows, table.title, wide=True)}</section>"
    )


def _charts(own: Sequence[SetFigures]) -> Iterator[str]:
    found = [(r, m) for r in own if (m := r.mode(r.best_mode or "strict")) is not None]
    if any(m.curve for _, m in found):
        lines = [charts.Line(_name(r), m.curve) for r, m in found if m.curve]
        yield charts.line_chart("Precision and recall", "recall", "precision", lines)
    if found:
        lines = [charts.Line(_name(r), _bins(m), dots=True) for r, m in found]
        yield charts.line_chart("Calibration", "score", "share unsafe", lines, diagonal=True)
    for r, m in found:
        labels = [f"{i / HISTOGRAM_BINS:.2f}" for i in range(HISTOGRAM_BINS)]
        series = [("safe", m.histogram[0]), ("unsafe", m.histogram[1])]
        yield charts.bar_chart(f"Scores: {_name(r)}", "score", "rows", labels, series)
    stopped = [r for r in own if r.stops]
    if stopped:
        series = [(f"{r.model} {mode}", [s.bins[b] for b in BINS]) for r in stopped for mode, s in r.stops.items()]
        yield charts.bar_chart("Detection latency", "tokens past the sentence", "texts", BINS, series)
    spoken = list(dict.fromkeys(f.language for r in own for f in r.languages))
    if spoken:
        bars = []
        for r in own:
            by_language = {f.language: 100 * (f.best.f1 or 0.0) for f in r.languages}
            bars.append((r.model, [by_language.get(language, 0.0) for language in spoken]))
        for i in range(0, len(spoken), 12):
            part = [(model, values[i : i + 12]) for model, values in bars]
            yield charts.bar_chart("Best F1 by language", "language", "percent", spoken[i : i + 12], part)


def _name(r: SetFigures) -> str:
    return f"{r.model} ({r.best_mode})"


def _bins(mode: ModeFigures) -> list[tuple[float, float]]:
    return [(b.score, b.positive) for b in mode.calibration if b is not None]


def _mistakes(r: SetFigures, with_text: bool) -> Iterator[str]:
    for title, mistakes in (("Flagged, and safe", r.false_alarms), ("Missed", r.misses)):
        if mistakes:
            yield f"<h3>{html(r.model)}: {title}, the {len(mistakes)} worst (strict)</h3>"
            for mistake in mistakes:
                yield _mistake(mistake, with_text)


def _mistake(m: Mistake, with_text: bool) -> str:
    label, verdict = (pages.badge(SEVERITIES[severity].value) for severity in (m.gold, m.said))
    about = f"row {-m.number}{f' ({html(m.language)})' if m.language else ''}: label {label}, "
    about += f"verdict {verdict}, probability of the wrong answer {m.how_wrong:.3f}"
    if not with_text:
        return f"<p>{about}</p>"
    text = m.text + ("…" if len(m.text) >= MAX_SHOWN else "")
    return f'<details><summary>{about}</summary><div class="text" dir="auto">{html(text)}</div></details>'

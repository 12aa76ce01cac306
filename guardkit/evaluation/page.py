"""Results as one HTML page: tables, charts, the worst mistakes. Self-contained; every text is escaped and hidden."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from guardkit._version import __version__
from guardkit.evaluation import charts
from guardkit.evaluation.columns import MAX_SHOWN, Mistake
from guardkit.evaluation.figures import HISTOGRAM_BINS, ModeFigures, SetFigures
from guardkit.evaluation.locations import BINS
from guardkit.evaluation.report import NOTE, SHOWN_PUBLISHED, PublishedTable, Table, all_tables
from guardkit.verdict import SEVERITIES

_STYLE = """
:root{color-scheme:light dark}
body{font:14px/1.45 system-ui,sans-serif;margin:2em auto;max-width:110em;padding:0 1em}
table{border-collapse:collapse;margin:.5em 0;font-variant-numeric:tabular-nums}
th,td{padding:.2em .6em;border-bottom:1px solid #8884;text-align:left;white-space:nowrap}
div.wide{overflow-x:auto}
svg{margin:.3em;background:#fff;color:#222;border:1px solid #8884}
svg text{font:10px system-ui,sans-serif;fill:#222}
svg .title{font-size:12px;font-weight:600}
svg .grid{stroke:#ddd;fill:none}
svg .guide{stroke:#999;fill:none;stroke-dasharray:4 3}
details{margin:.3em 0}
pre{white-space:pre-wrap;overflow-wrap:anywhere;border-left:3px solid #8888;padding-left:.8em}
"""
# No script, no request: a browser holds the page to that, whatever the texts say.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def as_html(
    results: Sequence[SetFigures],
    published: PublishedTable,
    shown: str = SHOWN_PUBLISHED,
    *,
    missing: Sequence[str] = (),
    with_text: bool = True,
) -> str:
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        '<meta name="viewport" content="width=device-width">',
        f"<title>guard eval</title><style>{_STYLE}</style></head><body>",
        f"<h1>guard eval</h1><p>guardkit {escape(__version__)}. {escape(NOTE)}</p>",
    ]
    if missing:
        parts.append(f"<p><strong>Could not be read or loaded, not scored:</strong> {escape(', '.join(missing))}</p>")
    parts += [_table(table) for table in all_tables(results, published, shown)]
    for name in dict.fromkeys(r.dataset for r in results):
        own = [r for r in results if r.dataset == name]
        parts.append(f"<h2>{escape(name)}</h2><p>{escape(own[0].title)}</p>")
        parts += _charts(own)
        for r in own:
            parts += _mistakes(r, with_text)
    parts.append("</body></html>\n")
    return "\n".join(parts)


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in table.head)
    rows = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows)
    return (
        f'<h2>{escape(table.title)}</h2><div class="wide"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
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
            yield f"<h3>{escape(r.model)}: {title}, the {len(mistakes)} worst (strict)</h3>"
            for mistake in mistakes:
                yield _mistake(mistake, with_text)


def _mistake(m: Mistake, with_text: bool) -> str:
    about = f"row {-m.number}{f' ({m.language})' if m.language else ''}: label {SEVERITIES[m.gold].value}, "
    about += f"verdict {SEVERITIES[m.said].value}, probability of the wrong answer {m.how_wrong:.3f}"
    if not with_text:
        return f"<p>{escape(about)}</p>"
    text = m.text + ("…" if len(m.text) >= MAX_SHOWN else "")
    clean = "".join(c if c.isprintable() or c in "\n\t" else f"\\u{ord(c):04x}" for c in text)
    return f"<details><summary>{escape(about)}</summary><pre>{escape(clean)}</pre></details>"

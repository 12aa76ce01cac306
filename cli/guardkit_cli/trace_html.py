"""The page of `guard trace --html`: one file, no script, nothing loaded; every text escaped."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, TextIO

from guardkit import pages
from guardkit.pages import Html, html, piece, prepared
from guardkit_cli.trace_style import OWN

if TYPE_CHECKING:
    from guardkit.trace import Trace, TracePart
    from guardkit_cli.trace import TraceRow

MAX_QUOTE = 200  # characters of the worst sentence in the report above a text
MAX_CELLS = 240  # of the strip above a part; the sentences of longer ones share cells
_NAMES = {"reasoning": "Reasoning", "response": "Answer", "tool_call": "Tool call"}
_SUMMARIES = {
    "safe": "Nothing was flagged.",
    "reasoning_only": "The reasoning is not safe; what came out of it is.",
    "answer_only": "The answer is not safe, although the reasoning is.",
    "both": "Neither the reasoning nor the answer is safe.",
    "not_judged": "Not all of it was judged: nothing here counts as safe.",
}


class Page:
    """Takes rows as they come and writes the page when it is left. Memory does not grow with the texts."""

    def __init__(self, path: str):
        self._path = path

    def __enter__(self) -> Page:
        self._file: TextIO = Path(self._path).open("w", encoding="utf-8")  # what cannot be written is told at once
        self._body = tempfile.TemporaryFile("w+", encoding="utf-8")
        self._index: list[str] = []
        self._facts = ""
        return self

    def add(self, rows: Sequence[TraceRow]) -> None:
        for row in rows:
            if row.trace is not None and not self._facts:
                self._facts = f"Judged by {html(row.trace.model)}, one score for each {row.trace.unit}. "
            self._index.append(_index_row(row))
            self._body.writelines(_article(row))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file as out, self._body as body:
            note = "<p class='warn'>Interrupted: not all traces are on this page.</p>" if kind is not None else ""
            out.write(pages.head("Reasoning traces", style=OWN))
            out.write(pages.header("Reasoning traces", Html(f"{self._facts}{len(self._index):,} on this page.")))
            out.write(f"<main>{note}{_LEGEND}{_TABLE_HEAD}")
            out.writelines(self._index)
            out.write("</tbody></table></div></nav>\n")
            body.seek(0)
            while piece := body.read(1 << 20):
                out.write(piece)
            out.write(f"</main>{pages.FOOT}")


def _where(row: TraceRow) -> str:
    source = "standard input" if row.record.source in ("", "-") else row.record.source
    message = "" if row.output is None or row.output.message is None else f", message {row.output.message}"
    return f"{source}, line {row.record.line}{message}"


def _anchor(row: TraceRow, part: int | None = None, place: str = "") -> str:
    return f"t{row.index}" + ("" if part is None else f"p{part}{place}")


def _severity(trace: Trace | None, name: str) -> str:
    worst = None if trace is None else getattr(trace, name)
    return "–" if worst is None else pages.badge(worst.value)


def _index_row(row: TraceRow) -> str:
    found = row.trace
    risk = f"{found.risk:.2f}" if found is not None and found.risk is not None else "–"
    cells = [
        f'<a href="#{_anchor(row)}">{html(_where(row))}</a>',
        pages.badge(str(row.action)) if row.judged else '<span class="badge">not judged</span>',
        *(_severity(found, name) for name in ("reasoning", "answer", "tool_calls")),
        risk,
    ]
    return f'<tr class="{_kind(row)}">' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>\n"


def _kind(row: TraceRow) -> str:
    return "plain" if row.judged and row.trace is not None and row.trace.outcome == "safe" else "found"


def _article(row: TraceRow) -> Iterator[str]:
    found = row.trace
    yield f'<article id="{_anchor(row)}" class="{_kind(row)}"><h2>{html(_where(row))}</h2>'
    yield f'<p class="sum">{_summary(found)} Action: <b>{row.action}</b>.</p>'
    if not row.judged:
        yield f'<p class="warn">Not judged: {html(row.error)}</p>'
    if row.output is not None and row.output.prompt:
        yield f'<details><summary>Prompt</summary><p class="text" dir="auto">{html(row.output.prompt)}</p></details>'
    for number, part in enumerate(found.parts if found is not None else ()):
        if part.text.strip() or part.begin is not None:
            yield from _part(row, number, part)
    if not row.judged:  # the parts hold only what was judged
        yield f'<section><h3>As it was read</h3><p class="text" dir="auto">{html(row.record.text)}</p></section>'
    yield '<p class="top"><a href="#top">To the list</a></p></article>\n'


def _summary(found: Trace | None) -> str:
    if found is None:
        return _SUMMARIES["not_judged"]
    if found.outcome == "reasoning_only" and found.answer is None and found.tool_calls is None:
        return "The reasoning is not safe; there is no answer."
    if found.outcome == "answer_only" and found.reasoning is None:
        return "The answer is not safe; there is no reasoning."
    return _SUMMARIES[found.outcome]


def _part(row: TraceRow, number: int, part: TracePart) -> Iterator[str]:
    about = "".join(f" · {c.label}" for c in part.verdict.categories)
    badge = pages.badge(part.severity.value) if row.judged or part.begin is not None else ""  # the rest may be unsafe
    yield f"<section><h3>{_NAMES[part.stage.value]} {badge}{html(about)}</h3><p>"
    yield f"{_count(len(part.sentences), 'sentence')}, {_count(part.n_tokens, 'token')}, highest risk {part.risk:.2f}. "
    if part.worst is not None:
        worst = part.sentences[part.worst]
        quote = part.text[worst.start : min(worst.end, worst.start + MAX_QUOTE)].strip()
        yield (
            f'The worst is <a href="#{_anchor(row, number, f"s{part.worst}")}">sentence {part.worst + 1:,}</a>: '
            f"<q>{html(quote)}{'…' if worst.end - worst.start > MAX_QUOTE else ''}</q>. "
        )
    if part.begin is not None:
        b = part.begin
        yield (
            f'<a href="#{_anchor(row, number, "b")}">The risk begins in sentence {b.sentence + 1:,}, '
            f"at token {b.token + 1:,}, character {b.char + 1:,}</a>."
        )
    yield "</p>"
    per_cell = -(-len(part.sentences) // MAX_CELLS) or 1
    linked = set(range(0, len(part.sentences), per_cell))
    cells = sorted(linked)
    linked.update(() if part.worst is None else (part.worst,))
    yield f'<svg class="strip" viewBox="0 0 {max(len(part.text), 1)} 10" preserveAspectRatio="none" role="group"'
    yield ' aria-label="sentences">'
    for i in cells:
        group = part.sentences[i : i + per_cell]
        shade = pages.shade(max(s.risk for s in group))
        start, width = group[0].start, group[-1].end - group[0].start
        yield f'<a href="#{_anchor(row, number, f"s{i}")}" class="r{shade}" aria-label="sentence {i + 1}">'
        yield f'<rect x="{start}" width="{width}" height="10"></rect></a>'
    yield '</svg><p class="text" dir="auto">'
    yield from _heat(row, number, part, linked)
    yield "</p></section>"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


class _Run(NamedTuple):
    """Neighbouring spans that look the same."""

    start: int
    end: int
    look: tuple[int, str]
    low: float
    high: float


def _runs(part: TracePart) -> Iterator[_Run]:
    run: _Run | None = None
    hidden = 0.0  # the risk of empty spans, shown with the next one
    for span in part.spans:
        risk = max(span.risk, hidden)
        hidden = risk if span.start == span.end else 0.0
        if span.start == span.end:
            continue
        level = span.severity.value if span.flagged else ""
        look = (pages.shade(risk), level)
        if run is not None and run.look == look:
            run = _Run(run.start, span.end, look, min(run.low, risk), max(run.high, risk))
        else:
            if run is not None:
                yield run
            run = _Run(span.start, span.end, look, risk, risk)
    if run is not None:
        yield run


def _heat(row: TraceRow, number: int, part: TracePart, linked: set[int]) -> Iterator[str]:
    """The text: a mark before each sentence and where the risk begins, a shade behind each run of tokens."""
    text = prepared(part.text)
    lead = len(part.text) - len(part.text.lstrip() or part.text)  # the blank lines that models write after thinking
    starts = [max(s.start, lead) for s in part.sentences]
    at, begin = 0, -1 if part.begin is None else max(part.begin.char, lead)
    for run in _runs(part):
        shade, level = run.look
        here = max(run.start, lead)
        opening, closing = "", ""
        if shade or level:
            low, high = f"{run.low:.2f}", f"{run.high:.2f}"
            label = f"risk {low}" + (f"–{high}" if low != high else "") + (f", {level}" if level else "")
            names = " ".join(filter(None, (f"r{shade}", f"f-{level}" if level else "")))
            opening, closing = f'<span class="{names}" title="{label}">', "</span>"
        while here < run.end:
            if at < len(starts) and starts[at] == here:
                place = f' id="{_anchor(row, number, f"s{at}")}"' if at in linked else ""
                worst = part.sentences[at].severity.value
                yield f'<i class="s {worst}" data-n="{at + 1}"{place}></i>'
                at += 1
            if here == begin:
                about = part.verdict.categories[0].label if part.verdict.categories else part.severity.value
                yield f'<b class="begin" id="{_anchor(row, number, "b")}" data-n="risk begins: {html(about)}"></b>'
            stop = run.end
            if at < len(starts):
                stop = min(stop, starts[at])
            if here < begin < stop:
                stop = begin
            yield f"{opening}{piece(text[here:stop])}{closing}"
            here = stop


_BOUNDS = ("below 0.10", "0.10–0.25", "0.25–0.50", "0.50–0.75", "from 0.75")
_LEGEND = (
    '<div class="legend" role="note"><b>Risk of a token</b> (the probability that the text up to it is not safe): '
    + " ".join(f'<span class="r{i}">{label}</span>' for i, label in enumerate(_BOUNDS))
    + '<br><span class="f-controversial">dashed line</span> flagged as controversial · '
    '<span class="f-unsafe">double line</span> flagged as unsafe · '
    '<i class="s safe" data-n="1"></i>number of a sentence · '
    '<b class="begin" data-n="risk begins"></b>first token that counts. '
    "The strip above a text shows its sentences; each leads to its place.</div>\n"
)
_COLUMNS = ("Trace", "Action", "Reasoning", "Answer", "Tool calls", "Risk")
_TABLE_HEAD = (
    """<nav><fieldset><legend>Show</legend>
<label><input type="radio" name="show" checked> all</label>
<label><input type="radio" name="show" id="only"> only flagged or not judged</label></fieldset>
<div class="scroll" role="region" aria-label="Traces" tabindex="0">
<table><thead><tr>"""
    + "".join(f'<th scope="col">{name}</th>' for name in _COLUMNS)
    + "</tr></thead><tbody>\n"
)

"""`guard trace`: where in a model's thinking, and where in its answer, the risk begins."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

import click

from guardkit_cli import loading
from guardkit_cli.check import Shown, Talk, Unreadable, available
from guardkit_cli.formats import format_of
from guardkit_cli.judging import Tally
from guardkit_cli.output import (
    ACTION_COLOURS,
    Row,
    escape,
    fit,
    is_coloured,
    is_terminal,
    paint,
    say,
    shorten,
    to_json,
    width_of,
    write_lines,
)
from guardkit_cli.records import Reader
from guardkit_cli.trace_records import Output, outputs, reads_as_json

if TYPE_CHECKING:
    from guardkit import Guard
    from guardkit.trace import Trace, TracePart

MAX_WAITING = 32
MAX_WAITING_CHARS = 1_000_000
QUOTED = 60  # characters of the text shown where the risk begins
_COLOURS = {"safe": "32", "controversial": "33", "unsafe": "31"}
_NAMES = {"reasoning": "reasoning", "response": "answer", "tool_call": "tool call"}
_OUTCOMES = {
    "safe": "safe",
    "reasoning_only": "reasoning only",
    "answer_only": "answer only",
    "both": "both",
    "not_judged": "not judged",
}
_AS_JSON = "this looks like JSON lines: give --jsonl, or --whole to trace it as one text"

EPILOG = """\b
Examples:
  guard trace answer.txt
  some-reasoning-model | guard trace
  guard trace --html page.html chats.jsonl
  guard trace --json --only-flagged --policy strict logs/*.jsonl
  cat chats.jsonl | guard trace --jsonl --last

\b
A file is one output of a model, with its thinking in <think> tags. A file named
*.jsonl, *.json, *.csv or *.tsv (also compressed), or any with --jsonl, holds
records (docs/inputs.md):
  {"messages": [{"role": …, "content": …}, …]}   every assistant message is traced
  {"prompt": …, "response": …, "reasoning_content": …}   all but one may be absent
  one message, a list of messages, {"choices": […]}, {"text": …} or a JSON string
Thinking may stand in <think> tags, in reasoning_content or in content blocks.

\b
Exit codes:
  0  nothing was blocked     1  something was      2  wrong usage
  3  the model does not load, or something was not judged
     (with --on-error allow: 0 or 1, and a warning)
"""


@dataclass(slots=True)
class TraceRow(Row):
    """A row that knows its trace. `trace` is None for a record that could not be read."""

    output: Output | None = None
    trace: Trace | None = None


@click.command("trace", epilog=EPILOG, short_help="Show where a model's reasoning or answer turns unsafe.")
@click.argument("files", metavar="[FILE|-]...", nargs=-1, type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.option("--jsonl", is_flag=True, help="Each line is a JSON record (see below).")
@click.option("--whole", is_flag=True, help="Each input is one text, also where it looks like JSON lines.")
@click.option("--last", is_flag=True, help="Of a chat, only the last assistant message.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a trace on standard output.")
@click.option("--text", "with_text", is_flag=True, help="Put the texts into the JSON.")
@click.option("--tokens", "with_tokens", is_flag=True, help="Put every token's scores into the JSON.")
@click.option(
    "--html", metavar="FILE", type=click.Path(dir_okay=False), help="Write a page that shows the risk in the text."
)
@click.option("--only-flagged", is_flag=True, help="Show only what is flagged, or was not judged.")
@click.option("--quiet", "-q", is_flag=True, help="Nothing on standard output: the exit code (and the page) only.")
@loading.guard_options
def command(
    files: tuple[str, ...],
    jsonl: bool,
    whole: bool,
    last: bool,
    as_json: bool,
    with_text: bool,
    with_tokens: bool,
    html: str | None,
    only_flagged: bool,
    quiet: bool,
    model: str,
    policy: str | None,
    device: str | None,
    timeout: float | None,
    on_error: str | None,
) -> int:
    """Score whole outputs of a model, thinking and answer apart, from each FILE or standard input.

    One line a trace on standard output: action, where the risk is, its probability, and for each part its severity and
    the place where the risk begins. The summary goes to standard error.
    """
    if whole and jsonl:
        raise click.UsageError("--whole and --jsonl exclude each other")
    if (with_text or with_tokens) and not as_json:
        raise click.UsageError("--text and --tokens go with --json")
    if not files and is_terminal(sys.stdin):
        raise click.UsageError("nothing to trace: give a FILE, or pipe a model's output in ('-' to type it)")
    if html is not None and os.path.isfile(html) and any(_is_same(f, html) for f in files or ("-",)):
        raise click.UsageError(f"--html would overwrite the input '{html}'")
    if sys.stdout is None and not quiet:
        raise click.UsageError("standard output is closed; --quiet gives the exit code alone")
    shown = Shown(as_json, only_flagged, quiet, with_text, with_source=len(files) > 1)
    guard = loading.load_guard(model, policy=policy, on_error=on_error, device=device, timeout=timeout)
    with ExitStack() as stack:
        sinks: list[Callable[[Sequence[Any]], None]] = []
        if not quiet:
            sinks.append(_json_printer(sys.stdout, shown, with_tokens) if as_json else _line_printer(sys.stdout, shown))
        if html is not None:
            from guardkit_cli.trace_html import Page

            sinks.append(stack.enter_context(Page(html)).add)

        def show(rows: Sequence[Row]) -> None:
            for sink in sinks:
                sink(rows)

        talk = Talk(shown, show, "trace")
        tracing = _Tracing(guard, talk, last=last, whole=whole, alone=len(files) < 2)
        try:
            for path in files or ("-",):
                tracing.file(path, jsonl or (format_of(path) is not None and not whole))
        except KeyboardInterrupt:
            tracing.summary(interrupted=True)
            raise
        tracing.summary()
    return tracing.exit_code


def _is_same(path: str, html: str) -> bool:
    """Whether `path`, or standard input for "-", is the file `html`."""
    if path != "-":
        return os.path.samefile(path, html)
    try:
        return os.path.samestat(os.fstat(sys.stdin.fileno()), os.stat(html))
    except (OSError, ValueError, AttributeError):  # closed, or no file
        return False


class _Tracing:
    """Inputs to rows, in batches of what is there."""

    def __init__(self, guard: Guard, talk: Talk, *, last: bool, whole: bool, alone: bool):
        self._guard, self._talk, self._last, self._whole, self._alone = guard, talk, last, whole, alone
        self._allow_errors = loading.allows_errors(guard)
        self._tally = Tally()
        self._reader = Reader()
        self._waiting: list[Output] = []
        self._n_chars = 0
        self._unread = False

    def file(self, path: str, jsonl: bool) -> None:
        reader = Reader(whole=not jsonl, jsonl=jsonl, outputs=jsonl, last=self._last)
        reader.decoder = self._reader.decoder
        try:
            for records, is_more_ready in available(path, reader, self._talk):
                for record in records:
                    # JSON keeps letters as escapes, which a model would judge instead of the words.
                    if not jsonl and not self._whole and reads_as_json(record.text):
                        raise click.UsageError(_AS_JSON) if self._alone else Unreadable(_AS_JSON)
                    for output in outputs(record):
                        self._add(output)
                if not is_more_ready:
                    self._flush()
                self._talk.progress(self._tally)
        except Unreadable as error:
            self._talk.wipe()
            say(f"cannot read '{path}': {error}", "error")
            self._unread = True
        self._reader.n_blank += reader.n_blank
        for where, count in reader.ignored.items():
            self._reader.ignored[where] = self._reader.ignored.get(where, 0) + count
        self._flush()

    @property
    def exit_code(self) -> int:
        return 3 if self._unread else self._tally.exit_code

    def summary(self, *, interrupted: bool = False) -> None:
        self._talk.summary(self._tally, self._reader, interrupted=interrupted)

    def _add(self, output: Output) -> None:
        self._waiting.append(output)
        self._n_chars += len(output.record.text)
        if len(self._waiting) >= MAX_WAITING or self._n_chars >= MAX_WAITING_CHARS:
            self._flush()

    def _flush(self) -> None:
        from guardkit.trace import trace_batch

        waiting, self._waiting, self._n_chars = self._waiting, [], 0
        traces = iter(trace_batch(self._guard, [o.item for o in waiting if o.item is not None]) if waiting else [])
        rows = []
        for output in waiting:
            found = next(traces) if output.item is not None else None
            tolerated = self._allow_errors and (found is None or not found.judged)
            decision = None if found is None else found.decision
            row = TraceRow(self._tally.records, output.record, decision, tolerated, output=output, trace=found)
            self._tally.add(row)
            rows.append(row)
        if rows:
            self._talk.emit(rows)


# ------------------------------------------------------------------------------------------------------ printers


def describe(part: TracePart) -> str:
    """For people: 'reasoning: unsafe (Violent), worst in sentence 4 of 9, from sentence 2, token 14 of 120'. Counts
    start at 1."""
    about = f" ({', '.join(c.label for c in part.verdict.categories)})" if part.verdict.categories else ""
    text = f"{_NAMES[part.stage.value]}: {part.severity.value}{about}"
    if part.begin is not None:
        b = part.begin
        if part.worst is not None and part.worst != b.sentence:
            text += (
                f", worst in sentence {part.worst + 1:,} of {len(part.sentences):,}, from sentence {b.sentence + 1:,}"
            )
        else:
            text += f" from sentence {b.sentence + 1:,} of {len(part.sentences):,}"
        text += f", token {b.token + 1:,} of {part.n_tokens:,}"
    return text


def quoted(part: TracePart) -> str:
    """The beginning of the worst sentence; where that is the one in which the risk begins, from there on."""
    if part.begin is None:
        return ""
    start, end = part.begin.char, len(part.text)
    if part.worst is not None and part.worst != part.begin.sentence:
        start, end = part.sentences[part.worst].start, part.sentences[part.worst].end
    return shorten(part.text[start : min(end, start + QUOTED + 1)].strip(), QUOTED)


def _line_printer(out: TextIO, shown: Shown) -> Callable[[Sequence[TraceRow]], None]:
    width = width_of(out)
    narrow = width is not None and width < 80
    coloured = is_coloured(out) and not narrow

    def part_of(part: TracePart) -> str:
        text = paint(escape(describe(part)), _COLOURS[part.severity.value], coloured)
        if part.begin is None:
            return text
        return f'{text}, "{quoted(part)}"'

    def line(row: TraceRow) -> str:
        where = str(row.record.line)
        if row.output is not None and row.output.message is not None:
            where += f".{row.output.message}"
        if shown.with_source:
            where = f"{row.record.source}:{where}"
        outcome = _OUTCOMES[row.trace.outcome if row.trace is not None else "not_judged"]
        risk = f"{row.trace.risk:.2f}" if row.trace is not None and row.trace.risk is not None else "-"
        found = row.trace.parts if row.trace is not None else ()
        parts = [part_of(p) for p in found if not p.is_blank and (row.judged or p.begin is not None)]
        if not row.judged:
            parts.insert(0, f"[{shorten(row.error, 100)}]")
        action = paint(f"{row.action:<6}", ACTION_COLOURS[row.action], coloured)
        if narrow:  # in a line of its own each, cut to the width
            head = f"{row.action:<6} {risk:>4} {escape(where)}"
            return "\n".join(fit(text, width) for text in (head, *(f"  {part}" for part in parts)))
        return f"{action} {outcome:<14} {risk:>4}  {escape(where):>6}  {'; '.join(parts) or 'empty'}"

    return lambda rows: write_lines(out, [line(row) for row in rows])


def _json_printer(out: TextIO, shown: Shown, with_tokens: bool) -> Callable[[Sequence[TraceRow]], None]:
    def line(row: TraceRow) -> str:
        data = row_to_dict(row, with_source=shown.with_source, with_text=shown.with_text, with_tokens=with_tokens)
        return to_json(data, out.encoding)

    return lambda rows: write_lines(out, [line(row) for row in rows])


def row_to_dict(
    row: TraceRow, *, with_source: bool = False, with_text: bool = False, with_tokens: bool = False
) -> dict[str, Any]:
    """The keys of docs/trace.md, in its order. Indexes start at 0; those in a part count within its text."""
    found = row.trace
    out: dict[str, Any] = {"index": row.index, "line": row.record.line}
    if with_source:
        out["input"] = row.record.source
    severities = {
        name: None if found is None or (worst := getattr(found, name)) is None else worst.value
        for name in ("severity", "reasoning", "answer", "tool_calls")
    }
    out |= {
        "message": row.output.message if row.output is not None else None,
        "outcome": found.outcome if found is not None else "not_judged",
        **severities,
        "categories": [c.value for c in found.categories] if found is not None else [],
        "risk": round(found.risk, 4) if found is not None and found.risk is not None else None,
        "action": row.action,
        "model": found.model if found is not None else None,
        "unit": found.unit if found is not None else None,
        "parts": [_part_to_dict(p, with_text, with_tokens) for p in found.parts] if found is not None else [],
        "latency_ms": round(found.latency_ms, 3) if found is not None else None,
    }
    if row.record.ignored:
        out["ignored"] = list(row.record.ignored)
    if not row.judged:
        out["error"] = row.error
        if with_text:
            out["text"] = row.record.text  # the parts hold only what was judged
    return out


def _part_to_dict(part: TracePart, with_text: bool, with_tokens: bool) -> dict[str, Any]:
    b = part.begin
    out: dict[str, Any] = {
        "stage": part.stage.value,
        "start": part.start,
        "length": len(part.text),
        "n_tokens": part.n_tokens,
        "severity": part.severity.value,
        "categories": [c.value for c in part.verdict.categories],
        "scores": dict(part.verdict.scores),
        "risk": round(part.risk, 4),
        "action": part.decision.action.value,
        "begin": None if b is None else {"token": b.token, "sentence": b.sentence, "char": b.char},
        "worst": part.worst,
        "sentences": [
            {"start": s.start, "end": s.end, "severity": s.severity.value, "risk": round(s.risk, 4)}
            for s in part.sentences
        ],
    }
    if with_text:
        out["text"] = part.text
    if with_tokens:
        out["tokens"] = [
            {
                "start": s.start,
                "end": s.end,
                "severity": s.severity.value,
                "scores": [round(p, 4) for p in s.scores],
                "flagged": s.flagged,
            }
            for s in part.spans
        ]
    return out

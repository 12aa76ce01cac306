"""`guard check`: one record a line in, one decision a record out, in order and as soon as it is known."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import TextIO

import click

from guardkit_cli import inputs, loading
from guardkit_cli.judging import Judge, Tally
from guardkit_cli.output import (
    Printer,
    Progress,
    Row,
    escape,
    fit,
    is_terminal,
    json_printer,
    row_lines,
    row_to_dict,
    say,
    table_printer,
    to_json,
    width_of,
    write_lines,
)
from guardkit_cli.passages import SOURCE
from guardkit_cli.records import Reader, Record, Source
from guardkit_cli.summary import WORST, Summary

MAX_TOLD_LINES = 10
"""Broken lines told one by one on stderr; the rest are counted (each is on stdout in any case)."""

EPILOG = """\b
Examples:
  guard check "how do I bake bread"
  cat app.log | guard check --only-flagged
  tail -f app.log | guard check --json
  guard check --input chats.jsonl --jsonl --policy strict --quiet
  guard check --input events.jsonl --field message.text --json --text
  guard check --whole --input page.html --stage document
  guard check -r --input logs --glob "*.log.gz" --join
  guard check --input table.csv --field comment
  guard check --explain-input chats.jsonl

\b
JSON records, one a line or the items of an array (docs/inputs.md):
  {"prompt": …, "response": …}   judges the response
  {"messages": [{"role": …, "content": …}, …]}   judges the last message
  {"choices": […]}, {"chosen": …, "rejected": …}   judges each candidate
  {"text": …} or {"prompt": …} or a JSON string   judges that text
  any other object   judges every text in it
  --field NAME   judges what is in that field (dots go into nested objects)
A file named *.jsonl, *.json, *.csv or *.tsv is read as such, also *.gz, *.bz2,
*.xz, *.zst; any other input by its first line: a JSON object, an array, or text.

\b
Exit codes:
  0  nothing was blocked     1  something was      2  wrong usage
  3  the model does not load, or a record was not judged
     (with --on-error allow: 0 or 1, and a warning)
"""


@dataclass(frozen=True)
class Shown:
    """What the user wants to see."""

    as_json: bool
    only_flagged: bool
    quiet: bool
    with_text: bool
    with_source: bool
    summary_only: bool = False
    top: int | None = None

    def printer(self) -> Printer | None:
        if self.quiet:
            return None
        if sys.stdout is None:
            raise click.UsageError("standard output is closed; --quiet gives the exit code alone")
        if self.summary_only:
            return None
        if self.as_json:
            return json_printer(sys.stdout, with_text=self.with_text, with_source=self.with_source)
        return table_printer(sys.stdout, with_source=self.with_source)


@click.command("check", epilog=EPILOG, short_help="Judge texts, one record a line.")
@click.argument("texts", metavar="[TEXT]...", nargs=-1)
@click.option(
    "--input",
    "-i",
    "paths",
    metavar="FILE",
    multiple=True,
    type=click.Path(exists=True, readable=True, allow_dash=True),
    help="Read FILE instead of standard input; may be repeated. Compressed files are read, binary ones refused.",
)
@click.option("--whole", is_flag=True, help="Each input is one text, instead of one record a line.")
@click.option("--jsonl", is_flag=True, help="Each line is a JSON record (see below).")
@click.option("--field", metavar="NAME", help="The field of a record, or the column of a table, that holds the text.")
@inputs.options
@click.option("--explain-input", "explained", metavar="FILE", help="Show how the first records of FILE are read.")
@click.option("--stage", type=click.Choice(loading.STAGES), help="What the texts are. Default: prompt.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a record on standard output.")
@click.option("--text", "with_text", is_flag=True, help="Put the text into the JSON.")
@click.option("--only-flagged", is_flag=True, help="Show only what is not allowed, or was not judged.")
@click.option("--quiet", "-q", is_flag=True, help="Nothing on standard output: the exit code only.")
@click.option(
    "--summary", is_flag=True, help="Only the summary, on standard output: by action, category, file, language; worst."
)
@click.option("--top", type=click.IntRange(min=0), help="How many of the worst the summary shows. Default: 3.")
@click.option(
    "--threshold",
    type=click.FloatRange(0, 1, min_open=True),
    help='Call a text unsafe from this probability of "unsafe" on, and controversial from this probability of harm '
    "on, instead of the model's own thresholds. Lower finds more. The policy then acts as always.",
)
@click.option(
    "--exact", is_flag=True, help="Every text by the whole model; else nano settles what is clearly harmless by less."
)
@click.option(
    "--batch-size", type=click.IntRange(1, 4096), default=64, show_default=True, help="Texts judged at once, at most."
)
@loading.guard_options
def command(
    texts: tuple[str, ...],
    paths: tuple[str, ...],
    whole: bool,
    jsonl: bool,
    field: str | None,
    recursive: bool,
    glob: str | None,
    form: str | None,
    join: bool,
    encoding: str | None,
    explained: str | None,
    stage: str | None,
    as_json: bool,
    with_text: bool,
    only_flagged: bool,
    quiet: bool,
    summary: bool,
    top: int | None,
    threshold: float | None,
    exact: bool,
    batch_size: int,
    model: str,
    policy: str | None,
    device: str | None,
    timeout: float | None,
    on_error: str | None,
) -> int:
    """Judge texts: each TEXT, or each line of standard input (or of the --input files).

    One line a record on standard output: action, severity, the score and the threshold that it was held against, line
    number, categories, and the text with the flagged place in [[ ]] (in colour on a terminal). A TEXT of "-" stands for
    standard input. The summary goes to standard error.
    """
    reader = inputs.reader_of(form, jsonl=jsonl, field=field, whole=whole, join=join)
    inputs.check_encoding(encoding)
    if explained is not None:
        return _explain(explained, reader, encoding)
    if with_text and not as_json:
        raise click.UsageError("--text goes with --json")
    if not texts and not paths and is_terminal(sys.stdin):
        raise click.UsageError("nothing to judge: give a TEXT, pipe something in, or use --input FILE ('-' to type)")
    parts: list[str | _File] = [text if text != "-" else _File("-", encoding) for text in texts]
    parts += [_File(path, encoding) for path in inputs.files(paths, recursive, glob)]
    if paths and not parts:
        raise click.UsageError("no file to read in there")
    _hint_at_files(texts)

    if summary and quiet:
        raise click.UsageError("--summary and --quiet exclude each other")
    shown = Shown(
        as_json, only_flagged, quiet, with_text, with_source=len(paths) > 1 or recursive, summary_only=summary, top=top
    )
    printer = shown.printer()
    guard = loading.load_guard(
        model,
        policy=policy,
        on_error=on_error,
        device=device,
        timeout=timeout,
        threshold=threshold,
        exact=exact or None,
    )
    allow_errors = loading.allows_errors(guard)
    talk = Talk(shown, printer)
    judge = Judge(guard, talk.emit, stage=loading.stage_of(stage), batch_size=batch_size, allow_errors=allow_errors)
    if not (texts or paths):
        parts = [_File("-", encoding)]
    try:
        unread = _judge_all(parts, reader, judge, talk)
    except KeyboardInterrupt:
        talk.summary(judge.tally, reader, interrupted=True)
        raise
    talk.summary(judge.tally, reader)
    return 3 if unread else judge.tally.exit_code


@dataclass(frozen=True)
class _File:
    path: str
    encoding: str | None = None


def _explain(path: str, reader: Reader, encoding: str | None) -> int:
    try:
        lines = list(inputs.explain(path, reader, encoding))
    except OSError as error:
        say(f"cannot read '{path}': {error.strerror or error}", "error")
        return 3
    write_lines(sys.stdout, lines)
    return 0


def _judge_all(parts: Sequence[str | _File], reader: Reader, judge: Judge, talk: Talk) -> bool:
    """Feed every part to `judge`; whether an input could not be read to its end."""
    unread = False
    for number, part in enumerate(parts, 1):
        if isinstance(part, str):
            judge.add(reader.argument(number, part))
            continue
        judge.flush()  # what is known already must not wait for a pipe
        try:
            for records, is_more_ready in available(part.path, reader, talk, part.encoding):
                judge.add(records)
                if not is_more_ready:
                    judge.flush()
                talk.progress(judge.tally)
        except Unreadable as error:
            talk.wipe()
            say(f"cannot read '{part.path}': {error}", "error")
            unread = True
    judge.flush()
    return unread


class Unreadable(Exception):
    pass


def available(
    path: str, reader: Reader, talk: Talk, encoding: str | None = None
) -> Iterator[tuple[list[Record], bool]]:
    """The records of each read, and whether more input is waiting already."""
    try:
        source = Source.open(path, encoding)
        talk.start(source)
        if reader.reads_lines_of(path) and not path.lower().endswith((".txt", *SOURCE)):
            talk.hint("of a document lines are judged, and sentences over several; --whole judges it as one text")
        reads = reader.read(source)
        while (records := next(reads, None)) is not None:
            yield records, source.is_ready()
        source.close()
    except OSError as error:
        raise Unreadable(error.strerror or str(error)) from error


def _hint_at_files(texts: Sequence[str]) -> None:
    for text in texts:
        try:
            is_file = 0 < len(text) < 1024 and text != "-" and os.path.isfile(text)
        except ValueError:  # a NUL in it
            is_file = False
        if is_file:
            say(f"'{text}' is judged as a text. To judge what is in the file: guard check --input {text}")


class Talk:
    """Rows to the printer; progress, broken lines and the summary to stderr."""

    def __init__(self, shown: Shown, printer: Printer | None, noun: str = "record"):
        self._shown, self._printer, self._noun = shown, printer, noun
        self._start = perf_counter()
        self._source: Source | None = None
        self._progress: Progress | None = None
        self._n_told = 0
        self._hints: set[str] = set()
        self._n_errors = 0
        top = WORST if shown.top is None else shown.top
        self._summary = Summary(top=top, language=guess if shown.summary_only else None)

    def start(self, source: Source) -> None:
        self.wipe()
        self._source, self._progress = source, None
        if source.size and not self._shown.quiet and is_terminal(sys.stderr):
            self._progress = Progress(source.size, perf_counter)

    def hint(self, text: str) -> None:
        """Say it once."""
        if text not in self._hints and not self._shown.quiet:
            self._hints.add(text)
            say(text)

    def progress(self, tally: Tally) -> None:
        if self._progress is not None and self._source is not None:
            self._progress.update(self._source.n_read, tally.records)

    def wipe(self) -> None:
        if self._progress is not None:
            self._progress.wipe()

    def emit(self, rows: Sequence[Row]) -> None:
        for row in rows:
            self._summary.add(row)
            if not row.judged:
                self._tell_error(row)
        if self._printer is None:
            return
        if self._shown.only_flagged:
            rows = [row for row in rows if row.action != "allow" or not row.judged]
        if rows:
            self.wipe()
            self._printer(rows)

    def _tell_error(self, row: Row) -> None:
        self._n_errors += 1
        if self._n_told < MAX_TOLD_LINES:
            self._n_told += 1
            self.wipe()
            where = f"{row.record.source}:" if self._shown.with_source else ""
            say(f"{where}line {row.record.line}: {row.error}", "warning" if row.tolerated else "error")

    def summary(self, tally: Tally, reader: Reader, *, interrupted: bool = False) -> None:
        self.wipe()
        if self._n_errors > self._n_told:
            say(f"{self._n_errors - self._n_told:,} more {self._noun}s were not judged", "error")
        if tally.tolerated:
            say(f"{_count(tally.tolerated, self._noun)} not judged and let through (on-error allow)", "warning")
        if reader.decoder.fallback_lines:
            lines = _count(reader.decoder.fallback_lines, "text" if reader.whole else "line")
            say(f"{lines} not valid UTF-8: the odd bytes were read as windows-1252")
        if reader.n_blank:
            say(f"{_count(reader.n_blank, 'blank line')} in the JSONL input, no record in them")
        if reader.ignored:
            shown = sorted(reader.ignored, key=lambda path: -reader.ignored[path])[:MAX_TOLD_LINES]
            more = ", …" if len(reader.ignored) > len(shown) else ""
            say(f'texts that were not judged themselves: {", ".join(shown)}{more} (in --json: "ignored")')
        if self._shown.quiet:
            return
        seconds = perf_counter() - self._start
        rate = f" ({tally.records / seconds:,.0f}/s)" if tally.records >= 100 and seconds > 0 else ""
        redacted = f"{tally.redacted:,} redacted, " if tally.redacted else ""
        total = (
            f"{'interrupted after ' if interrupted else ''}{_count(tally.records, self._noun)}: "
            f"{tally.flagged:,} flagged, {redacted}{tally.blocked:,} blocked, {tally.not_judged:,} not judged, "
            f"{seconds:.2f} s{rate}"
        )
        if self._shown.summary_only:
            self._print_summary(total)
            return
        say(total)
        if tally.records > 1:
            for line in self._summary.lines():
                say(line)
        if self._summary.unmeasured:
            say(
                f"{_count(self._summary.unmeasured, self._noun)} in a language or script that the model was not "
                "measured on: what it finds there is a guess (policy key on_unmeasured)",
                "warning",
            )
        if self._shown.top:
            for row_line in self._worst(sys.stderr):
                print(row_line, file=sys.stderr)

    def _worst(self, out: TextIO) -> list[str]:
        lines: list[str] = []
        rows = self._summary.worst
        if rows:
            lines = row_lines(rows, out, with_source=self._shown.with_source)
        return lines

    def _print_summary(self, total: str) -> None:
        out = sys.stdout
        if self._shown.as_json:
            with_source, with_text = self._shown.with_source, self._shown.with_text
            data = self._summary.to_dict(lambda row: row_to_dict(row, with_text=with_text, with_source=with_source))
            write_lines(out, [to_json(data, out.encoding)])
            return
        width = width_of(out)
        lines = [total, *self._summary.lines()]
        if self._summary.unmeasured:
            lines.append(f"not measured on the language: {self._summary.unmeasured:,}")
        write_lines(out, [*(fit(escape(line), width) for line in lines), *self._worst(out)])


def guess(text: str) -> str:
    """The language or script of a text, for the summary."""
    from guardkit.coverage import guess_language

    return guess_language(text)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"

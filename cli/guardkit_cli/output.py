"""What people and programs get to see: rows on stdout, talk on stderr, never a terminal escape from the input."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

from guardkit_cli.records import Record

if TYPE_CHECKING:
    from guardkit import Decision

RED, YELLOW, GREEN, MAGENTA, DIM, BOLD = "31", "33", "32", "35", "2", "1"
_LEVEL_COLOURS = {"error": RED, "warning": YELLOW, "note": DIM}
ACTION_COLOURS = {"allow": GREEN, "flag": YELLOW, "redact": MAGENTA, "block": RED}
_PIPE_TEXT_WIDTH = 120
_LEAST_WIDE = 90  # columns from which on a row shows all that is known
# Characters that JSON leaves alone and a terminal may act on, or that UTF-8 cannot hold.
_UNSAFE_IN_JSON = re.compile("[\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")


@dataclass(slots=True)
class Row:
    """A record and what became of it. `decision` is None only for a record that the guard never saw."""

    index: int
    record: Record
    decision: Decision | None
    tolerated: bool = False
    """Not judged, and `on_error` says to let such records through."""
    redacted: str | None = None
    """The text as it may be shown, where the action is "redact"."""

    @property
    def judged(self) -> bool:
        return self.decision is not None and self.decision.judged

    @property
    def action(self) -> str:
        if self.decision is not None:
            return self.decision.action.value
        return "allow" if self.tolerated else "block"

    @property
    def text(self) -> str:
        """The judged text, which the verdict's places count in; else the record's."""
        judged = self.decision.text if self.decision is not None else None
        return self.record.text if judged is None else judged

    @property
    def place(self) -> tuple[int, int] | None:
        """The flagged characters of `text`."""
        verdict = self.decision.verdict if self.decision is not None else None
        if verdict is None or verdict.char_start is None or verdict.char_end is None:
            return None
        return verdict.char_start, verdict.char_end

    @property
    def error(self) -> str:
        return self.record.error or (self.decision and self.decision.error) or "not judged"


# --------------------------------------------------------------------------------------------- text for terminals


def is_coloured(stream: TextIO | None) -> bool:
    """NO_COLOR, CLICOLOR_FORCE, CLICOLOR and TERM=dumb, in this order; then whether it is a terminal."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("CLICOLOR_FORCE", "0") not in ("", "0"):
        return True
    if os.environ.get("CLICOLOR") == "0" or os.environ.get("TERM") == "dumb":
        return False
    return is_terminal(stream)


def is_terminal(stream: Any) -> bool:
    try:
        return bool(stream is not None and stream.isatty())
    except ValueError:  # closed
        return False


def paint(text: str, colour: str, coloured: bool) -> str:
    return f"\x1b[{colour}m{text}\x1b[0m" if coloured else text


def escape(text: str) -> str:
    """`text` on one line, with control, format and undecodable characters as backslash escapes."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else " " if c.isspace() and c > "\x9f" else c.encode("unicode_escape").decode()
        for c in text
    )


def shorten(text: str, width: int) -> str:
    """The beginning of `text`, escaped, at most `width` columns wide."""
    shown = escape(text[: width + 1])
    if shown.isascii():
        return shown if len(shown) <= width else shown[: width - 1] + "…"
    from unicodedata import east_asian_width

    used = 0
    for i, c in enumerate(shown):
        used += 2 if east_asian_width(c) in "WF" else 1
        if used > width:
            return shown[: max(i - 1, 0)] + "…"
    return shown


def say(message: str, level: str = "note") -> None:
    """Talk to people, on stderr: "guard: error: …"."""
    if sys.stderr is None:
        return
    label = paint(f"{level}:", _LEVEL_COLOURS[level], is_coloured(sys.stderr))
    text = "\n".join(escape(line) for line in message.splitlines()) or message
    print(f"guard: {label} {text}", file=sys.stderr, flush=True)


# -------------------------------------------------------------------------------------------------------- JSON


def to_json(data: Any, encoding: str | None = "utf-8") -> str:
    """One line of JSON, safe to show on a terminal and to write in `encoding`."""
    import json

    is_utf8 = (encoding or "").lower().replace("_", "-") in ("utf-8", "utf8")
    text = json.dumps(data, ensure_ascii=not is_utf8, separators=(", ", ": "))
    if text.isascii() and "\x7f" not in text:
        return text
    return _UNSAFE_IN_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def row_to_dict(row: Row, *, with_text: bool = False, with_source: bool = False) -> dict[str, Any]:
    """The keys of the contract, in its order."""
    verdict = row.decision.verdict if row.decision is not None else None
    out: dict[str, Any] = {"index": row.index, "line": row.record.line}
    if with_source:
        out["input"] = row.record.source
    if verdict is not None:
        out["severity"] = verdict.severity.value if row.judged else None
        out["categories"] = [c.value for c in verdict.categories]
        out["scores"] = dict(verdict.scores)
    else:
        out |= {"severity": None, "categories": [], "scores": {}}
    out["refusal"] = verdict.refusal if verdict is not None else None
    out["stage"] = row.decision.stage.value if row.decision is not None else None
    out["action"] = row.action
    out["model"] = verdict.model if verdict is not None else None
    out["latency_ms"] = round(verdict.latency_ms, 3) if verdict is not None else None
    if row.place is not None:
        out["char_start"], out["char_end"] = row.place
    if row.decision is not None and (row.place is not None or row.decision.limit is not None):
        out["threshold"] = row.decision.threshold
    if verdict is not None and verdict.coverage is not None:
        out["coverage"] = verdict.coverage
    if row.redacted is not None:
        out["redacted"] = row.redacted
    if row.record.ignored:
        out["ignored"] = list(row.record.ignored)
    if with_text:
        out["text"] = row.record.text if row.place is None else row.text  # a place counts in the judged text
    if not row.judged:
        out["error"] = row.error
    return out


# ------------------------------------------------------------------------------------------------------ printers


Printer = Callable[[Sequence[Row]], None]


def json_printer(out: TextIO, *, with_text: bool, with_source: bool) -> Printer:
    def show(rows: Sequence[Row]) -> None:
        lines = [to_json(row_to_dict(row, with_text=with_text, with_source=with_source), out.encoding) for row in rows]
        write_lines(out, lines)

    return show


def table_printer(out: TextIO, *, with_source: bool) -> Printer:
    def show(rows: Sequence[Row]) -> None:
        write_lines(out, row_lines(rows, out, with_source=with_source))

    return show


def row_lines(rows: Sequence[Row], out: TextIO, *, with_source: bool) -> list[str]:
    """One line a record: action, severity, score of threshold, line number, categories, text. Of a narrow line the
    action, the score, the line number and the text are left."""
    from guardkit_cli.excerpt import columns, excerpt

    coloured = is_coloured(out)
    width = width_of(out)
    wide = width is None or width >= _LEAST_WIDE

    def line(row: Row) -> str:
        decision = row.decision
        verdict = decision.verdict if decision is not None else None
        if row.judged and verdict is not None:
            severity, score = verdict.severity.value, score_of(row)
            about = ",".join(c.value for c in verdict.categories[:2])
        else:
            severity, score, about = "not judged", "-", ""
        where = escape(f"{row.record.source}:{row.record.line}" if with_source else str(row.record.line))
        most = 12 if not wide else len(where) if width is None else width // 4
        where = where if len(where) <= most else "…" + where[1 - most :]
        if wide:
            head = f"{row.action:<6} {severity:<13} {score:>12} {where:>6}  {about:<19}  "
        else:
            head = f"{row.action:<6} {score.split()[0]:>4} {where:>5} "
        room = _PIPE_TEXT_WIDTH if width is None else max(width - columns(head), 8)
        if not row.judged:
            text = shorten(f"[{row.error}] {row.record.text[: room + 1]}", room)
        elif row.redacted is not None:
            text = shorten(row.redacted, room)
        else:
            text = excerpt(row.text, row.place, room, coloured)
        return paint(head[:6], ACTION_COLOURS[row.action], coloured) + f"{head[6:]}{text}".rstrip()

    return [line(row) for row in rows]


def score_of(row: Row) -> str:
    """The score beside what it was held against: "0.81 of 0.86"; "once" where a run of flagged tokens was too short."""
    decision = row.decision
    if decision is None or decision.verdict is None or decision.score is None:
        return "-"
    score, least = decision.score, decision.threshold
    if least is None:
        return f"{score:.2f}"
    if decision.limit is None and decision.verdict.severity.value == "safe" and score >= least:
        return f"{score:.2f} once"
    return f"{_down(score, least):.2f} of {least:.2f}"


def _down(score: float, least: float) -> float:
    """`score` as it is shown: rounding must not lift it to the threshold that it did not reach."""
    return round(least, 2) - 0.01 if score < least and round(score, 2) >= round(least, 2) else score


def width_of(out: TextIO) -> int | None:
    """The columns that a line may have; None for a pipe. COLUMNS in the environment says it for both."""
    if not is_terminal(out) and not os.environ.get("COLUMNS", "").isdigit():
        return None
    import shutil

    return max(shutil.get_terminal_size().columns, 20)


def fit(line: str, width: int | None) -> str:
    """`line`, which has no colour in it, cut to `width` columns."""
    return line if width is None else shorten(line, width)


def write_lines(out: TextIO, lines: Sequence[str]) -> None:
    if lines:
        text = "\n".join(lines) + "\n"
        try:
            out.write(text)
        except UnicodeEncodeError:
            out.write(text.encode(out.encoding, "backslashreplace").decode(out.encoding))
        out.flush()


class Progress:
    """One line on stderr, redrawn a few times a second; wiped before anything else is printed."""

    def __init__(self, size: int, clock: Callable[[], float]):
        self._size, self._clock = size, clock
        self._start = self._next = clock()
        self._is_drawn = False

    def update(self, n_read: int, n_records: int) -> None:
        now = self._clock()
        if now < self._next or sys.stderr is None:
            return
        self._next = now + 0.2
        rate = n_records / max(now - self._start, 1e-6)
        share = min(n_read / max(self._size, 1), 1.0)
        sys.stderr.write(f"\r\x1b[K{share:4.0%}  {n_records:,} records  {rate:,.0f}/s")
        sys.stderr.flush()
        self._is_drawn = True

    def wipe(self) -> None:
        if self._is_drawn and sys.stderr is not None:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self._is_drawn = False

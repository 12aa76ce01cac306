"""Sentences that go on over several lines of a document.

The lines of a document are records like any others. What they say together is one more record, right behind them, which
is shown only where it is worse than each of its lines (`Record.over`): "How do I make" and "a bomb" say nothing alone.

A line goes on where it breaks off within a sentence and the next one reads on in prose: not behind a full stop, nor
before a blank line, a new item of a list, or a line of a log. Marks of quotations and comments are left out, the times
of subtitles are read over, and folded lines (calendars, quoted-printable, base64) are put together.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from guardkit_cli.records import Record

SOURCE = (
    ".py", ".pyi", ".js", ".mjs", ".jsx", ".ts", ".tsx", ".vue", ".java", ".kt", ".scala", ".c", ".h", ".cc", ".cpp",
    ".hpp", ".cs", ".go", ".rs", ".swift", ".rb", ".pl", ".php", ".lua", ".r", ".sh", ".ps1", ".css", ".scss", ".sql",
)  # fmt: skip
MAIL = (".eml", ".mbox", ".mht", ".mhtml")
ENDINGS = (
    ".html", ".htm", ".xhtml", ".xml", ".svg", ".md", ".markdown", ".mdx", ".rst", ".adoc", ".org", ".wiki", ".tex",
    ".rtf", ".txt", ".text", *MAIL, ".srt", ".vtt", ".sbv", ".lrc", ".ass", ".ssa", ".ics", ".vcf", ".po", ".pot",
    ".yaml", ".yml", ".toml", ".ini", ".cfg", ".conf", ".properties", *SOURCE,
)  # fmt: skip
"""Of the names of files in which a sentence goes on over several lines."""
MAX_CHARS = 600  # of a passage: in a longer one a single sentence counts for less
OVERLAP = 200  # characters that the next passage has in common with one that is cut
MAX_LINES = 60
MAX_PARTIAL = 1 << 20  # characters of lines that a container's log cuts
MAX_LINE = 2000  # characters; a longer line is a text by itself

_MESSAGE = r"\[?\d{1,2}[/.]\d{1,2}[/.]\d{2,4},? \d{1,2}:\d{2}(?::\d{2})?(?: ?[apAP]\.?[mM]\.?)?(?:\]| -) [^:\n]{1,40}: "
_MARK = re.compile(
    rf"[ \t]*(?:(?:[>#*;%!|]|//|--|<!--|\+\+)[>#*;%!|/ \t-]*|(?:</?[A-Za-z][^<>]{{0,80}}>)+|\[\d+:\d+(?:[.:]\d+)?\]"
    rf"|Dialogue:(?:[^,\n]*,){{9}}|{_MESSAGE})?[ \t]*"
)
"""What may stand before the words of a line: a comment's or a quotation's mark, tags, a time, who says it."""
_NEW_ITEM = re.compile(r"[ \t]*(?:[-+•·–—][ \t]|\(?(?:[0-9]{1,3}|[a-zA-Z])[.)][ \t]|[|={]|\[(?!\d+:))")
_NEW_MARKDOWN_ITEM = re.compile(r"[ \t]*(?:\*[ \t]|#{1,6}[ \t])")
_END = re.compile(r"[.!?。！？…।॥۔؟][\"'”’»)\]}>*_`]*(?:</?[A-Za-z][^<>]{0,80}>|-->|\*/)*[ \t]*\Z")
_CONTAINER = re.compile(r"\S{10,40} (stdout|stderr) ([PF]) ")
_LEVEL = re.compile(r"(?:TRACE|DEBUG|INFO|NOTICE|WARN|WARNING|ERROR|FATAL|CRITICAL)\b")
_RUN = re.compile(r"[ \t>#*/\"']*[A-Za-z0-9+/_-]{20,}={0,2}[\"',]*")
_BYTES = re.compile(r"[ \t]*(?:[0-9a-fA-F]{4,8}[: ] *)?(?:(?:0[xX])?[0-9a-fA-F]{2,4}[ ,]+){5,}.*")
_STRING_ENDS = re.compile(r"[\"'`][ \t]*[+.&|\\;]*[ \t]*\Z")
_STRING_BEGINS = re.compile(r"[ \t]*(?:[+.&|]+[ \t]*|[\w.$]{1,20}[ \t]*[+.]?=[ \t]*)?[\"'`]")
_TAG = re.compile(r"</?[A-Za-z][^<>]{0,80}>")
_TIME = re.compile(r"\s*(?:\d{1,6}|(?:\d+:)?\d+:\d+[.,]\d+(?:\s*-->|,).*|WEBVTT.*)?\s*")
"""A line of subtitles that holds no words: a number, a time, nothing."""
_CODE = re.compile(r"[=;{}]|\w\(|->|::|\w\.\w|:\Z")
_IN_PROSE = frozenset(" ,;:'’\"“”()-–—…?!*`")


def is_document(name: str) -> bool:
    """Whether the name of a file, compressed or not, tells that sentences go on over its lines."""
    return _plain(name).endswith(ENDINGS)


def with_passages(parts: Iterable[list[Record]], name: str) -> Iterator[list[Record]]:
    """The records of lines as they come, each passage behind its last line."""
    passages = _Passages(name)
    for records in parts:
        out: list[Record] = []
        for record in records:
            out += passages.add(record)
            out.append(record)
        yield out
    yield passages.end()


def _plain(name: str) -> str:
    from guardkit.reading.encodings import COMPRESSED

    name = name.lower()
    for ending in COMPRESSED:
        name = name.removesuffix(ending)
    return name


class _Passages:
    """The lines that belong together, until one does not go on."""

    def __init__(self, name: str):
        plain = _plain(name)
        self._name = name
        self._has_times = plain.endswith((".srt", ".vtt", ".sbv"))
        self._is_folded = plain.endswith((".ics", ".vcf"))
        self._is_mail = plain.endswith(MAIL)
        self._is_source = plain.endswith(SOURCE)
        self._is_markdown = plain.endswith((".md", ".markdown", ".mdx"))
        self._lines: list[tuple[int, str]] = []  # their numbers, and what each adds
        self._before = ""  # the newest of them as it stands
        self._last = 0  # number of the newest line, of times too

    def add(self, record: Record) -> list[Record]:
        """Take the next line. The passage that ends before it, if any."""
        line = record.text if record.item is not None else ""
        if self._has_times and _TIME.fullmatch(line):
            self._last = record.line
            return []
        added = self._added(line) if self._lines else None
        out = self.end() if added is None else []
        if added is not None and (self._n_chars + len(added) > MAX_CHARS or len(self._lines) >= MAX_LINES):
            out = self._cut()
        if added is not None or (line.strip() and len(line) <= MAX_LINE):
            self._lines.append((record.line, line if added is None else added))
            self._last = record.line
            self._before = line if line.strip() else self._before
        return out

    @property
    def _n_chars(self) -> int:
        return sum(len(text) for _, text in self._lines)

    def _cut(self) -> list[Record]:
        """End a passage that is long enough; the next one begins with the last lines of it."""
        kept, last, n_chars = self._lines, self._last, 0
        out = self.end()
        for i in range(len(kept) - 1, -1, -1):
            n_chars += len(kept[i][1])
            if n_chars > OVERLAP and i < len(kept) - 1:
                break
            self._lines.insert(0, kept[i])
        self._last = last
        return out

    def end(self) -> list[Record]:
        lines, self._lines = self._lines, []
        if len(lines) < 2:
            return []
        start = lines[0][0]
        text = _TAG.sub("", "".join(text for _, text in lines)).lstrip("\n")
        return [Record(start, text, text, self._name, over=self._last - start + 1)]

    def _drop(self, end: str) -> None:
        """Take back the end of the newest line, where it only says that the line goes on."""
        number, text = self._lines[-1]
        self._lines[-1] = number, text.removesuffix(end)

    def _added(self, line: str) -> str | None:
        """What a line adds to the passage; None where it does not go on from the line before."""
        before = self._before
        if self._is_folded and line[:1] in (" ", "\t"):
            return line[1:]
        if len(before.strip()) == 1 and len(line.strip()) < 2 and line:
            return line.strip() or " "  # letters that stand below one another
        if len(line) > MAX_LINE or not line.strip():
            return None
        if any(run.fullmatch(line) and run.fullmatch(before) for run in (_RUN, _BYTES)):
            return f"\n{line}"
        if before.endswith("\\") or (self._is_mail and before.endswith("=")):  # the latter of quoted-printable
            self._drop(before[-1:])
            return line.lstrip() if before.endswith("\\") else line
        if (end := _STRING_ENDS.search(before)) and (begin := _STRING_BEGINS.match(line)):
            self._drop(end[0])
            return line[begin.end() :]
        if _END.search(before) or _NEW_ITEM.match(line) or (self._is_markdown and _NEW_MARKDOWN_ITEM.match(line)):
            return None
        words = _words(line)
        if (
            not words
            or " = " in words
            or not _words(before)
            or (self._is_source and (_is_code(words) or _is_code(_words(before))))
        ):
            return None
        return f"\n{words}"


class Partials:
    """Lines that logs of containers cut, put together: CRI marks them with a P, Docker leaves out the line's end."""

    def __init__(self, name: str):
        self._name = name
        self._held: dict[str, tuple[int, int, list[str]]] = {}  # by stream: the first line, characters, what was said
        self._line = 0  # the newest one of a piece

    def text(self, record: Record) -> list[Record]:
        """Take a line of text; what it completes."""
        told = _CONTAINER.match(record.text)
        if told is None:
            return []
        return self._take(told[1], record.text[told.end() :], told[2] == "P", record.line)

    def json(self, text: str, line: int) -> list[Record]:
        """Take a record of Docker's; what it completes."""
        if not text.startswith('{"log":') or '"stream":' not in text:
            return []
        from guardkit.reading.jsontext import parse

        try:
            data = parse(text)
        except ValueError:
            return []
        said, stream = data.get("log"), data.get("stream")
        if not isinstance(said, str) or not isinstance(stream, str):
            return []
        return self._take(stream, said, not said.endswith("\n"), line)

    def _take(self, stream: str, said: str, goes_on: bool, line: int) -> list[Record]:
        start, n_chars, held = self._held.pop(stream, (line, 0, []))
        held.append(said)
        self._line = line
        if goes_on and n_chars + len(said) < MAX_PARTIAL:
            self._held[stream] = start, n_chars + len(said), held
            return []
        return self._joined(start, held)

    def end(self) -> list[Record]:
        """What is held where the log ends in the middle of a line."""
        held, self._held = list(self._held.values()), {}
        return [record for start, _, said in held for record in self._joined(start, said)]

    def _joined(self, start: int, said: list[str]) -> list[Record]:
        text = "".join(said)
        return [Record(start, text, text, self._name, over=self._line - start + 1)] if len(said) > 1 else []


def _words(line: str) -> str:
    """The words of a line of prose, without the marks around them; empty for any other."""
    mark = _MARK.match(line)
    text = line[mark.end() if mark else 0 :].rstrip()
    quote = text[:1] if text[:1] in ("'", '"') else ""
    if quote and (text.endswith(quote) or text.startswith(3 * quote)):
        text = text.strip(quote)
    begin = text.lstrip("\"'`(“*_")
    if not begin[:1].isalpha() or _LEVEL.match(begin):
        return ""
    sample = _TAG.sub("", text[:400])
    n_words = sum(c.isalpha() or c in _IN_PROSE or c > "\u02ff" for c in sample)
    return text if n_words >= 0.9 * len(sample) else ""


def _is_code(words: str) -> bool:
    """Whether a line of a program that looks like prose is none; its comments and longer strings are."""
    return words.count(" ") < 3 or _CODE.search(words) is not None

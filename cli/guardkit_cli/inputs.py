"""Which inputs there are, and how they are read: options, folders, and the first records shown for people."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatch
from typing import Any, TypeVar

import click

from guardkit_cli.output import escape, say, shorten
from guardkit_cli.records import Item, Reader, Record, Source

SHOWN_RECORDS = 5
_WIDTH = 100
_SHAPES = (
    "messages", "message", "choices", "items", "preference", "answer", "document", "text", "values", "envelope",
)  # fmt: skip
_FORMATS = ("text", "jsonl", "json", "csv", "tsv", "sse")
_FOUND = ("JSON", "server-sent events")
_F = TypeVar("_F", bound=Callable[..., Any])


def options(command: _F) -> _F:
    """The options of a command that reads records."""
    for option in reversed((
        click.option("--recursive", "-r", is_flag=True, help="Read the files in folders, and in theirs."),
        click.option("--glob", metavar="PATTERN", help="Of a folder, only the files of this name, such as '*.jsonl'."),
        click.option(
            "--format",
            "form",
            metavar="NAME",
            type=click.Choice((*_FORMATS, *_SHAPES)),
            help=f"Instead of finding it out: of the input ({', '.join(_FORMATS)}) or of its JSON records "
            f"({', '.join(_SHAPES)}).",
        ),
        click.option("--join", is_flag=True, help="Indented lines, tracebacks and lines after a \\\\ are one record."),
        click.option("--encoding", metavar="NAME", help="Of the input, where it is not found out: cp1251, gbk, …"),
    )):  # fmt: skip
        command = option(command)
    return command


def reader_of(
    form: str | None, *, jsonl: bool = False, field: str | None = None, whole: bool = False, join: bool = False
) -> Reader:
    """A reader by the options. Raises `UsageError` for options that exclude each other."""
    if whole and (jsonl or field is not None or join or form is not None):
        raise click.UsageError("--whole excludes --jsonl, --format, --field and --join")
    is_format = form in _FORMATS
    if join and (jsonl or field is not None or form not in (None, "text")):
        raise click.UsageError("--join is for lines of text: it excludes --jsonl, --field and other formats")
    if form == "text" and (jsonl or field is not None):
        raise click.UsageError("--format text excludes --jsonl and --field")
    jsonl = jsonl or field is not None or form in ("jsonl", *_SHAPES)
    return Reader(
        jsonl=jsonl, field=field, whole=whole, format=form if is_format else None, shape=None if is_format else form,
        join=join,
    )  # fmt: skip


def check_encoding(encoding: str | None) -> None:
    try:
        "".encode(encoding or "utf-8")  # refuses rot13, base64 and the like, too
    except LookupError:
        raise click.UsageError(f"unknown encoding '{encoding}'") from None


def files(paths: Sequence[str], recursive: bool, glob: str | None) -> Iterator[str]:
    """The files that some paths stand for, those of a folder in the order of their names. Links to folders are not
    followed. Raises `UsageError` for a folder without --recursive."""
    for path in paths:
        if path == "-" or not os.path.isdir(path):
            yield path
            continue
        if not recursive:
            raise click.UsageError(f"'{path}' is a folder: give --recursive to read the files in it")
        for folder, folders, names in os.walk(path, onerror=_raise):
            folders.sort()
            for name in sorted(names):
                if (
                    glob is None
                    or fnmatch(name, glob)
                    or fnmatch(os.path.relpath(os.path.join(folder, name), path), glob)
                ):
                    found = os.path.join(folder, name)
                    if os.path.exists(found) and not os.path.isfile(found):  # it might never end, nor begin
                        say(f"'{found}' is a pipe, a socket or a device: not read", "warning")
                    else:
                        yield found


def _raise(error: OSError) -> None:
    raise click.UsageError(f"cannot read '{error.filename}': {error.strerror}")


# ------------------------------------------------------------------------------------------------ how it is read


def explain(path: str, reader: Reader, encoding: str | None = None) -> Iterator[str]:
    """How the first records of an input are read, for people."""
    source = Source.open(path, encoding)
    shown: list[Record] = []
    problem = ""
    try:
        for records in reader.read(source):
            shown += records
            if len(shown) >= SHOWN_RECORDS:
                break
    except OSError as error:
        problem = error.strerror or str(error)
    kind = reader.format or ("one text" if reader.whole else "JSON lines" if reader.jsonl else None)
    if kind is None:
        from guardkit_cli.formats import format_of

        kind = format_of(path) or ("joined lines" if reader.join else "lines of text")
        kind = next((told for told in source.recognised if told.startswith(_FOUND)), kind)
    told = [told for told in source.recognised if not told.startswith(_FOUND)]
    yield f"{escape(path)}: {', '.join([kind, *told])}"
    for record in shown[:SHOWN_RECORDS]:
        last = f" to {record.line + record.over - 1} put together, where that is worse" if record.over else ""
        yield f"record at line {record.line}{last}:"
        yield from (f"  {line}" for line in _lines_of(record))
    if problem:
        yield f"cannot be read on: {escape(problem)}"
    elif not shown:
        yield "no record in it"
    source.close()


def _lines_of(record: Record) -> Iterator[str]:
    if record.item is None:
        yield f"not judged: {escape(record.error or '')}"
        return
    for item in (record.item, *record.more):
        yield from _item_lines(item)
    if record.ignored:
        yield f"not judged itself: {escape(', '.join(record.ignored))}"


def _item_lines(item: Item) -> Iterator[str]:
    if isinstance(item, str):
        yield f"judged as prompt: {shorten(item, _WIDTH)}"
        return
    if len(item) > 1:
        yield f"context: {', '.join(message.role for message in item[:-1])}"
    for part in item[-1].parts():
        if part.text is None:
            yield f"cannot be judged: {escape(part.what)}"
        else:
            yield f"judged as {part.stage.value}: {shorten(part.text, _WIDTH)}"

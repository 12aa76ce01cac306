"""`guard stream`: a filter that lets text through as it is judged, and stops at the first violation."""

from __future__ import annotations

import codecs
import contextlib
import os
import re
import sys
from collections import deque
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from guardkit.reading.encodings import decoded_odd
from guardkit_cli import loading
from guardkit_cli.output import is_terminal, say, to_json
from guardkit_cli.records import Source

if TYPE_CHECKING:
    from guardkit import Verdict
    from guardkit.events import Event
    from guardkit.stream import StreamGuard

FEED_BYTES = 2048
"""Read at once, at most: what is judged must not wait long for what is still to be judged behind it."""

EPILOG = """\b
Examples:
  some-llm | guard stream
  some-llm | guard stream --prompt "the user's question" --policy strict
  curl -sN … | guard stream --json
  cat answer.txt | guard stream > shown.txt || echo "stopped"

\b
What is written is what came in, byte for byte, up to the violation. The last
--holdback tokens wait for what follows them; with --holdback 0 text is written
as soon as it is judged, and what then turns out to be unsafe can only be
reported ("retract").

\b
Exit codes:
  0  all of it was let through     1  stopped at a violation     2  wrong usage
  3  the model failed: nothing more was let through
     (with --on-error allow: let through, with a warning)
"""


@click.command("stream", epilog=EPILOG, short_help="Filter a model's output as it is written.")
@click.argument("source", metavar="[-]", default="", type=click.Choice(["", "-"]))
@click.option("--prompt", metavar="TEXT", help="What the user asked, as context for judging the answer.")
@click.option(
    "--stage",
    type=click.Choice(["response", "reasoning", "tool_call"]),
    default="response",
    show_default=True,
    help="What the text is. <think> blocks are judged as reasoning in any case.",
)
@click.option("--holdback", type=click.IntRange(min=0), help="Tokens kept back until judged. Default: 8.")
@click.option("--debounce", type=click.IntRange(min=1), help="Consecutive flagged tokens that stop. Default: 2.")
@click.option("--json", "as_json", is_flag=True, help="Events as JSON lines, instead of the text.")
@loading.guard_options
def command(
    source: str,
    prompt: str | None,
    stage: str,
    holdback: int | None,
    debounce: int | None,
    as_json: bool,
    model: str,
    policy: str | None,
    device: str | None,
    timeout: float | None,
    on_error: str | None,
) -> int:
    """Pass a model's answer from standard input to standard output while it is judged.

    Stops at the first violation: the rest is withheld, standard input is closed, the verdict goes to standard error.
    """
    if not source and is_terminal(sys.stdin):
        raise click.UsageError("pipe a model's output in (or give '-' to type it)")
    if sys.stdout is None:
        raise click.UsageError("standard output is closed")
    guard = loading.load_guard(model, policy=policy, on_error=on_error, device=device, timeout=timeout)
    given = {"holdback": holdback, "debounce": debounce}
    messages = [{"role": "user", "content": prompt}] if prompt is not None else []
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    with guard.stream(messages, stage=stage, **options) as stream:
        return _Filter(stream, sys.stdout.buffer, as_json).run(Source.stdin())


_ESCAPED_BYTE = re.compile("[\udc80-\udcff]")  # as the "surrogateescape" handler leaves what is not UTF-8


class Bytes:
    """Bytes to text and back: what is released leaves with the very bytes that it came in with.

    Bytes that are not UTF-8 are judged as windows-1252; their places are kept until they are released.
    """

    def __init__(self) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._odd: deque[tuple[int, bytes]] = deque()  # (index of the character, its byte), not released yet
        self._n_in = 0
        self._n_out = 0
        self.n_odd = 0

    def decode(self, data: bytes, final: bool = False) -> str:
        escaped = self._utf8.decode(data, final)
        if not escaped.isascii():
            for found in _ESCAPED_BYTE.finditer(escaped):
                self._odd.append((self._n_in + found.start(), bytes([ord(found[0]) - 0xDC00])))
                self.n_odd += 1
            if self._odd:
                escaped = decoded_odd(escaped)
        self._n_in += len(escaped)
        return escaped

    def encode(self, released: str) -> bytes:
        """The original bytes of the next `released` characters."""
        out, at = [], 0
        end = self._n_out + len(released)
        while self._odd and self._odd[0][0] < end:
            index, byte = self._odd.popleft()
            here = index - self._n_out
            out += [released[at:here].encode("utf-8", "surrogatepass"), byte]
            at = here + 1
        out.append(released[at:].encode("utf-8", "surrogatepass"))
        self._n_out = end
        return b"".join(out)


class _Filter:
    def __init__(self, stream: StreamGuard, out: BinaryIO, as_json: bool):
        self._stream, self._out, self._as_json = stream, out, as_json
        self._bytes = Bytes()
        self._stopped = False
        self._mid_line = False

    def run(self, source: Source) -> int:
        from guardkit import NotJudged

        try:
            while not self._stopped:
                data = source.read(FEED_BYTES)
                text = self._bytes.decode(data, final=not data)
                if text:
                    self._handle(self._stream.feed(text))
                if not data:
                    break
            if not self._stopped:
                self._handle(self._stream.finish())
        except NotJudged as error:
            self._stream.close()
            return self._end(source, 3, str(error))
        if self._stopped:
            return self._end(source, 1)
        return self._end(source, 0)

    def _handle(self, events: list[Event]) -> None:
        from guardkit.events import FlagEvent, RetractEvent, TextEvent

        for event in events:
            if isinstance(event, TextEvent):
                data = self._bytes.encode(event.text)
                self._mid_line = not event.text.endswith("\n")
                if not self._as_json:
                    self._write(data)
            elif isinstance(event, FlagEvent):
                self._tell(f"flagged: {describe(event.verdict)}", "note")
            elif isinstance(event, RetractEvent):
                self._tell(f"the last {event.n_chars:,} characters shown must be taken back", "warning")
            else:
                self._stopped = True
                self._tell(f"stopped: {describe(event.verdict)}; {event.withheld:,} characters withheld", "error")
            if self._as_json:
                self._write_json(event_to_dict(event))

    def _end(self, source: Source, code: int, error: str | None = None) -> int:
        if code:
            _close_input(source)
        if error is not None:
            self._tell(f"{error}; {self._stream.withheld:,} characters withheld", "error")
        judged = error is None and self._stream.judged
        if not judged and error is None:
            self._tell("the model failed: from there on the text was let through without being judged", "warning")
        if self._bytes.n_odd:
            self._tell(f"{self._bytes.n_odd:,} bytes not valid UTF-8: judged as windows-1252", "note")
        if self._as_json:
            end: dict[str, Any] = {
                "kind": "end",
                "verdict": self._stream.verdict.to_dict() if judged else None,
                "released": self._stream.released,
                "withheld": self._stream.withheld,
            }
            self._write_json(end if judged else end | {"error": error or "let through without being judged"})
        return code

    def _tell(self, message: str, level: str) -> None:
        if self._mid_line and not self._as_json and is_terminal(sys.stdout) and is_terminal(sys.stderr):
            sys.stderr.write("\n")
            self._mid_line = False
        say(message, level)

    def _write(self, data: bytes) -> None:
        self._out.write(data)
        self._out.flush()

    def _write_json(self, data: dict[str, Any]) -> None:
        self._write(to_json(data).encode() + b"\n")


def event_to_dict(event: Event) -> dict[str, Any]:
    """An event as JSON: its kind, then what it carries."""
    from dataclasses import fields

    out: dict[str, Any] = {"kind": event.kind}
    for field in fields(event):
        value = getattr(event, field.name)
        out[field.name] = value.to_dict() if field.name == "verdict" else value
    return out


def describe(verdict: Verdict) -> str:
    """For people: "response is unsafe (Violent), probability of harm 0.97, at character 120"."""
    about = f" ({', '.join(c.label for c in verdict.categories)})" if verdict.categories else ""
    where = "" if verdict.char_index is None else f", at character {verdict.char_index:,}"
    return f"{verdict.stage.value} is {verdict.severity.value}{about}, probability of harm {verdict.risk:.2f}{where}"


def _close_input(source: Source) -> None:
    """Let the writer know that nobody reads any more; it gets SIGPIPE instead of filling a pipe for nothing."""
    if source.fd is not None:
        with contextlib.suppress(OSError):
            os.close(source.fd)

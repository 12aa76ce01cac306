"""Streams of pieces, as they are kept in logs and dumps: told from whole records, and put together answer by answer.

Several answers may be under way at once, each told by the id that its pieces bear, or by that of the request in the
record around a piece.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from guardkit.reading.nested import opened
from guardkit.reading.pieces import is_piece, joined
from guardkit.reading.speakers import unwrapped
from guardkit.reading.values import is_name, texts_of
from guardkit.verdict import Stage

HINT = re.compile(
    r"[Dd]elta|[Cc]hunk|message(?:Start|Stop)|content_block_|serverContent|candidates|artifact-update|_stream"
    r'|(?:done|is_finished|token|stop|finish_reason|[a-z][-_](?:start|end|stop))\\{0,8}"|"response\.'
)
"""In the JSON text of every piece."""
MAX_OPEN = 256  # answers under way at once
MAX_KEPT = 1 << 22  # characters of the sources of pieces that are kept; what goes on is the next answer
_DEEPEST = 4  # levels of a record in which its piece may lie
_TEXTS = tuple((key,) for key in ("text", "content", "prompt", "message", "input", "output", "response", "query"))
_ENDS = frozenset((
    "message_stop", "response.completed", "response.incomplete", "response.failed", "response.done", "finish",
    "message-end",
))  # fmt: skip
_IDS = ("id", "responseId", "response_id", "generation_id")
_REQUESTS = (
    "request_id", "requestId", "trace_id", "traceId", "stream_id", "streamId", "session_id", "sessionId",
    "conversation_id", "conversationId", "thread_id", "threadId", "run_id", "runId", "response_id", "correlation_id",
    "taskId", "contextId",
)  # fmt: skip
"""Of the record around a piece: what names the request that it answers."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of an answer. stream: what tells the answer from others; rest: the record around it, None where it is
    one itself."""

    data: Mapping[Any, Any]
    stream: Hashable
    rest: Any = None


@dataclass(slots=True)
class Streamed:
    """The pieces of one answer. line: where the first one stands; n_chars: of their sources."""

    line: int
    pieces: list[Mapping[Any, Any]] = field(default_factory=list)
    n_chars: int = 0
    finished: dict[str, bool] = field(default_factory=dict)
    """Whether each candidate has ended."""

    @property
    def is_lone(self) -> bool:
        """Whether it is one piece that is not the last."""
        return len(self.pieces) == 1 and not any(self.finished.values())


def piece_in(value: Any, known: Sequence[Hashable] = (), in_events: bool = False) -> Piece | None:
    """The piece of a stream that a record is, or wraps; None for all else. known: the streams that are under way, to
    which the last piece of a stream may belong that looks like a whole answer. in_events: every record is of a stream.
    """
    if isinstance(value, list) and len(value) == 1:  # AI SDK, Gemini
        value = value[0]
    if not isinstance(value, Mapping):
        return None
    if is_streamed(value, known) or (in_events and "candidates" in value):
        return Piece(unwrapped(value), _stream_of(value, ()))
    whole = opened(_unpacked(value))
    found: list[tuple[tuple[Any, ...], Mapping[Any, Any]]] = []
    _find(whole, (), found, known)
    if len(found) != 1:
        return None
    path, piece = found[0]
    rest = _without(whole, path) if path else None
    return Piece(unwrapped(piece), _stream_of(piece, _around(whole, path)), rest)


def _unpacked(value: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """A piece as Bedrock sends those of other makers: ``{"chunk": {"bytes": base64 of JSON}}``."""
    chunk = value.get("chunk")
    packed = chunk.get("bytes") if isinstance(chunk, Mapping) else None
    if not isinstance(packed, str):
        return value
    try:
        return {**value, "chunk": base64.b64decode(packed, validate=True).decode()}
    except ValueError:
        return value


def is_streamed(value: Mapping[Any, Any], known: Sequence[Hashable] = ()) -> bool:
    """Whether a record is a piece; Gemini's and LangChain's look like whole answers elsewhere."""
    kind = value.get("type")
    candidates = value.get("candidates")
    if isinstance(candidates, list) and isinstance(value.get("responseId"), str):
        ended = any(isinstance(c, Mapping) and c.get("finishReason") for c in candidates)
        return not ended or _stream_of(value, ()) in known
    if any(value.get(key) is True for key in ("done", "stop", "is_finished")):  # the last one of Ollama's
        return _stream_of(value, ()) in known
    return (
        is_piece(value)
        or _is_langchain_chunk(value)
        or _is_bare_delta(value)
        or (isinstance(kind, str) and kind.startswith("response.") and "response" not in value)
        or isinstance(value.get("serverContent"), Mapping)
        or (isinstance(value.get("sessionUpdate"), str) and value["sessionUpdate"].endswith("_chunk"))
        or (value.get("kind") == "artifact-update" and isinstance(value.get("artifact"), Mapping))
    )


def _is_bare_delta(value: Mapping[Any, Any]) -> bool:
    """Whether words stand in `delta`, and none beside it: an application's own stream."""
    delta = value.get("delta")
    if not isinstance(delta, str) or not any(c.isalpha() or c.isspace() for c in delta):
        return False
    return not has_text({key: inner for key, inner in value.items() if key != "delta"})


def _is_langchain_chunk(value: Mapping[Any, Any]) -> bool:
    name = value.get("id")
    name = name[-1] if isinstance(name, list) and name and "lc" in value else value.get("type")
    return name == "AIMessageChunk"


def has_text(value: Any) -> bool:
    """Whether anything but names, numbers and ids stands in the record around a piece."""
    return any(f.text is None or not is_name(f.text, 6) or f.path[-1:] in _TEXTS for f in texts_of(value, Stage.prompt))


def says_nothing(value: Any) -> bool:
    """Whether a record between pieces is one without a text: a ping, a block that ends."""
    message = joined([opened(_unpacked(value))] if isinstance(value, Mapping) else [value])
    return not any((message.content, message.reasoning, message.tool_calls, message.unjudgeable))


class Streams:
    """`take` the records of an input one by one: it keeps the pieces, and gives the answers that end."""

    def __init__(self) -> None:
        self._open: dict[Hashable, Streamed] = {}
        self._last: Hashable = None

    @property
    def _n_chars(self) -> int:
        return sum(answer.n_chars for answer in self._open.values())

    @property
    def known(self) -> tuple[Hashable, ...]:
        return tuple(self._open)

    def take(self, piece: Piece, line: int, n_chars: int) -> list[Streamed]:
        """Keep a piece; the answers that are whole by it."""
        data, out = piece.data, []
        if data.get("type") == "message_start" and piece.stream in self._open:
            out.append(self._open.pop(piece.stream))
        elif len(self._open) >= MAX_OPEN and piece.stream not in self._open:
            out += self.end()
        answer = self._open.setdefault(piece.stream, Streamed(line))
        answer.pieces.append(data)
        answer.n_chars += n_chars
        self._last = piece.stream
        for index, ended in _endings(data):
            answer.finished[index] = ended or answer.finished.get(index, False)
        if answer.finished and all(answer.finished.values()):
            out.append(self._open.pop(piece.stream))
        return out + self.end() if self._n_chars > MAX_KEPT else out

    def done(self) -> list[Streamed]:
        """What ends where a dump says that a stream is over, without saying which."""
        answer = self._open.pop(self._last, None)
        return [answer] if answer is not None else self.end()

    def end(self) -> list[Streamed]:
        """All that is kept, in the order of its beginning. Lone pieces whose ids all differ are one answer."""
        answers, self._open = list(self._open.values()), {}
        lone = [answer for answer in answers if answer.is_lone and is_piece(answer.pieces[0])]
        if len(lone) < 2:
            return answers
        first = Streamed(lone[0].line, [a.pieces[0] for a in lone], sum(a.n_chars for a in lone))
        others = {id(answer) for answer in lone[1:]}
        return [first if answer is lone[0] else answer for answer in answers if id(answer) not in others]


def _endings(data: Mapping[Any, Any]) -> list[tuple[str, bool]]:
    """The candidates of a piece, and whether each ends with it."""
    choices = data.get("choices", data.get("candidates"))
    if isinstance(choices, list):
        told = [c for c in choices if isinstance(c, Mapping)]
        return [(str(c.get("index", 0)), bool(c.get("finish_reason") or c.get("finishReason"))) for c in told]
    content = data.get("serverContent")
    about = data.get("response_metadata")
    ended = (
        data.get("type") in _ENDS
        or data.get("chunk_position") == "last"
        or (
            isinstance(about, Mapping)
            and any(about.get(key) for key in ("finish_reason", "stop_reason", "done_reason"))
        )
        or data.get("done") is True
        or data.get("stop") is True
        or data.get("is_finished") is True
        or data.get("lastChunk") is True
        or "messageStop" in data
        or (isinstance(content, Mapping) and content.get("turnComplete") is True)
    )
    return [("", True)] if ended else []


def _stream_of(piece: Mapping[Any, Any], around: Sequence[Mapping[Any, Any]]) -> Hashable:
    is_event = isinstance(piece.get("type"), str) and not _is_langchain_chunk(piece)
    if isinstance(update := piece.get("sessionUpdate"), str):
        return update, _requests(around)
    names = _IDS[1:] if is_event else _IDS  # an event's own id names a block, or the event
    own = next((str(piece[k]) for k in names if isinstance(piece.get(k), str) and piece[k]), "")
    kwargs = piece.get("kwargs")
    if isinstance(kwargs, Mapping) and isinstance(kwargs.get("id"), str):
        own = kwargs["id"]
    return own, _requests((piece, *around))


def _requests(values: Sequence[Mapping[Any, Any]]) -> tuple[str, ...]:
    return tuple(str(value[key]) for value in values for key in _REQUESTS if isinstance(value.get(key), str | int))


def _find(value: Any, path: tuple[Any, ...], found: list[Any], known: Sequence[Hashable]) -> None:
    if len(path) > _DEEPEST or not isinstance(value, Mapping):
        return
    if path and is_streamed(value, known):
        found.append((path, value))
        return
    for key, child in value.items():
        _find(child, (*path, key), found, known)


def _around(value: Any, path: tuple[Any, ...]) -> list[Mapping[Any, Any]]:
    found = []
    for step in path:
        found.append(value)
        value = value[step]
    return found


def _without(value: Mapping[Any, Any], path: tuple[Any, ...]) -> dict[Any, Any]:
    head, *rest = path
    if not rest:
        return {key: child for key, child in value.items() if key != head}
    return {key: _without(child, tuple(rest)) if key == head else child for key, child in value.items()}

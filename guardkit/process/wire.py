"""What crosses between an application and the process of its model: frames, and what stands in them.

A frame is the lengths of its two halves, JSON, and float32 numbers that the JSON refers to in order; so scores arrive
to the last bit. Nothing that comes is run: a peer may name the tokenizers and errors of these tables, and no others.
"""

from __future__ import annotations

import builtins
import json
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from guardkit import errors
from guardkit.coverage import Coverage
from guardkit.errors import GuardkitError
from guardkit.messages import Message, Part
from guardkit.models.base import Append, Floats, Limits, Query, QueryScores, Scores, StreamModel, Tokenizer, Tokens
from guardkit.models.logits import Logits
from guardkit.verdict import Category, Stage

HEAD = struct.Struct("<II")
PIECE = 1 << 18  # bytes that are read at a time
_STAGES = {stage.value: stage for stage in Stage}


def _plain(value: Any) -> Any:
    """What is not JSON: numpy's numbers and arrays, as ids may be."""
    return value.tolist() if hasattr(value, "tolist") else list(value)


_encode = json.JSONEncoder(separators=(",", ":"), default=_plain, check_circular=False).encode


def frame(rows: Any, numbers: Sequence[Floats] = ()) -> bytes:
    """Raises TypeError or ValueError for what is not JSON."""
    head = _encode(rows).encode()
    tail = b"".join([each.tobytes() for each in numbers])
    if max(len(head), len(tail)) >= 1 << 32:
        raise ValueError("a text of more than 4 GiB does not fit into a frame")
    return b"".join((HEAD.pack(len(head), len(tail)), head, tail))


class Frames:
    """Bytes in, whole frames out."""

    def __init__(self) -> None:
        self._held = bytearray()

    def push(self, data: bytes) -> list[tuple[Any, bytes]]:
        """The JSON and the numbers of each frame that is complete. Raises ValueError for what is none."""
        held = self._held
        held += data
        found, at = [], 0
        while len(held) - at >= HEAD.size:
            n, m = HEAD.unpack_from(held, at)
            begin = at + HEAD.size
            if len(held) < begin + n + m:
                break
            found.append((json.loads(held[begin : begin + n].decode("ascii")), bytes(held[begin + n : begin + n + m])))
            at = begin + n + m
        del held[:at]
        return found


# -- works


def message_row(message: Message) -> list[Any]:
    attached = [[part.stage.value, part.text, part.what] for part in message.attached]
    return [
        message.role, message.content, message.reasoning, message.tool_calls, message.unjudgeable, attached,
    ]  # fmt: skip


def message_of(row: Sequence[Any]) -> Message:
    role, content, reasoning, tool_calls, unjudgeable, attached = row
    parts = tuple(Part(_STAGES[stage], text, what) for stage, text, what in attached)
    return Message(role, content, reasoning, tuple(tool_calls), tuple(unjudgeable), parts)


def query_row(query: Query) -> list[Any]:
    return [query.text, query.stage.value, [message_row(message) for message in query.context], query.early]


def append_row(session: int, work: Append) -> list[Any]:
    tokens = work.tokens
    return [session, work.keep, tokens.stage.value, tokens.ids, tokens.starts, tokens.text, tokens.end]


def query_of(row: Sequence[Any]) -> Query:
    text, stage, context, early = row
    return Query(text, _STAGES[stage], tuple(message_of(each) for each in context), early)


def tokens_of(row: Sequence[Any]) -> Tokens:
    """Of an `append_row`."""
    return Tokens(_STAGES[row[2]], row[3], row[4], row[5], row[6])


# -- results

_LOGITS, _SCORES, _WINDOWS, _ERROR, _CANCELLED, _DONE = range(6)


def result_row(result: Any, numbers: list[Floats]) -> list[Any]:
    """A result as JSON; its numbers are put behind the others."""
    if isinstance(result, Scores):
        return _scores_row(result, numbers)
    return [_WINDOWS, [[q.start, q.end, bool(q.windowed), _scores_row(q.scores, numbers)] for q in result]]


def error_row(error: BaseException) -> list[Any]:
    """As its type with those that it derives from, its arguments, and what else it holds, where that is JSON."""
    kinds = [kind.__name__ for kind in type(error).__mro__ if issubclass(kind, Exception)]
    args = [arg if isinstance(arg, str | int | float | None) else str(arg) for arg in error.args]
    more = {name: value for name, value in vars(error).items() if isinstance(value, str | int | float | None)}
    return [_ERROR, kinds, args, more, str(error)]


def cancelled_row() -> list[Any]:
    return [_CANCELLED]


def done_row() -> list[Any]:
    return [_DONE]


class Numbers:
    """The numbers of a frame, taken in order."""

    def __init__(self, tail: bytes):
        self._tail, self._at = tail, 0

    def take(self, *shape: int) -> Floats:
        """Raises ValueError where there are fewer."""
        n = 1
        for size in shape:
            n *= size
        found = np.frombuffer(self._tail, np.float32, n, self._at) if n else np.zeros(0, np.float32)
        self._at += 4 * n
        return found.reshape(shape).copy()


def result_of(row: Sequence[Any], numbers: Numbers) -> Any:
    """A result, an error (as an `Exception`), or None: there is none, since it was cancelled or has nothing to say."""
    kind = row[0]
    if kind in (_LOGITS, _SCORES):
        return _scores_of(row, numbers)
    if kind == _WINDOWS:
        return [QueryScores(_scores_of(each, numbers), start, end, cut) for start, end, cut, each in row[1]]
    if kind == _ERROR:
        return error_of(row)
    return None


def was_cancelled(row: Sequence[Any]) -> bool:
    return bool(row[0] == _CANCELLED)


def _scores_row(scores: Scores, numbers: list[Floats]) -> list[Any]:
    if isinstance(scores, Logits):
        numbers.append(_floats(scores.rows))
        return [_LOGITS, *scores.rows.shape, scores.order.tolist(), scores.windowed is not None]
    severity, category, refusal = _floats(scores.severity), _floats(scores.category), scores.refusal
    numbers += (severity, category) if refusal is None else (severity, category, _floats(refusal))
    windowed = None if scores.windowed is None else scores.windowed.tolist()
    named = None if scores.named is None else [category.label for category in scores.named]
    refusals = None if refusal is None else len(refusal)
    return [_SCORES, severity.shape, category.shape, refusals, windowed, named]


def _scores_of(row: Sequence[Any], numbers: Numbers) -> Scores:
    if row[0] == _LOGITS:
        _, n, width, order, windowed = row
        return Logits(numbers.take(n, width), np.array(order), windowed)
    _, severity, category, refusals, windowed, named = row
    return Scores(
        numbers.take(*severity),
        numbers.take(*category),
        None if refusals is None else numbers.take(refusals),
        None if windowed is None else np.array(windowed, bool),
        None if named is None else tuple(Category.named(label) for label in named),
    )


def _floats(numbers: Floats) -> Floats:
    return np.ascontiguousarray(numbers, np.float32)


def _known_errors() -> dict[str, type[Exception]]:
    found = [*vars(builtins).values(), *vars(errors).values()]
    return {each.__name__: each for each in found if isinstance(each, type) and issubclass(each, Exception)}


def error_of(row: Sequence[Any]) -> Exception:
    """The error itself where its type is known here, else one of the nearest type that says which it was."""
    _, kinds, args, more, message = row
    known = _known_errors()
    kind = next((known[name] for name in kinds if name in known), RuntimeError)
    if kind.__name__ != kinds[0]:
        args, more = [f"{kinds[0]}: {message}"], {}
    try:
        if not issubclass(kind, GuardkitError):
            return kind(*args)
        error = kind.__new__(kind, *args)  # whose own arguments are not kept
        vars(error).update(more)
        return error
    except Exception:  # one that is made of other things
        return RuntimeError(f"{kinds[0]}: {message}")


# -- a model without its weights

_TOKENIZERS = {
    "QwenTokenizer": "guardkit.models.qwen_tokenizer",
    "UnigramTokenizer": "guardkit.models.nano.unigram",
    "WordTokenizer": "guardkit.models.word_tokenizer",
}
_SAME = ("judges_normalized_view", "whole_texts", "locate_queries", "stride", "in_flight")


def profile_of(model: StreamModel) -> dict[str, Any]:
    """What whoever asks the model needs of it: all but the weights, as JSON."""
    return {
        "name": model.name,
        "tokenizer": _tokenizer_row(model),
        "query": [category.label for category in model.query_categories],
        "response": [category.label for category in model.response_categories],
        "coverage": None if model.coverage is None else dict(model.coverage.languages),
        "limits": {stage.value: _limits_row(model.limits(stage)) for stage in Stage},
        "max_streams": model.max_streams,
        **{name: getattr(model, name) for name in _SAME},
    }


def apply(profile: dict[str, Any], model: StreamModel) -> dict[Stage, Limits | None]:
    """Make `model` what the profile says; gives its limits."""
    model.name, model.tokenizer = profile["name"], _tokenizer_of(profile["tokenizer"])
    model.query_categories = tuple(map(Category.named, profile["query"]))
    model.response_categories = tuple(map(Category.named, profile["response"]))
    model.coverage = None if profile["coverage"] is None else Coverage(profile["coverage"])
    for name in _SAME:
        setattr(model, name, profile[name])
    return {Stage(name): _limits_of(row) for name, row in profile["limits"].items()}


def _tokenizer_row(model: StreamModel) -> list[Any]:
    """Its class, what it is made of, and what its files hold: whoever reads them must read the same."""
    kind, made_of = type(model.tokenizer).__name__, getattr(model.tokenizer, "made_of", None)
    if kind not in _TOKENIZERS or made_of is None:
        raise GuardkitError(f"{model.name} cannot live in a process of its own: its tokenizer ({kind}) does not travel")
    return [kind, [str(arg) if isinstance(arg, Path) else arg for arg in made_of], list(_sums(made_of))]


def _sums(made_of: Sequence[Any]) -> Iterator[int]:
    for each in made_of:
        if isinstance(each, Path):
            file = each / "tokenizer.json" if each.is_dir() else each
            yield zlib.crc32(file.read_bytes())


def _tokenizer_of(row: Sequence[Any]) -> Tokenizer:
    import importlib

    kind, made_of, _ = row
    make: Callable[..., Tokenizer] = getattr(importlib.import_module(_TOKENIZERS[kind]), kind)
    return make(*(Path(arg) if isinstance(arg, str) else arg for arg in made_of))


def _limits_row(limits: Limits | None) -> list[Any] | None:
    if limits is None:
        return None
    return [limits.unsafe, limits.flagged, {category.label: least for category, least in limits.categories.items()}]


def _limits_of(row: Sequence[Any] | None) -> Limits | None:
    if row is None:
        return None
    unsafe, flagged, categories = row
    return Limits(unsafe, flagged, {Category.named(label): least for label, least in categories.items()})

"""Qwen3Guard-Stream on guardkit's own engine: query heads at the end of a user's turn, response heads at every token.

A conversation is laid out by the checkpoint's chat template with thinking disabled, as the published code does it: a
query is read at the `<|im_end|>` that closes the last user turn; a response follows the assistant scaffold. Reasoning
goes between the scaffold's think tags.

What outgrows the model's positions is windowed, and the verdict says so (`windowed`): of a long context the oldest
messages are left out first; a long query is judged in windows that overlap; a long response goes on in a new window
that starts with the context and the last `LEAD` share of its tokens.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from guardkit.engine.checkpoint import Checkpoint
from guardkit.engine.config import GuardHeads
from guardkit.engine.engine import Engine, Head, Rows
from guardkit.engine.engine import Sequence as Sequence_
from guardkit.engine.qwen3 import Embedding, Linear, rms_norm
from guardkit.engine.reading import EngineModel, EngineSession, Reading
from guardkit.engine.setup import Options, build
from guardkit.engine.template import ChatTemplate
from guardkit.errors import ModelLoadError
from guardkit.messages import Message, split_reasoning
from guardkit.models.base import Append, Query, QueryScores, Scores, Tokens, windows
from guardkit.models.logits import Logits
from guardkit.models.qwen_tokenizer import QwenTokenizer
from guardkit.ticket import Pending
from guardkit.verdict import Stage

ARCHITECTURE = "Qwen3ForGuardModel"
LEAD = 8  # a new window repeats the last 1/LEAD of the positions
OVERLAP = 32  # windows of a query share 1/OVERLAP of the positions
_ROLES = {"human": "user", "developer": "system", "ai": "assistant", "model": "assistant", "function": "tool"}
_THINKING = re.compile(r"<think>\s*</think>\s*$")


def load(checkpoint: Checkpoint, name: str, options: Options) -> Qwen3GuardStream:
    """Load a Qwen3Guard-Stream checkpoint. Raises `ModelLoadError`."""
    checkpoint.require(ARCHITECTURE)
    heads = GuardHeads.from_json(checkpoint.raw, checkpoint.source)
    tokenizer = QwenTokenizer(checkpoint.folder, checkpoint.config.vocab_size)
    frames = Frames(ChatTemplate(checkpoint.chat_template(), tokenizer, checkpoint.folder), tokenizer)
    width, inner, eps = checkpoint.config.hidden_size, heads.inner_size, checkpoint.config.rms_norm_eps
    shapes: dict[str, tuple[int, ...]] = {}
    for side, risks, categories in (
        ("", heads.response_severities, heads.response_categories),
        ("query_", heads.query_severities, heads.query_categories),
    ):
        shapes |= {
            f"{side}risk_level_category_pre.weight": (inner, width),
            f"{side}risk_level_category_layernorm.weight": (inner,),
            f"{side}risk_level_head.weight": (len(risks), inner),
            f"{side}category_head.weight": (len(categories), inner),
        }

    def make(own: dict[str, Tensor], _: Embedding) -> dict[str, Head]:
        return {"response": _GuardHead(own, "", eps), "query": _GuardHead(own, "query_", eps)}

    return Qwen3GuardStream(name, build(checkpoint, shapes, make, options), tokenizer, frames, heads)


class _GuardHead:
    """Hidden states [n, hidden_size] -> risk and category logits [n, risks + categories]."""

    def __init__(self, tensors: dict[str, Tensor], side: str, eps: float):
        self._pre = Linear(tensors[f"{side}risk_level_category_pre.weight"])
        self._norm, self._eps = tensors[f"{side}risk_level_category_layernorm.weight"], eps
        both = [tensors[f"{side}risk_level_head.weight"], tensors[f"{side}category_head.weight"]]
        self._heads = Linear(torch.cat(both))

    def __call__(self, hidden: Tensor) -> Tensor:
        return self._heads(rms_norm(self._pre(hidden), self._norm, self._eps))


@dataclass(frozen=True)
class Frame:
    """What stands before a response. empty: the scaffold of an answer without reasoning; opened, closed: around one.
    windowed: whether messages were left out."""

    ids: list[int]
    empty: list[int]
    opened: list[int]
    closed: list[int]
    windowed: bool = False

    def scaffold(self, before: Stage | None, stage: Stage) -> list[int]:
        """What stands before tokens of `stage` that follow those of the stage `before` (None: they are the first)."""
        thinks = stage is Stage.reasoning
        if before is None:
            return self.opened if thinks else self.empty
        if (before is Stage.reasoning) is thinks:
            return []
        return self.opened if thinks else self.closed


class Frames:
    """Conversations as token ids, through the checkpoint's template."""

    def __init__(self, template: ChatTemplate, tokenizer: QwenTokenizer):
        self._template, self._tokenizer = template, tokenizer
        self._end = tokenizer.special("<|im_end|>")
        if self._end not in self.query([], ""):
            raise ModelLoadError("the chat template closes no turn with <|im_end|>: queries cannot be judged")

    def query(self, context: Sequence[Message], text: str) -> list[int]:
        """Up to and with the `<|im_end|>` that closes the query's turn."""
        roles, contents = _turns([*context, Message("user", text)])
        ids = self._template.encode(self._template.lay_out(roles, enable_thinking=False), contents)
        if self._end in ids:
            del ids[len(ids) - ids[::-1].index(self._end) :]
        return ids

    def around_query(self) -> tuple[list[int], list[int]]:
        """What stands before and after a query without context."""
        layout = self._template.lay_out(["user"], enable_thinking=False)
        at = layout.index(0)
        after = self._template.encode(layout[at + 1 :], [])
        return self._template.encode(layout[:at], []), after[: after.index(self._end) + 1]

    def response(self, context: Sequence[Message], limit: int) -> Frame:
        """The frame of a response, of at most `limit` tokens: of a longer context the oldest messages are left out,
        and of a last message that is too long by itself the middle."""
        frame = self._response(context)
        if len(frame.ids) <= limit:
            return frame
        kept = self._likely(context, limit, least=1)
        while len((frame := self._response(kept)).ids) > limit and len(kept) > 1:
            del kept[0]
        if kept and len(frame.ids) > limit:
            around = len(self._response([Message(kept[0].role)]).ids)
            half = max((limit - around) // 2 - 8, 0)
            frame = self._response([Message(kept[0].role, self._ends(kept[0].content, half))])
        return replace(frame, windowed=bool(context))

    def newest_query(self, context: Sequence[Message], text: str, limit: int) -> list[int]:
        """`query` without the oldest messages, so that it has at most `limit` tokens where the text alone has."""
        kept = self._likely(context, limit, least=0)
        while len(ids := self.query(kept, text)) > limit and kept:
            del kept[0]
        return ids

    def _likely(self, context: Sequence[Message], limit: int, least: int) -> list[Message]:
        """The newest messages whose contents alone have at most `limit` tokens, but at least `least` messages."""
        kept = list(context)
        sizes = [len(self._tokenizer.encode(message.said)[0]) for message in kept]
        while len(kept) > least and sum(sizes) > limit:
            del kept[0], sizes[0]
        return kept

    def _ends(self, text: str, half: int) -> str:
        starts = self._tokenizer.encode(text)[1]
        return text[: starts[half]] + "\n[...]\n" + text[starts[-half] :] if half else ""

    def _response(self, context: Sequence[Message]) -> Frame:
        roles, contents = _turns([*context, Message("assistant")])
        layout = self._template.lay_out(roles, enable_thinking=False)
        if len(roles) - 1 not in layout:
            raise ModelLoadError("the chat template leaves out the assistant's turn: responses cannot be judged")
        at = layout.index(len(roles) - 1)
        before = layout[at - 1] if at else ""
        thinking = _THINKING.search(before) if isinstance(before, str) else None
        if thinking is None or not isinstance(before, str):
            return Frame(self._template.encode(layout[:at], contents), [], [], [])
        ids = self._template.encode([*layout[: at - 1], before[: thinking.start()]], contents)
        plain = self._tokenizer.ids_of
        return Frame(ids, plain(thinking[0]), plain("<think>\n"), plain("\n</think>\n\n"))


def _turns(messages: Sequence[Message]) -> tuple[list[str], list[str]]:
    """Roles and contents as the template knows them: earlier reasoning left out, tool calls spelled out."""
    roles = [_ROLES.get(m.role, m.role) for m in messages]
    contents = []
    for message, role in zip(messages, roles, strict=True):
        answer = split_reasoning(message.said)[1].lstrip("\n") if role == "assistant" else message.said
        contents.append("\n".join(filter(None, (answer, *message.tool_calls))))
    return roles, contents


class Qwen3GuardStream(EngineModel):
    """A loaded Qwen3Guard-Stream checkpoint; its engine is shared by all streams and checks."""

    def __init__(self, name: str, engine: Engine, tokenizer: QwenTokenizer, frames: Frames, heads: GuardHeads):
        self.name, self.engine, self.tokenizer, self.frames = name, engine, tokenizer, frames
        self.query_categories, self.response_categories = heads.query_categories, heads.response_categories
        # Column i of our severities is class order[i] of theirs.
        self._query_order = np.array([heads.query_severities.index(i) for i in range(3)])
        self._response_order = np.array([heads.response_severities.index(i) for i in range(3)])
        self._before, self._after = frames.around_query()
        least = len(self._before) + len(self._after) + 64
        if engine.max_tokens < least:
            raise ModelLoadError(f"{name}: room for {engine.max_tokens} tokens only, at least {least} are needed")

    # -- queries

    def _query(self, query: Query, deadline: float | None) -> Reading[list[QueryScores]]:
        found = []
        for ids, window in self._windows(query):
            sequence = self.engine.open(counted=False)
            try:
                rows = yield self.engine.submit(sequence, ids, "query", len(ids) - 1, deadline=deadline)
            finally:
                self.engine.close(sequence)
            scores = Logits(rows, self._query_order)
            found.append(QueryScores(scores, window.start, window.end, window.windowed))
        return found

    def _windows(self, query: Query) -> Iterator[tuple[list[int], QueryScores]]:
        """(ids, where they come from) of every window; one for a query that fits."""
        nothing = Scores(np.zeros((0, 3), np.float32), np.zeros((0, 0), np.float32))
        room = self.engine.max_tokens - len(self._before) - len(self._after)
        # What flows in from outside is judged by itself: a bad request does not make its tool output bad.
        context = query.context if query.stage is Stage.prompt else ()
        limit = self.engine.max_tokens
        ids = self.frames.query(context, query.text)
        if len(ids) <= limit:
            yield ids, QueryScores(nothing)
            return
        own, starts = self.tokenizer.encode(query.text)
        if context and len(own) <= room:
            yield self.frames.newest_query(context, query.text, limit), QueryScores(nothing, windowed=True)
            return
        for first, end in windows(len(own), room, limit // OVERLAP):
            stop = starts[end] if end < len(own) else len(query.text)
            yield [*self._before, *own[first:end], *self._after], QueryScores(nothing, starts[first], stop, True)

    # -- responses

    def open(self, context: Sequence[Message]) -> _StreamSession:
        return _StreamSession(self, self.frames.response(context, self.engine.max_tokens // 2))

    def _append(self, work: Append, deadline: float | None) -> Reading[Scores]:
        session = work.session
        if not isinstance(session, _StreamSession):
            return _failed(TypeError(f"a session of another model: {type(session).__name__}"))
        return session.append(work.tokens, deadline) if work.keep else session.peek(work.tokens, deadline)

    def response_scores(self, logits: Rows, windowed: bool) -> Scores:
        return Logits(logits, self._response_order, windowed)


def _failed(error: Exception) -> Reading[Scores]:
    raise error
    yield


@dataclass(frozen=True)
class _Place:
    """A place in a response. ids: the list of its sequence, whose first `length` tokens stay; lead: see the session."""

    sequence: Sequence_
    ids: list[int]
    length: int
    stage: Stage | None
    lead: tuple[int, ...]
    windowed: bool


class _StreamSession(EngineSession):
    def __init__(self, model: Qwen3GuardStream, frame: Frame):
        self._model, self._frame = model, frame
        self._limit = model.engine.max_tokens
        self._stage: Stage | None = None
        self._lead: deque[int] = deque(maxlen=self._limit // LEAD)  # the newest tokens of the response
        self.windowed = frame.windowed
        super().__init__(model.engine, model.engine.open())
        model.engine.submit(self._sequence, frame.ids)  # computed while the LLM thinks of its first word

    def append(self, tokens: Tokens, deadline: float | None) -> Reading[Scores]:
        engine, ids, at = self._model.engine, tokens.ids, 0
        scaffold = self._frame.scaffold(self._stage, tokens.stage)
        if self._sequence.length + len(scaffold) + len(ids) <= self._limit:  # as nearly always: one piece
            whole = [*scaffold, *ids] if scaffold else ids
            pending = engine.submit(self._sequence, whole, "response", len(scaffold), deadline=deadline)
            self._lead.extend(ids)
            self._stage = tokens.stage
            windowed = self.windowed
            return self._model.response_scores((yield pending), windowed)
        parts: list[tuple[Pending, bool]] = []
        while at < len(ids):
            if self._sequence.length + len(scaffold) >= self._limit:
                self._open_window()
                scaffold = self._frame.scaffold(self._stage, tokens.stage)
            n = min(len(ids) - at, self._limit - self._sequence.length - len(scaffold))
            piece = [*scaffold, *ids[at : at + n]]
            rows = engine.submit(self._sequence, piece, "response", len(scaffold), deadline=deadline)
            parts.append((rows, self.windowed))
            self._lead.extend(ids[at : at + n])
            scaffold, self._stage = [], tokens.stage
            at += n
        scores = []
        for part, windowed in parts:
            scores.append(self._model.response_scores((yield part), windowed))
        return Scores.join(scores)

    def peek(self, tokens: Tokens, deadline: float | None) -> Reading[Scores]:
        engine, scaffold = self._model.engine, self._frame.scaffold(self._stage, tokens.stage)
        ids = [*scaffold, *tokens.ids]
        if self._sequence.length + len(ids) <= self._limit:
            rows = yield engine.submit(self._sequence, ids, "response", len(scaffold), keep=False, deadline=deadline)
            return self._model.response_scores(rows, self.windowed)
        # The next append would open a new window: look at it in a sequence of its own.
        sequence = engine.open(counted=False)
        try:
            start = self._window()
            read_from = len(start) + len(scaffold)
            rows = yield engine.submit(sequence, [*start, *ids], "response", read_from, deadline=deadline)
            return self._model.response_scores(rows, True)
        finally:
            engine.close(sequence)

    def mark(self) -> _Place:
        sequence = self._sequence
        return _Place(sequence, sequence.ids, sequence.length, self._stage, tuple(self._lead), self.windowed)

    def rewind(self, mark: _Place) -> None:
        engine = self._model.engine
        if self._sequence is not mark.sequence:  # another window: the marked one is computed again
            self._sequence = engine.replace(self._sequence)
            engine.submit(self._sequence, mark.ids[: mark.length])
        elif mark.length < self._sequence.length:
            engine.truncate(self._sequence, mark.length)
        self._stage, self.windowed = mark.stage, mark.windowed
        self._lead.clear()
        self._lead.extend(mark.lead)

    def _window(self) -> list[int]:
        """How a new window starts: the context, and the newest tokens of the response."""
        return [*self._frame.ids, *self._frame.scaffold(None, self._stage or Stage.response), *self._lead]

    def _open_window(self) -> None:
        engine = self._model.engine
        self.windowed = True
        self._sequence = engine.replace(self._sequence)
        engine.submit(self._sequence, self._window())

"""Qwen3Guard-Gen on guardkit's own engine: the verdict is read from logits, not decoded and parsed.

The checkpoint's template is rendered, `Safety:` is forced, and the three labels are compared at one position. The same
pass goes on with the likeliest answer (Safe, None), so that a safe text takes one pass; otherwise the sequence is cut
back and led along the grammar, a label's tokens at a time. Where greedy decoding stays within the grammar this finds
what it finds; it never leaves it, so no answer is unparsable, and each choice has its probability.

The template's head, the same for every text, is computed once and shared. Only rows of the LM head that belong to the
grammar are kept.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from guardkit.engine.cache import GROW
from guardkit.engine.checkpoint import Checkpoint
from guardkit.engine.config import Categories
from guardkit.engine.engine import Engine, Head
from guardkit.engine.engine import Sequence as Sequence_
from guardkit.engine.qwen3 import Embedding, Linear
from guardkit.engine.reading import EngineModel, EngineSession, Reading
from guardkit.engine.setup import Options, build
from guardkit.engine.template import ChatTemplate, Layout
from guardkit.errors import ModelLoadError
from guardkit.messages import Message
from guardkit.models.base import Append, Query, QueryScores, Scores, Tokens, windows
from guardkit.models.gen_messages import ALONE, content_of, render
from guardkit.models.gen_walk import Answer, Grammar, Walker
from guardkit.models.qwen_tokenizer import QwenTokenizer
from guardkit.retokenize import IncrementalTokenizer
from guardkit.ticket import Ticket
from guardkit.verdict import Stage

ARCHITECTURE = "Qwen3ForCausalLM"
STRIDE = 32  # tokens of a stream between two judgements
TAIL = 512  # positions that are kept free for text that is not final yet
ANSWER = 96  # positions that are kept free for the answer, at least: all categories, and the refusal
CUT = 16  # tokens by which the piece of a text may outgrow those that it was cut from
OVERLAP = 32  # windows of a long text share 1/OVERLAP of the positions
IN_FLIGHT = 64  # texts that are in the engine at once
NOTHING = np.zeros((0, 0), np.float32)


def load(checkpoint: Checkpoint, name: str, options: Options) -> Qwen3GuardGen:
    """Load a Qwen3Guard-Gen checkpoint. Raises `ModelLoadError`."""
    checkpoint.require(ARCHITECTURE)
    folder, source = checkpoint.folder, checkpoint.chat_template()
    tokenizer = QwenTokenizer(checkpoint.folder, checkpoint.config.vocab_size)
    if "Safety:" not in source:
        raise ModelLoadError(
            f"{folder}: the chat template asks for no 'Safety:' line, so this is no Qwen3Guard-Gen (a plain Qwen3?)"
        )
    template = ChatTemplate(source, tokenizer, folder)
    known = Categories.from_json(checkpoint.raw, checkpoint.source)
    strange = [c.label for c in known.all if c.is_own and c.label not in source]
    if strange:
        raise ModelLoadError(
            f"{checkpoint.source}: the chat template of this folder does not speak of {', '.join(strange)}: the label "
            "maps and the template come from different models"
        )
    grammar = Grammar.of(tokenizer, folder, known)
    tied = checkpoint.config.tie_word_embeddings
    shapes = {} if tied else {"lm_head.weight": (checkpoint.config.vocab_size, checkpoint.config.hidden_size)}

    def make(own: dict[str, Tensor], embed: Embedding) -> dict[str, Head]:
        rows = torch.tensor(grammar.ids, device=embed.device)
        return {"grammar": Linear(embed(rows) if tied else own["lm_head.weight"][rows])}

    return Qwen3GuardGen(name, build(checkpoint, shapes, make, options), tokenizer, template, grammar)


@dataclass(frozen=True)
class Frame:
    """The template around a text: `layout`, in which the text's placeholder is `at`; contents: of the turns;
    windowed: whether some of the context was left out."""

    layout: Layout
    contents: list[str]
    at: int
    response: bool
    windowed: bool


class Qwen3GuardGen(EngineModel):
    """A loaded Qwen3Guard-Gen checkpoint."""

    whole_texts = True
    locate_queries = 8
    stride = STRIDE

    def __init__(self, name: str, engine: Engine, tokenizer: QwenTokenizer, template: ChatTemplate, grammar: Grammar):
        self.name, self.engine, self.tokenizer, self.template, self.grammar = name, engine, tokenizer, template, grammar
        self.query_categories, self.response_categories = grammar.known.query, grammar.known.response
        self._answer = max(ANSWER, grammar.longest)
        self.walk = Walker(engine, grammar).walk
        self._heads: list[Sequence_] = []
        self._heads = [self._head(False), self._head(True)]
        self._room = _Room(engine.room)

    @property
    def limit(self) -> int:
        """Tokens that a rendered text may have."""
        return self.engine.max_tokens - self._answer

    def _head(self, response: bool) -> Sequence_:
        """The ids that every text of a kind starts with, as a pinned sequence. Found by comparing short texts."""
        asked = Message("user", "a")
        texts = [
            Query(text, Stage.response if response else Stage.prompt, context)
            for text in ("a", "1", "\n.")
            for context in ((), (asked,), (Message("system", "b"), Message("user", "\n")))
        ]
        tried = [self.encode(self.frame(query), query.text) for query in texts]
        same = 0
        while len({ids[same] for ids in tried if same < len(ids)}) == 1:
            same += 1
        shortest = min(map(len, tried))
        head = self.engine.pin(tried[0][:same]) if shortest <= self.engine.max_tokens else None
        if head is None or shortest + 64 > self.limit:
            raise ModelLoadError(f"{self.name}: room for {self.engine.max_tokens} tokens only; the template needs more")
        return head

    # -- whole texts

    def _query(self, query: Query, deadline: float | None) -> Reading[list[QueryScores]]:
        found = []
        for frame, ids, window in self._windows(query):
            turn = self._room.enter(-(-(len(ids) + self._answer) // GROW) * GROW)
            sequence = None
            try:
                yield turn
                sequence = self.engine.open(counted=False, prefix=self._prefix(ids, frame.response))
                answer = yield from self.walk(sequence, ids, frame.response, deadline)
            finally:
                if sequence is not None:
                    self.engine.close(sequence)
                self._room.leave(turn)
            found.append(replace(window, scores=answer_scores(answer)))
        return found

    def _append(self, work: Append, deadline: float | None) -> Reading[Scores]:
        if not isinstance(work.session, _GenSession):
            raise TypeError(f"a session of another model: {type(work.session).__name__}")
        return (yield from work.session.judge(work.tokens, work.keep, deadline))

    def _windows(self, query: Query) -> Iterator[tuple[Frame, list[int], QueryScores]]:
        """(frame, ids, where they come from) of every window; one for a query that fits."""
        nothing = Scores(np.zeros((0, 3), np.float32), np.zeros((0, 0), np.float32))
        frame = self.frame(query)
        ids = self.encode(frame, query.text)
        if len(ids) <= self.limit:
            yield frame, ids, QueryScores(nothing, windowed=frame.windowed)
            return
        frame = self.frame(replace(query, context=()))
        own, starts = self.tokenizer.encode(query.text)
        room = self.limit - len(self.encode(frame, "")) - CUT
        overlap = self.limit // OVERLAP
        if room <= overlap:
            raise ModelLoadError(f"{self.name}: room for {self.engine.max_tokens} tokens only")
        for first, end in windows(len(own), room, overlap):
            stop = starts[end] if end < len(own) else len(query.text)
            ids = self.encode(frame, query.text[starts[first] : stop])
            yield frame, ids, QueryScores(nothing, starts[first], stop, True)

    # -- frames

    def frame(self, query: Query, growing: bool = False) -> Frame:
        """The template laid out for a query. Of a context that outgrows the model the newest messages are kept.

        growing: whether half of the positions stay free for a text that is yet to come.
        """
        context, windowed = [] if query.stage in ALONE else list(query.context), False
        room = self.limit - 128 - max((len(head.ids) for head in self._heads), default=0)
        contents = [content_of(m) for m in context]
        if sum(map(_most_tokens, contents)) > room // 2:  # else they fit, whatever is judged
            sizes = [len(self.tokenizer.encode(content)[0]) for content in contents]
            room -= room // 2 if growing else min(len(self.tokenizer.encode(query.text)[0]), room // 2)
            while context and sum(sizes) > room:
                del context[0], sizes[0]
                windowed = True
        turns = render(replace(query, context=tuple(context)), clean=str)
        layout = self.template.lay_out([turn["role"] for turn in turns])
        at = len(turns) - 1
        if at not in layout:
            raise ModelLoadError(f"{self.name}: the chat template leaves out the text that is to be judged")
        return Frame(layout, [turn["content"] for turn in turns], at, not query.stage.is_query, windowed)

    def encode(self, frame: Frame, text: str) -> list[int]:
        """The template with `text` in it, ready for the answer."""
        contents = [*frame.contents]
        contents[frame.at] = text
        return self.template.encode(frame.layout, contents)

    def _prefix(self, ids: list[int], response: bool) -> Sequence_ | None:
        head = self._heads[response]
        return head if ids[: len(head.ids)] == head.ids else None

    # -- streams

    def open(self, context: Sequence[Message]) -> _GenSession:
        return _GenSession(self, tuple(context))


class _GenSession(EngineSession):
    """A growing response: its tokens stay in the cache, and each judgement computes only what is new, the template's
    end and the answer. Gen was trained on whole texts: its verdict of an unfinished one can flip later."""

    def __init__(self, model: Qwen3GuardGen, context: tuple[Message, ...]):
        self._model = model
        frame = model.frame(Query("", Stage.response, context), growing=True)
        cut = frame.layout.index(frame.at)
        if any(isinstance(piece, int) for piece in frame.layout[cut + 1 :]):
            raise ModelLoadError(f"{model.name}: the chat template goes on with other turns behind the response")
        self._after = frame.layout[cut + 1 :]
        self._text = IncrementalTokenizer(model.tokenizer)
        self._start, open_text = model.template.begin(frame.layout[:cut], frame.contents)
        self._start += self._text.push(open_text)[0]
        self._stage: Stage | None = None
        self._windowed = frame.windowed
        self._kept: list[int] = []  # final tokens of the response that the model still sees
        room = model.limit - len(self._start) - len(model.template.encode(self._after, ()))
        self._room = room - min(TAIL, room // 2)
        super().__init__(model.engine, model.engine.open(prefix=model._prefix(self._start, True)))
        self._opened = model.engine.submit(self._sequence, self._start[self._sequence.length :])
        self._computed = len(self._start)  # tokens that `_sequence` surely has

    def judge(self, tokens: Tokens, keep: bool, deadline: float | None) -> Reading[Scores]:
        change = self._change(tokens.stage)
        if not keep:
            return (yield from self._judge(self._text.tail + change + tokens.text, len(tokens), deadline))
        self._push(change + tokens.text)
        self._stage = tokens.stage
        return (yield from self._judge(self._text.tail, len(tokens), deadline))

    def mark(self) -> tuple[IncrementalTokenizer, Stage | None, bool, list[int]]:
        return copy.copy(self._text), self._stage, self._windowed, self._kept[:]

    def rewind(self, mark: tuple[IncrementalTokenizer, Stage | None, bool, list[int]]) -> None:
        before = self._kept
        text, self._stage, self._windowed, kept = mark
        self._text, self._kept = copy.copy(text), kept[:]
        shared = next((i for i, (a, b) in enumerate(zip(kept, before, strict=False)) if a != b), len(kept))
        self._computed = min(self._computed, len(self._start) + min(shared, len(before)))

    def _change(self, stage: Stage) -> str:
        """The think tag between what came and a part of another stage."""
        thought, thinks = self._stage is Stage.reasoning, stage is Stage.reasoning
        return "" if thought is thinks else "<think>" if thinks else "</think>"

    def _push(self, text: str) -> None:
        """Take text that stays. What outgrows the positions loses its older half."""
        new = self._text.push(text)[0]
        self._kept += new
        if len(self._kept) > self._room:
            if len(new) > self._room:
                raise ValueError(f"{len(new)} tokens at once do not fit beside the template and the context")
            self._windowed = True
            self._kept = self._kept[-max(self._room // 2, len(new)) :]
            self._computed = len(self._start)

    def _judge(self, tail: str, n_tokens: int, deadline: float | None) -> Reading[Scores]:
        model, engine, sequence = self._model, self._model.engine, self._sequence
        yield self._opened
        engine.truncate(sequence, self._computed)
        kept = [*self._start, *self._kept]
        ids = kept + model.template.encode([0, *self._after], [tail])
        answer = yield from model.walk(sequence, ids, True, deadline)
        self._computed = len(kept)
        engine.truncate(sequence, len(kept))
        scores = answer_scores(answer)
        repeat = partial(np.repeat, repeats=n_tokens, axis=0)
        refusal = None if scores.refusal is None else repeat(scores.refusal)
        windowed = np.full(n_tokens, self._windowed)
        return Scores(repeat(scores.severity), repeat(scores.category), refusal, windowed, answer.named)


class _Room:
    """Turns at the cache: texts that would push each other out of it wait."""

    def __init__(self, n_tokens: int):
        self.n_tokens, self._lock = n_tokens, threading.Lock()
        self._inside: dict[Ticket[None], int] = {}  # the tokens of each text
        self._waiting: dict[Ticket[None], int] = {}

    def enter(self, n_tokens: int) -> Ticket[None]:
        """A future that is done when there is room for `n_tokens`. It must `leave`, whatever becomes of it."""
        turn: Ticket[None] = Ticket(None)
        with self._lock:
            self._waiting[turn] = n_tokens
        self._admit()
        return turn

    def leave(self, turn: Ticket[None]) -> None:
        with self._lock:
            self._inside.pop(turn, None)
            self._waiting.pop(turn, None)
        self._admit()

    def _admit(self) -> None:
        admitted = []
        with self._lock:
            used = sum(self._inside.values())
            for turn, n_tokens in list(self._waiting.items()):
                if self._inside and (used + n_tokens > self.n_tokens or len(self._inside) >= IN_FLIGHT):
                    break
                self._inside[turn] = self._waiting.pop(turn)
                used += n_tokens
                admitted.append(turn)
        for turn in admitted:  # outside of the lock, since it runs what waited
            turn.give(NOTHING)


def answer_scores(answer: Answer) -> Scores:
    """An answer as scores of one position."""
    refusal = None if answer.refusal is None else np.array([answer.refusal], np.float32)
    return Scores(answer.severity[None], answer.categories[None], refusal, named=answer.named)


def _most_tokens(text: str) -> int:
    """No fewer than the text's tokens: a byte each at the most, of which NFC can make three."""
    return len(text) if text.isascii() else 3 * len(text.encode("utf-8", "replace"))

"""Qwen3Guard-Gen on guardkit's own engine: the verdict is read from logits, not decoded and parsed.

The checkpoint's template is rendered, `Safety:` is forced, and the three labels are compared at one position. The same
pass goes on with the likeliest answer (Safe, None), so that a safe text takes one pass; otherwise the sequence is cut
back and led along the grammar, a label's tokens at a time. Where greedy decoding stays within the grammar this finds
what it finds; it never leaves it, so no answer is unparsable, and each choice has its probability.

The template's head, the same for every text, is computed once and shared. Only rows of the LM head that belong to the
grammar are kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from queue import SimpleQueue

import numpy as np
import torch
from torch import Tensor

from guardkit.engine.cache import GROW
from guardkit.engine.checkpoint import Checkpoint
from guardkit.engine.engine import Engine, Head, Rows
from guardkit.engine.engine import Sequence as Sequence_
from guardkit.engine.qwen3 import Embedding, Linear
from guardkit.engine.setup import Options, build
from guardkit.engine.template import ChatTemplate, Layout
from guardkit.errors import ModelLoadError
from guardkit.messages import Message
from guardkit.models.base import Query, QueryScores, Scores, Session, StreamModel, Tokens
from guardkit.models.gen_messages import ALONE, content_of, render
from guardkit.models.gen_walk import CATEGORIES, RESPONSE_CATEGORIES, Answer, Grammar, Walk, Walker
from guardkit.models.qwen_tokenizer import QwenTokenizer
from guardkit.retokenize import IncrementalTokenizer
from guardkit.verdict import Stage

ARCHITECTURE = "Qwen3ForCausalLM"
STRIDE = 32  # tokens of a stream between two judgements
TAIL = 512  # positions that are kept free for text that is not final yet
ANSWER = 96  # positions that are kept free for the answer: all categories, and the refusal
CUT = 16  # tokens by which the piece of a text may outgrow those that it was cut from
OVERLAP = 32  # windows of a long text share 1/OVERLAP of the positions
IN_FLIGHT = 64  # texts of one batch that are in the engine at once


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
    grammar = Grammar.of(tokenizer, folder)
    tied = checkpoint.config.tie_word_embeddings
    shapes = {} if tied else {"lm_head.weight": (checkpoint.config.vocab_size, checkpoint.config.hidden_size)}

    def make(own: dict[str, Tensor], embed: Embedding) -> dict[str, Head]:
        rows = torch.tensor(grammar.ids, device=embed.weight.device)
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


class Qwen3GuardGen(StreamModel):
    """A loaded Qwen3Guard-Gen checkpoint."""

    whole_texts = True
    locate_queries = 8
    stride = STRIDE
    query_categories = CATEGORIES
    response_categories = RESPONSE_CATEGORIES

    def __init__(self, name: str, engine: Engine, tokenizer: QwenTokenizer, template: ChatTemplate, grammar: Grammar):
        self.name, self.engine, self.tokenizer, self.template, self.grammar = name, engine, tokenizer, template, grammar
        self.walk = Walker(engine, grammar).walk
        self._heads: list[Sequence_] = []
        self._heads = [self._head(False), self._head(True)]

    @property
    def limit(self) -> int:
        """Tokens that a rendered text may have."""
        return self.engine.max_tokens - ANSWER

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

    def query(self, queries: Sequence[Query]) -> Sequence[list[QueryScores] | Exception]:
        found: list[list[QueryScores]] = [[] for _ in queries]
        errors: dict[int, Exception] = {}
        again: set[int] = set()  # those whose step failed, maybe through another text's fault
        answers: SimpleQueue[tuple[Walk, Future[Rows]]] = SimpleQueue()
        walks: dict[Walk, tuple[int, Sequence_, int, QueryScores]] = {}
        waiting = self._windows(queries, errors)
        entry = next(waiting, None)
        try:
            while entry is not None or walks:
                # Texts that would push each other out of the cache wait for their turn.
                while entry is not None and len(walks) < IN_FLIGHT:
                    at, frame, ids, window = entry
                    room = self.engine.room - sum(size for _, _, size, _ in walks.values())
                    size = -(-(len(ids) + ANSWER) // GROW) * GROW
                    if walks and size > room:
                        break
                    sequence = self.engine.open(counted=False, prefix=self._prefix(ids, frame.response))
                    walk = self.walk(sequence, ids, frame.response)
                    walks[walk] = (at, sequence, size, window)
                    self._go_on(walk, None, walks, found, errors, again, answers)
                    entry = next(waiting, None)
                if walks:
                    walk, future = answers.get()
                    self._go_on(walk, future, walks, found, errors, again, answers)
        finally:
            for _, sequence, _, _ in walks.values():
                self.engine.close(sequence)
        # Windows come back in any order.
        for windows in found:
            windows.sort(key=lambda window: window.start or 0)
        results = [errors.get(at) or windows for at, windows in enumerate(found)]
        for at in again if len(queries) > 1 else ():
            results[at] = self.query([queries[at]])[0]
        return results

    def _go_on(
        self,
        walk: Walk,
        future: Future[Rows] | None,
        walks: dict[Walk, tuple[int, Sequence_, int, QueryScores]],
        found: list[list[QueryScores]],
        errors: dict[int, Exception],
        again: set[int],
        answers: SimpleQueue[tuple[Walk, Future[Rows]]],
    ) -> None:
        """Lead one text on until it waits for the engine again; book its answer or its error where it ends."""
        at, sequence, _, window = walks[walk]
        try:
            if future is None:
                wanted = next(walk)
            elif (error := future.exception()) is not None:
                wanted = walk.throw(error)
            else:
                wanted = walk.send(future.result())
            wanted.add_done_callback(lambda done: answers.put((walk, done)))
            return
        except StopIteration as end:
            found[at].append(replace(window, scores=answer_scores(end.value)))
        except Exception as error:
            errors.setdefault(at, error)
            if sequence.broken is not None:
                again.add(at)
        del walks[walk]
        self.engine.close(sequence)

    def _windows(
        self, queries: Sequence[Query], errors: dict[int, Exception]
    ) -> Iterator[tuple[int, Frame, list[int], QueryScores]]:
        """(query, frame, ids, where they come from) of every window; one for a query that fits."""
        nothing = Scores(np.zeros((0, 3), np.float32), np.zeros((0, 0), np.float32))
        for at, query in enumerate(queries):
            try:
                frame = self.frame(query)
                ids = self.encode(frame, query.text)
                if len(ids) <= self.limit:
                    yield at, frame, ids, QueryScores(nothing, windowed=frame.windowed)
                    continue
                frame = self.frame(replace(query, context=()))
                own, starts = self.tokenizer.encode(query.text)
                room = self.limit - len(self.encode(frame, "")) - CUT
                step = room - self.limit // OVERLAP
                if step <= 0:
                    raise ModelLoadError(f"{self.name}: room for {self.engine.max_tokens} tokens only")
                for begin in range(0, max(len(own) - (room - step), 1), step):
                    end = begin + room
                    stop = starts[end] if end < len(own) else len(query.text)
                    ids = self.encode(frame, query.text[starts[begin] : stop])
                    yield at, frame, ids, QueryScores(nothing, starts[begin], stop, True)
            except Exception as error:  # this text's own: the others are judged
                errors[at] = error

    # -- frames

    def frame(self, query: Query, growing: bool = False) -> Frame:
        """The template laid out for a query. Of a context that outgrows the model the newest messages are kept.

        growing: whether half of the positions stay free for a text that is yet to come.
        """
        context, windowed = [] if query.stage in ALONE else list(query.context), False
        sizes = [len(self.tokenizer.encode(content_of(m))[0]) for m in context]
        room = self.limit - 128 - max((len(head.ids) for head in self._heads), default=0)
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


class _GenSession(Session):
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
        self._sequence = model.engine.open(prefix=model._prefix(self._start, True))
        self._opened = model.engine.submit(self._sequence, self._start[len(self._sequence.ids) :])
        self._computed = len(self._start)  # tokens that `_sequence` surely has

    def append(self, tokens: Tokens) -> Scores:
        self._push(self._change(tokens.stage) + tokens.text)
        self._stage = tokens.stage
        return self._judge(self._text.tail, len(tokens))

    def peek(self, tokens: Tokens) -> Scores:
        return self._judge(self._text.tail + self._change(tokens.stage) + tokens.text, len(tokens))

    def close(self) -> None:
        self._model.engine.close(self._sequence)

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

    def _judge(self, tail: str, n_tokens: int) -> Scores:
        model, engine, sequence = self._model, self._model.engine, self._sequence
        self._opened.result()
        engine.truncate(sequence, self._computed)
        kept = [*self._start, *self._kept]
        walk = model.walk(sequence, kept + model.template.encode([0, *self._after], [tail]), True)
        try:
            wanted = next(walk)
            while True:
                wanted = walk.send(wanted.result())
        except StopIteration as end:
            answer: Answer = end.value
        self._computed = len(kept)
        engine.truncate(sequence, len(kept))
        scores = answer_scores(answer)
        repeat = partial(np.repeat, repeats=n_tokens, axis=0)
        refusal = None if scores.refusal is None else repeat(scores.refusal)
        windowed = np.full(n_tokens, self._windowed)
        return Scores(repeat(scores.severity), repeat(scores.category), refusal, windowed, answer.named)


def answer_scores(answer: Answer) -> Scores:
    """An answer as scores of one position."""
    refusal = None if answer.refusal is None else np.array([answer.refusal], np.float32)
    return Scores(answer.severity[None], answer.categories[None], refusal, named=answer.named)

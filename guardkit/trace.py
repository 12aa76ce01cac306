"""Reasoning traces: a model's whole output scored token by token, to see where in its thinking and where in its answer
the risk begins.

    from guardkit.trace import trace
    found = trace(guard, "<think>…</think>…")
    found.outcome, found.reasoning, found.answer

Unlike `check` and a stream, a trace does not end at the first violation: all of the text is scored.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, cast

from guardkit.batch import FEED_CHARS, Item
from guardkit.errors import GuardkitError, MessageError, NotJudged
from guardkit.judge import run_length
from guardkit.messages import REASONING_TAG, Message, Part, read_messages, starts_in_reasoning
from guardkit.models.base import Append
from guardkit.policy import Decision
from guardkit.response import ResponseReader
from guardkit.retokenize import SurrogateJoiner
from guardkit.runner import Steps, run
from guardkit.trace_parts import Begin, Piece, Sentence, Span, TracePart, nothing_flagged
from guardkit.trace_worst import with_worst
from guardkit.verdict import Category, Severity, Stage

if TYPE_CHECKING:
    from guardkit.guard import Guard

Outcome = Literal["safe", "reasoning_only", "answer_only", "both", "not_judged"]
"""Where risk was found. `reasoning_only`: the thinking is not safe and the answer (tool calls included) is, or there is
none; `answer_only`: the reverse."""


@dataclass(frozen=True)
class Trace:
    """What was found in one output of a model.

    Where something was not judged, nothing is said to be safe: the severities are None or worse, `risk` is None.

    parts: in order, those that were judged; decision: the worst part's (the guard's decision about what is not judged
    where `error` says why something was not); unit: what a span is, "token", or "block" for models that judge some
    tokens at a time.
    """

    parts: tuple[TracePart, ...]
    decision: Decision
    model: str
    unit: Literal["token", "block"] = "token"
    error: str | None = None
    cause: BaseException | None = field(default=None, compare=False, repr=False)
    latency_ms: float = field(default=0.0, compare=False)

    @property
    def judged(self) -> bool:
        return self.error is None

    @property
    def reasoning(self) -> Severity | None:
        """The worst severity of the thinking; None where there is none."""
        return self._worst(Stage.reasoning)

    @property
    def answer(self) -> Severity | None:
        """The worst severity of the answer; None where there is none."""
        return self._worst(Stage.response)

    @property
    def tool_calls(self) -> Severity | None:
        """The worst severity of the tool calls; None where there are none."""
        return self._worst(Stage.tool_call)

    @property
    def severity(self) -> Severity | None:
        """The worst severity of all; None where something was not judged."""
        return max((p.severity for p in self.parts), default=Severity.safe) if self.judged else None

    @property
    def categories(self) -> tuple[Category, ...]:
        """Those of the worst part's verdict, most likely first."""
        return max((p.verdict for p in self.parts), key=lambda v: v.severity).categories if self.parts else ()

    @property
    def risk(self) -> float | None:
        """The highest risk of any token; None where something was not judged."""
        return max((p.risk for p in self.parts), default=0.0) if self.judged else None

    @property
    def outcome(self) -> Outcome:
        if not self.judged:
            return "not_judged"
        thinking = any(p.begin is not None for p in self.parts if p.stage is Stage.reasoning)
        output = any(p.begin is not None for p in self.parts if p.stage is not Stage.reasoning)
        return "both" if thinking and output else "reasoning_only" if thinking else "answer_only" if output else "safe"

    def _worst(self, stage: Stage) -> Severity | None:
        found = max((p.severity for p in self.parts if p.stage is stage and not p.is_blank), default=None)
        return found if self.judged or found is not Severity.safe else None  # what was not judged may be of this stage


def trace(guard: Guard, item: Item) -> Trace:
    """Score a model's output: a text (``<think>`` tags told apart), or the last of some messages.

    Raises `NotJudged` where any of it could not be judged, `MessageError` for a message that cannot be read or is not
    a model's.

    Thinking, answer and tool calls are each judged apart, after the messages before them, so that a trace
    is the same for think tags and for fields. The text is judged as it stands, as in a stream: without its
    de-obfuscated view.
    """
    found = trace_batch(guard, [item])[0]
    if isinstance(found.cause, MessageError):
        raise found.cause
    if found.error is not None:
        raise NotJudged(f"the trace was not judged: {found.error}") from found.cause
    return found


def trace_batch(guard: Guard, items: Sequence[Item], *, feed_chars: int = FEED_CHARS) -> list[Trace]:
    """`trace` for many, in shared forward passes; order is kept, and each equals its trace alone.

    Raises nothing for what cannot be judged: `error` says why, and what was judged all the same is in `parts`.
    `feed_chars`: characters of each text that are handed to the model at once; the traces do not depend on it.
    """
    start = time.perf_counter()
    outputs = [_Output(guard, item, feed_chars) for item in items]
    voices = [v for output in outputs for v in output.voices]
    for voice, found in zip(voices, run(guard.model, [v.score for v in voices], guard.timeout), strict=True):
        if isinstance(found, Exception):
            voice.error = found
        else:
            voice.pieces = found
    traces = []
    for item, output, one in zip(items, outputs, _with_worst(guard, outputs), strict=True):
        one = replace(one, latency_ms=(time.perf_counter() - start) * 1e3)
        guard.record(one.decision, item, output.characters, one.latency_ms, "trace")
        traces.append(one)
    return traces


def _with_worst(guard: Guard, outputs: Sequence[_Output]) -> list[Trace]:
    """The traces, with the worst sentence of each flagged part."""
    found = [output.trace() for output in outputs]
    contexts = [output.context for output, t in zip(outputs, found, strict=True) for _ in t.parts]
    parts = iter(with_worst(guard, [p for t in found for p in t.parts], contexts))
    return [replace(t, parts=tuple(next(parts) for _ in t.parts)) for t in found]


class _Output:
    """One item: the texts of its message that are scored, and what cannot be."""

    def __init__(self, guard: Guard, item: Item, feed_chars: int):
        self._guard = guard
        self.voices: list[_Voice] = []
        self.characters = 0
        self.context: tuple[Message, ...] = ()
        self.error: BaseException | None = None
        try:
            context, parts = _read(item)
            self.context = context
            for number, part in enumerate(parts):
                if part.text is not None:
                    self.characters += len(part.text)
                    for cuts in _cut(part.stage, part.text):
                        self.voices.append(_Voice(guard, number, cuts, context, feed_chars))
                elif self.error is None:
                    self.error = NotJudged(f"{part.what} content cannot be judged by {guard.model.name}")
        except Exception as problem:  # whatever it is, this item is not judged and the others are
            self.error = problem

    def trace(self) -> Trace:
        guard = self._guard
        pieces = [(v.number, piece) for v in self.voices if v.error is None for piece in v.pieces]
        pieces.sort(key=lambda found: (found[0], found[1].start))
        parts = tuple(piece.part() for _, piece in pieces)
        error = self.error or next((v.error for v in self.voices if v.error is not None), None)
        worst = max(
            (p.decision for p in parts), key=lambda d: (d.action, d.verdict and d.verdict.severity), default=None
        )
        decision = worst or nothing_flagged(guard, Stage.response)
        text = None
        if error is not None:
            text = str(error) if isinstance(error, GuardkitError) else f"{type(error).__name__}: {error}"
            decision = guard.not_judged(text, Stage.response, worst)
        return Trace(parts, decision, guard.model.name, "block" if guard.model.stride > 1 else "token", text, error)


def _read(item: Item) -> tuple[tuple[Message, ...], list[Part]]:
    if isinstance(item, str):
        return (), [Part(Stage.response, item)]
    if not isinstance(item, Sequence):
        raise MessageError(f"expected a text or a list of messages, got {type(item).__name__}")
    if not item:
        raise MessageError("an empty list of messages: nothing to trace")
    messages = read_messages(cast(Sequence[Message | Mapping[str, Any]], item))
    last = messages[-1]
    if last.stage is not Stage.response:
        raise MessageError(
            f"message {len(messages) - 1} has the role '{last.role}': a trace is of what a model wrote; use check"
        )
    return tuple(messages[:-1]), last.parts()


@dataclass(frozen=True)
class _Cut:
    """A stretch of a text between think tags. It is judged as the first of `stages`, and flagged as any of them."""

    stages: tuple[Stage, ...]
    text: str
    start: int


def _cut(stage: Stage, text: str) -> list[list[_Cut]]:
    """The stretches of a text, those of each stage together; the empty ones are left out, unless all are.

    A response whose first think tag closes began inside its reasoning, or pretends to: both count.
    """
    joiner = SurrogateJoiner()
    text = joiner.push(text) + joiner.finish()
    if stage is Stage.tool_call:
        return [[_Cut((stage,), text, 0)]]
    stages: tuple[Stage, ...] = (stage,)
    if stage is Stage.response and starts_in_reasoning(text):
        stages = (Stage.reasoning, Stage.response)
    found, at = [], 0
    for tag in REASONING_TAG.finditer(text):
        found.append(_Cut(stages, text[at : tag.start()], at))
        stages, at = (Stage.response if tag[1] else Stage.reasoning,), tag.end()
    found.append(_Cut(stages, text[at:], at))
    found = [cut for cut in found if cut.text] or found[-1:]
    voices: dict[Stage, list[_Cut]] = {}
    for cut in found:
        voices.setdefault(cut.stages[0], []).append(cut)
    return list(voices.values())


class _Voice:
    """What a text says at one stage, on its way through a session of its own: thinking does not colour the answer."""

    def __init__(self, guard: Guard, number: int, cuts: list[_Cut], context: tuple[Message, ...], feed_chars: int):
        self.number = number  # of the text in its message
        self._guard, self._cuts, self._context, self._feed_chars = guard, cuts, context, feed_chars
        self.pieces: list[Piece] = []
        self.error: BaseException | None = None

    def score(self) -> Steps[list[Piece]]:
        """The stretches with the scores of their tokens."""
        model, pieces, flagged = self._guard.model, list[Piece](), 0
        debounce = run_length(model, self._guard.debounce)
        session = model.open(self._context)
        try:
            for cut in self._cuts:
                pieces.append(Piece(self._guard, cut.stages, cut.text, cut.start))
                for tokens in ResponseReader(model, cut.stages[0]).read_all(cut.text, self._feed_chars):
                    scores = yield Append(session, tokens)
                    scores.check(len(tokens))
                    flagged = pieces[-1].add(tokens, scores, flagged, debounce)  # in a row, up to the newest
        finally:
            session.close()
        return pieces


__all__ = ["Begin", "Outcome", "Sentence", "Span", "Trace", "TracePart", "trace", "trace_batch"]

"""The verdict of a response, token by token: one machine for whole texts and for streams.

It cuts text into tokens (reasoning told apart from the answer), and turns the scores of each token into the running
verdict: debounce, policy, freeze at the stop. It calls no model and holds no clock, so `check`, batches and streams,
sync and async, share it. The result depends on the text alone, not on how it was cut.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from guardkit.coverage import Meter
from guardkit.locate import begin_of_sentence, visible
from guardkit.messages import REASONING_TAG, REASONING_TAGS
from guardkit.models.base import Floats, Ints, Scores, StreamModel, Tokens
from guardkit.policy import Action, Decision, Policy
from guardkit.retokenize import Cut, IncrementalTokenizer, SurrogateJoiner
from guardkit.verdict import SEVERITIES, Category, Severity, Stage, Verdict

CATEGORY_FLOOR = 0.25  # a further category is named where its probability is at least this
DEBOUNCE = 2  # consecutive flagged tokens that make a flag (Qwen3Guard report, 4.4)
MEMORY = 4096  # characters of a response that are remembered: more than a sentence before any token under way
_LONGEST_TAG = max(map(len, REASONING_TAGS))


class ResponseReader:
    """Text in, final tokens out, each with its stage. Think tags themselves are no tokens."""

    def __init__(self, model: StreamModel, stage: Stage):
        self.stage = stage
        self._has_tags = stage in (Stage.response, Stage.reasoning)
        self._surrogates = SurrogateJoiner()
        self._tokens = IncrementalTokenizer(model.tokenizer)
        self._pending = ""  # text behind which a tag may still be under way
        self._stride = model.stride
        self._block: Tokens | None = None  # final tokens that wait for a whole stride
        self.text_in = 0  # characters taken in, surrogate pairs counted as one
        self._recent = ""  # the newest of them

    def copy(self) -> ResponseReader:
        """A twin that goes its own way."""
        twin = copy.copy(self)
        twin._surrogates, twin._tokens = copy.copy(self._surrogates), copy.copy(self._tokens)
        return twin

    def push(self, text: str) -> tuple[str, list[Tokens]]:
        """Take a delta; returns it with surrogate pairs joined, and the tokens that are final now."""
        return self._read(self._surrogates.push(text), final=False)

    def finish(self) -> tuple[str, list[Tokens]]:
        return self._read(self._surrogates.finish(), final=True)

    def read_all(self, text: str, feed_chars: int) -> Iterator[Tokens]:
        """The tokens of a whole text, read `feed_chars` characters at a time."""
        for at in range(0, len(text), feed_chars):
            yield from self.push(text[at : at + feed_chars])[1]
        yield from self.finish()[1]

    @property
    def received(self) -> int:
        """Characters received, a half surrogate pair included."""
        return self.text_in + len(self._surrogates.carry)

    @property
    def stable(self) -> int:
        """Characters whose tokens are final: no later token starts before this index."""
        if self._block is not None:
            return self._block.starts[0]
        return self.text_in - len(self._pending) - len(self._tokens.tail)

    def text(self, start: int, end: int) -> str:
        """The characters from `start` to `end`, as far as they are remembered: those of the last push and at least
        `MEMORY` before it."""
        first = self.text_in - len(self._recent)
        return self._recent[max(start - first, 0) : max(end - first, 0)]

    def peek(self) -> Tokens:
        """The tokens that are not judged yet, as if the text ended here."""
        tail = Tokens(self.stage, *self._tokens.peek())
        return tail if self._block is None else self._block + tail

    def _read(self, text: str, final: bool) -> tuple[str, list[Tokens]]:
        self.text_in += len(text)
        self._recent = (self._recent if final else self._recent[-MEMORY:]) + text
        out: list[Tokens] = []
        rest = self._pending + text
        self._pending = ""
        if self._has_tags:
            at = 0
            for tag in REASONING_TAG.finditer(rest):
                self._add(out, self._tokens.push(rest[at : tag.start()]))
                self._add(out, self._tokens.finish(), flush=True)
                self._tokens.skip(len(tag[0]))
                self.stage = Stage.response if tag[1] else Stage.reasoning
                at = tag.end()
            rest = rest[at:]
            if not final:
                rest = self._hold_partial_tag(rest)
        self._add(out, self._tokens.push(rest))
        if final:
            self._add(out, self._tokens.finish(), flush=True)
        return text, out

    def _hold_partial_tag(self, text: str) -> str:
        start = text.rfind("<", -_LONGEST_TAG + 1)
        if start >= 0 and any(tag.startswith(text[start:]) for tag in REASONING_TAGS):
            self._pending = text[start:]
            return text[:start]
        return text

    def _add(self, out: list[Tokens], found: Cut, flush: bool = False) -> None:
        tokens = Tokens(self.stage, *found)
        if self._block is not None:
            tokens, self._block = self._block + tokens, None
        while self._stride > 1 and len(tokens) > self._stride:
            block, tokens = tokens.split(self._stride)
            out.append(block)
        if not len(tokens):
            return
        if flush or len(tokens) >= self._stride:
            out.append(tokens)
        else:
            self._block = tokens


class RunningVerdict:
    """Scores of consecutive tokens in, the verdict out. `stopped` once the policy's action stops the text."""

    def __init__(self, reader: ResponseReader, model: StreamModel, policy: Policy, debounce: int = DEBOUNCE):
        self._reader = reader
        self._model, self._policy, self._debounce = model, policy, run_length(model, debounce)
        stage = reader.stage
        self._run: deque[tuple[int, int]] = deque(maxlen=self._debounce)  # the current run's flagged tokens: start, end
        self._meter = Meter(model.coverage) if model.coverage is not None else None
        self._measured = 0  # characters that the meter has seen
        self._decision: Decision | None = None
        self._last = empty_verdict(model, stage)
        self.n_tokens = 0
        self.run_start = 0  # the first character of the run that stopped the text

    def copy(self, reader: ResponseReader | None = None) -> RunningVerdict:
        """A twin that goes its own way. reader: the twin's, where it has one of its own."""
        twin = copy.copy(self)
        twin._reader = reader or self._reader
        twin._run = self._run.copy()
        twin._meter = copy.copy(self._meter)
        return twin

    @property
    def stopped(self) -> bool:
        if self._decision is not None and self._decision.action.stops:
            return True
        return self._policy.on_unmeasured.stops and self._meter is not None and self._meter.found is not None

    @property
    def verdict(self) -> Verdict:
        return self.decision.verdict or self._last

    @property
    def decision(self) -> Decision:
        """So far. What the model was not measured on is told of the text up to the newest token."""
        found = self._decision
        if found is None:
            nothing = f"{self._policy.name}: nothing flagged"
            found = Decision(Action.allow, self._last, nothing, True, self._last.stage)
        if self._meter is None or self._meter.found is None or found.verdict is None:
            return found
        found = replace(found, verdict=replace(found.verdict, coverage="unmeasured"))
        return self._policy.act_on_coverage(found)

    def add(self, tokens: Tokens, scores: Scores) -> list[Decision]:
        """Take the scores of `tokens`; returns each decision that is stronger than all before. Stops at the stop."""
        check_finite(scores, len(tokens.ids))
        found: list[Decision] = []
        levels, flagged = judge_tokens(self._model, self._policy, scores, tokens.stage)
        each = self._meter is not None and self._policy.on_unmeasured.stops
        if not flagged.any():
            self._run.clear()
        if each or flagged.any():
            for i in range(len(scores)):
                if each and self._measure(tokens.end_of(i)):
                    self._last = self._verdict_at(tokens, scores, i, Severity.safe)
                    self.run_start = tokens.starts[i]
                    self.n_tokens += i + 1
                    return [*found, self.decision]
                if not flagged[i]:
                    self._run.clear()
                    continue
                self._run.append((tokens.starts[i], tokens.end_of(i)))
                if len(self._run) < self._debounce:
                    continue
                decision = self._policy.decide(self._verdict_at(tokens, scores, i, SEVERITIES[levels[i]]))
                if self._rank(decision) > self._rank(self._decision):
                    self._decision = decision
                    found.append(decision)
                    if self.stopped:
                        self._measure(tokens.end_of(i))
                        self.run_start = self._run[0][0]
                        self.n_tokens += i + 1
                        return found
        self._measure(tokens.end_of(len(scores) - 1))
        self._last = self._verdict_at(tokens, scores, len(scores) - 1, Severity.safe)
        self.n_tokens += len(scores)
        return found

    def _measure(self, end: int) -> bool:
        """Tell the meter of the text up to `end`; whether the model was not measured on it."""
        if self._meter is None:
            return False
        if end > self._measured:
            self._meter.add(self._reader.text(self._measured, end))
            self._measured = end
        return self._meter.found is not None

    @staticmethod
    def _rank(decision: Decision | None) -> tuple[Action, Severity]:
        if decision is None or decision.verdict is None:
            return (Action.allow, Severity.safe)
        return (decision.action, decision.verdict.severity)

    def _verdict_at(self, tokens: Tokens, scores: Scores, i: int, severity: Severity) -> Verdict:
        verdict = verdict_of(self._model, scores, i, severity, tokens.stage)
        windowed = scores.windowed is not None and bool(scores.windowed[i])
        verdict = replace(verdict, token_index=self.n_tokens + i, char_index=tokens.starts[i], windowed=windowed)
        if severity is Severity.safe:
            return verdict
        start, end = tokens.starts[i], tokens.end_of(i)
        begin = self._run[0][0]
        if start - begin < MEMORY // 2:  # else the run is torn apart by a flood of blanks
            begin = begin_of_sentence(self._reader.text, *self._run[0])
        return replace(verdict, char_start=begin, char_end=start + visible(self._reader.text(start, end)))


def run_length(model: StreamModel, debounce: int) -> int:
    """Consecutive flagged tokens that make a flag. A model that judges texts whole has seen more than one token: its
    first word counts."""
    return 1 if model.whole_texts else debounce


def judge_tokens(model: StreamModel, policy: Policy, scores: Scores, stage: Stage) -> tuple[Ints, NDArray[np.bool_]]:
    """Each token's severity (index into `SEVERITIES`), and whether it is flagged: not safe, or a rule may act on it."""
    levels = model.severities(scores, stage)
    return levels, (levels > 0) | policy.candidates(scores.severity, stage)


def verdict_of(model: StreamModel, scores: Scores, i: int, severity: Severity, stage: Stage) -> Verdict:
    """The verdict for row `i` of `scores`, without position."""
    names = model.query_categories if stage.is_query else model.response_categories
    refusal = None if scores.refusal is None or stage.is_query else bool(scores.refusal[i] >= 0.5)
    categories = _categories(scores, i, names)
    return Verdict(
        severity=severity,
        categories=() if severity is Severity.safe else categories,
        scores=_as_dict(scores.severity[i]),
        refusal=refusal,
        stage=stage,
        model=model.name,
        threshold=limits.of(severity, *categories[:1]) if (limits := model.limits(stage)) else None,
    )


def check_finite(scores: Scores, rows: int) -> None:
    """Raise ValueError for scores that no comparison may be trusted with: not-a-number would compare as safe."""
    if len(scores) != rows or len(scores.category) != rows:
        raise ValueError(f"the model gave scores for {len(scores)} of {rows} positions")
    if not (np.isfinite(scores.severity).all() and np.isfinite(scores.category).all()):
        raise ValueError("the model gave scores that are not finite")


def empty_verdict(model: StreamModel, stage: Stage) -> Verdict:
    """The verdict of a text without a token: safe, and no model was asked."""
    return Verdict(Severity.safe, (), {"safe": 1.0, "controversial": 0.0, "unsafe": 0.0}, None, stage, model.name)


def _categories(scores: Scores, i: int, names: tuple[Category, ...]) -> tuple[Category, ...]:
    if scores.named is not None:
        return scores.named
    row = scores.category[i]
    order = np.argsort(-row, kind="stable")
    return tuple(names[i] for rank, i in enumerate(order) if rank == 0 or row[i] >= CATEGORY_FLOOR)


def _as_dict(row: Floats) -> dict[str, float]:
    return {s.value: float(p) for s, p in zip(SEVERITIES, row, strict=True)}

"""The verdict of a response, token by token: one machine for whole texts and for streams.

It turns the scores of each token into the running verdict: debounce, policy, freeze at the stop. It calls no model and
holds no clock, so `check`, batches and streams, sync and async, share it. The result depends on the text alone, not on
how it was cut.
"""

from __future__ import annotations

import copy
from collections import deque
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guardkit.coverage import Meter
from guardkit.locate import begin_of_sentence, visible
from guardkit.models.base import Floats, Ints, Scores, StreamModel, Tokens
from guardkit.policy import Action, Decision, Policy
from guardkit.response import MEMORY, ResponseReader
from guardkit.verdict import SEVERITIES, Category, Severity, Stage, Verdict

CATEGORY_FLOOR = 0.25  # a further category is named where its probability is at least this
DEBOUNCE = 2  # consecutive flagged tokens that make a flag (Qwen3Guard report, 4.4)


class RunningVerdict:
    """Scores of consecutive tokens in, the verdict out. `stopped` once the policy's action stops the text."""

    def __init__(self, reader: ResponseReader, model: StreamModel, policy: Policy, debounce: int = DEBOUNCE):
        self._reader = reader
        self._model, self._policy, self._debounce = model, policy, run_length(model, debounce)
        stage = reader.stage
        self._run: deque[tuple[int, int]] = deque(maxlen=self._debounce)  # the current run's flagged tokens: start, end
        self._meter = Meter(model.coverage) if model.coverage is not None else None
        self._watches_coverage = self._meter is not None and policy.on_unmeasured.stops
        self._watched = stage, policy.watches(stage)
        self.stopped = False
        """Whether the policy's action stops the text."""
        self._measured = 0  # characters that the meter has seen
        self._decision: Decision | None = None
        self._newest: tuple[Tokens, Scores, int, int] | None = None  # tokens, scores, which of them, its index
        self._made: tuple[object, Verdict] | None = None  # for which newest, and its verdict
        self._nothing = empty_verdict(model, stage)
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
    def open_from(self) -> int | None:
        """Where a flagged run begins that the next token may complete; None where the newest one is not flagged."""
        n = min(len(self._run), self._debounce - 1)
        return self._run[-n][0] if n else None

    @property
    def verdict(self) -> Verdict:
        return self.decision.verdict or self._last

    @property
    def _last(self) -> Verdict:
        """The newest token's, as safe; made when somebody asks, since each one takes the place of the one before."""
        if self._newest is None:
            return self._nothing
        if self._made is None or self._made[0] is not self._newest:
            tokens, scores, i, index = self._newest
            self._made = self._newest, self._verdict_at(tokens, scores, i, Severity.safe, index)
        return self._made[1]

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
        n = len(tokens.ids)
        scores.check(n)
        stage = tokens.stage
        levels = self._model.severities(scores, stage)
        each = self._watches_coverage
        if stage is not self._watched[0]:
            self._watched = stage, self._policy.watches(stage)
        watched = self._watched[1]
        found: list[Decision] = []
        if each or watched or any(levels.tolist()):
            flagged = levels > 0
            if watched:
                flagged |= self._policy.candidates(scores.severity, stage)
            for i in range(n):
                if each and self._is_unmeasured(tokens.end_of(i)):
                    self._newest = tokens, scores, i, self.n_tokens + i
                    self.run_start = tokens.starts[i]
                    self.n_tokens += i + 1
                    return [*found, self.decision]
                if not flagged[i]:
                    self._run.clear()
                    continue
                self._run.append((tokens.starts[i], tokens.end_of(i)))
                if len(self._run) < self._debounce:
                    continue
                index = self.n_tokens + i
                decision = self._policy.decide(self._verdict_at(tokens, scores, i, SEVERITIES[levels[i]], index))
                if self._rank(decision) > self._rank(self._decision):
                    self._decision = decision
                    self.stopped = self.stopped or decision.action.stops
                    found.append(decision)
                    if self.stopped:
                        self._measure(tokens.end_of(i))
                        self.run_start = self._run[0][0]
                        self.n_tokens = index + 1
                        return found
        else:
            self._run.clear()
        if self._meter is not None:
            self._measure(tokens.end_of(n - 1))
        self._newest = tokens, scores, n - 1, self.n_tokens + n - 1
        self.n_tokens += n
        return found

    def begin_at(self, decision: Decision, start: int | None) -> Decision:
        """A decision that `add` gave, with a place that begins at `start`; None: as it is."""
        if start is None or decision.verdict is None:
            return decision
        moved = replace(decision, verdict=replace(decision.verdict, char_start=start))
        if self._decision is decision:
            self._decision = moved
        return moved

    def _is_unmeasured(self, end: int) -> bool:
        """Whether the model was not measured on the text up to `end`."""
        self._measure(end)
        return self._meter is not None and self._meter.found is not None

    def _measure(self, end: int) -> None:
        """Tell the meter of the text up to `end`."""
        if self._meter is not None and end > self._measured:
            self._meter.add(self._reader.text(self._measured, end))
            self._measured = end
            self.stopped = self.stopped or (self._watches_coverage and self._meter.found is not None)

    @staticmethod
    def _rank(decision: Decision | None) -> tuple[Action, Severity]:
        if decision is None or decision.verdict is None:
            return (Action.allow, Severity.safe)
        return (decision.action, decision.verdict.severity)

    def _verdict_at(self, tokens: Tokens, scores: Scores, i: int, severity: Severity, index: int) -> Verdict:
        windowed = scores.windowed is not None and bool(scores.windowed[i])
        where = {"token_index": index, "char_index": tokens.starts[i], "windowed": windowed}
        verdict = verdict_of(self._model, scores, i, severity, tokens.stage, **where)
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


def verdict_of(model: StreamModel, scores: Scores, i: int, severity: Severity, stage: Stage, **more: Any) -> Verdict:
    """The verdict for row `i` of `scores`. more: its other fields."""
    names = model.query_categories if stage.is_query else model.response_categories
    refusal = None if scores.refusal is None or stage.is_query else bool(scores.refusal[i] >= 0.5)
    categories = () if severity is Severity.safe else _categories(scores, i, names)
    return Verdict(
        severity=severity,
        categories=categories,
        scores=_as_dict(scores.severity[i]),
        refusal=refusal,
        stage=stage,
        model=model.name,
        threshold=limits.of(severity, *categories[:1]) if (limits := model.limits(stage)) else None,
        **more,
    )


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

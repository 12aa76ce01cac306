"""The parts of a reasoning trace: the scores of one stage's tokens, and what they say about its spans and sentences."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from guardkit.judge import empty_verdict, judge_tokens, verdict_of
from guardkit.models.base import Scores, Tokens
from guardkit.policy import Action, Decision
from guardkit.sentences import sentence_starts
from guardkit.verdict import SEVERITIES, Severity, Stage, Verdict

if TYPE_CHECKING:
    from guardkit.guard import Guard


@dataclass(frozen=True, slots=True)
class Span:
    """One token, or one block of a model that judges blocks: ``text[start:end]`` of its part.

    The spans of a part cover its text without gaps: white space belongs to the token before it. A span can be empty
    (several tokens of one character). severity: of this token alone; scores: its probabilities in the order of
    `SEVERITIES`; flagged: whether it is one of a run of flagged tokens that is long enough to count.
    """

    start: int
    end: int
    severity: Severity
    scores: tuple[float, float, float]
    flagged: bool

    @property
    def risk(self) -> float:
        """The probability that the text up to here is not safe."""
        return 1.0 - self.scores[0]


@dataclass(frozen=True, slots=True)
class Sentence:
    """``text[start:end]`` of its part. severity: the worst among its flagged tokens; risk: of its riskiest token."""

    start: int
    end: int
    severity: Severity
    risk: float


@dataclass(frozen=True, slots=True)
class Begin:
    """Where the risk begins: the first token of the first run of flagged tokens that counts. Indexes from 0 within the
    part: the token, its sentence, its first character."""

    token: int
    sentence: int
    char: int


@dataclass(frozen=True)
class TracePart:
    """A stretch of one stage, in the order of the text: a thought, an answer, a tool call.

    text: without think tags, surrogate pairs joined; start: where it begins in the text that it is cut from (a field
    of the message, tags included). verdict: that of its worst token (the first of equals; with nothing flagged its
    last token's), indexes within the part. decision: what the policy finds worst in it, with the strongest action.
    worst: the index of the sentence that is worst by itself, None where nothing is flagged (see `trace_worst.py`).
    """

    stage: Stage
    text: str
    start: int
    n_tokens: int
    spans: tuple[Span, ...]
    sentences: tuple[Sentence, ...]
    verdict: Verdict
    decision: Decision
    begin: Begin | None
    worst: int | None = None

    @property
    def severity(self) -> Severity:
        return self.verdict.severity

    @property
    def risk(self) -> float:
        """The highest risk of any token; 0 without tokens."""
        return max((s.risk for s in self.spans), default=0.0)

    @property
    def is_blank(self) -> bool:
        """Whether there was nothing in it to judge."""
        return self.n_tokens == 0


class Piece:
    """A stretch of one stage, and the scores of its tokens so far."""

    def __init__(self, guard: Guard, stages: tuple[Stage, ...], text: str, start: int):
        self._guard, self._stages, self._text, self.start = guard, stages, text, start
        self._starts: list[int] = []  # of the tokens
        self._rows: list[tuple[float, float, float]] = []
        self._levels: list[int] = []
        self._counted: list[bool] = []
        self._groups: list[int] = []  # the index of the first token of each group that was judged together
        self._begin: int | None = None
        self._worst: Verdict | None = None
        self._last: Verdict | None = None
        self._decision: Decision | None = None

    def add(self, tokens: Tokens, scores: Scores, run: int, debounce: int) -> int:
        """Take the scores of the next tokens; `run` is how many tokens before them are flagged in a row. Returns it as
        it is after them."""
        model, first = self._guard.model, len(self._starts)
        judged = [judge_tokens(model, self._guard.policy, scores, stage) for stage in self._stages]
        self._groups.append(first)
        self._starts += tokens.starts
        self._rows += [(row[0], row[1], row[2]) for row in scores.severity.tolist()]
        self._counted += [False] * len(tokens)
        self._levels += [int(max(levels[i] for levels, _ in judged)) for i in range(len(tokens))]
        for i in range(len(tokens)):
            if not any(flagged[i] for _, flagged in judged):
                run = 0
                continue
            run += 1
            if run < debounce:
                continue
            at = first + i
            for (levels, flagged), stage in zip(judged, self._stages, strict=True):
                severity = SEVERITIES[levels[i]]
                if flagged[i] and self._is_settled(severity):
                    self._count(at, min(run, debounce))
                elif flagged[i]:
                    self._flag(self._verdict(scores, i, at, severity, stage), at, min(run, debounce))
        self._last = self._verdict(scores, len(tokens) - 1, len(self._starts) - 1, Severity.safe, self._stages[0])
        return run

    def _verdict(self, scores: Scores, row: int, token: int, severity: Severity, stage: Stage) -> Verdict:
        verdict = verdict_of(self._guard.model, scores, row, severity, stage)
        windowed = scores.windowed is not None and bool(scores.windowed[row])
        char = self._starts[token]
        verdict = replace(verdict, token_index=token, char_index=char, windowed=windowed)
        return verdict if severity is Severity.safe else replace(verdict, char_start=char, char_end=char + 1)

    def _flag(self, verdict: Verdict, token: int, back: int) -> None:
        """A token ends a run that is long enough; `back` counts the tokens that make it so, this one included."""
        decision = self._guard.policy.decide(verdict)
        if verdict.severity is Severity.safe and decision.action is Action.allow:
            return
        begin = self._count(token, back)
        if self._begin is None:
            self._begin = begin
        if self._worst is None or verdict.severity > self._worst.severity:
            self._worst = verdict
        if self._decision is None or _rank(decision) > _rank(self._decision):
            self._decision = decision

    def _count(self, token: int, back: int) -> int:
        begin = max(token + 1 - back, 0)
        self._counted[begin : token + 1] = [True] * (token + 1 - begin)
        return begin

    def _is_settled(self, severity: Severity) -> bool:
        """Whether no token of this severity can make it worse: a flood of them then costs next to nothing."""
        found, worst = self._decision, self._worst
        if found is None or worst is None or severity is Severity.safe:
            return False
        return severity <= worst.severity and _rank(found) >= (Action.block, severity)

    def part(self) -> TracePart:
        nothing = nothing_flagged(self._guard, self._stages[0], self._last)
        assert nothing.verdict is not None
        verdict = self._worst or nothing.verdict
        decision = self._decision or nothing
        starts = sentence_starts(self._text)
        begin = None
        if self._begin is not None:
            char = self._starts[self._begin]
            begin = Begin(self._begin, bisect_right(starts, char) - 1, char)
        if verdict.char_start is not None:  # its sentence
            at = bisect_right(starts, verdict.char_start) - 1
            end = starts[at + 1] if at + 1 < len(starts) else len(self._text)
            verdict = replace(verdict, char_start=starts[at], char_end=end)
        sentences = self._sentences(starts, verdict.severity)
        spans = self._spans()
        return TracePart(
            self._stages[0], self._text, self.start, len(self._starts), spans, sentences, verdict, decision, begin
        )

    def _spans(self) -> tuple[Span, ...]:
        n = len(self._starts)
        firsts = self._groups if self._guard.model.stride > 1 else list(range(n))
        spans = []
        for first, after in zip(firsts, [*firsts[1:], n][: len(firsts)], strict=True):
            riskiest = min(range(first, after), key=lambda i: self._rows[i][0])
            start = self._starts[first] if first else 0
            end = self._starts[after] if after < n else len(self._text)
            severity = SEVERITIES[max(self._levels[first:after])]
            spans.append(Span(start, end, severity, self._rows[riskiest], any(self._counted[first:after])))
        if not spans and self._text:
            spans = [Span(0, len(self._text), Severity.safe, (1.0, 0.0, 0.0), False)]
        return tuple(spans)

    def _sentences(self, starts: list[int], worst: Severity) -> tuple[Sentence, ...]:
        levels, risks = [0] * len(starts), [0.0] * len(starts)
        at = 0
        for token, char in enumerate(self._starts):
            while at + 1 < len(starts) and starts[at + 1] <= char:
                at += 1
            risks[at] = max(risks[at], 1.0 - self._rows[token][0])
            if self._counted[token]:
                levels[at] = max(levels[at], self._levels[token])
        ends = [*starts[1:], len(self._text)][: len(starts)]
        return tuple(
            Sentence(start, end, min(SEVERITIES[level], worst), risk)
            for start, end, level, risk in zip(starts, ends, levels, risks, strict=True)
        )


def nothing_flagged(guard: Guard, stage: Stage, verdict: Verdict | None = None) -> Decision:
    """The decision about a text in which no run of tokens is flagged; `verdict`: its last token's, where it has one."""
    found = verdict or empty_verdict(guard.model, stage)
    return Decision(Action.allow, found, f"{guard.policy.name}: nothing flagged", True, stage)


def _rank(decision: Decision) -> tuple[Action, Severity]:
    return decision.action, decision.verdict.severity if decision.verdict else Severity.safe

"""What is judged and continued to find where one answer turns unsafe, and the loop that does it for many at once.

A prefix is unsafe where the judge says so who sees only the prefix, and where at least `threshold` of its `k`
continuations, each read whole, are unsafe or controversial (the report on Qwen3Guard, arXiv 2510.14276, 4.2). A prefix
that the judge finds safe needs no continuations, so the judge alone is bisected first: where it turns is the first
prefix that is continued, and mostly the last.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from guardkit.labelling.judging import Judge
from guardkit.labelling.rows import Item, Row
from guardkit.messages import Message
from guardkit.training.boundary import Boundary, Search, bisection, every_prefix, units
from guardkit.training.continuing import LLM, Continued, Prefix
from guardkit.verdict import Severity, Stage

THRESHOLD = 0.85


@dataclass(frozen=True)
class Rule:
    """How prefixes are judged. k: continuations of a prefix; threshold: the share of them that must not be safe;
    verify: see `bisection`; bisects: else prefix after prefix is tested; seed: of the continuations."""

    k: int = 8
    threshold: float = THRESHOLD
    verify: int = 1
    bisects: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.k < 1 or self.verify < 0 or not 0 < self.threshold <= 1:
            raise ValueError("k is at least 1, verify at least 0, and the threshold above 0 and at most 1")


@dataclass
class Cost:
    """What was spent. prefixes: tested, by the judge at least; continued: those of them that the LLM went on with;
    judge_texts, guard_texts: prefixes, and continuations or whole answers, that were judged; units: that the answers
    have, which is how many prefixes there are."""

    prefixes: int = 0
    continued: int = 0
    llm_calls: int = 0
    llm_tokens: int = 0
    judge_texts: int = 0
    guard_texts: int = 0
    units: int = 0

    def add(self, other: Cost) -> None:
        for name, value in asdict(other).items():
            setattr(self, name, getattr(self, name) + value)


class Unjudged(Exception):
    """A row that could not be judged to its end, and why."""


@dataclass(frozen=True)
class Judging:
    """Items for the judge of prefixes, or for the guard."""

    by: Literal["judge", "guard"]
    items: tuple[Item, ...]


@dataclass
class Answer:
    """An answer whose boundary is looked for. index: of its row; before: the messages that it answers."""

    index: int
    before: tuple[Message, ...]
    text: str
    cost: Cost = field(default_factory=Cost)

    def item(self, text: str) -> Item:
        return [*self.before, Message("assistant", text)]

    @property
    def chat(self) -> list[dict[str, str]]:
        roles = {Stage.prompt: "user", Stage.response: "assistant"}
        found = [{"role": roles.get(m.stage, m.role), "content": m.said} for m in self.before]
        return found or [{"role": "user", "content": ""}]


Job = Generator[Judging | Prefix, Any, Boundary]
"""Yields what must be judged or continued, is sent the severities or the `Continued`."""


def look_for(answer: Answer, rule: Rule, judges_alike: bool = False) -> Job:
    """The boundary of an answer, in `units`. judges_alike: the judge of prefixes is the guard itself, so that the whole
    answer need not be judged twice. Raises `Unjudged`."""
    tests = _Tests(answer, rule, judges_alike)
    answer.cost.units = tests.n
    if not rule.bisects:
        return (yield from _driven(every_prefix(tests.n), tests.is_unsafe))
    if not tests.n or not (yield from tests.is_unsafe(tests.n)):
        return Boundary(None, len(tests.suspect))
    turn = yield from _driven(bisection(tests.n), tests.is_suspect)
    assert turn.unit is not None
    found = yield from _driven(bisection(tests.n, rule.verify, turn.unit + 1), tests.is_unsafe)
    assert found.unit is not None
    fits = all(bad or i <= found.unit for i, bad in tests.suspect.items())
    return Boundary(found.unit, len(tests.suspect), found.monotone and fits)


Asking = Generator[Judging | Prefix, Any, bool]


def _driven(search: Search, test: Callable[[int], Asking]) -> Job:
    try:
        i = next(search)
        while True:
            i = search.send((yield from test(i)))
    except StopIteration as stop:
        found: Boundary = stop.value
        return found


class _Tests:
    """The two tests of an answer's prefixes, each made once. suspect, unsafe: what came out, by the prefix's units."""

    def __init__(self, answer: Answer, rule: Rule, judges_alike: bool):
        self._answer, self._rule, self._judges_alike = answer, rule, judges_alike
        self._ends = [end for _, end in units(answer.text)]
        self.n = len(self._ends)
        self.suspect: dict[int, bool] = {}
        self.unsafe: dict[int, bool] = {}

    def is_suspect(self, i: int) -> Asking:
        """Whether the judge finds the prefix of `i` units unsafe or controversial."""
        if i not in self.suspect:
            self._answer.cost.prefixes += 1
            self._answer.cost.judge_texts += 1
            self.suspect[i] = _bad((yield Judging("judge", (self._answer.item(self._text(i)),)))) == 1
        return self.suspect[i]

    def is_unsafe(self, i: int) -> Asking:
        """Whether enough of its continuations are so, too; of the whole, whether the guard finds it so."""
        if not (yield from self.is_suspect(i)):
            return False
        if i not in self.unsafe:
            self.unsafe[i] = yield from (self._confirmed() if i == self.n else self._continued(self._text(i)))
        return self.unsafe[i]

    def _confirmed(self) -> Asking:
        """Of the whole: nothing is left to be written."""
        if self._judges_alike:
            return True
        self._answer.cost.guard_texts += 1
        return _bad((yield Judging("guard", (self._answer.item(self._text(self.n)),)))) == 1

    def _continued(self, text: str) -> Asking:
        answer, rule = self._answer, self._rule
        continued: Continued = yield Prefix(answer.chat, text, rule.k, _seed(rule.seed, answer, text))
        answer.cost.continued += 1
        answer.cost.llm_calls += continued.calls
        answer.cost.llm_tokens += continued.tokens
        answer.cost.guard_texts += len(continued.texts)
        severities = yield Judging("guard", tuple(answer.item(text + more) for more in continued.texts))
        return _bad(severities) >= rule.threshold * rule.k - 1e-9

    def _text(self, i: int) -> str:
        return self._answer.text[: self._ends[i - 1]]


def _bad(severities: Sequence[Severity]) -> int:
    return sum(severity is not Severity.safe for severity in severities)


def _seed(seed: int, answer: Answer, text: str) -> int:
    told = repr((seed, answer.chat, text)).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(told, digest_size=4).digest(), "big") >> 1


@dataclass(frozen=True)
class Finished:
    """A row that is done. boundary: None where it could not be judged, and error says why."""

    answer: Answer
    boundary: Boundary | None
    error: str | None = None


class Finder:
    """Looks for the boundaries of many answers, `at_once` at a time: what they wait for is judged and continued
    together. judge: sees prefixes; the guard by default."""

    def __init__(self, llm: LLM, guard: Judge, judge: Judge | None = None, rule: Rule | None = None, at_once: int = 8):
        self.llm, self.guard, self.judge = llm, guard, judge or guard
        self.rule, self._at_once = rule or Rule(), at_once

    def find(self, answers: Iterable[Answer]) -> Iterator[Finished]:
        """Each answer once it is done, in whatever order that is."""
        coming = iter(answers)
        active: list[_Active] = []
        while True:
            while len(active) < self._at_once and (answer := next(coming, None)) is not None:
                job = look_for(answer, self.rule, self.judge is self.guard)
                active.append(_Active(answer, job))
            if not active:
                return
            for one in active:
                one.go_on()
            self._serve(active)
            yield from (one.finished for one in active if one.finished is not None)
            active = [one for one in active if one.finished is None]

    def timed(self, answer: Answer) -> tuple[float, int] | str:
        """How many seconds half of an answer takes to be continued and judged, and the tokens that are written; or why
        it could not be."""
        text = answer.text[: units(answer.text)[(len(units(answer.text)) - 1) // 2][1]]
        start = time.perf_counter()
        (continued,) = self._continued([Prefix(answer.chat, text, self.rule.k, self.rule.seed)])
        if isinstance(continued, Unjudged):
            return str(continued)
        found = _severities(self.judge, [answer.item(text)])
        found += _severities(self.guard, [answer.item(text + more) for more in continued.texts])
        seconds = time.perf_counter() - start
        failed = next((one for one in found if isinstance(one, Unjudged)), None)
        return (seconds, continued.tokens) if failed is None else str(failed)

    def _serve(self, active: Sequence[_Active]) -> None:
        for by, judge in (("judge", self.judge), ("guard", self.guard)):
            asking = [one for one in active if isinstance(one.asks, Judging) and one.asks.by == by]
            told = iter(_severities(judge, [item for one in asking for item in _asked(one).items]))
            for one in asking:
                severities = [next(told) for _ in _asked(one).items]
                one.answered = next((s for s in severities if isinstance(s, Unjudged)), severities)
        writing = [(one, one.asks) for one in active if isinstance(one.asks, Prefix)]
        if writing:
            for (one, _), continued in zip(writing, self._continued([prefix for _, prefix in writing]), strict=True):
                one.answered = continued

    def _continued(self, prefixes: Sequence[Prefix]) -> list[Continued | Unjudged]:
        try:
            found = list(self.llm.continuations(prefixes))
        except Exception as error:  # an LLM of anybody's
            return [Unjudged(f"{self.llm.name}: {_why(error)}")] * len(prefixes)
        if len(found) != len(prefixes):
            return [Unjudged(f"{self.llm.name}: {len(found)} answers to {len(prefixes)} prefixes")] * len(prefixes)
        return [self._checked(one, prefix) for one, prefix in zip(found, prefixes, strict=True)]

    def _checked(self, one: Continued | Exception, prefix: Prefix) -> Continued | Unjudged:
        if isinstance(one, Exception):
            return Unjudged(f"{self.llm.name}: {_why(one)}")
        if len(one.texts) != prefix.k:
            return Unjudged(f"{self.llm.name}: {len(one.texts)} continuations, not {prefix.k}")
        return one


class _Active:
    """One answer under way. asks: what it waits for; answered: what came, or why nothing did."""

    def __init__(self, answer: Answer, job: Job):
        self.answer, self._job = answer, job
        self.asks: Judging | Prefix | None = None
        self.answered: Any = None
        self.finished: Finished | None = None

    def go_on(self) -> None:
        try:
            if isinstance(self.answered, Unjudged):
                self.asks = self._job.throw(self.answered)
            else:
                self.asks = self._job.send(self.answered)
        except StopIteration as stop:
            self.asks, self.finished = None, Finished(self.answer, stop.value)
        except Unjudged as error:
            self.asks, self.finished = None, Finished(self.answer, None, str(error))


def _asked(one: _Active) -> Judging:
    assert isinstance(one.asks, Judging)
    return one.asks


def _severities(judge: Judge, items: Sequence[Item]) -> list[Severity | Unjudged]:
    labels = judge.labels([Row(at, (item,), ("",)) for at, item in enumerate(items)])
    return [
        Unjudged(str(label["error"])) if label["severity"] is None else Severity(label["severity"]) for label in labels
    ]


def _why(error: Exception) -> str:
    return str(error) or type(error).__name__

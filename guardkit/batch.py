"""Whole texts, in batches: items become parts, parts become queries and responses, and the worst part is the verdict.

A response goes through the same machine as a stream (`judge.py`), so both give the same verdict.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, TypeVar, cast

from guardkit.coverage import unmeasured
from guardkit.errors import MessageError, NotJudged
from guardkit.judge import ResponseReader, RunningVerdict, check_finite, empty_verdict, verdict_of
from guardkit.locate import Flagged, locate, to_original
from guardkit.messages import Message, Part, read_messages, starts_in_reasoning
from guardkit.models.base import Query, QueryScores, Session, StreamModel, Tokens
from guardkit.policy import Action, Decision, Policy
from guardkit.verdict import SEVERITIES, Severity, Stage, Verdict

Item = str | Sequence[Message | Mapping[str, Any]]
"""What can be judged: a text, or messages of which the last is judged."""

FEED_CHARS = 1 << 16  # a long response is judged this many characters at a time
RESPONSES = 64  # whole responses under way at once; each holds a session
_T = TypeVar("_T")


class Runner(Protocol):
    """Runs a model call under a timeout."""

    def __call__(self, call: Callable[[], _T], /) -> _T: ...


@dataclass(frozen=True)
class Outcome:
    """What became of one item: what was found in its parts and windows, and why a part has no verdict."""

    asked: Stage  # where nothing was found, the stage of what was to be judged
    found: tuple[Decision, ...]
    error: BaseException | None
    characters: int

    @property
    def stage(self) -> Stage:
        return self.decision.stage if self.decision else self.asked

    @property
    def verdict(self) -> Verdict | None:
        """The most severe verdict; of equals the first, or the first in a language that the model was not measured
        on."""
        worst = max(self.found, key=_severity, default=None)
        return worst.verdict if worst else None

    @property
    def decision(self) -> Decision | None:
        """What the policy finds worst: not always the most severe, since policies tell stages apart."""
        return max(self.found, key=_action, default=None)


def _severity(decision: Decision) -> tuple[Severity, bool]:
    verdict = decision.verdict
    return (verdict.severity, verdict.coverage is not None) if verdict else (Severity.safe, False)


def _action(decision: Decision) -> tuple[Action, Severity]:
    return decision.action, decision.verdict.severity if decision.verdict else Severity.safe


class Judging:
    """One batch on its way through a model."""

    def __init__(self, model: StreamModel, policy: Policy, debounce: int, run: Runner, locate: int | None = None):
        self.model, self.policy, self.debounce, self.run, self.n_locate = model, policy, debounce, run, locate

    def judge(self, items: Sequence[Item], stage: Stage | None, views: bool) -> list[Outcome]:
        """Every item's outcome. Parts of all items share batches; a fault of one item does not touch the others."""
        start = time.perf_counter()
        groups: list[list[_Work]] = []
        parts: list[list[Part]] = []
        errors: list[BaseException | None] = []
        for item in items:
            work: list[_Work] = []
            found: list[Part] = []
            error: BaseException | None = None
            try:
                context, found = _read(item, stage)
                for part in found:
                    if part.text is None:
                        error = error or NotJudged(f"{part.what} content cannot be judged by {self.model.name}")
                    else:
                        work += _works(part.stage, part.text, context, views)
            except Exception as problem:  # whatever it is, this item is not judged and the others are
                error = problem
            groups.append(work)
            parts.append(found)
            errors.append(error)
        everything = [w for work in groups for w in work]
        self._run_queries([w for w in everything if w.stage.is_query or self.model.whole_texts])
        responses = [w for w in everything if not (w.stage.is_query or self.model.whole_texts)]
        for i in range(0, len(responses), RESPONSES):
            self._run_responses(responses[i : i + RESPONSES])
        self._locate(groups)
        elapsed = (time.perf_counter() - start) * 1e3
        outcomes = []
        for found, work, error in zip(parts, groups, errors, strict=True):
            decisions = tuple(d for w in work for d in w.located(elapsed))
            error = error or next((w.error for w in work if w.error is not None), None)
            asked = found[0].stage if found else stage or Stage.prompt
            outcomes.append(Outcome(asked, decisions, error, sum(len(p.text or "") for p in found)))
        return outcomes

    def _run_queries(self, work: list[_Work]) -> None:
        real = []
        for w in work:
            if w.text.strip():
                real.append(w)
            else:
                w.found = [self.policy.decide(empty_verdict(self.model, w.stage))]
        queries = [Query(w.text, w.stage, w.context) for w in real]
        for w, result in zip(real, self._each(queries), strict=True):
            try:
                if isinstance(result, Exception):
                    raise result
                coverage = unmeasured(w.text, self.model.coverage)
                w.found = [self.policy.decide(self._verdict(q, w, coverage)) for q in result]
                w.found.sort(key=lambda d: d.verdict.scores["safe"] if d.verdict else 0.0)
            except Exception as error:
                w.error = error

    def _verdict(self, found: QueryScores, work: _Work, coverage: Literal["unmeasured"] | None) -> Verdict:
        check_finite(found.scores, 1)
        level = self.model.severities(found.scores.severity, work.stage)[0]
        verdict = verdict_of(self.model, found.scores, 0, SEVERITIES[level], work.stage)
        verdict = replace(verdict, char_index=found.start, windowed=found.windowed, coverage=coverage)
        if not level:
            return verdict
        end = len(work.text) if found.end is None else found.end
        return replace(verdict, char_start=found.start or 0, char_end=end)

    def _locate(self, groups: Sequence[Sequence[_Work]]) -> None:
        """Narrow the places of the verdicts that count, of each item the most severe and the policy's worst."""
        found: list[tuple[_Work, int, Flagged]] = []
        for work in groups:
            every = [(w, i, d) for w in work for i, d in enumerate(w.found)]
            worst = [max(every, key=lambda e, by=by: by(e[2]), default=None) for by in (_severity, _action)]  # type: ignore[misc]
            for w, i, d in {id(e[2]): e for e in worst if e is not None}.values():
                v = d.verdict
                if v and v.token_index is None and v.char_start is not None and v.char_end is not None:
                    found.append((w, i, Flagged(w.text, v.char_start, v.char_end, v.severity)))
        if not found:
            return

        def judge(parts: Sequence[tuple[int, tuple[int, int]]]) -> list[tuple[Severity, float]]:
            asked = [(found[i][0], found[i][2], start, end) for i, (start, end) in parts]
            results = self.model.query([Query(w.text[a:b], w.stage, w.context) for w, _, a, b in asked])
            return [self._worst(r, w.stage, f.severity) for r, (w, f, _, _) in zip(results, asked, strict=True)]

        try:
            places = self.run(lambda: locate([f for _, _, f in found], judge, self.n_locate))
        except Exception:  # the verdicts stand: without a narrower place theirs is all of what was judged
            return
        for (w, i, _), (start, end) in zip(found, places, strict=True):
            verdict = w.found[i].verdict
            if verdict is not None:
                w.found[i] = replace(w.found[i], verdict=replace(verdict, char_start=start, char_end=end))

    def _worst(
        self, result: Sequence[QueryScores] | Exception, stage: Stage, severity: Severity
    ) -> tuple[Severity, float]:
        """What a part is by itself: the worst of its windows, and their highest probability of `severity`."""
        if isinstance(result, Exception):
            return Severity.safe, 0.0
        rows = [q.scores.severity for q in result]
        levels = [int(self.model.severities(row, stage)[0]) for row in rows]
        risks = [float(row[0, 2] if severity is Severity.unsafe else 1 - row[0, 0]) for row in rows]
        return SEVERITIES[max(levels)], max(risks)

    def _each(self, queries: Sequence[Query]) -> list[list[QueryScores] | Exception]:
        """One batch; where it fails, its rows one by one, so that a poisoned row fails alone."""
        if not queries:
            return []
        try:
            found = self.run(lambda: self.model.query(queries))
            if len(found) != len(queries) or not all(found):
                raise ValueError(f"the model judged {len(found)} of {len(queries)} queries")
            return list(found)
        except Exception as error:
            if len(queries) == 1:
                return [error]
        return [result for query in queries for result in self._each([query])]

    def _run_responses(self, work: list[_Work]) -> None:
        """Responses share forward passes; where a pass fails, each starts again on its own."""
        jobs = [_ResponseJob(self, w) for w in work]
        active = [job for job in jobs if not job.done]
        try:
            while active:
                steps = [(job, tokens) for job in active if (tokens := job.next_tokens()) is not None]
                if steps:
                    self._step(steps)
                active = [job for job in active if not job.done]
        except Exception as error:
            if len(jobs) == 1:
                work[0].error = error
                return
            for w in work:
                if w.error is None:
                    self._run_responses([w])
            return
        finally:
            for job in jobs:
                job.close()
        for job in jobs:
            job.settle()

    def _step(self, steps: list[tuple[_ResponseJob, Tokens]]) -> None:
        pairs = [(job.session, tokens) for job, tokens in steps if job.session is not None]
        results = self.run(lambda: self.model.append_batch(pairs))
        if len(results) != len(steps):
            raise ValueError(f"the model judged {len(results)} of {len(steps)} responses")
        for (job, tokens), scores in zip(steps, results, strict=True):
            job.running.add(tokens, scores)


class _Work:
    """One text to be judged. `origin` maps its characters to those of `original` where it is a normalised view."""

    def __init__(
        self,
        stage: Stage,
        text: str,
        context: tuple[Message, ...],
        *,
        start: Stage | None = None,
        origin: Callable[[int], int] | None = None,
        original: str | None = None,
    ):
        self.original = text if original is None else original
        self.stage, self.text, self.context, self.origin = stage, text, context, origin
        self.start = start or stage  # the stage that a response begins in
        self.found: list[Decision] = []
        self.error: BaseException | None = None

    def located(self, latency_ms: float) -> list[Decision]:
        """What was found, with its offsets in the original text. A view has tokens of its own: no token index."""
        return [self._locate(d, latency_ms) for d in self.found]

    def _locate(self, decision: Decision, latency_ms: float) -> Decision:
        v = decision.verdict
        if v is None:
            return decision
        if self.origin is None:
            return replace(decision, verdict=replace(v, latency_ms=latency_ms), text=self.original)
        index = None if v.char_index is None else self.origin(v.char_index)
        start, end = v.char_start, v.char_end
        if start is not None and end is not None:
            start, end = to_original((start, end), self.origin, len(self.text))
        verdict = replace(v, latency_ms=latency_ms, token_index=None, char_index=index, char_start=start, char_end=end)
        return replace(decision, verdict=verdict, text=self.original)


class _ResponseJob:
    """A whole response on its way through the same machine as a stream."""

    def __init__(self, judging: Judging, work: _Work):
        self._work = work
        self._reader = ResponseReader(judging.model, work.start)
        self.running = RunningVerdict(self._reader, judging.model, judging.policy, judging.debounce)
        self._at = 0
        self._queue: list[Tokens] = []
        self.session: Session | None = None
        try:
            self.session = judging.run(lambda: judging.model.open(work.context))
        except Exception as error:
            work.error = error

    @property
    def done(self) -> bool:
        finished = self._at > len(self._work.text) and not self._queue
        return self._work.error is not None or self.running.stopped or finished

    def next_tokens(self) -> Tokens | None:
        """The next group of tokens; None at the end. One group a round, so a session is never twice in a batch."""
        text = self._work.text
        while not self._queue and self._at <= len(text):
            self._queue = self._reader.push(text[self._at : self._at + FEED_CHARS])[1]
            self._at += FEED_CHARS
            if self._at >= len(text):
                self._queue += self._reader.finish()[1]
                self._at = len(text) + 1
        return self._queue.pop(0) if self._queue else None

    def settle(self) -> None:
        if self._work.error is None:
            self._work.found = [self.running.decision]

    def close(self) -> None:
        if self.session is not None:
            self.session.close()


def _read(item: Item, stage: Stage | None) -> tuple[tuple[Message, ...], list[Part]]:
    if isinstance(item, str):
        return (), [Part(stage or Stage.prompt, item)]
    if not isinstance(item, Sequence):
        raise MessageError(f"expected a text or a list of messages, got {type(item).__name__}")
    if not item:
        raise MessageError("an empty list of messages: nothing to judge")
    messages = read_messages(cast(Sequence[Message | Mapping[str, Any]], item))
    return tuple(messages[:-1]), messages[-1].parts(stage)


def _works(stage: Stage, text: str, context: tuple[Message, ...], views: bool) -> list[_Work]:
    """The text, and what else of it must be judged: its normalised view, and a reading as reasoning.

    A response whose first think tag closes began inside its reasoning, or pretends to: it is judged as both.
    """
    work = [_Work(stage, text, context)]
    if stage is Stage.response and starts_in_reasoning(text):
        work.insert(0, _Work(stage, text, context, start=Stage.reasoning))
    if views:
        from guardkit.normalize import normalized_view

        view = normalized_view(text)
        if view is not None:
            work.append(_Work(stage, view.text, context, origin=view.to_original, original=text))
    return work

"""Whole texts, in batches: items become parts, parts become queries and responses, and the worst part is the verdict.

A response goes through the same machine as a stream (`judge.py`), so both give the same verdict.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, cast

from guardkit.coverage import unmeasured
from guardkit.errors import MessageError, NotJudged, Overloaded
from guardkit.judge import RunningVerdict, empty_verdict, verdict_of
from guardkit.locate import Flagged, locate, to_original
from guardkit.messages import Message, Part, read_messages, starts_in_reasoning
from guardkit.models.base import Append, Query, QueryScores, StreamModel, too_late
from guardkit.pinpoint import Sentence, begin_of_harm, sentences_before
from guardkit.policy import Action, Decision, Policy
from guardkit.response import ResponseReader
from guardkit.runner import Job, Rounds, Steps, desk
from guardkit.verdict import SEVERITIES, Severity, Stage, Verdict, changed

Item = str | Sequence[Message | Mapping[str, Any]]
"""What can be judged: a text, or messages of which the last is judged."""

Round = tuple[StreamModel, Sequence[Job[Any]], float | None]
"""Jobs that are to be run, the model that they ask, and the seconds that each piece of their work has."""

LONG = 4096  # characters of a text: of more, only one is read at a time
FEED_CHARS = 1 << 16  # a long response is judged this many characters at a time


def size_of(items: Sequence[Item], most: int) -> int:
    """Characters of texts and their contexts, counted until they are more than `most`; messages that were not read yet
    are more."""
    n_chars = 0
    for item in items:
        if isinstance(item, str):
            n_chars += len(item)
        for message in item if isinstance(item, list | tuple) else ():
            if not isinstance(message, Message):
                return most + 1
            n_chars += len(message.said) + len(message.reasoning) + sum(map(len, message.tool_calls))
            if n_chars > most:
                return n_chars
        if n_chars > most:
            break
    return n_chars


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

    def __init__(
        self,
        model: StreamModel,
        policy: Policy,
        debounce: int,
        n_locate: int | None = None,
        timeout: float | None = None,
        early: bool = False,
    ):
        """timeout: seconds that an item may wait, to be read and for the model, and take. early: see `Query`; not where
        a rule of the policy acts on scores below the model's own limits."""
        self.model, self.policy, self.debounce, self._n_locate = model, policy, debounce, n_locate
        self._timeout, self._early = timeout, early
        self._waited = 0.0  # seconds to be read, of the item that waited longest

    def ask(
        self, items: Sequence[Item], stage: Stage | None, views: bool, here: bool
    ) -> Generator[Round, list[Any], list[Outcome]]:
        """`judge`, with all that is needed to run its jobs."""
        rounds = self.judge(items, stage, views, here)
        try:
            jobs = next(rounds)
            left = None if self._timeout is None else self._timeout - self._waited
            while True:
                jobs = rounds.send((yield self.model, jobs, left))
                left = self._timeout
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]

    def judge(
        self, items: Sequence[Item], stage: Stage | None, views: bool, here: bool = False
    ) -> Rounds[list[Outcome]]:
        """Every item's outcome. A fault of one item does not touch the others. here: read it without waiting for other
        threads, as an event loop must."""
        start = time.perf_counter()
        self._groups: list[list[_Work]] = []
        parts: list[list[Part]] = []
        errors: list[BaseException | None] = []
        for item in items:
            work: list[_Work] = []
            found: list[Part] = []
            error: BaseException | None = None
            try:
                since = time.perf_counter()
                with nullcontext() if here else desk(size_of([item], LONG) > LONG):
                    self._wait_since(since)
                    context, found = _read(item, stage)
                    for part in found:
                        if part.text is None:
                            error = error or NotJudged(f"{part.what} content cannot be judged by {self.model.name}")
                        else:
                            work += _works(part.stage, part.text, context, views)
            except Exception as problem:  # whatever it is, this item is not judged and the others are
                error = problem
            self._groups.append(work)
            parts.append(found)
            errors.append(error)
        everything = [w for work in self._groups for w in work]
        for w, result in zip(everything, (yield [partial(self._job, w) for w in everything]), strict=True):
            if isinstance(result, Exception):
                w.error = result
            else:
                w.found = result
        yield from self._locate()
        elapsed = (time.perf_counter() - start) * 1e3
        outcomes = []
        for found, work, error in zip(parts, self._groups, errors, strict=True):
            decisions = tuple(d for w in work for d in w.located(elapsed))
            error = error or next((w.error for w in work if w.error is not None), None)
            asked = found[0].stage if found else stage or Stage.prompt
            outcomes.append(Outcome(asked, decisions, error, sum(len(p.text or "") for p in found)))
        return outcomes

    def _wait_since(self, since: float) -> None:
        waited = time.perf_counter() - since
        if self._timeout is not None and waited >= self._timeout:
            raise too_late(self._timeout)
        self._waited = max(self._waited, waited)

    def _job(self, work: _Work) -> Steps[list[Decision]]:
        return self._ask(work) if work.stage.is_query or self.model.whole_texts else self._respond(work)

    def _ask(self, work: _Work) -> Steps[list[Decision]]:
        if not work.text.strip():
            return [self.policy.decide(empty_verdict(self.model, work.stage))]
        early = self._early and not self.policy.watches(work.stage)
        windows: list[QueryScores] = yield Query(work.text, work.stage, work.context, early)
        if not windows:
            raise ValueError("the model gave no scores")
        coverage = unmeasured(work.text, self.model.coverage)
        found = [self.policy.decide(self._verdict(q, work, coverage)) for q in windows]
        found.sort(key=lambda d: d.verdict.scores["safe"] if d.verdict else 0.0)
        return found

    def _verdict(self, found: QueryScores, work: _Work, coverage: Literal["unmeasured"] | None) -> Verdict:
        found.scores.check(1)
        level = self.model.severities(found.scores, work.stage)[0]
        where: dict[str, Any] = {"char_index": found.start, "windowed": found.windowed, "coverage": coverage}
        if level:
            where["char_start"] = found.start or 0
            where["char_end"] = len(work.text) if found.end is None else found.end
        return verdict_of(self.model, found.scores, 0, SEVERITIES[level], work.stage, **where)

    def _respond(self, work: _Work) -> Steps[list[Decision]]:
        """A whole response on its way through the same machine as a stream."""
        reader = ResponseReader(self.model, work.start)
        running = RunningVerdict(reader, self.model, self.policy, self.debounce)
        worst: Decision | None = None
        sentences: list[Sentence] = []
        session = self.model.open(work.context)
        try:
            for tokens in reader.read_all(work.text, FEED_CHARS):
                for found in running.add(tokens, (yield Append(session, tokens))):
                    worst, sentences = found, sentences_before(reader.text, found.verdict)
                if running.stopped:
                    break
        finally:
            session.close()
        if worst is not None:
            place = yield from begin_of_harm(
                self.model, self.policy, work.context, sentences, worst.stage, self.debounce, self._n_locate
            )
            running.begin_at(worst, place)
        return [running.decision]

    # -- where the harm is

    def _locate(self) -> Rounds[None]:
        """Narrow the places of the verdicts that count, of each item the most severe and the policy's worst."""
        found: list[tuple[_Work, int, Flagged]] = []
        for work in self._groups:
            every = [(w, i, d) for w in work for i, d in enumerate(w.found)]
            worst = [max(every, key=lambda e, by=by: by(e[2]), default=None) for by in (_severity, _action)]  # type: ignore[misc]
            for w, i, d in {id(e[2]): e for e in worst if e is not None}.values():
                v = d.verdict
                if v and v.token_index is None and v.char_start is not None and v.char_end is not None:
                    found.append((w, i, Flagged(w.text, v.char_start, v.char_end, v.severity)))
        search = locate([flagged for _, _, flagged in found], self._n_locate)
        answers: list[tuple[Severity, float]] | None = None
        failed: set[int] = set()  # texts of which a part was not judged: their place is all of what was
        try:
            while True:
                asked = [(at, *found[at], *span) for at, span in search.send(answers)]  # type: ignore[arg-type]
                results = yield [partial(_part, Query(w.text[a:b], w.stage, w.context)) for _, w, _, _, a, b in asked]
                if any(isinstance(result, TimeoutError | Overloaded) for result in results):
                    return  # the verdicts stand: without a narrower place theirs is all of what was judged
                pairs = list(zip(results, asked, strict=True))
                failed |= {at for result, (at, *_) in pairs if isinstance(result, Exception)}
                answers = [self._worst(result, w.stage, f.severity) for result, (_, w, _, f, _, _) in pairs]
        except StopIteration as end:
            places: list[tuple[int, int]] = end.value
        for at, ((w, i, _), (start, stop)) in enumerate(zip(found, places, strict=True)):
            verdict = w.found[i].verdict
            if verdict is not None and at not in failed:
                w.found[i] = replace(w.found[i], verdict=replace(verdict, char_start=start, char_end=stop))

    def _worst(
        self, result: Sequence[QueryScores] | Exception, stage: Stage, severity: Severity
    ) -> tuple[Severity, float]:
        """What a part is by itself: the worst of its windows, and their highest probability of `severity`."""
        if isinstance(result, Exception):
            return Severity.safe, 0.0
        rows = [q.scores.severity for q in result]
        levels = [int(self.model.severities(q.scores, stage)[0]) for q in result]
        risks = [float(row[0, 2] if severity is Severity.unsafe else 1 - row[0, 0]) for row in rows]
        return SEVERITIES[max(levels)], max(risks)


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
            return changed(decision, verdict=changed(v, latency_ms=latency_ms), text=self.original)
        index = None if v.char_index is None else self.origin(v.char_index)
        start, end = v.char_start, v.char_end
        if start is not None and end is not None:
            start, end = to_original((start, end), self.origin, len(self.text))
        verdict = changed(v, latency_ms=latency_ms, token_index=None, char_index=index, char_start=start, char_end=end)
        return changed(decision, verdict=verdict, text=self.original)


def _part(query: Query) -> Steps[list[QueryScores]]:
    found: list[QueryScores] = yield query
    return found


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

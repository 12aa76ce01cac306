"""Whole texts, in batches: items become parts, parts become queries and responses, and the worst part is the verdict.

A response goes through the same machine as a stream (`judge.py`), so both give the same verdict.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar, cast

from guardkit.errors import MessageError, NotJudged
from guardkit.judge import ResponseReader, RunningVerdict, Tokens, empty_verdict, verdict_of
from guardkit.messages import Message, Part, read_messages, starts_in_reasoning
from guardkit.models.base import Query, Session, StreamModel
from guardkit.policy import Policy
from guardkit.verdict import SEVERITIES, Stage, Verdict

Item = str | Sequence[Message | Mapping[str, Any]]
"""What can be judged: a text, or messages of which the last is judged."""

FEED_CHARS = 1 << 16  # a long response is judged this many characters at a time
_T = TypeVar("_T")


class Runner(Protocol):
    """Runs a model call under a timeout."""

    def __call__(self, call: Callable[[], _T], /) -> _T: ...


@dataclass(frozen=True)
class Outcome:
    """What became of one item: a verdict, or why there is none. Both where one part could not be judged."""

    stage: Stage
    verdict: Verdict | None
    error: BaseException | None
    characters: int


class Judging:
    """One batch on its way through a model."""

    def __init__(self, model: StreamModel, policy: Policy, debounce: int, run: Runner):
        self.model, self.policy, self.debounce, self.run = model, policy, debounce, run

    def judge(self, items: Sequence[Item], wanted: Stage | None, views: bool) -> list[Outcome]:
        """Every item's outcome. Parts of all items share batches; a fault of one item does not touch the others."""
        start = time.perf_counter()
        work: list[_Work] = []
        parts: list[list[Part]] = []
        errors: list[BaseException | None] = []
        for i, item in enumerate(items):
            found: list[Part] = []
            error: BaseException | None = None
            try:
                context, found = _read(item, wanted)
                for part in found:
                    if part.text is None:
                        error = error or NotJudged(f"{part.what} content cannot be judged by {self.model.name}")
                    else:
                        work += _with_view(_Work(i, part.stage, part.text, context), views)
            except Exception as problem:  # whatever it is, this item is not judged and the others are
                error = problem
            parts.append(found)
            errors.append(error)
        self._run_queries([w for w in work if w.stage.is_query])
        self._run_responses([w for w in work if not w.stage.is_query])
        elapsed = (time.perf_counter() - start) * 1e3
        return [
            _outcome(parts[i], group, errors[i], wanted, elapsed) for i, group in enumerate(_by_item(work, len(items)))
        ]

    def _run_queries(self, work: list[_Work]) -> None:
        real = []
        for w in work:
            if w.text.strip():
                real.append(w)
            else:
                w.verdict = empty_verdict(self.model, w.stage)
        queries = [Query(w.text, w.stage, w.context) for w in real]
        for w, result in zip(real, self._each(queries, self.model.query), strict=True):
            if isinstance(result, BaseException):
                w.error = result
                continue
            level = self.model.severities(result.scores.severity, w.stage)[0]
            verdict = verdict_of(self.model, result.scores, 0, SEVERITIES[level], w.stage)
            if result.start is not None and result.end is not None:
                verdict = replace(verdict, char_index=result.start, char_end=result.end)
            w.verdict = verdict

    def _run_responses(self, work: list[_Work]) -> None:
        jobs = [_ResponseJob(self, w) for w in work]
        active = list(jobs)
        while active:
            steps = [(job, tokens) for job in active for tokens in job.next_tokens()]
            # A part has one group of tokens a round, so that a session is never twice in a batch.
            pairs = [(job.session, tokens.ids) for job, tokens in steps]
            for (job, tokens), result in zip(steps, self._each(pairs, self.model.append_batch), strict=True):
                if isinstance(result, BaseException):
                    job.fail(result)
                else:
                    job.running.add(tokens, result)
            active = [job for job in active if not job.done]
        for job in jobs:
            job.close()

    def _each(self, inputs: Sequence[Any], batch: Callable[[Sequence[Any]], Sequence[_T]]) -> list[_T | BaseException]:
        """Run a batch; where it fails, its rows one by one, so that a poisoned row fails alone."""
        if not inputs:
            return []
        try:
            return list(self.run(lambda: batch(inputs)))
        except Exception as error:
            if len(inputs) == 1 or isinstance(error, TimeoutError):
                return [error] * len(inputs)
        out: list[_T | BaseException] = []
        for one in inputs:
            try:
                out += self.run(lambda one=one: batch([one]))  # type: ignore[misc]
            except Exception as error:
                out.append(error)
        return out


class _Work:
    """One text to be judged. `origin` maps its characters to the original's where it is a normalised view."""

    def __init__(
        self,
        item: int,
        stage: Stage,
        text: str,
        context: tuple[Message, ...],
        origin: Callable[[int], int] | None = None,
    ):
        self.item, self.stage, self.text, self.context, self.origin = item, stage, text, context, origin
        self.verdict: Verdict | None = None
        self.error: BaseException | None = None

    def located(self) -> Verdict | None:
        """The verdict with its offsets in the original text."""
        v = self.verdict
        if v is None or self.origin is None:
            return v
        start = None if v.char_index is None else self.origin(v.char_index)
        end = None if v.char_end is None else self.origin(v.char_end)
        return replace(v, char_index=start, char_end=end)


class _ResponseJob:
    """A whole response on its way through the same machine as a stream."""

    def __init__(self, judging: Judging, work: _Work):
        stage = work.stage
        if stage is Stage.response and starts_in_reasoning(work.text):
            stage = Stage.reasoning
        self._work = work
        self._reader = ResponseReader(judging.model, stage)
        self.running = RunningVerdict(judging.model, judging.policy, stage, judging.debounce)
        self._at = 0
        self._queue: list[Tokens] = []
        self._failed = False
        self.session: Session | None = None
        try:
            self.session = judging.run(lambda: judging.model.open(work.context))
        except Exception as error:
            self.fail(error)

    @property
    def done(self) -> bool:
        finished = self._at > len(self._work.text) and not self._queue
        return self._failed or self.running.stopped or finished

    def next_tokens(self) -> list[Tokens]:
        """The next group of tokens, as a list of one; empty at the end."""
        text = self._work.text
        while not self._queue and self._at <= len(text) and not self._failed:
            self._queue = self._reader.push(text[self._at : self._at + FEED_CHARS])[1]
            self._at += FEED_CHARS
            if self._at >= len(text):
                self._queue += self._reader.finish()[1]
                self._at = len(text) + 1
        return [self._queue.pop(0)] if self._queue and not self._failed else []

    def fail(self, error: BaseException) -> None:
        self._failed, self._work.error = True, error

    def close(self) -> None:
        if self.session is not None:
            self.session.close()
        if not self._failed:
            self._work.verdict = self.running.verdict


def _read(item: Item, stage: Stage | None) -> tuple[tuple[Message, ...], list[Part]]:
    if isinstance(item, str):
        return (), [Part(stage or Stage.prompt, item)]
    if not isinstance(item, Sequence):
        raise MessageError(f"expected a text or a list of messages, got {type(item).__name__}")
    if not item:
        raise MessageError("an empty list of messages: nothing to judge")
    messages = read_messages(cast(Sequence[Message | Mapping[str, Any]], item))
    return tuple(messages[:-1]), messages[-1].parts(stage)


def _with_view(work: _Work, views: bool) -> list[_Work]:
    if views:
        from guardkit.normalize import normalized_view

        view = normalized_view(work.text)
        if view is not None:
            return [work, _Work(work.item, work.stage, view.text, work.context, view.to_original)]
    return [work]


def _by_item(work: Sequence[_Work], count: int) -> list[list[_Work]]:
    groups: list[list[_Work]] = [[] for _ in range(count)]
    for w in work:
        groups[w.item].append(w)
    return groups


def _outcome(
    parts: Sequence[Part], work: Sequence[_Work], error: BaseException | None, stage: Stage | None, latency_ms: float
) -> Outcome:
    worst: Verdict | None = None
    for w in work:
        error = error or w.error
        verdict = w.located()
        if verdict is not None and (worst is None or verdict.severity > worst.severity):
            worst = verdict
    characters = sum(len(p.text or "") for p in parts)
    if worst is not None:
        return Outcome(worst.stage, replace(worst, latency_ms=latency_ms), error, characters)
    first = parts[0].stage if parts else stage or Stage.prompt
    return Outcome(first, None, error, characters)

"""`Guard`: a model and a policy behind one small interface, sync and async."""

from __future__ import annotations

import contextlib
import contextvars
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, cast

from guardkit.audit import Audit, Sink
from guardkit.errors import GuardkitError, GuardViolation, MessageError, NotJudged
from guardkit.judge import DEBOUNCE, ResponseReader, RunningVerdict, Tokens, empty_verdict, verdict_of
from guardkit.messages import Message, Part, read_messages, starts_in_reasoning
from guardkit.models.base import Query, Session, StreamModel
from guardkit.models.registry import DEFAULT_MODEL, load_model
from guardkit.policy import DEFAULT_POLICY, Action, Decision, Policy, parse_on_error
from guardkit.stream import HOLDBACK, AsyncStreamGuard, StreamGuard
from guardkit.verdict import SEVERITIES, Stage, Verdict

Item = str | Sequence[Message | Mapping[str, Any]]
"""What can be judged: a text, or messages of which the last is judged."""

FEED_CHARS = 1 << 16  # a long response is judged this many characters at a time
_T = TypeVar("_T")


@dataclass(frozen=True)
class _Outcome:
    """What became of one item: a verdict, or why there is none. Both where one part could not be judged."""

    stage: Stage
    verdict: Verdict | None
    error: BaseException | None
    characters: int


class Guard:
    """Judges texts with one model under one policy. Safe to share between threads and tasks; load it once.

    policy: a built-in's name, a `Policy`, a mapping or a YAML file. on_error: overrides the policy's action for what
    cannot be judged. timeout: seconds that one model call may take before the text counts as not judged.
    holdback, debounce: the defaults of `stream`. normalize: whether `check` also judges the de-obfuscated view, for
    models that ask for it. audit: a callable or a JSONL path that gets a record of every decision and stream.
    """

    def __init__(
        self,
        model: StreamModel,
        *,
        policy: str | Path | Policy | Mapping[str, Any] = DEFAULT_POLICY,
        on_error: str | Action | None = None,
        timeout: float | None = None,
        holdback: int = HOLDBACK,
        debounce: int = DEBOUNCE,
        normalize: bool = True,
        audit: Sink | str | Path | None = None,
        audit_text: bool = False,
    ):
        self.model = model
        self.policy = Policy.load(policy)
        if on_error is not None:
            self.policy = Policy(
                self.policy.name,
                extends=self.policy.extends,
                on_error=parse_on_error(on_error),
                rules=self.policy.own_rules,
            )
        if timeout is not None and timeout <= 0:
            raise ValueError(f"timeout must be above 0 seconds, not {timeout}")
        self.timeout, self.holdback, self.debounce, self.normalize = timeout, holdback, debounce, normalize
        self._audit = Audit(audit, model.name, audit_text) if audit is not None else None
        self._pool: ThreadPoolExecutor | None = None

    @classmethod
    def load(
        cls,
        name: str = DEFAULT_MODEL,
        *,
        device: str | None = None,
        dtype: str | None = None,
        revision: str | None = None,
        model: str | None = None,
        threads: int | None = None,
        **settings: Any,
    ) -> Guard:
        """Load a model by name, folder or server address, and guard with it.

        `device`, `dtype`, `revision`, `model` (a server's model name) and `threads` go to the model, where it takes
        them; the rest are the settings of `Guard`. Raises a `ModelError` or `PolicyError`.
        """
        options = {"device": device, "dtype": dtype, "revision": revision, "model": model, "threads": threads}
        given = {k: v for k, v in options.items() if v is not None}
        try:
            loaded = load_model(name, **given)
        except TypeError as error:
            raise GuardkitError(f"model '{name}' does not take these options: {', '.join(given)} ({error})") from error
        return cls(loaded, **settings)

    # -- check: the verdict alone

    def check(self, item: Item, *, stage: Stage | str | None = None, normalize: bool | None = None) -> Verdict:
        """Judge a text (a prompt, unless `stage` says otherwise) or the last of some messages.

        Raises `NotJudged` where there is no verdict, `MessageError` for a message that cannot be read.
        """
        return self.check_batch([item], stage=stage, normalize=normalize)[0]

    def check_batch(
        self, items: Sequence[Item], *, stage: Stage | str | None = None, normalize: bool | None = None
    ) -> list[Verdict]:
        """`check` for many, in one batch; order is kept. Raises `NotJudged` for the first item without a verdict."""
        verdicts = []
        for i, outcome in enumerate(self._judge(items, stage, normalize)):
            if outcome.error is not None or outcome.verdict is None:
                if isinstance(outcome.error, MessageError):
                    raise outcome.error
                raise NotJudged(f"item {i} was not judged: {_describe(outcome.error)}") from outcome.error
            verdicts.append(outcome.verdict)
        return verdicts

    async def acheck(self, item: Item, *, stage: Stage | str | None = None, normalize: bool | None = None) -> Verdict:
        return await _off_loop(lambda: self.check(item, stage=stage, normalize=normalize))

    async def acheck_batch(
        self, items: Sequence[Item], *, stage: Stage | str | None = None, normalize: bool | None = None
    ) -> list[Verdict]:
        return await _off_loop(lambda: self.check_batch(items, stage=stage, normalize=normalize))

    # -- decide: verdict and policy

    def decide(self, item: Item, *, stage: Stage | str | None = None) -> Decision:
        """`check` plus policy. Never raises for what cannot be judged: `judged` is False and `on_error` acts."""
        return self.decide_batch([item], stage=stage)[0]

    def decide_batch(self, items: Sequence[Item], *, stage: Stage | str | None = None) -> list[Decision]:
        start = time.perf_counter()
        decisions = []
        for item, outcome in zip(items, self._judge(items, stage, None), strict=True):
            if outcome.verdict is not None:
                decision = self.policy.decide(outcome.verdict)
            else:
                decision = Decision(Action.allow, None, "on_error", False, outcome.stage)
            if outcome.error is not None or outcome.verdict is None:
                decision = self.not_judged(_describe(outcome.error), outcome.stage, decision)
            text = item if isinstance(item, str) else None
            self.record(decision, text, outcome.characters, (time.perf_counter() - start) * 1e3, "check")
            decisions.append(decision)
        return decisions

    async def adecide(self, item: Item, *, stage: Stage | str | None = None) -> Decision:
        return await _off_loop(lambda: self.decide(item, stage=stage))

    async def adecide_batch(self, items: Sequence[Item], *, stage: Stage | str | None = None) -> list[Decision]:
        return await _off_loop(lambda: self.decide_batch(items, stage=stage))

    def enforce(self, item: Item, *, stage: Stage | str | None = None) -> Decision:
        """`decide`, but a block raises `GuardViolation`; returns the decision otherwise."""
        decision = self.decide(item, stage=stage)
        if decision.action is Action.block:
            raise GuardViolation(decision)
        return decision

    async def aenforce(self, item: Item, *, stage: Stage | str | None = None) -> Decision:
        return await _off_loop(lambda: self.enforce(item, stage=stage))

    # -- streams

    def stream(
        self,
        messages: Item = (),
        *,
        stage: Stage | str = Stage.response,
        holdback: int | None = None,
        debounce: int | None = None,
    ) -> StreamGuard:
        """Judge a response as it arrives. `messages` is what it answers: context, not judged itself.

        stage: "response" (default), "reasoning" for a text that starts inside its reasoning, or "tool_call".
        holdback: tokens kept back until judged; debounce: consecutive flagged tokens that make a flag.
        """
        context = [Message("user", messages)] if isinstance(messages, str) else read_messages(messages)
        return StreamGuard(
            self,
            context,
            stage=_stage(stage) or Stage.response,
            holdback=self.holdback if holdback is None else holdback,
            debounce=self.debounce if debounce is None else debounce,
        )

    def astream(
        self,
        messages: Item = (),
        *,
        stage: Stage | str = Stage.response,
        holdback: int | None = None,
        debounce: int | None = None,
    ) -> AsyncStreamGuard:
        """The async twin of `stream`."""
        return AsyncStreamGuard(self.stream(messages, stage=stage, holdback=holdback, debounce=debounce))

    # -- shared with streams and integrations

    def run(self, call: Callable[[], _T]) -> _T:
        """A model call under the guard's timeout. Raises TimeoutError; the late call's result is dropped."""
        if self.timeout is None:
            return call()
        if self._pool is None:
            self._pool = ThreadPoolExecutor(max_workers=8, thread_name_prefix="guardkit")
        future = self._pool.submit(contextvars.copy_context().run, call)
        try:
            return future.result(self.timeout)
        except FutureTimeout:
            future.cancel()
            raise TimeoutError(f"the model took longer than {self.timeout} s") from None

    def not_judged(self, error: str, stage: Stage, so_far: Decision) -> Decision:
        """The decision for what could not (wholly) be judged: at least the action of `on_error`."""
        if so_far.verdict is not None and so_far.action > self.policy.on_error:
            return replace(so_far, judged=False, error=error)
        return Decision(self.policy.on_error, None, f"{self.policy.name}: on_error", False, stage, error)

    def record(self, decision: Decision, text: str | None, characters: int, latency_ms: float, surface: str) -> None:
        """Hand a decision to the audit sink, where there is one."""
        if self._audit is not None:
            self._audit(decision, text, characters, latency_ms, surface)

    # -- judging

    def _judge(self, items: Sequence[Item], stage: Stage | str | None, normalize: bool | None) -> list[_Outcome]:
        """Every item's outcome. Parts of all items share batches; a fault of one item does not touch the others."""
        if isinstance(items, str):
            raise MessageError("a batch is a list of items; for one text use check")
        start = time.perf_counter()
        wanted = _stage(stage)
        views = (self.normalize if normalize is None else normalize) and self.model.judges_normalized_view
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

    def __init__(self, guard: Guard, work: _Work):
        stage = work.stage
        if stage is Stage.response and starts_in_reasoning(work.text):
            stage = Stage.reasoning
        self._work = work
        self._reader = ResponseReader(guard.model, stage)
        self.running = RunningVerdict(guard.model, guard.policy, stage, guard.debounce)
        self._at = 0
        self._queue: list[Tokens] = []
        self._failed = False
        self.session: Session | None = None
        try:
            self.session = guard.run(lambda: guard.model.open(work.context))
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
) -> _Outcome:
    worst: Verdict | None = None
    for w in work:
        error = error or w.error
        verdict = w.located()
        if verdict is not None and (worst is None or verdict.severity > worst.severity):
            worst = verdict
    characters = sum(len(p.text or "") for p in parts)
    if worst is not None:
        return _Outcome(worst.stage, replace(worst, latency_ms=latency_ms), error, characters)
    first = parts[0].stage if parts else stage or Stage.prompt
    return _Outcome(first, None, error, characters)


def _describe(error: BaseException | None) -> str:
    return (
        "no verdict"
        if error is None
        else str(error)
        if isinstance(error, GuardkitError)
        else f"{type(error).__name__}: {error}"
    )


def _stage(stage: Stage | str | None) -> Stage | None:
    if stage is None or isinstance(stage, Stage):
        return stage
    with contextlib.suppress(ValueError):
        return Stage(stage)
    raise GuardkitError(f"unknown stage '{stage}'; known: {', '.join(s.value for s in Stage)}")


async def _off_loop(call: Callable[[], _T]) -> _T:
    import asyncio

    return await asyncio.to_thread(call)

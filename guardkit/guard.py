"""`Guard`: a model and a policy behind one small interface, sync and async."""

from __future__ import annotations

import contextlib
import functools
import importlib
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

from guardkit import telemetry
from guardkit.astream import Answered, AsyncStreamGuard, Fed, Feeds
from guardkit.audit import Audit, Sink
from guardkit.batch import Item, Judging, Outcome, Round, size_of
from guardkit.errors import GuardkitError, GuardViolation, MessageError, MissingExtra, NotJudged, Overloaded
from guardkit.judge import DEBOUNCE
from guardkit.messages import Message, read_messages
from guardkit.models.base import StreamModel
from guardkit.models.registry import DEFAULT_MODEL, load_model
from guardkit.policy import DEFAULT_POLICY, MARK, Action, Decision, Policy
from guardkit.runner import arun, off_loop, run
from guardkit.stream import HOLDBACK, StreamGuard
from guardkit.verdict import Category, Stage, Verdict

UNCLEAR = (0.05, 0.95)  # where the first of two models is too unsure to have the last word
CHAINS = "langchain_guardkit"  # the module that makes guards steps of a chain
SMALL = 1024  # characters of texts that are read on an event loop


class Guard:
    """Judges texts with one model under one policy. Safe to share between threads and tasks; load it once.

    policy: a built-in's name, a `Policy`, a mapping or a YAML file. on_error: overrides the policy's action for what
    cannot be judged. timeout: seconds that one piece of work may wait (to be read, and for the model) and take before
    the text counts as not judged.
    holdback, debounce: the defaults of `stream`. threshold: the probability of "unsafe" from which on a text is unsafe,
    and of harm from which on it is controversial, in place of the model's own. locate: how many further queries finding
    the flagged place in a text may take; True leaves it to the model, False names the whole text. normalize: whether
    `check` also judges the de-obfuscated view, for models that ask for it. then, when: a second, stronger model that
    `check` and `decide` ask where the first one's probability of "not safe" lies in the band `when` (ends included), or
    where the first one fails; streams are judged by the first alone. The verdict's `model` says who judged. exact: all
    by the whole model; else nano settles clearly harmless queries by less, unless a `threshold`, a second model or a
    rule on scores asks for more. audit: a callable or a JSONL path that gets a record of every decision and stream.
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
        threshold: float | None = None,
        locate: bool | int = True,
        then: StreamModel | None = None,
        when: tuple[float, float] = UNCLEAR,
        exact: bool = False,
        audit: Sink | str | Path | None = None,
        audit_text: bool = False,
    ):
        if threshold is not None and not 0 < threshold <= 1:
            raise ValueError(f"threshold must be a probability above 0, not {threshold}")
        self.model = model if threshold is None else model.with_threshold(threshold)
        self.then = then if then is None or threshold is None else then.with_threshold(threshold)
        self.policy = Policy.load(policy, categories=self.categories)
        if on_error is not None:
            self.policy = self.policy.on_errors(on_error)
        if timeout is not None and timeout <= 0:
            raise ValueError(f"timeout must be above 0 seconds, not {timeout}")
        if holdback < 0 or debounce < 1:
            raise ValueError(f"holdback must be >= 0 and debounce >= 1, not {holdback} and {debounce}")
        if not 0 <= when[0] <= when[1] <= 1:
            raise ValueError(f"when must be two probabilities, the lower one first, not {when}")
        self.when, self.locate, self.exact, self.normalize = when, locate, exact, normalize
        self.timeout, self.holdback, self.debounce = timeout, holdback, debounce
        if normalize and model.judges_normalized_view:  # now, and not when some thread or forked child reads its first
            importlib.import_module("guardkit.normalize")
        self._audit = Audit(audit, model.name, audit_text) if audit is not None else None
        self._closed = False
        for each in filter(None, (self.model, self.then)):
            each.holders.add(self)

    @classmethod
    def load(
        cls,
        name: str | Path = DEFAULT_MODEL,
        *,
        device: str | None = None,
        dtype: str | None = None,
        revision: str | None = None,
        model: str | None = None,
        threads: int | None = None,
        cache_gib: float | None = None,
        max_streams: int | None = None,
        gpu_share: float | None = None,
        quantize: str | None = None,
        categories: Sequence[str] | None = None,
        process: bool | str | Path | None = None,
        then: str | Path | None = None,
        **settings: Any,
    ) -> Guard:
        """Load a model by name, folder or server address, and guard with it.

        These go to the model, where it takes them: `device`, `dtype`, `revision` (of a hub's repository), `model` (a
        server's model name), `threads` (CPU), `cache_gib` (memory for keys and values), `max_streams` (open at once),
        `gpu_share` (of a GPU's memory, at most, for this model),
        `quantize` ("int8": Qwen3Guard's weights in 8 bits), `categories` (the labels of a server's Gen that was trained
        on others than Qwen3Guard's). `process=True` keeps the model in a process of its own, which ends with its last
        user; a private folder in place of True is where several programs find one and the same.
        `then` names a second model (see `Guard`): all of these then go to it, `threads` to both, `process` to both but
        nano. The rest are the settings of `Guard`. Raises a `ModelError` or `PolicyError`.
        """
        options = {
            "device": device, "dtype": dtype, "revision": revision, "model": model, "threads": threads,
            "cache_gib": cache_gib, "max_streams": max_streams, "gpu_share": gpu_share,
            "quantize": quantize, "categories": categories, "process": process,
        }  # fmt: skip
        given = {k: v for k, v in options.items() if v is not None}
        if then is None:
            return cls(_load(name, given), **settings)
        to_both = ("threads",) if name == DEFAULT_MODEL else ("threads", "process")
        own = {k: v for k, v in given.items() if k in to_both}
        return cls(_load(name, own), then=_load(then, given), **settings)

    @property
    def categories(self) -> tuple[Category, ...]:
        """All that the guard's models name: Qwen3Guard's nine, or those that a model was trained on."""
        return tuple(dict.fromkeys(c for model in filter(None, (self.model, self.then)) for c in model.categories))

    def close(self) -> None:
        """End the model's thread and free its memory, unless another guard holds the model too. What is called later
        raises `GuardkitError`; streams that are open end as not judged. Safe to call twice."""
        self._closed = True
        for model in filter(None, (self.model, self.then)):
            model.holders.discard(self)
            if not model.holders:
                model.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise GuardkitError("this guard was closed; load another one")

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A guard that arrives in another process: its model is loaded there, by name."""
        vars(self).update(state)
        for model in filter(None, (self.model, self.then)):
            model.holders.add(self)

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
        return _verdicts(self._judge(items, stage, normalize))

    async def acheck(self, item: Item, *, stage: Stage | str | None = None, normalize: bool | None = None) -> Verdict:
        return (await self.acheck_batch([item], stage=stage, normalize=normalize))[0]

    async def acheck_batch(
        self, items: Sequence[Item], *, stage: Stage | str | None = None, normalize: bool | None = None
    ) -> list[Verdict]:
        return _verdicts(await self._ajudge(items, stage, normalize))

    # -- decide: verdict and policy

    def decide(self, item: Item, *, stage: Stage | str | None = None) -> Decision:
        """`check` plus policy. Never raises for what cannot be judged: `judged` is False and `on_error` acts."""
        return self.decide_batch([item], stage=stage)[0]

    def decide_batch(
        self, items: Sequence[Item], *, stage: Stage | str | None = None, audit: bool = True
    ) -> list[Decision]:
        """`decide` for many, in one batch; order is kept. audit: whether the audit sink gets records of them."""
        start = time.perf_counter()
        return self._decisions(items, self._judge(items, stage, None), start, audit)

    async def adecide(self, item: Item, *, stage: Stage | str | None = None) -> Decision:
        return (await self.adecide_batch([item], stage=stage))[0]

    async def adecide_batch(self, items: Sequence[Item], *, stage: Stage | str | None = None) -> list[Decision]:
        start = time.perf_counter()
        return self._decisions(items, await self._ajudge(items, stage, None), start)

    def _decisions(
        self, items: Sequence[Item], outcomes: Sequence[Outcome], start: float, audit: bool = True
    ) -> list[Decision]:
        decisions = []
        for item, outcome in zip(items, outcomes, strict=True):
            decision = self.decided(outcome)
            if audit:
                self.record(decision, item, outcome.characters, (time.perf_counter() - start) * 1e3, "check")
            decisions.append(decision)
        return decisions

    def enforce(self, item: Item, *, stage: Stage | str | None = None) -> Decision:
        """`decide`, but a block raises `GuardViolation`; returns the decision otherwise."""
        return _enforced(self.decide(item, stage=stage))

    async def aenforce(self, item: Item, *, stage: Stage | str | None = None) -> Decision:
        return _enforced(await self.adecide(item, stage=stage))

    def redact(self, text: str, *, stage: Stage | str | None = None, mark: str = MARK) -> str:
        """`text` with `mark` in place of every sentence that the policy blocks or redacts; as it is where it passes.
        What cannot be judged, or still does not pass, is replaced as a whole."""
        from guardkit.redact import redact

        return redact(self, text, _stage(stage), mark)

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
        self._check_open()
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

    def feed_many(self, fed: Sequence[Fed]) -> list[Answered]:
        """`feed` for many streams of this guard's model in one call, and one pass where their tokens fit: pairs of a
        stream and its delta (text, or token ids), each stream once. Gives what each `feed` would, in order; a stream
        that fails gives its error in place of events, and the others go on."""
        self._check_open()
        return Feeds(self.model, fed).run(self.timeout)

    async def afeed_many(self, fed: Sequence[Fed]) -> list[Answered]:
        """`feed_many` for an event loop."""
        self._check_open()
        return await Feeds(self.model, fed).arun(self.timeout)

    # -- as a step of a chain

    def as_runnable(self, **settings: Any) -> Any:
        """This guard as a step of a LangChain chain; `settings` are those of `GuardRunnable`. Raises `MissingExtra`."""
        try:
            return importlib.import_module(CHAINS).GuardRunnable(self, **settings)
        except ImportError as error:
            raise MissingExtra("Guard.as_runnable()", "langchain") from error

    def __or__(self, other: Any) -> Any:
        return self.as_runnable() | other

    def __call__(self, value: object) -> NoReturn:
        # LangChain makes a step of any callable, so `chain | guard` ends here: as a function it could not stream.
        raise TypeError("a Guard is no step of a chain by itself: write `chain | guard.as_runnable()`")

    # -- shared with streams and integrations

    def not_judged(self, error: str, stage: Stage, so_far: Decision | None) -> Decision:
        """The decision for what could not (wholly) be judged: at least the action of `on_error`."""
        if so_far is not None and so_far.verdict is not None and so_far.action > self.policy.on_error:
            return replace(so_far, judged=False, error=error)
        return Decision(self.policy.on_error, None, f"{self.policy.name}: on_error", False, stage, error)

    def decided(self, outcome: Outcome) -> Decision:
        """The decision for what became of an item."""
        if outcome.error is not None or outcome.decision is None:
            decision = self.not_judged(_describe(outcome.error), outcome.stage, outcome.decision)
            return replace(decision, overloaded=isinstance(outcome.error, Overloaded))
        return outcome.decision

    def _judge(self, items: Sequence[Item], stage: Stage | str | None, normalize: bool | None) -> list[Outcome]:
        steps = self._steps(items, stage, normalize)
        results: list[Any] | None = None
        with telemetry.checking(self, items) as check:
            while not isinstance(asked := _sent(steps, results), list):
                results = run(*asked)
            return check.found(asked)

    async def _ajudge(self, items: Sequence[Item], stage: Stage | str | None, normalize: bool | None) -> list[Outcome]:
        here = size_of(items, SMALL) <= SMALL
        steps = self._steps(items, stage, normalize, here)
        results: list[Any] | None = None
        with telemetry.checking(self, items) as check:
            while True:
                # Texts are read and normalised: a few words here, more in a thread.
                asked = _sent(steps, results) if here else await off_loop(functools.partial(_sent, steps, results))
                if isinstance(asked, list):
                    return check.found(asked)
                results = await arun(*asked, here=here)

    def _steps(
        self, items: Sequence[Item], stage: Stage | str | None, normalize: bool | None, here: bool = False
    ) -> Generator[Round, list[Any], list[Outcome]]:
        """What a batch asks of the models: yields what is to be run, is sent the results."""
        self._check_open()
        if isinstance(items, str):
            raise MessageError("a batch is a list of items; for one text use check")
        views = self.normalize if normalize is None else normalize
        outcomes = yield from self._judging(self.model, items, stage, views, here)
        unclear = [i for i, outcome in enumerate(outcomes) if self._is_unclear(outcome)] if self.then else []
        if self.then is not None and unclear:
            second = yield from self._judging(self.then, [items[i] for i in unclear], stage, views, here)
            for i, outcome in zip(unclear, second, strict=True):
                outcomes[i] = outcome
        return outcomes

    def _judging(
        self, model: StreamModel, items: Sequence[Item], stage: Stage | str | None, views: bool, here: bool
    ) -> Generator[Round, list[Any], list[Outcome]]:
        early = not self.exact and self.then is None and model.threshold is None
        judging = Judging(model, self.policy, self.debounce, model.n_locate(self.locate), self.timeout, early)
        return judging.ask(items, _stage(stage), views and model.judges_normalized_view, here)

    def _is_unclear(self, outcome: Outcome) -> bool:
        if outcome.error is not None:
            return not isinstance(outcome.error, MessageError)
        flagged = [1 - d.verdict.scores["safe"] for d in outcome.found if d.verdict is not None]
        return bool(flagged) and self.when[0] <= max(flagged) <= self.when[1]

    @property
    def keeps_text(self) -> bool:
        """Whether the audit's records hold the text."""
        return self._audit is not None and self._audit.with_text

    def record(self, decision: Decision, text: object, characters: int, latency_ms: float, surface: str) -> None:
        """Hand a decision to the audit sink, where there is one. A sink's error is logged: the decision stands."""
        if self._audit is not None:
            try:
                self._audit(decision, text, characters, latency_ms, surface)
            except Exception:
                import logging

                logging.getLogger("guardkit").exception("the audit sink failed")


def _load(name: str | Path, options: dict[str, Any]) -> StreamModel:
    if not isinstance(name, str | Path):
        raise GuardkitError(f"a model is named by a string or a path, not by {type(name).__name__}")
    try:
        return load_model(name, **options)
    except TypeError as error:
        raise GuardkitError(f"model '{name}' does not take these options: {', '.join(options)} ({error})") from error


def _describe(error: BaseException | None) -> str:
    if error is None:
        return "no verdict"
    return str(error) if isinstance(error, GuardkitError) else f"{type(error).__name__}: {error}"


def _stage(stage: Stage | str | None) -> Stage | None:
    if stage is None or isinstance(stage, Stage):
        return stage
    with contextlib.suppress(ValueError):
        return Stage(stage)
    raise GuardkitError(f"unknown stage '{stage}'; known: {', '.join(s.value for s in Stage)}")


def _sent(steps: Generator[Round, list[Any], list[Outcome]], results: list[Any] | None) -> Round | list[Outcome]:
    try:
        return steps.send(results)  # type: ignore[arg-type]
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]


def _verdicts(outcomes: Sequence[Outcome]) -> list[Verdict]:
    verdicts = []
    for i, outcome in enumerate(outcomes):
        if outcome.error is not None or outcome.verdict is None:
            if isinstance(outcome.error, MessageError):
                raise outcome.error
            raise NotJudged(f"item {i} was not judged: {_describe(outcome.error)}") from outcome.error
        verdicts.append(outcome.verdict)
    return verdicts


def _enforced(decision: Decision) -> Decision:
    if decision.action is Action.block:
        raise GuardViolation(decision)
    return decision

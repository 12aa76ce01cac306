"""`GuardRunnable`: the guard as a step of a chain, `prompt | guard | llm | guard | parser`, or around a whole one."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import get_config_list, merge_configs

from guardkit import Guard, Stage
from langchain_guardkit.enforcing import (
    VIOLATION_MESSAGE,
    Enforcement,
    ExitBehavior,
    OnViolation,
    Policies,
    ViolationMessage,
)
from langchain_guardkit.runs import arun_of, run_of
from langchain_guardkit.sequence import guarded_sequence, is_graph
from langchain_guardkit.settling import Settlement, fields_of, settlements, stage_of
from langchain_guardkit.trying import Once, with_fallbacks, without_violations
from langchain_guardkit.unobserved import Unobserved, asteps_unobserved, steps_unobserved
from langchain_guardkit.value_flow import NOTHING, ValueFlow, achained, ajudged, chained, judged


class GuardRunnable(Once, Runnable[Any, Any]):
    """Judges what flows through it and hands it on unchanged when it is allowed.

    It reads strings, prompt values, messages, documents, and lists and dicts of them. Messages and documents are judged
    at their own stages, each output with the messages before it as its context. A string does not say where it comes
    from: in one piece it is judged both as a prompt and as a response, streamed in as a response; `stage` says which.

    runnable: a chain to guard as a whole, `GuardRunnable(chain, guard)` for short. What goes in is judged as a prompt,
    what comes out as a response, and the chain runs unobserved. input_key, output_key: the field of a dict that holds
    the prompt, or the response; the others are then not judged.
    exit_behavior: "error" raises `GuardViolation`; "replace" puts the violation message where the offending text
    stood; "end" lets the violation message alone go on (a chain around which this stands is not run). What a stream
    let out before the violation stays shown. violation_message, on_violation, policies: see `Enforcement`.
    The run's tags and metadata carry the decision ("guardkit"). holdback: tokens that streams hold back.
    """

    def __init__(
        self,
        guard: Guard | Runnable[Any, Any],
        runnable: Runnable[Any, Any] | Guard | None = None,
        *,
        stage: Stage | str | None = None,
        exit_behavior: ExitBehavior = "error",
        violation_message: ViolationMessage = VIOLATION_MESSAGE,
        holdback: int | None = None,
        name: str | None = None,
        input_key: str | None = None,
        output_key: str | None = None,
        on_violation: OnViolation | None = None,
        policies: Policies | None = None,
        **more: Any,
    ):
        if isinstance(guard, Runnable):  # the chain first, then its guard
            guard, runnable = more.pop("guard", runnable), guard
        if more:
            raise TypeError(f"GuardRunnable() got an unexpected keyword argument '{next(iter(more))}'")
        if runnable is not None and not isinstance(runnable, Runnable):
            raise TypeError(f"GuardRunnable guards a runnable, not {type(runnable).__name__}")
        self.enforcement = Enforcement(guard, exit_behavior, violation_message, on_violation, policies or {})  # type: ignore[arg-type]
        self.stage = stage_of(stage)
        self.holdback = holdback
        self.runnable = runnable
        self.name = name or "guard"
        self._in = fields_of(input_key, Stage.prompt)
        self._out = fields_of(output_key, Stage.response)
        if runnable is None:  # a step judges both in what flows through it
            self._in = self._out = (*self._in, *self._out)
        self.input_key, self.output_key = input_key, output_key
        self._pending: dict[int, tuple[Any, Settlement]] = {}

    @property
    def InputType(self) -> Any:
        return Any if self.runnable is None else self.runnable.InputType

    @property
    def OutputType(self) -> Any:
        return Any if self.runnable is None else self.runnable.OutputType

    def __repr__(self) -> str:
        stage = f", stage='{self.stage.value}'" if self.stage else ""
        around = f", {self.runnable!r}" if self.runnable is not None else ""
        return f"GuardRunnable({self.enforcement.guard.model.name}{around}{stage}, {self.enforcement.exit_behavior})"

    def __or__(self, other: Any) -> Any:
        """A chain whose input is judged before any run of it begins; a graph becomes a guarded graph."""
        if self.runnable is None and is_graph(other):
            from langchain_guardkit.guarded_graph import guard_graph

            return guard_graph(
                other,
                self.enforcement.guard,
                exit_behavior=self.enforcement.exit_behavior,
                violation_message=self.enforcement.violation_message,
                on_violation=self.enforcement.on_violation,
                policies=self.enforcement.policies,
            )
        plain = Runnable.__or__(self, other)
        return guarded_sequence(plain.steps) if hasattr(plain, "steps") else plain

    def with_retry(self, **settings: Any) -> Any:
        """As any runnable's, but for violations. Around a chain: the chain is tried again, and what comes out of it is
        judged."""
        if self.runnable is None:
            return super().with_retry(**settings)
        return self._with(self.runnable.with_retry(**without_violations(settings)))

    def with_fallbacks(self, fallbacks: Sequence[Any], **settings: Any) -> Any:
        """Around a chain: as any runnable's, but for violations, and what the fallbacks give is judged like the chain's
        own. Of a step, which has no other faults: what is to be done about a violation."""
        if self.runnable is None:
            return Runnable.with_fallbacks(self, fallbacks, **settings)
        return self._with(with_fallbacks(self.runnable, fallbacks, **settings))

    def _with(self, runnable: Runnable[Any, Any]) -> GuardRunnable:
        other = copy.copy(self)
        other.runnable, other._pending = runnable, {}
        return other

    # -- whole values

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        if self.runnable is not None:
            return self._around(input, config, kwargs)
        found = self.settled(input) or self.consider([input], [config], **kwargs)[0]
        return self._call_with_config(found.finish, found.shown, self._marked(config))

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        if self.runnable is not None:
            return await self._aaround(input, config, kwargs)
        found = self.settled(input)
        if found is None:
            (found,) = await asyncio.to_thread(self.consider, [input], [config], **kwargs)
        return await self._acall_with_config(found.afinish, found.shown, self._marked(config))

    def batch(
        self,
        inputs: list[Any],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[Any]:
        """All inputs in one batch of the guard; a violation in one leaves the others alone."""
        if self.runnable is not None or not inputs:
            return super().batch(inputs, config, return_exceptions=return_exceptions, **kwargs)
        configs = get_config_list(config, len(inputs))
        found = self.consider(inputs, configs, **kwargs)
        return self._batch_with_config(
            lambda values, run_manager: [f.result(run) for f, run in zip(found, run_manager, strict=True)],
            [f.shown for f in found],
            [self._marked(c) for c in configs],
            return_exceptions=return_exceptions,
        )

    async def abatch(
        self,
        inputs: list[Any],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[Any]:
        if self.runnable is not None or not inputs:
            return await super().abatch(inputs, config, return_exceptions=return_exceptions, **kwargs)
        configs = get_config_list(config, len(inputs))
        found = await asyncio.to_thread(self.consider, inputs, configs, **kwargs)

        async def results(values: list[Any], run_manager: list[Any]) -> list[Any]:
            return [f.result(run) for f, run in zip(found, run_manager, strict=True)]

        return await self._abatch_with_config(
            results,
            [f.shown for f in found],
            [self._marked(c) for c in configs],
            return_exceptions=return_exceptions,
        )

    def consider(
        self, values: Sequence[Any], configs: Sequence[Any], stage: Stage | str | None = None
    ) -> list[Settlement]:
        """What becomes of values, before any run shows them: all in one batch where they share a policy."""
        runs = [self.enforcement.for_run(config) for config in configs]
        found: list[Settlement | None] = [None] * len(values)
        for run in {id(run): run for run in runs}.values():
            mine = [i for i, other in enumerate(runs) if other is run]
            asked = settlements(run, [values[i] for i in mine], stage_of(stage) or self._stage_in, self._in)
            for i, settlement in zip(mine, asked, strict=True):
                found[i] = settlement
        return [f for f in found if f is not None]

    @property
    def _stage_in(self) -> Stage | None:
        return self.stage or (Stage.prompt if self.runnable is not None else None)

    # -- settled before the run of a chain that begins with this

    def settle(self, value: Any, config: RunnableConfig | None) -> Any:
        """The value as a run may show it; this step finds its settlement when it comes to be run."""
        if self.is_settled(value):
            return value
        (found,) = self.consider([value], [config])
        self._pending[id(found.shown)] = (found.shown, found)
        return found.shown

    def settled(self, value: Any) -> Settlement | None:
        known = self._pending.pop(id(value), None)
        return known[1] if known is not None and known[0] is value else None

    def is_settled(self, value: Any) -> bool:
        known = self._pending.get(id(value))
        return known is not None and known[0] is value

    def unsettle(self, value: Any) -> None:
        self._pending.pop(id(value), None)

    # -- around a chain

    def _around(self, value: Any, config: RunnableConfig | None, kwargs: dict[str, Any]) -> Any:
        (found,) = self.consider([value], [config])
        enforcement = self.enforcement.for_run(config)
        runnable = self.runnable
        assert runnable is not None

        def run(shown: Any, run_manager: Any) -> Any:
            given = found.finish(shown, run_manager)
            if found.ended:
                return self._ended(found.ended)
            with Unobserved():
                output = runnable.invoke(given, **kwargs)
            (after,) = settlements(enforcement, [output], self.stage or Stage.response, self._out)
            return after.finish(output, run_manager)

        return self._call_with_config(run, found.shown, self._marked(config))

    async def _aaround(self, value: Any, config: RunnableConfig | None, kwargs: dict[str, Any]) -> Any:
        (found,) = await asyncio.to_thread(self.consider, [value], [config])
        enforcement = self.enforcement.for_run(config)
        runnable = self.runnable
        assert runnable is not None

        async def run(shown: Any, run_manager: Any) -> Any:
            given = found.finish(shown, run_manager)
            if found.ended:
                return self._ended(found.ended)
            with Unobserved():
                output = await runnable.ainvoke(given, **kwargs)
            stage = self.stage or Stage.response
            (after,) = await asyncio.to_thread(settlements, enforcement, [output], stage, self._out)
            return after.finish(output, run_manager)

        return await self._acall_with_config(run, found.shown, self._marked(config))

    def _ended(self, violation: Any) -> Any:
        """The violation message in the place of a chain's output."""
        from langchain_core.language_models import BaseChatModel

        text = violation.text
        if self.output_key is not None:
            return {self.output_key: text}
        last = self.runnable
        while hasattr(last, "last") or hasattr(last, "bound"):
            last = getattr(last, "last", None) or getattr(last, "bound", None)
        return violation.message if isinstance(last, BaseChatModel) else text

    # -- streams

    def stream(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Iterator[Any]:
        known = self.settled(input)
        if known is not None:
            yield from self._settled_stream(known, config)
        elif self.runnable is not None:
            (found,) = self.consider([input], [config])
            yield from run_of(self, self._marked(config), found.shown, lambda run: self._flowing(found, run, config))
        else:
            yield from self.transform(iter([input]), config, **kwargs)

    async def astream(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> AsyncIterator[Any]:
        async def source() -> AsyncIterator[Any]:
            yield input

        known = self.settled(input)
        if known is not None:
            for chunk in self._settled_stream(known, config):
                yield chunk
        elif self.runnable is not None:
            (found,) = await asyncio.to_thread(self.consider, [input], [config])
            async for chunk in arun_of(
                self, self._marked(config), found.shown, lambda run: self._aflowing(found, run, config)
            ):
                yield chunk
        else:
            async for chunk in self.atransform(source(), config, **kwargs):
                yield chunk

    def transform(self, input: Iterator[Any], config: RunnableConfig | None = None, **kwargs: Any) -> Iterator[Any]:
        if self.runnable is not None:
            yield from super().transform(input, config, **kwargs)
            return
        yield from run_of(self, self._marked(config), None, lambda run: self._transform(input, run, config, **kwargs))

    async def atransform(
        self, input: AsyncIterator[Any], config: RunnableConfig | None = None, **kwargs: Any
    ) -> AsyncIterator[Any]:
        if self.runnable is not None:
            source = super().atransform(input, config, **kwargs)
        else:
            source = arun_of(
                self, self._marked(config), None, lambda run: self._atransform(input, run, config, **kwargs)
            )
        async for chunk in source:
            yield chunk

    def _settled_stream(self, found: Settlement, config: RunnableConfig | None) -> Iterator[Any]:
        def once(run: Any) -> Iterator[Any]:
            yield found.finish(found.shown, run)

        yield from run_of(self, self._marked(config), found.shown, once)

    def _flowing(self, found: Settlement, run: Any, config: RunnableConfig | None) -> Iterator[Any]:
        assert self.runnable is not None
        given = found.finish(found.shown, run)
        if found.ended:
            yield self._ended(found.ended)
            return
        source = steps_unobserved(iter(self.runnable.stream(given)))
        yield from judged(source, self._flow(run, config, around=True))

    async def _aflowing(self, found: Settlement, run: Any, config: RunnableConfig | None) -> AsyncIterator[Any]:
        assert self.runnable is not None
        given = found.finish(found.shown, run)
        if found.ended:
            yield self._ended(found.ended)
            return
        source = asteps_unobserved(self.runnable.astream(given))
        async for chunk in ajudged(source, self._flow(run, config, around=True)):
            yield chunk

    def _transform(
        self, chunks: Iterator[Any], run: Any, config: RunnableConfig | None, stage: Stage | str | None = None
    ) -> Iterator[Any]:
        first = next(chunks, NOTHING)
        if first is NOTHING:
            return
        known = self.settled(first)
        if known is not None:
            yield known.finish(first, run)
            return
        yield from judged(chained(first, chunks), self._flow(run, config, stage))

    async def _atransform(
        self, chunks: AsyncIterator[Any], run: Any, config: RunnableConfig | None, stage: Stage | str | None = None
    ) -> AsyncIterator[Any]:
        first = await anext(chunks, NOTHING)
        if first is NOTHING:
            return
        known = self.settled(first)
        if known is not None:
            yield known.finish(first, run)
            return
        async for chunk in ajudged(achained(first, chunks), self._flow(run, config, stage)):
            yield chunk

    def _flow(
        self, run: Any, config: RunnableConfig | None, stage: Stage | str | None = None, around: bool = False
    ) -> ValueFlow:
        given = stage_of(stage) or self.stage or (Stage.response if around else None)
        return ValueFlow(self.enforcement.for_run(config), given, self._out, self.holdback, run)

    def _marked(self, config: RunnableConfig | None) -> RunnableConfig:
        """Tags and metadata of the run's own, to which the decision is added."""
        return merge_configs(
            config, {"tags": ["guardkit"], "metadata": {"guardkit_model": self.enforcement.guard.model.name}}
        )

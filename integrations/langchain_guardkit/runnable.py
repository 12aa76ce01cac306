"""`GuardRunnable`: the guard as a step of a chain, `prompt | guard | llm | guard | parser`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from langchain_core.messages import AIMessageChunk
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import get_config_list, merge_configs

from guardkit import Decision, Guard, GuardkitError, Stage
from langchain_guardkit.enforcing import (
    METADATA_KEY,
    VIOLATION_MESSAGE,
    Enforcement,
    ExitBehavior,
    summary,
    worst,
)
from langchain_guardkit.growing import StringFlow
from langchain_guardkit.streaming import ChunkFlow
from langchain_guardkit.values import decide_leaves, leaves_of, settle


class GuardRunnable(Runnable[Any, Any]):
    """Judges what flows through it and hands it on unchanged when it is allowed.

    It reads strings, prompt values, messages, documents, and lists and dicts of them. Messages and documents are judged
    at their own stages, each output with the messages before it as its context. A string does not say where it comes
    from: in one piece it is judged both as a prompt and as a response, streamed in as a response; `stage` says which.

    exit_behavior: "error" raises `GuardViolation`; "replace" puts the violation message where the offending text
    stood; "end" lets the violation message alone go on. What a stream let out before the violation stays shown.
    The run's tags and metadata carry the decision ("guardkit"). holdback: tokens that streams hold back.
    """

    def __init__(
        self,
        guard: Guard,
        *,
        stage: Stage | str | None = None,
        exit_behavior: ExitBehavior = "error",
        violation_message: str = VIOLATION_MESSAGE,
        holdback: int | None = None,
        name: str | None = None,
    ):
        self.enforcement = Enforcement(guard, exit_behavior, violation_message)
        self.stage = _stage(stage)
        self.holdback = holdback
        self.name = name or "guard"

    @property
    def InputType(self) -> Any:
        return Any

    @property
    def OutputType(self) -> Any:
        return Any

    def __repr__(self) -> str:
        stage = f", stage='{self.stage.value}'" if self.stage else ""
        return f"GuardRunnable({self.enforcement.guard.model.name}{stage}, {self.enforcement.exit_behavior})"

    # -- whole values

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        return self._call_with_config(self._judge_one, input, self._marked(config), **kwargs)

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        return await self._acall_with_config(self._ajudge_one, input, self._marked(config), **kwargs)

    def batch(
        self,
        inputs: list[Any],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[Any]:
        """All inputs in one batch of the guard; a violation in one leaves the others alone."""
        configs = [self._marked(c) for c in get_config_list(config, len(inputs))]
        return self._batch_with_config(self._judge_many, inputs, configs, return_exceptions=return_exceptions, **kwargs)

    async def abatch(
        self,
        inputs: list[Any],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[Any]:
        configs = [self._marked(c) for c in get_config_list(config, len(inputs))]
        return await self._abatch_with_config(
            self._ajudge_many, inputs, configs, return_exceptions=return_exceptions, **kwargs
        )

    def _judge_one(self, value: Any, run_manager: Any, stage: Stage | str | None = None) -> Any:
        return self._settled([value], [run_manager], stage)[0]

    async def _ajudge_one(self, value: Any, run_manager: Any, stage: Stage | str | None = None) -> Any:
        return await asyncio.to_thread(self._judge_one, value, run_manager, stage)

    def _judge_many(self, values: list[Any], run_manager: list[Any], stage: Stage | str | None = None) -> list[Any]:
        return self._settled(values, run_manager, stage, keep_errors=True)

    async def _ajudge_many(
        self, values: list[Any], run_manager: list[Any], stage: Stage | str | None = None
    ) -> list[Any]:
        return await asyncio.to_thread(self._judge_many, values, run_manager, stage)

    def _settled(
        self, values: Sequence[Any], runs: Sequence[Any], stage: Stage | str | None, keep_errors: bool = False
    ) -> list[Any]:
        leaves = [leaves_of(value, _stage(stage) or self.stage) for value in values]
        decisions = decide_leaves(self.enforcement, leaves)
        results: list[Any] = []
        for value, parts, found, run in zip(values, leaves, decisions, runs, strict=True):
            if found:
                annotate(run, worst(found))
            try:
                results.append(settle(self.enforcement, value, parts, found))
            except GuardkitError as error:
                if not keep_errors:
                    raise
                results.append(error)
        return results

    # -- streams

    def transform(self, input: Iterator[Any], config: RunnableConfig | None = None, **kwargs: Any) -> Iterator[Any]:
        yield from self._transform_stream_with_config(input, self._transform, self._marked(config), **kwargs)

    async def atransform(
        self, input: AsyncIterator[Any], config: RunnableConfig | None = None, **kwargs: Any
    ) -> AsyncIterator[Any]:
        async for chunk in self._atransform_stream_with_config(input, self._atransform, self._marked(config), **kwargs):
            yield chunk

    def stream(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Iterator[Any]:
        yield from self.transform(iter([input]), config, **kwargs)

    async def astream(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> AsyncIterator[Any]:
        async def source() -> AsyncIterator[Any]:
            yield input

        async for chunk in self.atransform(source(), config, **kwargs):
            yield chunk

    def _transform(self, chunks: Iterator[Any], run_manager: Any, stage: Stage | str | None = None) -> Iterator[Any]:
        flow = _ValueFlow(self, _stage(stage) or self.stage, run_manager)
        try:
            for chunk in chunks:
                yield from flow.push(chunk)
                if flow.stopped:
                    break
            yield from flow.finish()
            yield from flow.ending()
        finally:
            flow.close()

    async def _atransform(
        self, chunks: AsyncIterator[Any], run_manager: Any, stage: Stage | str | None = None
    ) -> AsyncIterator[Any]:
        flow = _ValueFlow(self, _stage(stage) or self.stage, run_manager)
        try:
            async for chunk in chunks:
                for out in await asyncio.to_thread(flow.push, chunk):
                    yield out
                if flow.stopped:
                    break
            for out in await asyncio.to_thread(flow.finish):
                yield out
            for out in flow.ending():
                yield out
        finally:
            flow.close()

    def _marked(self, config: RunnableConfig | None) -> RunnableConfig:
        """Tags and metadata of the run's own, to which the decision is added."""
        return merge_configs(
            config, {"tags": ["guardkit"], "metadata": {"guardkit_model": self.enforcement.guard.model.name}}
        )


class _ValueFlow:
    """A stream of values: text and message chunks are judged as they arrive, anything else when it is complete."""

    def __init__(self, runnable: GuardRunnable, stage: Stage | None, run: Any):
        self._runnable, self._stage, self._run = runnable, stage, run
        self._flow: ChunkFlow | StringFlow | None = None
        self._whole: list[Any] = []

    @property
    def stopped(self) -> bool:
        return self._flow is not None and self._flow.decision is not None

    def push(self, chunk: Any) -> list[Any]:
        if self._flow is None and not self._whole:
            self._flow = self._start(chunk)
        flow = self._flow
        if flow is None:
            self._whole = [_added(self._whole[0], chunk)] if self._whole else [chunk]
            return []
        if isinstance(flow, StringFlow) and isinstance(chunk, str):
            if flow.empty and self._stage is None:
                # A string in one piece may be a prompt: the first piece is judged as one before any of it goes on.
                decision = self._runnable.enforcement.guard.decide(chunk, stage=Stage.prompt)
                if decision.action.stops:
                    flow.stop(decision)
            return flow.push(chunk)
        if isinstance(flow, ChunkFlow) and isinstance(chunk, AIMessageChunk):
            return [message for message, _ in flow.push(chunk)]
        raise TypeError(f"the stream changed from one kind of value to another: {type(chunk).__name__}")

    def finish(self) -> list[Any]:
        flow = self._flow
        if flow is None:
            return self._runnable._settled(self._whole, [self._run] * len(self._whole), self._stage)
        if isinstance(flow, StringFlow):
            return list(flow.finish())
        return [message for message, _ in flow.finish()]

    def ending(self) -> list[Any]:
        """What takes the place of a stopped stream's rest. Raises `GuardViolation` where that is the exit behaviour."""
        if self._flow is None:
            return []
        if (decision := self._flow.decision_so_far) is not None:
            annotate(self._run, decision)
        return [self._flow.ending()] if self._flow.decision is not None else []

    def close(self) -> None:
        if self._flow is not None:
            self._flow.close()

    def _start(self, chunk: Any) -> ChunkFlow | StringFlow | None:
        stage = self._stage or Stage.response
        if stage.is_query:
            return None
        if isinstance(chunk, str):
            return StringFlow(self._runnable.enforcement, stage, self._runnable.holdback)
        if isinstance(chunk, AIMessageChunk):
            return ChunkFlow(self._runnable.enforcement, holdback=self._runnable.holdback)
        return None


def _added(whole: Any, chunk: Any) -> Any:
    """As LangChain adds up a stream: chunks that do not add up replace each other, as a JSON parser's do."""
    try:
        return whole + chunk
    except TypeError:
        return chunk


def annotate(run: Any, decision: Decision) -> None:
    """Put a decision on a run: its tags and metadata, as tracers and event streams see them at the run's end."""
    run.metadata[METADATA_KEY] = summary(decision)
    tag = f"{METADATA_KEY}:{decision.action.value}"
    run.tags.append(tag)
    for handler in run.handlers:  # tracers keep a copy of the tags
        traced = getattr(handler, "run_map", {}).get(str(run.run_id))
        tags = getattr(traced, "tags", None)
        if isinstance(tags, list) and tag not in tags:
            tags.append(tag)


def _stage(stage: Stage | str | None) -> Stage | None:
    if stage is None or isinstance(stage, Stage):
        return stage
    try:
        return Stage(stage)
    except ValueError:
        known = ", ".join(s.value for s in Stage)
        raise GuardkitError(f"unknown stage '{stage}'; known: {known}") from None

"""Calls that nobody watches: a wrapped model's or tool's raw text must reach no callback, tracer or stream handler."""

from __future__ import annotations

import functools
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any, TypeVar, cast

from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import var_child_runnable_config
from pydantic import BaseModel

_T = TypeVar("_T")
_C = TypeVar("_C", bound=BaseModel)
Scrub = Callable[[Any], Any]  # a value in, the same without what may not be kept out

# How LangGraph hands its stream and its checkpointer to a graph inside a graph. A guarded tool that runs a graph would
# stream and store that graph's text, unjudged, beside its own judged output: so it gets no stream, and a checkpointer
# that judges what it stores. Without one, a graph that a person interrupts would run its finished steps again.
_STREAM = "__pregel_stream"
_CHECKPOINTER = "__pregel_checkpointer"


def without_observers(config: RunnableConfig | None, scrub: Scrub | None = None) -> RunnableConfig:
    """A config without its callbacks and a surrounding graph's stream; its checkpointer stores what `scrub` leaves,
    and goes too where there is no `scrub`."""
    if not config:
        return {"callbacks": []}
    configurable = {k: v for k, v in (config.get("configurable") or {}).items() if k not in (_STREAM, _CHECKPOINTER)}
    saver = (config.get("configurable") or {}).get(_CHECKPOINTER)
    if scrub is not None and saver is not None:
        configurable[_CHECKPOINTER] = judging_saver(saver, scrub)
    return {**config, "callbacks": [], "configurable": configurable}


def judging_saver(saver: Any, scrub: Scrub) -> Any:
    """The same checkpointer, with the same storage, that stores values as `scrub` leaves them."""
    if isinstance(saver, _JudgingSaver):
        return saver
    twin: Any = object.__new__(_judging(cast(Any, type(saver))))
    twin.__dict__.update(saver.__dict__)
    twin.guardkit_scrub = scrub
    return twin


class _JudgingSaver:
    """What every checkpointer does when it stores something, with the guard before it."""

    guardkit_scrub: Scrub

    def put(self, config: Any, checkpoint: Any, metadata: Any, new_versions: Any) -> Any:
        return super().put(config, self._checked(checkpoint), metadata, new_versions)  # type: ignore[misc]

    async def aput(self, config: Any, checkpoint: Any, metadata: Any, new_versions: Any) -> Any:
        return await super().aput(config, self._checked(checkpoint), metadata, new_versions)  # type: ignore[misc]

    def put_writes(self, config: Any, writes: Sequence[tuple[str, Any]], *args: Any, **kwargs: Any) -> None:
        super().put_writes(config, self._written(writes), *args, **kwargs)  # type: ignore[misc]

    async def aput_writes(self, config: Any, writes: Sequence[tuple[str, Any]], *args: Any, **kwargs: Any) -> None:
        await super().aput_writes(config, self._written(writes), *args, **kwargs)  # type: ignore[misc]

    def _checked(self, checkpoint: Any) -> Any:
        values = checkpoint["channel_values"]
        return {**checkpoint, "channel_values": {name: self.guardkit_scrub(value) for name, value in values.items()}}

    def _written(self, writes: Sequence[tuple[str, Any]]) -> list[tuple[str, Any]]:
        return [(channel, self.guardkit_scrub(value)) for channel, value in writes]


@functools.cache
def _judging(kind: type) -> type:
    return type(f"Judging{kind.__name__}", (_JudgingSaver, kind), {})


def without_own_callbacks(component: _C) -> _C:
    """The component without the callbacks that it was made with; itself, where it has none."""
    if getattr(component, "callbacks", None):
        return component.model_copy(update={"callbacks": None})
    return component


class Unobserved:
    """In here, runnables inherit the config that surrounded the making of this, without its observers.

    Can be entered again and again, not nested: generators enter it for each step. scrub: see `without_observers`.
    """

    def __init__(self, scrub: Scrub | None = None) -> None:
        self._config = without_observers(var_child_runnable_config.get(), scrub)
        # LangGraph's channel for a tool's partial output, where it is loaded: only judged output leaves a guarded tool.
        self._partial = getattr(sys.modules.get("langgraph.pregel._tools"), "_tool_call_writer", None)
        self._token: Any = None
        self._silenced: Any = None

    def __enter__(self) -> None:
        self._token = var_child_runnable_config.set(self._config)
        if self._partial is not None:
            self._silenced = self._partial.set(None)

    def __exit__(self, *error: object) -> None:
        if self._partial is not None:
            self._partial.reset(self._silenced)
        var_child_runnable_config.reset(self._token)


def steps_unobserved(source: Iterator[_T]) -> Iterator[_T]:
    """Each step of a generator, unobserved; closing this closes it."""
    done, quiet = object(), Unobserved()
    try:
        while True:
            with quiet:
                item = next(source, done)
            if item is done:
                return
            yield item  # type: ignore[misc]
    finally:
        close = getattr(source, "close", None)
        if close is not None:
            close()


async def asteps_unobserved(source: AsyncIterator[_T]) -> AsyncIterator[_T]:
    quiet = Unobserved()
    try:
        while True:
            with quiet:
                try:
                    item = await anext(source)
                except StopAsyncIteration:
                    return
            yield item
    finally:
        close = getattr(source, "aclose", None)
        if close is not None:
            await close()

"""Calls that nobody watches: a wrapped model's or tool's raw text must reach no callback, tracer or stream handler."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any, TypeVar

from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import var_child_runnable_config
from pydantic import BaseModel

_T = TypeVar("_T")
_C = TypeVar("_C", bound=BaseModel)


# How LangGraph hands its stream and its checkpointer to a graph inside a graph. A guarded tool that runs a graph would
# stream and store that graph's text, unjudged, beside its own judged output.
_INHERITED = ("__pregel_stream", "__pregel_checkpointer")


def without_observers(config: RunnableConfig | None) -> RunnableConfig:
    """A config without its callbacks, and without the stream and the checkpointer of a surrounding graph."""
    if not config:
        return {"callbacks": []}
    configurable = {k: v for k, v in (config.get("configurable") or {}).items() if k not in _INHERITED}
    return {**config, "callbacks": [], "configurable": configurable}


def without_own_callbacks(component: _C) -> _C:
    """The component without the callbacks that it was made with; itself, where it has none."""
    if getattr(component, "callbacks", None):
        return component.model_copy(update={"callbacks": None})
    return component


class Unobserved:
    """In here, runnables inherit the config that surrounded the making of this, without its observers.

    Can be entered again and again, not nested: generators enter it for each step.
    """

    def __init__(self) -> None:
        self._config = without_observers(var_child_runnable_config.get())
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

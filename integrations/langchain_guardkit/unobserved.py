"""Calls that nobody watches: a wrapped model's or tool's raw text must reach no callback, tracer or stream handler."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import TypeVar

from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import var_child_runnable_config
from pydantic import BaseModel

_T = TypeVar("_T")
_C = TypeVar("_C", bound=BaseModel)


def without_callbacks(config: RunnableConfig | None) -> RunnableConfig:
    """A config with everything but its callbacks."""
    return {**config, "callbacks": []} if config else {"callbacks": []}


def without_own_callbacks(component: _C) -> _C:
    """The component without the callbacks that it was made with; itself, where it has none."""
    return component.model_copy(update={"callbacks": None}) if component.callbacks else component  # type: ignore[attr-defined]


@contextmanager
def unobserved() -> Iterator[None]:
    """In here, runnables inherit the surrounding config without its callbacks."""
    token = var_child_runnable_config.set(without_callbacks(var_child_runnable_config.get()))
    try:
        yield
    finally:
        var_child_runnable_config.reset(token)


def steps_unobserved(source: Iterator[_T]) -> Iterator[_T]:
    """Each step of a generator, unobserved; closing this closes it."""
    done = object()
    try:
        while True:
            with unobserved():
                item = next(source, done)
            if item is done:
                return
            yield item  # type: ignore[misc]
    finally:
        close = getattr(source, "close", None)
        if close is not None:
            close()


async def asteps_unobserved(source: AsyncIterator[_T]) -> AsyncIterator[_T]:
    try:
        while True:
            with unobserved():
                try:
                    item = await anext(source)
                except StopAsyncIteration:
                    return
            yield item
    finally:
        close = getattr(source, "aclose", None)
        if close is not None:
            await close()

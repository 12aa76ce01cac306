"""Chains that begin with a guarded part: `guard | chain` is judged before any run of it begins, so that no tracer or
event shows it raw; none of them is tried again because of a violation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, cast

from langchain_core.runnables import Runnable, RunnableConfig

from langchain_guardkit.trying import OnceSequence, with_fallbacks, without_violations


class GuardedSequence(OnceSequence):
    """A sequence that begins with a `GuardRunnable`."""

    @property
    def _guard(self) -> Any:
        return self.first

    @property
    def _rest(self) -> Any:
        """What follows the guard; None where that is a chain's own guard, which is tried again with its chain."""
        if self._guard.runnable is not None:
            return None
        return self.steps[1] if len(self.steps) == 2 else cast(Any, OnceSequence)(*self.steps[1:])

    def with_retry(self, **settings: Any) -> Any:
        """As any sequence's, but for violations. The input is judged once, before the first try and any run of it."""
        if (rest := self._rest) is None:
            return super().with_retry(**settings)
        return guarded_sequence([self.first, rest.with_retry(**without_violations(settings))])

    def with_fallbacks(self, fallbacks: Sequence[Any], **settings: Any) -> Any:
        """As any sequence's, but for violations. The fallbacks get the judged input."""
        if (rest := self._rest) is None:
            return super().with_fallbacks(fallbacks, **settings)
        return guarded_sequence([self.first, with_fallbacks(rest, fallbacks, **settings)])

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        shown = self._guard.settle(input, config)
        try:
            return super().invoke(shown, config, **kwargs)
        finally:
            self._guard.unsettle(shown)

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        shown = await asyncio.to_thread(self._guard.settle, input, config)
        try:
            return await super().ainvoke(shown, config, **kwargs)
        finally:
            self._guard.unsettle(shown)

    def batch(self, inputs: list[Any], config: Any = None, *, return_exceptions: bool = False, **kwargs: Any) -> Any:
        return Runnable.batch(self, inputs, config, return_exceptions=return_exceptions, **kwargs)

    async def abatch(
        self, inputs: list[Any], config: Any = None, *, return_exceptions: bool = False, **kwargs: Any
    ) -> Any:
        return await Runnable.abatch(self, inputs, config, return_exceptions=return_exceptions, **kwargs)

    def stream(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Iterator[Any]:
        shown = self._guard.settle(input, config)
        try:
            yield from super().stream(shown, config, **kwargs)
        finally:
            self._guard.unsettle(shown)

    async def astream(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> AsyncIterator[Any]:
        shown = input if self._guard.is_settled(input) else await asyncio.to_thread(self._guard.settle, input, config)
        try:
            async for chunk in super().astream(shown, config, **kwargs):
                yield chunk
        finally:
            self._guard.unsettle(shown)

    def astream_events(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        return super().astream_events(self._guard.settle(input, config), config, **kwargs)

    def astream_log(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        return super().astream_log(self._guard.settle(input, config), config, **kwargs)


def guarded_sequence(steps: Sequence[Any]) -> GuardedSequence:
    return cast(Any, GuardedSequence)(*steps)  # type: ignore[no-any-return]


def is_graph(value: Any) -> bool:
    return any(kind.__module__.startswith("langgraph.") and kind.__name__ == "Pregel" for kind in type(value).__mro__)

"""What is tried again, or handed to a fallback: faults of a part, never a violation, which is no fault of the part."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

from langchain_core.language_models import chat_models
from langchain_core.runnables import (
    Runnable,
    RunnableBinding,
    RunnableConfig,
    RunnableSequence,
    RunnableWithFallbacks,
)
from langchain_core.runnables.base import RunnableBindingBase
from langchain_core.runnables.config import get_config_list
from langchain_core.runnables.retry import RunnableRetry

from guardkit import GuardViolation

# What newer releases give for a chat model's `bind`: a binding with narrower types.
_Binding: Any = getattr(chat_models, "_ChatModelBinding", RunnableBinding)


def without_violations(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of `with_retry`, such that a violation is never tried again."""
    return {**settings, "retry_if_exception_type": _Fault(settings.get("retry_if_exception_type", (Exception,)))}


@dataclass(frozen=True)
class _Fault:
    """Whether an error is one of those that are to be tried again, and no violation. It can be pickled."""

    wanted: Any

    def __call__(self, error: BaseException) -> bool:
        if isinstance(error, GuardViolation):
            return False
        if callable(self.wanted) and not isinstance(self.wanted, type):
            return bool(self.wanted(error))
        return isinstance(error, self.wanted)


class Once:
    """A guarded part, of which no violation is tried again or handed to a fallback, and whose alternatives are guarded
    as it is."""

    def guarding(self, other: Any) -> Any:
        """What stands in the place of this part, such as a fallback, guarded as it is; itself where it cannot be."""
        return other

    def configurable_alternatives(self, which: Any, **alternatives: Any) -> Any:
        """As any part's: what a run's config puts in its place is guarded as it is."""
        kept = ("default_key", "prefix_keys")
        found = {k: v if k in kept else self._alternative(v) for k, v in alternatives.items()}
        return super().configurable_alternatives(which, **found)  # type: ignore[misc]

    def _alternative(self, given: Any) -> Any:
        guarding = next(_guarded_in(self), self).guarding
        return guarding(given) if isinstance(given, Runnable) else lambda: guarding(given())

    def with_retry(self, **settings: Any) -> Any:
        """As any runnable's, but for violations, which are no faults to try again."""
        return super().with_retry(**without_violations(settings))  # type: ignore[misc]

    def with_fallbacks(self, fallbacks: Sequence[Any], **settings: Any) -> Any:
        """As any runnable's, but for violations: no fallback answers what the guard has stopped, unless
        `exceptions_to_handle` names `GuardViolation`. Chat models among the fallbacks of a guarded model are guarded as
        it is, and so are retrievers and tools."""
        return with_fallbacks(cast(Any, self), fallbacks, **settings)

    def __or__(self, other: Any) -> Any:
        return once(super().__or__(other))  # type: ignore[misc]

    def __ror__(self, other: Any) -> Any:
        return once(super().__ror__(other))  # type: ignore[misc]

    def pipe(self, *others: Any, name: str | None = None) -> Any:
        """As `|`, part after part: LangChain's own would build a sequence past it."""
        chain: Any = self
        for other in others:
            chain = chain | other
        if name is not None and isinstance(chain, RunnableSequence):
            chain.name = name
        return chain


class OnceSequence(Once, RunnableSequence[Any, Any]):
    """A sequence of guarded parts. Saved, it is a sequence like any other."""

    @classmethod
    def lc_id(cls) -> list[str]:
        return RunnableSequence.lc_id()

    def __or__(self, other: Any) -> Any:
        return cast(Any, type(self))(*cast(Any, RunnableSequence.__or__(self, other)).steps)


def once(sequence: Any) -> Any:
    """A sequence of guarded parts, such that a violation does not run it again."""
    return cast(Any, OnceSequence)(*sequence.steps) if type(sequence) is RunnableSequence else sequence


class _Violated:
    """A violation as a value: what hands errors on to a fallback does not hand this on."""

    def __init__(self, violation: GuardViolation):
        self.violation = violation

    @classmethod
    def raised(cls, value: Any) -> Any:
        if isinstance(value, cls):
            raise value.violation
        return value


class _Catching(Runnable[Any, Any]):
    """A part whose violations are values."""

    def __init__(self, part: Runnable[Any, Any]):
        self.part = part

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        try:
            return self.part.invoke(input, config, **kwargs)
        except GuardViolation as violation:
            return _Violated(violation)

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        try:
            return await self.part.ainvoke(input, config, **kwargs)
        except GuardViolation as violation:
            return _Violated(violation)

    def stream(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Iterator[Any]:
        try:
            yield from self.part.stream(input, config, **kwargs)
        except GuardViolation as violation:
            yield _Violated(violation)

    async def astream(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> AsyncIterator[Any]:
        try:
            async for chunk in self.part.astream(input, config, **kwargs):
                yield chunk
        except GuardViolation as violation:
            yield _Violated(violation)


class GuardedFallbacks(Once, RunnableWithFallbacks[Any, Any]):
    """A guarded part with fallbacks, which are not asked because of a violation. Its runs show a model's judged input,
    as the model's own do."""

    @classmethod
    def lc_id(cls) -> list[str]:
        return RunnableWithFallbacks.lc_id()

    @property
    def runnables(self) -> Iterator[Runnable[Any, Any]]:
        yield from map(_Catching, (self.runnable, *self.fallbacks))

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        return _Violated.raised(super().invoke(seen(self.runnable, input, config), config, **kwargs))

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        return _Violated.raised(await super().ainvoke(await aseen(self.runnable, input, config), config, **kwargs))

    def stream(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Iterator[Any]:
        for chunk in super().stream(seen(self.runnable, input, config), config, **kwargs):
            yield _Violated.raised(chunk)

    async def astream(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> AsyncIterator[Any]:
        async for chunk in super().astream(await aseen(self.runnable, input, config), config, **kwargs):
            yield _Violated.raised(chunk)

    def batch(self, inputs: list[Any], config: Any = None, *, return_exceptions: bool = False, **kwargs: Any) -> Any:
        return Runnable.batch(self, inputs, config, return_exceptions=return_exceptions, **kwargs)

    async def abatch(
        self, inputs: list[Any], config: Any = None, *, return_exceptions: bool = False, **kwargs: Any
    ) -> Any:
        return await Runnable.abatch(self, inputs, config, return_exceptions=return_exceptions, **kwargs)


class GuardedRetry(Once, RunnableRetry[Any, Any]):
    """A guarded model that is asked again for its faults. Its runs show the judged input, as the model's own do."""

    @classmethod
    def lc_id(cls) -> list[str]:
        return RunnableRetry.lc_id()

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        return super().invoke(seen(self.bound, input, config), config, **kwargs)

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        return await super().ainvoke(await aseen(self.bound, input, config), config, **kwargs)

    def batch(self, inputs: list[Any], config: Any = None, **kwargs: Any) -> Any:
        configs = get_config_list(config, len(inputs))
        shown = [seen(self.bound, given, c) for given, c in zip(inputs, configs, strict=True)]
        return super().batch(cast(Any, shown), config, **kwargs)

    async def abatch(self, inputs: list[Any], config: Any = None, **kwargs: Any) -> Any:
        configs = get_config_list(config, len(inputs))
        shown = [await aseen(self.bound, given, c) for given, c in zip(inputs, configs, strict=True)]
        return await super().abatch(cast(Any, shown), config, **kwargs)


class GuardedBinding(Once, _Binding):  # type: ignore[misc]
    """A guarded model with arguments, tools or a config bound to it."""

    @classmethod
    def lc_id(cls) -> list[str]:
        return RunnableBinding.lc_id()

    @classmethod
    def of(cls, bound: Any) -> Any:
        """The same binding, of this class."""
        return cls(**_fields(bound)) if type(bound) in (RunnableBinding, _Binding) else bound


def guarded_retry(retry: Any) -> Any:
    return GuardedRetry(**_fields(retry)) if type(retry) is RunnableRetry else retry


def with_fallbacks(
    part: Runnable[Any, Any],
    fallbacks: Sequence[Any],
    *,
    exceptions_to_handle: tuple[type[BaseException], ...] = (Exception,),
    exception_key: str | None = None,
) -> RunnableWithFallbacks[Any, Any]:
    """See `Once.with_fallbacks`."""
    guarded = next(_guarded_in(part), None)
    meant = any(issubclass(kind, GuardViolation) for kind in exceptions_to_handle)
    return (RunnableWithFallbacks if meant else GuardedFallbacks)(
        runnable=part,
        fallbacks=[*fallbacks] if guarded is None else [guarded.guarding(fallback) for fallback in fallbacks],
        exceptions_to_handle=exceptions_to_handle,
        exception_key=exception_key,
    )


def seen(part: Any, given: Any, config: RunnableConfig | None) -> Any:
    """What a part's run may show of what it is called with: a guarded model's input is judged before."""
    while isinstance(part, RunnableBindingBase):
        part = part.bound
    return part.shown(given, config) if hasattr(type(part), "shown") else given


async def aseen(part: Any, given: Any, config: RunnableConfig | None) -> Any:
    return await asyncio.to_thread(seen, part, given, config)


def _guarded_in(part: Any) -> Iterator[Any]:
    """The guarded models of a part, or other parts that can guard what stands in their place."""
    if isinstance(part, RunnableBindingBase):
        yield from _guarded_in(part.bound)
    elif isinstance(part, RunnableSequence):
        for step in part.steps:
            yield from _guarded_in(step)
    elif isinstance(part, Once) and type(part).guarding is not Once.guarding:
        yield part


def _fields(part: Any) -> dict[str, Any]:
    return {name: getattr(part, name) for name in type(part).model_fields}

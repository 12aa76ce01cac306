"""How models are bound and made: what `bind_tools`, `with_structured_output` and a run's config compose."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any, cast

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage, HumanMessage
from langchain_core.output_parsers import BaseOutputParser
from langchain_core.runnables import (
    Runnable,
    RunnableBinding,
    RunnableConfig,
    RunnableGenerator,
    RunnableParallel,
    RunnableSequence,
)
from langchain_core.runnables.configurable import DynamicRunnable
from langchain_core.runnables.fallbacks import RunnableWithFallbacks
from langchain_core.runnables.passthrough import RunnableAssign
from langchain_core.tools import BaseTool

from guardkit import Decision, GuardkitError
from langchain_guardkit.enforcing import (
    Enforcement,
)
from langchain_guardkit.marks import withheld
from langchain_guardkit.trying import GuardedBinding, Once, OnceSequence, guarded_retry

# What a guarded model has of the one that it wraps.
SHARED = ("callbacks", "tags", "metadata", "verbose", "output_version", "disable_streaming", "profile")


def around(
    bound: Runnable[Any, Any], guarded: Callable[[BaseChatModel], Runnable[Any, Any]], enforcement: Enforcement | None
) -> tuple[Runnable[Any, Any], int]:
    """A composition with the models inside it replaced by `guarded` ones, and how many there were. With `enforcement`,
    what parses their answers raises the violation of one that is withheld, so that it is no failure to parse."""
    found: list[BaseChatModel] = []

    def swap(part: Any) -> Any:
        if isinstance(part, BaseChatModel):
            found.append(part)
            return guarded(part)
        if isinstance(part, BaseOutputParser):
            return part if enforcement is None else RunnableSequence(_raising(enforcement), part)
        if isinstance(part, RunnableBinding):
            return GuardedBinding.of(part.model_copy(update={"bound": swap(part.bound)}))
        if isinstance(part, RunnableSequence):
            return cast(Any, OnceSequence)(*map(swap, part.steps), name=part.name)
        if isinstance(part, RunnableParallel):
            return part.model_copy(update={"steps__": {k: swap(v) for k, v in part.steps__.items()}})
        if isinstance(part, RunnableAssign):
            return part.model_copy(update={"mapper": swap(part.mapper)})
        if isinstance(part, RunnableWithFallbacks):
            fallbacks = [swap(f) for f in part.fallbacks]
            return part.model_copy(update={"runnable": swap(part.runnable), "fallbacks": fallbacks})
        return part

    return swap(bound), len(found)


def _raising(enforcement: Enforcement) -> Runnable[Any, Any]:
    """Hands answers on; raises the violation of one that a guard withheld."""

    def check(answer: Any) -> Any:
        mark = withheld(answer) if isinstance(answer, BaseMessage) else None
        if mark is not None:
            raise enforcement.violation(mark)
        return answer

    def each(answers: Iterator[Any]) -> Iterator[Any]:
        yield from map(check, answers)

    async def aeach(answers: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for answer in answers:
            yield check(answer)

    return RunnableGenerator(each, aeach, name="guard")


def is_dynamic(model: Any) -> bool:
    """Whether each run's config makes the model: `configurable_fields`, `init_chat_model(configurable_fields=...)`."""
    return isinstance(model, DynamicRunnable) or any(
        kind.__name__ == "_ConfigurableModel" for kind in type(model).__mro__
    )


def resolved(model: Any, config: RunnableConfig | None) -> Runnable[Any, Any]:
    """The model that a run's config makes."""
    if isinstance(model, DynamicRunnable):
        runnable, _ = model.prepare(config)
        return runnable
    return cast("Runnable[Any, Any]", model._model(config))


def repair_request(decision: Decision) -> HumanMessage:
    """What the model is told after a blocked answer: why, and nothing of the answer itself."""
    about = ", ".join(c.label for c in decision.verdict.categories) if decision.verdict else "it could not be judged"
    return HumanMessage(
        f"Your last answer was withheld by a safety guard ({decision.stage.value}: {about or 'unsafe'}). "
        "Answer the same request again, in a way that is safe, or say briefly why you cannot."
    )


class BoundParts(Once):
    """What binds tools, structured output and arguments to a guarded model: as the wrapped model does, around this."""

    inner: Any
    enforcement: Any
    operations: tuple[Any, ...]
    _own_fields: Any

    def _like(self, model: BaseChatModel) -> Any:
        """Another model, guarded as this one is."""
        shared = {name: getattr(model, name) for name in SHARED}
        return type(self)(**{**self._own_fields(), "inner": model, "operations": (), **shared})

    def bind_tools(self, tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool], **kwargs: Any) -> Any:
        return self._bound("bind_tools", tools, **kwargs)

    def with_structured_output(self, schema: dict[str, Any] | type, *, include_raw: bool = False, **kwargs: Any) -> Any:
        """As the wrapped model's. A violation is raised as a `GuardViolation` whatever the exit behaviour is, since a
        violation message is no answer of that shape; with `include_raw` it is the ``parsing_error``."""
        return self._bound("with_structured_output", schema, include_raw=include_raw, **kwargs)

    def bind(self, **kwargs: Any) -> Any:
        return GuardedBinding.of(super().bind(**kwargs))  # type: ignore[misc]

    def with_config(self, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        return GuardedBinding.of(super().with_config(config, **kwargs))  # type: ignore[misc]

    def with_retry(self, **settings: Any) -> Any:
        """As any model's, but for violations: asking again is what `repair` is for."""
        return guarded_retry(super().with_retry(**settings))

    def guarding(self, other: Runnable[Any, Any]) -> Runnable[Any, Any]:
        """Another composition with the models in it guarded as this one is."""
        return around(other, lambda m: m if isinstance(m, BoundParts) else self._like(m), None)[0]

    def _bound(self, name: str, *args: Any, **kwargs: Any) -> Any:
        if isinstance(self.inner, BaseChatModel):
            return self._around(getattr(self.inner, name)(*args, **kwargs))
        return cast(Any, self).model_copy(update={"operations": (*self.operations, (name, args, kwargs))})

    def _around(self, bound: Any) -> Any:
        """The same composition with the wrapped model inside it replaced by this one."""
        result, models = around(bound, self._like, self.enforcement)
        if not models:
            raise GuardkitError(
                f"{type(self.inner).__name__} binds in a way that the guard cannot follow "
                f"({type(bound).__name__}): guard the bound chain with `chain | guard.as_runnable()`"
            )
        return result

"""How models are bound and made: what `bind_tools`, `with_structured_output` and a run's config compose."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
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

from guardkit import Decision, GuardViolation
from langchain_guardkit.enforcing import (
    Enforcement,
)
from langchain_guardkit.marks import withheld


def around(
    bound: Runnable[Any, Any], guarded: Callable[[BaseChatModel], Runnable[Any, Any]], enforcement: Enforcement
) -> tuple[Runnable[Any, Any], int]:
    """A composition with the models inside it replaced by `guarded` ones, and how many there were. What parses their
    answers raises the violation of one that is withheld, so that it is no failure to parse."""
    found: list[BaseChatModel] = []

    def swap(part: Any) -> Any:
        if isinstance(part, BaseChatModel):
            found.append(part)
            return guarded(part)
        if isinstance(part, BaseOutputParser):
            return RunnableSequence(_raising(enforcement), part)
        if isinstance(part, RunnableBinding):
            return part.model_copy(update={"bound": swap(part.bound)})
        if isinstance(part, RunnableSequence):
            return RunnableSequence(*map(swap, part.steps), name=part.name)
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


def without_violations(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of `with_retry`, such that a violation is never tried again."""
    wanted = settings.get("retry_if_exception_type", (Exception,))

    def retry(error: BaseException) -> bool:
        if isinstance(error, GuardViolation):
            return False
        return bool(wanted(error)) if callable(wanted) and not isinstance(wanted, type) else isinstance(error, wanted)

    return {**settings, "retry_if_exception_type": retry}


def repair_request(decision: Decision) -> HumanMessage:
    """What the model is told after a blocked answer: why, and nothing of the answer itself."""
    about = ", ".join(c.label for c in decision.verdict.categories) if decision.verdict else "it could not be judged"
    return HumanMessage(
        f"Your last answer was withheld by a safety guard ({decision.stage.value}: {about or 'unsafe'}). "
        "Answer the same request again, in a way that is safe, or say briefly why you cannot."
    )

"""The models inside an engine: what they say between the question and the answer is judged before it goes on."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from llama_index.core.llms import LLM
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.prompts.mixin import PromptMixin
from llama_index.core.response_synthesizers import BaseSynthesizer
from llama_index.postprocessor.guardkit.llm import GuardedLLM, guarded
from llama_index.postprocessor.guardkit.postprocessor import GuardNodePostprocessor
from llama_index.postprocessor.guardkit.rules import Rules


def with_guarded_models(engine: Any, made: Any, rules: Rules) -> None:
    """Guard the models of an engine in `made`, its copy. That of an engine which finds things by itself, such as rows
    of a database, is asked about them: its prompts are judged, too. One that asks other engines gets judged answers.
    Models of an engine's parts (selectors, query transforms, question generators) say how to ask."""
    found = _swapped(engine, made, rules, check_input=not any(map(_holds_engines, vars(engine).values())))
    for name, value in list(vars(engine).items()):
        if isinstance(value, PromptMixin) and not isinstance(value, BaseSynthesizer) and not _is_engine(value):
            part = copy.copy(value)
            if _swapped(value, part, rules, check_input=False):
                setattr(made, name, part)
                found = True
    made._guardkit_models = found


def has_guarded_models(engine: Any) -> bool:
    """Whether `with_guarded_models` found any, in the engine or in those inside it."""
    if getattr(engine, "_guardkit_models", False):
        return True
    inner = [v for v in vars(engine).values() if _is_engine(v) and not hasattr(v, "_rules")]
    return any(map(has_guarded_models, inner))


def _swapped(part: Any, made: Any, rules: Rules, check_input: bool) -> bool:
    found = False
    for name, value in list(vars(part).items()):
        if isinstance(value, LLM) and not isinstance(value, GuardedLLM):
            model = guarded(
                value,
                rules.base,
                exit_behavior=rules.exit_behavior,
                violation_message=rules.violation_message,
                on_violation=rules.on_violation,
                policies=rules.policies,
                check_input=check_input,
                check_tool_results=check_input,
            )
            setattr(made, name, model)
            found = True
    return found


def _holds_engines(value: Any) -> bool:
    return any(map(_is_engine, value)) if isinstance(value, list | tuple) else _is_engine(value)


def _is_engine(value: Any) -> bool:
    return any(kind.__name__ in ("BaseQueryEngine", "BaseChatEngine") for kind in type(value).__mro__)


def guarded_postprocessors(given: Sequence[Any], guard: GuardNodePostprocessor) -> list[Any]:
    """An engine's postprocessors with the guard as the last, since some of them bring nodes in; and before those that
    hand nodes to a model, such as rerankers."""
    before = next((i for i, part in enumerate(given) if _asks_a_model(part)), None)
    if before is None:
        return [*given, guard]
    first = guard.model_copy(update={"min_nodes": 0, "max_nodes": None})
    return [*given[:before], first, *given[before:], guard]


def _asks_a_model(part: BaseNodePostprocessor) -> bool:
    if isinstance(part, GuardNodePostprocessor):
        return False
    values = [
        getattr(part, name, None) for name in (*type(part).model_fields, *getattr(part, "__private_attributes__", ()))
    ]
    return any(isinstance(value, LLM) for value in values) or not type(part).__module__.startswith("llama_index.core.")

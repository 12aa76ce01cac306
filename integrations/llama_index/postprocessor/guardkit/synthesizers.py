"""Answers that an engine feeds back into its next prompt: refine drafts and summaries of summaries."""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any, TypeVar

from llama_index.core.response_synthesizers import BaseSynthesizer, Refine, TreeSummarize
from llama_index.postprocessor.guardkit.messages import texts_in
from llama_index.postprocessor.guardkit.rules import Rules
from llama_index.postprocessor.guardkit.steps import Steps, arun, run
from pydantic import BaseModel

from guardkit import Stage

_S = TypeVar("_S", bound=BaseSynthesizer)
_classes: dict[type, type] = {}
_summarising: ContextVar[bool] = ContextVar("guardkit_summarising", default=False)


class _Drafts:
    """What both kinds share."""

    _guard_rules: Rules

    def _passable_draft(self, draft: Any) -> Steps[Any]:
        said = "\n".join(texts_in(draft)) if isinstance(draft, BaseModel) else str(draft)
        text, decision = yield from self._guard_rules.text(said, Stage.response, "draft of the answer")
        return text if decision.action.stops else draft


class _Refining(_Drafts):
    """The draft stands in the prompt of the program that is about to refine it."""

    def _update_response(self, program: Any, *args: Any, **kwargs: Any) -> Any:
        if (draft := _draft_in(program)) is not None:
            _put_draft(program, draft, run(self._passable_draft(draft)))
        return super()._update_response(program, *args, **kwargs)  # type: ignore[misc]

    async def _aupdate_response(self, program: Any, *args: Any, **kwargs: Any) -> Any:
        if (draft := _draft_in(program)) is not None:
            _put_draft(program, draft, await arun(self._passable_draft(draft)))
        return await super()._aupdate_response(program, *args, **kwargs)  # type: ignore[misc]


def _draft_in(program: Any) -> Any:
    prompt = getattr(program, "_prompt", None)
    prompt = getattr(prompt, "default_template", prompt)  # a selector's templates are formatted alike
    return None if prompt is None else prompt.kwargs.get("existing_answer")


def _put_draft(program: Any, old: Any, new: Any) -> None:
    if new is not old:
        program._prompt = program._prompt.partial_format(existing_answer=new)


class _Summarising(_Drafts):
    """Its first texts are nodes, which were screened; those of the calls that it makes to itself are summaries."""

    def get_response(self, query_str: str, text_chunks: Sequence[str], **kwargs: Any) -> Any:
        if _summarising.get():
            text_chunks = [run(self._passable_draft(text)) for text in text_chunks]
        token = _summarising.set(True)
        try:
            return super().get_response(query_str=query_str, text_chunks=text_chunks, **kwargs)  # type: ignore[misc]
        finally:
            _summarising.reset(token)

    async def aget_response(self, query_str: str, text_chunks: Sequence[str], **kwargs: Any) -> Any:
        if _summarising.get():
            text_chunks = [await arun(self._passable_draft(text)) for text in text_chunks]
        token = _summarising.set(True)
        try:
            return await super().aget_response(  # type: ignore[misc]
                query_str=query_str, text_chunks=text_chunks, **kwargs
            )
        finally:
            _summarising.reset(token)


def with_guarded_drafts(synthesizer: _S, rules: Rules) -> _S:
    """A copy whose drafts are judged before they enter another prompt. Other kinds make none, and stay as they are."""
    kinds = {Refine: _Refining, TreeSummarize: _Summarising}
    mixin = next((mixin for kind, mixin in kinds.items() if isinstance(synthesizer, kind)), None)
    if mixin is None or isinstance(synthesizer, _Drafts):
        return synthesizer
    kind = type(synthesizer)
    if kind not in _classes:
        _classes[kind] = type(f"Guarded{kind.__name__}", (mixin, kind), {"__module__": __name__})
    made: _S = object.__new__(_classes[kind])
    vars(made).update(vars(synthesizer), _guard_rules=rules)
    return made

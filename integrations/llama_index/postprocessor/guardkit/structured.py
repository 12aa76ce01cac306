"""Structured output: a violation is an error of its own type, for text in an object's place would fail to parse."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Generator
from types import FrameType
from typing import Any, Self

from llama_index.core.bridge.pydantic import BaseModel, PrivateAttr
from llama_index.core.llms.llm import LLM
from llama_index.core.prompts import BasePromptTemplate
from llama_index.core.response_synthesizers.refine import DefaultRefineProgram
from llama_index.core.types import BasePydanticProgram
from llama_index.postprocessor.guardkit.marks import described
from llama_index.postprocessor.guardkit.rules import Rules

from guardkit import GuardViolation

_CALLS = frozenset(("__call__", "acall", "stream_call", "astream_call"))
_FARTHEST = 24  # frames between a program and the LLM that it asks: callbacks and instrumentation wrap the call


def asked_by_program() -> bool:
    """Whether the LLM is called by a program that parses its answer.

    Programs ask through plain `chat`, so nothing in the call says so: it is read off the call stack.
    """
    frame: FrameType | None = sys._getframe(1)
    for _ in range(_FARTHEST):
        if frame is None:
            return False
        if frame.f_code.co_name in _CALLS:
            caller = frame.f_locals.get("self")
            if isinstance(caller, BasePydanticProgram):
                return not isinstance(caller, DefaultRefineProgram)  # it wants text
        frame = frame.f_back
    return False


class Withheld(BaseModel):
    """The last item of a structured stream that was stopped, unless the exit behaviour is "error": the violation
    message and the decision (`action`, `stage`, `judged`, `severity`, `categories`)."""

    message: str
    guardkit: dict[str, Any]

    @classmethod
    def by(cls, rules: Rules, violation: GuardViolation) -> Withheld:
        return cls(message=rules.message(violation.decision), guardkit=described(violation.decision))


class StructuredCalls(LLM):
    """The calls of an LLM whose answers are parsed: each raises `GuardViolation`, which callers can tell from a failure
    to parse. A stream that has shown a part ends with a `Withheld`, or raises where the exit behaviour is "error"."""

    exit_behavior: Any
    _structured: bool = PrivateAttr(default=False)  # whether an object is wanted, so that a violation is an error

    def structured_predict(self, *args: Any, **kwargs: Any) -> Any:
        return super(StructuredCalls, self._raising).structured_predict(*args, **kwargs)

    async def astructured_predict(self, *args: Any, **kwargs: Any) -> Any:
        return await super(StructuredCalls, self._raising).astructured_predict(*args, **kwargs)

    def stream_structured_predict(self, *args: Any, **kwargs: Any) -> Any:
        return self._signed(super(StructuredCalls, self._raising).stream_structured_predict(*args, **kwargs))

    async def astream_structured_predict(self, *args: Any, **kwargs: Any) -> Any:
        source = await super(StructuredCalls, self._raising).astream_structured_predict(*args, **kwargs)
        return self._asigned(source)

    def predict(self, prompt: BasePromptTemplate, **prompt_args: Any) -> str:
        parses = prompt.output_parser is not None or self.output_parser is not None
        said: str = super(StructuredCalls, self._raising if parses else self).predict(prompt, **prompt_args)
        return said

    async def apredict(self, prompt: BasePromptTemplate, **prompt_args: Any) -> str:
        parses = prompt.output_parser is not None or self.output_parser is not None
        said: str = await super(StructuredCalls, self._raising if parses else self).apredict(prompt, **prompt_args)
        return said

    @property
    def _raising(self) -> Self:
        made = self.model_copy()  # it shares the inner LLM and what was judged
        made._structured = True
        return made

    def _signed(self, source: Generator[Any, None, None]) -> Generator[Any, None, None]:
        try:
            yield from source
        except GuardViolation as violation:
            if self.exit_behavior == "error":
                raise
            yield Withheld.by(self._rules, violation)

    async def _asigned(self, source: AsyncGenerator[Any, None]) -> AsyncGenerator[Any, None]:
        try:
            async for item in source:
                yield item
        except GuardViolation as violation:
            if self.exit_behavior == "error":
                raise
            yield Withheld.by(self._rules, violation)

    @property
    def _rules(self) -> Rules:
        raise NotImplementedError

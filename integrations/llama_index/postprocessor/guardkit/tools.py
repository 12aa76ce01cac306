"""`guarded_tools(tools, guard)`: arguments and outputs are judged before events and memories see them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import fields
from functools import partial, wraps
from typing import Any

from llama_index.core.base.llms.types import ChatMessage, ContentBlock, MessageRole, TextBlock
from llama_index.core.base.response.schema import (
    AsyncStreamingResponse,
    PydanticResponse,
    Response,
    StreamingResponse,
)
from llama_index.core.schema import BaseNode, MetadataMode, NodeWithScore
from llama_index.core.tools import BaseTool, FunctionTool, ToolMetadata, ToolOutput, adapt_to_async_tool
from llama_index.core.tools.types import AsyncBaseTool
from llama_index.postprocessor.guardkit.guards import Source, resolve
from llama_index.postprocessor.guardkit.messages import call_text, read, texts_in
from llama_index.postprocessor.guardkit.rules import (
    VIOLATION_MESSAGE,
    ExitBehavior,
    OnViolation,
    Rules,
    ViolationMessage,
    redacted,
    report,
    worst,
)
from llama_index.postprocessor.guardkit.runs import Policies
from llama_index.postprocessor.guardkit.steps import Steps, arun, run

from guardkit import Action, Decision, Guard, GuardViolation, Message, Stage
from guardkit.reading.values import is_name, texts_of

_DEEPEST = 200  # levels of a tool's raw output that are walked; what lies deeper cannot be judged

# The tool whose call was last ended in this task, or the violation that it raised: read by `metadata` right after the
# call, in the same task.
_ended: ContextVar[object] = ContextVar("guardkit_ended_tool", default=None)
_raised: ContextVar[tuple[object, GuardViolation] | None] = ContextVar("guardkit_raised_in_tool", default=None)


def guarded_tools(
    tools: Sequence[BaseTool | Callable[..., Any]],
    guard: Guard | Source,
    *,
    exit_behavior: ExitBehavior = "replace",
    violation_message: ViolationMessage = VIOLATION_MESSAGE,
    on_violation: OnViolation | None = None,
    policies: Policies | None = None,
    check_tool_calls: bool = True,
    check_tool_results: bool = True,
) -> list[AsyncBaseTool]:
    """Tools like `tools`, whose calls and outputs are judged.

    exit_behavior: "replace" gives the agent `violation_message` as the tool's output; "end" does too, and ends the
    run with it, as a tool with `return_direct` does; "error" raises `GuardViolation`, out of an agent's run, too.
    Whatever is decided about its output, a tool runs once. A `FunctionTool` stays one, with its context parameter.
    """
    rules = Rules(resolve(guard), exit_behavior, violation_message, on_violation, policies or {})
    made: list[AsyncBaseTool] = []
    for tool in tools:
        if not isinstance(tool, BaseTool):
            tool = FunctionTool.from_defaults(tool)
        checks = check_tool_calls, check_tool_results
        if isinstance(tool, FunctionTool):
            made.append(GuardedFunctionTool(tool, rules, *checks))
        else:
            made.append(GuardedTool(tool, rules, *checks))
    return made


class GuardedTool(AsyncBaseTool):
    """Made by `guarded_tools`."""

    def __init__(self, tool: BaseTool, rules: Rules, check_tool_calls: bool, check_tool_results: bool):
        self._tool, self._rules = adapt_to_async_tool(tool), rules
        self._check_call, self._check_result = check_tool_calls, check_tool_results

    @property
    def metadata(self) -> ToolMetadata:
        metadata = self._tool.metadata
        raised = _raised.get()
        if _ended.get() is not self and (raised is None or raised[0] is not self):
            return metadata
        values = {f.name: getattr(metadata, f.name) for f in fields(metadata)}
        return _Ending(**values | {"return_direct": True})

    def call(self, *args: Any, **kwargs: Any) -> ToolOutput:
        self._start(args, kwargs)
        try:
            refused = run(self._refuses(args, kwargs))
            if refused:
                return self._withheld(refused)
            try:
                output = self._tool.call(*args, **kwargs)
            except Exception as error:
                return run(self._failed(error))
            return run(self._after(output, args, kwargs))
        except GuardViolation as violation:
            raise self._noted(violation, args, kwargs) from None

    async def acall(self, *args: Any, **kwargs: Any) -> ToolOutput:
        self._start(args, kwargs)
        try:
            refused = await arun(self._refuses(args, kwargs))
            if refused:
                return self._withheld(refused)
            try:
                output = await self._tool.acall(*args, **kwargs)
            except Exception as error:
                return await arun(self._failed(error))
            return await arun(self._after(output, args, kwargs))
        except GuardViolation as violation:
            raise self._noted(violation, args, kwargs) from None

    # -- once

    def _start(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Forget the last call; but where that was this very call, and its violation is being handled, raise it again:
        `call_tool` calls a tool that raised a second time, its one argument given by name."""
        _ended.set(None)
        _raised.set(None)
        handled = sys.exc_info()[1]
        of = getattr(handled, "_guardkit_call", None)
        if isinstance(handled, GuardViolation) and of is not None and of == (id(self), _values(args, kwargs)):
            _raised.set((self, handled))
            raise handled

    def _noted(self, violation: GuardViolation, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> GuardViolation:
        violation._guardkit_call = id(self), _values(args, kwargs)  # type: ignore[attr-defined]
        _raised.set((self, violation))
        return violation

    # -- decisions

    @property
    def _where(self) -> str:
        return f"tool '{self._tool.metadata.name}'"

    def _refuses(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Steps[Decision | None]:
        """Judge name and arguments: the decision for which the tool must not be called."""
        if not self._check_call:
            return None
        own = {k: v for k, v in kwargs.items() if k != getattr(self, "ctx_param_name", None)}
        given = {**{str(i): a for i, a in enumerate(args)}, **own}
        unread = tuple(f.what for f in texts_of(given, Stage.tool_call) if f.text is None)
        text = call_text(self._tool.metadata.name or "", _plain(given))
        call = Message("assistant", tool_calls=(text,), unjudgeable=unread)
        decision: Decision = (yield partial(self._rules.guard.decide_batch, [[call]]))[0]
        if decision.action.stops:
            self._rules.violated(decision, f"call of {self._where}")
            return decision
        if decision.action is Action.flag:
            report(decision, f"call of {self._where}", "flagged")
        return None

    def _after(
        self, output: ToolOutput, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Steps[ToolOutput]:
        if not self._check_result:
            return output
        given = texts_in([args, kwargs])
        judged, decision = yield from judged_output(self._rules, output, f"output of {self._where}", given)
        return self._withheld(decision) if judged is None else judged

    def _failed(self, error: Exception) -> Steps[ToolOutput]:
        """Agents show a tool's error to the model: its text is judged like an output."""
        if isinstance(error, GuardViolation) or type(error).__module__.startswith("workflows."):
            raise error  # of a guarded part inside; or how a step waits for an event, which is no error
        text = str(error)
        failed = ToolOutput(self._tool.metadata.name or "", content=text, raw_input={}, raw_output=text, is_error=True)
        judged = yield from self._after(failed)
        if judged is failed:
            raise error
        return judged

    def _withheld(self, decision: Decision) -> ToolOutput:
        if self._rules.exit_behavior == "end":
            _ended.set(self)
        text = self._rules.message(decision)
        return ToolOutput(self._tool.metadata.name or "", content=text, raw_input={}, raw_output=text)


class _Ending(ToolMetadata):
    """The metadata of a tool whose call ended: agents ask it whether to return directly, outside of what turns a tool's
    exception into its output. Then a violation that is to end the run is raised."""

    def __getattribute__(self, name: str) -> Any:
        if name == "return_direct" and (raised := _raised.get()) is not None:
            _raised.set(None)
            raise raised[1]
        return super().__getattribute__(name)


def _values(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
    """The arguments of a call, however they were given."""
    return [*args, *kwargs.values()]


def _plain(value: Any) -> Any:
    """Arguments as JSON has them; of any other value its texts."""
    if isinstance(value, str) or value is None or isinstance(value, int | float):
        return value
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    texts = texts_in(value)
    return (texts[0] if len(texts) == 1 else texts) if texts else str(type(value).__name__)


class GuardedFunctionTool(GuardedTool, FunctionTool):
    """Made by `guarded_tools` from a `FunctionTool`; agents give it their context like the tool itself."""

    def __init__(self, tool: FunctionTool, rules: Rules, check_tool_calls: bool, check_tool_results: bool):
        self.__dict__.update(tool.__dict__)
        super().__init__(tool, rules, check_tool_calls, check_tool_results)

        # Whoever reaches for the function itself gets one that is guarded, too.
        def call(*args: Any, **kwargs: Any) -> Any:
            return self.call(*args, **kwargs).raw_output

        async def acall(*args: Any, **kwargs: Any) -> Any:
            return (await self.acall(*args, **kwargs)).raw_output

        self._real_fn = self._fn = wraps(tool.real_fn)(call)
        self._async_fn = wraps(tool.real_fn)(acall)


def judged_output(
    rules: Rules, output: ToolOutput, where: str, given: Sequence[str] = ()
) -> Steps[tuple[ToolOutput | None, Decision]]:
    """The output, redacted where the policy says so, or None where it is blocked; and the decision.

    Judges all that it holds: its blocks, its raw output of any type where that differs, and what it says of its input,
    name and error. given: texts of the call, which was judged itself.
    """
    message = read(ChatMessage(role=MessageRole.TOOL, blocks=output.blocks))
    raw = _Raw(output.content)
    raw.value(output.raw_output)
    for text in texts_in(output.raw_input):
        raw.value(text if text not in given else None)
    raw.value(None if is_name(output.tool_name, 6) else output.tool_name)
    raw.value(getattr(output, "exception", None))
    items: list[Any] = [[message]]
    if raw.texts or raw.unknown:
        items.append([Message("tool", "\n".join(raw.texts), unjudgeable=tuple(raw.unknown))])
    decisions: list[Decision] = yield partial(rules.guard.decide_batch, items, stage=Stage.tool_output)
    decision = worst(decisions)
    if decision.action is Action.redact and not message.unjudgeable:
        text = yield from redacted(rules.guard, message.content, Stage.tool_output)
        rules.withheld(decision, where, "redacted")
        blocks: list[ContentBlock] = [TextBlock(text=text)]
        clean = ToolOutput(
            output.tool_name, blocks=blocks, raw_input=output.raw_input, raw_output=text, is_error=output.is_error
        )
        return clean, decision
    if decision.action.stops:
        rules.violated(decision, where)
        return None, decision
    if decision.action is Action.flag:
        report(decision, where, "flagged")
    return output, decision


class _Raw:
    """Every text that an event's reader may find in a raw output, and what cannot be judged there."""

    def __init__(self, shown: str):
        self._shown = shown
        self.texts: list[str] = []
        self.unknown: list[str] = []
        self._around: set[int] = set()

    def value(self, value: Any, depth: int = 0) -> None:
        if value is None or isinstance(value, int | float) or id(value) in self._around:
            return
        if depth > _DEEPEST:
            self.unknown.append("deeply nested value")
            return
        if isinstance(value, str):
            if value.strip() and value != self._shown:
                self.texts.append(value)
        elif isinstance(inner := _parts(value), list):
            self._around.add(id(value))
            for part in inner:
                self.value(part, depth + 1)
            self._around.discard(id(value))
        else:
            for found in texts_of(value, Stage.tool_output, names=True):
                if found.text is None:
                    self.unknown.append(found.what)
                else:
                    self.value(found.text, depth + 1)


def _parts(value: Any) -> list[Any] | None:
    """What there is to read in LlamaIndex's own types, and in containers that may hold them; None for all else."""
    if isinstance(value, StreamingResponse | AsyncStreamingResponse):
        said = value.response_txt if value.response_txt is not None else value.response_gen
        return [said, value.source_nodes, value.metadata]
    if isinstance(value, PydanticResponse):
        return [value.response, value.source_nodes, value.metadata]
    if isinstance(value, Response):
        return [value.response, value.source_nodes, value.metadata]
    if isinstance(value, NodeWithScore):
        return [value.node]
    if isinstance(value, BaseNode):
        return [value.get_content(MetadataMode.ALL), value.metadata]
    if isinstance(value, ChatMessage):
        message = read(value)
        return [part.text for part in message.parts()]
    if isinstance(value, dict):
        return [*value.keys(), *value.values()]
    if isinstance(value, list | set | frozenset) or type(value) is tuple:
        return list(value)
    return None


__all__ = ["GuardedFunctionTool", "GuardedTool", "guarded_tools"]

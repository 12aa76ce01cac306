"""`guarded_tools(tools, guard)`: arguments and outputs are judged before events and memories see them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import replace
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
from llama_index.postprocessor.guardkit.rules import VIOLATION_MESSAGE, ExitBehavior, Rules, redacted, report, worst
from llama_index.postprocessor.guardkit.steps import Steps, arun, run
from pydantic import BaseModel

from guardkit import Action, Decision, Guard, Message, Stage

_DEEPEST = 8  # levels of a tool's raw output that are read; what lies deeper is judged as its repr

# The tool whose call was last ended in this task: read by `metadata` right after the call, in the same task.
_ended: ContextVar[object] = ContextVar("guardkit_ended_tool", default=None)


def guarded_tools(
    tools: Sequence[BaseTool | Callable[..., Any]],
    guard: Guard | Source,
    *,
    exit_behavior: ExitBehavior = "replace",
    violation_message: str = VIOLATION_MESSAGE,
    check_tool_calls: bool = True,
    check_tool_results: bool = True,
) -> list[AsyncBaseTool]:
    """Tools like `tools`, whose calls and outputs are judged.

    exit_behavior: "replace" gives the agent `violation_message` as the tool's output; "end" does too, and ends the
    run with it, as a tool with `return_direct` does; "error" raises `GuardViolation`, which LlamaIndex's agents turn
    into a tool error with the decision as its text. A `FunctionTool` stays one, with its context parameter.
    """
    rules = Rules(resolve(guard), exit_behavior, violation_message)
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
        return replace(metadata, return_direct=True) if _ended.get() is self else metadata

    def call(self, *args: Any, **kwargs: Any) -> ToolOutput:
        _ended.set(None)
        if run(self._refuses(args, kwargs)):
            return self._withheld()
        try:
            output = self._tool.call(*args, **kwargs)
        except Exception as error:
            return run(self._failed(error))
        return run(self._after(output))

    async def acall(self, *args: Any, **kwargs: Any) -> ToolOutput:
        _ended.set(None)
        if await arun(self._refuses(args, kwargs)):
            return self._withheld()
        try:
            output = await self._tool.acall(*args, **kwargs)
        except Exception as error:
            return await arun(self._failed(error))
        return await arun(self._after(output))

    # -- decisions

    @property
    def _where(self) -> str:
        return f"tool '{self._tool.metadata.name}'"

    def _refuses(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Steps[bool]:
        """Judge name and arguments: whether the tool must not be called."""
        if not self._check_call:
            return False
        own = {k: v for k, v in kwargs.items() if k != getattr(self, "ctx_param_name", None)}
        given = {**{str(i): a for i, a in enumerate(args)}, **own}
        call = Message("assistant", tool_calls=(call_text(self._tool.metadata.name or "", given),))
        decision: Decision = (yield partial(self._rules.guard.decide_batch, [[call]]))[0]
        if decision.action.stops:
            self._rules.violated(decision, f"call of {self._where}")
        elif decision.action is Action.flag:
            report(decision, f"call of {self._where}", "flagged")
        return decision.action.stops

    def _after(self, output: ToolOutput) -> Steps[ToolOutput]:
        if not self._check_result:
            return output
        judged = yield from judged_output(self._rules, output, f"output of {self._where}")
        return self._withheld() if judged is None else judged

    def _failed(self, error: Exception) -> Steps[ToolOutput]:
        """Agents show a tool's error to the model: its text is judged like an output."""
        if type(error).__module__.startswith("workflows."):  # how a step waits for an event: not an error
            raise error
        text = str(error)
        failed = ToolOutput(self._tool.metadata.name or "", content=text, raw_input={}, raw_output=text, is_error=True)
        judged = yield from self._after(failed)
        if judged is failed:
            raise error
        return judged

    def _withheld(self) -> ToolOutput:
        if self._rules.exit_behavior == "end":
            _ended.set(self)
        text = self._rules.violation_message
        return ToolOutput(self._tool.metadata.name or "", content=text, raw_input={}, raw_output=text)


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


def judged_output(rules: Rules, output: ToolOutput, where: str) -> Steps[ToolOutput | None]:
    """The output, redacted where the policy says so, or None where it is blocked.

    Judges all that it holds: its blocks, and its raw output where that differs.
    """
    message = read(ChatMessage(role=MessageRole.TOOL, blocks=output.blocks))
    raw = [text for text in _raw_texts(output.raw_output) if text.strip() and text != output.content]
    items: list[Any] = [[message]]
    if raw:
        items.append("\n".join(raw))
    decisions: list[Decision] = yield partial(rules.guard.decide_batch, items, stage=Stage.tool_output)
    decision = worst(decisions)
    if decision.action is Action.redact and not message.unjudgeable:
        text = yield from redacted(rules.guard, message.content, Stage.tool_output)
        report(decision, where, "redacted")
        blocks: list[ContentBlock] = [TextBlock(text=text)]
        return ToolOutput(
            output.tool_name, blocks=blocks, raw_input=output.raw_input, raw_output=text, is_error=output.is_error
        )
    if decision.action.stops:
        rules.violated(decision, where)
        return None
    if decision.action is Action.flag:
        report(decision, where, "flagged")
    return output


def _raw_texts(value: Any, depth: int = 0) -> list[str]:
    """Every text that an event's reader may find in a raw output."""
    if value is None or isinstance(value, int | float):
        return []
    if depth > _DEEPEST:
        return [repr(value)]
    deeper = partial(_raw_texts, depth=depth + 1)
    if isinstance(value, Response | PydanticResponse | StreamingResponse | AsyncStreamingResponse):
        streaming = isinstance(value, StreamingResponse | AsyncStreamingResponse)
        said = value.response_txt if streaming else str(value)  # type: ignore[union-attr]
        return [*deeper(said), *deeper(value.source_nodes), *deeper(value.metadata)]
    if isinstance(value, NodeWithScore):
        return deeper(value.node)
    if isinstance(value, BaseNode):
        return [value.get_content(MetadataMode.ALL), *texts_in(value.metadata)]
    if isinstance(value, ChatMessage):
        message = read(value)
        return [message.content, message.reasoning, *message.tool_calls]
    if isinstance(value, str | BaseModel):
        return texts_in(value)
    if isinstance(value, Mapping):
        return [text for pair in value.items() for item in pair for text in deeper(item)]
    if isinstance(value, list | tuple | set | frozenset):
        return [text for item in value for text in deeper(item)]
    return [str(value)]


__all__ = ["GuardedFunctionTool", "GuardedTool", "guarded_tools"]

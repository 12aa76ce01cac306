"""Tools whose output is judged before anything sees it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from langchain_core.messages import BaseMessage, ToolMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool
from pydantic import ConfigDict, PrivateAttr

from guardkit import Action, Decision, Guard, Message, Stage
from langchain_guardkit.enforcing import VIOLATION_MESSAGE, Enforcement, ExitBehavior, Judged
from langchain_guardkit.reading import as_text, read, select, texts_in
from langchain_guardkit.unobserved import Unobserved, without_observers, without_own_callbacks

TOOL_OUTPUT = frozenset((Stage.tool_output,))


class OutputGuard:
    """Judges what tools give back: messages, commands with messages in them, plain values and errors."""

    def __init__(self, enforcement: Enforcement, judged: Judged | None = None, index: int | None = None):
        self.enforcement, self._index = enforcement, index
        self.judged = Judged() if judged is None else judged

    def at(self, index: int | None) -> OutputGuard:
        """The same for the message at `index`, which errors name."""
        return OutputGuard(self.enforcement, self.judged, index)

    def settle(self, output: Any) -> Any:
        """The output, or what takes its place. Raises `GuardViolation` where that is the exit behaviour."""
        if isinstance(output, ToolMessage):
            return self._message(output)
        if isinstance(output, list):
            return [self.settle(item) for item in output]
        if type(output).__name__ == "Command":  # LangGraph's, which need not be installed
            return self._command(output)
        decision = self._decide(Message("tool", as_text(output)))
        return output if decision is None else self.enforcement.text(decision)

    def error(self, error: Exception) -> Exception:
        """The error, or one without its text where that is not fit to be seen."""
        decision = self._decide(Message("tool", str(error)))
        if decision is None:
            return error
        return RuntimeError(self.enforcement.text(decision))

    def _message(self, message: ToolMessage) -> Any:
        decision = self._decide(select(read(message), TOOL_OUTPUT))
        return message if decision is None else self.enforcement.scrubbed(message, decision)

    def _command(self, command: Any) -> Any:
        """A command updates the state and sends values on: its messages are judged one by one, other texts whole."""
        update = command.update
        if isinstance(update, Mapping):
            update = {key: self._any(value) for key, value in update.items()}
        elif isinstance(update, list | tuple):
            update = [(key, self._any(value)) for key, value in update]
        elif update is not None:
            update = self._any(update)
        goto = (
            command.goto if self._decide(Message("tool", "\n".join(texts_in(_arguments(command.goto))))) is None else ()
        )
        return replace(command, update=update, goto=goto)

    def _any(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._any(item) for item in value]
        if isinstance(value, BaseMessage):
            decision = self._decide(None if value.type == "remove" else read(value))
            return value if decision is None else self.enforcement.scrubbed(value, decision)
        decision = self._decide(Message("tool", "\n".join(texts_in(value))))
        return value if decision is None else self.enforcement.text(decision)

    def _decide(self, message: Message | None) -> Decision | None:
        """The decision that withholds a message; None where it may go on."""
        fresh = message and self.judged.fresh(message)
        if fresh is None:
            return None
        decision = self.enforcement.guard.decide([fresh])
        if decision.action.stops:
            self.enforcement.raise_if_error(decision, self._index)
            return decision
        if decision.action is Action.allow:
            self.judged.passed(fresh)
        return None


class GuardedTool(BaseTool):
    """A tool that judges what another one gives back.

    The wrapped tool runs unobserved: events, tracers and callbacks see this tool's run, so they see judged output
    alone. With "error" a violation raises `GuardViolation`; else the output is replaced by the violation message.
    What the tool itself writes to a custom stream goes past it: see `guarded_writer`.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    inner: BaseTool
    _output: OutputGuard = PrivateAttr()

    def __init__(
        self,
        tool: BaseTool,
        guard: Guard,
        *,
        exit_behavior: ExitBehavior = "replace",
        violation_message: str = VIOLATION_MESSAGE,
        output: OutputGuard | None = None,
    ):
        super().__init__(
            name=tool.name,
            description=tool.description,
            args_schema=tool.args_schema,
            inner=without_own_callbacks(tool),
            callbacks=tool.callbacks,
            tags=tool.tags,
            metadata=tool.metadata,
            return_direct=tool.return_direct,
            response_format="content",  # the wrapped tool makes the message, artifact and all
            extras=tool.extras,
        )
        self._output = output or OutputGuard(Enforcement(guard, exit_behavior, violation_message))

    @property
    def tool_call_schema(self) -> Any:
        return self.inner.tool_call_schema

    @property
    def args(self) -> dict[str, Any]:
        return self.inner.args

    def _filter_injected_args(self, tool_input: dict[str, Any]) -> dict[str, Any]:
        return self.inner._filter_injected_args(tool_input)

    def _to_args_and_kwargs(
        self, tool_input: str | dict[str, Any], tool_call_id: str | None
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (), {"tool_input": tool_input, "tool_call_id": tool_call_id}  # the wrapped tool validates them

    def _run(self, tool_input: Any, tool_call_id: str | None, config: RunnableConfig) -> Any:
        try:
            with Unobserved():
                output = self.inner.invoke(self._call(tool_input, tool_call_id), without_observers(config))
        except Exception as error:
            if _passes(error):
                raise
            fit = self._output.error(error)
            raise fit from (error if fit is error else None)
        return self._output.settle(output)

    async def _arun(self, tool_input: Any, tool_call_id: str | None, config: RunnableConfig) -> Any:
        try:
            with Unobserved():
                output = await self.inner.ainvoke(self._call(tool_input, tool_call_id), without_observers(config))
        except Exception as error:
            if _passes(error):
                raise
            fit = await asyncio.to_thread(self._output.error, error)
            raise fit from (error if fit is error else None)
        return await asyncio.to_thread(self._output.settle, output)

    def _call(self, tool_input: Any, tool_call_id: str | None) -> Any:
        if isinstance(tool_input, dict):
            tool_input = {name: _unobserved_runtime(value) for name, value in tool_input.items()}
        if tool_call_id is None:
            return tool_input
        return {"name": self.name, "args": tool_input, "id": tool_call_id, "type": "tool_call"}


def _unobserved_runtime(value: Any) -> Any:
    """LangGraph's injected runtime without the observers in its config; any other argument as it is."""
    if type(value).__name__ == "ToolRuntime":
        return replace(value, config=without_observers(value.config))
    return value


def _arguments(goto: Any) -> list[Any]:
    """What a command sends to the nodes that it names."""
    return [getattr(target, "arg", None) for target in (goto if isinstance(goto, list | tuple) else [goto])]


def _passes(error: Exception) -> bool:
    """Control flow, such as an interrupt, is no output of the tool."""
    return any(kind.__name__ in ("GraphBubbleUp", "ValidationError") for kind in type(error).__mro__)


def guarded_writer(
    writer: Callable[[Any], None],
    guard: Guard,
    *,
    exit_behavior: ExitBehavior = "replace",
    violation_message: str = VIOLATION_MESSAGE,
) -> Callable[[Any], None]:
    """LangGraph's stream writer, judged: for tools and nodes that write to `stream_mode="custom"` themselves.

    Each value is judged on its own before it is written, as tool output: write whole sentences, not single tokens.
    """
    output = OutputGuard(Enforcement(guard, exit_behavior, violation_message))

    def write(value: Any) -> None:
        writer(output.settle(value))

    return write

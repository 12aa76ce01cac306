"""Tools whose output is judged before anything sees it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from langchain_core.messages import BaseMessage, ToolMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool
from pydantic import ConfigDict, PrivateAttr

from guardkit import Decision, Guard, Message, Stage
from langchain_guardkit.enforcing import (
    VIOLATION_MESSAGE,
    Enforcement,
    ExitBehavior,
    Judged,
    OnViolation,
    Policies,
    ViolationMessage,
    digest,
)
from langchain_guardkit.marks import METADATA_KEY
from langchain_guardkit.trying import Once
from langchain_guardkit.unobserved import Scrub, Unobserved, without_observers, without_own_callbacks
from langchain_guardkit.values import Leaf, decide_leaves, leaves_of, scrubbed


class OutputGuard:
    """Judges what tools give back: messages, commands with messages in them, plain values, errors, and what they ask
    people when they interrupt."""

    def __init__(self, enforcement: Enforcement, judged: Judged | None = None, index: int | None = None):
        self.enforcement, self._index = enforcement, index
        self.judged = Judged() if judged is None else judged

    def at(self, index: int | None, enforcement: Enforcement) -> OutputGuard:
        """The same for the message at `index`, which errors name, under a run's own policy."""
        return OutputGuard(enforcement, self.judged, index)

    def settle(self, output: Any) -> Any:
        """The output, or what takes its place, with its types kept. Raises `GuardViolation` where that is the exit
        behaviour."""
        leaves = leaves_of(output, None if isinstance(output, BaseMessage) else Stage.tool_output)
        fresh = [leaf for leaf in leaves if not self._known(leaf)]
        if not fresh:
            return output
        decisions = decide_leaves(self.enforcement, [fresh])[0]
        for leaf, decision in zip(fresh, decisions, strict=True):
            if decision.action.stops:
                self.enforcement.violated(decision, self._index)
            elif decision.judged:
                self.judged.add(self._key(leaf))
        if not any(decision.action.stops for decision in decisions):
            return output
        for leaf in fresh:
            leaf.index = self._index
        return scrubbed(self.enforcement, output, fresh, decisions)

    def _known(self, leaf: Leaf) -> bool:
        return leaf.reason is None and self.judged.has(self._key(leaf))

    def _key(self, leaf: Leaf) -> str:
        return digest("output", self.enforcement.key, *(repr(asked) for asked in leaf.asked))

    def error(self, error: Exception, name: str, tool_call_id: str | None) -> ToolMessage | None:
        """None for an error that may be seen; else the message that takes its place, so that nothing tries again.
        Raises one without its text where no message was asked for."""
        decision = self._decide(Message("tool", error_text(error)))
        if decision is None:
            return None
        if tool_call_id is None:
            raise RuntimeError(self.enforcement.text(decision)) from None
        return self.withheld_call(decision, name, tool_call_id)

    def withheld_call(self, decision: Decision, name: str, tool_call_id: str | None) -> ToolMessage:
        """The message that answers a call whose output, or which itself, is withheld."""
        mark = self.enforcement.mark(decision, self._index)
        return ToolMessage(
            content=mark["message"],
            name=name,
            tool_call_id=tool_call_id,
            status="error",
            response_metadata={METADATA_KEY: mark},
        )

    def interrupted(self, interrupt: BaseException) -> BaseException:
        """A graph's interrupt with what it asks judged, or a command to a parent graph with what it brings."""
        asked = interrupt.args[0] if interrupt.args else ()
        quiet = self.replacing()
        if isinstance(asked, list | tuple) and asked and all(hasattr(one, "value") for one in asked):
            interrupt.args = (tuple(replace(one, value=quiet.scrub(one.value)) for one in asked), *interrupt.args[1:])
        elif type(interrupt).__name__ == "ParentCommand":
            interrupt.args = (quiet.scrub(asked), *interrupt.args[1:])
        return interrupt

    def replacing(self) -> OutputGuard:
        """The same, that replaces whatever the exit behaviour is."""
        if self.enforcement.exit_behavior == "replace":
            return self
        return OutputGuard(replace(self.enforcement, exit_behavior="replace"), self.judged, self._index)

    def scrub(self, value: Any) -> Any:
        """A value of any kind with what may not be kept replaced."""
        return self.settle(value)

    def _decide(self, message: Message | None) -> Decision | None:
        """The decision that withholds a message; None where it may go on."""
        scope = self.enforcement.key
        fresh = message and self.judged.fresh(message, scope)
        if fresh is None:
            return None
        decision = self.enforcement.guard.decide([fresh])
        if decision.action.stops:
            self.enforcement.violated(decision, self._index)
            return decision
        if decision.judged:
            self.judged.passed(fresh, scope)
        return None


class GuardedTool(Once, BaseTool):
    """A tool that judges what another one gives back. It runs once, whatever the guard says of its output.

    The wrapped tool runs unobserved: events, tracers and callbacks see this tool's run, so they see judged output
    alone. A graph that it runs keeps its checkpoints, judged. With "error" a violation raises `GuardViolation`; else
    the output is replaced by the violation message. What the tool itself writes to a custom stream goes past it: see
    `guarded_writer`.
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
        violation_message: ViolationMessage = VIOLATION_MESSAGE,
        on_violation: OnViolation | None = None,
        policies: Policies | None = None,
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
        self._output = output or OutputGuard(
            Enforcement(guard, exit_behavior, violation_message, on_violation, policies or {})
        )

    def guarding(self, other: Any) -> Any:
        if isinstance(other, GuardedTool) or not isinstance(other, BaseTool):
            return other
        return GuardedTool(other, self._output.enforcement.guard, output=self._output)

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
        output = self._output_of(config)
        scrub = output.replacing().scrub
        try:
            with Unobserved(scrub):
                result = self.inner.invoke(
                    self._call(tool_input, tool_call_id, scrub), without_observers(config, scrub)
                )
        except Exception as error:
            return self._failed(output, error, tool_call_id)
        return output.settle(result)

    async def _arun(self, tool_input: Any, tool_call_id: str | None, config: RunnableConfig) -> Any:
        output = self._output_of(config)
        scrub = output.replacing().scrub
        try:
            with Unobserved(scrub):
                result = await self.inner.ainvoke(
                    self._call(tool_input, tool_call_id, scrub), without_observers(config, scrub)
                )
        except Exception as error:
            return await asyncio.to_thread(self._failed, output, error, tool_call_id)
        return await asyncio.to_thread(output.settle, result)

    def _output_of(self, config: RunnableConfig) -> OutputGuard:
        enforcement = self._output.enforcement.for_run(config)
        return self._output if enforcement is self._output.enforcement else self._output.at(None, enforcement)

    def _failed(self, output: OutputGuard, error: Exception, tool_call_id: str | None) -> ToolMessage:
        """What a failed run gives, or raises: control flow and harmless errors are the tool's own."""
        if is_control_flow(error):
            raise output.interrupted(error)
        found = output.error(error, self.name, tool_call_id)
        if found is None:
            raise error
        return found

    def _call(self, tool_input: Any, tool_call_id: str | None, scrub: Scrub) -> Any:
        if isinstance(tool_input, dict):
            tool_input = {name: _unobserved_runtime(value, scrub) for name, value in tool_input.items()}
        if tool_call_id is None:
            return tool_input
        return {"name": self.name, "args": tool_input, "id": tool_call_id, "type": "tool_call"}


def _unobserved_runtime(value: Any, scrub: Scrub) -> Any:
    """LangGraph's injected runtime without the observers in its config; any other argument as it is."""
    if type(value).__name__ == "ToolRuntime":
        return replace(value, config=without_observers(value.config, scrub))
    return value


def error_text(error: BaseException) -> str:
    """All that a traceback says in words: messages and notes, of what caused the error too."""
    said: list[str] = []
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop(0)
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        said += [str(one), *map(str, getattr(one, "__notes__", ()))]
        waiting += [one.__cause__, one.__context__, *getattr(one, "exceptions", ())]
    return "\n".join(dict.fromkeys(filter(None, said)))


def is_control_flow(error: BaseException) -> bool:
    """Whether an error is no output of the tool: an interrupt, a command to a parent, arguments that do not fit."""
    return any(kind.__name__ in ("GraphBubbleUp", "ValidationError") for kind in type(error).__mro__)


def guarded_writer(
    writer: Callable[[Any], None],
    guard: Guard,
    *,
    exit_behavior: ExitBehavior = "replace",
    violation_message: ViolationMessage = VIOLATION_MESSAGE,
    on_violation: OnViolation | None = None,
    policies: Policies | None = None,
) -> Callable[[Any], None]:
    """LangGraph's stream writer, judged: for tools and nodes that write to `stream_mode="custom"` themselves.

    Each value is judged on its own before it is written, as tool output: write whole sentences, not single tokens.
    """
    output = OutputGuard(Enforcement(guard, exit_behavior, violation_message, on_violation, policies or {}))

    def write(value: Any) -> None:
        writer(output.at(None, output.enforcement.for_run()).settle(value))

    return write

"""`GuardMiddleware` for `create_agent`: nothing unsafe in an agent's streams, state, writes or checkpoints."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from langchain.agents.middleware import AgentMiddleware, AgentState, ModelRequest, ModelResponse, hook_config
from langchain.agents.middleware.types import ExtendedModelResponse, ToolCallRequest
from langchain_core.messages import AIMessage, AnyMessage, BaseMessage, ToolMessage
from langgraph.runtime import Runtime
from langgraph.types import Command, interrupt

from guardkit import Action, Decision, Guard, Message, Stage
from langchain_guardkit.chat_model import GuardedChatModel
from langchain_guardkit.enforcing import (
    METADATA_KEY,
    VIOLATION_MESSAGE,
    Enforcement,
    ExitBehavior,
    Judged,
    summary,
    withheld,
)
from langchain_guardkit.messages import INPUT_STAGES, MessageGuard
from langchain_guardkit.reading import call_text, read
from langchain_guardkit.streaming import OUTPUT_STAGES
from langchain_guardkit.tools import GuardedTool, OutputGuard

ToolResult = ToolMessage | Command[Any]


class GuardMiddleware(AgentMiddleware[AgentState[Any], Any, Any]):
    """Judges an agent's prompts, answers, reasoning, tool calls, tool outputs and structured output.

    The model and the tools are swapped for guarded ones around each call, so what was not judged reaches no stream,
    callback, state, write or checkpoint. Put it last in the list of middlewares: those after it could swap the model
    back, and what such a model streams is seen before this one can judge it (what enters the state is judged anyway).

    exit_behavior: "end" ends the graph with the violation message, "replace" puts it where the offending text stood and
    goes on, "error" raises `GuardViolation`. A prompt is in the input checkpoint before any middleware runs: here it is
    scrubbed from the current state; `guard | agent` keeps it out altogether.
    ask_on_flag: prompts and tool calls that the policy flags interrupt the graph; a resume value of True or
    ``{"type": "approve"}`` lets them pass. unwrapped_tools: names of tools that run as they are, observed, such as
    sub-agents with a guard of their own; their output is judged all the same. holdback: tokens streams hold back.
    """

    def __init__(
        self,
        guard: Guard,
        *,
        exit_behavior: ExitBehavior = "end",
        violation_message: str = VIOLATION_MESSAGE,
        check_input: bool = True,
        check_output: bool = True,
        check_reasoning: bool = True,
        check_tool_calls: bool = True,
        check_tool_results: bool = True,
        ask_on_flag: bool = False,
        unwrapped_tools: Sequence[str] = (),
        holdback: int | None = None,
    ):
        super().__init__()
        self.enforcement = Enforcement(guard, exit_behavior, violation_message)
        wanted = {
            Stage.prompt: check_input,
            Stage.document: check_input,
            Stage.response: check_output,
            Stage.reasoning: check_reasoning,
            Stage.tool_call: check_tool_calls,
            Stage.tool_output: check_tool_results,
        }
        self.stages = frozenset(stage for stage, on in wanted.items() if on)
        self.ask_on_flag, self.unwrapped_tools, self.holdback = ask_on_flag, frozenset(unwrapped_tools), holdback
        judged = Judged()
        self._judged = judged
        self._input = MessageGuard(self.enforcement, self.stages & INPUT_STAGES, judged)
        self._output = MessageGuard(self.enforcement, self.stages & OUTPUT_STAGES, judged)
        # In a graph the tool's message takes the violation; `before_model` then ends the graph.
        behavior: ExitBehavior = "error" if exit_behavior == "error" else "replace"
        self._tools = OutputGuard(replace(self.enforcement, exit_behavior=behavior), judged)

    # -- before the model: prompts, and tool outputs that no guarded tool gave

    @hook_config(can_jump_to=["end"])
    def before_model(self, state: AgentState[Any], runtime: Runtime[Any]) -> dict[str, Any] | None:
        return self._before(state["messages"], self._input.decide_input(state["messages"]))

    @hook_config(can_jump_to=["end"])
    async def abefore_model(self, state: AgentState[Any], runtime: Runtime[Any]) -> dict[str, Any] | None:
        decisions = await asyncio.to_thread(self._input.decide_input, state["messages"])
        return self._before(state["messages"], decisions)

    def _before(
        self, messages: Sequence[AnyMessage], decisions: Sequence[tuple[int, Decision]]
    ) -> dict[str, Any] | None:
        update: list[BaseMessage] = []
        ended: dict[str, Any] | None = None
        for i, decision in decisions:
            if decision.action is Action.flag and self._approved(messages[i], decision):
                self._input.judged.passed(read(messages[i], i))
                continue
            if decision.action is Action.flag and self.ask_on_flag:
                decision = replace(decision, action=Action.block, rule="not approved")
            if not decision.action.stops:
                continue
            self.enforcement.raise_if_error(decision, i)
            update.append(self.enforcement.scrubbed(messages[i], decision))
            if self.enforcement.behavior(decision) == "end":
                ended = ended or summary(decision)
        if self.enforcement.exit_behavior == "end":
            ended = ended or _withheld_since_the_model(messages)
        if ended is not None:
            return {"messages": [*update, self.enforcement.refusal(ended)], "jump_to": "end"}
        return {"messages": update} if update else None

    # -- around the model: the answer, its reasoning and its tool calls, streamed or not

    def wrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], ModelResponse[Any]]
    ) -> ModelResponse[Any] | AIMessage | ExtendedModelResponse[Any]:
        return cast(ModelResponse[Any], self._after(request, handler(self._with_guarded_model(request))))

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]]
    ) -> ModelResponse[Any] | AIMessage | ExtendedModelResponse[Any]:
        response = await handler(self._with_guarded_model(request))
        return cast(ModelResponse[Any], await asyncio.to_thread(self._after, request, response))

    def _with_guarded_model(self, request: ModelRequest[Any]) -> ModelRequest[Any]:
        output = self.stages & OUTPUT_STAGES
        guarded = isinstance(request.model, GuardedChatModel) and output <= request.model.stages
        if not output or guarded:
            return request
        model = GuardedChatModel(
            request.model,
            self.enforcement.guard,
            exit_behavior=self.enforcement.exit_behavior,
            violation_message=self.enforcement.violation_message,
            stages=output,
            holdback=self.holdback,
            judged=self._judged,
        )
        return request.override(model=model)

    def _after(self, request: ModelRequest[Any], response: Any) -> Any:
        """What enters the state: scrubbed where the guard stopped the message, and judged here where no guarded model
        made it. Tool calls are judged once more as a whole, with their arguments as the tools will read them."""
        if isinstance(response, AIMessage):
            return self._settled(request.messages, response)[0]
        if isinstance(response, ExtendedModelResponse):
            return replace(response, model_response=self._after(request, response.model_response))
        result: list[BaseMessage] = []
        ended = False
        for message in response.result:
            if isinstance(message, AIMessage):
                message, stopped = self._settled(request.messages, message)
                ended = ended or stopped
            elif ended:
                continue  # an answer to a tool call that is gone
            result.append(message)
        return ModelResponse(result=result, structured_response=None if ended else response.structured_response)

    def _settled(self, messages: Sequence[BaseMessage], message: AIMessage) -> tuple[AIMessage, bool]:
        details = withheld(message)
        if details is not None:
            # Without the front that a stopped stream let out: the state keeps the violation message alone.
            refusal = self.enforcement.refusal(details)
            kept = {"id": message.id, "name": message.name, "usage_metadata": message.usage_metadata}
            return refusal.model_copy(update=kept), True
        ((answer, decision),) = self._output.judge_answers(messages, [message])
        return answer, decision is not None

    # -- around the tools: name and arguments before, output after

    def wrap_tool_call(self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], ToolResult]) -> ToolResult:
        refused = self._before_tool(request)
        if refused is not None:
            return refused
        return cast(ToolResult, self._tool_output(handler(self._with_guarded_tool(request))))

    async def awrap_tool_call(
        self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Awaitable[ToolResult]]
    ) -> ToolResult:
        decision = await asyncio.to_thread(self._decide_call, request)
        refused = self._answer_call(request, decision)
        if refused is not None:
            return refused
        output = await handler(self._with_guarded_tool(request))
        return cast(ToolResult, await asyncio.to_thread(self._tool_output, output))

    def _before_tool(self, request: ToolCallRequest) -> ToolMessage | None:
        return self._answer_call(request, self._decide_call(request))

    def _decide_call(self, request: ToolCallRequest) -> Decision | None:
        if Stage.tool_call not in self.stages:
            return None
        message = Message("assistant", tool_calls=(call_text(request.tool_call["name"], request.tool_call["args"]),))
        fresh = self._judged.fresh(message)
        decision = None if fresh is None else self.enforcement.guard.decide([fresh])
        if decision is not None and decision.action is Action.allow:
            self._judged.passed(message)
        return decision

    def _answer_call(self, request: ToolCallRequest, decision: Decision | None) -> ToolMessage | None:
        """The message that answers a call which may not run. Interrupts where a person is to decide."""
        if decision is None:
            return None
        call = request.tool_call
        if decision.action is Action.flag and self.ask_on_flag:
            if self._approved(call, decision):
                return None  # for this call alone: another one like it is asked about again
            decision = replace(decision, action=Action.block, rule="not approved")
        if not decision.action.stops:
            return None
        self.enforcement.raise_if_error(decision, _next_index(request.state))
        return ToolMessage(
            content=self.enforcement.text(decision),
            name=call["name"],
            tool_call_id=call["id"],
            status="error",
            response_metadata={METADATA_KEY: summary(decision)},
        )

    def _with_guarded_tool(self, request: ToolCallRequest) -> ToolCallRequest:
        tool = request.tool
        if tool is None or Stage.tool_output not in self.stages or tool.name in self.unwrapped_tools:
            return request
        if isinstance(tool, GuardedTool):
            return request
        return request.override(
            tool=GuardedTool(tool, self.enforcement.guard, output=self._tools.at(_next_index(request.state)))
        )

    def _tool_output(self, output: Any) -> Any:
        return self._tools.settle(output) if Stage.tool_output in self.stages else output

    # -- people

    def _approved(self, what: BaseMessage | Mapping[str, Any], decision: Decision) -> bool:
        """Ask a person about something that the policy flags."""
        if not self.ask_on_flag:
            return False
        asked = what.content if isinstance(what, BaseMessage) else {"name": what["name"], "args": what["args"]}
        answer = interrupt({"guardkit": summary(decision), "content": asked, "allowed": ["approve", "reject"]})
        return answer is True or (isinstance(answer, Mapping) and answer.get("type") == "approve")


def _withheld_since_the_model(messages: Sequence[BaseMessage]) -> dict[str, Any] | None:
    """Why a tool's output was withheld, among the messages after the model's last one."""
    for message in reversed(messages):
        if isinstance(message, AIMessage):
            break
        if isinstance(message, ToolMessage) and (details := withheld(message)) is not None:
            return details
    return None


def _next_index(state: Any) -> int | None:
    return len(state["messages"]) if isinstance(state, Mapping) and "messages" in state else None

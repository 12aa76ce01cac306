"""`GuardMiddleware` for `create_agent`: nothing unsafe in an agent's streams, state, writes or checkpoints."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, NotRequired, cast

from langchain.agents.middleware import AgentMiddleware, AgentState, ModelRequest, ModelResponse, hook_config
from langchain.agents.middleware.types import ExtendedModelResponse, PrivateStateAttr, ToolCallRequest
from langchain.agents.structured_output import StructuredOutputError
from langchain_core.messages import AIMessage, AnyMessage, BaseMessage, RemoveMessage, ToolMessage
from langgraph.graph.message import REMOVE_ALL_MESSAGES
from langgraph.runtime import Runtime
from langgraph.types import Command, interrupt

from guardkit import Action, Decision, Guard, GuardViolation, Message, Stage
from langchain_guardkit.chat_model import GuardedChatModel
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
from langchain_guardkit.marks import ends_first, summary, withheld, withheld_here
from langchain_guardkit.messages import INPUT_STAGES, Agent, Found, MessageGuard, call_key, is_current, turn_start
from langchain_guardkit.raising import raising
from langchain_guardkit.reading import call_text, read
from langchain_guardkit.stating import PASSED, messages_in, passed_in, without_passes
from langchain_guardkit.streaming import OUTPUT_STAGES
from langchain_guardkit.tools import GuardedTool, OutputGuard, error_text, is_control_flow

ToolResult = ToolMessage | Command[Any]
_KEPT = 4096  # digests that a state carries


def _merged(old: list[str] | None, new: list[str] | None) -> list[str]:
    return list(dict.fromkeys([*(old or ()), *(new or ())]))[-_KEPT:]


class GuardState(AgentState[Any]):
    """An agent's state, with digests of what passed the guard or a person approved: no other worker asks again."""

    guardkit_passed: NotRequired[Annotated[list[str], PrivateStateAttr, _merged]]


class GuardMiddleware(AgentMiddleware[GuardState, Any, Any]):
    """Judges an agent's prompts, answers, reasoning, tool calls, tool outputs and structured output.

    The model and the tools are swapped for guarded ones around each call, so what was not judged reaches no stream,
    callback, state, write or checkpoint. Put it last in the list of middlewares: those after it could swap the model
    back, and what such a model streams is seen before this one can judge it (what enters the state is judged anyway).

    exit_behavior: "end" ends the turn with the violation message, "replace" puts it where the offending text stood and
    goes on, "error" ends the turn as "end" does and then raises `GuardViolation`. Whichever it is, the next turn works:
    the state holds the violation message, and offending messages of earlier turns are replaced. No violation makes a
    tool or the model run again. A prompt is in the input checkpoint before any middleware runs: here it is scrubbed
    from the current state; `guard_graph(agent, guard)` keeps it out altogether.
    ask_on_flag: prompts and tool calls that the policy flags interrupt the graph; a resume value of True or
    ``{"type": "approve"}`` lets them pass. unwrapped_tools: names of tools that run as they are, observed, such as
    sub-agents with a guard of their own; their output is judged all the same. holdback: tokens streams hold back.
    check_system: whether the system prompt is judged, too, when the model is asked: for one that holds what users said,
    such as long-term memory. violation_message, on_violation, policies: see `Enforcement`. repair: see
    `GuardedChatModel`.
    """

    state_schema = GuardState

    @property
    def given_class(self) -> type[GuardMiddleware]:
        """The class that the application named."""
        return type(self)

    def __init__(
        self,
        guard: Guard,
        *,
        exit_behavior: ExitBehavior = "end",
        violation_message: ViolationMessage = VIOLATION_MESSAGE,
        check_input: bool = True,
        check_output: bool = True,
        check_reasoning: bool = True,
        check_tool_calls: bool = True,
        check_tool_results: bool = True,
        check_system: bool = False,
        ask_on_flag: bool = False,
        unwrapped_tools: Sequence[str] = (),
        holdback: int | None = None,
        on_violation: OnViolation | None = None,
        policies: Policies | None = None,
        repair: int = 0,
    ):
        super().__init__()
        self.enforcement = Enforcement(guard, exit_behavior, violation_message, on_violation, policies or {})
        if exit_behavior == "error":
            # A hook at the end of the agent is a node of its graph: only where there is something to raise.
            self.__class__ = raising(cast(Any, self.given_class))
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
        self.repair, self.check_system = repair, check_system
        judged = Judged()
        self._judged = judged
        self._input = MessageGuard(
            self.enforcement, self.stages & INPUT_STAGES, judged, agent=Agent(self.name, ask_on_flag)
        )
        self._output = MessageGuard(self.enforcement, self.stages & OUTPUT_STAGES, judged)
        self._tools = OutputGuard(self.enforcement, judged)

    @property
    def name(self) -> str:
        """The class's: an agent with two guards needs a subclass of this for one of them, since names are unique."""
        return self.given_class.__name__

    def _of_run(self, runtime: Any) -> Enforcement:
        return self.enforcement.for_run(context=getattr(runtime, "context", None))

    # -- before the model: prompts, and tool outputs that no guarded tool gave

    @hook_config(can_jump_to=["end"])
    def before_model(self, state: GuardState, runtime: Runtime[Any]) -> dict[str, Any] | None:
        return self._before(state, self._decided(state, self._of_run(runtime)), self._of_run(runtime))

    @hook_config(can_jump_to=["end"])
    async def abefore_model(self, state: GuardState, runtime: Runtime[Any]) -> dict[str, Any] | None:
        enforcement = self._of_run(runtime)
        decided = await asyncio.to_thread(self._decided, state, enforcement)
        return self._before(state, decided, enforcement)

    def _decided(self, state: GuardState, enforcement: Enforcement) -> tuple[list[str | None], list[Found]]:
        guard = self._input.under(enforcement)
        keys = [guard.key_of(message) for message in state["messages"]]
        return keys, guard.decide_input(state["messages"], set(state.get("guardkit_passed") or ()), keys)

    def _before(
        self, state: GuardState, decided: tuple[list[str | None], list[Found]], enforcement: Enforcement
    ) -> dict[str, Any] | None:
        messages = state["messages"]
        keys, decisions = decided
        start = turn_start(messages) if decisions else 0
        scrubbed: dict[int, BaseMessage] = {}
        stopped: set[int] = set()
        ended: Mapping[str, Any] | None = None
        for found in decisions:
            i, decision = found.index, found.decision
            if decision.action is Action.flag and self.ask_on_flag:
                if self._approved(messages[i], decision):
                    if found.key is None:  # else the state remembers it, for this conversation alone
                        self._judged.passed(read(messages[i], i), enforcement.key)
                    continue
                decision = replace(decision, action=Action.block, rule="not approved")
            if not decision.judged:
                stopped.add(i)  # whatever the action is: to be judged another time
            if not decision.action.stops:
                continue
            stopped.add(i)
            current = is_current(messages, i, start, settled=found.settled)
            if not found.settled:
                scrubbed[i] = enforcement.scrubbed(messages[i], decision, i)
                if current:
                    enforcement.report(decision)
            if current and ended is None and enforcement.behavior(decision) != "replace":
                ended = withheld(scrubbed.get(i, messages[i]))
        passed = [key for i, key in enumerate(keys) if key is not None and i not in stopped]
        known = set(state.get("guardkit_passed") or ())
        result: dict[str, Any] = {PASSED: new} if (new := [key for key in passed if key not in known]) else {}
        if enforcement.exit_behavior != "replace":
            ended = ended or _withheld_since_the_model(messages)
        update = list(scrubbed.values())
        if any(message.id != messages[i].id for i, message in scrubbed.items()):  # what stood as its id may not stay
            update = [RemoveMessage(REMOVE_ALL_MESSAGES), *(scrubbed.get(i, m) for i, m in enumerate(messages))]
        if ended is not None:
            update.append(enforcement.refusal(ended))
            result["jump_to"] = "end"
        if update:
            result["messages"] = update
        return result or None

    # -- around the model: the answer, its reasoning and its tool calls, streamed or not

    def wrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], ModelResponse[Any]]
    ) -> ModelResponse[Any] | AIMessage | ExtendedModelResponse[Any]:
        enforcement = self._of_run(request.runtime)
        try:
            response: Any = handler(self._with_guarded_model(request, enforcement))
        except Exception as error:
            response = self._instead(enforcement, error)
        return cast(ModelResponse[Any], self._after(request, response, enforcement))

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]]
    ) -> ModelResponse[Any] | AIMessage | ExtendedModelResponse[Any]:
        enforcement = self._of_run(request.runtime)
        try:
            response: Any = await handler(self._with_guarded_model(request, enforcement))
        except Exception as error:
            response = await asyncio.to_thread(self._instead, enforcement, error)
        return cast(ModelResponse[Any], await asyncio.to_thread(self._after, request, response, enforcement))

    def _with_guarded_model(self, request: ModelRequest[Any], enforcement: Enforcement) -> ModelRequest[Any]:
        stages = self.stages & (INPUT_STAGES | OUTPUT_STAGES)
        guarded = isinstance(request.model, GuardedChatModel) and stages <= request.model.stages
        if not stages or guarded:
            return request
        model = GuardedChatModel(
            request.model,
            enforcement.guard,
            # An error that a model's call raises would be taken for a fault of the model: tried again, or handed to
            # another one. The turn ends first, and the end of the agent raises.
            enforcement=replace(
                enforcement,
                exit_behavior="replace" if enforcement.exit_behavior == "replace" else "end",
                policies={},
                chosen=True,
            ),
            stages=stages,
            holdback=self.holdback,
            judged=self._judged,
            repair=self.repair,
            # What is asked is judged where it is asked: messages that middlewares put in beside the state's, and what
            # a run brings that goes on from an old checkpoint.
            check_system=self.check_system,
            agent=Agent(self.name, self.ask_on_flag, passed_in(request.state)),
        )
        return request.override(model=model)

    def _instead(self, enforcement: Enforcement, error: Exception) -> AIMessage:
        """The answer in the place of an error that stands for a violation, or whose text may not be seen; any other
        error is raised."""
        if isinstance(error, GuardViolation):
            return enforcement.refusal(enforcement.mark(error.decision, getattr(error, "message_index", None)))
        if isinstance(error, StructuredOutputError):
            if withheld(error.ai_message) is None:
                raise error
            return error.ai_message
        seen = is_control_flow(error) or Stage.response not in self.stages
        text = "" if seen else error_text(error)
        decision = enforcement.guard.decide(text, stage=Stage.response) if text else None
        if decision is None or not decision.action.stops:
            raise error  # a retry that gives up puts its text into the conversation
        enforcement.report(decision)
        return enforcement.refusal(enforcement.mark(decision))

    def _after(self, request: ModelRequest[Any], response: Any, enforcement: Enforcement) -> Any:
        """What enters the state: scrubbed where the guard stopped the message, and judged here where no guarded model
        made it. Tool calls are judged once more as a whole, with their arguments as the tools will read them."""
        command: Command[Any] | None = None
        if isinstance(response, ExtendedModelResponse):
            response, command = response.model_response, response.command
        if isinstance(response, AIMessage):
            response = ModelResponse(result=[response])
        result: list[BaseMessage] = []
        ended, calls = False, []
        for message in response.result:
            if isinstance(message, AIMessage):
                message, stopped = self._settled(request.messages, message, enforcement)
                ended = ended or (stopped and ends_first(message))
                calls += message.tool_calls
            elif ended:
                continue  # an answer to a tool call that is gone
            result.append(message)
        settled = ModelResponse(result=result, structured_response=None if ended else response.structured_response)
        update: dict[str, Any] = {}
        if ended:
            update["jump_to"] = "end"  # an agent that waits for structured output would ask again
        elif calls and Stage.tool_call in self.stages:
            keys = [call_key(call, enforcement) for call in calls]
            update[PASSED] = [digest(self.name, key) for key in keys if self._judged.has(key)]
        if not update:
            return settled if command is None else ExtendedModelResponse(model_response=settled, command=command)
        before = command.update if command is not None and isinstance(command.update, Mapping) else {}
        return ExtendedModelResponse(model_response=settled, command=Command(update={**before, **update}))

    def _settled(
        self, messages: Sequence[BaseMessage], message: AIMessage, enforcement: Enforcement
    ) -> tuple[AIMessage, bool]:
        mark = withheld_here(message)
        if mark is not None:
            # Without the front that a stopped stream let out: the state keeps the violation message alone.
            kept = {"id": message.id, "name": message.name, "usage_metadata": message.usage_metadata}
            return enforcement.refusal(mark).model_copy(update=kept), True
        quiet = self._output.under(replace(enforcement, exit_behavior="replace"))
        ((answer, decision),) = quiet.judge_answers(messages, [message])
        return answer, decision is not None

    # -- around the tools: name and arguments before, output after

    def wrap_tool_call(self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], ToolResult]) -> ToolResult:
        output = self._output_guard(request)
        refused = self._answer_call(request, self._decide_call(request, output.enforcement), output)
        if refused is not None:
            return refused
        try:
            result = handler(self._with_guarded_tool(request, output))
        except Exception as error:
            return self._failed(request, error, output)
        return self._tool_output(request, result, output)

    async def awrap_tool_call(
        self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Awaitable[ToolResult]]
    ) -> ToolResult:
        output = self._output_guard(request)
        decision = await asyncio.to_thread(self._decide_call, request, output.enforcement)
        refused = self._answer_call(request, decision, output)
        if refused is not None:
            return refused
        try:
            result = await handler(self._with_guarded_tool(request, output))
        except Exception as error:
            return await asyncio.to_thread(self._failed, request, error, output)
        return await asyncio.to_thread(self._tool_output, request, result, output)

    def _output_guard(self, request: ToolCallRequest) -> OutputGuard:
        """The tool's message takes the violation, whatever the exit behaviour: an error would be tried again by a
        retry. `before_model` then ends the turn."""
        enforcement = replace(self._of_run(request.runtime), exit_behavior="replace", policies={}, chosen=True)
        return self._tools.at(_next_index(request.state), enforcement)

    def _decide_call(self, request: ToolCallRequest, enforcement: Enforcement) -> Decision | None:
        if Stage.tool_call not in self.stages:
            return None
        key = call_key(request.tool_call, enforcement)
        if self._judged.has(key) or digest(self.name, key) in passed_in(request.state):
            return None
        message = Message("assistant", tool_calls=(call_text(request.tool_call["name"], request.tool_call["args"]),))
        decision = enforcement.guard.decide([message])
        if decision.action is Action.allow and decision.judged:
            self._judged.add(key)
        return decision

    def _answer_call(
        self, request: ToolCallRequest, decision: Decision | None, output: OutputGuard
    ) -> ToolMessage | None:
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
        output.enforcement.report(decision)
        return output.withheld_call(decision, call["name"], call["id"])

    def _with_guarded_tool(self, request: ToolCallRequest, output: OutputGuard) -> ToolCallRequest:
        tool = request.tool
        if tool is None or Stage.tool_output not in self.stages or tool.name in self.unwrapped_tools:
            return request
        if isinstance(tool, GuardedTool):
            return request
        return request.override(tool=GuardedTool(tool, self.enforcement.guard, output=output))

    def _failed(self, request: ToolCallRequest, error: Exception, output: OutputGuard) -> ToolMessage:
        """The message in the place of an error that may not be seen; any other error is raised."""
        call = request.tool_call
        if isinstance(error, GuardViolation):  # of a tool with a guard of its own
            return output.withheld_call(error.decision, call["name"], call["id"])
        if is_control_flow(error) or Stage.tool_output not in self.stages:
            raise error
        found = output.error(error, call["name"], call["id"])
        if found is None:
            raise error
        return found

    def _tool_output(self, request: ToolCallRequest, result: Any, output: OutputGuard) -> ToolResult:
        if Stage.tool_output not in self.stages:
            return cast(ToolResult, result)
        settled = output.settle(without_passes(result))
        if isinstance(settled, Command) and self.enforcement.exit_behavior != "replace":
            mark = next((m for m in map(withheld, messages_in(settled)) if m is not None), None)
            if mark is not None:  # the turn ends here: nothing is handed to another agent
                call = request.tool_call
                decision = output.enforcement.violation(mark).decision
                return output.withheld_call(decision, call["name"], call["id"])
        return cast(ToolResult, settled)

    # -- people

    def _approved(self, what: BaseMessage | Mapping[str, Any], decision: Decision) -> bool:
        """Ask a person about something that the policy flags."""
        asked = what.content if isinstance(what, BaseMessage) else {"name": what["name"], "args": what["args"]}
        answer = interrupt({"guardkit": summary(decision), "content": asked, "allowed": ["approve", "reject"]})
        return answer is True or (isinstance(answer, Mapping) and answer.get("type") == "approve")


def _withheld_since_the_model(messages: Sequence[AnyMessage]) -> Mapping[str, Any] | None:
    """Why a tool's output was withheld, among the messages of this turn after the model's last one."""
    for message in reversed(messages[turn_start(messages) :]):
        if isinstance(message, AIMessage):
            break
        if isinstance(message, ToolMessage) and (mark := withheld(message)) is not None:
            return mark if mark["action"] == Action.block.value else None
    return None


def _next_index(state: Any) -> int | None:
    return len(state["messages"]) if isinstance(state, Mapping) and "messages" in state else None

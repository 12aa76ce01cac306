"""A violation ends its turn, once: structured output, retries, tools, policies of a run, what is said and told."""

from __future__ import annotations

import asyncio
from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
from llama_index.core.agent.workflow import FunctionAgent, ReActAgent
from llama_index.core.base.llms.types import ChatMessage, ToolCallBlock
from llama_index.core.bridge.pydantic import BaseModel
from llama_index.core.memory import ChatMemoryBuffer, Memory
from llama_index.core.program import FunctionCallingProgram, LLMTextCompletionProgram
from llama_index.core.prompts import PromptTemplate
from llama_index.core.selectors import LLMSingleSelector
from llama_index.core.tools import FunctionTool, ToolMetadata, ToolOutput
from llama_index.core.tools.calling import acall_tool, call_tool
from llama_index.core.tools.types import BaseTool
from llama_index.core.types import PydanticProgramMode
from llama_index.core.workflow import Context, StartEvent, StopEvent, Workflow, step
from llama_index.postprocessor.guardkit import GuardMemory, Withheld, guard_policy, guarded, guarded_tools
from workflows.retry_policy import ConstantDelayRetryPolicy

from guardkit import Decision, GuardkitError, GuardViolation, Policy, Stage
from guardkit.testing import FakeGuard
from tests.leaks import BAD, CONTROVERSIAL, FLAGGED, SAFE, VIOLATION, check_no_trace, make_guard
from tests.llama_index.doubles import FunctionLLM, PlainLLM, index_of, reply, user


class Answer(BaseModel):
    text: str


HI = PromptTemplate("hi")


def calling(text: str) -> FunctionLLM:
    return FunctionLLM(reply(calls=[("Answer", {"text": text})]))


def writing(text: str) -> PlainLLM:
    return PlainLLM(f'{{"text": "{text}"}}')


# -- structured output


@pytest.mark.parametrize("exit_behavior", ["error", "end", "replace"])
@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("made", [calling, writing])
@pytest.mark.parametrize("surface", ["prompt", "answer"])
def test_a_blocked_object_is_a_violation_and_no_failure_to_parse(
    surface: str, made: Any, is_async: bool, exit_behavior: Any
):
    llm = guarded(made(BAD if surface == "answer" else SAFE), make_guard(), exit_behavior=exit_behavior)
    prompt = PromptTemplate(f"please {FLAGGED}") if surface == "prompt" else HI
    messages = prompt.format_messages()
    ways: list[Any] = [
        lambda: llm.structured_predict(Answer, prompt),
        lambda: llm.as_structured_llm(Answer).chat(messages),
        lambda: LLMTextCompletionProgram.from_defaults(output_cls=Answer, prompt=prompt, llm=llm)(),
    ]
    if is_async:
        ways = [
            lambda: asyncio.run(llm.astructured_predict(Answer, prompt)),
            lambda: asyncio.run(llm.as_structured_llm(Answer).achat(messages)),
            lambda: asyncio.run(
                LLMTextCompletionProgram.from_defaults(output_cls=Answer, prompt=prompt, llm=llm).acall()
            ),
        ]
    if made is calling:
        program = FunctionCallingProgram.from_defaults(output_cls=Answer, prompt=prompt, llm=llm)
        ways[2] = (lambda: asyncio.run(program.acall())) if is_async else program
    for way in ways:
        with pytest.raises(GuardViolation) as violation:
            way()
        check_no_trace([violation.value, violation.value.decision], "the error")


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("made", [calling, writing])
def test_an_object_that_passes_arrives(made: Any, is_async: bool):
    llm = guarded(made(SAFE), make_guard())
    whole = asyncio.run(llm.astructured_predict(Answer, HI)) if is_async else llm.structured_predict(Answer, HI)
    assert whole == Answer(text=SAFE)
    assert stream_of(llm, is_async)[-1] == Answer(text=SAFE)


def stream_of(llm: Any, is_async: bool) -> list[Any]:
    async def read() -> list[Any]:
        return [item async for item in await llm.astream_structured_predict(Answer, HI)]

    return asyncio.run(read()) if is_async else list(llm.stream_structured_predict(Answer, HI))


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("made", [calling, writing])
def test_a_structured_stream_ends_with_a_sign(made: Any, is_async: bool):
    items = stream_of(guarded(made(BAD), make_guard(), violation_message=VIOLATION), is_async)
    assert isinstance(items[-1], Withheld)
    assert items[-1].message == VIOLATION
    assert items[-1].guardkit["action"] == "block"
    check_no_trace(items, "the stream")
    with pytest.raises(GuardViolation):
        stream_of(guarded(made(BAD), make_guard(), exit_behavior="error"), is_async)


def test_a_failure_to_parse_stays_one():
    llm = guarded(PlainLLM("no object at all"), make_guard())
    with pytest.raises(ValueError, match="extract json"):
        llm.structured_predict(Answer, HI)


def test_a_selector_that_is_blocked_says_so():
    selector = LLMSingleSelector.from_defaults(llm=guarded(PlainLLM(BAD), make_guard()))
    with pytest.raises(GuardViolation):
        selector.select([ToolMetadata(description="one", name="one")], query="which?")


def test_a_program_of_text_answers_text():
    llm = guarded(PlainLLM(BAD), make_guard(), violation_message=VIOLATION)
    engine = index_of("fine").as_query_engine(llm=llm)  # refine programs want text: nothing fails to parse
    assert str(engine.query("what?")) == VIOLATION
    assert llm.pydantic_program_mode is PydanticProgramMode.DEFAULT


# -- once


@pytest.mark.parametrize("is_async", [False, True])
def test_a_retry_policy_does_not_ask_again(is_async: bool):
    inner = PlainLLM(BAD)
    llm = guarded(inner, make_guard(), exit_behavior="error")

    class Flow(Workflow):
        @step(retry_policy=ConstantDelayRetryPolicy(maximum_attempts=4, delay=0))
        async def ask(self, ev: StartEvent) -> StopEvent:
            said = await llm.achat([user("hi")]) if is_async else llm.chat([user("hi")])
            return StopEvent(result=str(said))

    async def go() -> Any:
        return await Flow(timeout=120).run()

    with pytest.raises(GuardViolation):
        asyncio.run(go())
    assert len(inner.script.asked) == 1


class Pay(BaseTool):
    """No function tool, and with one argument: LlamaIndex's `call_tool` tries such a tool twice."""

    def __init__(self, says: Any):
        self.says, self.paid = says, 0

    @property
    def metadata(self) -> ToolMetadata:
        return ToolMetadata(name="pay", description="pays")

    def __call__(self, input: Any) -> ToolOutput:
        self.paid += 1
        return ToolOutput("pay", content="paid", raw_input={}, raw_output=self.says)


@pytest.mark.parametrize("exit_behavior", ["error", "end", "replace"])
@pytest.mark.parametrize("is_async", [False, True])
def test_a_tool_runs_once_whatever_is_said_of_its_output(is_async: bool, exit_behavior: Any):
    tool = Pay(BAD)
    (made,) = guarded_tools([tool], make_guard(), exit_behavior=exit_behavior)
    output = asyncio.run(acall_tool(made, {"input": "1"})) if is_async else call_tool(made, {"input": "1"})
    assert tool.paid == 1
    check_no_trace([output, getattr(output.exception, "decision", None)], "the output")
    assert call_tool(guarded_tools([tool], FakeGuard())[0], {"input": "2"}).content == "paid"
    assert tool.paid == 2


@pytest.mark.parametrize("react", [False, True])
def test_error_ends_the_run_of_an_agent(react: bool):
    calls: list[str] = []

    def pay(amount: str) -> str:
        """Pays."""
        calls.append(amount)
        return BAD

    guard = make_guard()
    script: Any = (
        ['Thought: pay\nAction: pay\nAction Input: {"amount": "1"}']
        if react
        else [reply(calls=[("pay", {"amount": "1"})])]
    )
    inner = (PlainLLM if react else FunctionLLM)(*script)
    agent = (ReActAgent if react else FunctionAgent)(
        tools=guarded_tools([pay], guard, exit_behavior="error"), llm=guarded(inner, guard, exit_behavior="error")
    )

    async def go() -> Any:
        return await agent.run("pay", memory=GuardMemory(memory=ChatMemoryBuffer.from_defaults(), guard=guard))

    with pytest.raises(GuardViolation):
        asyncio.run(go())
    assert calls == ["1"]
    assert len(inner.script.asked) == 1


def test_a_tool_whose_violation_was_caught_may_be_called_again():
    (tool,) = guarded_tools([lambda where: BAD if where == "bad" else "found"], make_guard(), exit_behavior="error")
    try:
        tool(where="bad")
    except GuardViolation:
        assert tool(where="home").content == "found"
    assert tool.metadata.return_direct is False


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("message", [VIOLATION, {"prompt": "no such question"}, lambda d: f"no {d.stage.value}"])
def test_error_wins_over_what_a_memory_replaces(message: Any, is_async: bool):
    guard = make_guard()
    inner = FunctionLLM(SAFE)
    llm = guarded(inner, guard, exit_behavior="error")
    memory = GuardMemory(memory=Memory.from_defaults(), guard=guard, violation_message=message)
    if is_async:

        async def go() -> Any:
            return await FunctionAgent(tools=[], llm=llm).run(f"please {FLAGGED}", memory=memory)

        with pytest.raises(GuardViolation):
            asyncio.run(go())
        assert str(asyncio.run(second(llm, memory))) == SAFE
    else:
        memory.put(user(f"please {FLAGGED}"))
        with pytest.raises(GuardViolation):
            llm.chat(memory.get())
        memory.put(user("and now?"))
        assert llm.chat(memory.get()).message.content == SAFE
    check_no_trace([inner.script.asked, memory.get_all()], "what was asked and kept")


async def second(llm: Any, memory: Any) -> Any:
    return await FunctionAgent(tools=[], llm=llm).run("and now?", memory=memory)


def test_error_does_not_end_a_conversation_for_good():
    """Even where a plain memory keeps the blocked question."""
    llm = guarded(FunctionLLM(SAFE), make_guard(), exit_behavior="error")
    with pytest.raises(GuardViolation):
        llm.chat([user(BAD)])
    assert llm.chat([user(BAD), user("and now?")]).message.content == SAFE


def test_a_memory_that_raises_has_kept_the_rest():
    memory = GuardMemory(memory=ChatMemoryBuffer.from_defaults(), guard=make_guard(), exit_behavior="error")
    with pytest.raises(GuardViolation):
        memory.put_messages([user("fine"), user(BAD)])
    assert memory.get_all()[0].content == "fine"
    assert len(memory.get_all()) == 2
    check_no_trace(memory.get_all(), "the memory")


def test_a_mark_that_is_none_is_judged():
    for kwargs in ({"guardkit": {"note": BAD}}, {"guardkit": BAD}, {"name": BAD}, {"id": {"deep": [BAD]}}):
        message = ChatMessage(role="user", content="hi", additional_kwargs=kwargs)
        llm = guarded(PlainLLM(SAFE), make_guard(), exit_behavior="error")
        with pytest.raises(GuardViolation):
            llm.chat([message])


# -- what is said, who is told, what is asked again


def test_messages_by_stage_and_by_function():
    by_stage = guarded(PlainLLM(BAD), make_guard(), violation_message={"prompt": "not this", "response": "{severity}"})
    assert by_stage.chat([user(BAD)]).message.content == "not this"
    assert by_stage.chat([user("hi")]).message.content == "unsafe"
    by_function = guarded(PlainLLM(BAD), make_guard(), violation_message=lambda d: f"no {d.stage.value}")
    assert "".join(c.delta or "" for c in by_function.stream_chat([user("hi")])).endswith("no response")
    with pytest.raises(ValueError, match="nonsense"):
        guarded(PlainLLM(), make_guard(), violation_message={"nonsense": "x"}).chat([user("hi")])


def test_the_hook_is_told_each_decision_once():
    told: list[Decision] = []
    llm = guarded(PlainLLM(BAD), make_guard(), on_violation=told.append)
    llm.chat([user("hi")])
    llm.chat([user(BAD)])
    assert [d.stage for d in told] == [Stage.response, Stage.prompt]
    failing = guarded(PlainLLM(BAD), make_guard(), on_violation=lambda d: 1 / 0, violation_message=VIOLATION)
    assert failing.chat([user("hi")]).message.content == VIOLATION


@pytest.mark.parametrize("is_async", [False, True])
def test_a_blocked_answer_may_be_asked_for_again(is_async: bool):
    inner = PlainLLM(BAD, SAFE)
    llm = guarded(inner, make_guard(), max_repairs=1)
    said = asyncio.run(llm.achat([user("hi")])) if is_async else llm.chat([user("hi")])
    assert said.message.content == SAFE
    assert [len(asked) for asked in inner.script.asked] == [1, 2]
    check_no_trace(inner.script.asked, "what the model was asked")
    stubborn = PlainLLM(BAD)
    said = guarded(stubborn, make_guard(), max_repairs=2, violation_message=VIOLATION).complete("hi")
    assert said.text == VIOLATION
    assert len(stubborn.script.asked) == 3


# -- policies of a run

POLICIES = {"careful": "strict", "open": Policy("open", rules=[{"severity": "unsafe", "action": "allow"}])}


def test_a_run_names_its_policy():
    llm = guarded(PlainLLM(CONTROVERSIAL), make_guard(), policies=POLICIES, violation_message=VIOLATION)
    assert llm.chat([user("hi")]).message.content == CONTROVERSIAL
    with guard_policy("careful"):
        assert llm.chat([user("hi")]).message.content == VIOLATION
        assert "".join(c.delta or "" for c in llm.stream_chat([user("hi")])) == VIOLATION
    with guard_policy("open"):
        assert llm.chat([user(BAD)]).message.content == CONTROVERSIAL
    assert llm.chat([user(BAD)]).message.content == VIOLATION  # what another run was allowed is judged again
    with guard_policy("unheard"), pytest.raises(GuardkitError, match="'careful', 'open'"):
        llm.chat([user("hi")])


@pytest.mark.parametrize(("name", "said"), [(None, CONTROVERSIAL), ("careful", VIOLATION)])
@pytest.mark.parametrize("streaming", [False, True])
def test_a_workflow_context_names_the_policy(name: str | None, said: str, streaming: bool):
    guard = make_guard()
    llm = guarded(FunctionLLM(CONTROVERSIAL), guard, policies=POLICIES, violation_message=VIOLATION)
    tools = guarded_tools([lambda: "found"], guard, policies=POLICIES)
    agent = FunctionAgent(tools=tools, llm=llm, streaming=streaming)
    memory = GuardMemory(
        memory=ChatMemoryBuffer.from_defaults(), guard=guard, policies=POLICIES, violation_message=VIOLATION
    )

    async def go() -> str:
        ctx = Context(agent)
        if name:
            await ctx.store.set("guard_policy", name)
        return str(await agent.run("hi", ctx=ctx, memory=memory))

    assert asyncio.run(go()) == said


# -- values of any type

Point = namedtuple("Point", "x note")


@dataclass
class Page:
    body: Any


class Model(BaseModel):
    body: Any


class Plain:
    def __init__(self, body: Any):
        self.body = body


HIDDEN = {
    "dataclass": Page(BAD),
    "model": Model(body={"a": [BAD]}),
    "object": Plain(BAD),
    "bytes": BAD.encode(),
    "namedtuple": Point(1, BAD),
    "set": {BAD},
    "key": {BAD: 1},
    "deep": [[[[[[[[[[[{"a": Page(BAD)}]]]]]]]]]]],
    "call": ToolCallBlock(tool_name="x", tool_kwargs={"q": BAD}),
    "error": ValueError(BAD),
}


@pytest.mark.parametrize("kind", HIDDEN)
def test_text_in_values_of_any_type_is_found(kind: str):
    (tool,) = guarded_tools([Pay(HIDDEN[kind])], make_guard(), violation_message=VIOLATION)
    assert tool("1").content == VIOLATION
    message = ChatMessage(role="user", content="hi", additional_kwargs={"artifact": HIDDEN[kind]})
    with pytest.raises(GuardViolation):
        guarded(PlainLLM(SAFE), make_guard(), exit_behavior="error").chat([message])


def test_a_function_tool_is_one_still():
    (made,) = guarded_tools([FunctionTool.from_defaults(lambda x: x, name="same")], make_guard())
    assert made(x=3).raw_output == 3

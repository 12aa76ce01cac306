"""`guarded(llm, guard)`: the same interface, nothing unsafe in or out."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CitableBlock,
    CitationBlock,
    DocumentBlock,
    ImageBlock,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)
from llama_index.core.bridge.pydantic import BaseModel
from llama_index.core.callbacks import CallbackManager, LlamaDebugHandler
from llama_index.core.llms import LLM, MockLLM
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.prompts import PromptTemplate
from llama_index.postprocessor.guardkit import GuardedLLM, guarded
from llama_index.postprocessor.guardkit.messages import call_text

from guardkit import GuardViolation, Stage
from guardkit.testing import FakeGuard
from tests.leaks import (
    AFTER_MARK,
    BAD,
    FLAGGED,
    SAFE,
    SIZES,
    VIOLATION,
    Seen,
    check_no_trace,
    make_guard,
)
from tests.llama_index.doubles import FunctionLLM, PlainLLM, completion, reply, user

EXITS = ("error", "end", "replace")
CALLS = ("chat", "achat", "stream_chat", "astream_chat", "complete", "acomplete", "stream_complete", "astream_complete")


def call(llm: LLM, how: str, prompt: Any = "hello", **kwargs: Any) -> list[Any]:
    """All responses of one call: one, or the chunks of a stream."""
    given = prompt if "complete" in how or isinstance(prompt, list) else [user(prompt)]

    async def acall() -> list[Any]:
        got = await getattr(llm, how)(given, **kwargs)
        return [chunk async for chunk in got] if "stream" in how else [got]

    if how.startswith("a"):
        return asyncio.run(acall())
    got = getattr(llm, how)(given, **kwargs)
    return list(got) if "stream" in how else [got]


def text_of(response: Any) -> str:
    return response.message.content or "" if hasattr(response, "message") else response.text


@pytest.mark.parametrize(
    ("how", "size"), [(how, size) for how in CALLS for size in SIZES if "stream" in how or size == 1]
)
@pytest.mark.parametrize("exit_behavior", EXITS)
def test_no_flagged_answer_comes_out(how: str, exit_behavior: str, size: int):
    inner = FunctionLLM(BAD, size=size)
    llm = guarded(inner, make_guard(), exit_behavior=exit_behavior, violation_message=VIOLATION)
    if exit_behavior == "error":
        with pytest.raises(GuardViolation) as violation:
            call(llm, how)
        check_no_trace(violation.value, "the error")
        assert violation.value.stage.value == "response"
        return
    responses = call(llm, how)
    check_no_trace(responses, how)
    assert responses[-1].raw == {"usage": {"total_tokens": 7}}
    assert VIOLATION in text_of(responses[-1])
    seen = Seen()
    for response in responses:
        seen.add(response.delta or "" if "stream" in how else text_of(response))
    seen.check_clean()
    if "stream" in how:
        shown = seen.text.removesuffix(VIOLATION).rstrip()
        assert shown
        assert SAFE.startswith(shown)
        assert len(SAFE.split()) - len(shown.split()) <= 9  # the hold-back
        assert text_of(responses[-1]) == (VIOLATION if exit_behavior == "end" else seen.text)


@pytest.mark.parametrize(
    ("how", "size"), [(how, size) for how in CALLS[:4] for size in SIZES if "stream" in how or size == 1]
)
@pytest.mark.parametrize("exit_behavior", EXITS)
@pytest.mark.parametrize("part", ["thinking", "calls"])
def test_no_flagged_reasoning_or_tool_call_comes_out(how: str, part: str, exit_behavior: str, size: int):
    said = reply("fine", thinking=BAD) if part == "thinking" else reply("fine", calls=[("send", {"body": BAD})])
    llm = guarded(FunctionLLM(said, size=size), make_guard(), exit_behavior=exit_behavior, violation_message=VIOLATION)
    stage = {"thinking": "reasoning", "calls": "tool_call"}[part]
    if exit_behavior == "error":
        with pytest.raises(GuardViolation) as violation:
            call(llm, how)
        check_no_trace(violation.value, "the error")
        assert violation.value.stage.value == stage
        return
    responses = call(llm, how)
    check_no_trace(responses, how)
    last = responses[-1].message
    assert not any(isinstance(b, ToolCallBlock) and "one fine" not in str(b.tool_kwargs) for b in last.blocks)
    assert isinstance(llm, GuardedLLM)
    assert llm.get_tool_calls_from_response(responses[-1], error_on_no_tool_call=False) == []
    if exit_behavior == "end" or part == "calls":
        assert VIOLATION in (last.content or "")
    if exit_behavior == "replace" and "stream" not in how:
        assert "fine" in (last.content or "")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("how", ["stream_chat", "astream_chat", "stream_complete", "astream_complete"])
def test_what_passes_arrives_complete_once_in_order_and_live(how: str, size: int):
    inner = FunctionLLM(SAFE, size=size)
    llm = guarded(inner, make_guard(holdback=4))
    seen = Seen()

    async def aread() -> None:
        async for chunk in await getattr(llm, how)("hi" if "complete" in how else [user("hi")]):
            seen.source = inner.script.sources[0]
            seen.add(chunk.delta)

    if how.startswith("a"):
        asyncio.run(aread())
    else:
        for chunk in getattr(llm, how)("hi" if "complete" in how else [user("hi")]):
            seen.source = inner.script.sources[0]
            seen.add(chunk.delta)
    seen.check_complete(SAFE)
    seen.check_live(4)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("how", ["stream_chat", "astream_chat"])
def test_reasoning_text_and_tool_calls_pass_together(how: str, size: int):
    calls = [("look", {"where": SAFE}), ("send", {"body": "words " * 30})]
    inner = FunctionLLM(reply("I will look.", thinking=SAFE, calls=calls), size=size)
    llm = guarded(inner, make_guard(holdback=4))
    chunks = call(llm, how)
    assert "".join(c.delta or "" for c in chunks) == "I will look."
    assert "".join(c.additional_kwargs.get("thinking_delta", "") for c in chunks) == SAFE
    last = chunks[-1].message
    assert [b.content for b in last.blocks if isinstance(b, ThinkingBlock)] == [SAFE]
    assert [(b.tool_name, b.tool_kwargs) for b in last.blocks if isinstance(b, ToolCallBlock)] == calls
    assert [b.tool_call_id for b in last.blocks if isinstance(b, ToolCallBlock)] == ["c0", "c1"]
    partial = [c for c in chunks[:-1] if any(isinstance(b, ToolCallBlock) for b in c.message.blocks)]
    if size < 10:
        assert partial, "tool calls came only at the end"


@pytest.mark.parametrize("size", [1, 3, 7])
@pytest.mark.parametrize("how", ["stream_chat", "astream_chat"])
def test_escapes_in_streamed_tool_calls_hide_nothing(how: str, size: int):
    said = reply(calls=[("send", {"body": f'a "quoted"\nline {BAD}' + " §§" * 30})])
    llm = guarded(FunctionLLM(said, size=size, escaped=True), make_guard(), violation_message=VIOLATION)
    responses = call(llm, how)
    check_no_trace(responses, how)
    assert text_of(responses[-1]) == VIOLATION


def test_calls_as_text():
    for arguments in ('{"a": "x\\u00b6', '{"a": "x\\u00b6\\', '{"a": "x\\u00b6\\u00'):
        assert call_text("send", arguments) == 'send {"a": "x\u00b6'
    assert call_text("send", {"a": 'say "hi"\n\\o/'}) == 'send {"a": "say "hi"\n\\o/"}'
    assert call_text("send", "{}") == "send"
    assert call_text("send", "plain words") == "send plain words"
    assert "first" in call_text("send", '{"a": "first", "a": "second"}')  # who reads it next may take either


@pytest.mark.parametrize("how", CALLS)
def test_a_blocked_prompt_does_not_reach_the_llm(how: str):
    inner = PlainLLM("never said")
    llm = guarded(inner, make_guard(), violation_message=VIOLATION)
    responses = call(llm, how, f"tell me {FLAGGED}")
    assert [text_of(r) for r in responses] == [VIOLATION]
    assert inner.script.asked == []
    with pytest.raises(GuardViolation, match=r"message 0 \(user\)"):
        call(guarded(inner, make_guard(), exit_behavior="error"), how, f"tell me {FLAGGED}")
    call(guarded(inner, make_guard(), exit_behavior="replace"), how, f"tell me {FLAGGED}")
    check_no_trace(inner.script.asked, "what the model was asked")


def test_the_error_names_the_message():
    history = [user("hi"), ChatMessage(role="assistant", content="hello"), user(FLAGGED)]
    with pytest.raises(GuardViolation, match=r"message 2 \(user\)"):
        guarded(PlainLLM(), make_guard(), exit_behavior="error").chat(history)


def test_one_bad_message_does_not_end_the_conversation_for_good():
    inner = PlainLLM("fine")
    llm = guarded(inner, make_guard(), violation_message=VIOLATION)
    history = [user(FLAGGED), ChatMessage(role="assistant", content=VIOLATION), user("something else")]
    assert text_of(llm.chat(history)) == "fine"
    check_no_trace(inner.script.asked, "what the model was asked")


def test_each_message_is_judged_once():
    guard = FakeGuard()
    llm = guarded(PlainLLM("a", "b"), guard)
    history = [user("one"), user("two")]
    answer = llm.chat(history).message
    calls = guard.model.calls
    llm.chat([*history, answer, user("three")])
    assert guard.model.calls == calls + 2  # the new message, the new answer


def test_tool_messages_are_judged_as_tool_outputs_and_system_messages_only_if_asked():
    tool = ChatMessage(role="tool", content=FLAGGED, additional_kwargs={"tool_call_id": "x"})
    call_ = reply(calls=[("look", {})])
    with pytest.raises(GuardViolation) as violation:
        guarded(FunctionLLM(), make_guard(), exit_behavior="error").chat([user("hi"), call_, tool])
    assert violation.value.stage.value == "tool_output"
    inner = FunctionLLM("fine")
    guarded(inner, make_guard(), exit_behavior="replace").chat([user("hi"), call_, tool])
    assert inner.script.asked[0][2].additional_kwargs == {"tool_call_id": "x"}
    system = [ChatMessage(role="system", content=FLAGGED), user("hi")]
    guarded(inner, make_guard(), exit_behavior="error").chat(system)
    with pytest.raises(GuardViolation):
        guarded(inner, make_guard(), exit_behavior="error", check_system=True).chat(system)


def test_redaction_keeps_the_rest():
    rules = [{"severity": "unsafe", "action": "redact"}]
    llm = guarded(
        PlainLLM("All is well. It was bad there. Good bye."), FakeGuard({"bad": "unsafe"}, policy={"rules": rules})
    )
    assert text_of(llm.chat([user("how are you?")])) == "All is well. [redacted] Good bye."


@pytest.mark.parametrize("how", ["chat", "stream_chat"])
def test_what_a_provider_keeps_beside_the_reasoning_is_judged(how: str):
    for aside, passes in (({"signature": "abc="}, True), ({"summary": f"so {BAD}"}, False)):
        block = ThinkingBlock(content="let me think", additional_information=aside)
        said = ChatMessage(role="assistant", blocks=[block, TextBlock(text="fine")])
        inner = FunctionLLM(said, size=5)
        responses = call(guarded(inner, make_guard(), violation_message=VIOLATION), how)
        check_no_trace(responses, how)
        if how == "chat":
            assert (text_of(responses[-1]) == "fine") is passes


def test_images_follow_on_error():
    said = ChatMessage(role="assistant", blocks=[TextBlock(text="see"), ImageBlock(url="http://localhost/a.png")])
    assert text_of(guarded(PlainLLM(said), make_guard(), violation_message=VIOLATION).chat([user("hi")])) == VIOLATION
    allowed = guarded(PlainLLM(said), make_guard(on_error="allow")).chat([user("hi")])
    assert len(allowed.message.blocks) == 2


@pytest.mark.parametrize("how", CALLS)
def test_a_guard_that_fails_lets_nothing_through(how: str):
    llm = guarded(PlainLLM("all crash here"), FakeGuard({"crash": RuntimeError("boom")}), violation_message=VIOLATION)
    responses = call(llm, how)
    assert "crash" not in "".join(text_of(r) for r in responses)
    assert VIOLATION in text_of(responses[-1])
    with pytest.raises(GuardViolation, match="not judged"):
        call(guarded(PlainLLM("all crash here"), llm.guard, exit_behavior="error"), how)
    through = guarded(PlainLLM("all crash here"), FakeGuard({"crash": RuntimeError("boom")}, on_error="allow"))
    assert text_of(call(through, how)[-1]) == "all crash here"


@pytest.mark.parametrize("how", ["chat", "stream_chat", "astream_chat"])
def test_a_guard_that_hangs_ends_with_its_timeout(how: str):
    llm = guarded(PlainLLM("hello there"), FakeGuard(delay=0.5, timeout=0.05), violation_message=VIOLATION)
    responses = call(llm, how)
    assert [text_of(r) for r in responses] == [VIOLATION]


def test_a_cancelled_stream_shows_nothing_more_and_closes_its_source():
    inner = PlainLLM(SAFE, size=3)
    llm = guarded(inner, FakeGuard(delay=0.01))
    shown: list[str] = []

    async def read() -> None:
        async for chunk in await llm.astream_chat([user("hi")]):
            shown.append(chunk.delta or "")
            if len(shown) == 2:
                raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(read())
    assert len(shown) == 2


@pytest.mark.parametrize("size", SIZES)
def test_a_hold_back_that_is_too_short_shows_what_it_declares(size: int):
    llm = guarded(PlainLLM(BAD, size=size), make_guard(holdback=0, debounce=2), violation_message=VIOLATION)
    chunks = call(llm, "stream_chat")
    shown = "".join(chunk.delta or "" for chunk in chunks)
    assert shown.count(AFTER_MARK) <= 2  # of the token that completes the run of two
    check_no_trace(chunks[-1], "the last message")


def test_leaving_a_stream_early_closes_its_source():
    inner = PlainLLM(SAFE, size=3)
    stream = guarded(inner, make_guard(holdback=1)).stream_chat([user("hi")])
    next(stream)
    stream.close()
    assert inner.script.closed == 1


def test_errors_of_the_llm_pass_through():
    llm = guarded(PlainLLM(ConnectionError("gone")), make_guard())
    for how in CALLS:
        with pytest.raises(ConnectionError, match="gone"):
            call(llm, how)


def test_it_stays_what_it_was():
    plain, calling = guarded(PlainLLM(), make_guard()), guarded(FunctionLLM(model="m1"), make_guard())
    assert isinstance(plain, LLM)
    assert not isinstance(plain, FunctionCallingLLM)
    assert isinstance(calling, FunctionCallingLLM)
    assert calling.metadata.is_function_calling_model
    assert calling.model == "m1"
    with pytest.raises(AttributeError):
        _ = calling.script_of_another_kind
    with pytest.raises(TypeError, match="LLM"):
        guarded("gpt", make_guard())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="exit_behavior"):
        guarded(PlainLLM(), make_guard(), exit_behavior="stop").chat([user("hi")])  # type: ignore[arg-type]


def test_serialisation():
    llm = guarded(MockLLM(max_tokens=3), "nano", exit_behavior="replace")
    data = llm.to_dict()
    assert data["class_name"] == "guarded_llm"
    again = GuardedLLM.from_dict(data)
    assert again.to_dict() == data
    assert isinstance(again.llm, MockLLM)


def test_callbacks_see_what_was_judged():
    debug = LlamaDebugHandler(print_trace_on_end=False)
    inner = PlainLLM(BAD, callback_manager=CallbackManager([debug]))
    llm = guarded(inner, make_guard())
    llm.chat([user("hi")])
    list(llm.stream_chat([user("hi")]))
    events = [e.payload for e in debug.get_events()]
    assert events
    check_no_trace(events, "callback events")


class Person(BaseModel):
    """A person."""

    name: str


@pytest.mark.parametrize("stream", [False, True])
def test_structured_prediction_goes_through_the_guard(stream: bool):
    prompt = PromptTemplate("A person named {x}.")

    def predict(llm: LLM) -> list[Any]:
        if stream:
            return list(llm.stream_structured_predict(Person, prompt, x="Ada"))
        return [llm.structured_predict(Person, prompt, x="Ada")]

    good = guarded(FunctionLLM(reply(calls=[("Person", {"name": "Ada"})])), make_guard())
    assert predict(good)[-1].name == "Ada"
    bad = guarded(FunctionLLM(reply(calls=[("Person", {"name": FLAGGED})])), make_guard(), exit_behavior="error")
    with pytest.raises(GuardViolation):
        predict(bad)


def test_completion_helper_keeps_fields():
    assert completion(PlainLLM("x").chat([user("hi")])).text == "x"


def cites(text: str, title: str = "t") -> CitationBlock:
    return CitationBlock(cited_content=TextBlock(text=text), source="s", title=title, additional_location_info={})


OTHER_BLOCKS = {
    "citation": cites,
    "title": lambda text: cites("x", text),
    "citable": lambda text: CitableBlock(content=[TextBlock(text=text)], source="s", title="t"),
    "document": lambda text: DocumentBlock(data=text.encode(), document_mimetype="text/plain"),
}


@pytest.mark.parametrize("kind", OTHER_BLOCKS)
@pytest.mark.parametrize("how", ["chat", "achat", "stream_chat", "astream_chat"])
@pytest.mark.parametrize("behavior", EXITS)
def test_what_an_answer_cites_is_judged(kind: str, how: str, behavior: Any):
    said = reply(SAFE)
    said.blocks.append(OTHER_BLOCKS[kind](BAD))
    llm = guarded(FunctionLLM(said, size=7), make_guard(), exit_behavior=behavior, violation_message=VIOLATION)
    if behavior == "error":
        with pytest.raises(GuardViolation) as caught:
            call(llm, how)
        assert caught.value.stage is Stage.document
        return
    responses = call(llm, how)
    check_no_trace(responses, how)
    assert VIOLATION in text_of(responses[-1])
    assert (SAFE in text_of(responses[-1])) == (behavior == "replace")


@pytest.mark.parametrize("how", ["chat", "stream_chat"])
def test_a_harmless_citation_stays(how: str):
    said = reply(SAFE)
    said.blocks.append(cites("fine"))
    last = call(guarded(FunctionLLM(said, size=7), make_guard()), how)[-1].message
    cited = [b.cited_content for b in last.blocks if isinstance(b, CitationBlock)]
    assert cited == [TextBlock(text="fine")]


class TakingTurns(FunctionLLM):
    """Sends a word of its reasoning and a word of its answer by turns."""

    def stream_chat(self, messages: Any, **kwargs: Any) -> Any:
        said = self.script.next(messages)
        thinking, text = said.blocks[0].content.split(), said.content.split()
        thought = shown = ""
        for i in range(max(len(thinking), len(text))):
            new = "".join(f"{word} " for word in thinking[i : i + 1])
            thought += new
            blocks = [ThinkingBlock(content=thought), TextBlock(text=shown)]
            yield ChatResponse(
                message=ChatMessage(role="assistant", blocks=blocks),
                delta="",
                additional_kwargs={"thinking_delta": new},
            )
            new = "".join(f"{word} " for word in text[i : i + 1])
            shown += new
            blocks = [ThinkingBlock(content=thought), TextBlock(text=shown)]
            yield ChatResponse(message=ChatMessage(role="assistant", blocks=blocks), delta=new)

    async def astream_chat(self, messages: Any, **kwargs: Any) -> Any:
        async def chunks() -> Any:
            for chunk in self.stream_chat(messages):
                yield chunk

        return chunks()


@pytest.mark.parametrize("place", ["thinking", "text"])
@pytest.mark.parametrize("how", ["stream_chat", "astream_chat"])
def test_texts_that_take_turns_are_each_judged_as_one(how: str, place: str):
    for bad in (True, False):
        said = {"thinking": f"{SAFE} {SAFE}", "text": f"{SAFE} {SAFE}"} | ({place: BAD} if bad else {})
        inner = TakingTurns(reply(said["text"], thinking=said["thinking"]))
        chunks = call(guarded(inner, make_guard(), violation_message=VIOLATION), how)
        thought = "".join(c.additional_kwargs.get("thinking_delta", "") for c in chunks)
        text = "".join(c.delta or "" for c in chunks)
        blocks = [b.content or "" for c in chunks for b in c.message.blocks if isinstance(b, ThinkingBlock)]
        if bad:
            for seen in (thought, text, *blocks):
                assert FLAGGED not in seen
                assert AFTER_MARK not in seen
            assert text.endswith(VIOLATION)
        else:
            assert (thought.strip(), text.strip()) == (said["thinking"], said["text"])
            assert blocks[-1].strip() == said["thinking"]
